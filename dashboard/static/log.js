// The log of a job: opened at its end, followed as it grows, read backwards on demand. What is kept is bounded.
import { Painter } from "./ansi.js";
import { element, size } from "./words.js";

const FIRST = 256 << 10; // bytes read when it is opened, and of each piece further back
const LINES = 5000; // kept while following; reading back keeps twice as many
const NEAR = 40; // pixels from the end that count as the end

export class Log {
  constructor(place, job, attempt) {
    this.place = place;
    this.attempt = attempt;
    this.source = `/api/v1/logs/${job}?attempt=${attempt}&`;
    this.painter = new Painter();
    this.decoder = new TextDecoder();
    this.rest = ""; // the line that has no end yet
    this.unfinished = null; // where it is shown
    this.begin = 0; // offset of the first byte that is shown
    this.following = true;
    this.unseen = 0;
    this.wanted = "";
    this.end = document.getElementById("log-end");
    this.end.addEventListener("click", () => this.toEnd());
    place.addEventListener("scroll", () => this.scrolled());
  }

  async open() {
    const reply = await fetch(`${this.source}offset=-${FIRST}&limit=${FIRST}`);
    if (!reply.ok) return 0;
    const bytes = new Uint8Array(await reply.arrayBuffer());
    const at = Number(reply.headers.get("x-gpubox-offset"));
    const from = Math.max(at > 0 ? bytes.indexOf(10) + 1 : 0, lastLines(bytes, LINES - 2)); // whole lines
    this.begin = at + from;
    if (this.begin > 0) this.offerOlder();
    this.add(bytes.subarray(from));
    return at + bytes.length;
  }

  // Nobody reads what was printed for hours while the tab was hidden: then it is opened anew, at its end.
  async back(attempt, offset) {
    const reply = await fetch(`${this.source}limit=0`).catch(() => null);
    const missed = reply?.ok && attempt === this.attempt ? Number(reply.headers.get("x-gpubox-size")) - offset : 0;
    if (missed < 4 * FIRST) return offset;
    this.place.replaceChildren();
    this.painter = new Painter();
    this.decoder = new TextDecoder();
    this.unfinished = null;
    this.rest = "";
    return (await this.open()) || offset;
  }

  add(bytes) {
    const lines = (this.rest + this.decoder.decode(bytes, { stream: true })).split("\n");
    this.rest = lines.pop().slice(-65536);
    const made = document.createDocumentFragment();
    if (!this.near()) this.following = false; // somebody scrolled, and the event has not come yet
    this.unfinished?.remove();
    for (const line of lines.slice(-LINES)) made.append(this.shown(this.painter.line(line)));
    this.unfinished = null;
    if (this.rest) {
      const classes = new Set(this.painter.classes);
      this.unfinished = this.shown(this.painter.line(this.rest));
      this.painter.classes = classes;
      made.append(this.unfinished);
    }
    this.place.append(made);
    if (this.following) {
      this.trim();
      this.place.scrollTop = this.place.scrollHeight;
    } else {
      this.unseen += lines.length;
      this.end.hidden = false;
      this.end.textContent = `Jump to the end (${this.unseen} new)`;
      if (this.place.childElementCount > 4 * LINES) this.trim(4 * LINES);
    }
  }

  shown(line) {
    if (this.wanted && !line.textContent.toLowerCase().includes(this.wanted)) line.classList.add("filtered");
    return line;
  }

  trim(most = LINES) {
    let extra = this.place.childElementCount - most;
    if (extra <= 0) return;
    while (extra-- > 0) this.place.firstElementChild.remove();
    this.begin = null; // from where, nobody has counted
    this.offerRaw();
  }

  offerOlder() {
    const button = element("button", { type: "button", class: "quiet" }, `Show what is above (${size(this.begin)})`);
    const line = element("p", { class: "gap" }, button);
    button.addEventListener("click", () => this.older(line));
    this.place.prepend(line);
  }

  offerRaw() {
    if (!this.place.firstElementChild?.classList.contains("gap")) {
      this.place.prepend(element("p", { class: "gap" }, "Above are more lines: Raw has them all."));
    }
  }

  async older(line) {
    const from = Math.max(0, this.begin - FIRST);
    const reply = await fetch(`${this.source}offset=${from}&limit=${this.begin - from}`);
    if (!reply.ok) return;
    const bytes = new Uint8Array(await reply.arrayBuffer());
    const at = Number(reply.headers.get("x-gpubox-offset"));
    const skip = from > 0 && at === from ? bytes.indexOf(10) + 1 : 0;
    const painter = new Painter();
    const lines = new TextDecoder().decode(bytes.subarray(skip)).split("\n");
    if (lines.at(-1) === "") lines.pop();
    const height = this.place.scrollHeight;
    line.remove();
    const made = lines.map((each) => this.shown(painter.line(each)));
    if (at > from) made.unshift(gap(at - from));
    this.place.prepend(...made);
    this.begin = from + (at > from ? 0 : skip);
    if (this.begin > 0) this.offerOlder();
    this.following = false;
    this.place.scrollTop += this.place.scrollHeight - height;
  }

  skipped(bytes) {
    this.rest = "";
    this.place.append(gap(bytes));
  }

  filter(words) {
    this.wanted = words.toLowerCase();
    for (const line of this.place.children) {
      line.classList.toggle("filtered", Boolean(this.wanted) && !line.textContent.toLowerCase().includes(this.wanted));
    }
    if (this.following) this.place.scrollTop = this.place.scrollHeight;
  }

  scrolled() {
    this.following = this.near();
    if (this.following) this.caughtUp();
  }

  near() {
    return this.place.scrollHeight - this.place.scrollTop - this.place.clientHeight < NEAR;
  }

  wrap() {
    const on = this.place.classList.toggle("wrap");
    if (this.following) this.place.scrollTop = this.place.scrollHeight;
    return on;
  }

  caughtUp() {
    this.unseen = 0;
    this.end.hidden = true;
  }

  toEnd() {
    this.following = true;
    this.caughtUp();
    this.trim();
    this.place.scrollTop = this.place.scrollHeight;
    this.place.focus({ preventScroll: true });
  }
}

// Where the last so many lines begin.
function lastLines(bytes, count) {
  let at = bytes.length - 1;
  while (count-- > 0 && at > 0) at = bytes.lastIndexOf(10, at - 1);
  return at < 0 ? 0 : at + 1;
}

function gap(bytes) {
  return element("p", { class: "gap" }, `${size(bytes)} in the middle were dropped: the log was longer than the box keeps`);
}

// Frames of `follow`: a line of JSON that says how many bytes come after it, then those.
export async function follow(job, attempt, offset, heard, signal) {
  const reply = await fetch(`/api/v1/logs/${job}/follow?attempt=${attempt}&offset=${offset}`, { signal });
  if (!reply.ok) throw new Error(String(reply.status));
  const reader = reply.body.getReader();
  let held = new Uint8Array();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return false;
    const joined = new Uint8Array(held.length + value.length);
    joined.set(held);
    joined.set(value, held.length);
    held = joined;
    for (;;) {
      const newline = held.indexOf(10);
      if (newline < 0) break;
      const frame = JSON.parse(new TextDecoder().decode(held.subarray(0, newline)));
      if (held.length < newline + 1 + frame.bytes) break;
      heard(frame, held.subarray(newline + 1, newline + 1 + frame.bytes));
      held = held.slice(newline + 1 + frame.bytes);
      if (frame.kind === "end") return true;
    }
  }
}
