// Search for one account: its devices, its events without their data, and the way of one event through every stage.

import { put } from "./ops-chart.js";
import { pill, Table } from "./ops-parts.js";
import { duration, number, when, words } from "./ops-words.js";
import { button, h, panel, sync } from "./view.js";
import { agencyName, words as account } from "./words.js";

const ID = /^[A-Za-z0-9._-]{1,64}$/;

let parts;

/** Names and values of a form or of an answer stay in memory: an account's id is no part of the address. */
export function search(state, redraw) {
  const field = h("input", { id: "account-id", name: "account", autocomplete: "off", autocapitalize: "off", spellcheck: "false", "aria-describedby": "account-fault", value: state.search.id });
  const fault = h("p", { class: "fault", id: "account-fault", role: "alert" });
  const submit = (event) => {
    event.preventDefault();
    const id = field.value.trim();
    fault.textContent = ID.test(id) ? "" : words.idWrong;
    if (fault.textContent) return field.focus();
    void look(state, redraw, id);
  };
  parts = {
    answer: h("div", { class: "answer" }), said: h("p", { class: "said", role: "status" }),
    audits: new Table(words.audits, [
      { key: "time", name: words.time, cell: ({ time }) => ({ sign: time, make: () => h("time", { datetime: time }, when(time)) }) },
      { key: "operator", name: words.operator, cell: ({ data }) => data.operator },
      { key: "what", name: words.what, cell: ({ data }) => [words.actions[data.action] ?? data.action, data.account, data.offset !== null && `№ ${data.offset}`].filter(Boolean).join(" ") },
      { key: "client", name: words.from, cell: ({ data }) => data.client },
    ], { empty: words.noAudits }),
  };
  return h("section", {}, h("div", { class: "head" }, h("h1", {}, words.accountTitle)), h("p", { class: "lead" }, words.accountText),
    h("form", { class: "filters search", onsubmit: submit, novalidate: true }, h("label", { for: "account-id" }, words.accountId, field), h("button", { type: "submit" }, words.find), fault),
    parts.said, parts.answer, h("section", { class: "audits" }, h("h2", { class: "large" }, words.audits), parts.audits.element));
}

/** Ask for an account, or for one event of it. */
async function look(state, redraw, id, offset = null) {
  const asked = { id, offset };
  state.search = { ...asked, loading: true, found: state.search.id === id ? state.search.found : null };
  redraw();
  const path = `/v1/ops/accounts/${encodeURIComponent(id)}`;
  const answer = await state.ask(offset === null ? path : `${path}/events/${offset}`).then((found) => ({ found }), (error) => ({ status: error.status ?? 0 }));
  if (state.search.id !== id || state.search.offset !== offset) return; // asked for another one meanwhile
  const before = offset === null ? null : state.search.found;
  state.search = offset === null ? { ...asked, ...answer } : { ...asked, found: before, event: answer.found, status: answer.status };
  redraw();
}

export function drawSearch(state, redraw) {
  const { id, offset, loading, found, event, status } = state.search;
  put(parts.said, loading ? words.searching : "");
  parts.answer.setAttribute("aria-busy", String(Boolean(loading)));
  parts.audits.draw(state.audits.slice(0, 20).map((row) => ({ ...row, key: String(row.offset) })));
  if (loading) return;
  const back = () => { state.search = { id, offset: null, found }; redraw(); };
  const again = () => void look(state, redraw, id, offset);
  const failed = (unknown, ...ways) => (status === 404 ? panel(unknown, ...ways) : panel(words.searchFailed, button(words.retry, again)));
  const sign = `${id} ${offset} ${status} ${JSON.stringify(event ?? found)}`;
  let make = () => h("div");
  if (offset !== null && event) make = () => way(event, found, back);
  else if (offset !== null) make = () => failed(words.unknownEvent(offset), button(words.back, back, "plain"));
  else if (found) make = () => whole(found, (number) => void look(state, redraw, id, number));
  else if (status !== undefined) make = () => failed(words.unknown(id), button(words.another, () => parts.answer.parentElement.querySelector("input").select(), "plain"));
  const known = parts.answer.firstElementChild?.dataset.sign;
  sync(parts.answer, [{ key: "answer", sign, make }]);
  if (known !== undefined && known !== sign) parts.answer.querySelector("h2, h1")?.focus();
}

const block = (title, ...children) => h("section", { class: "block card" }, h("h2", { tabindex: "-1" }, title), ...children);

function whole({ account: id, feed, devices, events, sessions_here: here }, open) {
  const table = new Table(words.events, [
    { key: "offset", name: words.offset, cell: ({ offset }) => String(offset) },
    { key: "type", name: words.type, cell: ({ type, erased }) => (erased || !type ? words.erased : { sign: type, make: () => h("span", {}, account.types[type] ?? type, h("span", { class: "small" }, type)) }) },
    { key: "source", name: words.source, cell: ({ source }) => (source ? agencyName(source.replace("/agencies/", "")) : "–") },
    { key: "priority", name: words.priority, cell: ({ priority }) => words.priorities[priority] ?? priority ?? "–" },
    { key: "recorded", name: words.recorded, cell: ({ recorded }) => (recorded ? when(recorded) : "–") },
    { key: "delivered", name: words.delivered, cell: ({ delivered }) => (delivered ? when(delivered) : pill(words.stageWaits, "warn")) },
    { key: "seen", name: words.seen, cell: ({ seen }) => (seen ? when(seen) : "–") },
    { key: "open", name: words.open, cell: ({ offset }) => ({ sign: offset, make: () => h("button", { type: "button", class: "plain small-button", "aria-label": words.openOf(offset), "data-focus": "open", onclick: () => open(offset) }, words.open) }) },
  ], { empty: words.noEvents });
  table.draw(events.map((event) => ({ ...event, key: String(event.offset) })));
  return h("div", {},
    block(id, h("p", { class: "small" }, `${words.feedLine(feed.oldest, feed.head)} · ${words.epoch} ${feed.epoch}`)),
    block(words.devices, devices.length ? h("ul", { class: "devices" }, devices.map((one) => device(one, here))) : h("p", { class: "small" }, words.noDevices)),
    block(words.events, table.element));
}

/** `here` are the sessions of the node that answered. */
function device({ device: id, agent, created, last_seen: seen, connected, positions }, here) {
  const session = here.find((one) => one.device === id);
  return h("li", {}, h("h3", {}, h("code", {}, id), h("span", { class: `pill ${connected ? "good" : "calm"}` }, connected ? words.connected : words.notConnected)),
    h("p", { class: "small" }, [agent, `${words.created}: ${when(created)}`, !connected && `${words.lastSeen}: ${when(seen)}`].filter(Boolean).join(" · ")),
    session && h("p", { class: "small" }, `${words.session} ${session.session} · ${words.modes[session.mode] ?? session.mode}`, session.stalled && h("span", { class: "behind" }, ` · ${words.stalledNow.toLowerCase()}`)),
    h("dl", { class: "fields" }, positions.map((one) => [h("dt", {}, one.feed), h("dd", {}, `${number(one.offset)} · `, h("span", { class: one.behind ? "behind" : "" }, one.behind ? words.behindBy(number(one.behind)) : words.upToDate))])));
}

/** The stages with their times, and between each and the known one before it how long it took. */
function way({ offset, id, source, type, priority, erased, stages, devices }, found, back) {
  const known = stages.filter(({ time }) => time !== null).map(({ time }) => Date.parse(time));
  let before = null;
  const items = stages.map(({ stage, time, done }) => {
    const at = time === null ? null : Date.parse(time);
    // Acks are stored a moment after they came, and an agency's clock is its own: what seems to go back says nothing.
    const took = at !== null && before !== null && at >= before && h("span", { class: "took" }, `+${duration((at - before) / 1000)}`);
    before = at ?? before;
    const said = at !== null ? h("time", { datetime: time }, when(time, true)) : h("span", {}, done ? words.stageUnknown : words.stageWaits);
    return h("li", { class: done ? "done" : "open" }, h("h3", {}, words.stages[stage] ?? stage), h("p", {}, said, took));
  });
  const tones = { acknowledged: "good", written: "busy", waiting: "warn", away: "calm" };
  const all = known.length > 1 ? words.whole(duration((Math.max(...known) - Math.min(...known)) / 1000)) : "";
  return h("div", {}, h("div", { class: "buttons" }, button(`← ${words.back}`, back, "plain")),
    block(words.way(offset), h("p", { class: "small" }, [erased ? words.erased : account.types[type] ?? type, source && agencyName(source.replace("/agencies/", "")), words.priorities[priority], id && `id ${id}`].filter(Boolean).join(" · ")),
      h("ol", { class: "stages" }, items), all && h("p", {}, h("strong", {}, all))),
    block(words.devices, devices.length ? h("ul", { class: "devices" }, devices.map((one) => h("li", {}, h("h3", {}, h("code", {}, one.device), h("span", { class: `pill ${tones[one.state] ?? "calm"}` }, words.deviceStates[one.state] ?? one.state)), one.time && h("p", { class: "small" }, when(one.time, true))))) : h("p", { class: "small" }, words.noDevices)));
}
