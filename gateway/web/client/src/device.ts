/** One device of an account: its sessions one after the other, from the first token to the end. */

import { advice, Feed, Hole } from "./feed.js";
import type { Message, Numbered, Position } from "./feed.js";
import type { Keeper, Row } from "./keepers.js";
import { decode, encode } from "./msgpack.js";

const ACK_AFTER_MS = 500; // contract: "within 1 s of keeping, and at least every 64 events"
const ACK_EVERY = 64;
const FIRST_BEAT_S = 25; // before the first beat has said when the next one is due
const SILENCE_S = 10; // contract, 3.9: `next` + 10 s
const HEALTHY_MS = 60_000; // a session that lived so long resets the backoff
const BAD_MESSAGE_S = 60; // 4400: "try once more after 60 s"
const RECENT = 100; // events that are shown as recent after a snapshot

/** What the device does now. `wait`: seconds until the next try; `code`: why the last session ended, 0 for no code. */
export type State =
  | { name: "connecting" | "catching-up" | "live" }
  | { name: "waiting" | "offline"; wait: number; code: number; reason: string }
  | { name: "stopped"; code: number; reason: string };

export interface Told {
  state: State;
  /** These were kept just now. */
  events: { feed: string; events: Numbered[] };
  /** The account's state was taken anew. */
  snapshot: { feed: string };
  /** These were shown, here or on another device. */
  seen: { feed: string; offsets: number[] };
  /** Any other message of the gateway, as it came: `refresh`, `resync`, `drain`, `error`, … */
  message: Message;
}
export type Tell = <K extends keyof Told>(kind: K, what: Told[K]) => void;

export interface DeviceOptions {
  /** The gateway's http(s) URL. */
  address: string;
  /** Asked at the start, when a token ends and when one was refused. Empty: nobody is signed in. */
  token: () => Promise<string> | string;
  keeper: Keeper;
  /** Agency feeds to follow. */
  feeds: string[];
  mode: "full" | "saver";
  subprotocol: "vestnik.v1.json" | "vestnik.v1.msgpack";
  agent: string;
  tell: Tell;
  /** Every message as it came or just before it goes. */
  tap?: (way: "<" | ">", message: Message) => void;
  WebSocket?: new (url: string, protocols: string[]) => WebSocket;
}

/** How a session ended. `wait`: told to wait just so long. */
interface Ended { code: number; reason: string; wait?: number }

export class Device {
  backoff = 60;
  /** The last state that was told. */
  state: State = { name: "connecting" };
  private session: Session | null = null;
  private running: Promise<void> | null = null;
  private stopping = false;
  private wakeUp: (() => void) | null = null;
  private firm = false;

  constructor(readonly options: DeviceOptions) {}

  /** Stay connected until `stop`, or until something must change first (state `stopped`). Starting twice is once. */
  start(): void {
    this.stopping = false;
    this.running ??= this.run().finally(() => { this.running = null; });
  }

  /** Send the acks that are owed and close. */
  async stop(): Promise<void> {
    this.stopping = true;
    this.session?.end("stopped");
    this.wake(true);
    await this.running;
  }

  /** The network is back, or somebody looks at the page: try now instead of waiting, and see whether the connection that
   *  there is still lives. A wait that the gateway asked for is cut short only when the person wants it (`force`). */
  wake(force = false): void {
    this.session?.probe();
    if (force || !this.firm) this.wakeUp?.();
  }

  /** The network is gone, or is said to be: wait until `wake`, or a minute. */
  offline(): void {
    if (this.session) this.session.end("offline", this.backoff);
    else if (this.running) this.tell({ name: "offline", wait: this.backoff, code: 0, reason: "offline" });
  }

  /** Say what is owed at once: the page may be gone in a moment. */
  flush(): void {
    this.session?.ack();
  }

  /** Send a message of the contract's first table; false when there is no session, and nothing was sent. */
  send(t: string, fields: Message = {}): boolean {
    return this.session?.welcomed === true && this.session.send(t, fields);
  }

  setMode(mode: "full" | "saver"): void {
    if (mode === this.options.mode) return;
    this.options.mode = mode;
    this.send("mode", { mode });
  }

  /** Follow an agency feed from now on. */
  async subscribe(feed: string): Promise<void> {
    const { feeds, keeper } = this.options;
    if (!feeds.includes(feed)) feeds.push(feed);
    const resume = (await keeper.positions())[feed];
    this.send("subscribe", { feed, resume });
  }

  /** Follow it no more. When it is followed again, it begins at its head. */
  async unsubscribe(feed: string): Promise<void> {
    this.options.feeds = this.options.feeds.filter((other) => other !== feed);
    this.session?.feeds.delete(feed); // what is on its way comes too late
    this.send("unsubscribe", { feed });
    await this.options.keeper.forget(feed);
  }

  /** Tell the gateway what was shown and not told yet. */
  async report(): Promise<void> {
    const { keeper } = this.options;
    for (const feed of Object.keys(await keeper.positions())) {
      const offsets = await keeper.untold(feed);
      if (offsets.length) this.session?.show(feed, offsets);
    }
  }

  tell(state: State): void {
    this.state = state;
    this.options.tell("state", state);
  }

  private async run(): Promise<void> {
    let refused = "";
    let refusals = 0;
    let bad = false;
    let top = 1;
    while (!this.stopping) {
      let ended: Ended;
      const began = performance.now(); // goes on evenly, whatever becomes of the clock
      let token = "";
      try {
        token = await this.options.token();
      } catch (error) {
        ended = { code: 0, reason: String(error) };
      }
      if (this.stopping) break;
      if (ended! === undefined) {
        if (!token || token === refused || refusals > 2) {
          return this.tell({ name: "stopped", code: 4401, reason: token ? "the token was refused" : "nobody is signed in" });
        }
        this.tell({ name: "connecting" });
        this.session = new Session(this, token);
        ended = await this.session.run();
        if (this.session.welcomed) [refused, refusals] = ["", 0];
        if (ended.code === 4401) [refused, refusals] = [this.session.token, refusals + 1];
        this.session = null;
      }
      if (this.stopping) break;
      if (performance.now() - began >= HEALTHY_MS) [bad, top] = [false, 1];
      const next = advice(ended.code);
      if (next === "stop" || (next === "once" && bad)) return this.tell({ name: "stopped", ...ended });
      // "`Retry-After` and `drain` outrank" the backoff; a browser shows no Retry-After.
      let wait = ended.wait ?? 0;
      if (next === "once") [bad, wait] = [true, BAD_MESSAGE_S];
      else if (next === "again" && ended.wait === undefined) {
        wait = Math.random() * Math.min(top, this.backoff);
        top = Math.min(top * 2, this.backoff);
      }
      const { code, reason } = ended;
      const offline = ended.reason === "offline" || globalThis.navigator?.onLine === false;
      if (offline) wait = this.backoff;
      this.firm = !offline && (next === "once" || ended.wait !== undefined);
      this.tell({ name: offline ? "offline" : "waiting", wait, code, reason });
      await this.pause(wait * 1000);
    }
  }

  private pause(ms: number): Promise<void> {
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

/** One connection, from the handshake to its end. */
class Session {
  welcomed = false;
  readonly feeds = new Map<string, Feed>();
  private socket!: WebSocket;
  private offered: string;
  private account = "";
  /** Agency feeds that the hello asked for. */
  private asked: string[] = [];
  /** What was shown and told, and perhaps not heard. */
  private shown: { feed: string; offsets: number[] } | null = null;
  private next = FIRST_BEAT_S;
  private unacked = 0;
  private timers: Record<string, ReturnType<typeof setTimeout>> = {};
  private queue = Promise.resolve();
  private ended: Ended | null = null;
  private finish!: (ended: Ended) => void;

  constructor(private device: Device, public token: string) {
    this.offered = token;
  }

  /** Tell what was shown. It counts as told once the `ping` behind it is answered. One thing after the other. */
  show(feed: string, offsets: number[]): void {
    if (this.shown || !this.feeds.get(feed)?.live || !this.send("seen", { feed, offsets })) return;
    this.shown = { feed, offsets };
    this.send("ping", { ref: "seen" });
  }

  /** Does the other end still answer, or answer at last? */
  probe(): void {
    if (this.welcomed) this.send("ping", {});
    this.after("silence", SILENCE_S * 1000, () => this.end("silence"));
  }

  async run(): Promise<Ended> {
    const { address, subprotocol, WebSocket: Socket = WebSocket } = this.device.options;
    const ended = await new Promise<Ended>((resolve) => {
      this.finish = resolve;
      this.socket = new Socket(address.replace(/^http/, "ws").replace(/\/$/, "") + "/v1/socket", [subprotocol]);
      this.socket.binaryType = "arraybuffer";
      this.socket.onopen = () => this.work(() => this.hello());
      this.socket.onmessage = ({ data }) => {
        this.listen();
        this.work(() => this.received(data));
      };
      // 1005 and 1006 are the browser's words for "no code".
      this.socket.onclose = ({ code, reason }) => this.over({ code: code > 1004 && code < 1007 ? 0 : code, reason });
      this.socket.onerror = () => {}; // `close` follows
      this.listen();
    });
    // The keeper must have finished before the next session asks it where to go on.
    await this.queue;
    return ended;
  }

  /** End it ourselves: acknowledge what is kept, close, and do not wait for the answer. */
  end(reason: string, wait?: number, code = 0): void {
    if (this.ended) return;
    this.ack();
    this.over({ code, reason, wait });
    this.socket.close(1000);
  }

  private over(ended: Ended): void {
    if (this.ended) return;
    this.ended = ended;
    this.socket.onmessage = null;
    Object.values(this.timers).forEach(clearTimeout);
    this.finish(ended);
  }

  send(t: string, fields: Message): boolean {
    if (this.ended || this.socket.readyState !== 1) return false;
    const message = { t, ...fields };
    this.device.options.tap?.(">", message);
    this.socket.send(this.device.options.subprotocol.endsWith("json") ? JSON.stringify(message) : encode(message) as Uint8Array<ArrayBuffer>);
    return true;
  }

  /** Silence (contract, 3.9). */
  private listen(): void {
    this.after("silence", (this.next + SILENCE_S) * 1000, () => this.end("silence"));
  }

  private after(name: string, ms: number, work: () => void): void {
    clearTimeout(this.timers[name]);
    if (!this.ended) this.timers[name] = setTimeout(work, ms);
  }

  /** One thing after the other, in the order in which it came. A failure ends the session; the next one tries anew. */
  private work(step: () => Promise<void> | void): Promise<void> {
    return this.queue = this.queue.then(() => (this.ended ? undefined : step())).catch((error) => {
      this.end(error instanceof Hole ? error.message : String(error));
    });
  }

  private aside(step: () => Promise<void>): void {
    step().catch((error) => this.end(String(error)));
  }

  private async hello(): Promise<void> {
    const { keeper, feeds, mode, agent } = this.device.options;
    const kept = await keeper.positions();
    const wanted = Object.entries(kept).filter(([feed]) => feed.startsWith("account:") || feeds.includes(feed));
    const fresh = !wanted.some(([feed]) => feed.startsWith("account:"));
    const hello: Message = { token: this.token, device: await keeper.device(), mode, agent };
    // Nothing of the account is kept here, whatever the gateway remembers of this device. That forgets all of its
    // positions: an agency feed that is kept nevertheless is resumed after the welcome.
    this.asked = feeds.filter((feed) => !fresh || !kept[feed]);
    if (fresh) hello.fresh = true;
    else hello.resume = Object.fromEntries(wanted);
    if (this.asked.length) hello.feeds = this.asked;
    this.send("hello", hello);
  }

  private async received(data: unknown): Promise<void> {
    const message = (typeof data === "string" ? JSON.parse(data) : decode(new Uint8Array(data as ArrayBuffer))) as Message;
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
        for (const item of message.feeds) await this.begin(item, message.new);
        // And what was followed or left meanwhile.
        for (const name of device.options.feeds) if (!this.asked.includes(name)) await device.subscribe(name);
        for (const name of this.asked) if (!device.options.feeds.includes(name)) await device.unsubscribe(name);
        device.tell({ name: "catching-up" });
        break;
      case "subscribed":
        await this.begin(message, false);
        break;
      case "unsubscribed":
        if (!device.options.feeds.includes(message.feed)) await device.options.keeper.forget(message.feed);
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
          const loading = feed.loading; // else `new` has begun it
          feed.restart(message.epoch, message.offset);
          if (!loading) this.load(feed);
        }
        break;
      case "live":
        if (feed) feed.live = true;
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
          if (one.stuck(message.heads[one.name] ?? 0)) this.end(`two beats showed more of ${one.name} than came`);
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

  /** Is everything here that was missed? */
  private settle(): void {
    const whole = [...this.feeds.values()].every((feed) => feed.live && !feed.loading);
    if (whole && !this.ended && this.device.state.name === "catching-up") this.device.tell({ name: "live" });
  }

  /** A feed starts: an item of `welcome.feeds`, or `subscribed`. */
  private async begin(item: Message, fresh: boolean): Promise<void> {
    const { keeper } = this.device.options;
    const feed = new Feed(item.feed, item.epoch, item.from);
    this.feeds.set(feed.name, feed);
    const kept = (await keeper.positions())[feed.name];
    if (fresh && feed.name.startsWith("account:")) {
      feed.load();
      this.load(feed);
    } else if (!kept) {
      await keeper.keep(feed.name, { epoch: feed.epoch, offset: feed.start }, []);
    } else if (kept.epoch === feed.epoch) {
      feed.kept = Math.max(feed.start, kept.offset);
    }
  }

  private async events(feed: Feed | undefined, events: Numbered[]): Promise<void> {
    if (!feed) return; // unsubscribed a moment ago
    await this.keep(feed, feed.take(events));
    this.unacked += events.length;
    if (this.unacked >= ACK_EVERY) this.ack();
  }

  private async keep(feed: Feed, events: Numbered[]): Promise<void> {
    const { keeper, mode, tell } = this.device.options;
    if (events.length) {
      const offset = events[events.length - 1]![0];
      await keeper.keep(feed.name, { epoch: feed.epoch, offset }, events);
      feed.kept = offset;
      tell("events", { feed: feed.name, events });
      if (events.some(([, event]) => event?.type === "gov.erased")) this.aside(() => this.renew());
    }
    if (feed.due() < 0) return;
    // A page in the background is not woken in time for a timer.
    if (mode === "saver") this.ack();
    else if (!this.timers.ack) this.after("ack", ACK_AFTER_MS, () => this.ack());
  }

  ack(): void {
    this.unacked = 0;
    clearTimeout(this.timers.ack);
    delete this.timers.ack;
    for (const feed of this.feeds.values()) {
      const offset = feed.due();
      if (offset >= 0 && this.send("ack", { feed: feed.name, offset })) feed.acked = offset;
    }
  }

  // The snapshot. Contract, 3.6: until it is kept, nothing of the feed is acknowledged.

  private load(feed: Feed): void {
    this.aside(() => (feed.name.startsWith("account:") ? this.loadAccount(feed) : this.loadAgency(feed)));
  }

  private async loadAccount(feed: Feed): Promise<void> {
    const { keeper, tell } = this.device.options;
    for (let tries = 0; tries < 10 && !this.ended; tries++) {
      const snapshot = await this.get("/v1/snapshot");
      const position: Position = snapshot.positions[feed.name];
      // "It covers at least that offset, else fetch again."
      if (position.epoch === feed.epoch && position.offset >= feed.start) {
        const page = await this.get(`/v1/feeds/${feed.name}/events?limit=${RECENT}&before=${position.offset + 1}`);
        const unseen = new Set<number>();
        for (const item of [...snapshot.applications, ...snapshot.records, ...snapshot.notices]) if (!item.seen) unseen.add(item.offset);
        const recent: Row[] = page.events.map(([offset, event]: Numbered) => ({ feed: feed.name, offset, event, seen: !unseen.has(offset) }));
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

  private async loadAgency(feed: Feed): Promise<void> {
    const { keeper } = this.device.options;
    const kept = (await keeper.positions())[feed.name];
    let offset = kept?.epoch === feed.epoch ? kept.offset : 0;
    let query = `after=${offset}`;
    while (query && !this.ended) { // ends: each page is further on, and the head is where this session began
      const page = await this.get(`/v1/feeds/${feed.name}/events?limit=500&${query}`);
      if (page.epoch !== feed.epoch) throw new Error("the store was restored meanwhile");
      const fresh: Numbered[] = [];
      for (const numbered of page.events as Numbered[]) {
        const [at, event] = numbered;
        offset = Math.max(offset, at);
        if (!event || !(await keeper.knows(event.source, event.id))) fresh.push(numbered);
      }
      query = page.next !== null && offset < feed.start ? `page=${page.next}` : "";
      if (!query) offset = Math.max(offset, feed.start); // what retention removed before it comes no more
      await this.work(async () => {
        await keeper.keep(feed.name, { epoch: feed.epoch, offset }, fresh);
        if (fresh.length) this.device.options.tell("events", { feed: feed.name, events: fresh });
      });
    }
    this.work(async () => {
      await this.keep(feed, feed.loaded(offset));
      this.settle();
    });
  }

  /** Something was erased: what it hid shows again. */
  private async renew(): Promise<void> {
    await this.device.options.keeper.renew(await this.get("/v1/snapshot"));
    this.device.options.tell("snapshot", { feed: `account:${this.account}` });
  }

  private async get(path: string): Promise<Message> {
    const answer = await fetch(this.device.options.address.replace(/\/$/, "") + path, { headers: { authorization: `Bearer ${this.token}` } });
    if (!answer.ok) {
      const reason = `${path.split("?")[0]} was answered ${answer.status}`;
      this.end(reason, Number(answer.headers.get("retry-after")) || undefined, answer.status === 401 ? 4401 : 0);
      throw new Error(reason);
    }
    return answer.json();
  }
}
