// The account page: what is kept on this device, shown, and kept up to date by `vestnik-client`.

import { accountOf, Vestnik } from "./vestnik-client.js";
import { card, line, SECTIONS, sectionOf, tone } from "./items.js";
import { button, h, icon, panel, place, sync } from "./view.js";
import { agencyName, language, moment, statusName, switchLanguage, words } from "./words.js";

const FEEDS = ["agency:mchs"]; // for who never chose: emergencies are for everybody
const VIEWS = ["applications", "sections", "feed", "history", "devices"];
const SEEN_AFTER_MS = 1500;
const NEW_TOKEN_S = 120; // a sample token that ends sooner is replaced before it is used

const at = (id) => document.getElementById(id);
const main = at("main");

let client = null;
let account = "";
let snapshot = null;
let rows = [];
let known = false; // was something shown since the sign-in?
let notes = {}; // what became of «Обновить данные», by section
let found = null; // history: {rows, next, query}
let devices = null;
let samples = [];
let fault = ""; // why the sign-in page is shown
let retryAt = 0;
let away = false; // from a lost connection until the next one
let unread = new Set(); // offsets that were new when the feed was opened: they stay marked while it is open
let agencies = []; // that publish notices: {code, feed}
let following = []; // feeds of agencies
let asked = new Map(); // «Обновить данные» without an answer yet: ref → source
let stale = false; // the gateway refused the token, whatever our clock says

// Signing in. The token is shared by all tabs.

const SIGN_OUT_MS = 5000; // so long the gateway has to forget this device, before the page does without

/** What this browser keeps under a name, or null when that is nothing to read. */
function remembered(name) {
  try {
    return JSON.parse(localStorage.getItem(name));
  } catch {
    return null;
  }
}

const signedIn = () => remembered("account");

function ends(token) {
  try {
    return JSON.parse(atob(token.split(".")[1].replace(/-/g, "+").replace(/_/g, "/"))).exp;
  } catch {
    return Infinity;
  }
}

async function token() {
  const kept = signedIn();
  if (!kept) return "";
  if (!kept.sample || (!stale && ends(kept.token) - Date.now() / 1000 > NEW_TOKEN_S)) return kept.token;
  try {
    await loadSamples();
    stale = false;
    const fresh = samples.find((one) => one.account === account);
    if (fresh) localStorage.setItem("account", JSON.stringify({ ...kept, token: fresh.token }));
    return fresh?.token ?? kept.token;
  } catch {
    return kept.token;
  }
}

async function loadSamples() {
  samples = (await (await fetch("/demo")).json()).accounts;
}

async function signIn(given, sample) {
  fault = "";
  localStorage.setItem("account", JSON.stringify({ token: given, sample }));
  await begin();
}

async function begin() {
  const kept = signedIn();
  await client?.stop();
  client = null;
  [snapshot, rows, known, notes, found, devices, unread, away] = [null, [], false, {}, null, null, new Set(), false];
  [agencies, following, asked, stale] = [[], [], new Map(), false];
  if (!kept) {
    account = "";
    await loadSamples().catch(() => { samples = []; });
    return draw();
  }
  account = accountOf(kept.token);
  following = chosen();
  client = new Vestnik({ token, feeds: following, agent: "vestnik-account/1.0" });
  let before = "";
  client.on("state", (state) => {
    if (state.name === "live" && before !== "live") askAgain();
    before = state.name;
    stale ||= state.code === 4401;
    retryAt = state.wait ? Date.now() + state.wait * 1000 : 0;
    away = state.name === "waiting" || state.name === "offline" || (away && state.name === "connecting");
    // Signed out from elsewhere: nothing of the person stays here.
    if (state.name === "stopped" && state.code === 4410) void client?.keeper.clear().catch(() => {});
    if (state.name === "live" && current().view === "devices") void loadDevices();
    if (state.name === "live" && !agencies.length && ["feed", "history"].includes(current().view)) void loadAgencies();
    draw();
  });
  client.on("events", ({ feed, events }) => void arrived(feed, events));
  client.on("snapshot", () => void reload());
  client.on("seen", () => void reload());
  client.on("message", heard);
  draw();
  await client.start();
  await reload();
}

async function leave() {
  const [going, device, given] = [client, await client.keeper.device().catch(() => ""), await token()];
  client = null;
  localStorage.removeItem("account");
  await going.stop();
  await ask(`/v1/devices/${device}`, { method: "DELETE", signal: AbortSignal.timeout(SIGN_OUT_MS) }, given).catch(() => {});
  await going.keeper.clear().catch(() => {});
  await begin();
}

/** The gateway over HTTP, as the account. Throws for every answer that is no good one. */
async function ask(path, options = {}, given) {
  const answer = await fetch(path, { ...options, headers: { ...options.headers, authorization: `Bearer ${given ?? (await token())}` } });
  if (!answer.ok) throw new Error(String(answer.status));
  return answer;
}

// What comes

let reloading = null;
let again = false;

/** Show what is kept. However much comes meanwhile, it is read once more after that. */
async function reload() {
  again = true;
  reloading ??= (async () => {
    while (again && client) {
      again = false;
      const { keeper } = client;
      const kept = await Promise.all([keeper.snapshot(), keeper.recent(200)]).catch(() => null);
      if (!kept || client?.keeper !== keeper) continue;
      [snapshot, rows] = kept;
      draw();
    }
  })().finally(() => { reloading = null; });
  await reloading;
}

async function arrived(feed, events) {
  await reload();
  const [, event] = events.at(-1);
  const said = line(event);
  at("announce").textContent = [said.agency, said.label, said.status && statusName(said.status, said.type)].filter(Boolean).join(", ");
}

function heard(message) {
  if (message.t === "error" && following.includes(message.feed)) return refused(message);
  if (message.t !== "refresh") return;
  if (message.status !== "accepted") asked.delete(message.ref);
  const text = message.status === "failed" ? (message.reason === "unsupported" ? words.unsupported : words.failed)
    : message.status === "cooldown" ? words.cooldown(Math.ceil(message.retry_after ?? 60)) : words[message.status];
  notes[sectionOf(message.source)] = text ?? "";
  draw();
}

// Drawing

function current() {
  const [view, sub] = location.hash.slice(1).split("/");
  return { view: VIEWS.includes(view) ? view : "applications", sub };
}

function draw() {
  const state = client?.state ?? { name: "none" };
  const { view } = current();
  document.documentElement.lang = language;
  document.documentElement.dataset.state = state.name;
  document.documentElement.dataset.leading = String(client?.leading ?? false);
  at("skip").textContent = words.skip;
  at("brand").textContent = words.title;
  at("language").textContent = words.language;
  at("language").lang = language === "ru" ? "en" : "ru";
  at("leave").textContent = words.leave;
  at("who").textContent = account;
  at("link-text").textContent = words[state.name] ?? "";
  for (const id of ["link", "leave", "who"]) at(id).hidden = !client;
  document.title = client ? `${words[view]} · ${words.title}` : `${words.signIn} · ${words.title}`;
  const stopped = state.name === "stopped";
  const whole = !client || stopped || (!snapshot && !known);
  known ||= Boolean(snapshot);
  drawNotice(state, whole);
  at("nav").hidden = whole;
  at("frame").classList.toggle("alone", whole);
  if (!client) show("sign", drawSignIn);
  else if (stopped) show(`stopped ${state.code}`, () => drawStopped(state));
  else if (whole) show(`away ${away}`, () => drawAway(state));
  else {
    drawNav(view);
    DRAW[view]();
  }
}

/** A view that is made once and stays until another one is shown. */
const show = (name, make) => place(main, `${name} ${language}`, make);

function drawNotice(state, whole) {
  const notice = at("notice");
  notice.hidden = whole || !away;
  if (notice.hidden) return notice.replaceChildren();
  const seconds = Math.max(1, Math.ceil((retryAt - Date.now()) / 1000));
  const next = state.name === "connecting" ? `${words.connecting}…` : words.again(seconds);
  const text = state.name === "offline" ? words.offlineText : `${words.waitingText} ${next}`;
  if (!notice.firstChild || notice.dataset.language !== language) {
    notice.dataset.language = language;
    notice.replaceChildren(h("p"), h("button", { type: "button", onclick: () => client.retry() }, words.retry));
  }
  if (notice.firstChild.textContent !== text) notice.firstChild.textContent = text;
}

/** What is kept of one's own feed and of those that are followed. */
const recent = () => rows.filter(({ feed }) => feed.startsWith("account:") || following.includes(feed));
const unseen = () => recent().filter((row) => !row.seen && row.event).length;

function drawNav(view) {
  at("nav").setAttribute("aria-label", words.nav);
  let list = at("nav").firstElementChild;
  if (!list) at("nav").append((list = h("ul")));
  sync(list, VIEWS.map((name) => {
    const count = name === "feed" ? unseen() : 0;
    const here = name === view;
    return {
      key: name, sign: `${language} ${count} ${here}`,
      make: () => h("li", {}, h("a", { href: `#${name}`, "aria-current": here && "page", "data-focus": name }, icon(name), h("span", {}, words[name]),
        count > 0 && h("span", { class: "count" }, String(count), h("span", { class: "unseen" }, ` ${words.unread}`)))),
    };
  }));
}

// Page states

function drawStopped({ code }) {
  const again = button(words.signInAgain, () => { localStorage.removeItem("account"); void begin(); });
  if (code === 4409) return panel(words[4409], button(words.here, () => client.retry()));
  if (code === 4426) return panel(words[4426], button(words.reload, () => location.reload()));
  if (code === 4403) return panel(words[4403], button(words.retry, () => client.retry()), again);
  return panel(words[code] ?? words.else, again);
}

function drawAway({ name }) {
  if (away) return panel([words.awayTitle, name === "offline" ? words.offlineText : words.awayText], button(words.retry, () => client.retry()));
  return h("section", { class: "state" }, h("h1", {}, words.account), h("p", { role: "status" }, words.loading));
}

function drawSignIn() {
  const field = h("textarea", { id: "token", name: "token", autocomplete: "off", spellcheck: "false", "aria-describedby": "fault" });
  const problem = h("p", { class: "fault", id: "fault", role: "alert" }, fault);
  const submit = (event) => {
    event.preventDefault();
    const given = field.value.trim();
    problem.textContent = !given ? words.tokenEmpty : given.split(".").length !== 3 ? words.tokenWrong : "";
    if (problem.textContent) return field.focus();
    void signIn(given, false);
  };
  return h("section", { class: "sign" },
    h("div", {}, h("h1", {}, words.account), h("p", { class: "small" }, samples.length ? words.signInText : [`${words.signInToken} `, h("code", {}, "vestnik token anna")])),
    samples.length > 0 && h("div", { class: "people", role: "group", "aria-label": words.samples },
      samples.map((one) => button(one.account, () => void signIn(one.token, true)))),
    h("form", { onsubmit: submit, novalidate: true }, h("label", { for: "token" }, words.token, field), problem, h("button", { type: "submit", class: samples.length ? "plain" : null }, words.enter)));
}

// Cards

const pill = ({ status, type }) => status && h("span", { class: `pill ${tone(status)}` }, statusName(status, type));

function makeCard(item) {
  const said = card(item);
  return h("li", { class: "card" },
    h("div", { class: "over" }, h("span", {}, agencyName(said.agency)), said.number && h("span", {}, `${words.number} ${said.number}`)),
    h("h2", {}, said.title), pill(said), said.sum && h("p", { class: "sum" }, said.sum),
    said.text && h("p", {}, said.text),
    said.url && h("p", {}, h("a", { href: said.url, rel: "noreferrer", target: "_blank" }, said.url)),
    said.lines.length > 0 && h("dl", { class: "fields" }, said.lines.map(([name, value]) => [h("dt", {}, name), h("dd", {}, typeof value === "string" ? value : JSON.stringify(value))])),
    said.why && h("p", { class: `why ${tone(said.status) === "bad" ? "bad" : tone(said.status) === "calm" ? "calm" : ""}` }, said.why),
    said.deadline && h("p", { class: "small" }, `${words.deadline}: `, h("strong", {}, moment(said.deadline))),
    h("p", { class: "foot" }, `${words.updated}: `, h("time", { datetime: said.updated }, moment(said.updated))));
}

function cards(list, items, empty) {
  const entries = [...items].sort((a, b) => b.offset - a.offset).map((item) => ({
    key: [item.agency, item.application ?? item.subject ?? item.registry ?? item.offset, item.key ?? ""].join(" "),
    sign: `${item.offset} ${language}`, make: () => makeCard(item),
  }));
  sync(list, entries.length ? entries : [{ key: "empty", sign: language, make: () => h("li", { class: "empty" }, h("h2", {}, empty[0]), h("p", {}, empty[1])) }]);
}

function drawApplications() {
  const view = show("applications", () => h("section", {}, h("div", { class: "head" }, h("h1", {}, words.applications)), h("ul", { class: "cards" })));
  cards(view.lastChild, snapshot.applications, words.noApplications);
}

/** A notice past its end shows no more. A day lasts until it is over. */
function lasts({ until, expirytime }) {
  const ends = (text) => Date.parse(text) + (text.length === 10 ? 86_400_000 : 0);
  return [until, expirytime].every((text) => !text || !(ends(text) <= Date.now()));
}

function drawSections() {
  const wanted = current().sub;
  const items = [...snapshot.applications, ...snapshot.records, ...snapshot.notices.filter(lasts)];
  const names = [...Object.keys(SECTIONS), ...(items.some((item) => sectionOf(item.agency) === "other") ? ["other"] : [])];
  const name = names.includes(wanted) ? wanted : names[0];
  const view = show(`section ${name} ${names.length}`, () => h("section", {},
    h("div", { class: "head" }, h("h1", {}, words[name]), SECTIONS[name] && h("button", { type: "button", class: "plain", id: "refresh", "aria-label": words.refreshOf(words[name]), onclick: () => refresh(name) }, words.refresh)),
    h("div", { class: "subs", role: "navigation", "aria-label": words.sections }, names.map((one) => h("a", { href: `#sections/${one}`, "aria-current": one === name && "page" }, words[one]))),
    h("p", { class: "lead" }), h("p", { class: "said", role: "status" }), h("ul", { class: "cards" })));
  const own = (snapshot.agencies ?? []).filter(({ code }) => sectionOf(code) === name);
  const updated = own.map((one) => one.updated).sort().at(-1);
  const next = own.map((one) => one.next).filter(Boolean).sort()[0];
  const times = [updated && `${words.lastUpdate}: ${moment(updated)}`, next && `${words.nextUpdate}: ${moment(next)}`];
  view.querySelector(".lead").textContent = times.filter(Boolean).join(". ");
  const said = view.querySelector(".said");
  if (said.textContent !== (notes[name] ?? "")) said.textContent = notes[name] ?? "";
  cards(view.lastChild, items.filter((item) => sectionOf(item.agency) === name), words.noItems);
}

function refresh(name) {
  const up = client.state.name === "live";
  notes[name] = up ? words.refreshAsked : words.noLink;
  for (const source of SECTIONS[name]) {
    const ref = `${Date.now()}-${Math.random()}`;
    asked.set(ref, source);
    if (up) client.send("refresh", { source, ref });
  }
  draw();
}

/** What was asked while there was no connection, or got lost with one. With the same `ref` it is asked once. */
function askAgain() {
  for (const [ref, source] of asked) {
    notes[sectionOf(source)] = words.refreshAsked;
    client.send("refresh", { source, ref });
  }
}

// Which agencies to follow. Kept in this browser, for each account.

const choices = () => `feeds ${account}`;
const chosen = () => remembered(choices()) ?? [...FEEDS];

async function loadAgencies() {
  try {
    agencies = await (await ask("/v1/agencies")).json();
  } catch {
    return; // when the gateway is there again, it is asked again
  }
  draw();
}

function follow(feed, on) {
  following = following.filter((one) => one !== feed);
  if (on) following.push(feed);
  localStorage.setItem(choices(), JSON.stringify(following));
  if (on) client.subscribe(feed);
  else client.unsubscribe(feed);
  at("announce").textContent = (on ? words.followed : words.unfollowed)(nameOfFeed(feed));
  draw();
}

/** The gateway has no such agency now, or it would be one feed too many. */
function refused({ feed, code }) {
  following = following.filter((one) => one !== feed);
  at("announce").textContent = code === "limit" ? words.tooMany : "";
  draw();
}

const nameOfFeed = (feed) => agencyName(feed.replace("agency:", ""));

function makeChoice() {
  return h("details", { class: "follow" }, h("summary", {}),
    h("fieldset", {}, h("legend", {}, words.noticesText), h("ul", { class: "checks" })));
}

function drawChoice(view) {
  const names = following.map(nameOfFeed).join(", ");
  view.querySelector("summary").textContent = `${words.notices}: ${names || words.nobody}`;
  const feeds = [...new Set([...agencies.map(({ feed }) => feed), ...following])];
  sync(view.querySelector(".checks"), feeds.sort((a, b) => nameOfFeed(a).localeCompare(nameOfFeed(b))).map((feed) => {
    const on = following.includes(feed);
    return {
      key: feed, sign: `${on}`, make: () => h("li", {}, h("label", {},
        h("input", { type: "checkbox", checked: on, "data-focus": feed, onchange: ({ target }) => follow(feed, target.checked) }), nameOfFeed(feed))),
    };
  }));
}

// Events

/** `fresh`: marked as unread, or null where nothing is marked. */
function makeRow(offset, event, fresh) {
  const said = line(event);
  const when = event?.recordedtime ?? event?.time;
  return h("li", { class: `row${fresh === null ? " plain" : fresh ? " unread" : ""}${said.urgent ? " urgent" : ""}`, "data-offset": offset },
    fresh !== null && h("span", { class: "mark" }, fresh && h("span", { class: "unseen" }, words.unread)),
    h("div", {}, h("h2", {}, said.label), h("p", {}, [said.agency, said.text].filter(Boolean).join(" · ")), pill(said)),
    when && h("time", { datetime: when }, moment(when)));
}

function drawFeed() {
  const view = show("feed", () => {
    unread = new Set();
    void loadAgencies();
    return h("section", {}, h("div", { class: "head" }, h("h1", {}, words.feed), button(words.readAll, () => void readAll(), "quiet")), makeChoice(), h("ul", { class: "list" }));
  });
  drawChoice(view);
  const shown = recent().slice(0, 100);
  for (const row of shown) if (!row.seen) unread.add(`${row.feed} ${row.offset}`);
  const fresh = (row) => unread.has(`${row.feed} ${row.offset}`) && row.event !== null;
  const entries = shown.map((row) => ({ key: `${row.feed} ${row.offset}`, sign: `${language} ${row.event === null} ${fresh(row)}`, make: () => makeRow(row.offset, row.event, fresh(row)) }));
  sync(view.lastChild, entries.length ? entries : [{ key: "empty", sign: language, make: () => h("li", { class: "empty" }, h("h2", {}, words.noEvents[0]), h("p", {}, words.noEvents[1])) }]);
  view.querySelector("button").disabled = !shown.some(fresh);
  view.querySelector("button").textContent = shown.some(fresh) ? words.readAll : words.allRead;
  lookLater();
}

let looking = 0;

/** What stood on the screen for a moment was seen. */
function lookLater() {
  clearTimeout(looking);
  looking = setTimeout(() => {
    if (document.hidden || current().view !== "feed") return;
    const visible = [...main.querySelectorAll(".row")].filter((row) => {
      const { top, bottom } = row.getBoundingClientRect();
      return top >= 0 && bottom <= innerHeight;
    }).map((row) => row.dataset.key);
    void seen(rows.filter((row) => !row.seen && visible.includes(`${row.feed} ${row.offset}`)));
  }, SEEN_AFTER_MS);
}

async function seen(shown) {
  const feeds = Map.groupBy ? Map.groupBy(shown, (row) => row.feed) : shown.reduce((all, row) => all.set(row.feed, [...(all.get(row.feed) ?? []), row]), new Map());
  for (const [feed, some] of feeds) await client?.seen(feed, some.map((row) => row.offset));
}

async function readAll() {
  await seen(recent().filter((row) => !row.seen));
  unread = new Set();
  draw();
}

// History

const TYPES = ["gov.status.changed", "gov.record.changed", "gov.fine.changed", "gov.payout.changed", "gov.notice.sent", "gov.court.decided"];
const PUBLIC = ["gov.notice.published", "gov.emergency.published", "gov.news.published"];
const STATUSES = ["processing", "checking", "awaiting_confirmation", "action_required", "approved", "rejected", "done", "cancelled"];

function drawHistory() {
  const view = show("history", () => {
    const choose = (name, label, any, options, names) => h("label", {}, label, h("select", { name }, h("option", { value: "" }, any), options.map((one) => h("option", { value: one }, names[one]))));
    const form = h("form", { class: "filters", onsubmit: (event) => { event.preventDefault(); void find(form); }, onreset: () => setTimeout(() => find(form)) },
      h("label", {}, words.whose, h("select", { name: "feed" })),
      choose("type", words.type, words.any, [...TYPES, ...PUBLIC], words.types), choose("status", words.status, words.anyStatus, STATUSES, words.statuses),
      h("label", {}, words.from, h("input", { type: "date", name: "from" })), h("label", {}, words.to, h("input", { type: "date", name: "to" })),
      h("div", { class: "buttons" }, h("button", { type: "submit" }, words.apply), h("button", { type: "reset", class: "quiet" }, words.reset)));
    setTimeout(() => find(form));
    void loadAgencies();
    return h("section", {}, h("div", { class: "head" }, h("h1", {}, words.history), button(words.csv, () => void download(form), "plain")), form, h("p", { class: "said", role: "status" }), h("ul", { class: "list" }), h("div", { class: "buttons" }));
  });
  sync(view.querySelector("[name=feed]"), [`account:${account}`, ...agencies.map(({ feed }) => feed)].map((feed) => (
    { key: feed, sign: "", make: () => h("option", { value: feed }, feed.startsWith("account:") ? words.mine : nameOfFeed(feed)) })));
  if (!found) return;
  const list = view.querySelector(".list");
  view.querySelector(".said").textContent = found.failed ? words.historyNeeds : "";
  const entries = found.rows.map(([offset, event]) => ({ key: `${found.feed} ${offset}`, sign: language, make: () => makeRow(offset, event, null) }));
  sync(list, entries.length || found.failed ? entries : [{ key: "empty", sign: language, make: () => h("li", { class: "empty" }, h("h2", {}, words.noHistory[0]), h("p", {}, words.noHistory[1])) }]);
  delete list.dataset.settled;
  view.lastChild.replaceChildren(...(found.next ? [button(words.more, () => void find(view.querySelector("form"), found.next), "plain")] : []));
}

function query(form) {
  const given = new URLSearchParams();
  for (const [name, value] of new FormData(form)) {
    if (!value || name === "feed") continue;
    const day = new Date(`${value}T00:00:00`);
    if (name === "to") day.setDate(day.getDate() + 1);
    given.set(name, name === "from" || name === "to" ? day.toISOString() : value);
  }
  return given;
}

const historyPath = (form, given) => `/v1/feeds/${form.elements.feed.value || `account:${account}`}/events?${given}`;

async function find(form, page) {
  // A further page is one of what was found, whatever the form says by now.
  const path = page ? found.path : historyPath(form, query(form));
  try {
    const answer = await (await ask(`${path}&limit=50${page ? `&page=${encodeURIComponent(page)}` : ""}`)).json();
    found = { path, feed: answer.feed, rows: page ? [...found.rows, ...answer.events] : answer.events, next: answer.next };
  } catch {
    found = { ...found, rows: found?.rows ?? [], next: null, failed: true };
  }
  if (current().view === "history") draw();
}

async function download(form) {
  try {
    const file = await (await ask(historyPath(form, query(form)), { headers: { accept: "text/csv" } })).blob();
    const link = h("a", { href: URL.createObjectURL(file), download: `vestnik-${account}.csv` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  } catch {
    found = { ...(found ?? { rows: [], next: null }), failed: true };
    draw();
  }
}

// Devices

async function loadDevices() {
  const own = await client.keeper.device();
  try {
    devices = { own, list: await (await ask("/v1/devices")).json() };
  } catch {
    devices = { own, list: devices?.list ?? [], failed: true };
  }
  if (current().view === "devices") draw();
}

function drawDevices() {
  const view = show("devices", () => {
    void loadDevices();
    return h("section", {}, h("div", { class: "head" }, h("h1", {}, words.devices), button(words.endAll, () => void endAll(), "danger")),
      h("p", { class: "lead" }, words.devicesText), h("p", { class: "said", role: "status" }), h("ul", { class: "list" }), h("p", { class: "small", id: "tabs" }));
  });
  view.lastChild.textContent = client.leading ? words.leads : words.follows;
  if (!devices) return;
  view.querySelector(".said").textContent = devices.failed ? words.historyNeeds : "";
  sync(view.querySelector(".list"), [...devices.list].sort((a, b) => (b.device === devices.own) - (a.device === devices.own)).map((one) => {
    const own = one.device === devices.own;
    const connected = one.connected || (own && client.state.name === "live");
    const name = `${nameOf(one.agent)} ${one.device.slice(0, 8)}`;
    return {
      key: one.device, sign: JSON.stringify([one.last_seen, connected, language]), make: () => h("li", { class: "card device" },
        h("div", {}, h("h2", {}, name, own && h("span", { class: "pill busy" }, words.thisDevice), connected && h("span", { class: "pill good" }, words.connected)),
          h("p", { class: "small" }, `${words.since}: ${moment(one.created)}. ${connected ? "" : `${words.lastSeen}: ${moment(one.last_seen)}.`}`)),
        h("button", { type: "button", class: "danger", "aria-label": words.endOf(name), onclick: () => void endDevice(one.device) }, words.end)),
    };
  }));
}

const nameOf = (agent) => (!agent || agent.startsWith("vestnik-account") ? words.browser : agent);

async function endDevice(device) {
  if (device === devices.own) return leave();
  await ask(`/v1/devices/${device}`, { method: "DELETE" }).catch(() => { devices.failed = true; });
  await loadDevices();
  at("announce").textContent = words.ended;
}

async function endAll() {
  if (!confirm(`${words.endAll}? ${words.endAllText}`)) return;
  await ask("/v1/sessions", { method: "DELETE" }).catch(() => { devices.failed = true; });
  draw();
}

const DRAW = { applications: drawApplications, sections: drawSections, feed: drawFeed, history: drawHistory, devices: drawDevices };

// The page

addEventListener("hashchange", () => {
  draw();
  if (current().sub === undefined) {
    main.focus({ preventScroll: true });
    scrollTo(0, 0);
  }
});
addEventListener("storage", ({ key }) => {
  // Another tab signed in or out.
  if (key === "account" && (signedIn() === null || accountOf(signedIn().token) !== account)) void begin();
  if (client && key === choices()) {
    following = chosen();
    draw();
  }
});
addEventListener("scroll", () => current().view === "feed" && lookLater(), { passive: true });
document.addEventListener("visibilitychange", () => current().view === "feed" && lookLater());
at("language").addEventListener("click", () => {
  switchLanguage();
  notes = {};
  draw();
});
at("leave").addEventListener("click", () => void leave());
setInterval(() => { if (client && !at("notice").hidden) draw(); }, 1000);

await begin();
