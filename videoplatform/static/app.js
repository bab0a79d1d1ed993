// What htmx does not do by itself: the composer's live words, hover to play, and cards that stay true when the event stream is down.
(() => {
  "use strict";
  const one = (selector, root = document) => root.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const POLL_WITHOUT_EVENTS_MS = 3000;
  const POLL_WITH_EVENTS_MS = 30000; // a proxy may hold events back without closing the stream
  const isApple = /Mac|iPhone|iPad/.test(navigator.platform);

  // --- Composer: counter, price, cooldown ---------------------------------------------------------------------------
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
    setText(one(".generate-words", bar), left > 0 ? `Generate in ${left} s` : `Generate · ${chosen.dataset.price}`);
    const kbd = one("kbd", bar);
    if (kbd) setText(kbd, left > 0 ? "" : isApple ? "⌘↵" : "Ctrl ↵");
    const button = one(".generate", bar);
    if (!composer.classList.contains("htmx-request")) button.disabled = left > 0 || short;
    const note = one("#submit-note", bar);
    note.classList.toggle("warning", short);
    setText(note, short ? `Not enough credits: this video costs ${chosen.dataset.price}, you have ${balance}.` : "");
  }

  function setText(element, text) {
    if (element.textContent !== text) element.textContent = text;
  }

  document.addEventListener("input", (event) => {
    if (event.target.closest("#composer")) syncComposer();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") closeMenus();
    const composer = event.target.closest?.("#composer");
    if (!composer || event.key !== "Enter" || !(event.metaKey || event.ctrlKey)) return;
    event.preventDefault();
    const button = one(".generate", composer);
    if (!button.disabled) composer.requestSubmit(button);
  });
  document.addEventListener("click", (event) => {
    const sample = event.target.closest?.("[data-sample]");
    const prompt = one("#prompt");
    if (sample && prompt && !event.metaKey && !event.ctrlKey && !event.shiftKey) {
      event.preventDefault();
      prompt.value = sample.dataset.sample;
      prompt.focus();
      syncComposer();
    }
    closeMenus(event.target);
  });

  function closeMenus(except) {
    all("details.menu[open]").forEach((menu) => {
      if (!except || !menu.contains(except)) menu.open = false;
    });
  }

  // --- Hover to play ------------------------------------------------------------------------------------------------
  const calm = matchMedia("(prefers-reduced-motion: reduce), (hover: none)");
  document.addEventListener("pointerover", (event) => {
    const media = event.target.closest?.("[data-hover-video]");
    if (!media || calm.matches || one("video", media)) return;
    const video = Object.assign(document.createElement("video"), { muted: true, loop: true, playsInline: true });
    video.src = media.dataset.hoverVideo;
    media.append(video);
    video.play().catch(() => video.remove());
    media.addEventListener("pointerleave", () => video.remove(), { once: true });
  });

  // --- Live cards ---------------------------------------------------------------------------------------------------
  const LIVE = ["queued", "running", "storing"];
  let eventsUp = false;
  let everUp = false;
  let lastRefresh = Date.now();

  function refreshCards() {
    lastRefresh = Date.now();
    all("[data-live]").forEach((card) => htmx.trigger(card, "refresh"));
  }

  document.addEventListener("htmx:sseOpen", () => {
    // What happened while the stream was down was not heard.
    if (everUp && !eventsUp) refreshCards();
    eventsUp = everUp = true;
  });
  document.addEventListener("htmx:sseError", () => (eventsUp = false));
  document.addEventListener("htmx:sseClose", () => (eventsUp = false));
  setInterval(() => {
    if (document.hidden) return;
    if (Date.now() - lastRefresh >= (eventsUp ? POLL_WITH_EVENTS_MS : POLL_WITHOUT_EVENTS_MS)) refreshCards();
  }, 1000);
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && one("[data-live]")) refreshCards();
  });

  document.addEventListener("htmx:sseBeforeMessage", (event) => {
    if (event.target.id === "job-events") {
      event.preventDefault();
      jobChanged(JSON.parse(event.detail.data));
    } else if (one(".htmx-request", event.target)) {
      event.preventDefault(); // its own request, a cancel, is about to bring the card
      setTimeout(refreshCards, 1500);
    } else if (movedOnly(event.target, event.detail.data)) {
      event.preventDefault();
    }
  });

  // The same state as before: only words and bar change, so that a click or the focus on “Cancel” is not lost under the hand.
  function movedOnly(card, html) {
    const template = document.createElement("template");
    template.innerHTML = html;
    const next = one(".card", template.content);
    if (!next || next.dataset.state !== card.dataset.state) return false;
    for (const part of all("[data-part]", card)) {
      const fresh = one(`[data-part=${part.dataset.part}]`, next);
      if (!part.matches("progress")) setText(part, fresh.textContent);
      else if (fresh.hasAttribute("value")) part.value = fresh.value;
    }
    return true;
  }

  const announced = new Map();
  function jobChanged(job) {
    const known = one(`#card-${CSS.escape(job.id)}`);
    const live = LIVE.includes(job.state);
    if (!known && live) adopt(job.id);
    if (live || announced.get(job.id) === job.state) return;
    announced.set(job.id, job.state);
    ended(job.id, job.state);
  }

  function ended(id, state) {
    // Only what was seen alive is news: a stream begins by saying how everything stands.
    if (!one(`#card-${CSS.escape(id)}[data-live]`)) return;
    setText(one("#announcer"), state === "completed" ? "Your video is ready." : `Your video is ${state}. No credits were deducted.`);
    htmx.trigger(document.body, "wallet");
  }

  // A clip that was ordered elsewhere, in Telegram or over the API, comes to the top of an open gallery.
  const adopting = new Set();
  function adopt(id) {
    const live = one("#live[data-first-page]");
    if (!live || adopting.has(id)) return;
    adopting.add(id);
    const url = live.dataset.cardUrl.replace("ID", `video_${id}`);
    setTimeout(() => {
      if (one(`#card-${CSS.escape(id)}`)) return; // it was this page's own, and its answer came meanwhile
      htmx.ajax("GET", url, { target: "#gallery", swap: "afterbegin" });
      htmx.trigger(document.body, "wallet");
    }, 1000);
  }

  // --- Everything that is put into the page -------------------------------------------------------------------------
  const moment = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
  function localTimes(root) {
    all("time[datetime]", root).forEach((time) => {
      const words = moment.format(new Date(time.dateTime));
      if (/\d\d:\d\d/.test(time.textContent)) setText(time, words);
      time.title = words;
    });
  }

  function arrived(root) {
    localTimes(root);
    if (root.matches?.("#composer, #submit-bar") || one("#submit-bar", root)) readCooldown();
    if (root.matches?.(".card")) {
      if (root.dataset.live === undefined) finishedCard(root);
      one("#empty")?.remove();
      all(`[id="${root.id}"]`).filter((card) => card !== root).forEach((card) => card.remove());
    }
  }

  function finishedCard(card) {
    if (one("#live")?.dataset.reload === card.dataset.job) location.reload();
  }

  document.addEventListener("htmx:load", (event) => arrived(event.detail.elt));
  document.addEventListener("DOMContentLoaded", () => arrived(document.body));

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
