// Live cards: updates from the event stream, and a fresh look after it was down, the page slept or the browser came back.
(() => {
  "use strict";
  const { one, all, setText, notify } = window.site;
  const LOOK_OFTEN_MS = 3000; // something moves, and the stream is down
  const LOOK_SELDOM_MS = 30000; // a proxy may hold events back without closing the stream
  const SLEPT_MS = 10000; // a clock that ticks each second and jumped so far was stopped
  const LIVE = ["queued", "running", "storing"];
  const ENDS = {
    completed: gettext("Your video is ready."),
    failed: gettext("Your video failed. No credits were deducted."),
    canceled: gettext("Your video is canceled. No credits were deducted."),
  };

  // --- The event stream ---------------------------------------------------------------------------------------------
  let stream;
  let eventsUp = false;
  let everUp = false;

  // htmx's extension opens it; the handle is for a stream that died without saying so.
  htmx.createEventSource = (url) => (stream = new EventSource(url, { withCredentials: true }));

  function openStreamAnew() {
    if (!stream) return;
    stream.close();
    stream.dispatchEvent(new Event("error")); // the extension opens a new one for one that is closed
  }

  document.addEventListener("htmx:sseOpen", () => {
    // What happened while the stream was down was not heard.
    if (everUp && !eventsUp) catchUp();
    eventsUp = everUp = true;
  });
  document.addEventListener("htmx:sseError", () => (eventsUp = false));
  document.addEventListener("htmx:sseClose", () => (eventsUp = false));

  // One element hears for all cards: htmx listens for an element only some time after it has put it in the page, and a
  // card that changed in that time would stay as it was.
  document.addEventListener("htmx:sseBeforeMessage", (event) => {
    event.preventDefault();
    const card = one(".card", new DOMParser().parseFromString(event.detail.data, "text/html"));
    const known = document.getElementById(card.id);
    if (known) replace(known, card);
    else if (LIVE.includes(card.dataset.state)) adopt(card.dataset.job);
  });

  let endedUnseen = "";
  function ended(state, card) {
    const words = card.dataset.charged || ENDS[state];
    setText(one("#announcer"), words);
    const link = one(".card-prompt", card);
    if (state !== "canceled") notify(ENDS[state], { body: link.textContent, url: link.href });
    if (document.hidden) endedUnseen = words;
    htmx.trigger(document.body, "wallet");
  }

  // A clip that was ordered elsewhere, in Telegram or over the API, comes to the top of an open gallery.
  const adopting = new Set();
  function adopt(id) {
    const live = one("#live[data-recent-url]");
    if (!live || adopting.has(id) || one("#gallery[data-filtered]")) return;
    adopting.add(id);
    const url = live.dataset.cardUrl.replace("ID", `video_${id}`);
    setTimeout(() => {
      if (one(`#card-${CSS.escape(id)}`)) return; // it was this page's own, and its answer came meanwhile
      htmx.ajax("GET", url, { target: "#gallery", swap: "afterbegin" });
      htmx.trigger(document.body, "wallet");
    }, 1000);
  }

  // --- Without the stream: look again -------------------------------------------------------------------------------
  let lastLook = Date.now();
  let lastTick = Date.now();
  let hiddenSince = 0;

  async function catchUp() {
    lastLook = Date.now();
    const url = one("#live")?.dataset.recentUrl;
    const seen = url ? await look(url) : new Set();
    all(".card[data-live]").filter((card) => !seen.has(card.id)).forEach((card) => htmx.trigger(card, "refresh"));
  }

  // The newest cards as they are now, in one request; the ids of those that came.
  async function look(url) {
    try {
      const answer = await fetch(url, { headers: { "HX-Request": "true", "HX-Current-URL": location.href } });
      const elsewhere = answer.headers.get("HX-Redirect");
      if (elsewhere) location.assign(elsewhere);
      return answer.ok && !elsewhere ? merge(await answer.text()) : new Set();
    } catch (error) {
      if (error instanceof TypeError) return new Set(); // no connection: the next look is due in seconds
      throw error;
    }
  }

  function merge(html) {
    const fresh = all(".card", new DOMParser().parseFromString(html, "text/html"));
    const complete = !one("#gallery[data-filtered]");
    let older = null;
    for (const card of fresh.toReversed()) {
      const known = document.getElementById(card.id);
      if (known) replace(known, card);
      else if (complete) insert(card, older);
      older = document.getElementById(card.id) ?? older;
    }
    return new Set(fresh.map((card) => card.id));
  }

  function replace(known, card) {
    // Only what was seen alive is news: a stream begins by saying how everything stands.
    const over = LIVE.includes(known.dataset.state) && !LIVE.includes(card.dataset.state);
    if (one(".htmx-request", known)) setTimeout(catchUp, 1500); // its own request, a cancel, is about to bring the card
    else if (known.dataset.live !== undefined && !movedOnly(known, card)) {
      htmx.swap(known, card.outerHTML, { swapStyle: "outerHTML" });
    }
    if (over) ended(card.dataset.state, card);
  }

  function insert(card, older) {
    if (older) htmx.swap(older, card.outerHTML, { swapStyle: "beforebegin" });
    else htmx.swap(one("#gallery"), card.outerHTML, { swapStyle: "afterbegin" });
  }

  function wakeUp() {
    openStreamAnew();
    catchUp();
    htmx.trigger(document.body, "wallet");
  }

  function pause() {
    const moving = one("[data-live]") !== null;
    if (eventsUp) return moving ? LOOK_SELDOM_MS : Infinity;
    return moving ? LOOK_OFTEN_MS : LOOK_SELDOM_MS;
  }

  setInterval(() => {
    const now = Date.now();
    const slept = now - lastTick > SLEPT_MS;
    lastTick = now;
    if (document.hidden) return;
    if (slept) wakeUp();
    else if (now - lastLook >= pause()) catchUp();
  }, 1000);
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      hiddenSince = Date.now();
      return;
    }
    endedUnseen = "";
    syncTitle();
    if (Date.now() - hiddenSince > SLEPT_MS) wakeUp();
    else catchUp();
    lastTick = Date.now();
  });
  window.addEventListener("pageshow", (event) => event.persisted && wakeUp());
  window.addEventListener("online", wakeUp);
  document.addEventListener("resume", wakeUp);

  // --- Cards in the page --------------------------------------------------------------------------------------------
  // The same state as before: only texts and bar change, so that a click or the focus on “Cancel” is not lost.
  function movedOnly(card, next) {
    if (!next || next.dataset.state !== card.dataset.state || next.dataset.live !== card.dataset.live) return false;
    for (const part of all("[data-part]", card)) {
      const fresh = one(`[data-part=${part.dataset.part}]`, next);
      if (!part.matches("progress")) setText(part, fresh.textContent);
      else if (fresh.hasAttribute("value")) part.value = fresh.value;
    }
    syncTitle();
    return true;
  }

  const title = document.title;
  function syncTitle() {
    const figures = ["running", "storing", "queued"].map((state) => one(`.card.${state} [data-part=figure]`));
    const news = figures.find(Boolean)?.textContent ?? endedUnseen;
    document.title = news ? `${news} · ${title}` : title;
  }

  document.addEventListener("htmx:load", ({ detail: { elt } }) => {
    if (elt.matches?.(".card")) arrived(elt);
    syncTitle();
  });
  document.addEventListener("DOMContentLoaded", syncTitle);

  function arrived(card) {
    if (card.dataset.live === undefined && one("#live")?.dataset.reload === card.dataset.job) location.reload();
    one("#empty")?.remove();
    one("#gallery .nothing")?.remove();
    all(`[id="${card.id}"]`).filter((other) => other !== card).forEach((other) => other.remove());
  }
})();
