// What was typed and not sent survives a reload: forms with data-draft, kept in this tab until they are sent.
(() => {
  "use strict";
  const { one, all } = window.site;
  const UNKEPT = ["csrfmiddlewaretoken", "key", "remix"];
  const slot = (name) => `draft ${name}`;

  function save(form) {
    const fields = Object.fromEntries([...new FormData(form)].filter(([name]) => !UNKEPT.includes(name)));
    sessionStorage.setItem(slot(form.dataset.draft), JSON.stringify({ at: location.search, fields }));
  }

  function forget(form) {
    sessionStorage.removeItem(slot(form.dataset.draft));
  }

  // The draft of this form, else that of the form which came before it: the front page's, from before the sign-in.
  function draftOf({ draft, draftBefore }) {
    const found = [draft, draftBefore].map((name) => name && sessionStorage.getItem(slot(name))).find(Boolean);
    if (draftBefore) sessionStorage.removeItem(slot(draftBefore));
    return found && JSON.parse(found);
  }

  function restore(form) {
    const draft = draftOf(form.dataset);
    // A link that fills the form, or an answer with what was typed, goes before a draft from elsewhere.
    const isFilled = all("textarea, input:not([type=hidden], [type=radio])", form).some((field) => field.value);
    if (!draft || (isFilled && draft.at !== location.search) || one(".field-error", form)) return;
    for (const [name, value] of Object.entries(draft.fields)) {
      const field = form.elements[name];
      if (!field) continue;
      field.value = value;
      if (value) field.closest?.("details")?.setAttribute("open", "");
    }
    form.dispatchEvent(new Event("input", { bubbles: true }));
  }

  document.addEventListener("DOMContentLoaded", () => all("form[data-draft]").forEach(restore));
  document.addEventListener("input", (event) => {
    const form = event.target.closest?.("form[data-draft]");
    if (form) save(form);
  });
  document.addEventListener("submit", (event) => {
    if (event.target.matches("form[data-draft]") && !event.target.hasAttribute("hx-post")) forget(event.target);
  });
  document.addEventListener("htmx:afterRequest", ({ detail: { requestConfig, successful } }) => {
    const form = requestConfig.elt; // the answer has taken its place
    if (successful && form.matches("form[data-draft]")) forget(form);
  });
})();
