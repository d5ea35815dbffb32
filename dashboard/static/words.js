// Numbers as the server writes them (dashboard/figures.py), for what changes while somebody looks.
export const NONE = "–";

export function span(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const two = (number) => String(number).padStart(2, "0");
  if (whole < 60) return `${whole} s`;
  if (whole < 600) return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${two(Math.floor((whole % 3600) / 60))} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

export function size(count) {
  if (count === null || count === undefined) return NONE;
  const units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (Math.abs(count) >= 1000 && unit < units.length - 1) {
    count /= 1024;
    unit += 1;
  }
  return `${unit < 2 || Math.abs(count) >= 100 ? count.toFixed(0) : count.toFixed(1)} ${units[unit]}`;
}

const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

const ZONE = JSON.parse(document.body.dataset.zone); // of the box: [from when, seconds ahead of UTC], oldest first

// A date whose parts in UTC are what the box's clocks show.
export function local(at) {
  const [, ahead] = ZONE.findLast(([from]) => from <= at) ?? ZONE[0];
  return new Date((at + ahead) * 1000);
}

export function day(at) {
  const when = local(at);
  return `${when.getUTCDate()} ${MONTHS[when.getUTCMonth()]}`;
}

export function clock(at, withDate = false) {
  const time = local(at).toISOString();
  return withDate ? `${day(at)} ${time.slice(11, 16)}` : time.slice(11, 19);
}

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// Text of anybody's: never markup, and its direction stays its own.
export function text(value) {
  return element("bdi", {}, String(value));
}
