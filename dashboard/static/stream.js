// The tab's one stream. Closed while nobody looks for a minute, opened again with the tab.
const HIDDEN_MS = 60000;
const LATE_MS = 5000;

export function listen(heard) {
  const button = document.getElementById("pause");
  const word = document.getElementById("live-word");
  let source = null;
  let paused = false;
  let last = performance.now();
  let sleep;

  function show(state, words) {
    button.className = `live ${state}`;
    if (word.textContent !== words) word.textContent = words;
  }

  function open() {
    if (source) return;
    source = new EventSource("/live");
    for (const [kind, take] of Object.entries(heard)) {
      source.addEventListener(kind, (event) => {
        last = performance.now();
        if (!paused) take(event.data ? JSON.parse(event.data) : null);
      });
    }
    source.addEventListener("frame", () => {
      if (paused) return;
      show("", "live");
      void button.offsetWidth; // so that the beat begins anew
      button.classList.add("fresh");
    });
  }

  function close() {
    if (source) source.close();
    source = null;
  }

  button.hidden = false;
  button.addEventListener("click", () => {
    paused = !paused;
    button.setAttribute("aria-pressed", String(paused));
    show(paused ? "paused" : "", paused ? `paused ${new Date().toTimeString().slice(0, 5)}` : "live");
    if (!paused) document.body.dispatchEvent(new Event("changed"));
  });
  document.addEventListener("visibilitychange", () => {
    clearTimeout(sleep);
    if (document.hidden) sleep = setTimeout(close, HIDDEN_MS);
    else if (!source) {
      open();
      document.body.dispatchEvent(new Event("changed"));
    }
  });
  setInterval(() => {
    if (paused || document.hidden) return;
    const quiet = performance.now() - last;
    if (quiet > 3 * LATE_MS) show("gone", `no word for ${Math.round(quiet / 1000)} s`);
    else if (quiet > LATE_MS) show("late", "late");
  }, 1000);
  addEventListener("pagehide", close);
  open();
}
