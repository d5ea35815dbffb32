// Settings that may change now, and new tokens, whose text is shown once.
import { ask, say } from "./app.js";

document.addEventListener("submit", async (event) => {
  const form = event.target;
  if (!form.dataset.setting && form.id !== "token-new") return;
  event.preventDefault();
  const button = form.querySelector("button:not([type])");
  button.disabled = true;
  try {
    if (form.dataset.setting) await set(form);
    else await make(form);
    document.body.dispatchEvent(new Event("changed"));
  } catch (problem) {
    say(problem.message);
  } finally {
    button.disabled = false;
  }
});

async function set(form) {
  const { setting, kind, factor } = form.dataset;
  const said = form.elements.value.value.trim();
  let value = said;
  if (kind === "number") {
    value = said === "" ? NaN : Number(said.replace(",", "."));
    if (!(value >= 0)) throw new Error(`${said || "Nothing"} is no number of 0 or more.`);
    if (factor) value = Math.round(value * Number(factor));
  }
  await ask(`/settings/${setting}`, { value }, "PUT");
  say(`${setting} is set.`);
}

async function make(form) {
  const { label, scope, seconds } = form.elements;
  const made = await ask("/tokens", { label: label.value.trim(), scope: scope.value, seconds: Number(seconds.value) || null });
  const place = document.getElementById("token-shown");
  place.hidden = false;
  place.querySelector("code").textContent = made.token;
  place.querySelector("button").dataset.copy = made.token;
  label.value = "";
}
