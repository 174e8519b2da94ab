// Small things around htmx: no requests from a hidden tab, and a page that says so when it is not live any more.
"use strict";

const live = document.getElementById("overview");
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
