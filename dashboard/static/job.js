// A job's page. While it is not over, the tab's one stream is that of its log, which tells its states, too.
import { charts } from "./charts.js";
import { Log, follow } from "./log.js";
import { whileSeen } from "./stream.js";

const place = document.getElementById("job");
const { job, finished } = place.dataset;
let attempt = Number(place.dataset.attempt) || 1;
const log = new Log(document.getElementById("log"), job, attempt);
const section = document.getElementById("charts");
const RENEW_MS = 10000;

document.getElementById("log-filter").addEventListener("input", (event) => log.filter(event.target.value));
document.getElementById("log-wrap").addEventListener("click", (event) => {
  event.currentTarget.setAttribute("aria-pressed", String(log.wrap()));
});

const drawn = section && charts(section);
let shown = []; // since when, until when: what was dragged over

function draw() {
  if (section && !section.hidden) drawn.load(...shown);
}

section?.addEventListener("zoom", (event) => {
  shown = event.detail ? event.detail.map((at) => at.toFixed(0)) : [];
  draw();
});
draw();

function changed() {
  document.body.dispatchEvent(new Event("changed"));
}

let followed = new AbortController();
let look = () => {}; // what goes on when somebody looks

async function run() {
  let offset = await log.open();
  if (finished === "1") {
    if (!log.place.childElementCount) log.place.append(note("It printed nothing, or its log is not kept any more."));
    return;
  }
  whileSeen(() => look(), () => followed.abort());
  for (let pause = 500; ; pause = Math.min(pause * 2, 8000)) {
    const away = document.hidden || followed.signal.aborted;
    if (document.hidden) await new Promise((seen) => { look = seen; });
    followed = new AbortController();
    try {
      if (away) {
        changed();
        offset = await log.back(attempt, offset);
      }
      const over = await follow(job, attempt, offset, (frame, bytes) => {
        pause = 500;
        if (frame.kind === "log") {
          log.add(bytes);
          offset += bytes.length;
        } else if (frame.kind === "gap") {
          log.skipped(frame.until - offset);
          offset = frame.until;
        } else if (frame.kind === "state") {
          if (section?.hidden && frame.state === "running") {
            section.hidden = false;
            draw();
          }
          if (frame.attempt > attempt) {
            attempt = frame.attempt;
            offset = 0;
            log.place.append(note(`attempt ${attempt}`));
          }
          changed();
        }
      }, followed.signal);
      if (over) {
        changed();
        return;
      }
    } catch {
      // the box is away, or begins anew, or nobody looks: it is asked again
    }
    await new Promise((resolve) => { setTimeout(resolve, pause); });
  }
}

function note(words) {
  const line = document.createElement("p");
  line.className = "gap";
  line.textContent = words;
  return line;
}

// What is named like a picture and is none stays in the list of files.
document.addEventListener("error", (event) => event.target.closest?.(".pictures figure")?.remove(), true);

if (finished === "0") {
  setInterval(() => {
    if (document.hidden) return;
    changed();
    if (!shown.length && !section?.querySelector("details[open], .plot:hover")) draw();
  }, RENEW_MS);
}
run();
