// What every page does: menus, times in the reader's own zone, copying, and words for a request that failed.
(() => {
  "use strict";
  const one = (selector, root = document) => root.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const setText = (element, text) => {
    if (element.textContent !== text) element.textContent = text;
  };
  window.site = { one, all, setText };

  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") closeMenus();
  });
  document.addEventListener("click", (event) => closeMenus(event.target));

  function closeMenus(except) {
    all("details.menu[open]").forEach((menu) => {
      if (!except || !menu.contains(except)) menu.open = false;
    });
  }

  const moment = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
  function localTimes(root) {
    all("time[datetime]", root).forEach((time) => {
      const words = moment.format(new Date(time.dateTime));
      if (/\d\d:\d\d/.test(time.textContent)) setText(time, words);
      time.title = words;
    });
  }
  document.addEventListener("htmx:load", (event) => localTimes(event.detail.elt));
  document.addEventListener("DOMContentLoaded", () => localTimes(document.body));

  // --- What went wrong ----------------------------------------------------------------------------------------------
  function tell(words) {
    const place = one("#messages");
    const line = Object.assign(document.createElement("p"), { className: "message error", textContent: words });
    line.setAttribute("role", "alert");
    place.replaceChildren(line);
  }
  document.addEventListener("htmx:responseError", (event) => {
    if (event.detail.requestConfig.verb === "get") return;
    const status = event.detail.xhr.status;
    tell(status === 403 ? "This page is too old. Please reload it and try again." : `That did not work (${status}). Please try again.`);
  });
  document.addEventListener("htmx:sendError", (event) => {
    if (event.detail.requestConfig.verb !== "get") tell("The site cannot be reached just now. Nothing was sent; please try again.");
  });

  document.addEventListener("click", async (event) => {
    const button = event.target.closest?.("[data-copy]");
    if (!button) return;
    const field = document.getElementById(button.dataset.copy);
    field.select();
    try {
      await navigator.clipboard.writeText(field.value);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Press Ctrl+C";
    }
  });
})();
