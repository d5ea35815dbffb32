// A job's output as text with colours, and nothing else: whatever it writes, it is put on the page as characters.
const ESCAPES = /\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[PX^_][^\x1b]*(?:\x1b\\)?|[@-_a-z0-9=>]|[ -/]+[0-~])?/g;
const CONTROLS = /[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;
const PIECE = /\x1b\[([0-9;:]*)m/g;
const LINE_MAX = 20000; // characters

export class Painter {
  constructor() { this.classes = new Set(); }

  // A line as spans; the colours that are on go on into the next line.
  line(raw) {
    if (raw.length > LINE_MAX) raw = `${raw.slice(0, LINE_MAX)} … ${raw.length - LINE_MAX} more characters`;
    const folded = fold(raw);
    const made = document.createElement("p");
    let from = 0;
    for (const found of folded.matchAll(PIECE)) {
      this.put(made, folded.slice(from, found.index));
      this.turn(found[1]);
      from = found.index + found[0].length;
    }
    this.put(made, folded.slice(from));
    return made;
  }

  put(place, raw) {
    const words = raw.replace(ESCAPES, "").replace(CONTROLS, "");
    if (!words) return;
    if (!this.classes.size) return place.append(words);
    const span = document.createElement("span");
    span.className = [...this.classes].join(" ");
    span.textContent = words;
    place.append(span);
  }

  turn(codes) {
    const numbers = codes.split(/[;:]/).map(Number);
    for (let at = 0; at < numbers.length; at += 1) {
      const code = numbers[at];
      if (code === 0) this.classes.clear();
      else if (code === 1) this.classes.add("bold");
      else if (code === 2) this.classes.add("faint-ink");
      else if (code === 3) this.classes.add("italic");
      else if (code === 4) this.classes.add("under");
      else if (code === 22) { this.classes.delete("bold"); this.classes.delete("faint-ink"); }
      else if (code === 23) this.classes.delete("italic");
      else if (code === 24) this.classes.delete("under");
      else if (code === 39) this.colour(null);
      else if (code >= 30 && code <= 37) this.colour(code - 30);
      else if (code >= 90 && code <= 97) this.colour(code - 82);
      else if (code === 38) {
        if (numbers[at + 1] === 5) this.colour(numbers[at + 2] < 16 ? numbers[at + 2] : null);
        at += numbers[at + 1] === 5 ? 2 : 4;
      } else if (code === 48) at += numbers[at + 1] === 5 ? 2 : 4;
    }
  }

  colour(number) {
    for (const each of [...this.classes]) if (/^c\d+$/.test(each)) this.classes.delete(each);
    if (number !== null && number >= 0 && number < 16) this.classes.add(`c${number}`);
  }
}

// What a terminal would still show of a line that was written over: a progress bar's last state.
export function fold(raw) {
  const parts = raw.replace(/\r+$/, "").split("\r");
  return parts.length === 1 ? parts[0] : parts.findLast((part) => part.trim()) ?? "";
}
