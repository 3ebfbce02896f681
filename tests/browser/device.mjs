// A device on Node, told what to do by lines of JSON on standard input; what happens to it are lines on standard output.
//
//     node device.mjs MODULES CLIENT '{"address": …, "token": …, "subprotocol": …, "feeds": […]}'
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [modules, built, given] = process.argv.slice(2);
const { WebSocket } = createRequire(join(modules, "package.json"))("ws");
const { MemoryKeeper, Vestnik } = await import(pathToFileURL(built));

const options = JSON.parse(given);
const say = (kind, what) => process.stdout.write(`${JSON.stringify({ kind, what })}\n`);
// Without a token of its own it has another one as soon as one ends or was refused: token-0, token-1, …
let { token } = options;
let number = 0;
const renew = () => { number += 1; };

// Time that runs faster, and chance that is always the same.
const { hurry = 1, chance } = options;
const inTime = globalThis.setTimeout;
globalThis.setTimeout = (work, ms, ...rest) => inTime(work, ms * hurry, ...rest);
const now = performance.now.bind(performance);
performance.now = () => now() / hurry;
// And a clock that nobody should trust.
let clock = Date.now();
Date.now = () => (clock -= 3_600_000);
if (chance !== undefined) Math.random = () => chance;

// What a browser tells a page.
const page = new EventTarget();
globalThis.addEventListener = (...heard) => page.addEventListener(...heard);
globalThis.removeEventListener = (...heard) => page.removeEventListener(...heard);

class Told extends MemoryKeeper {
  async keep(feed, position, events) {
    await super.keep(feed, position, events);
    for (const [offset, event] of events) say("kept", { feed, offset, id: event?.id ?? null });
  }
  async replace(feed, position, snapshot, recent) {
    await super.replace(feed, position, snapshot, recent);
    say("replaced", { feed, position, applications: snapshot.applications.length });
  }
}

const keeper = new Told(options.device);
for (const [feed, [position, events]] of Object.entries(options.kept ?? {})) await MemoryKeeper.prototype.keep.call(keeper, feed, position, events);
const tap = (way, message) => {
  if (way === "<" && message.t === "expiring") renew();
  say(way, message);
};
const client = new Vestnik({ ...options, keeper, WebSocket, token: () => token ?? `token-${number}`, tap });
client.on("state", (state) => {
  if (state.code === 4401) renew();
  say("state", state);
});

const commands = {
  start: () => client.start(),
  stop: () => client.stop(),
  retry: () => client.retry(),
  event: (name) => page.dispatchEvent(new Event(name)),
  token: (next) => { token = next; },
  send: ([t, fields]) => client.send(t, fields),
  seen: ([feed, offsets]) => client.seen(feed, offsets),
  subscribe: (feed) => client.subscribe(feed),
  unsubscribe: (feed) => client.unsubscribe(feed),
  positions: async () => say("positions", await keeper.positions()),
  snapshot: async () => say("snapshot", await keeper.snapshot()),
};
for await (const text of createInterface({ input: process.stdin })) {
  const [name, what] = JSON.parse(text);
  await commands[name](what);
  say("did", name);
}
await client.stop();
process.exit(0);
