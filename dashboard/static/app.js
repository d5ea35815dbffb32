// Of every page: times that go on, keys, and what asks before it does something.
import "./focus.js";
import { span } from "./words.js";

const skew = Date.now() / 1000 - Number(document.body.dataset.now); // the box's clock is what counts
export const now = () => Date.now() / 1000 - skew;

function tick() {
  const at = now();
  for (const each of document.querySelectorAll("time[data-since]")) {
    if (each.dataset.since !== "None") put(each, span(at - Number(each.dataset.since)));
  }
  for (const each of document.querySelectorAll("time[data-ago]")) put(each, `${span(at - Number(each.dataset.ago))} ago`);
  for (const each of document.querySelectorAll("time[data-until]")) {
    const left = Number(each.dataset.until) - at;
    put(each, left > 0 ? (each.closest(".n") ? span(left) : `in ${span(left)}`) : "any moment");
  }
}

function put(place, words) {
  if (place.textContent !== words) place.textContent = words;
}

setInterval(tick, 1000);

// --- what is said --------------------------------------------------------------------------------------------------

let hush;
export function say(words) {
  const place = document.getElementById("said");
  place.textContent = words;
  clearTimeout(hush);
  hush = setTimeout(() => { place.textContent = ""; }, 6000);
}

// --- what changes something ----------------------------------------------------------------------------------------

const WISHES = { // what is asked for -> the calls of the API that it is
  cancel: (ids) => [["/jobs/cancel", { ids }]],
  kill: (ids) => [["/jobs/cancel", { ids, grace: 0 }]],
  hold: (ids) => [["/jobs/hold", { ids }]],
  release: (ids) => [["/jobs/release", { ids }]],
  top: moved,
  up: moved,
  down: moved,
  rerun: (ids) => ids.map((id) => [`/jobs/${id}/rerun`, {}]),
  seen: (ids) => [["/notices/seen", { up_to: ids[0] }]],
  undo: (ids) => [[`/settings/${ids[0]}`, null, "DELETE"]],
  unshare: (ids) => [[`/shares/${ids[0]}`, null, "DELETE"]],
  revoke: (ids) => [[`/tokens/${ids[0]}`, null, "DELETE"]],
};

function moved(ids, extra) {
  return [["/jobs/priority", { ids, priority: Number(extra) }]];
}

function sure(button) {
  const dialog = document.getElementById("ask");
  document.getElementById("ask-title").textContent = button.textContent;
  document.getElementById("ask-text").textContent = button.dataset.ask;
  document.getElementById("ask-yes").textContent = button.dataset.yes;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

async function act(button) {
  if (button.dataset.ask && !(await sure(button))) return;
  const verb = button.dataset.act;
  const ids = button.dataset.ids.split(" ").map((id) => (/^\d+$/.test(id) ? Number(id) : id));
  let made = null;
  button.disabled = true;
  try {
    for (const call of WISHES[verb](ids, button.dataset.extra)) made = await ask(...call);
    if (verb === "rerun" && ids.length === 1) return location.assign(`/jobs/${made.id}`);
    if (ids.length > 1) say(`Done, for ${ids.length} jobs.`);
    button.dispatchEvent(new Event("done", { bubbles: true }));
  } catch (problem) {
    say(problem.message);
  } finally {
    button.disabled = false;
    document.body.dispatchEvent(new Event("changed"));
  }
}

// A call of the API. Throws what a person should read.
export async function ask(path, body, method = "POST") {
  const reply = await fetch(`/api/v1${path}`, {
    method,
    headers: { "Content-Type": "application/json", "Idempotency-Key": key() },
    body: body ? JSON.stringify(body) : undefined,
  }).catch(() => { throw new Error("The box does not answer."); });
  const said = await reply.json();
  if (!reply.ok) throw new Error(said.hint ? `${said.message} (${said.hint})` : said.message);
  return said;
}

function key() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.act) act(button);
  if (button.dataset.copy) {
    await navigator.clipboard.writeText(button.dataset.copy);
    say("Copied.");
  }
});

// --- keys ------------------------------------------------------------------------------------------------------------

const PLACES = { o: "/", j: "/jobs", q: "/queue", e: "/events", s: "/settings" };
const box = document.getElementById("keys-on");
box.checked = localStorage.getItem("keys") !== "off";
box.addEventListener("change", () => localStorage.setItem("keys", box.checked ? "on" : "off"));
document.getElementById("keys").addEventListener("click", () => document.getElementById("help").showModal());

const QUEUE = { t: "[data-act=top]", u: "[data-act=up]", d: "[data-act=down]", h: "[data-act=hold], [data-act=release]" };

let going = 0;
document.addEventListener("keydown", (event) => {
  // A dialog that was closed holds the focus until the next frame, and a key may come before that.
  const writing = !event.target.closest("dialog:not([open])") && event.target.closest("input:not([data-can]), select, textarea, dialog");
  if (writing || !box.checked || event.ctrlKey || event.metaKey || event.altKey) return;
  if (going && Date.now() - going < 1500 && PLACES[event.key]) return location.assign(PLACES[event.key]);
  going = event.key === "g" ? Date.now() : 0;
  if (event.key === "?") document.getElementById("help").showModal();
  else if (event.key === "/") focus(event, document.querySelector("#filter, #log-filter"));
  else if (event.key === "p") document.getElementById("pause").click();
  else if (event.key === "x") pressed("[data-can]");
  else if (event.key === "l") focus(event, document.getElementById("log"));
  else if (event.key === "[" || event.key === "]") range(event.key === "]" ? 1 : -1);
  else if (QUEUE[event.key]) pressed(QUEUE[event.key]);
  else if (event.key === "j" || event.key === "k") focus(event, neighbour(event.key === "j" ? 1 : -1));
  else if (/^[1-8]$/.test(event.key)) location.assign(`/gpus/${Number(event.key) - 1}`);
});

function focus(event, place) {
  if (!place) return;
  event.preventDefault();
  place.focus();
}

function pressed(what) {
  document.activeElement.closest("tr")?.querySelector(what)?.click();
}

function range(step) {
  const all = [...document.querySelectorAll("[data-range]")];
  all[all.findIndex((each) => each.getAttribute("aria-pressed") === "true") + step]?.click();
}

function neighbour(step) {
  const links = [...document.querySelectorAll(".rows tbody td.lead > a")];
  const row = document.activeElement.closest("tr");
  const at = links.findIndex((link) => link.closest("tr") === row);
  return links[at < 0 ? (step > 0 ? 0 : links.length - 1) : Math.min(Math.max(at + step, 0), links.length - 1)];
}

// --- light and dark ---------------------------------------------------------------------------------------------------

const THEMES = { "": ["◐", "as the computer"], light: ["○", "light"], dark: ["●", "dark"] };
const theme = localStorage.getItem("theme") || "";
const turn = document.getElementById("theme");
turn.textContent = THEMES[theme][0];
turn.title = `Colours: ${THEMES[theme][1]}. Press for the next`;
turn.setAttribute("aria-label", turn.title);
turn.hidden = false;
turn.addEventListener("click", () => {
  localStorage.setItem("theme", { "": "light", light: "dark", dark: "" }[theme]);
  location.reload(); // charts are drawn in the colours of when they were made
});

// --- parts that are fetched anew -----------------------------------------------------------------------------------

// A part is never swapped under an open dialog or a finger; what came meanwhile is fetched afterwards.
let late = false;
document.body.addEventListener("htmx:beforeRequest", (event) => {
  if (event.detail.requestConfig.verb === "get" && document.querySelector("dialog[open]")) {
    event.preventDefault();
    late = true;
  }
});
for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("close", () => {
    if (late) document.body.dispatchEvent(new Event("changed"));
    late = false;
  });
}
document.body.addEventListener("htmx:afterSettle", () => {
  tick();
  const titled = document.querySelector("[data-title]");
  if (titled) document.title = `${titled.dataset.title} · gpubox`;
});
document.body.addEventListener("htmx:responseError", (event) => {
  if (event.detail.xhr.status === 401) location.assign("/sign-in");
});
