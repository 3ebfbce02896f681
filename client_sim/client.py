"""A device: the contract's section 3 from the phone's side, as a mobile developer would write it.

    keeper = Notebook(Path("phone.json"))
    client = Client("http://127.0.0.1:8080", device="phone-1", token=my_token, keeper=keeper)
    await client.run()  # until cancelled, or Stopped: something must change first

What it promises to its user: whatever is committed to the followed feeds reaches `Keeper.keep` once and in order, over
lost connections, restarts of either side and restored stores; or `Keeper.replace` gets a snapshot instead. The parts,
from the inside out: `Feed` decides about events and `advice` about reconnects, without a socket or a clock; a
`_Session` is one connection; a `Client` is the life of the device.
"""

import asyncio
import contextlib
import json
import random
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.typing import Subprotocol

from client_sim.outbox import Command, Outbox
from gateway.protocol import codes
from gateway.protocol.backoff import full_jitter
from gateway.protocol.codec import by_subprotocol
from gateway.protocol.frames import TEXT

Message = dict[str, Any]
Event = dict[str, Any]
Numbered = tuple[int, Event | None]  # (offset, event); an erased event is None

ACK_AFTER_S = 0.5  # contract: "within 1 s of keeping, and at least every 64 events"
ACK_EVERY = 64
FIRST_BEAT_S = 25.0  # before the first beat has said when the next one is due
SILENCE_S = 10.0  # contract, "Silence": `next` + 10 s
HEALTHY_S = 60.0  # a session that lived so long resets the backoff
BACKOFF_S = 60.0  # until `welcome.limits` says it
BAD_MESSAGE_S = 60.0  # 4400: "try once more after 60 s"
LARGEST_FRAME = 1 << 20  # an event is 64 KiB, a batch 64 KiB or one event


class Position(NamedTuple):
    epoch: str
    offset: int


# What the application provides


class Keeper(Protocol):
    """The device's own store. Each method is one transaction: events and position together, so each counts once."""

    def positions(self) -> Mapping[str, Position]:
        """How far each feed is kept. Empty on a new or wiped device."""

    def keep(self, feed: str, position: Position, events: Sequence[Numbered]) -> None:
        """Store these events, the next ones of the feed, and the position after them. `events` may be empty."""

    def replace(self, feed: str, position: Position, snapshot: Message) -> None:
        """Take the snapshot in place of the account's state: the device is new, or continuity broke."""

    def knows(self, source: str, id: str) -> bool:
        """Is this event of an agency feed kept already? Asked after a resync only."""

    def forget(self, feed: str) -> None:
        """Nobody follows this agency feed any more: its position, and what else of it is not worth keeping."""


class Notebook:
    """A small Keeper: positions and the ids of recent public events, in a JSON file if given a path; the latest
    snapshot in memory."""

    MOST_KNOWN = 10_000

    def __init__(self, path: Path | None = None):
        self.path = path
        self.snapshot: Message | None = None
        self._positions: dict[str, Position] = {}
        self._known: dict[tuple[str, str], None] = {}
        if path is not None and path.exists():
            kept = json.loads(path.read_text("utf-8"))
            self._positions = {feed: Position(*position) for feed, position in kept["positions"].items()}
            self._known = dict.fromkeys((source, id) for source, id in kept["known"])

    def positions(self) -> Mapping[str, Position]:
        return self._positions

    def keep(self, feed: str, position: Position, events: Sequence[Numbered]) -> None:
        if feed.startswith("agency:"):
            self._known.update({(event["source"], event["id"]): None for _, event in events if event is not None})
            while len(self._known) > self.MOST_KNOWN:
                del self._known[next(iter(self._known))]
        self._positions[feed] = position
        self._write()

    def replace(self, feed: str, position: Position, snapshot: Message) -> None:
        self.snapshot = snapshot
        self._positions[feed] = position
        self._write()

    def knows(self, source: str, id: str) -> bool:
        return (source, id) in self._known

    def forget(self, feed: str) -> None:
        if self._positions.pop(feed, None) is not None:
            self._write()

    def _write(self) -> None:
        if self.path is not None:
            whole = self.path.with_suffix(".part")
            whole.write_text(json.dumps({"positions": self._positions, "known": list(self._known)}), "utf-8")
            whole.replace(self.path)


# What is decided without a socket


class Hole(Exception):
    """An offset was skipped: the connection cannot be trusted, a resume from the kept position can."""


@dataclass
class Feed:
    """What the device knows of one feed in one session. An ack never passes `received` nor `kept`."""

    name: str
    epoch: str
    start: int  # where this session began: events follow after it
    received: int  # the highest offset that came in this session, or its start
    kept: int  # the highest offset that is in the keeper
    acked: int
    loading: bool = False  # a snapshot is due: nothing is kept or acknowledged until it is
    held: list[Numbered] = field(default_factory=list)  # what came meanwhile; the window bounds it
    moved: bool = False  # something came since the last beat
    behind: bool = False  # the last beat showed a head above `received`

    def take(self, events: Sequence[Numbered]) -> list[Numbered]:
        """The events to keep now. Repeats are dropped; raises Hole."""
        fresh = []
        for offset, event in events:
            if offset <= self.received:
                continue
            if offset != self.received + 1:
                raise Hole(f"{self.name}: {offset} came after {self.received}")
            self.received = offset
            self.moved = True
            if self.loading:
                self.held.append((offset, event))
            elif offset > self.kept:
                fresh.append((offset, event))
        return fresh

    def loaded(self, offset: int) -> list[Numbered]:
        """A snapshot of all up to `offset` is kept. The held events after it; those "at or below are dropped"."""
        self.kept, self.loading = offset, False
        held, self.held = self.held, []
        return [numbered for numbered in held if numbered[0] > offset]

    def due(self) -> int | None:
        """The offset to acknowledge now, if any."""
        offset = min(self.kept, self.received)
        return offset if not self.loading and offset > self.acked else None

    def stuck(self, head: int) -> bool:
        """A beat says where the feed's head is. True at the second that shows a loss (contract, "Silence")."""
        stuck = False
        if head > self.received and self.due() is None:
            stuck = self.behind and not self.moved
            self.behind = True
        else:
            self.behind = False
        self.moved = False
        return stuck


def advice(code: int | None) -> Literal["stop", "token", "once", "again"]:
    """What a close code asks for: "the range says what to do". None is no code, or no connection at all."""
    match code:
        case codes.UNAUTHENTICATED:
            return "token"
        case codes.BAD_MESSAGE:
            return "once"
        case _:
            return "again" if codes.reconnect(code) else "stop"


# The life of a device


class Stopped(Exception):
    """Reconnecting would not help (a close code 44xx): something has to change first. `code` says what."""

    def __init__(self, code: int, reason: str):
        super().__init__(f"{code} {reason}")
        self.code, self.reason = code, reason


class NotConnected(Exception):
    """There is no session now: try again when `observe` has told of a `welcome`."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a session ended. `wait_s`: told to wait just so long (Retry-After, drain)."""

    code: int | None
    reason: str
    wait_s: float | None = None


class Refused(Exception):
    """The gateway refused something beside the socket: the session ends with this."""

    def __init__(self, ended: Ended):
        super().__init__(ended.reason)
        self.ended = ended


def _retry_after(headers: Mapping[str, str]) -> float | None:
    after = headers.get("Retry-After", "")
    return float(after) if after.isdecimal() else None


Observe = Callable[[str, Message], None]
Tap = Callable[[Literal["<", ">"], Message], None]


class Client:
    """One device of an account.

    `address` is the gateway's http(s) URL, `token` is asked for a token at the start, when one ends and when one was
    refused. `feeds` are agency feeds to follow. `observe(t, message)` is told of every message of the gateway but
    events, and of `lost` with `code`, `reason` and `wait` (seconds until the next try). `tap("<" or ">", message)` is
    told of every message as it came or just before it goes, events included. Neither may block. `outbox` keeps what is
    asked of the gateway until it is answered; give one with a file to keep it over a restart of the app.
    """

    def __init__(
        self,
        address: str,
        *,
        device: str,
        token: Callable[[], Awaitable[str]],
        keeper: Keeper,
        feeds: Sequence[str] = (),
        mode: Literal["full", "saver"] = "full",
        subprotocol: str = "vestnik.v1.json",
        agent: str = "vestnik-sim/1.0",
        observe: Observe = lambda t, message: None,
        tap: Tap = lambda way, message: None,
        outbox: Outbox | None = None,
        rng: random.Random | None = None,
    ):
        self.address = address.rstrip("/")
        self.device, self.token, self.keeper, self.agent = device, token, keeper, agent
        self.observe, self.tap = observe, tap
        self.feeds, self.mode, self.subprotocol = list(feeds), mode, subprotocol
        self.rng = rng or random.Random()
        self.outbox = outbox or Outbox(rng=self.rng)
        self.backoff_s = BACKOFF_S
        self._session: _Session | None = None

    async def run(self) -> None:
        """Stay connected until cancelled; cancelling sends the acks that are owed and closes. Raises Stopped."""
        refused = bad = 0
        top_s = 1.0
        loop = asyncio.get_running_loop()
        token = await self.token()
        async with httpx.AsyncClient(base_url=self.address, timeout=20, trust_env=False) as http:
            while True:
                began = loop.time()
                session = _Session(self, http, token)
                ended = await session.run()
                if loop.time() - began >= HEALTHY_S:
                    bad, top_s = 0, 1.0
                if session.welcomed:
                    refused, token = 0, session.token
                match advice(ended.code):
                    case "token":
                        refused += 1
                        old, token = token, await self.token()
                        if refused > 2 or token == old:
                            raise Stopped(codes.UNAUTHENTICATED, ended.reason)
                        wait = 0.0
                    case "once" if not bad:
                        bad, wait = 1, BAD_MESSAGE_S
                    case "again":
                        # "`Retry-After` and `drain` outrank it."
                        if ended.wait_s is not None:
                            wait = ended.wait_s
                        else:
                            wait = self.rng.uniform(0.0, min(top_s, self.backoff_s))
                            top_s = min(2 * top_s, self.backoff_s)
                    case _:
                        raise Stopped(ended.code or codes.BAD_MESSAGE, ended.reason)
                self.observe("lost", {"t": "lost", "code": ended.code, "reason": ended.reason, "wait": wait})
                await asyncio.sleep(wait)

    async def send(self, t: str, **fields: Any) -> None:
        """Send a message of the contract's first table, like `send("seen", feed=…, offsets=[…])`. The answer goes to
        `observe`. Raises NotConnected."""
        if self._session is None or not self._session.welcomed:
            raise NotConnected
        try:
            await self._session.send(t, **fields)
        except ConnectionClosed:
            raise NotConnected from None

    async def ask(self, t: str, **fields: Any) -> str:
        """Ask for something that must not get lost with a connection, like `ask("refresh", source=…)` or `ask("seen",
        feed=…, offsets=[…])`: it is sent now or after the next welcome, again after each reconnect, until it is
        answered. Returns its `ref`; the answer goes to `observe`. Raises outbox.Full."""
        if t == "subscribe" and fields["feed"] not in self.feeds:
            self.feeds.append(fields["feed"])
        elif t == "unsubscribe" and fields["feed"] in self.feeds:
            self.feeds.remove(fields["feed"])
            if self._session is not None:
                self._session.feeds.pop(fields["feed"], None)  # what is on its way comes too late
            self.keeper.forget(fields["feed"])
        command = self.outbox.put(t, **fields)
        if self._session is not None and self._session.welcomed:
            with contextlib.suppress(ConnectionClosed):
                await self._session.ask(self.outbox.due())
        return command.ref

    async def subscribe(self, feed: str) -> None:
        """Follow an agency feed, in this and all later sessions."""
        await self.ask("subscribe", feed=feed)

    async def unsubscribe(self, feed: str) -> None:
        """Follow it no more; when it is followed again, it begins at its head."""
        await self.ask("unsubscribe", feed=feed)


class _Session:
    """One connection, from the handshake to its end."""

    def __init__(self, client: Client, http: httpx.AsyncClient, token: str):
        self.client, self.http = client, http
        self.token = self._offered = token
        self.welcomed = False
        self.feeds: dict[str, Feed] = {}
        self._codec = by_subprotocol[client.subprotocol]
        self._resume: dict[str, Message] = {}  # agency feeds to subscribe to after a fresh hello
        self._next_beat_s = FIRST_BEAT_S
        self._unacked = 0
        self._acking = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended: Ended | None = None  # why we ended it ourselves
        self._ws: ClientConnection

    async def run(self) -> Ended:
        """Connect, follow until the connection ends, and say how it did."""
        client = self.client
        try:
            async with connect(
                client.address.replace("http", "ws", 1) + "/v1/socket",
                subprotocols=[Subprotocol(client.subprotocol)],
                compression="deflate" if client.mode == "saver" else None,  # only saver batches are compressed
                max_size=LARGEST_FRAME,
                ping_interval=None,  # the gateway's beats carry pings; ours would cost the radio once more
                close_timeout=2,
                proxy=None,
            ) as self._ws:
                client._session = self
                try:
                    await self._follow()
                finally:
                    client._session = None
                    client.outbox.session_ended()
                    await self._leave()
        except ConnectionClosed as closed:
            if self._ended is None:
                code, reason = (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else (None, "connection lost")
                self._ended = Ended(code, reason)
        except InvalidStatus as refused:
            status, headers = refused.response.status_code, refused.response.headers
            self._ended = Ended(None, f"refused with {status}", _retry_after(headers))
        except (OSError, TimeoutError, InvalidHandshake) as error:
            self._ended = self._ended or Ended(None, str(error) or "no connection in time")
        return self._ended or Ended(None, "closed")

    async def send(self, t: str, **fields: Any) -> None:
        message = {"t": t, **fields}
        self.client.tap(">", message)
        await self._ws.send(self._codec.encode(message), text=self._codec.opcode == TEXT)

    async def ask(self, commands: Sequence[Command]) -> None:
        """Send what waits in the outbox. A feed is followed from where it is kept now, not when it was asked for."""
        for command in commands:
            position = self.client.keeper.positions().get(command.fields.get("feed", ""))
            for message in command.messages():
                if message["t"] == "subscribe" and position is not None:
                    message["resume"] = position._asdict()
                await self.send(**message)

    async def _follow(self) -> None:
        await self._hello()
        while True:
            try:
                async with asyncio.timeout(self._next_beat_s + SILENCE_S):
                    frame = await self._ws.recv(decode=False)
            except TimeoutError:
                return self._end("silence")
            try:
                message = self._codec.read(frame)
                self.client.tap("<", message)
                await self._receive(message)
            except (Hole, ValueError) as fault:
                return self._end(str(fault))
            if self._ended is not None:
                return None

    def _end(self, reason: str, wait_s: float | None = None) -> None:
        self._ended = Ended(None, reason, wait_s)

    async def _leave(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(ConnectionClosed, TimeoutError):
            async with asyncio.timeout(1):
                await self._ack()

    def _spawn(self, work: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> None:
        """Do this beside reading, until the session ends. A failure ends the session, and the next one tries anew."""

        async def guarded() -> None:
            try:
                await work(*arguments)
            except Refused as refused:
                self._ended = refused.ended
            except (ConnectionClosed, httpx.HTTPError, KeyError, ValueError) as error:
                self._end(repr(error))
            if self._ended is not None:
                with contextlib.suppress(ConnectionClosed):
                    await self._ack()
                await self._ws.close()

        task = asyncio.create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # The start

    async def _hello(self) -> None:
        client = self.client
        wanted = {
            feed: position._asdict()
            for feed, position in client.keeper.positions().items()
            if feed.startswith("account:") or feed in client.feeds
        }
        fresh = not any(feed.startswith("account:") for feed in wanted)
        feeds = client.feeds
        if fresh:
            # Nothing of the account is kept here, whatever the gateway remembers of this device. That forgets all of
            # its positions: an agency feed that is kept nevertheless is resumed after the welcome.
            feeds = [feed for feed in feeds if feed not in wanted]
            self._resume, wanted = wanted, {}
        hello: Message = {"token": self.token, "device": client.device, "mode": client.mode, "agent": client.agent}
        if feeds:
            hello["feeds"] = feeds
        if wanted:
            hello["resume"] = wanted
        if fresh:
            hello["fresh"] = True
        await self.send("hello", **hello)

    def _begin(self, item: Message, *, new: bool = False) -> None:
        """A feed starts: an item of `welcome.feeds`, or `subscribed`."""
        name, epoch, start = item["feed"], item["epoch"], item["from"]
        kept = self.client.keeper.positions().get(name)
        feed = Feed(name, epoch, start, received=start, kept=start, acked=start)
        self.feeds[name] = feed
        if new and name.startswith("account:"):
            self._load(feed)
        elif kept is None:
            self.client.keeper.keep(name, Position(epoch, start), [])
        elif kept.epoch == epoch:
            feed.kept = max(start, kept.offset)

    def _load(self, feed: Feed) -> None:
        """On `resync` or `new`: until the snapshot is kept, nothing of the feed is acknowledged."""
        feed.loading, feed.acked = True, feed.start - 1
        self._spawn(self._load_account if feed.name.startswith("account:") else self._load_agency, feed)

    async def _load_account(self, feed: Feed) -> None:
        for wait in islice(full_jitter(self.client.rng, cap=5), 10):
            answer = await self._get("/v1/snapshot")
            position = Position(**answer["positions"][feed.name])
            # "it covers at least that offset, else fetch again"
            if position.epoch == feed.epoch and position.offset >= feed.start:
                self.client.keeper.replace(feed.name, position, answer)
                return self._keep(feed, feed.loaded(position.offset))
            await asyncio.sleep(wait)
        raise ValueError(f"no snapshot that covers offset {feed.start}")

    async def _load_agency(self, feed: Feed) -> None:
        keeper = self.client.keeper
        kept = keeper.positions().get(feed.name)
        offset = kept.offset if kept and kept.epoch == feed.epoch else 0
        query: dict[str, Any] = {"after": offset, "limit": 500}
        while True:  # ends: each page is further on, and the head is where this session began or a little after
            page = await self._get(f"/v1/feeds/{feed.name}/events", query)
            if page["epoch"] != feed.epoch:
                raise ValueError("the store was restored meanwhile")
            offset = max([offset, *(offset for offset, _ in page["events"])])
            new = [(o, e) for o, e in page["events"] if e is None or not keeper.knows(e["source"], e["id"])]
            if page["next"] is None or offset >= feed.start:
                break
            keeper.keep(feed.name, Position(feed.epoch, offset), new)
            query = {"page": page["next"]}
        offset = max(offset, feed.start)  # what retention removed before it comes no more
        keeper.keep(feed.name, Position(feed.epoch, offset), new)
        self._keep(feed, feed.loaded(offset))

    async def _get(self, path: str, query: Mapping[str, Any] | None = None) -> Message:
        answer = await self.http.get(path, params=query, headers={"authorization": f"Bearer {self.token}"})
        if answer.status_code == 401:
            raise Refused(Ended(codes.UNAUTHENTICATED, "the token was refused"))
        if answer.is_error:
            raise Refused(Ended(None, f"{path} was answered {answer.status_code}", _retry_after(answer.headers)))
        body: Message = answer.json()
        return body

    # What comes

    async def _receive(self, message: Message) -> None:
        match message["t"]:
            case "event":
                await self._events(message["feed"], [(message["offset"], message["event"])])
                return
            case "batch":
                await self._events(message["feed"], [(offset, event) for offset, event in message["events"]])
                return
            case "welcome":
                self.welcomed = True
                self.client.backoff_s = message["limits"]["backoff"]
                for item in message["feeds"]:
                    self._begin(item, new=message["new"])
                for name, position in self._resume.items():
                    await self.send("subscribe", feed=name, resume=position)
                await self.ask(self.client.outbox.due())
            case "subscribed":
                self._begin(message)
            case "unsubscribed":
                self.feeds.pop(message["feed"], None)
                if message["feed"] not in self.client.feeds:
                    self.client.keeper.forget(message["feed"])
            case "resync":
                feed = self.feeds[message["feed"]]
                feed.epoch, offset = message["epoch"], message["offset"]
                feed.start = feed.received = feed.kept = offset
                if not feed.loading:  # else `new` has begun it
                    self._load(feed)
            case "beat":
                self._next_beat_s = message["next"]
                stuck = [f.name for f in self.feeds.values() if f.stuck(message["heads"].get(f.name, 0))]
                if stuck:
                    self._end(f"two beats showed more of {stuck[0]} than came")
            case "renewed":
                self.token = self._offered
            case "expiring":
                self._spawn(self._renew)
            case "mode":
                self.client.mode = message["mode"]
            case "drain":
                self._spawn(self._drain, self.client.rng.uniform(0, message["after"]))
        self.client.outbox.answered(message)
        self.client.observe(message["t"], message)

    async def _events(self, name: str, events: Sequence[Numbered]) -> None:
        feed = self.feeds.get(name)
        if feed is None:
            return  # unsubscribed a moment ago
        self._keep(feed, feed.take(events))
        self._unacked += len(events)
        if self._unacked >= ACK_EVERY:
            await self._ack()

    def _keep(self, feed: Feed, events: Sequence[Numbered]) -> None:
        if events:
            last = events[-1][0]
            self.client.keeper.keep(feed.name, Position(feed.epoch, last), events)
            feed.kept = last
        if feed.due() is not None and not self._acking:
            self._acking = True
            self._spawn(self._ack_soon)

    async def _ack_soon(self) -> None:
        await asyncio.sleep(ACK_AFTER_S)
        self._acking = False
        await self._ack()

    async def _ack(self) -> None:
        self._unacked = 0
        for feed in self.feeds.values():
            offset = feed.due()
            if offset is not None:
                feed.acked = offset
                await self.send("ack", feed=feed.name, offset=offset)

    async def _renew(self) -> None:
        self._offered = await self.client.token()
        await self.send("token", token=self._offered)

    async def _drain(self, wait_s: float) -> None:
        await asyncio.sleep(wait_s)
        self._end("the node goes away", wait_s=0)
