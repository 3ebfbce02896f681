// The operator's page: the figures of the past minutes over HTTP, then everything live by the gateway's own socket.

import { accountOf, MemoryKeeper, Vestnik } from "./vestnik-client.js";
import { drawSearch, search } from "./ops-account.js";
import { Figures, firing } from "./ops-figures.js";
import { agencies, alerts, drawAgencies, drawAlerts, drawFirst, drawNodes, drawRejected, nodes, rejected } from "./ops-lists.js";
import { drawOverview, overview } from "./ops-overview.js";
import { choice } from "./ops-parts.js";
import { changeLanguage, language, words } from "./ops-words.js";
import { button, h, icon, panel, place, sync } from "./view.js";

const LISTS = ["rejected", "alerts", "audit"];
const FEEDS = ["figures", ...LISTS].map((name) => `ops:${name}`);
const VIEWS = ["overview", "agencies", "nodes", "rejected", "alerts", "account"];
const MINUTES = [5, 15, 60];
const KEPT_ROWS = 2000; // of each list
const SHOWN = 100; // rows of a list, until more are asked for
const DRAW_MS = 1000;
const SKEW_MS = 3000; // this clock and the gateway's may differ by so much
const NEW_TOKEN_S = 120; // a sample token that ends sooner is replaced before it is used
const AGAIN_MS = [1000, 2000, 5000, 10_000]; // a gateway that is away at the start

const at = (id) => document.getElementById(id);
const main = at("main");

let client = null;
let sample = null; // {account, token} of a demonstration
let fault = null; // why there is nothing to show: "away", "refused", "unscoped", or a status
let tries = 0;
let trying = 0;
let retryAt = 0;
let away = false; // from a lost connection until the next one
let round = 0; // what was begun before is not shown any more
let skew = 0; // ms
let period = 15; // minutes
let state = fresh();

function fresh() {
  return {
    figures: new Figures(), rejected: [], alerts: [], audits: [], next: {}, positions: {}, minutes: period,
    since: 0, first: 0, loaded: false, filling: false, shown: SHOWN, wanted: null, search: { id: "", offset: null }, ask, older,
  };
}

// Signing in. An operator's token stays in its tab, and goes with it.

const signedIn = () => JSON.parse(sessionStorage.getItem("operator") ?? "null");

function claims(token) {
  try {
    return JSON.parse(atob(token.split(".")[1].replace(/-/g, "+").replace(/_/g, "/")));
  } catch {
    return {};
  }
}

async function token() {
  const kept = signedIn();
  if (!kept) return "";
  if (!kept.sample || (claims(kept.token).exp ?? Infinity) - Date.now() / 1000 > NEW_TOKEN_S) return kept.token;
  await loadSample();
  if (sample) sessionStorage.setItem("operator", JSON.stringify({ token: sample.token, sample: true }));
  return sample?.token ?? kept.token;
}

async function loadSample() {
  sample = await fetch("/demo").then((answer) => answer.json()).then(({ operator }) => operator ?? null, () => null);
}

function signIn(given, isSample) {
  sessionStorage.setItem("operator", JSON.stringify({ token: given, sample: isSample }));
  return begin();
}

async function leave() {
  const [going, device, given] = [client, sessionStorage.getItem("device"), await token()];
  client = null;
  sessionStorage.clear();
  await going?.stop();
  if (device) await fetch(`/v1/devices/${device}`, { method: "DELETE", headers: { authorization: `Bearer ${given}` } }).catch(() => {});
  await begin();
}

// What comes

class Failed extends Error {
  constructor(status) {
    super(String(status));
    this.status = status;
  }
}

/** The gateway over HTTP. Throws Failed, or TypeError when it is away. */
async function ask(path) {
  const answer = await fetch(path, { headers: { authorization: `Bearer ${await token()}` } });
  if (!answer.ok) throw new Failed(answer.status);
  const time = Date.parse(answer.headers.get("date"));
  if (!(Math.abs(time - now()) < SKEW_MS)) skew = time - Date.now() || 0;
  return answer.json();
}

const page = (name, query) => ask(`/v1/feeds/ops:${name}/events?${new URLSearchParams(query)}`);

/** The gateway's time: all times on the page are its own. */
const now = () => Date.now() + skew;

/** Keeps how far everything came; the events are in `state`, and are loaded anew with the page. */
class Positions extends MemoryKeeper {
  keep(feed, position) {
    return super.keep(feed, position, []);
  }
}

/** Load everything anew and follow it. What is the matter stays on the page until it `again` went well or not. */
async function begin(again = false) {
  const mine = ++round;
  clearTimeout(trying);
  await client?.stop();
  if (mine !== round) return;
  [client, away] = [null, false];
  if (!again) fault = null;
  state = fresh();
  if (!signedIn()) {
    await loadSample();
    return draw();
  }
  draw();
  const into = state;
  try {
    await load(into);
    if (mine !== round) return;
    [into.loaded, fault, tries] = [true, null, 0];
    await connect();
  } catch (error) {
    if (mine !== round) return;
    fault = !(error instanceof Failed) ? "away" : error.status === 401 ? "refused" : [403, 404].includes(error.status) ? "unscoped" : error.status;
    if (fault !== "refused" && fault !== "unscoped") trying = setTimeout(() => void begin(true), AGAIN_MS[Math.min(tries++, AGAIN_MS.length - 1)]);
  }
  draw();
}

async function load(into) {
  await Promise.all(LISTS.map(async (name) => {
    const most = name === "alerts" ? KEPT_ROWS : 200;
    let found = await page(name, { limit: "200" });
    into.positions[`ops:${name}`] = { epoch: found.epoch, offset: found.head };
    add(into, name, found.events);
    for (let n = found.events.length; found.next && n < most; n += found.events.length) {
      found = await page(name, { limit: "200", page: found.next });
      add(into, name, found.events);
    }
    into.next[name] = found.next;
  }));
  await loadFigures(into);
}

/** The figures of the chosen period: at first those up to now, later those before the ones that are here. */
async function loadFigures(into) {
  if (into.filling) return;
  into.filling = true;
  const since = now() - into.minutes * 60_000;
  const query = { from: new Date(since).toISOString(), limit: "500", ...(into.loaded ? { before: String(into.first) } : { after: "0" }) };
  try {
    for (let next; next !== null;) {
      const found = await page("figures", next ? { ...query, page: next } : query);
      if (!into.loaded) into.positions["ops:figures"] = { epoch: found.epoch, offset: found.head };
      add(into, "figures", found.events);
      next = found.next;
    }
    into.since = since;
  } finally {
    into.filling = false;
  }
}

const ROWS = { rejected: "rejected", alerts: "alerts", audit: "audits" };

/** Events of one feed, as [offset, event]; erased ones are null. */
function add(into, name, events) {
  for (const [offset, event] of events) {
    if (name === "figures") {
      into.first = into.first ? Math.min(into.first, offset) : offset;
      if (event) into.figures.add(Date.parse(event.time), event.data);
    } else if (event) into[ROWS[name]].push({ offset, time: event.time, data: event.data });
  }
  if (name !== "figures") into[ROWS[name]].sort((a, b) => b.offset - a.offset).splice(KEPT_ROWS);
}

/** Show more rejects; what is not here yet comes from the gateway. */
async function older() {
  const into = state;
  into.shown += SHOWN;
  if (into.next.rejected && into.shown > into.rejected.length) {
    const found = await page("rejected", { limit: "200", page: into.next.rejected }).catch(() => null);
    if (found) {
      into.next.rejected = found.next;
      add(into, "rejected", found.events);
    }
  }
  draw();
}

async function connect() {
  let device = sessionStorage.getItem("device");
  const keeper = device ? new Positions(device) : new Positions();
  if (!device) sessionStorage.setItem("device", (device = await keeper.device()));
  for (const [feed, position] of Object.entries(state.positions)) await keeper.keep(feed, position, []);
  client = new Vestnik({ token, keeper, feeds: FEEDS, share: false, agent: "vestnik-operator/1.0" });
  client.on("state", ({ name, wait }) => {
    retryAt = wait ? Date.now() + wait * 1000 : 0;
    away = name === "waiting" || name === "offline" || (away && name === "connecting");
    draw();
  });
  client.on("events", ({ feed, events }) => {
    const name = feed.replace("ops:", "");
    if (!(name in ROWS) && name !== "figures") return;
    add(state, name, events);
    if (name === "alerts") for (const [, event] of events) if (event?.data.state === "firing") at("announce").textContent = `${words.fires}: ${event.data.title[language]} ${event.data.subject}`;
    later();
  });
  // Away for too long, or another store: what is shown has a gap.
  client.on("message", ({ t, feed }) => { if (t === "resync" && feed.startsWith("ops:")) void begin(); });
  await client.start();
}

// Drawing: at once for the reader, once a second for what comes

let drawing = 0;

function later() {
  drawing ||= setTimeout(() => requestAnimationFrame(draw), DRAW_MS);
}

function current() {
  const view = location.hash.slice(1);
  return VIEWS.includes(view) ? view : "overview";
}

function draw() {
  clearTimeout(drawing);
  drawing = 0;
  const name = current();
  const signed = Boolean(signedIn());
  const link = client?.state ?? { name: signed ? "connecting" : "none" };
  const stopped = link.name === "stopped";
  const whole = !signed || fault !== null || stopped || !state.loaded;
  const alarms = firing(state.alerts).length;
  document.documentElement.lang = language;
  document.documentElement.dataset.state = link.name;
  at("skip").textContent = words.skip;
  at("brand").textContent = words.title;
  at("page").textContent = words.page;
  at("language").textContent = words.language;
  at("language").lang = language === "ru" ? "en" : "ru";
  at("leave").textContent = words.leave;
  at("who").textContent = signed ? accountOf(signedIn().token) : "";
  at("link-text").textContent = words[link.name] ?? "";
  at("link").hidden = !client;
  for (const id of ["leave", "who"]) at(id).hidden = !signed;
  document.title = `${alarms ? `(${alarms}) ` : ""}${signed ? words[name] : words.signIn} · ${words.title}`;
  at("nav").hidden = whole;
  at("frame").classList.toggle("alone", whole);
  drawNotice(link, whole);
  if (!signed) show("sign", drawSignIn);
  else if (stopped) show(`stopped ${link.code}`, () => drawStopped(link.code));
  else if (fault !== null) show(`fault ${fault}`, drawFault);
  else if (whole) show("loading", () => h("section", { class: "state" }, h("h1", {}, words.page), h("p", { role: "status" }, words.loading)));
  else {
    drawNav(name, alarms);
    if (["overview", "agencies", "nodes"].includes(name) && state.figures.empty) show("none", () => panel(words.noFigures, button(words.reload, () => void begin())));
    else DRAW[name](now());
  }
}

const show = (name, make) => place(main, `${name} ${language}`, make);
/** A view shows the state that it was made with. */
const view = (name, make) => place(main, `${name} ${language} ${round}`, make);

const minutes = () => choice(words.window, MINUTES.map((one) => [one, words.minutes(one)]), state.minutes, (value) => {
  state.minutes = period = Number(value);
  draw();
  if (now() - state.minutes * 60_000 < state.since - 10_000) void loadFigures(state).catch(() => {}).then(draw);
});

const DRAW = {
  overview(time) {
    const made = view("overview", () => overview(state, draw, minutes));
    drawFirst(made.querySelector(".first"), state);
    drawOverview(state, time);
  },
  agencies(time) {
    view("agencies", () => agencies(state, draw, minutes));
    drawAgencies(state, time);
  },
  nodes(time) {
    view("nodes", nodes);
    drawNodes(state, time);
  },
  rejected() {
    view("rejected", () => rejected(state, draw));
    drawRejected(state);
  },
  alerts() {
    view("alerts", alerts);
    drawAlerts(state);
  },
  account() {
    view("account", () => search(state, draw));
    drawSearch(state, draw);
  },
};

function drawNotice(link, whole) {
  const notice = at("notice");
  notice.hidden = whole || !away;
  if (notice.hidden) return notice.replaceChildren();
  const seconds = Math.max(1, Math.ceil((retryAt - Date.now()) / 1000));
  const text = `${words.waitingText} ${link.name === "connecting" ? `${words.connecting}…` : words.again(seconds)}`;
  if (!notice.firstChild || notice.dataset.language !== language) {
    notice.dataset.language = language;
    notice.replaceChildren(h("p"), button(words.retry, () => client.retry()));
  }
  if (notice.firstChild.textContent !== text) notice.firstChild.textContent = text;
}

function drawNav(current, alarms) {
  at("nav").setAttribute("aria-label", words.nav);
  let list = at("nav").firstElementChild;
  if (!list) at("nav").append((list = h("ul")));
  sync(list, VIEWS.map((name) => {
    const count = name === "alerts" ? alarms : 0;
    const here = name === current;
    return {
      key: name, sign: `${language} ${count} ${here}`,
      make: () => h("li", {}, h("a", { href: `#${name}`, "aria-current": here && "page", "data-focus": name }, icon(name), h("span", {}, words[name]),
        count > 0 && h("span", { class: "count bad" }, String(count), h("span", { class: "unseen" }, ` ${words.firingNow}`)))),
    };
  }));
}

// Page states

const signOut = () => { sessionStorage.removeItem("operator"); void begin(); };

function drawFault() {
  const again = button(words.signInAgain, signOut);
  if (fault === "refused" || fault === "unscoped") return panel(words[fault], again);
  return panel(fault === "away" ? words.away : words.failed(fault), button(words.retry, () => void begin(true)), button(words.signInAgain, signOut, "quiet"));
}

function drawStopped(code) {
  const again = button(words.signInAgain, signOut);
  if (code === 4401 || code === 4410) return panel(words.refused, again);
  if (code === 4409) return panel(words[4409], button(words.here, () => client.retry()));
  if (code === 4426) return panel(words[4426], button(words.reload, () => location.reload()));
  if (code === 4403) return panel(words[4403], button(words.retry, () => client.retry()), again);
  return panel(words.closed, again);
}

function drawSignIn() {
  const field = h("textarea", { id: "token", name: "token", autocomplete: "off", spellcheck: "false", "aria-describedby": "fault" });
  const problem = h("p", { class: "fault", id: "fault", role: "alert" });
  const submit = (event) => {
    event.preventDefault();
    const given = field.value.trim();
    problem.textContent = !given ? words.tokenEmpty : given.split(".").length !== 3 ? words.tokenWrong : "";
    if (problem.textContent) return field.focus();
    void signIn(given, false);
  };
  return h("section", { class: "sign" },
    h("div", {}, h("h1", {}, words.page), h("p", { class: "small" }, `${sample ? words.signInText : words.signInToken} `, h("code", {}, "ops"), `. ${words.signInMade} `, h("code", {}, "vestnik token operator --scope ops"))),
    sample && button(words.sample, () => void signIn(sample.token, true)),
    h("form", { onsubmit: submit, novalidate: true }, h("label", { for: "token" }, words.token, field), problem, h("button", { type: "submit", class: sample ? "plain" : null }, words.enter)));
}

// The page

addEventListener("hashchange", () => {
  draw();
  main.focus({ preventScroll: true });
  scrollTo(0, 0);
});
at("language").addEventListener("click", () => {
  changeLanguage();
  draw();
});
at("leave").addEventListener("click", () => void leave());
// What is told in time passed goes on also when nothing comes; what nobody asks for any more is forgotten.
setInterval(() => {
  state.figures.forget(now() - Math.max(...MINUTES) * 60_000);
  if (client) later();
}, 2000);

await begin();
