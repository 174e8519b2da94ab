// Additions to htmx: a hidden tab sends no requests, a page that could not refresh shows a warning, and the space-time
// diagram stays scrolled to its right end (the present) unless the user scrolls away from it. Buttons copy values.
"use strict";

const live = document.getElementById("live");
const staleWarning = document.getElementById("stale");

function setStale(isStale) {
  if (!staleWarning || staleWarning.hidden === !isStale) return;
  if (isStale) {
    const asOf = document.getElementById("as-of");
    document.getElementById("stale-since").textContent = asOf ? asOf.textContent : "an unknown time";
  }
  staleWarning.hidden = !isStale;
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

let isAtEnd = true;

function scrollBox() {
  return document.getElementById("diagram-scroll");
}

function scrollToEnd() {
  const box = scrollBox();
  if (box && isAtEnd) box.scrollLeft = box.scrollWidth;
}

if (scrollBox()) {
  scrollBox().addEventListener("scroll", (event) => {
    const box = event.target;
    isAtEnd = box.scrollLeft + box.clientWidth >= box.scrollWidth - 40;
  });
  document.body.addEventListener("htmx:afterSwap", scrollToEnd);
  scrollToEnd();
}

// Without a secure context (HTTPS or localhost), browsers have no clipboard.
async function copyValue(button) {
  const response = await fetch(button.dataset.copies);
  if (!response.ok) throw new Error(response.statusText);
  await navigator.clipboard.writeText(await response.text());
}

for (const button of document.querySelectorAll(".cw-copy")) {
  button.hidden = !navigator.clipboard;
  button.addEventListener("click", () => {
    copyValue(button).then(() => { button.textContent = "Copied"; }, () => { button.textContent = "Not copied"; });
  });
}
