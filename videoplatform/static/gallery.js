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
