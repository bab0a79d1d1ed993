// The composer's live words: counter, price, cooldown; ⌘/Ctrl+Enter; sample prompts.
(() => {
  "use strict";
  const { one, say, setText } = window.site;
  const isApple = /Mac|iPhone|iPad/.test(navigator.platform);
  let cooldownEnds = 0;
  let cooldownTimer;

  function readCooldown() {
    const bar = one("#submit-bar");
    if (!bar?.dataset.cooldown) return;
    cooldownEnds = Date.now() + Number(bar.dataset.cooldown) * 1000;
    clearInterval(cooldownTimer);
    if (cooldownEnds > Date.now()) cooldownTimer = setInterval(syncComposer, 250);
    syncComposer();
  }

  function syncComposer() {
    const composer = one("#composer");
    if (!composer) return;
    syncCounter(composer);
    const left = Math.ceil((cooldownEnds - Date.now()) / 1000);
    if (left <= 0) clearInterval(cooldownTimer);
    syncButton(composer, left);
  }

  // Characters as the server counts them: whole code points, without the space around the prompt.
  function syncCounter(composer) {
    const prompt = one("#prompt", composer);
    const counter = one("#prompt-count", composer);
    const used = [...prompt.value.trim()].length;
    counter.value = `${used}/${prompt.dataset.max}`;
    counter.classList.toggle("over", used > Number(prompt.dataset.max));
  }

  function syncButton(composer, left) {
    const chosen = one("input[name=preset]:checked", composer);
    const bar = one("#submit-bar", composer);
    if (!chosen || !bar) return;
    const balance = Number(bar.dataset.balance);
    const short = Number(chosen.dataset.cost) > balance;
    setText(one(".generate-words", bar), left > 0 ? say(gettext("Generate in %(left)s s"), { left }) : say(gettext("Generate · %(price)s"), { price: chosen.dataset.price }));
    const kbd = one("kbd", bar);
    if (kbd) setText(kbd, left > 0 ? "" : isApple ? "⌘↵" : "Ctrl ↵");
    const button = one(".generate", bar);
    if (!composer.classList.contains("htmx-request")) button.disabled = left > 0 || short;
    const note = one("#submit-note", bar);
    note.classList.toggle("warning", short);
    const words = gettext("Not enough credits: this video costs %(price)s, you have %(balance)s.");
    setText(note, short ? say(words, { price: chosen.dataset.price, balance }) : "");
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
  });
  document.addEventListener("click", (event) => {
    const sample = event.target.closest?.("[data-sample]");
    const prompt = one("#prompt");
    if (!sample || !prompt || event.metaKey || event.ctrlKey || event.shiftKey) return;
    event.preventDefault();
    prompt.value = sample.dataset.sample;
    prompt.focus();
    syncComposer();
  });

  document.addEventListener("htmx:load", ({ detail: { elt } }) => {
    if (elt.matches?.("#composer, #submit-bar") || one("#submit-bar", elt)) readCooldown();
  });
  document.addEventListener("DOMContentLoaded", readCooldown);
})();
