// Cards: hover to play, and live words that stay true when the event stream is down.
(() => {
  "use strict";
  const { one, all, setText } = window.site;
  const POLL_WITHOUT_EVENTS_MS = 3000;
  const POLL_WITH_EVENTS_MS = 30000; // a proxy may hold events back without closing the stream

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

  const ENDS = {
    completed: gettext("Your video is ready."),
    failed: gettext("Your video failed. No credits were deducted."),
    canceled: gettext("Your video is canceled. No credits were deducted."),
  };
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
    setText(one("#announcer"), ENDS[state]);
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

  document.addEventListener("htmx:load", ({ detail: { elt } }) => {
    if (!elt.matches?.(".card")) return;
    if (elt.dataset.live === undefined) finishedCard(elt);
    one("#empty")?.remove();
    all(`[id="${elt.id}"]`).filter((card) => card !== elt).forEach((card) => card.remove());
  });

  function finishedCard(card) {
    if (one("#live")?.dataset.reload === card.dataset.job) location.reload();
  }
})();
