// The history of one GPU: a range, or what was dragged over; live while its end is now.
import { charts } from "./charts.js";
import { now } from "./app.js";

const section = document.getElementById("charts");
const drawn = charts(section);
const buttons = [...section.querySelectorAll("[data-range]")];
let seconds = 3600;
let zoomed = null;
let loaded = 0;

function load() {
  loaded = now();
  if (zoomed) drawn.load(zoomed[0].toFixed(0), Math.max(zoomed[1], zoomed[0] + 10).toFixed(0));
  else drawn.load((now() - seconds).toFixed(0));
}

for (const button of buttons) {
  button.addEventListener("click", () => {
    for (const each of buttons) each.setAttribute("aria-pressed", String(each === button));
    seconds = Number(button.dataset.range);
    zoomed = null;
    load();
  });
}
section.addEventListener("zoom", (event) => { zoomed = event.detail; load(); });
document.addEventListener("frame", () => {
  const pause = Math.min(Math.max(seconds / 300, 2), 60);
  if (!zoomed && now() - loaded > pause && !section.querySelector("details[open], .plot:hover")) load();
});
load();
