// vestnik-client: made from gateway/web/client/src by build.mjs; change it there.
/** MessagePack for plain values: what the contract's messages are made of, nothing else. */
export declare function encode(value: unknown): Uint8Array;
/** Throws RangeError for what is cut short or not made of plain values. */
export declare function decode(bytes: Uint8Array): unknown;

/** What is decided about events and reconnects, without a socket or a clock. Contract, sections 3.4 to 3.11. */
export type Message = Record<string, any>;
export type CloudEvent = Record<string, any>;
/** (offset, event); an erased event is null. */
export type Numbered = [number, CloudEvent | null];
export interface Position {
	epoch: string;
	offset: number;
}
/** An offset was skipped: the connection cannot be trusted, a resume from the kept position can. */
export declare class Hole extends Error {
}
/** What the device knows of one feed in one session. An ack never passes `received` nor `kept`. */
export declare class Feed {
	readonly name: string;
	epoch: string;
	start: number;
	/** The highest offset that came in this session, or its start. */
	received: number;
	/** The highest offset that is in the keeper. */
	kept: number;
	acked: number;
	/** A snapshot is due: nothing is kept or acknowledged until it is. */
	loading: boolean;
	live: boolean;
	private held;
	private moved;
	private behind;
	constructor(name: string, epoch: string, start: number);
	/** The events to keep now. Repeats are dropped; throws Hole. */
	take(events: Numbered[]): Numbered[];
	/** Continuity is broken: begin again at the head, with a snapshot. */
	restart(epoch: string, offset: number): void;
	load(): void;
	/** A snapshot of all up to `offset` is kept. The held events after it; those at or below are dropped. */
	loaded(offset: number): Numbered[];
	/** The offset to acknowledge now, or -1. */
	due(): number;
	/** A beat says where the head is. True at the second in a row that shows a loss (contract, 3.9). */
	stuck(head: number): boolean;
}
/** What a close code asks for: "the range says what to do". 0 is no code, or no connection at all. */
export declare function advice(code: number): "stop" | "token" | "once" | "again";

/** Where a device keeps events and positions. Each method is one transaction, so that each event counts once. */
/** An event as it is kept. */
export interface Row {
	feed: string;
	offset: number;
	event: CloudEvent | null;
	seen: boolean;
}
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
export declare const KEPT_EVENTS = 500;
/** Bring the snapshot (contract, 4.1) forward by one event of the account's feed. */
export declare function fold(snapshot: Message, offset: number, event: CloudEvent): void;
export declare function newId(): string;
/** Keeps nothing over a restart: for programs that are devices only while they run, and for tests. */
export declare class MemoryKeeper implements Keeper {
	private id;
	private kept;
	private rows;
	private state;
	constructor(id?: string);
	device(): Promise<string>;
	positions(): Promise<{
		[x: string]: Position;
	}>;
	snapshot(): Promise<Message | null>;
	renew(snapshot: Message): Promise<void>;
	clear(): Promise<void>;
	keep(feed: string, position: Position, events: Numbered[]): Promise<void>;
	replace(feed: string, position: Position, snapshot: Message, recent: Row[]): Promise<void>;
	forget(feed: string): Promise<void>;
	knows(source: string, id: string): Promise<boolean>;
	seen(feed: string, offsets: number[], told: boolean): Promise<void>;
	untold(feed: string): Promise<number[]>;
	recent(limit: number): Promise<(Row & {
		untold?: boolean;
	})[]>;
}
/** The browser's own store: one database for one account, the same for all its tabs. */
export declare class BrowserKeeper implements Keeper {
	readonly name: string;
	private database;
	constructor(name: string);
	private open;
	private close;
	/** Run `work` in one transaction; what it returns counts once the transaction is on disk. */
	private transact;
	device(): Promise<string>;
	positions(): Promise<Record<string, Position>>;
	snapshot(): Promise<Message>;
	renew(snapshot: Message): Promise<void>;
	keep(feed: string, position: Position, events: Numbered[]): Promise<void>;
	replace(feed: string, position: Position, snapshot: Message, recent: Row[]): Promise<void>;
	forget(feed: string): Promise<void>;
	knows(source: string, id: string): Promise<boolean>;
	seen(feed: string, offsets: number[], told: boolean): Promise<void>;
	untold(feed: string): Promise<number[]>;
	recent(limit: number): Promise<Row[]>;
	clear(): Promise<void>;
}

/** One device of an account: its sessions one after the other, from the first token to the end. */
/** What the device does now. `wait`: seconds until the next try; `code`: why the last session ended, 0 for no code. */
export type State = {
	name: "connecting" | "catching-up" | "live";
} | {
	name: "waiting" | "offline";
	wait: number;
	code: number;
	reason: string;
} | {
	name: "stopped";
	code: number;
	reason: string;
};
export interface Told {
	state: State;
	/** These were kept just now. */
	events: {
		feed: string;
		events: Numbered[];
	};
	/** The account's state was taken anew. */
	snapshot: {
		feed: string;
	};
	/** These were shown, here or on another device. */
	seen: {
		feed: string;
		offsets: number[];
	};
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
export declare class Device {
	readonly options: DeviceOptions;
	backoff: number;
	/** The last state that was told. */
	state: State;
	private session;
	private running;
	private stopping;
	private wakeUp;
	private firm;
	constructor(options: DeviceOptions);
	/** Stay connected until `stop`, or until something must change first (state `stopped`). Starting twice is once. */
	start(): void;
	/** Send the acks that are owed and close. */
	stop(): Promise<void>;
	/** The network is back, or somebody looks at the page: try now instead of waiting, and see whether the connection that
	 *  there is still lives. A wait that the gateway asked for is cut short only when the person wants it (`force`). */
	wake(force?: boolean): void;
	/** The network is gone, or is said to be: wait until `wake`, or a minute. */
	offline(): void;
	/** Say what is owed at once: the page may be gone in a moment. */
	flush(): void;
	/** Send a message of the contract's first table; false when there is no session, and nothing was sent. */
	send(t: string, fields?: Message): boolean;
	setMode(mode: "full" | "saver"): void;
	/** Follow an agency feed from now on. */
	subscribe(feed: string): Promise<void>;
	/** Follow it no more. When it is followed again, it begins at its head. */
	unsubscribe(feed: string): Promise<void>;
	/** Tell the gateway what was shown and not told yet. */
	report(): Promise<void>;
	tell(state: State): void;
	private run;
	private pause;
}

/** `vestnik-client`: the gateway's events in a browser or in any program that has `WebSocket` and `fetch`.
 *
 *     const client = new Vestnik({ token: () => sessionToken() });
 *     client.on("events", ({ feed, events }) => show(events));
 *     await client.start();
 *
 * All tabs of one browser that are signed in to one account are one device with one socket: one tab leads, and takes
 * the socket; the others hear from it. When it closes, another leads. */
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
export declare class Vestnik {
	private options;
	keeper: Keeper;
	state: State;
	/** Has this tab the socket? */
	leading: boolean;
	private device;
	private channel;
	private listeners;
	private readonly tab;
	private tabs;
	private leave;
	private name;
	private leader;
	private heard;
	private running;
	private undo;
	constructor(options: Options);
	/** Hear of something from now on; the answer ends that. */
	on<K extends keyof Told>(kind: K, listener: (what: Told[K]) => void): () => void;
	/** Returns when the keeper can be read; the connection comes after. Throws what `token` throws. */
	start(): Promise<void>;
	/** This tab is no part of the device any more; another one leads if this one did. */
	stop(): Promise<void>;
	/** Send a message of the contract's first table, like `send("refresh", { source: "fns" })`; the answer comes as `message`.
	 *  It goes only while there is a session. */
	send(t: string, fields?: Message): void;
	/** Follow an agency feed, in this session and all later ones, whichever tab leads them. */
	subscribe(feed: string): void;
	/** Follow it no more, and forget what was kept of it. When it is followed again, it begins at its head. */
	unsubscribe(feed: string): void;
	/** The person was shown these. Kept, and told to the gateway now or with the next session. */
	seen(feed: string, offsets: number[]): Promise<void>;
	/** Try now instead of waiting. */
	retry(): void;
	private call;
	private post;
	private tell;
	private emit;
	private watch;
	/** Traffic saving while nobody looks. */
	private mode;
	private adjust;
	private join;
	/** Wait to lead; `steal` from a leader that is frozen. */
	private stand;
	/** Tell the others that this tab is here, and whether somebody looks at it. */
	private present;
	private hear;
	/** Take the socket; resolves when this tab stops. */
	private lead;
}
/** The account of a token, "" when it cannot be read. Only a name: the gateway checks the token. */
export declare function accountOf(token: string): string;
