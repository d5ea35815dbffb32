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

// What is read only while somebody looks: every other frame, and not in a tab that is hidden.
let traffic = 0;
document.addEventListener("frame", async () => {
  if (document.hidden || now() - traffic < 1.9) return;
  traffic = now();
  const reply = await fetch(`/api/v1/gpus/${document.getElementById("gpus").dataset.uuid}/traffic`).catch(() => null);
  if (!reply?.ok) return;
  const said = await reply.json();
  for (const place of document.querySelectorAll("[data-traffic]")) {
    const value = said[place.dataset.traffic];
    const share = place.dataset.traffic.endsWith("coder");
    place.textContent = value === null ? "–" : share ? `${Math.round(value * 100)} %` : `${(value / 1e6).toFixed(0)} MB/s`;
    place.title = said.absent[place.dataset.traffic] || "";
  }
});
