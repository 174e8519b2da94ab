// Small things around htmx: no requests from a hidden tab, and a page that says so when it is not live any more,
// and a diagram that shows its end, which is now, unless somebody has scrolled away from it.
"use strict";

const live = document.getElementById("live");
const stale = document.getElementById("stale");

function setStale(isStale) {
  if (!stale || stale.hidden === !isStale) return;
  if (isStale) {
    const asOf = document.getElementById("as-of");
    document.getElementById("stale-since").textContent = asOf ? asOf.textContent : "an unknown time";
  }
  stale.hidden = !isStale;
  document.body.classList.toggle("cw-page-is-stale", isStale);
}

if (live) {
  document.body.addEventListener("htmx:beforeRequest", (event) => {
    if (document.hidden) event.preventDefault();
  });
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) htmx.trigger(live, "refresh");
  });
  document.body.addEventListener("htmx:afterRequest", (event) => setStale(!event.detail.successful));
}

let follows = true;

function picture() {
  return document.getElementById("picture-scroll");
}

function follow() {
  const box = picture();
  if (box && follows) box.scrollLeft = box.scrollWidth;
}

if (picture()) {
  picture().addEventListener("scroll", (event) => {
    const box = event.target;
    follows = box.scrollLeft + box.clientWidth >= box.scrollWidth - 40;
  });
  document.body.addEventListener("htmx:afterSwap", follow);
  follow();
}
