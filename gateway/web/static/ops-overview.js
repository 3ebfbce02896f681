// The first view: what all nodes do together, now and over the chosen period.

import { Chart } from "./ops-chart.js";
import { percentile, PRIORITIES, share, sum, TARGET, together, words as byWord } from "./ops-figures.js";
import { choice, Table, tiles } from "./ops-parts.js";
import { clock, duration, number, percent, size, words } from "./ops-words.js";
import { h, sync } from "./view.js";

const SHARES = { half: 0.5, most: 0.95, nearlyAll: 0.99 };
const POINTS = 60;

let parts; // what is on the page now
const chosen = { way: "to_socket", share: "nearlyAll" };

export const stepOf = (state) => state.figures.step((state.minutes * 60_000) / POINTS);

export function overview(state, redraw, minutes) {
  const chart = (name, note) => new Chart(words[name], words[note]);
  parts = {
    tiles: h("ul", { class: "tiles" }),
    latency: chart("latency", "latencyNote"),
    deliveries: chart("perPriority"), sessions: chart("sessionsChart"), connects: chart("connectsChart"), intake: chart("intakeChart"),
    behind: chart("catchUp", "catchUpNote"), replay: chart("replay"), commit: chart("commit", "commitNote"), loop: chart("loop", "loopNote"),
    table: new Table(words.latencyTable, [
      { key: "priority", name: words.priority, cell: (row) => words.priorities[row.key] },
      ...Object.entries(SHARES).map(([name, part]) => ({ key: name, name: words[name], number: true, cell: (row) => duration(percentile(row.times, part)) })),
      { key: "count", name: words.count, number: true, cell: (row) => number([...row.times.values()].reduce((all, one) => all + one, 0)) },
    ], { kind: "" }),
    slow: new Table(words.slow, [
      { key: "session", name: words.session, cell: (row) => row.session },
      { key: "who", name: words.who, cell: (row) => row.who },
      { key: "device", name: words.device, cell: (row) => row.device_agent ?? "–" },
      { key: "node", name: words.node, cell: (row) => row.node },
      { key: "why", name: words.why, cell: (row) => (row.why === "window" ? words.window_ : words.socket) },
      { key: "stuck", name: words.stuckFor, number: true, by: (row) => row.seconds, cell: (row) => duration(row.seconds) },
      { key: "behind", name: words.eventsBehind, number: true, by: (row) => row.behind, cell: (row) => number(row.behind) },
    ], { sort: "stuck", down: true, empty: words.noSlow, kind: "cards-below dense" }),
    health: h("div", { class: "pairs" }),
    ends: h("div", { class: "pairs" }),
  };
  const ways = [["to_socket", words.toSocket], ["to_ack", words.toAck]];
  parts.latency.element.querySelector("figcaption").append(h("div", { class: "buttons" },
    choice(words.upTo, ways, chosen.way, (way) => { chosen.way = way; redraw(); }),
    choice(words.percentile, Object.keys(SHARES).map((name) => [name, words[name]]), chosen.share, (name) => { chosen.share = name; redraw(); })));
  parts.latency.element.append(parts.table.element);
  return h("section", {},
    h("div", { class: "head" }, h("h1", {}, words.overview), minutes()),
    h("ul", { class: "first", "aria-label": words.firingNow }), parts.tiles,
    h("div", { class: "charts" }, parts.latency.element, parts.deliveries.element, parts.sessions.element, parts.connects.element, parts.intake.element,
      parts.behind.element, parts.replay.element, parts.commit.element, parts.loop.element),
    block("slow", words.slow, words.slowText, parts.slow.element),
    h("div", { class: "twins" }, block("health", words.health, "", parts.health), block("ends", words.totals, "", parts.ends)));
}

const block = (id, title, text, content) => h("section", { class: "block card", id }, h("h2", {}, title), text && h("p", { class: "small" }, text), content);

export function drawOverview(state, now) {
  const { figures } = state;
  const from = now - state.minutes * 60_000;
  const step = stepOf(state);
  const points = figures.points(from, now, step);
  const times = points.map((_, n) => Math.floor(from / step) * step + n * step);
  const all = together(points);
  const each = (pick) => points.map((point) => (point ? pick(point) : null));
  const rate = (name) => each(({ rates }) => rates.get(name) ?? 0);
  const rates = (name) => each((point) => sum(byWord(point.rates, name)));
  const gauge = (name) => each(({ gauges }) => gauges[name] ?? 0);
  const time = (name, part) => each(({ times: known }) => percentile(known.get(name) ?? new Map(), part));
  drawTiles(state, { from, now, all, each, rate, rates, gauge, time, level: share(all.delay, TARGET.seconds) });
  const draw = (chart, series, more = {}) => chart.draw({ times, series, format: number, clock, ...more });
  draw(parts.latency, PRIORITIES.map((name) => ({ name: words.priorities[name], kind: name, values: time(`${chosen.way}.${name}`, SHARES[chosen.share]) })), { format: duration, log: true });
  draw(parts.deliveries, PRIORITIES.map((name) => ({ name: words.priorities[name], kind: name, values: rate(`delivered.${name}`) })), { stacked: true });
  draw(parts.sessions, [{ name: words.sessions, kind: "s1", values: gauge("sessions"), filled: true }], { whole: true });
  draw(parts.connects, [
    { name: words.opened, kind: "s1", values: rate("opened") }, { name: words.closedRate, kind: "s2", values: rates("closed") },
    { name: words.refusedHandshakes, kind: "bad", values: rates("handshake_rejects") }]);
  draw(parts.intake, [
    { name: words.accepted, kind: "s1", values: rate("accepted") }, { name: words.duplicates, kind: "s2", values: rate("duplicates") },
    { name: words.rejectedRate, kind: "bad", values: rates("rejected") }]);
  draw(parts.behind, [{ name: words.behindNow, kind: "s1", values: gauge("behind"), filled: true }, { name: words.stalledNow, kind: "bad", values: gauge("stalled") }], { whole: true });
  draw(parts.replay, [
    { name: words.replayed, kind: "s1", values: rate("replayed") }, { name: words.swept, kind: "s2", values: rate("sweep_behind") },
    { name: words.relayed, kind: "s3", values: rate("relayed") }]);
  for (const [chart, name] of [[parts.commit, "append"], [parts.loop, "loop_lag"]]) {
    draw(chart, [{ name: words.p99, kind: "s1", values: time(name, 0.99) }, { name: words.p50, kind: "s2", values: time(name, 0.5) }], { format: duration, log: true });
  }
  parts.table.draw(PRIORITIES.map((name) => ({ key: name, times: all.times.get(`${chosen.way}.${name}`) ?? new Map() })));
  parts.slow.draw(figures.slow(from, now).slice(0, 20).map((one) => ({ ...one, key: `${one.node} ${one.session}` })));
  drawHealth(figures.present(from, now), all);
  drawEnds(all);
}

const last = (values) => values.findLast((value) => value != null);

function drawTiles(state, { from, now, all, rate, rates, gauge, time, each, level }) {
  const up = state.figures.present(from, now).filter(({ silent }) => !silent);
  const refused = sum(byWord(all.counts, "rejected"));
  const [delivered, closed] = [rates("delivered"), rates("closed")];
  const behind = gauge("behind");
  const urgent = (way) => duration(percentile(all.times.get(`${way}.urgent`) ?? new Map(), 0.99));
  tiles(parts.tiles, [
    { key: "sessions", label: words.sessions, value: number(up.reduce((n, { data }) => n + data.sessions, 0)), note: words.onNodes(up.length), values: gauge("sessions") },
    { key: "connects", label: words.connects, value: `${number(last(rate("opened")))}${words.perSecond}`, note: words.closedText(number(last(closed))), values: rate("opened") },
    { key: "intake", label: words.intake, value: `${number(last(rate("accepted")))}${words.perSecond}`, note: words.duplicatesText(number(last(rate("duplicates")))), values: rate("accepted"), href: "#agencies" },
    { key: "delivered", label: words.deliveries, value: `${number(last(delivered))}${words.perSecond}`, note: words.replayedText(number(last(rate("replayed")))), values: delivered },
    { key: "urgent", label: words.urgentWritten, value: urgent("to_socket"), note: words.urgentText(urgent("to_ack")), values: time("to_socket.urgent", 0.99), kind: "urgent" },
    { key: "behind", label: words.behind, value: number(last(behind)), note: words.behindText(number(last(gauge("stalled")))), values: behind, tone: last(gauge("stalled")) ? "warn" : "" },
    { key: "refused", label: words.refusals, value: number(refused), note: words.refusalsText, values: rates("rejected"), kind: "bad", href: "#rejected" },
    { key: "level", label: words.level, value: percent(level), note: words.levelText, values: each(({ delay }) => share(delay, TARGET.seconds)), kind: level !== null && level < TARGET.share ? "bad" : "s3", tone: level === null ? "" : level < TARGET.share ? "bad" : "good", href: "#agencies" },
  ]);
}

/** A heading, with a state if there is one, and names and values: {key, sign, make}. */
function pairs(title, rows, state, kind) {
  const values = ([name, value]) => [h("dt", {}, name), h("dd", {}, value)];
  return {
    key: title, sign: JSON.stringify([rows, state, kind]),
    make: () => h("div", {}, h("h3", {}, title, state && h("span", { class: `pill ${kind}` }, state)), rows.length ? h("dl", { class: "fields" }, rows.map(values)) : h("p", { class: "small" }, words.none)),
  };
}

function drawHealth(nodes, all) {
  const up = nodes.filter(({ silent }) => !silent);
  const good = (pick) => up.filter(({ data }) => pick(data)).length;
  const counted = (name) => number(all.counts.get(name) ?? 0);
  const disks = up.map(({ data }) => data.store).filter(({ disk_free, disk_size }) => disk_free !== null && disk_size);
  const fullest = disks.sort((a, b) => a.disk_free / a.disk_size - b.disk_free / b.disk_size)[0];
  const [ready, healthy] = [good(({ store }) => store.ready), good(({ bus }) => bus.healthy)];
  const tone = (n) => (n === up.length ? "good" : "bad");
  sync(parts.health, [
    pairs(words.store, [
      [words.failures, counted("store.failures")],
      [words.commit, `${words.p99}: ${duration(percentile(all.times.get("append") ?? new Map(), 0.99))}`],
      [words.disk, fullest ? words.ofSize(size(fullest.disk_free), size(fullest.disk_size)) : words.diskElsewhere]], words.readyOn(ready, up.length), tone(ready)),
    pairs(words.bus, [
      [words.failures, counted("bus.failures")], [words.gaps, counted("bus.gaps")], [words.holes, counted("bus.holes")]],
    words.healthyOn(healthy, up.length), tone(healthy))]);
}

function drawEnds({ counts }) {
  const rows = (name, say = (word) => word) => Object.entries(byWord(counts, name)).sort(([, a], [, b]) => b - a).map(([word, count]) => [say(word), number(count)]);
  const code = (word) => (words.codes[word] ? `${word} · ${words.codes[word]}` : word);
  const reason = (word) => words.reasons[word] ?? word;
  sync(parts.ends, [pairs(words.ends, rows("closed", code)), pairs(words.refusals, rows("rejected", reason)), pairs(words.handshakes, rows("handshake_rejects")), pairs(words.resyncs, rows("resyncs"))]);
}
