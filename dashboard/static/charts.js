// Charts, by uPlot: one time axis and one cursor for all of a page; gaps are gaps; every chart is a table, too.
import { NONE, clock, day, element, local } from "./words.js";

const style = () => getComputedStyle(document.documentElement);
const ink = (name) => style().getPropertyValue(name).trim();
const FONT = "12px system-ui, sans-serif";
const TABLE_ROWS = 60;

const KINDS = [
  { column: "utilization", name: "Use", unit: "%", factor: 100, low: 0, high: 100, fill: true },
  { column: "memory_used_bytes", name: "Memory", unit: "GiB", factor: 1 / 2 ** 30, low: 0, fill: true },
  { column: "power_watts", name: "Power", unit: "W", factor: 1, low: 0 },
  { column: "temperature_celsius", name: "Temperature", unit: "°C", factor: 1 },
  { column: "sm_clock_hertz", name: "Clock", unit: "GHz", factor: 1e-9, low: 0 },
  { column: "fan", name: "Fan", unit: "%", factor: 100, low: 0, high: 100 },
];
const SLOW = new Set(["fan"]); // read every five seconds: in between it is what it was
const SLOW_SECONDS = 6;
const DASHES = [[], [6, 3], [2, 3], [8, 3, 2, 3]];
const dash = (index) => DASHES[(index + (index >> 2)) % 4]; // with four colours, sixteen lines that differ

// --- the small one of a card ---------------------------------------------------------------------------------------

export function spark(place, seconds) {
  let data = [[], []];
  const colour = ink("--fill");
  const plot = new uPlot({
    width: Math.max(place.clientWidth, 40),
    height: 52,
    cursor: { show: false },
    legend: { show: false },
    axes: [{ show: false }, { show: false }],
    padding: [3, 0, 2, 0],
    scales: { x: { time: true, range: () => { const end = data[0].at(-1) ?? Date.now() / 1000; return [end - seconds, end]; } }, y: { range: [0, 1.02] } },
    series: [{}, { stroke: colour, width: 1.5, fill: `${colour}2e`, points: { show: false }, spanGaps: false }],
  }, data, place);
  new ResizeObserver(() => plot.setSize({ width: Math.max(place.clientWidth, 40), height: 52 })).observe(place);
  return {
    fill(at, values) {
      const begun = data;
      const first = begun[0][0] ?? Infinity;
      const before = at.map((each, index) => [each, values[index] ?? null]).filter(([each]) => each < first);
      data = [[...before.map((pair) => pair[0]), ...begun[0]], [...before.map((pair) => pair[1]), ...begun[1]]];
      plot.setData(data);
    },
    add(at, value) {
      if (at <= (data[0].at(-1) ?? 0)) return;
      if (at - (data[0].at(-1) ?? at) > 5) data = [[...data[0], at - 1], [...data[1], null]];
      data[0].push(at);
      data[1].push(value);
      const old = data[0].findIndex((each) => each >= at - seconds);
      if (old > 60) data = [data[0].slice(old), data[1].slice(old)];
      plot.setData(data);
      place.dataset.at = at;
    },
  };
}

// --- the large ones --------------------------------------------------------------------------------------------------

export function charts(section) {
  const place = section.querySelector(".charts");
  const sync = uPlot.sync("time");
  let shown = [];
  let zoom = null;
  let asked = 0;

  async function load(since, until) {
    const mine = ++asked;
    const points = Math.min(1000, Math.max(200, Math.round(place.clientWidth / 2)));
    const time = since ? `&since=${since}${until ? `&until=${until}` : ""}` : "";
    const reply = await fetch(`/api/v1/history?${section.dataset.history}${time}&points=${points}`);
    const told = await reply.json();
    if (mine !== asked) return;
    if (!reply.ok) return place.replaceChildren(element("p", { class: "empty" }, told.message));
    draw(told);
  }

  function draw(told) {
    for (const plot of shown) plot.destroy();
    const labels = JSON.parse(section.dataset.labels || "{}");
    const called = (series) => labels[series.subject] || series.subject;
    const gpus = told.series.filter((series) => series.kind === "gpu").sort((one, other) => called(one).localeCompare(called(other), "en", { numeric: true }));
    const made = KINDS.slice(0, Number(section.dataset.kinds) || KINDS.length).map((kind) => chart(kind, told, gpus, called)).filter(Boolean);
    place.replaceChildren(...(gpus.length > 1 ? [legend(gpus, called)] : []), ...made.map((each) => each.figure));
    shown = made.map((each) => each.begin());
  }

  function chart(kind, told, gpus, called) {
    const drawn = gpus.filter((series) => series.lines[kind.column]);
    const lines = drawn.map((series) => series.lines[kind.column]);
    if (!lines.length || !lines.some((line) => line.mean.some((value) => value !== null))) return null;
    const scaled = (values) => values.map((value) => (value === null ? null : value * kind.factor));
    const means = lines.map((line) => (SLOW.has(kind.column) ? carried(told.at, line.mean) : line.mean));
    const data = [told.at, ...means.map(scaled)];
    const band = told.bucket > 1 && lines.length === 1;
    if (band) for (const part of ["most", "least"]) data.push(scaled(lines[0][part]));
    const values = data[1].filter((value) => value !== null);
    const say = (value) => (value === null || value === undefined ? NONE : `${value.toFixed(value < 10 && kind.unit === "GHz" ? 2 : kind.unit === "GiB" ? 1 : 0)} ${kind.unit}`);
    const latest = values.at(-1);
    const output = element("output", {}, say(latest));
    const title = element("figcaption", {}, element("strong", {}, kind.name), output);
    const plotted = element("div", { class: "plot", role: "img", "aria-label": `${kind.name}: last ${say(latest)}, least ${say(least(values))}, most ${say(most(values))}` });
    const figure = element("figure", { class: "chart" }, title, plotted, element("p", { class: "note" }, note(told, band)), table(kind, told.at, data.slice(1, lines.length + 1), drawn.map(called), say));

    function begin() {
      const colours = ["--s1", "--s2", "--s3", "--s4"].map(ink);
      const axis = { stroke: ink("--dim"), grid: { stroke: ink("--grid"), width: 1 }, ticks: { show: false }, font: FONT };
      const plot = new uPlot({
        width: plotted.clientWidth,
        height: plotted.clientHeight,
        legend: { show: false },
        tzDate: (at) => uPlot.tzDate(local(at), "Etc/UTC"),
        cursor: { sync: { key: sync.key }, points: { size: 7 }, drag: { x: true, y: false } },
        padding: [8, 6, 0, 0],
        axes: [{ ...axis, space: 70, size: 26, values: times }, { ...axis, size: 48, values: (_, ticks) => ticks.map((tick) => String(Math.round(tick * 100) / 100)) }],
        scales: { x: { range: () => [told.since, told.until] }, y: { range: (_, least, most) => bounds(kind, least, most) } },
        series: [{}, ...lines.map((_, index) => ({
          stroke: colours[gpus.indexOf(drawn[index]) % 4], width: 1.6, dash: dash(gpus.indexOf(drawn[index])), points: { show: false },
          fill: kind.fill && lines.length === 1 && !band ? `${colours[0]}22` : undefined,
        })), ...(band ? [{ points: { show: false }, width: 0 }, { points: { show: false }, width: 0 }] : [])],
        bands: band ? [{ series: [2, 3], fill: `${colours[0]}30` }] : [],
        hooks: {
          setCursor: [(self) => { const at = self.cursor.idx; output.textContent = at === null || at === undefined ? say(latest) : `${clock(told.at[at], long(told))}  ${lines.map((_, index) => say(data[index + 1][at])).join("  ")}`; }],
          setSelect: [(self) => {
            if (self.select.width < 4) return;
            zoom = [self.posToVal(self.select.left, "x"), self.posToVal(self.select.left + self.select.width, "x")];
            section.dispatchEvent(new CustomEvent("zoom", { detail: zoom }));
          }],
          draw: [(self) => gaps(self, told, gpus)],
        },
      }, data, plotted);
      plotted.addEventListener("dblclick", () => section.dispatchEvent(new CustomEvent("zoom", { detail: null })));
      new ResizeObserver(() => plot.setSize({ width: plotted.clientWidth, height: plotted.clientHeight })).observe(plotted);
      return plot;
    }
    return { figure, begin };
  }

  return { load };
}

// Which line is whose: by its colour and by its dashes.
function legend(gpus, called) {
  const space = "http://www.w3.org/2000/svg";
  return element("p", { class: "legend" }, ...gpus.map((series, index) => {
    const sample = document.createElementNS(space, "svg");
    for (const [key, value] of Object.entries({ width: 28, height: 8, "aria-hidden": "true", class: `line${(index % 4) + 1}` })) sample.setAttribute(key, value);
    const line = document.createElementNS(space, "line");
    const drawn = { x1: 0, x2: 28, y1: 4, y2: 4, "stroke-width": 2, "stroke-dasharray": dash(index).join(" ") };
    for (const [key, value] of Object.entries(drawn)) line.setAttribute(key, value);
    sample.append(line);
    return element("span", {}, sample, called(series));
  }));
}

function carried(at, values) {
  let last = 0;
  return values.map((value, index) => {
    if (value !== null) last = index;
    return value ?? (at[index] - at[last] <= SLOW_SECONDS ? values[last] : null);
  });
}

const least = (values) => values.reduce((one, other) => Math.min(one, other), Infinity);
const most = (values) => values.reduce((one, other) => Math.max(one, other), -Infinity);

function bounds(kind, low, high) {
  if (low === null || !Number.isFinite(low)) return [0, 1];
  const top = kind.high ?? high + Math.max((high - (kind.low ?? low)) * 0.08, high * 0.02, 0.01);
  return [kind.low ?? Math.max(0, low - Math.max((high - low) * 0.15, 2)), top];
}

function times(_, ticks) {
  const long = ticks.length > 1 && ticks.at(-1) - ticks[0] > 86400 * 2;
  return ticks.map((tick) => (long ? day(tick) : clock(tick).slice(0, ticks[1] - ticks[0] < 60 ? 8 : 5)));
}

const long = (told) => told.until - told.since > 86400; // a time of day would not say of which

function note(told, band) {
  const parts = [];
  if (told.bucket > 1) parts.push(`mean of ${told.bucket < 60 ? `${told.bucket} s` : told.bucket < 3600 ? `${told.bucket / 60} min` : `${told.bucket / 3600} h`}${band ? ", band: least to most" : ""}`);
  if (told.recorded_from && told.recorded_from > told.since + 1) parts.push(`recording began ${clock(told.recorded_from, true)}`);
  const gap = told.series.flatMap((series) => series.gaps).at(-1);
  if (gap) parts.push(`no data ${clock(gap.began, long(told))} to ${clock(gap.ended, long(told))}: ${gap.why}`);
  if (told.trouble) parts.push(told.trouble);
  return parts.join(" · ");
}

// Grey stripes where nothing was read, and where recording had not begun.
function gaps(plot, told, gpus) {
  const holes = gpus.length === 1 ? gpus[0].gaps.map((gap) => [gap.began, gap.ended]) : [];
  if (told.recorded_from && told.recorded_from > told.since) holes.push([told.since, Math.min(told.recorded_from, told.until)]);
  const { ctx, bbox } = plot;
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
  ctx.strokeStyle = ink("--grid");
  ctx.lineWidth = 1;
  for (const [began, ended] of holes) {
    const from = Math.max(plot.valToPos(began, "x", true), bbox.left);
    const to = Math.min(plot.valToPos(ended, "x", true), bbox.left + bbox.width);
    if (to - from < 1) continue;
    ctx.save();
    ctx.beginPath();
    ctx.rect(from, bbox.top, to - from, bbox.height);
    ctx.clip();
    ctx.beginPath();
    for (let x = from - bbox.height; x < to; x += 9) {
      ctx.moveTo(x, bbox.top + bbox.height);
      ctx.lineTo(x + bbox.height, bbox.top);
    }
    ctx.stroke();
    ctx.restore();
  }
  ctx.restore();
}

function table(kind, at, columns, names, say) {
  const details = element("details", {}, element("summary", {}, "as a table"));
  details.addEventListener("toggle", () => {
    if (!details.open || details.querySelector("table")) return;
    const step = Math.max(1, Math.ceil(at.length / TABLE_ROWS));
    const row = (first, scope, cells) => element("tr", {}, element("th", { scope }, first), ...cells);
    const head = names.length > 1 ? [element("thead", {}, row("", "col", names.map((name) => element("th", { scope: "col" }, name))))] : [];
    const rows = at.flatMap((each, index) => (index % step ? [] : [row(clock(each, true), "row", columns.map((values) => element("td", {}, say(values[index]))))]));
    const body = element("table", {}, ...head, element("tbody", {}, ...rows));
    details.append(element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${kind.name} as a table` }, body));
  });
  return details;
}
