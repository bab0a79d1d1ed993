// The gallery: hover or tap to play, filters that stay in the address, and a dialog before something is deleted.
(() => {
  "use strict";
  const { one, all } = window.site;
  const HOVER_MS = 120; // a pointer on its way to somewhere else starts nothing

  // --- Hover or tap to play -----------------------------------------------------------------------------------------
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  const touch = matchMedia("(hover: none)");

  function play(media) {
    const video = Object.assign(document.createElement("video"), { muted: true, loop: true, playsInline: true });
    video.src = media.dataset.play;
    video.addEventListener("playing", () => media.classList.add("playing"));
    media.append(video);
    video.play().catch(() => stop(media)); // removed before it began, or no video any more
  }

  function stop(media) {
    one("video", media)?.remove();
    media.classList.remove("playing");
  }

  document.addEventListener("pointerover", (event) => {
    const media = event.target.closest?.("[data-play]");
    if (!media || event.pointerType === "touch" || calm.matches || touch.matches || one("video", media)) return;
    const timer = setTimeout(() => play(media), HOVER_MS);
    media.addEventListener(
      "pointerleave",
      () => {
        clearTimeout(timer);
        stop(media);
      },
      { once: true },
    );
  });
  // The first tap plays, the second one opens.
  document.addEventListener("click", (event) => {
    const media = event.target.closest?.("[data-play]");
    if (!media || !touch.matches || calm.matches || one("video", media)) return;
    event.preventDefault();
    all("[data-play]").forEach(stop);
    play(media);
  });

  // --- Filters ------------------------------------------------------------------------------------------------------
  document.addEventListener("htmx:afterRequest", ({ detail }) => {
    if (detail.elt.id !== "filters" || !detail.successful) return;
    const wanted = [...new FormData(detail.elt)].filter(([, value]) => value);
    const query = new URLSearchParams(wanted).toString();
    history.replaceState(null, "", query ? `?${query}` : location.pathname);
  });

  // --- The place in the gallery, on the way back from a clip ---------------------------------------------------------
  // Pages of signed-in people are kept in no cache, so the browser itself cannot bring a scrolled gallery back.
  const PLACE_SETTLES_MS = 200;
  const MOST_PAGES = 50;

  let isRestoring = false;
  function savePlace() {
    if (isRestoring) return;
    const cards = all("#gallery .card");
    const seen = cards.find((card) => card.getBoundingClientRect().bottom > 0);
    const place = seen && scrollY > 0 ? { count: cards.length, card: seen.id, top: seen.getBoundingClientRect().top, y: scrollY } : null;
    history.replaceState({ ...history.state, place }, "");
  }

  // Waits until the pages that were open are there again.
  async function loadCards(count) {
    for (let page = 0; page < MOST_PAGES; page += 1) {
      const older = one("#gallery .older");
      if (!older || all("#gallery .card").length >= count) return;
      const arrived = new Promise((resolve) => document.addEventListener("htmx:afterSettle", resolve, { once: true }));
      const failed = new Promise((resolve) => older.addEventListener("htmx:afterRequest", ({ detail }) => detail.successful || resolve("failed")));
      htmx.trigger(older, "restore");
      if ((await Promise.race([arrived, failed])) === "failed") return;
    }
  }

  async function restorePlace({ count, card, top, y }) {
    isRestoring = true;
    history.scrollRestoration = "manual";
    await loadCards(count);
    const seen = document.getElementById(card);
    scrollTo({ top: seen ? scrollY + seen.getBoundingClientRect().top - top : y, behavior: "instant" });
    history.scrollRestoration = "auto";
    isRestoring = false;
  }

  let settling;
  if (one("#gallery")) {
    document.addEventListener("scroll", () => {
      clearTimeout(settling);
      settling = setTimeout(savePlace, PLACE_SETTLES_MS);
    });
    document.addEventListener("click", (event) => event.target.closest?.("#gallery a") && savePlace(), { capture: true });
    document.addEventListener("DOMContentLoaded", () => history.state?.place && restorePlace(history.state.place));
  }
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a[data-back]");
    const cameFrom = document.referrer && new URL(document.referrer);
    if (!link || !cameFrom || cameFrom.origin !== location.origin || cameFrom.pathname !== new URL(link.href).pathname) return;
    if (event.metaKey || event.ctrlKey || event.shiftKey || history.length < 2) return;
    event.preventDefault();
    history.back();
  });

  // --- Deleting -----------------------------------------------------------------------------------------------------
  async function ask(address) {
    const answer = await fetch(address, { headers: { "HX-Request": "true" } });
    if (!answer.ok || answer.headers.has("HX-Redirect")) return location.assign(address);
    const dialog = one("#dialog");
    dialog.innerHTML = await answer.text();
    htmx.process(dialog);
    dialog.showModal();
  }

  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a[data-dialog]");
    const dialog = one("#dialog");
    if (link && dialog && !event.metaKey && !event.ctrlKey && !event.shiftKey) {
      event.preventDefault();
      ask(link.href).catch(() => location.assign(link.href)); // without the dialog there is the page
    } else if (event.target === dialog || event.target.closest?.("[data-close]")) {
      if (!dialog?.open) return;
      event.preventDefault();
      dialog.close();
    }
  });
  document.addEventListener("deleted", (event) => {
    one("#dialog").close();
    const card = one(`#card-${CSS.escape(event.detail.job)}`);
    const next = card?.nextElementSibling ?? card?.previousElementSibling;
    card?.remove();
    one(".card-prompt", next ?? document)?.focus();
  });
})();
