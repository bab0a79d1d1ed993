// Every page: menus, times in the reader's own zone, copying, and messages for a failed request.
(() => {
  "use strict";
  const one = (selector, root = document) => root.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const setText = (element, text) => {
    if (element.textContent !== text) element.textContent = text;
  };
  // Messages come from Django's catalog, which base.html loads first and which defines gettext, ngettext and interpolate.
  const format = (message, values) => interpolate(message, values, true);
  window.site = { one, all, format, setText, showError, notify };

  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") closeMenus();
  });
  document.addEventListener("click", (event) => closeMenus(event.target));

  function closeMenus(except) {
    all("details.menu[open]").forEach((menu) => {
      if (!except || !menu.contains(except)) menu.open = false;
    });
  }

  // The page's language in the browser's region: en-GB writes dates unlike en-US.
  const pageLanguage = document.documentElement.lang;
  const region = navigator.languages.find((language) => language.split("-")[0] === pageLanguage) ?? pageLanguage;
  const moment = new Intl.DateTimeFormat(region, { dateStyle: "medium", timeStyle: "short" });
  function localTimes(root) {
    all("time[datetime]", root).forEach((time) => {
      const text = moment.format(new Date(time.dateTime));
      if (/\d\d:\d\d/.test(time.textContent)) setText(time, text);
      time.title = text;
    });
  }
  document.addEventListener("htmx:load", (event) => localTimes(event.detail.elt));
  document.addEventListener("DOMContentLoaded", () => localTimes(document.body));

  // A second press at the same place that meets another control was meant for the first one, which has moved or gone.
  const PRESSED_TWICE_MS = 600;
  const SAME_PLACE_PX = 12;
  let pressed = { at: -Infinity };
  function isMeantForAnother(event, control) {
    const moved = Math.hypot(event.clientX - pressed.x, event.clientY - pressed.y);
    const again = event.detail > 1 || event.timeStamp - pressed.at < PRESSED_TWICE_MS;
    return again && moved < SAME_PLACE_PX && control !== pressed.control;
  }
  document.addEventListener(
    "click",
    (event) => {
      const control = event.target.closest?.("a, button, summary");
      if (!control || !event.isTrusted || !event.detail) return; // by the keyboard
      if (isMeantForAnother(event, control)) {
        event.preventDefault();
        event.stopImmediatePropagation();
      }
      pressed = { control, x: event.clientX, y: event.clientY, at: event.timeStamp };
    },
    { capture: true },
  );

  // A reload asks for this page again, instead of sending the form that it answers once more.
  document.addEventListener("DOMContentLoaded", () => {
    if (one("[data-shown-once]")) history.replaceState(history.state, "", location.href);
  });

  // --- Errors --------------------------------------------------------------------------------------------------------
  function showError(text) {
    const place = one("#messages");
    const line = Object.assign(document.createElement("p"), { className: "message error", textContent: text });
    line.setAttribute("role", "alert");
    place.replaceChildren(line);
  }
  document.addEventListener("htmx:responseError", (event) => {
    if (event.detail.requestConfig.verb === "get") return;
    const status = event.detail.xhr.status;
    const known = {
      403: gettext("This page is too old. Please reload it and try again."),
      503: gettext("The service is very busy just now. Please try again in a few seconds."),
    };
    showError(known[status] ?? format(gettext("That did not work (%(status)s). Please try again."), { status }));
  });
  document.addEventListener("htmx:sendError", (event) => {
    if (event.detail.requestConfig.verb !== "get") showError(gettext("The site cannot be reached just now. Nothing was sent; please try again."));
  });

  // --- Notifications of this browser, by choice ----------------------------------------------------------------------
  const NOTIFY = "notify-when-ready";
  const canNotify = () => "Notification" in window && Notification.permission === "granted" && localStorage.getItem(NOTIFY) === "on";
  function notify(text, { body, url }) {
    if (!canNotify() || (!document.hidden && document.hasFocus())) return;
    try {
      const shown = new Notification(text, { body, tag: url });
      shown.onclick = () => {
        window.focus();
        location.assign(url);
      };
    } catch (error) {
      if (!(error instanceof TypeError)) throw error; // Android has them for service workers only
    }
  }
  function syncNotifyButton() {
    const button = one("[data-notify]");
    if (!button) return;
    button.setAttribute("aria-pressed", String(canNotify()));
    setText(button, canNotify() ? gettext("Switch off") : gettext("Switch on"));
  }
  document.addEventListener("click", async (event) => {
    if (!event.target.closest?.("[data-notify]")) return;
    if (canNotify()) localStorage.removeItem(NOTIFY);
    else if ("Notification" in window && (await Notification.requestPermission()) === "granted") localStorage.setItem(NOTIFY, "on");
    else showError(gettext("Your browser does not let this site show notifications. You can allow it in its settings."));
    syncNotifyButton();
  });
  document.addEventListener("DOMContentLoaded", syncNotifyButton);

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
