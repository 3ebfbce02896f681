// Charts, drawn as SVG. They are read with the eyes, with a pointer, and with the arrow keys, which say each point.

import { h } from "./view.js";

const SVG = "http://www.w3.org/2000/svg";
const LEFT = 54;
const [RIGHT, TOP, BOTTOM] = [10, 10, 22];

export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) if (value != null) element.setAttribute(name, value);
  element.append(...children.filter(Boolean));
  return element;
}

/** 1, 2 or 5 times a power of ten, not below `value`. */
export function nice(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 2, 5, 10].find((one) => one * power >= value * 0.999999);
}

/** {ticks, place: value → 0 (bottom) to 1 (top)} of an axis that begins at 0; `whole`: of things that are counted. */
export function linear(most, whole = false) {
  const step = Math.max(nice(Math.max(most, 1e-9) / 4), whole ? 1 : 0);
  const count = Math.max(1, Math.ceil(most / step - 1e-9));
  return { ticks: Array.from({ length: count + 1 }, (_, n) => n * step), place: (value) => value / (count * step) };
}

const DURATIONS = [0.0001, 0.001, 0.01, 0.1, 1, 10, 60, 600, 3600, 36_000];

/** The same for durations, on a logarithmic scale from the last tick below all values to the first above them. */
export function logarithmic(values) {
  const known = values.filter((value) => value > 0);
  const first = Math.max(0, DURATIONS.findLastIndex((tick) => tick <= Math.min(0.01, ...known)));
  const last = DURATIONS.findIndex((tick) => tick >= Math.max(DURATIONS[first] * 99, ...known));
  const ticks = DURATIONS.slice(first, last < 0 ? undefined : last + 1);
  const [low, high] = [Math.log(ticks[0]), Math.log(ticks.at(-1))];
  return { ticks, place: (value) => Math.min(1, Math.max(0, (Math.log(Math.max(value, 1e-9)) - low) / (high - low))) };
}

/** The parts of a line: lists of [place, value] without a gap. */
export function runs(values) {
  const found = [];
  let run = null;
  values.forEach((value, n) => {
    if (value == null) run = null;
    else if (run) run.push([n, value]);
    else found.push((run = [[n, value]]));
  });
  return found;
}

/** A chart that stays; `draw` shows other values in it.
 *
 *  draw({times, series: [{name, kind, values}], format, clock, log, whole, stacked}): `times` in ms, one for each value; a value
 *  is null where there is none; `kind` is the class that gives the colour; `format` writes a value, `clock` a time. */
export class Chart {
  constructor(title, note) {
    this.legend = h("ul", { class: "legend" });
    this.when = h("span", { class: "when" });
    this.plot = h("div", { class: "plot", tabindex: "0", role: "slider", "aria-label": title, "aria-valuemin": "0", "aria-valuemax": "0", "aria-valuenow": "0" });
    this.element = h("figure", { class: "chart card" },
      h("figcaption", {}, h("h2", {}, title), this.when, note && h("p", { class: "small" }, note)), this.plot, this.legend);
    this.at = null; // the time that the reader chose
    this.plot.addEventListener("pointermove", (event) => this.point(event));
    this.plot.addEventListener("pointerdown", (event) => this.point(event));
    this.plot.addEventListener("pointerleave", () => this.choose(null));
    this.plot.addEventListener("keydown", (event) => this.key(event));
    this.plot.addEventListener("focus", () => this.say());
    this.plot.addEventListener("blur", () => this.choose(null));
    new ResizeObserver(() => this.given && this.paint()).observe(this.plot);
  }

  draw(given) {
    this.given = given;
    this.paint();
  }

  get chosen() {
    const { times } = this.given;
    if (this.at === null) return -1;
    return Math.max(0, times.findLastIndex((time) => time <= this.at));
  }

  choose(place) {
    if (!this.given) return;
    const { times } = this.given;
    this.at = place === null ? null : times[Math.min(times.length - 1, Math.max(0, place))];
    this.paint();
  }

  point(event) {
    const { left, width } = this.plot.getBoundingClientRect();
    const { times } = this.given ?? { times: [] };
    const inner = width - LEFT - RIGHT;
    this.choose(Math.round(((event.clientX - left - LEFT) / inner) * (times.length - 1)));
  }

  key(event) {
    const { times } = this.given;
    const here = this.chosen < 0 ? times.length - 1 : this.chosen;
    const to = { ArrowLeft: here - 1, ArrowDown: here - 1, ArrowRight: here + 1, ArrowUp: here + 1, Home: 0, End: times.length - 1, PageUp: here + 10, PageDown: here - 10 }[event.key];
    if (to !== undefined) {
      event.preventDefault();
      this.choose(to);
      this.say();
    } else if (event.key === "Escape") this.choose(null);
  }

  /** What a screen reader reads. Not at every change: else it would never be silent. */
  say() {
    const { times, series, format, clock } = this.given ?? { times: [] };
    if (!times.length) return;
    const place = this.chosen < 0 ? times.length - 1 : this.chosen;
    this.plot.setAttribute("aria-valuemax", String(times.length - 1));
    this.plot.setAttribute("aria-valuenow", String(place));
    this.plot.setAttribute("aria-valuetext", `${clock(times[place])}: ${series.map((one) => `${one.name} ${format(one.values[place])}`).join(", ")}`);
  }

  paint() {
    const { times, series, format, clock, log = false, whole = false, stacked = false } = this.given;
    const [width, height] = [Math.max(220, this.plot.clientWidth), this.plot.clientHeight];
    const [inner, tall] = [width - LEFT - RIGHT, height - TOP - BOTTOM];
    const chosen = this.chosen;
    const x = (n) => LEFT + (times.length > 1 ? (n / (times.length - 1)) * inner : inner);
    // Stacked: each series stands on those before it.
    const tops = series.map(({ values }, index) => (stacked ? values.map((value, n) => (value == null ? null : series.slice(0, index + 1).reduce((all, one) => all + (one.values[n] ?? 0), 0))) : values));
    const known = tops.flat().filter((value) => value != null);
    const { ticks, place } = log ? logarithmic(known) : linear(Math.max(0, ...known), whole);
    const y = (value) => TOP + tall - place(value) * tall;
    const round = (number) => Math.round(number * 10) / 10;
    const line = (run) => run.map(([n, value], k) => `${k ? "L" : "M"}${round(x(n))} ${round(y(value))}`).join("");
    const image = svg("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
    for (const tick of ticks) {
      image.append(svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(tick), y2: y(tick) }),
        label(LEFT - 8, y(tick) + 4, format(tick), "end"));
    }
    const marks = Math.max(2, Math.min(6, Math.floor(inner / 110)));
    for (let k = 0; k < marks && times.length > 1; k++) {
      const n = Math.round((k / (marks - 1)) * (times.length - 1));
      image.append(label(x(n), height - 5, clock(times[n], true), k === 0 ? "start" : k === marks - 1 ? "end" : "middle"));
    }
    series.forEach(({ kind, filled }, index) => {
      for (const run of runs(tops[index])) {
        const path = line(run.length > 1 ? run : [run[0], run[0]]);
        if (filled || stacked) {
          const under = index && stacked ? run.map(([n]) => [n, tops[index - 1][n] ?? 0]).reverse() : [[run.at(-1)[0], null], [run[0][0], null]];
          const back = under.map(([n, value]) => `L${round(x(n))} ${round(value === null ? TOP + tall : y(value))}`).join("");
          image.append(svg("path", { class: `area ${kind}`, d: `${path}${back}Z` }));
        }
        image.append(svg("path", { class: `line ${kind}`, d: path }));
      }
      if (chosen >= 0 && tops[index][chosen] != null) image.append(svg("circle", { class: `spot ${kind}`, cx: x(chosen), cy: y(tops[index][chosen]), r: 4 }));
    });
    if (chosen >= 0) image.append(svg("line", { class: "cross", x1: x(chosen), x2: x(chosen), y1: TOP, y2: TOP + tall }));
    this.plot.replaceChildren(image);
    this.tell(series, chosen, format, clock, times);
  }

  /** The legend: each series with its value at the chosen time, else with the last one. */
  tell(series, chosen, format, clock, times) {
    this.when.textContent = chosen >= 0 ? clock(times[chosen]) : "";
    series.forEach(({ name, kind, values }, index) => {
      let item = this.legend.children[index];
      if (!item) this.legend.append((item = h("li", {}, h("span", { class: "key", "aria-hidden": "true" }), h("span"), h("strong"))));
      item.firstChild.className = `key ${kind}`;
      put(item.children[1], name);
      put(item.lastChild, format(chosen >= 0 ? values[chosen] : values.findLast((value) => value != null)));
    });
    while (this.legend.children.length > series.length) this.legend.lastChild.remove();
  }
}

/** Text, changed only when it is another: what is selected or read aloud stays. */
export function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function label(x, y, text, anchor) {
  const element = svg("text", { x, y, "text-anchor": anchor });
  element.textContent = text;
  return element;
}

/** A small line without axes, beside a number that says the same. */
export function spark(values, kind = "s1", width = 120, height = 28) {
  values = values.slice(0, values.findLastIndex((value) => value != null) + 1);
  const most = Math.max(1e-9, ...values.filter((value) => value != null));
  const [x, y] = [(n) => (n / Math.max(1, values.length - 1)) * width, (value) => height - 2 - (value / most) * (height - 4)];
  const image = svg("svg", { class: "spark", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  for (const run of runs(values)) {
    const d = run.map(([n, value], k) => `${k ? "L" : "M"}${x(n).toFixed(1)} ${y(value).toFixed(1)}`).join("");
    image.append(svg("path", { class: `area ${kind}`, d: `${d}L${x(run.at(-1)[0]).toFixed(1)} ${height}L${x(run[0][0]).toFixed(1)} ${height}Z` }), svg("path", { class: `line ${kind}`, d }));
  }
  return image;
}
