// The keyboard keeps its place when a part of a page is fetched anew: the same thing; if it is gone, what is now there.
const THINGS = "a[href], button:not([disabled]), input, select, summary, [tabindex='0']";
let before = null;

function described(place) {
  if (!place || place === document.body) return null;
  const row = place.closest(".rows tbody tr");
  return {
    place,
    id: place.id,
    home: place.closest("[data-gpu]")?.dataset.gpu,
    parts: ids(place),
    job: row?.querySelector("td.lead > a")?.id,
    table: row?.closest(".rows").id,
    row: row?.sectionRowIndex,
    thing: row && [...row.querySelectorAll(THINGS)].indexOf(place),
  };
}

function ids(place) {
  const found = [];
  for (let each = place.parentElement; each; each = each.parentElement) if (each.id) found.push(each.id);
  return found;
}

function restore(was) {
  if (!was || (was.place.isConnected && document.activeElement === was.place)) return;
  if (document.activeElement && document.activeElement !== document.body) return;
  next(was)?.focus({ preventScroll: true });
}

// Of a job that left, no button of the next one is taken: who presses Enter meant another job.
function next(was) {
  if (was.place.isConnected) return was.place;
  const same = was.id && document.getElementById(was.id);
  if (same) return same;
  const row = was.job && document.getElementById(was.job)?.closest("tr");
  if (row) return [...row.querySelectorAll(THINGS)].at(was.thing) ?? row.querySelector(THINGS);
  const rows = was.table && document.getElementById(was.table)?.tBodies[0].rows;
  if (rows?.length) return rows[Math.min(was.row, rows.length - 1)].querySelector("td.lead > a, a, button");
  if (was.home) return document.querySelector(`[data-gpu="${CSS.escape(was.home)}"] a`) ?? document.getElementById("main");
  const part = was.parts.map((id) => document.getElementById(id)).find(Boolean);
  return part?.querySelector(THINGS) ?? document.getElementById("main");
}

export function keeping(change) {
  const was = described(document.activeElement);
  change();
  restore(was);
}

document.body.addEventListener("htmx:beforeSwap", () => { before = described(document.activeElement); });
document.body.addEventListener("htmx:afterSwap", () => { restore(before); });
