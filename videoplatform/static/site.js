// What every page does: menus, times in the reader's own zone, copying, and words for a request that failed.
(() => {
  "use strict";
  const one = (selector, root = document) => root.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const setText = (element, text) => {
    if (element.textContent !== text) element.textContent = text;
  };
  // Words come from Django's catalog, which base.html loads first and which defines gettext, ngettext and interpolate.
  const say = (words, values) => interpolate(words, values, true);
  window.site = { one, all, say, setText };

  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") closeMenus();
  });
  document.addEventListener("click", (event) => closeMenus(event.target));

  function closeMenus(except) {
    all("details.menu[open]").forEach((menu) => {
      if (!except || !menu.contains(except)) menu.open = false;
    });
  }

  // The page's language, as spoken where the browser is: en-GB writes dates unlike en-US.
  const spoken = document.documentElement.lang;
  const region = navigator.languages.find((language) => language.split("-")[0] === spoken) ?? spoken;
  const moment = new Intl.DateTimeFormat(region, { dateStyle: "medium", timeStyle: "short" });
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
  window.site.tell = tell;
  document.addEventListener("htmx:responseError", (event) => {
    if (event.detail.requestConfig.verb === "get") return;
    const status = event.detail.xhr.status;
    const known = {
      403: gettext("This page is too old. Please reload it and try again."),
      503: gettext("The service is very busy just now. Please try again in a few seconds."),
    };
    tell(known[status] ?? say(gettext("That did not work (%(status)s). Please try again."), { status }));
  });
  document.addEventListener("htmx:sendError", (event) => {
    if (event.detail.requestConfig.verb !== "get") tell(gettext("The site cannot be reached just now. Nothing was sent; please try again."));
  });

  document.addEventListener("click", async (event) => {
    const button = event.target.closest?.("[data-copy]");
    if (!button) return;
    const field = document.getElementById(button.dataset.copy);
    field.select();
    try {
      await navigator.clipboard.writeText(field.value);
      button.textContent = gettext("Copied");
    } catch {
      button.textContent = gettext("Press Ctrl+C");
    }
  });
})();
