/** `vestnik-client`: the gateway's events in a browser or in any program that has `WebSocket` and `fetch`.
 *
 *     const client = new Vestnik({ token: () => sessionToken() });
 *     client.on("events", ({ feed, events }) => show(events));
 *     await client.start();
 *
 * All tabs of one browser that are signed in to one account are one device with one socket: one tab leads, and takes
 * the socket; the others hear from it. When it closes, another leads. */

import { Device } from "./device.js";
import type { DeviceOptions, State, Told } from "./device.js";
import type { Message } from "./feed.js";
import { BrowserKeeper, MemoryKeeper, newId } from "./keepers.js";
import type { Keeper } from "./keepers.js";

const REPLACED_MS = 500; // after a newer session of this device came, until it is said that it is none of our tabs
const LEADER_MS = 3000; // a leader that says nothing for so long to somebody who asks is frozen

export interface Options {
  /** Asked at the start, when a token ends and when one was refused. Empty: nobody is signed in. */
  token: () => Promise<string> | string;
  /** The gateway's http(s) URL; the page's own origin when not given. */
  address?: string;
  /** Agency feeds to follow, like `agency:mchs`; with a token of the scope `ops` also those of operators, `ops:figures`. */
  feeds?: string[];
  /** `auto` (the default): `saver` while no tab is visible. */
  mode?: "auto" | "full" | "saver";
  subprotocol?: DeviceOptions["subprotocol"];
  /** Where events and positions are kept; IndexedDB where there is one. */
  keeper?: Keeper;
  /** Name of the database, the lock and the channel; made of the token's account when not given. */
  name?: string;
  /** False: this client has a device and a socket of its own. Then give it a keeper of its own, too. */
  share?: boolean;
  agent?: string;
  tap?: DeviceOptions["tap"];
  WebSocket?: DeviceOptions["WebSocket"];
}

type Call = "send" | "subscribe" | "unsubscribe" | "report" | "start" | "wake";
type Heard =
  | { k: "told"; tab: string; kind: keyof Told; what: any }
  | { k: "call"; name: Call; args: any[] }
  | { k: "tab"; tab: string; hidden: boolean; ask?: boolean }
  | { k: "bye"; tab: string }
  | { k: "lead"; tab: string };

export class Vestnik {
  keeper!: Keeper;
  state: State = { name: "connecting" };
  /** Has this tab the socket? */
  leading = false;
  private device: Device | null = null;
  private channel: BroadcastChannel | null = null;
  private listeners = new Map<string, Set<(what: any) => void>>();
  private readonly tab = newId();
  private tabs = new Map<string, boolean>();
  private leave: (() => void) | null = null;
  private name = "";
  private leader: string | undefined;
  private heard = 0;
  private running = false;
  private undo: (() => void)[] = [];

  constructor(private options: Options) {}

  /** Hear of something from now on; the answer ends that. */
  on<K extends keyof Told>(kind: K, listener: (what: Told[K]) => void): () => void {
    const known = this.listeners.get(kind) ?? new Set();
    this.listeners.set(kind, known.add(listener));
    return () => known.delete(listener);
  }

  /** Returns when the keeper can be read; the connection comes after. Throws what `token` throws. */
  async start(): Promise<void> {
    if (this.running) return void (this.device ? this.device.start() : this.call("start"));
    this.running = true;
    const { keeper } = this.options;
    let { share = true } = this.options;
    const account = accountOf(await this.options.token());
    this.name = this.options.name ?? (account ? `vestnik-${account}` : "vestnik");
    this.keeper = keeper ?? (globalThis.indexedDB ? new BrowserKeeper(this.name) : new MemoryKeeper());
    await this.keeper.device().catch(() => {
      // A browser that lets nobody keep anything: a device of its own until the page is closed.
      this.keeper = new MemoryKeeper();
      share = false;
    });
    this.watch();
    if (share && globalThis.document && navigator.locks && globalThis.BroadcastChannel) this.join();
    else void this.lead();
  }

  /** This tab is no part of the device any more; another one leads if this one did. */
  async stop(): Promise<void> {
    this.running = false;
    for (const undo of this.undo.splice(0)) undo();
    this.post({ k: "bye", tab: this.tab });
    const device = this.device;
    this.device = null;
    await device?.stop();
    this.leave?.();
    this.channel?.close();
    this.channel = null;
  }

  /** Send a message of the contract's first table, like `send("refresh", { source: "fns" })`; the answer comes as `message`.
   *  It goes only while there is a session. */
  send(t: string, fields: Message = {}): void {
    this.call("send", t, fields);
  }

  /** Follow an agency feed, in this session and all later ones, whichever tab leads them. */
  subscribe(feed: string): void {
    this.call("subscribe", feed);
  }

  /** Follow it no more, and forget what was kept of it. When it is followed again, it begins at its head. */
  unsubscribe(feed: string): void {
    this.call("unsubscribe", feed);
  }

  /** The person was shown these. Kept, and told to the gateway now or with the next session. */
  async seen(feed: string, offsets: number[]): Promise<void> {
    await this.keeper.seen(feed, offsets, false);
    this.tell("seen", { feed, offsets });
    this.call("report");
  }

  /** Try now instead of waiting. */
  retry(): void {
    this.call("start");
    this.call("wake", true);
  }

  private call(name: Call, ...args: any[]): void {
    const what: Heard = { k: "call", name, args };
    // Each tab knows what is followed: any of them may lead next.
    if (!this.device || name.endsWith("subscribe")) this.post(what);
    this.hear(what);
  }

  private post(what: Heard): void {
    this.channel?.postMessage(what);
  }

  private tell<K extends keyof Told>(kind: K, what: Told[K]): void {
    this.post({ k: "told", tab: this.tab, kind, what });
    this.emit(kind, what);
  }

  private emit(kind: keyof Told, what: any): void {
    if (kind === "state") this.state = what;
    for (const listener of this.listeners.get(kind) ?? []) listener(what);
  }

  // The page

  private watch(): void {
    const listen = (target: EventTarget | undefined, kind: string, listener: () => void) => {
      target?.addEventListener?.(kind, listener);
      this.undo.push(() => target?.removeEventListener?.(kind, listener));
    };
    const page = globalThis.document;
    listen(page, "visibilitychange", () => {
      this.present(true);
      this.adjust();
      if (!page.hidden) this.call("wake");
    });
    listen(globalThis, "online", () => this.device?.wake());
    listen(globalThis, "offline", () => this.device?.offline());
    listen(globalThis, "pagehide", () => {
      this.device?.flush();
      this.post({ k: "bye", tab: this.tab });
    });
  }

  /** Traffic saving while nobody looks. */
  private mode(): "full" | "saver" {
    const { mode = "auto" } = this.options;
    if (mode !== "auto") return mode;
    return globalThis.document?.hidden && [...this.tabs.values()].every(Boolean) ? "saver" : "full";
  }

  private adjust(): void {
    this.device?.setMode(this.mode());
  }

  // The tabs

  private join(): void {
    this.channel = new BroadcastChannel(this.name);
    this.channel.onmessage = ({ data }) => this.hear(data);
    this.stand();
    this.present(true);
  }

  /** Wait to lead; `steal` from a leader that is frozen. */
  private stand(steal = false): void {
    navigator.locks.request(this.name, steal ? { steal } : {}, () => (this.running ? this.lead() : undefined)).catch(() => {
      // Stolen: somebody can do it better.
      void this.device?.stop();
      this.device = null;
      this.leading = false;
      if (!this.running) return;
      this.stand();
      this.present(true);
    });
  }

  /** Tell the others that this tab is here, and whether somebody looks at it. */
  private present(ask: boolean): void {
    if (!this.channel) return;
    const hidden = document.hidden;
    this.post({ k: "tab", tab: this.tab, hidden, ask });
    if (this.leading || hidden || !ask) return;
    const asked = performance.now();
    setTimeout(async () => {
      if (!this.running || this.leading || document.hidden || this.heard >= asked) return;
      const { held = [] } = await navigator.locks.query();
      if (held.some(({ name }) => name === this.name)) this.stand(true);
    }, LEADER_MS);
  }

  private hear(what: Heard): void {
    if (what.k === "told") {
      this.leader ??= what.tab;
      if (what.tab === this.leader) this.heard = performance.now();
      else if (what.kind === "state") return; // it led before
      this.emit(what.kind, what.what);
    } else if (what.k === "call") {
      const { name, args } = what;
      if (name.endsWith("subscribe")) {
        const others = (this.options.feeds ?? []).filter((feed) => feed !== args[0]);
        this.options.feeds = name === "subscribe" ? [...others, args[0]] : others;
      }
      void (this.device?.[name] as undefined | ((...args: any[]) => unknown))?.apply(this.device, args);
    } else if (what.k === "lead") {
      this.leader = what.tab;
      this.present(false);
    } else {
      if (what.k === "bye") this.tabs.delete(what.tab);
      else this.tabs.set(what.tab, what.hidden);
      if (what.k === "tab" && what.ask && this.device) this.tell("state", this.device.state);
      this.adjust();
    }
  }

  /** Take the socket; resolves when this tab stops. */
  private lead(): Promise<void> {
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
        // A newer session of this device may be another tab's, which took the lead: then nothing is wrong.
        const replaced = this.channel && kind === "state" && (what as { code?: number }).code === 4409;
        if (replaced) setTimeout(() => this.device === device && this.tell(kind, what), REPLACED_MS);
        else this.tell(kind, what);
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

/** The account of a token, "" when it cannot be read. Only a name: the gateway checks the token. */
export function accountOf(token: string): string {
  try {
    const part = token.split(".")[1]!.replace(/-/g, "+").replace(/_/g, "/");
    return String(JSON.parse(atob(part)).sub ?? "");
  } catch {
    return "";
  }
}
