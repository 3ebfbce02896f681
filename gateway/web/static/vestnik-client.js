// vestnik-client: made from gateway/web/client/src by build.mjs; change it there.
export function encode(value) {
let bytes = new Uint8Array(256);
let view = new DataView(bytes.buffer);
let length = 0;
function room(count) {
if (length + count > bytes.length) {
const larger = new Uint8Array(Math.max(bytes.length * 2, length + count));
larger.set(bytes);
bytes = larger;
view = new DataView(bytes.buffer);
}
length += count;
return length - count;
}
const byte = (one) => view.setUint8(room(1), one);
function head(count, fix, most, code8, code16) {
if (count <= most) {
byte(fix | count);
}
else if (code8 && count < 0x100) {
byte(code8);
byte(count);
}
else if (count < 0x10000) {
byte(code16);
view.setUint16(room(2), count);
}
else {
byte(code16 + 1);
view.setUint32(room(4), count);
}
}
function number(one) {
if (!Number.isSafeInteger(one)) {
byte(0xcb);
view.setFloat64(room(8), one);
}
else if (one >= -32 && one < 128) {
view.setInt8(room(1), one);
}
else if (one >= 0 && one < 0x100000000) {
byte(0xce);
view.setUint32(room(4), one);
}
else {
byte(0xd3);
view.setBigInt64(room(8), BigInt(one));
}
}
function write(one) {
if (one === null || one === undefined) {
byte(0xc0);
}
else if (typeof one === "boolean") {
byte(one ? 0xc3 : 0xc2);
}
else if (typeof one === "number") {
number(one);
}
else if (typeof one === "string") {
const text = new TextEncoder().encode(one);
head(text.length, 0xa0, 31, 0xd9, 0xda);
const place = room(text.length);
bytes.set(text, place);
}
else if (Array.isArray(one)) {
head(one.length, 0x90, 15, 0, 0xdc);
one.forEach(write);
}
else {
const members = Object.entries(one).filter(([, member]) => member !== undefined);
head(members.length, 0x80, 15, 0, 0xde);
for (const [key, member] of members) {
write(key);
write(member);
}
}
}
write(value);
return bytes.slice(0, length);
}
export function decode(bytes) {
const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
const utf8 = new TextDecoder("utf-8", { fatal: true });
let place = 0;
function step(count) {
place += count;
if (place > bytes.length)
throw new RangeError("cut short");
return place - count;
}
function text(count) {
const from = step(count);
return utf8.decode(bytes.subarray(from, from + count));
}
const list = (count) => Array.from({ length: count }, read);
function map(count) {
const members = [];
for (let n = 0; n < count; n++)
members.push([String(read()), read()]);
return Object.fromEntries(members);
}
const u8 = () => view.getUint8(step(1));
const u16 = () => view.getUint16(step(2));
const u32 = () => view.getUint32(step(4));
function read() {
const code = u8();
if (code < 0x80)
return code;
if (code < 0x90)
return map(code & 15);
if (code < 0xa0)
return list(code & 15);
if (code < 0xc0)
return text(code & 31);
if (code >= 0xe0)
return code - 256;
switch (code) {
case 0xc0: return null;
case 0xc2: return false;
case 0xc3: return true;
case 0xca: return view.getFloat32(step(4));
case 0xcb: return view.getFloat64(step(8));
case 0xcc: return u8();
case 0xcd: return u16();
case 0xce: return u32();
case 0xcf: return Number(view.getBigUint64(step(8)));
case 0xd0: return view.getInt8(step(1));
case 0xd1: return view.getInt16(step(2));
case 0xd2: return view.getInt32(step(4));
case 0xd3: return Number(view.getBigInt64(step(8)));
case 0xd9: return text(u8());
case 0xda: return text(u16());
case 0xdb: return text(u32());
case 0xdc: return list(u16());
case 0xdd: return list(u32());
case 0xde: return map(u16());
case 0xdf: return map(u32());
default: throw new RangeError(`no plain value begins with ${code}`);
}
}
return read();
}

export class Hole extends Error {
}
export class Feed {
name;
epoch;
start;
received;
kept;
acked;
loading = false;
live = false;
held = [];
moved = false;
behind = false;
constructor(name, epoch, start) {
this.name = name;
this.epoch = epoch;
this.start = start;
this.received = this.kept = this.acked = start;
}
take(events) {
const fresh = [];
for (const numbered of events) {
const offset = numbered[0];
if (offset <= this.received)
continue;
if (offset !== this.received + 1)
throw new Hole(`${this.name}: ${offset} came after ${this.received}`);
this.received = offset;
this.moved = true;
if (this.loading)
this.held.push(numbered);
else if (offset > this.kept)
fresh.push(numbered);
}
return fresh;
}
restart(epoch, offset) {
this.epoch = epoch;
this.start = this.received = this.kept = offset;
this.load();
}
load() {
this.loading = true;
this.acked = this.start - 1;
}
loaded(offset) {
this.kept = offset;
this.loading = false;
const held = this.held;
this.held = [];
return held.filter(([at]) => at > offset);
}
due() {
const offset = Math.min(this.kept, this.received);
return !this.loading && offset > this.acked ? offset : -1;
}
stuck(head) {
const ahead = head > this.received && this.due() < 0;
const stuck = ahead && this.behind && !this.moved;
this.behind = ahead;
this.moved = false;
return stuck;
}
}
export function advice(code) {
if (code === 4401)
return "token";
if (code === 4400)
return "once";
return code >= 4400 && code < 4500 ? "stop" : "again";
}

export const KEPT_EVENTS = 500;
const LISTS = ["applications", "records", "notices"];
export function fold(snapshot, offset, event) {
const { type, source, subject } = event;
const data = event.data ?? {};
if (type === "gov.erased")
return;
const agency = String(source).replace("/agencies/", "");
const [list, keys] = type === "gov.status.changed" ? ["applications", ["agency", "application"]]
: type === "gov.record.changed" ? ["records", ["agency", "registry", "key"]]
: ["notices", type === "gov.notice.sent" || subject === undefined ? ["offset"] : ["agency", "type", "subject"]];
const { title, text, url, until, ...more } = data;
const members = list === "notices" ? { title, text, url, until, expirytime: event.expirytime, data: more } : data;
const item = { ...members, offset, id: event.id, type, agency, time: event.time, updated: event.recordedtime, seen: false };
if (subject !== undefined)
item.subject = subject;
const others = [];
for (const other of snapshot[list] ?? []) {
if (keys.some((key) => other[key] !== item[key]))
others.push(other);
else if (other.offset >= offset)
return;
}
if (data.change !== "removed" || list !== "records")
others.push(item);
snapshot[list] = others;
const agencies = snapshot.agencies ?? [];
const known = agencies.find((one) => one.code === agency);
if (known)
known.updated = event.recordedtime;
else
agencies.push({ code: agency, updated: event.recordedtime, next: null });
snapshot.agencies = agencies;
}
function mark(snapshot, offsets) {
for (const list of LISTS) {
for (const item of snapshot[list] ?? [])
if (offsets.has(item.offset))
item.seen = true;
}
}
function erased(event, offset) {
return event?.type === "gov.erased" && event.data.ranges.some(([from, to]) => from <= offset && offset <= to);
}
export function newId() {
const bytes = new Uint8Array(16);
if (globalThis.crypto)
crypto.getRandomValues(bytes);
else
bytes.forEach((_, place) => { bytes[place] = Math.random() * 256; });
return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
const byTime = (a, b) => {
const [x, y] = [a.event?.recordedtime ?? "", b.event?.recordedtime ?? ""];
return x < y ? 1 : x > y ? -1 : b.offset - a.offset;
};
export class MemoryKeeper {
id;
kept = {};
rows = new Map();
state = null;
constructor(id = newId()) {
this.id = id;
}
async device() { return this.id; }
async positions() { return { ...this.kept }; }
async snapshot() { return this.state && structuredClone(this.state); }
async renew(snapshot) { this.state = snapshot; }
async clear() {
this.kept = {};
this.rows.clear();
this.state = null;
this.id = newId();
}
async keep(feed, position, events) {
for (const [offset, event] of events) {
this.rows.set(`${feed} ${offset}`, { feed, offset, event, seen: false });
this.rows.delete(`${feed} ${offset - KEPT_EVENTS}`);
if (event && feed.startsWith("account:") && this.state)
fold(this.state, offset, event);
for (const row of this.rows.values())
if (row.feed === feed && erased(event, row.offset))
row.event = null;
}
this.kept[feed] = position;
}
async replace(feed, position, snapshot, recent) {
await this.forget(feed);
for (const row of recent)
this.rows.set(`${feed} ${row.offset}`, row);
this.state = snapshot;
this.kept[feed] = position;
}
async forget(feed) {
delete this.kept[feed];
for (const [key, row] of this.rows)
if (row.feed === feed)
this.rows.delete(key);
}
async knows(source, id) {
return [...this.rows.values()].some((row) => row.event?.source === source && row.event.id === id);
}
async seen(feed, offsets, told) {
for (const offset of offsets) {
const row = this.rows.get(`${feed} ${offset}`);
if (row)
[row.seen, row.untold] = [true, !told];
}
if (this.state && feed.startsWith("account:"))
mark(this.state, new Set(offsets));
}
async untold(feed) {
return [...this.rows.values()].filter((row) => row.feed === feed && row.untold).map((row) => row.offset).slice(0, 256);
}
async recent(limit) {
return [...this.rows.values()].sort(byTime).slice(0, limit);
}
}
export class BrowserKeeper {
name;
database;
constructor(name) {
this.name = name;
}
open() {
if (this.database)
return this.database;
const request = indexedDB.open(this.name, 1);
request.onupgradeneeded = () => {
request.result.createObjectStore("state");
const events = request.result.createObjectStore("events", { keyPath: ["feed", "offset"] });
events.createIndex("id", ["source", "id"]);
events.createIndex("untold", ["untold", "feed"]);
};
return (this.database = got(request).then((database) => {
database.onversionchange = database.onclose = () => void this.close();
return database;
}, async (error) => {
this.database = undefined;
if (error.name !== "VersionError")
throw error;
await this.clear();
return this.open();
}));
}
async close() {
const { database } = this;
this.database = undefined;
(await database)?.close();
}
async transact(mode, work) {
const transaction = (await this.open()).transaction(["state", "events"], mode);
const done = new Promise((resolve, reject) => {
transaction.oncomplete = () => resolve();
transaction.onabort = transaction.onerror = () => reject(transaction.error);
});
return (await Promise.all([work(transaction.objectStore("state"), transaction.objectStore("events")), done]))[0];
}
device() {
return this.transact("readwrite", async (state) => {
const known = await got(state.get("device"));
if (known !== undefined)
return known;
const made = newId();
state.put(made, "device");
return made;
});
}
positions() {
return this.transact("readonly", async (state) => (await got(state.get("positions"))) ?? {});
}
snapshot() {
return this.transact("readonly", async (state) => (await got(state.get("snapshot"))) ?? null);
}
renew(snapshot) {
return this.transact("readwrite", (state) => { state.put(snapshot, "snapshot"); });
}
keep(feed, position, events) {
return this.transact("readwrite", async (state, rows) => {
const positions = (await got(state.get("positions"))) ?? {};
const kept = positions[feed];
if (!kept && events.length)
throw new Error("what was kept is gone");
if (kept && kept.epoch === position.epoch)
events = events.filter(([offset]) => offset > kept.offset);
const snapshot = feed.startsWith("account:") ? await got(state.get("snapshot")) : undefined;
for (const [offset, event] of events) {
rows.put(stored({ feed, offset, event, seen: false }));
if (event && snapshot)
fold(snapshot, offset, event);
for (const [from, to] of event?.type === "gov.erased" ? event.data.ranges : []) {
const request = rows.openCursor(IDBKeyRange.bound([feed, from], [feed, to]));
request.onsuccess = () => {
request.result?.update(stored({ ...request.result.value, event: null }));
request.result?.continue();
};
}
}
if (snapshot && events.length)
state.put(snapshot, "snapshot");
rows.delete(IDBKeyRange.bound([feed, 0], [feed, Math.max(0, position.offset - KEPT_EVENTS)]));
if (!kept || kept.epoch !== position.epoch || kept.offset < position.offset) {
state.put({ ...positions, [feed]: position }, "positions");
}
});
}
replace(feed, position, snapshot, recent) {
return this.transact("readwrite", async (state, rows) => {
const positions = (await got(state.get("positions"))) ?? {};
rows.delete(IDBKeyRange.bound([feed], [feed, []]));
for (const row of recent)
rows.put(stored(row));
state.put(snapshot, "snapshot");
state.put({ ...positions, [feed]: position }, "positions");
});
}
forget(feed) {
return this.transact("readwrite", async (state, rows) => {
const { [feed]: _, ...positions } = (await got(state.get("positions"))) ?? {};
state.put(positions, "positions");
rows.delete(IDBKeyRange.bound([feed], [feed, []]));
});
}
knows(source, id) {
return this.transact("readonly", async (_, rows) => (await got(rows.index("id").count([source, id]))) > 0);
}
seen(feed, offsets, told) {
return this.transact("readwrite", async (state, rows) => {
for (const offset of offsets) {
const row = await got(rows.get([feed, offset]));
if (!row)
continue;
row.seen = true;
if (told)
delete row.untold;
else
row.untold = 1;
rows.put(row);
}
const snapshot = feed.startsWith("account:") ? await got(state.get("snapshot")) : undefined;
if (snapshot) {
mark(snapshot, new Set(offsets));
state.put(snapshot, "snapshot");
}
});
}
untold(feed) {
return this.transact("readonly", async (_, rows) => (await got(rows.index("untold").getAll([1, feed], 256))).map((row) => row.offset));
}
recent(limit) {
return this.transact("readonly", async (_, rows) => (await got(rows.getAll())).sort(byTime).slice(0, limit));
}
async clear() {
await this.close();
const request = indexedDB.deleteDatabase(this.name);
await Promise.race([got(request), new Promise((resolve) => { request.onblocked = resolve; })]);
}
}
function stored(row) {
const { source, id } = row.event ?? {};
return row.event ? { ...row, source, id } : { feed: row.feed, offset: row.offset, event: null, seen: row.seen };
}
function got(request) {
return new Promise((resolve, reject) => {
request.onsuccess = () => resolve(request.result);
request.onerror = () => reject(request.error);
});
}

const ACK_AFTER_MS = 500;
const ACK_EVERY = 64;
const FIRST_BEAT_S = 25;
const SILENCE_S = 10;
const HEALTHY_MS = 60_000;
const BAD_MESSAGE_S = 60;
const RECENT = 100;
export class Device {
options;
backoff = 60;
state = { name: "connecting" };
session = null;
running = null;
stopping = false;
wakeUp = null;
firm = false;
constructor(options) {
this.options = options;
}
start() {
this.stopping = false;
this.running ??= this.run().finally(() => { this.running = null; });
}
async stop() {
this.stopping = true;
this.session?.end("stopped");
this.wake(true);
await this.running;
}
wake(force = false) {
this.session?.probe();
if (force || !this.firm)
this.wakeUp?.();
}
offline() {
if (this.session)
this.session.end("offline", this.backoff);
else if (this.running)
this.tell({ name: "offline", wait: this.backoff, code: 0, reason: "offline" });
}
flush() {
this.session?.ack();
}
send(t, fields = {}) {
return this.session?.welcomed === true && this.session.send(t, fields);
}
setMode(mode) {
if (mode === this.options.mode)
return;
this.options.mode = mode;
this.send("mode", { mode });
}
async subscribe(feed) {
const { feeds, keeper } = this.options;
if (!feeds.includes(feed))
feeds.push(feed);
const resume = (await keeper.positions())[feed];
this.send("subscribe", { feed, resume });
}
async unsubscribe(feed) {
this.options.feeds = this.options.feeds.filter((other) => other !== feed);
this.session?.feeds.delete(feed);
this.send("unsubscribe", { feed });
await this.options.keeper.forget(feed);
}
async report() {
const { keeper } = this.options;
for (const feed of Object.keys(await keeper.positions())) {
const offsets = await keeper.untold(feed);
if (offsets.length)
this.session?.show(feed, offsets);
}
}
tell(state) {
this.state = state;
this.options.tell("state", state);
}
async run() {
let refused = "";
let refusals = 0;
let bad = false;
let top = 1;
while (!this.stopping) {
let ended;
const began = performance.now();
let token = "";
try {
token = await this.options.token();
}
catch (error) {
ended = { code: 0, reason: String(error) };
}
if (this.stopping)
break;
if (ended === undefined) {
if (!token || token === refused || refusals > 2) {
return this.tell({ name: "stopped", code: 4401, reason: token ? "the token was refused" : "nobody is signed in" });
}
this.tell({ name: "connecting" });
this.session = new Session(this, token);
ended = await this.session.run();
if (this.session.welcomed)
[refused, refusals] = ["", 0];
if (ended.code === 4401)
[refused, refusals] = [this.session.token, refusals + 1];
this.session = null;
}
if (this.stopping)
break;
if (performance.now() - began >= HEALTHY_MS)
[bad, top] = [false, 1];
const next = advice(ended.code);
if (next === "stop" || (next === "once" && bad))
return this.tell({ name: "stopped", ...ended });
let wait = ended.wait ?? 0;
if (next === "once")
[bad, wait] = [true, BAD_MESSAGE_S];
else if (next === "again" && ended.wait === undefined) {
wait = Math.random() * Math.min(top, this.backoff);
top = Math.min(top * 2, this.backoff);
}
const { code, reason } = ended;
const offline = ended.reason === "offline" || globalThis.navigator?.onLine === false;
if (offline)
wait = this.backoff;
this.firm = !offline && (next === "once" || ended.wait !== undefined);
this.tell({ name: offline ? "offline" : "waiting", wait, code, reason });
await this.pause(wait * 1000);
}
}
pause(ms) {
return new Promise((resolve) => {
const timer = setTimeout(() => this.wakeUp?.(), ms);
this.wakeUp = () => {
clearTimeout(timer);
this.wakeUp = null;
resolve();
};
});
}
}
class Session {
device;
token;
welcomed = false;
feeds = new Map();
socket;
offered;
account = "";
asked = [];
shown = null;
next = FIRST_BEAT_S;
unacked = 0;
timers = {};
queue = Promise.resolve();
ended = null;
finish;
constructor(device, token) {
this.device = device;
this.token = token;
this.offered = token;
}
show(feed, offsets) {
if (this.shown || !this.feeds.get(feed)?.live || !this.send("seen", { feed, offsets }))
return;
this.shown = { feed, offsets };
this.send("ping", { ref: "seen" });
}
probe() {
if (this.welcomed)
this.send("ping", {});
this.after("silence", SILENCE_S * 1000, () => this.end("silence"));
}
async run() {
const { address, subprotocol, WebSocket: Socket = WebSocket } = this.device.options;
const ended = await new Promise((resolve) => {
this.finish = resolve;
this.socket = new Socket(address.replace(/^http/, "ws").replace(/\/$/, "") + "/v1/socket", [subprotocol]);
this.socket.binaryType = "arraybuffer";
this.socket.onopen = () => this.work(() => this.hello());
this.socket.onmessage = ({ data }) => {
this.listen();
this.work(() => this.received(data));
};
this.socket.onclose = ({ code, reason }) => this.over({ code: code > 1004 && code < 1007 ? 0 : code, reason });
this.socket.onerror = () => { };
this.listen();
});
await this.queue;
return ended;
}
end(reason, wait, code = 0) {
if (this.ended)
return;
this.ack();
this.over({ code, reason, wait });
this.socket.close(1000);
}
over(ended) {
if (this.ended)
return;
this.ended = ended;
this.socket.onmessage = null;
Object.values(this.timers).forEach(clearTimeout);
this.finish(ended);
}
send(t, fields) {
if (this.ended || this.socket.readyState !== 1)
return false;
const message = { t, ...fields };
this.device.options.tap?.(">", message);
this.socket.send(this.device.options.subprotocol.endsWith("json") ? JSON.stringify(message) : encode(message));
return true;
}
listen() {
this.after("silence", (this.next + SILENCE_S) * 1000, () => this.end("silence"));
}
after(name, ms, work) {
clearTimeout(this.timers[name]);
if (!this.ended)
this.timers[name] = setTimeout(work, ms);
}
work(step) {
return this.queue = this.queue.then(() => (this.ended ? undefined : step())).catch((error) => {
this.end(error instanceof Hole ? error.message : String(error));
});
}
aside(step) {
step().catch((error) => this.end(String(error)));
}
async hello() {
const { keeper, feeds, mode, agent } = this.device.options;
const kept = await keeper.positions();
const wanted = Object.entries(kept).filter(([feed]) => feed.startsWith("account:") || feeds.includes(feed));
const fresh = !wanted.some(([feed]) => feed.startsWith("account:"));
const hello = { token: this.token, device: await keeper.device(), mode, agent };
this.asked = feeds.filter((feed) => !fresh || !kept[feed]);
if (fresh)
hello.fresh = true;
else
hello.resume = Object.fromEntries(wanted);
if (this.asked.length)
hello.feeds = this.asked;
this.send("hello", hello);
}
async received(data) {
const message = (typeof data === "string" ? JSON.parse(data) : decode(new Uint8Array(data)));
const { device } = this;
device.options.tap?.("<", message);
const feed = this.feeds.get(message.feed);
switch (message.t) {
case "event":
return this.events(feed, [[message.offset, message.event]]);
case "batch":
return this.events(feed, message.events);
case "welcome":
this.welcomed = true;
this.account = message.account;
device.backoff = message.limits?.backoff ?? device.backoff;
for (const item of message.feeds)
await this.begin(item, message.new);
for (const name of device.options.feeds)
if (!this.asked.includes(name))
await device.subscribe(name);
for (const name of this.asked)
if (!device.options.feeds.includes(name))
await device.unsubscribe(name);
device.tell({ name: "catching-up" });
break;
case "subscribed":
await this.begin(message, false);
break;
case "unsubscribed":
if (!device.options.feeds.includes(message.feed))
await device.options.keeper.forget(message.feed);
break;
case "pong":
if (message.ref === "seen" && this.shown) {
const { feed, offsets } = this.shown;
this.shown = null;
await device.options.keeper.seen(feed, offsets, true);
this.aside(() => device.report());
}
break;
case "resync":
if (feed) {
const loading = feed.loading;
feed.restart(message.epoch, message.offset);
if (!loading)
this.load(feed);
}
break;
case "live":
if (feed)
feed.live = true;
this.settle();
this.aside(() => device.report());
return;
case "seen":
await device.options.keeper.seen(message.feed, message.offsets, true);
device.options.tell("seen", { feed: message.feed, offsets: message.offsets });
return;
case "beat":
this.next = message.next;
this.listen();
for (const one of this.feeds.values()) {
if (one.stuck(message.heads[one.name] ?? 0))
this.end(`two beats showed more of ${one.name} than came`);
}
return;
case "expiring":
this.aside(async () => {
this.offered = await device.options.token();
this.send("token", { token: this.offered });
});
break;
case "renewed":
this.token = this.offered;
break;
case "drain":
this.after("drain", Math.random() * message.after * 1000, () => this.end("the node goes away", 0));
break;
}
device.options.tell("message", message);
}
settle() {
const whole = [...this.feeds.values()].every((feed) => feed.live && !feed.loading);
if (whole && !this.ended && this.device.state.name === "catching-up")
this.device.tell({ name: "live" });
}
async begin(item, fresh) {
const { keeper } = this.device.options;
const feed = new Feed(item.feed, item.epoch, item.from);
this.feeds.set(feed.name, feed);
const kept = (await keeper.positions())[feed.name];
if (fresh && feed.name.startsWith("account:")) {
feed.load();
this.load(feed);
}
else if (!kept) {
await keeper.keep(feed.name, { epoch: feed.epoch, offset: feed.start }, []);
}
else if (kept.epoch === feed.epoch) {
feed.kept = Math.max(feed.start, kept.offset);
}
}
async events(feed, events) {
if (!feed)
return;
await this.keep(feed, feed.take(events));
this.unacked += events.length;
if (this.unacked >= ACK_EVERY)
this.ack();
}
async keep(feed, events) {
const { keeper, mode, tell } = this.device.options;
if (events.length) {
const offset = events[events.length - 1][0];
await keeper.keep(feed.name, { epoch: feed.epoch, offset }, events);
feed.kept = offset;
tell("events", { feed: feed.name, events });
if (events.some(([, event]) => event?.type === "gov.erased"))
this.aside(() => this.renew());
}
if (feed.due() < 0)
return;
if (mode === "saver")
this.ack();
else if (!this.timers.ack)
this.after("ack", ACK_AFTER_MS, () => this.ack());
}
ack() {
this.unacked = 0;
clearTimeout(this.timers.ack);
delete this.timers.ack;
for (const feed of this.feeds.values()) {
const offset = feed.due();
if (offset >= 0 && this.send("ack", { feed: feed.name, offset }))
feed.acked = offset;
}
}
load(feed) {
this.aside(() => (feed.name.startsWith("account:") ? this.loadAccount(feed) : this.loadAgency(feed)));
}
async loadAccount(feed) {
const { keeper, tell } = this.device.options;
for (let tries = 0; tries < 10 && !this.ended; tries++) {
const snapshot = await this.get("/v1/snapshot");
const position = snapshot.positions[feed.name];
if (position.epoch === feed.epoch && position.offset >= feed.start) {
const page = await this.get(`/v1/feeds/${feed.name}/events?limit=${RECENT}&before=${position.offset + 1}`);
const unseen = new Set();
for (const item of [...snapshot.applications, ...snapshot.records, ...snapshot.notices])
if (!item.seen)
unseen.add(item.offset);
const recent = page.events.map(([offset, event]) => ({ feed: feed.name, offset, event, seen: !unseen.has(offset) }));
this.work(async () => {
await keeper.replace(feed.name, position, snapshot, recent);
tell("snapshot", { feed: feed.name });
await this.keep(feed, feed.loaded(position.offset));
this.settle();
});
return;
}
await new Promise((resolve) => setTimeout(resolve, Math.random() * 1000 * 2 ** Math.min(tries, 3)));
}
throw new Error(`no snapshot that covers offset ${feed.start}`);
}
async loadAgency(feed) {
const { keeper } = this.device.options;
const kept = (await keeper.positions())[feed.name];
let offset = kept?.epoch === feed.epoch ? kept.offset : 0;
let query = `after=${offset}`;
while (query && !this.ended) {
const page = await this.get(`/v1/feeds/${feed.name}/events?limit=500&${query}`);
if (page.epoch !== feed.epoch)
throw new Error("the store was restored meanwhile");
const fresh = [];
for (const numbered of page.events) {
const [at, event] = numbered;
offset = Math.max(offset, at);
if (!event || !(await keeper.knows(event.source, event.id)))
fresh.push(numbered);
}
query = page.next !== null && offset < feed.start ? `page=${page.next}` : "";
if (!query)
offset = Math.max(offset, feed.start);
await this.work(async () => {
await keeper.keep(feed.name, { epoch: feed.epoch, offset }, fresh);
if (fresh.length)
this.device.options.tell("events", { feed: feed.name, events: fresh });
});
}
this.work(async () => {
await this.keep(feed, feed.loaded(offset));
this.settle();
});
}
async renew() {
await this.device.options.keeper.renew(await this.get("/v1/snapshot"));
this.device.options.tell("snapshot", { feed: `account:${this.account}` });
}
async get(path) {
const answer = await fetch(this.device.options.address.replace(/\/$/, "") + path, { headers: { authorization: `Bearer ${this.token}` } });
if (!answer.ok) {
const reason = `${path.split("?")[0]} was answered ${answer.status}`;
this.end(reason, Number(answer.headers.get("retry-after")) || undefined, answer.status === 401 ? 4401 : 0);
throw new Error(reason);
}
return answer.json();
}
}

const REPLACED_MS = 500;
const LEADER_MS = 3000;
export class Vestnik {
options;
keeper;
state = { name: "connecting" };
leading = false;
device = null;
channel = null;
listeners = new Map();
tab = newId();
tabs = new Map();
leave = null;
name = "";
leader;
heard = 0;
running = false;
undo = [];
constructor(options) {
this.options = options;
}
on(kind, listener) {
const known = this.listeners.get(kind) ?? new Set();
this.listeners.set(kind, known.add(listener));
return () => known.delete(listener);
}
async start() {
if (this.running)
return void (this.device ? this.device.start() : this.call("start"));
this.running = true;
const { keeper } = this.options;
let { share = true } = this.options;
const account = accountOf(await this.options.token());
this.name = this.options.name ?? (account ? `vestnik-${account}` : "vestnik");
this.keeper = keeper ?? (globalThis.indexedDB ? new BrowserKeeper(this.name) : new MemoryKeeper());
await this.keeper.device().catch(() => {
this.keeper = new MemoryKeeper();
share = false;
});
this.watch();
if (share && globalThis.document && navigator.locks && globalThis.BroadcastChannel)
this.join();
else
void this.lead();
}
async stop() {
this.running = false;
for (const undo of this.undo.splice(0))
undo();
this.post({ k: "bye", tab: this.tab });
const device = this.device;
this.device = null;
await device?.stop();
this.leave?.();
this.channel?.close();
this.channel = null;
}
send(t, fields = {}) {
this.call("send", t, fields);
}
subscribe(feed) {
this.call("subscribe", feed);
}
unsubscribe(feed) {
this.call("unsubscribe", feed);
}
async seen(feed, offsets) {
await this.keeper.seen(feed, offsets, false);
this.tell("seen", { feed, offsets });
this.call("report");
}
retry() {
this.call("start");
this.call("wake", true);
}
call(name, ...args) {
const what = { k: "call", name, args };
if (!this.device || name.endsWith("subscribe"))
this.post(what);
this.hear(what);
}
post(what) {
this.channel?.postMessage(what);
}
tell(kind, what) {
this.post({ k: "told", tab: this.tab, kind, what });
this.emit(kind, what);
}
emit(kind, what) {
if (kind === "state")
this.state = what;
for (const listener of this.listeners.get(kind) ?? [])
listener(what);
}
watch() {
const listen = (target, kind, listener) => {
target?.addEventListener?.(kind, listener);
this.undo.push(() => target?.removeEventListener?.(kind, listener));
};
const page = globalThis.document;
listen(page, "visibilitychange", () => {
this.present(true);
this.adjust();
if (!page.hidden)
this.call("wake");
});
listen(globalThis, "online", () => this.device?.wake());
listen(globalThis, "offline", () => this.device?.offline());
listen(globalThis, "pagehide", () => {
this.device?.flush();
this.post({ k: "bye", tab: this.tab });
});
}
mode() {
const { mode = "auto" } = this.options;
if (mode !== "auto")
return mode;
return globalThis.document?.hidden && [...this.tabs.values()].every(Boolean) ? "saver" : "full";
}
adjust() {
this.device?.setMode(this.mode());
}
join() {
this.channel = new BroadcastChannel(this.name);
this.channel.onmessage = ({ data }) => this.hear(data);
this.stand();
this.present(true);
}
stand(steal = false) {
navigator.locks.request(this.name, steal ? { steal } : {}, () => (this.running ? this.lead() : undefined)).catch(() => {
void this.device?.stop();
this.device = null;
this.leading = false;
if (!this.running)
return;
this.stand();
this.present(true);
});
}
present(ask) {
if (!this.channel)
return;
const hidden = document.hidden;
this.post({ k: "tab", tab: this.tab, hidden, ask });
if (this.leading || hidden || !ask)
return;
const asked = performance.now();
setTimeout(async () => {
if (!this.running || this.leading || document.hidden || this.heard >= asked)
return;
const { held = [] } = await navigator.locks.query();
if (held.some(({ name }) => name === this.name))
this.stand(true);
}, LEADER_MS);
}
hear(what) {
if (what.k === "told") {
this.leader ??= what.tab;
if (what.tab === this.leader)
this.heard = performance.now();
else if (what.kind === "state")
return;
this.emit(what.kind, what.what);
}
else if (what.k === "call") {
const { name, args } = what;
if (name.endsWith("subscribe")) {
const others = (this.options.feeds ?? []).filter((feed) => feed !== args[0]);
this.options.feeds = name === "subscribe" ? [...others, args[0]] : others;
}
void this.device?.[name]?.apply(this.device, args);
}
else if (what.k === "lead") {
this.leader = what.tab;
this.present(false);
}
else {
if (what.k === "bye")
this.tabs.delete(what.tab);
else
this.tabs.set(what.tab, what.hidden);
if (what.k === "tab" && what.ask && this.device)
this.tell("state", this.device.state);
this.adjust();
}
}
lead() {
const { address = globalThis.location?.origin, subprotocol = "vestnik.v1.json", agent = "vestnik-client/1.0" } = this.options;
this.leading = true;
this.leader = this.tab;
this.post({ k: "lead", tab: this.tab });
const device = new Device({
address,
token: this.options.token,
keeper: this.keeper,
feeds: [...(this.options.feeds ?? [])],
mode: this.mode(),
subprotocol,
agent,
tell: (kind, what) => {
const replaced = this.channel && kind === "state" && what.code === 4409;
if (replaced)
setTimeout(() => this.device === device && this.tell(kind, what), REPLACED_MS);
else
this.tell(kind, what);
},
tap: this.options.tap,
WebSocket: this.options.WebSocket,
});
this.device = device;
device.start();
return new Promise((resolve) => {
this.leave = () => {
this.leading = false;
resolve();
};
});
}
}
export function accountOf(token) {
try {
const part = token.split(".")[1].replace(/-/g, "+").replace(/_/g, "/");
return String(JSON.parse(atob(part)).sub ?? "");
}
catch {
return "";
}
}
