// The code stands behind the #, which no server and no history of a proxy sees; it is gone from the address at once.
const form = document.getElementById("sign-in");
const said = document.getElementById("said");

async function enter(code) {
  said.textContent = "…";
  try {
    const reply = await fetch("/sign-in", { method: "POST", body: code });
    if (reply.ok) return location.replace("/");
    const told = await reply.json().catch(() => null);
    said.textContent = told ? `${told.message}. ${told.hint}` : "That code is none, was used, or is older than a minute. `runner dashboard` makes a new one.";
  } catch {
    said.textContent = "The box does not answer.";
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  enter(form.elements.code.value.trim());
});
const code = decodeURIComponent(location.hash.slice(1));
if (code) {
  history.replaceState(null, "", location.pathname);
  enter(code);
} else form.elements.code.focus();
