/** Where a device keeps events and positions. Each method is one transaction, so that each event counts once. */

import type { CloudEvent, Message, Numbered, Position } from "./feed.js";

/** An event as it is kept. */
export interface Row { feed: string; offset: number; event: CloudEvent | null; seen: boolean }

export interface Keeper {
  /** The device's id: made at the first call, the same ever after. */
  device(): Promise<string>;
  /** How far each feed is kept. Empty on a new or wiped device. */
  positions(): Promise<Record<string, Position>>;
  /** Store these events, the next ones of the feed, and the position after them. `events` may be empty. */
  keep(feed: string, position: Position, events: Numbered[]): Promise<void>;
  /** Take the snapshot in place of the account's state: the device is new, or continuity broke. `recent` are the last
   *  events that it was made of, oldest first. */
  replace(feed: string, position: Position, snapshot: Message, recent: Row[]): Promise<void>;
  /** Take a newer snapshot of the same state; the position stays. */
  renew(snapshot: Message): Promise<void>;
  /** Is this event of an agency feed kept already? */
  knows(source: string, id: string): Promise<boolean>;
  /** The person was shown these. `told`: the gateway knows it already. */
  seen(feed: string, offsets: number[], told: boolean): Promise<void>;
  /** Up to 256 offsets that were shown and not told yet. */
  untold(feed: string): Promise<number[]>;
  /** The account's current state, or null before the first one was loaded. */
  snapshot(): Promise<Message | null>;
  /** The last events of all feeds, newest first. */
  recent(limit: number): Promise<Row[]>;
  /** Nobody follows this agency feed any more: forget its position and its events. */
  forget(feed: string): Promise<void>;
  /** Forget everything, the device's id too. */
  clear(): Promise<void>;
}

/** Events of a feed that stay here; the gateway's history has the others. */
export const KEPT_EVENTS = 500;

const LISTS = ["applications", "records", "notices"];

/** Bring the snapshot (contract, 4.1) forward by one event of the account's feed. */
export function fold(snapshot: Message, offset: number, event: CloudEvent): void {
  const { type, source, subject } = event;
  const data = event.data ?? {};
  if (type === "gov.erased") return; // says what is no more; the snapshot is taken anew
  const agency = String(source).replace("/agencies/", "");
  const [list, keys]: [string, string[]] =
    type === "gov.status.changed" ? ["applications", ["agency", "application"]]
    : type === "gov.record.changed" ? ["records", ["agency", "registry", "key"]]
    : ["notices", type === "gov.notice.sent" || subject === undefined ? ["offset"] : ["agency", "type", "subject"]];
  const { title, text, url, until, ...more } = data;
  const members = list === "notices" ? { title, text, url, until, expirytime: event.expirytime, data: more } : data;
  const item: Message = { ...members, offset, id: event.id, type, agency, time: event.time, updated: event.recordedtime, seen: false };
  if (subject !== undefined) item.subject = subject;
  const others: Message[] = [];
  for (const other of snapshot[list] ?? []) {
    if (keys.some((key) => other[key] !== item[key])) others.push(other);
    else if (other.offset >= offset) return; // a newer snapshot was taken meanwhile
  }
  if (data.change !== "removed" || list !== "records") others.push(item);
  snapshot[list] = others;
  const agencies: Message[] = snapshot.agencies ?? [];
  const known = agencies.find((one) => one.code === agency);
  if (known) known.updated = event.recordedtime;
  else agencies.push({ code: agency, updated: event.recordedtime, next: null });
  snapshot.agencies = agencies;
}

function mark(snapshot: Message, offsets: Set<number>): void {
  for (const list of LISTS) {
    for (const item of snapshot[list] ?? []) if (offsets.has(item.offset)) item.seen = true;
  }
}

/** The offsets that a `gov.erased` event takes back. */
function erased(event: CloudEvent | null, offset: number): boolean {
  return event?.type === "gov.erased" && event.data.ranges.some(([from, to]: [number, number]) => from <= offset && offset <= to);
}

export function newId(): string {
  const bytes = new Uint8Array(16);
  // Node 18 has no global `crypto`; an id has to be new, not secret.
  if (globalThis.crypto) crypto.getRandomValues(bytes);
  else bytes.forEach((_, place) => { bytes[place] = Math.random() * 256; });
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

const byTime = (a: Row, b: Row) => {
  const [x, y] = [a.event?.recordedtime ?? "", b.event?.recordedtime ?? ""];
  return x < y ? 1 : x > y ? -1 : b.offset - a.offset;
};

/** Keeps nothing over a restart: for programs that are devices only while they run, and for tests. */
export class MemoryKeeper implements Keeper {
  private kept: Record<string, Position> = {};
  private rows = new Map<string, Row & { untold?: boolean }>();
  private state: Message | null = null;
  constructor(private id = newId()) {}

  async device() { return this.id; }
  async positions() { return { ...this.kept }; }
  async snapshot() { return this.state && structuredClone(this.state); }
  async renew(snapshot: Message) { this.state = snapshot; }
  async clear() {
    this.kept = {};
    this.rows.clear();
    this.state = null;
    this.id = newId();
  }

  async keep(feed: string, position: Position, events: Numbered[]) {
    for (const [offset, event] of events) {
      this.rows.set(`${feed} ${offset}`, { feed, offset, event, seen: false });
      this.rows.delete(`${feed} ${offset - KEPT_EVENTS}`);
      if (event && feed.startsWith("account:") && this.state) fold(this.state, offset, event);
      for (const row of this.rows.values()) if (row.feed === feed && erased(event, row.offset)) row.event = null;
    }
    this.kept[feed] = position;
  }

  async replace(feed: string, position: Position, snapshot: Message, recent: Row[]) {
    await this.forget(feed);
    for (const row of recent) this.rows.set(`${feed} ${row.offset}`, row);
    this.state = snapshot;
    this.kept[feed] = position;
  }

  async forget(feed: string) {
    delete this.kept[feed];
    for (const [key, row] of this.rows) if (row.feed === feed) this.rows.delete(key);
  }

  async knows(source: string, id: string) {
    return [...this.rows.values()].some((row) => row.event?.source === source && row.event.id === id);
  }

  async seen(feed: string, offsets: number[], told: boolean) {
    for (const offset of offsets) {
      const row = this.rows.get(`${feed} ${offset}`);
      if (row) [row.seen, row.untold] = [true, !told];
    }
    if (this.state && feed.startsWith("account:")) mark(this.state, new Set(offsets));
  }

  async untold(feed: string) {
    return [...this.rows.values()].filter((row) => row.feed === feed && row.untold).map((row) => row.offset).slice(0, 256);
  }

  async recent(limit: number) {
    return [...this.rows.values()].sort(byTime).slice(0, limit);
  }
}

interface Stored extends Row { source?: string; id?: string; untold?: 1 }

/** The browser's own store: one database for one account, the same for all its tabs. */
export class BrowserKeeper implements Keeper {
  private database: Promise<IDBDatabase> | undefined;
  constructor(readonly name: string) {}

  private open(): Promise<IDBDatabase> {
    if (this.database) return this.database;
    const request = indexedDB.open(this.name, 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("state");
      const events = request.result.createObjectStore("events", { keyPath: ["feed", "offset"] });
      events.createIndex("id", ["source", "id"]);
      events.createIndex("untold", ["untold", "feed"]);
    };
    return (this.database = got(request).then((database) => {
      // Another tab forgets the account: let it. Or the browser took everything away.
      database.onversionchange = database.onclose = () => void this.close();
      return database;
    }, async (error) => {
      this.database = undefined;
      if (error.name !== "VersionError") throw error;
      // A later version of this program was here. What it kept, the gateway has, too.
      await this.clear();
      return this.open();
    }));
  }

  private async close(): Promise<void> {
    const { database } = this;
    this.database = undefined;
    (await database)?.close();
  }

  /** Run `work` in one transaction; what it returns counts once the transaction is on disk. */
  private async transact<T>(mode: IDBTransactionMode, work: (state: IDBObjectStore, events: IDBObjectStore) => Promise<T> | T): Promise<T> {
    const transaction = (await this.open()).transaction(["state", "events"], mode);
    const done = new Promise<void>((resolve, reject) => {
      transaction.oncomplete = () => resolve();
      transaction.onabort = transaction.onerror = () => reject(transaction.error);
    });
    return (await Promise.all([work(transaction.objectStore("state"), transaction.objectStore("events")), done]))[0];
  }

  device() {
    return this.transact("readwrite", async (state) => {
      const known: string | undefined = await got(state.get("device"));
      if (known !== undefined) return known;
      const made = newId();
      state.put(made, "device");
      return made;
    });
  }

  positions() {
    return this.transact("readonly", async (state) => (await got<Record<string, Position>>(state.get("positions"))) ?? {});
  }

  snapshot() {
    return this.transact("readonly", async (state) => (await got<Message>(state.get("snapshot"))) ?? null);
  }

  renew(snapshot: Message) {
    return this.transact("readwrite", (state) => { state.put(snapshot, "snapshot"); });
  }

  keep(feed: string, position: Position, events: Numbered[]) {
    return this.transact("readwrite", async (state, rows) => {
      const positions = (await got<Record<string, Position>>(state.get("positions"))) ?? {};
      const kept = positions[feed];
      // The browser took it away, or another tab: the next session begins anew.
      if (!kept && events.length) throw new Error("what was kept is gone");
      // Another tab may have been this device a moment ago: what it kept is kept.
      if (kept && kept.epoch === position.epoch) events = events.filter(([offset]) => offset > kept.offset);
      const snapshot: Message | undefined = feed.startsWith("account:") ? await got(state.get("snapshot")) : undefined;
      for (const [offset, event] of events) {
        rows.put(stored({ feed, offset, event, seen: false }));
        if (event && snapshot) fold(snapshot, offset, event);
        for (const [from, to] of event?.type === "gov.erased" ? event.data.ranges : []) {
          const request = rows.openCursor(IDBKeyRange.bound([feed, from], [feed, to]));
          request.onsuccess = () => {
            request.result?.update(stored({ ...request.result.value, event: null }));
            request.result?.continue();
          };
        }
      }
      if (snapshot && events.length) state.put(snapshot, "snapshot");
      rows.delete(IDBKeyRange.bound([feed, 0], [feed, Math.max(0, position.offset - KEPT_EVENTS)]));
      if (!kept || kept.epoch !== position.epoch || kept.offset < position.offset) {
        state.put({ ...positions, [feed]: position }, "positions");
      }
    });
  }

  replace(feed: string, position: Position, snapshot: Message, recent: Row[]) {
    return this.transact("readwrite", async (state, rows) => {
      const positions = (await got<Record<string, Position>>(state.get("positions"))) ?? {};
      rows.delete(IDBKeyRange.bound([feed], [feed, []]));
      for (const row of recent) rows.put(stored(row));
      state.put(snapshot, "snapshot");
      state.put({ ...positions, [feed]: position }, "positions");
    });
  }

  forget(feed: string) {
    return this.transact("readwrite", async (state, rows) => {
      const { [feed]: _, ...positions } = (await got<Record<string, Position>>(state.get("positions"))) ?? {};
      state.put(positions, "positions");
      rows.delete(IDBKeyRange.bound([feed], [feed, []]));
    });
  }

  knows(source: string, id: string) {
    return this.transact("readonly", async (_, rows) => (await got(rows.index("id").count([source, id]))) > 0);
  }

  seen(feed: string, offsets: number[], told: boolean) {
    return this.transact("readwrite", async (state, rows) => {
      for (const offset of offsets) {
        const row = await got<Stored | undefined>(rows.get([feed, offset]));
        if (!row) continue;
        row.seen = true;
        if (told) delete row.untold;
        else row.untold = 1;
        rows.put(row);
      }
      const snapshot: Message | undefined = feed.startsWith("account:") ? await got(state.get("snapshot")) : undefined;
      if (snapshot) {
        mark(snapshot, new Set(offsets));
        state.put(snapshot, "snapshot");
      }
    });
  }

  untold(feed: string) {
    return this.transact("readonly", async (_, rows) =>
      (await got<Stored[]>(rows.index("untold").getAll([1, feed], 256))).map((row) => row.offset));
  }

  recent(limit: number) {
    return this.transact("readonly", async (_, rows) => (await got<Row[]>(rows.getAll())).sort(byTime).slice(0, limit));
  }

  async clear() {
    await this.close();
    const request = indexedDB.deleteDatabase(this.name);
    // A tab that is frozen holds it: it will be gone when that one is.
    await Promise.race([got(request), new Promise((resolve) => { request.onblocked = resolve; })]);
  }
}

function stored(row: Row): Stored {
  const { source, id } = row.event ?? {};
  return row.event ? { ...row, source, id } : { feed: row.feed, offset: row.offset, event: null, seen: row.seen };
}

function got<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
