// GPUs as they are now: the words come ready from the box, and are put where they stood.
import { listen } from "./stream.js";
import { NONE, element, span, text } from "./words.js";
import { now } from "./app.js";
import { spark } from "./charts.js";
import { keeping } from "./focus.js";

const SPARK_SECONDS = 600;
const sparks = new Map();

function draw(frame) {
  const silence = document.getElementById("silence");
  if (silence) {
    silence.hidden = !(frame.silent && frame.gpus.length);
    silence.querySelector("[data-part=silent]").textContent = frame.silent || "";
    silence.querySelector("[data-part=hint]").textContent = frame.hint || "";
  }
  const icon = document.querySelector("link[rel=icon]");
  if (icon.getAttribute("href") !== `/static/icon${frame.badge}.svg`) icon.href = `/static/icon${frame.badge}.svg`;
  const watts = frame.gpus.map((gpu) => gpu.raw[1]).filter((each) => each !== null);
  let strange = 0;
  for (const gpu of frame.gpus) {
    const card = document.querySelector(`[data-gpu="${CSS.escape(gpu.uuid)}"]`);
    if (card) drawCard(card, gpu, frame.read_at);
    else strange += 1;
  }
  const place = document.getElementById("watts");
  if (place) set(place, watts.length ? watts.reduce((one, other) => one + other).toFixed(0) : NONE);
  const shown = document.querySelectorAll("#cards [data-gpu]").length;
  if (document.getElementById("cards") && (strange || shown > frame.gpus.length)) {
    document.body.dispatchEvent(new Event("cards")); // one came or left
  }
  document.dispatchEvent(new CustomEvent("frame", { detail: frame }));
  if (performance.now() - told > RENEW_MS && getSelection().isCollapsed) changed(); // energy, peaks and reasons move without a word
}

function drawCard(card, gpu, at) {
  const part = (name) => card.querySelector(`[data-part="${name}"]`);
  for (const name of ["util", "memory", "temperature", "power", "fan", "clock", "capped", "state"]) set(part(name), gpu[name]);
  part("temperature").className = gpu.temperature_tone;
  part("state").className = `badge ${gpu.tone}`;
  part("state").title = gpu.why;
  card.classList.toggle("faint", gpu.state === "Asleep");
  const bar = part("memory-bar");
  bar.setAttribute("class", `meter ${gpu.memory_tone}`);
  bar.querySelector(".fill").setAttribute("width", `${gpu.memory_share * 100}%`);
  bar.setAttribute("aria-valuenow", Math.round(gpu.memory_share * 100));
  bar.setAttribute("aria-valuetext", gpu.memory);
  drawWho(part("who"), gpu);
  drawBadges(part("badges"), gpu.badges);
  sparks.get(gpu.uuid)?.add(at, gpu.raw[0]);
}

function set(place, words) {
  if (place.textContent !== words) place.textContent = words;
}

function drawWho(place, gpu) {
  const told = JSON.stringify([gpu.jobs, gpu.others, gpu.why]);
  if (place.dataset.told === told) return;
  place.dataset.told = told;
  const lines = gpu.jobs.map((job) => {
    const link = element(job.path ? "a" : "span", job.path ? { href: job.path } : {}, element("span", { class: "number" }, `#${job.id}`), " ", text(job.name));
    const rest = element("span", { class: "dim" }, text(job.user));
    if (job.since) rest.append(" · ", element("time", { "data-since": job.since }, span(now() - job.since)));
    return element("p", {}, link, " ", rest);
  });
  if (gpu.others) lines.push(element("p", { class: "dim" }, text(gpu.others)));
  else if (!lines.length) lines.push(element("p", { class: "dim" }, text(gpu.why || "nobody uses it")));
  keeping(() => place.replaceChildren(...lines));
}

function drawBadges(place, badges) {
  const told = JSON.stringify(badges);
  if (place.dataset.told === told) return;
  place.dataset.told = told;
  place.replaceChildren(...badges.map((each) => element("span", { class: `badge ${each.tone}`, title: each.title }, each.text)));
}

async function begin() {
  const cards = [...document.querySelectorAll("[data-gpu]")];
  sparks.clear();
  for (const card of cards) sparks.set(card.dataset.gpu, spark(card.querySelector("[data-spark]"), SPARK_SECONDS));
  if (!cards.length) return;
  const reply = await fetch(`/api/v1/history?columns=utilization&last=${SPARK_SECONDS}&points=300`);
  if (!reply.ok) return;
  const told = await reply.json();
  for (const series of told.series) sparks.get(series.subject)?.fill(told.at, series.lines.utilization?.mean || []);
}

// What changed is fetched at once, and then no more than this often: the last word counts.
const PAUSE_MS = 600;
const RENEW_MS = 15000;
let told = 0;
let due = null;

function changed() {
  due ??= setTimeout(() => {
    due = null;
    told = performance.now();
    document.body.dispatchEvent(new Event("changed"));
  }, Math.max(0, told + PAUSE_MS - performance.now()));
}

begin();
document.body.addEventListener("htmx:afterSwap", (event) => { if (event.target.id === "cards") begin(); });
listen({ frame: draw, changed });
