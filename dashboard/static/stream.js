// The tab's one stream. Closed while nobody looks, opened again with the tab; what changed meanwhile is said at once.
import { now } from "./app.js";
import { clock, span } from "./words.js";

const LATE = 5; // seconds
const HIDDEN_MS = 60000;

// A browser opens six connections to one box, for all of its tabs together: a tab that nobody looks at leaves them to the
// others, at once when another one is looked at, else after a while.
export function whileSeen(open, close) {
  const tabs = new BroadcastChannel("sight");
  let sleep;
  function turn() {
    clearTimeout(sleep);
    if (document.hidden) sleep = setTimeout(close, HIDDEN_MS);
    else {
      tabs.postMessage("seen");
      open();
    }
  }
  tabs.addEventListener("message", () => { if (document.hidden) close(); });
  document.addEventListener("visibilitychange", turn);
  addEventListener("pagehide", close);
  if (!document.hidden) turn();
}

export function listen(heard) {
  const button = document.getElementById("pause");
  const word = document.getElementById("live-word");
  let source = null;
  let paused = false;
  let last = performance.now();
  let { seq } = document.body.dataset; // of the last change that this page knows of

  function show(state, words) {
    button.className = `live ${state}`;
    if (word.textContent !== words) word.textContent = words;
  }

  function open() {
    if (source) return;
    source = new EventSource(`/live?after=${seq}`);
    source.addEventListener("error", () => { if (source?.readyState === EventSource.CLOSED) refused(); });
    for (const [kind, take] of Object.entries(heard)) {
      source.addEventListener(kind, (event) => {
        last = performance.now();
        seq = event.lastEventId || seq;
        if (!paused) take(event.data ? JSON.parse(event.data) : null);
      });
    }
    source.addEventListener("frame", (event) => {
      if (paused) return;
      const { silent, gpus } = JSON.parse(event.data);
      if (silent && gpus.length) return show("gone", "GPUs are not read");
      show("", "live");
      void button.offsetWidth; // so that the beat begins anew
      button.classList.add("fresh");
    });
  }

  function close() {
    if (source) source.close();
    source = null;
  }

  // The browser does not try again by itself then. Who is not signed in any more is shown the way in.
  async function refused() {
    close();
    const reply = await fetch("/live").catch(() => null);
    reply?.body?.cancel();
    if (reply?.status === 401) location.assign("/sign-in");
    else setTimeout(() => { if (!document.hidden) open(); }, LATE * 1000);
  }

  button.hidden = false;
  button.addEventListener("click", () => {
    paused = !paused;
    button.setAttribute("aria-pressed", String(paused));
    show(paused ? "paused" : "", paused ? `paused ${clock(now()).slice(0, 5)}` : "live");
    if (!paused) document.body.dispatchEvent(new Event("changed"));
  });
  setInterval(() => {
    if (paused || document.hidden) return;
    const quiet = (performance.now() - last) / 1000;
    if (quiet > 3 * LATE) show("gone", `no word for ${span(quiet)}`);
    else if (quiet > LATE) show("late", "late");
  }, 1000);
  whileSeen(open, close);
}
