// The views that are lists: agencies, nodes and workers, rejected events, alerts.

import { spark } from "./ops-chart.js";
import { firing, percentile, TARGET } from "./ops-figures.js";
import { pill, Table } from "./ops-parts.js";
import { stepOf } from "./ops-overview.js";
import { duration, language, measured, number, percent, size, when, words } from "./ops-words.js";
import { agencyName } from "./words.js";
import { button, h, sync } from "./view.js";

const SHOWN = 200; // alerts that are over
const ON_TOP = 4; // alerts in short

let parts; // what is on the page now

const empty = ([title, text]) => [h("h2", {}, title), h("p", {}, text)];
const say = (element, said) => { element.hidden = !said; if (said && element.firstChild?.textContent !== said[0]) element.replaceChildren(...empty(said)); };
const named = (code) => (agencyName(code) === code ? code : `${agencyName(code)} · ${code}`);
const ago = (time, now) => (time === null ? words.never : now - time < 1500 ? words.now : words.ago(duration(Math.round((now - time) / 1000))));

// Agencies

/** What an operator should know about an agency first: [word, tone, how bad]. Silence is for the alerts to judge. */
function stateOf(agency, silent) {
  if (agency.level !== null && agency.level < TARGET.share) return [words.late, "bad", 3];
  if (silent.has(`agency ${agency.code}`)) return [words.quiet, "warn", 2];
  if (agency.refused) return [words.refuses, "warn", 1];
  return agency.last === null ? [words.fresh, "calm", 0] : [words.good, "good", -1];
}

export function agencies(state, redraw, minutes) {
  const reasons = ({ rejected }) => Object.entries(rejected).sort(([, a], [, b]) => b - a).map(([reason, n]) => `${words.reasons[reason] ?? reason} ${number(n)}`).join(", ");
  const field = h("input", { type: "search", id: "agency-filter", autocomplete: "off", oninput: redraw });
  const troubled = h("input", { type: "checkbox", onchange: redraw });
  parts = {
    field, troubled, empty: h("div", { class: "empty" }), lead: h("p", { class: "lead" }), found: h("p", { class: "said", role: "status" }),
    table: new Table(words.agencies, [
      { key: "agency", name: words.agency, by: ({ code }) => named(code), cell: ({ code }) => named(code) },
      { key: "state", name: words.state, by: ({ said }) => said[2], cell: ({ said }) => pill(said[0], said[1]) },
      { key: "last", name: words.lastEvent, by: ({ last }) => last, cell: ({ last, now }) => ago(last, now) },
      { key: "trend", name: words.trend, cell: ({ trace }) => ({ sign: trace.join(), make: () => spark(trace, "s1", 96, 24) }) },
      { key: "rate", name: words.rate, number: true, by: ({ rate }) => rate, cell: ({ rate }) => number(rate) },
      { key: "accepted", name: words.acceptedCount, number: true, by: ({ accepted }) => accepted, cell: ({ accepted }) => number(accepted) },
      { key: "refused", name: words.refusedCount, number: true, by: ({ refused }) => refused, cell: (row) => ({
        sign: `${row.refused} ${reasons(row)}`,
        make: () => (row.refused ? h("span", {}, h("a", { href: "#rejected", onclick: () => { state.wanted = { agency: row.code, reason: "" }; } }, number(row.refused)), h("span", { class: "small" }, reasons(row))) : "0"),
      }) },
      { key: "delay", name: words.delay, number: true, by: ({ delay95 }) => delay95, cell: ({ delay95 }) => duration(delay95) },
      { key: "level", name: words.level, number: true, by: ({ level }) => level, cell: ({ level }) => ({
        sign: percent(level), make: () => (level === null ? "–" : h("span", { class: `level ${level < TARGET.share ? "bad" : "good"}` }, h("meter", { min: "0", max: "1", value: String(level), "aria-hidden": "true" }), percent(level))),
      }) },
    ], { sort: "state", down: true, kind: "cards-below dense" }),
  };
  return h("section", {},
    h("div", { class: "head" }, h("h1", {}, words.agencies), minutes()), parts.lead,
    h("div", { class: "filters" }, h("label", { for: "agency-filter" }, words.findAgency, field), h("label", { class: "check" }, troubled, words.problems)), parts.found,
    parts.table.element, parts.empty);
}

export function drawAgencies(state, now) {
  const { figures, minutes } = state;
  const step = stepOf(state);
  const all = figures.agencies(now - minutes * 60_000, now, step);
  const text = parts.field.value.trim().toLowerCase();
  const silent = new Set(firing(state.alerts).filter(({ data }) => data.rule === "silence").map(({ data }) => data.subject));
  const rows = all.map((agency) => ({ ...agency, now, key: agency.code, said: stateOf(agency, silent), rate: agency.accepted / minutes, delay95: percentile(agency.delay, 0.95) }))
    .filter((row) => named(row.code).toLowerCase().includes(text) && (!parts.troubled.checked || row.said[2] > 0));
  parts.lead.textContent = [words.agenciesText(minutes), figures.omitted && words.agenciesOmitted(number(figures.omitted))].filter(Boolean).join(" ");
  const found = rows.length === all.length ? "" : words.found(rows.length);
  if (parts.found.textContent !== found) parts.found.textContent = found;
  parts.table.draw(rows);
  say(parts.empty, all.length === 0 ? words.noAgencies : rows.length === 0 ? words.noAgencyFound : null);
}

// Nodes

function nodeState({ silent, data }) {
  if (silent) return [words.silentFor(duration(Math.round(silent))), data.draining ? "calm" : "bad", data.draining ? 0 : 3];
  if (!data.store.ready) return [words.storeAway, "bad", 3];
  if (!data.bus.healthy) return [words.busAway, "bad", 3];
  return data.draining ? [words.draining, "warn", 1] : [words.up, "good", -1];
}

export function nodes() {
  const last = (name) => ({ data, silent }) => (silent ? null : data[name]);
  const gauge = (name, more = {}) => ({ key: name, name: words[name === "stalled" ? "stalledNow" : name], number: true, by: last(name), cell: (row) => number(last(name)(row)), ...more });
  const rate = (count) => ({ silent, sums }) => (silent ? null : count(sums) / (sums.seconds || 1));
  const opened = rate(({ counts }) => counts.get("opened") ?? 0);
  const delivered = rate(({ counts }) => [...counts].reduce((all, [name, n]) => all + (name.startsWith("delivered.") ? n : 0), 0));
  const cpu = rate(({ counts }) => counts.get("cpu") ?? 0);
  const lag = ({ silent, sums }) => (silent ? null : percentile(sums.times.get("loop_lag") ?? new Map(), 0.99));
  const files = ({ silent, data }) => (silent || !data.max_open_files ? null : data.open_files / data.max_open_files);
  parts = {
    table: new Table(words.nodes, [
      { key: "node", name: words.node, by: ({ name }) => name, cell: ({ name, data, up }) => ({
        sign: `${name} ${duration(up)}`, make: () => h("span", {}, name, h("span", { class: "small" }, `${data.version} · ${duration(up)}`)),
      }) },
      { key: "state", name: words.state, by: ({ said }) => said[2], cell: ({ said }) => pill(said[0], said[1]) },
      gauge("sessions"), { key: "opened", name: words.openedRate, number: true, by: opened, cell: (row) => number(opened(row)) },
      { key: "delivered", name: words.deliveredRate, number: true, by: delivered, cell: (row) => number(delivered(row)) },
      gauge("behind"), gauge("stalled"),
      { key: "lag", name: words.lag, number: true, by: lag, cell: (row) => duration(lag(row)) },
      { key: "cpu", name: words.cpu, number: true, by: cpu, cell: (row) => percent(cpu(row)) },
      gauge("memory", { cell: (row) => size(last("memory")(row)) }),
      { key: "files", name: words.files, number: true, by: files, cell: (row) => percent(files(row)) },
    ], { sort: "state", down: true, kind: "cards-below dense" }),
    roles: new Table(words.workers, [
      { key: "role", name: words.role, cell: ({ name }) => ({ sign: name, make: () => h("span", {}, name, words.roles[name] && h("span", { class: "small" }, words.roles[name])) }) },
      { key: "owner", name: words.owner, cell: ({ owner }) => owner || "–" },
      { key: "left", name: words.lease, number: true, cell: ({ left, idle }) => (left > 0 ? words.leaseLeft(duration(Math.ceil(left))) : words.leaseIdle(duration(Math.round(idle)))) },
    ], { empty: words.noWorkers }),
  };
  return h("section", {}, h("div", { class: "head" }, h("h1", {}, words.nodes)), h("p", { class: "lead" }, words.nodesText), parts.table.element,
    h("div", { class: "head second" }, h("h2", { class: "large" }, words.workers)), h("p", { class: "lead" }, words.workersText), parts.roles.element);
}

export function drawNodes(state, now) {
  const present = state.figures.present(now - 15 * 60_000, now);
  // Rates are those of the last minute.
  const lately = state.figures.byNode(now - 60_000, now + 60_000);
  parts.table.draw(present.map((node) => ({ ...node, key: node.name, sums: lately.get(node.name) ?? node.sums, said: nodeState(node), up: (now - Date.parse(node.data.started)) / 1000 })));
  parts.roles.draw(state.figures.leases(now).map((one) => ({ ...one, key: one.name })));
}

// Rejected events

export function rejected(state, redraw) {
  const wanted = { agency: "", reason: "", ...state.wanted };
  state.wanted = null;
  const select = (name, label) => h("label", {}, label, h("select", { name, onchange: redraw, "data-wanted": wanted[name] }));
  const form = h("form", { class: "filters", onsubmit: (event) => event.preventDefault(), onreset: () => setTimeout(redraw) },
    select("agency", words.agency), select("reason", words.reason), h("div", { class: "buttons" }, h("button", { type: "reset", class: "quiet" }, words.reset)));
  parts = {
    form, empty: h("div", { class: "empty" }), found: h("p", { class: "said", role: "status" }), more: h("div", { class: "buttons" }, button(words.more, () => void state.older(), "plain")),
    table: new Table(words.rejected, [
      { key: "time", name: words.time, cell: ({ time }) => ({ sign: time, make: () => h("time", { datetime: time }, when(time)) }) },
      { key: "agency", name: words.agency, cell: ({ data }) => (data.agency === null ? words.unknownAgency : named(data.agency)) },
      { key: "reason", name: words.reason, cell: ({ data }) => pill(`${data.status} ${words.reasons[data.reason] ?? data.reason}`, data.status >= 500 ? "bad" : "warn") },
      { key: "event", name: words.event, cell: ({ data }) => (data.id === null && data.type === null ? "–" : { sign: `${data.type} ${data.id}`, make: () => h("span", {}, h("code", {}, data.id ?? "–"), data.type && h("span", { class: "small" }, data.type)) }) },
      { key: "detail", name: words.detail, wide: true, cell: ({ data, offset }) => ({ sign: offset, make: () => wrong(data) }) },
      { key: "size", name: words.size, number: true, cell: ({ data }) => size(data.bytes) },
      { key: "node", name: words.node, cell: ({ data }) => data.node },
    ]),
  };
  return h("section", {}, h("div", { class: "head" }, h("h1", {}, words.rejected)), h("p", { class: "lead" }, words.rejectedText), form, parts.found, parts.table.element, parts.empty, parts.more);
}

function wrong({ detail, errors = [], omitted }) {
  return h("div", {}, h("p", {}, detail || "–"),
    errors.length > 0 && h("ul", { class: "faults" }, errors.map((one) => h("li", {}, h("code", {}, one.pointer || "/"), ` ${one.detail}`))),
    omitted > 0 && h("p", { class: "small" }, words.omitted(number(omitted))));
}

function offer(select, values, name) {
  const current = select.dataset.wanted ?? select.value;
  const all = values.includes(current) || !current ? values : [...values, current];
  const entries = [["", words.any], ...all.map((value) => [value, name(value)])];
  sync(select, entries.map(([value, text]) => ({ key: value, sign: text, make: () => h("option", { value }, text) })));
  if (select.dataset.wanted !== undefined) select.value = current;
  delete select.dataset.wanted;
}

export function drawRejected(state) {
  const { agency, reason } = parts.form.elements;
  if (state.wanted) {
    [agency.dataset.wanted, reason.dataset.wanted] = [state.wanted.agency, state.wanted.reason];
    state.wanted = null;
  }
  const distinct = (pick) => [...new Set(state.rejected.map(pick))].sort();
  offer(agency, distinct(({ data }) => data.agency ?? "?"), (code) => (code === "?" ? words.unknownAgency : named(code)));
  offer(reason, distinct(({ data }) => data.reason), (word) => words.reasons[word] ?? word);
  const rows = state.rejected.filter(({ data }) => (!agency.value || (data.agency ?? "?") === agency.value) && (!reason.value || data.reason === reason.value));
  const found = agency.value || reason.value ? words.found(rows.length) : "";
  if (parts.found.textContent !== found) parts.found.textContent = found;
  parts.table.draw(rows.slice(0, state.shown).map((row) => ({ ...row, key: String(row.offset) })));
  say(parts.empty, state.rejected.length === 0 ? words.noRejected : rows.length === 0 ? words.noSuchRejected : null);
  parts.more.hidden = rows.length <= state.shown && !state.next.rejected;
}

// Alerts


const titleOf = ({ title }) => title[language] ?? title.en;
/** Nothing for what is only yes or no. */
const boundOf = ({ value, bound, unit }) => (unit || bound ? words.bounded(measured(value, unit), measured(bound, unit)) : "");
const tone = ({ severity }) => (severity === "critical" ? "bad" : "warn");

const severity = (data) => h("span", { class: `pill ${tone(data)}` }, words[data.severity] ?? data.severity);

/** The first alerts that fire, in a line each; the rest is counted. */
export function drawFirst(list, state) {
  const all = firing(state.alerts);
  list.hidden = all.length === 0;
  const entries = all.slice(0, ON_TOP).map(({ data, offset }) => ({
    key: `${data.rule} ${data.subject}`, sign: String(offset),
    make: () => h("li", { class: `alert ${tone(data)}` }, severity(data), h("a", { href: "#alerts" }, titleOf(data)), h("span", {}, boundOf(data))),
  }));
  const more = all.length - entries.length;
  if (more) entries.push({ key: "more", sign: String(more), make: () => h("li", { class: "alert more" }, h("a", { href: "#alerts" }, words.moreAlerts(more))) });
  sync(list, entries);
}

/** All alerts that fire, with what they mean and what to do. */
function drawFiring(list, state) {
  const all = firing(state.alerts);
  list.hidden = all.length === 0;
  sync(list, all.map(({ data, offset }) => ({
    key: `${data.rule} ${data.subject}`, sign: String(offset),
    make: () => h("li", { class: `alert ${tone(data)}` }, h("div", { class: "over" }, severity(data), h("span", {}, `${words.since} ${when(data.since)}`)),
      h("h2", {}, titleOf(data)), h("p", {}, data.text[language] ?? data.text.en)),
  })));
}

export function alerts() {
  parts = {
    firing: h("ul", { class: "alerts" }), nothing: h("p", { class: "nothing" }, words.nothingFires), empty: h("div", { class: "empty" }),
    history: h("section", {}, h("div", { class: "head second" }, h("h2", { class: "large" }, words.alertHistory))),
    table: new Table(words.alertHistory, [
      { key: "time", name: words.time, cell: ({ time }) => ({ sign: time, make: () => h("time", { datetime: time }, when(time)) }) },
      { key: "state", name: words.state, cell: ({ data, time }) => (data.state === "firing" ? pill(words.fires, tone(data)) : {
        sign: time, make: () => h("span", {}, h("span", { class: "pill good" }, words.resolved), h("span", { class: "small" }, ` ${words.lasted(duration((Date.parse(time) - Date.parse(data.since)) / 1000))}`)),
      }) },
      { key: "rule", name: words.rule, cell: ({ data }) => titleOf(data) },
      { key: "severity", name: words.severity, cell: ({ data }) => words[data.severity] ?? data.severity },
      { key: "value", name: words.value, number: true, cell: ({ data }) => (boundOf(data) ? measured(data.value, data.unit) : "–") },
      { key: "bound", name: words.bound, number: true, cell: ({ data }) => (boundOf(data) ? measured(data.bound, data.unit) : "–") },
    ]),
  };
  parts.history.append(parts.table.element);
  return h("section", {}, h("div", { class: "head" }, h("h1", {}, words.alerts)), parts.firing, parts.nothing, parts.history, parts.empty);
}

export function drawAlerts(state) {
  const { length } = state.alerts;
  drawFiring(parts.firing, state);
  parts.nothing.hidden = !parts.firing.hidden || length === 0;
  parts.history.hidden = length === 0;
  parts.table.draw(state.alerts.slice(0, SHOWN).map((row) => ({ ...row, key: String(row.offset) })));
  say(parts.empty, length === 0 ? words.noAlerts : null);
}
