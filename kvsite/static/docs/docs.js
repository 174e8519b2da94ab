"use strict";

const page = document.getElementById("docs");

// Swagger UI leaves some controls and regions of an open operation without a name that a screen reader could say.
function name(element, text) {
  if (!element.hasAttribute("aria-label")) element.setAttribute("aria-label", text);
}

function nameAll() {
  for (const select of page.querySelectorAll("select")) {
    const row = select.closest("tr[data-param-name]");
    name(select, row ? row.dataset.paramName : select.className.includes("examples") ? "Example" : "Media type");
  }
  for (const input of page.querySelectorAll("input[type=file]")) name(input, "File to send as the body");
  for (const area of page.querySelectorAll("textarea")) name(area, "Body");
  for (const pre of page.querySelectorAll("pre")) pre.tabIndex = 0; // It scrolls, so the keyboard must reach it.
  for (const block of page.querySelectorAll(".opblock")) {
    block.querySelectorAll("[role=region]").forEach((region, n) => name(region, `${block.id}, responses ${n + 1}`));
  }
}

new MutationObserver(nameAll).observe(page, { childList: true, subtree: true });

SwaggerUIBundle({
  url: page.dataset.document,
  dom_id: "#docs",
  // With deep links, each operation is a link within a button, which a screen reader cannot operate.
  deepLinking: false,
  // Nothing of this replica is sent to a validator on the web.
  validatorUrl: null,
});
