// The composer: counter, price, cooldown, whether the credits are enough; ⌘/Ctrl+Enter; sample prompts.
(() => {
  "use strict";
  const { one, format, setText } = window.site;
  const isApple = /Mac|iPhone|iPad/.test(navigator.platform);
  const ASK_FOR_GPU_MS = 20000;
  const growsByItself = CSS.supports("field-sizing", "content");
  let cooldownEnds = 0;
  let cooldownMs = 0;
  let cooldownTimer;

  function readCooldown() {
    const bar = one("#submit-bar");
    if (!bar) return;
    cooldownMs = Number(bar.dataset.cooldown) * 1000;
    cooldownEnds = Date.now() + cooldownMs;
    clearInterval(cooldownTimer);
    if (cooldownMs) cooldownTimer = setInterval(syncComposer, 250);
    syncComposer();
  }

  function syncComposer() {
    const composer = one("#composer");
    if (!composer) return;
    syncPrompt(composer);
    const left = cooldownEnds - Date.now();
    if (left <= 0) clearInterval(cooldownTimer);
    syncButton(composer, left);
  }

  // Characters as the server counts them: whole code points, without the space around the prompt.
  function syncPrompt(composer) {
    const prompt = one("#prompt", composer);
    const counter = one("#prompt-count", composer);
    const used = [...prompt.value.trim()].length;
    const text = `${used}/${prompt.dataset.max}`;
    if (counter.value !== text) counter.value = text;
    counter.classList.toggle("over", used > Number(prompt.dataset.max));
    if (growsByItself) return;
    prompt.style.height = "auto";
    prompt.style.height = `${prompt.scrollHeight}px`;
  }

  function syncButton(composer, left) {
    const chosen = one("input[name=preset]:checked", composer);
    const bar = one("#submit-bar", composer);
    if (!chosen || !bar) return;
    const isShort = syncNote(bar, chosen);
    const button = one(".generate", bar);
    const waits = left > 0;
    const text = waits
      ? format(gettext("Generate in %(left)s s"), { left: Math.ceil(left / 1000) })
      : format(gettext("Generate · %(price)s"), { price: chosen.dataset.price });
    setText(one(".generate-words", bar), text);
    setText(one("kbd", bar), waits ? "" : isApple ? "⌘↵" : "Ctrl ↵");
    button.classList.toggle("cooling", waits);
    button.style.setProperty("--waited", waits ? `${100 - (100 * left) / cooldownMs}%` : "0%");
    if (!composer.classList.contains("htmx-request")) button.disabled = waits || isShort;
    button.hidden = isShort;
  }

  function syncNote(bar, chosen) {
    const balance = Number(bar.dataset.balance);
    const isShort = Number(chosen.dataset.cost) > balance;
    one("[data-note=short]", bar).hidden = !isShort;
    one("[data-note=calm]", bar).hidden = isShort;
    one(".get-credits", bar).hidden = !isShort;
    const text = gettext("Not enough credits: this video costs %(price)s, you have %(balance)s.");
    if (isShort) setText(one("[data-note=short] span", bar), format(text, { price: chosen.dataset.price, balance }));
    const cheaper = one("[data-choose]", bar);
    if (cheaper) cheaper.hidden = cheaper.dataset.choose === chosen.value;
    return isShort;
  }

  function choose(preset) {
    const chip = one(`#composer input[name=preset][value="${CSS.escape(preset)}"]`);
    chip.checked = true;
    chip.focus();
    chip.dispatchEvent(new Event("input", { bubbles: true }));
  }

  function begin(text) {
    const prompt = one("#prompt");
    prompt.value = text;
    prompt.focus();
    prompt.dispatchEvent(new Event("input", { bubbles: true }));
  }

  document.addEventListener("input", (event) => {
    if (event.target.closest("#composer")) syncComposer();
  });
  document.addEventListener("keydown", (event) => {
    const composer = event.target.closest?.("#composer");
    if (!composer || event.key !== "Enter" || !(event.metaKey || event.ctrlKey)) return;
    event.preventDefault();
    const button = one(".generate", composer);
    if (!button.disabled) composer.requestSubmit(button);
    else if (button.hidden) one(".get-credits", composer).focus();
  });
  document.addEventListener("click", (event) => {
    const choice = event.target.closest?.("[data-choose]");
    if (choice) choose(choice.dataset.choose);
    const sample = event.target.closest?.("[data-sample]");
    if (!sample || !one("#composer") || event.metaKey || event.ctrlKey || event.shiftKey) return;
    event.preventDefault();
    begin(sample.dataset.sample);
  });

  // A button that is replaced while it is pressed gets no click: the new one comes after the press.
  document.addEventListener("htmx:beforeSwap", ({ detail }) => {
    if (detail.target.id !== "submit-bar" || !one("#submit-bar :active")) return;
    detail.shouldSwap = false;
    document.addEventListener("pointerup", () => setTimeout(() => htmx.trigger(document.body, "wallet")), { once: true });
  });
  document.addEventListener("htmx:load", ({ detail: { elt } }) => {
    if (elt.matches?.("#composer, #submit-bar") || one("#submit-bar", elt)) readCooldown();
  });
  document.addEventListener("DOMContentLoaded", readCooldown);
  // No event says that a GPU has come back.
  setInterval(() => {
    if (!document.hidden && one("#submit-bar[data-no-gpu]")) htmx.trigger(document.body, "wallet");
  }, ASK_FOR_GPU_MS);
  // Out of the back-forward cache everything is as it was left, the cooldown included.
  window.addEventListener("pageshow", (event) => {
    if (event.persisted) syncComposer();
  });
})();
