// Several jobs at once. What is picked outlives a list that is fetched anew; each button says for how many it is.
const picked = new Set();
const bar = document.getElementById("bulk");

function draw() {
  const boxes = [...document.querySelectorAll("[data-can]")];
  const there = new Set(boxes.map((box) => box.value));
  for (const id of picked) if (!there.has(id)) picked.delete(id); // nothing is done to what is not seen
  for (const box of boxes) box.checked = picked.has(box.value);
  const all = document.getElementById("pick-all");
  if (all) {
    all.checked = boxes.length > 0 && picked.size === boxes.length;
    all.indeterminate = picked.size > 0 && !all.checked;
  }
  bar.hidden = !picked.size;
  bar.querySelector("[data-part=count]").textContent = `${picked.size} selected`;
  for (const button of bar.querySelectorAll("[data-act]")) {
    const ids = boxes.filter((box) => box.checked && box.dataset.can.split(" ").includes(button.dataset.act)).map((box) => box.value);
    button.hidden = !ids.length;
    button.dataset.ids = ids.join(" ");
    button.textContent = `${button.dataset.word} ${ids.length}`;
    button.dataset.ask = button.dataset.question.replace("#", ids.length === 1 ? `job ${ids[0]}` : `${ids.length} jobs`);
  }
}

function clear() {
  picked.clear();
  draw();
  document.getElementById("pick-all")?.focus();
}

document.addEventListener("change", (event) => {
  const box = event.target;
  const changed = box.id === "pick-all" ? [...document.querySelectorAll("[data-can]")] : "can" in box.dataset ? [box] : [];
  for (const each of changed) picked[box.checked ? "add" : "delete"](each.value);
  if (changed.length) draw();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && picked.size && !document.querySelector("dialog[open]")) clear();
});
bar.addEventListener("done", clear);
document.getElementById("bulk-clear").addEventListener("click", clear);
document.body.addEventListener("htmx:afterSwap", draw);
draw();
