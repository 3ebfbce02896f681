"""One of thousands of devices: a small protocol object, no task, no parser state between frames.

It keeps the contract as `client.Client` does (they share what decides: `Feed`, `advice`, the backoff), lives as its
behaviour says, and writes into the journal whatever it was told. All devices live in one loop and one `World`.
"""

import asyncio
import socket
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from datetime import datetime
from random import Random
from typing import Any, Protocol, cast

from client_sim.attacks import ATTACKS, Attack
from client_sim.behaviours import Behaviour, Step
from client_sim.client import BAD_MESSAGE_S, HEALTHY_S, SILENCE_S, Feed, Hole, Numbered, Position, advice
from client_sim.framing import BINARY, CLOSE, PING, TEXT, Reader, Strange, masked, status_of, upgrade
from client_sim.journal import Record, digest
from client_sim.measure import Tally
from client_sim.pool import Unanswered
from gateway.protocol import codes
from gateway.protocol.backoff import full_jitter
from gateway.protocol.codec import JSON, by_subprotocol

ACK_EVERY = 64
OPENING_S = 20.0  # from the first byte to the welcome
FIRST_BEAT_S = 25.0
HALF_OPEN_S = 45.0  # how long a connection lost in a tunnel stays open on the gateway's side
PROBE_S = 10.0  # for the answer to a ping
SMALL_BUFFER = 4096
MOST_SEEN = 16  # offsets of one look at the screen
MOST_KNOWN = 512  # ids of public events that a device remembers over a broken continuity
SNAPSHOT_TRIES = 8


class World(Protocol):
    """What the devices share."""

    loop: asyncio.AbstractEventLoop
    tally: Tally
    dirty: set["Device"]

    def now(self) -> float:
        """Unix seconds, exact to about a millisecond, and cheap."""

    def note(self, record: Record) -> None:
        """A line of the devices' journal, as `journal` describes them."""

    def token(self, account: str) -> str: ...

    def route(self, network: str) -> tuple[str, int]:
        """Where the gateway is reached through this network."""

    async def get(self, device: "Device", path: str, query: dict[str, Any] | None = None) -> tuple[int, Any]:
        """A GET with the device's token through its network. Raises Unanswered."""

    def spawn(self, work: Coroutine[Any, Any, None]) -> None: ...

    def half_open(self, transport: asyncio.Transport, seconds: float) -> None:
        """Keep a connection that nobody reads any more, then drop it."""


class Device(asyncio.Protocol):
    """A device of `account`, on `network`, that lives as `behaviour` says. `name` is its id, new at each reinstall.

    `perform` is given the steps of its schedule. `positions` is what it keeps: it survives every disconnect.
    """

    __slots__ = (
        "_acking", "_attack", "_awake", "_backoff", "_bad", "_beat_s", "_began", "_clock", "_codec", "_deadline",
        "_feeds", "_known", "_late", "_live", "_loading", "_pauses", "_reader", "_refused", "_run", "_session",
        "_shown", "_timer", "_token", "_transport", "_unacked", "account", "agent", "behaviour", "feeds",
        "installs", "name", "network", "number", "positions", "rng", "saver", "state", "wanted", "world",
    )  # fmt: skip

    def __init__(
        self,
        world: World,
        number: int,
        account: str,
        behaviour: Behaviour,
        network: str,
        rng: Random,
        *,
        follows: Sequence[str] = (),
        subprotocol: str = "vestnik.v1.json",
    ):
        self.world, self.number, self.account, self.network, self.rng = world, number, account, network, rng
        self.feeds = [f"account:{account}", *follows]
        self.behaviour, self.agent, self.saver = behaviour, behaviour.agent, behaviour.saver
        self.installs = 0
        self.name = f"d{number}"
        self._run: Record | None = None  # kept events that follow each other, not noted yet
        self.positions: dict[str, Position] = {}
        self.wanted = False  # to be connected
        self.state = "away"
        self._codec = by_subprotocol[subprotocol]
        self._clock = rng.uniform(-behaviour.clock_s, behaviour.clock_s) if behaviour.clock_s else 0.0
        self._late = 0.0  # what has to be added to its own clock: learnt from `welcome.time`
        self._transport: asyncio.Transport | None = None
        self._reader = Reader()
        self._feeds: dict[str, Feed] = {}
        self._live = 0
        self._session = ""
        self._loading = 0
        self._unacked = 0
        self._awake = 0.0  # since when it reads
        self._acking = behaviour.acks
        self._shown: list[int] = []
        self._known: dict[str, None] = {}
        self._token = ""
        self._began = 0.0
        self._beat_s = FIRST_BEAT_S
        self._deadline = 0.0
        self._bad = self._refused = 0
        self._backoff = 60.0
        self._pauses: Iterator[float] = full_jitter(rng)
        self._timer: asyncio.TimerHandle | None = None
        self._attack: Attack | None = None
        world.tally.states["away"] += 1

    # Its life

    def perform(self, step: Step) -> None:
        """Do what the schedule says now."""
        match step.do:
            case "online":
                self.online()
            case "offline":
                self.offline()
            case "tunnel":
                self.wanted = False
                self._lose()
            case "reset":
                self.cut()
            case "roam":
                self._roam(step.arg)
            case "saver":
                self._mode(True)
            case "full":
                self._mode(False)
                self._probe()
            case "freeze":
                if self._transport is not None:
                    self._transport.pause_reading()
                    self._say("frozen")
            case "thaw":
                self._thaw()
            case "look":
                self._look()
            case "refresh":
                self._send({"t": "refresh", "source": f"/agencies/{step.arg}", "ref": f"r{step.at:.0f}"})
            case "reinstall":
                self._reinstall()
            case "update":
                self.agent = "vestnik-sim/1.0"
                if self.state == "stopped":
                    self._connect()
            case "attack":
                self._begin_attack(ATTACKS[step.arg])

    def online(self) -> None:
        """Be connected from now on. Does nothing to a device that is, or waits to be."""
        self.wanted = True
        if self._transport is None and self.state not in ("connecting", "waiting", "stopped"):
            self._connect()

    def offline(self) -> None:
        """Say goodbye and stay away."""
        self.wanted = False
        self._quiet()
        if self._transport is not None:
            self._flush()
            self._close(1001, "away")
        else:
            self._say("away")

    def cut(self) -> None:
        """Reset the connection; the device comes back by itself."""
        if self._transport is not None:
            self._transport.abort()

    def settle(self) -> None:
        """From now on an ordinary device: connected, reading, acknowledging. For the end of a run."""
        if not self.behaviour.owed:
            return self.offline()
        self._acking = True
        self.agent = "vestnik-sim/1.0"
        self._mode(False)
        self._thaw()
        self._probe()
        if self.state in ("waiting", "stopped"):
            self._quiet()
            self._say("away")
        if not self.behaviour.resumes:
            self.cut()
        return self.online()

    def leave(self, owed: bool) -> None:
        """The run ends: nothing more is noted. Without `owed`, or when it does not stand by its own duties, the device
        says that it is owed nothing."""
        self.offline()
        if not (owed and self.behaviour.owed):
            self._note("away", why=self.behaviour.name if owed else "interrupted")

    def behind(self, heads: Mapping[str, int], left: Collection[str] = ()) -> bool:
        """Is anything of its feeds, as far as `heads` says, not kept yet, or kept of an epoch that was left?"""
        return any(feed in heads and self._kept(feed) < heads[feed] for feed in self.feeds) or any(
            position.epoch in left for position in self.positions.values()
        )

    def acknowledge(self) -> None:
        """Send what is owed. Called by the world some time after events were kept."""
        if self._transport is not None and self._acking:
            self._flush()

    def check(self, now: float) -> None:
        """Contract, "Silence": has the connection, or its start, waited too long? Called about every second."""
        if self._transport is None or now < self._deadline or self.state == "frozen":
            return
        if self._attack is not None:
            self._outcome("nothing")
        self._lost(None, "silence")

    # Connections

    def _connect(self) -> None:
        self._quiet()
        self._session = ""  # a snapshot that still comes belongs to the session before
        if not self._token or self._refused:
            self._token = self.world.token(self.account)
        self._say("connecting")
        self.world.spawn(self._open())

    async def _open(self) -> None:
        host, port = self.world.route(self.network)
        try:
            async with asyncio.timeout(OPENING_S):
                await self.world.loop.create_connection(lambda: self, host, port)
        except (OSError, TimeoutError) as error:
            if self._transport is None and self.state == "connecting":
                self._again(None, type(error).__name__)

    def connection_made(self, made: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, made)
        if self._transport is not None or self.state != "connecting":
            # The network went away and came back meanwhile: this one comes too late.
            return _detached(transport).abort()
        self._transport, self._reader, self._feeds = transport, Reader(), {}
        self._live = self._loading = self._unacked = 0
        self._began = self.world.now()
        self._deadline = self._began + OPENING_S
        self._beat_s = FIRST_BEAT_S
        if self.behaviour.small_buffer:
            _shrink(transport)
        if self._attack is not None:
            self._deadline = self._began + self._attack.patience_s
            if self._attack.moment == "connected":
                return self._strike()
        host, port = self.world.route(self.network)
        offered = upgrade(f"{host}:{port}", self._codec.subprotocol, self.rng, deflate=self.saver)
        return transport.write(offered)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            if self._attack is not None:
                self._outcome("closed")
            self._lost(None, type(exc).__name__ if exc else "end of stream")

    def data_received(self, data: bytes) -> None:
        self.world.tally.counts["received_bytes"] += len(data)
        reader = self._reader
        try:
            if not reader.opened:
                head = reader.head(data)
                if head is None or not self._upgraded(head):
                    return
                data = b""
            for opcode, payload in reader.frames(data):
                self._frame(opcode, payload)
                if self._transport is None:
                    return
        except (Hole, Strange, ValueError, KeyError) as fault:
            self.world.tally.counts["faults"] += 1
            self._fail(repr(fault))

    def _upgraded(self, head: bytes) -> bool:
        status, retry_after = status_of(head)
        if status == 101:
            self._hello()
            return True
        if self._attack is not None:
            self._outcome(f"refused {status}")
        self._fail(f"refused {status}", retry_after)
        return False

    def _frame(self, opcode: int, payload: bytes) -> None:
        if self._attack is None:
            self._deadline = self.world.now() + self._beat_s + SILENCE_S
        if opcode in (TEXT, BINARY):
            self._message(self._codec.read(payload))
        elif opcode == PING:
            self._write(masked(0xA, payload))
        elif opcode == CLOSE:
            code = int.from_bytes(payload[:2], "big") if len(payload) >= 2 else 1005
            self._write(masked(CLOSE, payload[:2]))
            if self._attack is not None:
                self._outcome(f"closed {code}")
            self._lost(code, payload[2:].decode(errors="replace"))

    def _close(self, code: int, why: str) -> None:
        self._write(masked(CLOSE, code.to_bytes(2, "big")))
        self._lost(code, why)

    def _fail(self, why: str, retry_after: float | None = None) -> None:
        self._lost(None, why, retry_after)

    def _lose(self) -> None:
        """The connection is gone and nobody was told."""
        self._quiet()
        transport, self._transport = self._transport, None
        if transport is not None:
            self.world.half_open(_detached(transport), HALF_OPEN_S)
            self._after(None, "tunnel")
        self._say("away")

    def _roam(self, network: str) -> None:
        self._lose()
        self.network = network
        if self.wanted:
            self._connect()

    def _lost(self, code: int | None, why: str, retry_after: float | None = None) -> None:
        """The connection ended, from either side; decides what follows."""
        transport, self._transport = self._transport, None
        if transport is not None:
            _detached(transport).close()
            self._after(code, why)
        self._again(code, why, retry_after)

    def _after(self, code: int | None, why: str) -> None:
        self.world.dirty.discard(self)
        self.world.tally.counts["ended"] += 1
        self.world.tally.closes[str(code) if code else why] += 1
        if self._attack is None:
            self._note("lost", code=code, why=why)
        if self.world.now() - self._began >= HEALTHY_S:
            self._bad, self._pauses = 0, full_jitter(self.rng, cap=self._backoff)

    def _again(self, code: int | None, why: str, retry_after: float | None = None) -> None:
        self._attack = None
        if not self.wanted:
            return self._say("away")
        match advice(code):
            case "token" if self._refused < 2:
                self._refused += 1
                wait = 0.0
            case "once" if not self._bad:
                self._bad, wait = 1, BAD_MESSAGE_S
            case "again":
                wait = min(next(self._pauses), self._backoff) if retry_after is None else retry_after
            case _ if code == codes.REPLACED:
                # Contract, close codes: "nothing if you opened it; else wait for the person", who comes sometime.
                wait = self.rng.uniform(1, 5)
            case _:
                return self._say("stopped")
        return self._wait(wait)

    def _wait(self, seconds: float) -> None:
        self._quiet()
        self._say("waiting")
        self._timer = self.world.loop.call_later(seconds, self._connect)

    def _quiet(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # What it says

    def _hello(self) -> None:
        if self._attack is not None and self._attack.moment == "upgraded":
            return self._strike()
        hello = self._greeting()
        self.world.tally.counts["hellos"] += 1
        if self._attack is None:
            self._note(
                "hello", **{name: value for name, value in hello.items() if name not in ("t", "token", "device")}
            )
        return self._send(hello)

    def _greeting(self) -> dict[str, Any]:
        hello: dict[str, Any] = {"t": "hello", "token": self._token, "device": self.name, "agent": self.agent}
        if self.feeds[0] not in self.positions:
            # Nothing of the account is kept, so nothing is: `fresh` makes the gateway forget all positions, too.
            self.positions.clear()
            hello["fresh"] = True
        if self.saver:
            hello["mode"] = "saver"
        if len(self.feeds) > 1:
            hello["feeds"] = self.feeds[1:]
        if self.behaviour.resumes or self._acking != self.behaviour.acks:
            resume = {feed: position._asdict() for feed, position in self.positions.items() if feed in self.feeds}
            if resume:
                hello["resume"] = resume
        return hello

    def _send(self, message: dict[str, Any]) -> None:
        if self._transport is not None and self._reader.opened:
            self._write(masked(self._codec.opcode, self._codec.encode(message)))

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _flush(self) -> None:
        self._unacked = 0
        for feed in self._feeds.values():
            offset = feed.due()
            if offset is not None:
                feed.acked = offset
                self.world.tally.counts["acks"] += 1
                self._note("ack", feed=feed.name, offset=offset)
                self._send({"t": "ack", "feed": feed.name, "offset": offset})

    def _mode(self, saver: bool) -> None:
        if saver != self.saver:
            self.saver = saver
            if self._feeds:
                self._send({"t": "mode", "mode": "saver" if saver else "full"})

    def _look(self) -> None:
        if self._shown and self._feeds:
            self._send({"t": "seen", "feed": self.feeds[0], "offsets": self._shown})
            self._shown = []

    def _probe(self) -> None:
        """The app is looked at: is the connection still one? Nobody waits for a beat to find out."""
        if self._feeds and self._transport is not None and self.state != "frozen":
            self._send({"t": "ping"})
            self._deadline = min(self._deadline, self.world.now() + PROBE_S)

    def _thaw(self) -> None:
        if self.state == "frozen" and self._transport is not None:
            self._awake = self.world.now()
            self._deadline = self._awake + self._beat_s + SILENCE_S
            self._say(self._phase())
            self._transport.resume_reading()

    def _reinstall(self) -> None:
        """Another id, nothing kept: for the gateway a new device, for the journal too."""
        self._lose()
        self.positions.clear()
        self._known.clear()
        self._shown.clear()
        self._note("away", why="reinstalled")
        self.installs += 1
        self.name = f"d{self.number}.{self.installs}"
        if self.wanted:
            self._connect()

    # What it hears

    def _message(self, message: dict[str, Any]) -> None:
        kind = message["t"]
        if self._attack is not None and kind != "welcome":
            if kind == "error":
                self._outcome(f"error {message['code']}")
                self._close(1000, "done")
            return
        known = self.behaviour.known
        if known is not None and kind not in known and self.agent == self.behaviour.agent:
            return
        match kind:
            case "event":
                self._events(message["feed"], ((message["offset"], message["event"]),))
            case "batch":
                self._events(message["feed"], message["events"])
            case "live":
                self._live += 1
                if self._live == len(self._feeds):
                    self._caught_up()
            case "beat":
                self._beat(message)
            case "welcome":
                self._welcome(message)
            case "resync":
                self._resync(message)
            case "drain":
                self._quiet()
                wait = self.rng.uniform(0, message["after"])
                self._timer = self.world.loop.call_later(wait, self._drain)
            case "expiring":
                self._token = self.world.token(self.account)
                self._send({"t": "token", "token": self._token})
            case "error":
                self.world.tally.counts["errors"] += 1
                self._note("error", code=message["code"], detail=message["detail"])
            case "refresh":
                self.world.tally.counts[f"refresh_{message['status']}"] += 1

    def _welcome(self, message: dict[str, Any]) -> None:
        now = self.world.now()
        self._session, self._backoff = message["session"], message["limits"]["backoff"]
        self._refused = 0
        self._late = _unix(message["time"]) - (now + self._clock)
        self.world.tally.counts["opened"] += 1
        if self._attack is not None:
            return self._strike() if self._attack.moment == "welcomed" else None
        self._heard(message)
        for item in message["feeds"]:
            name, epoch, start = item["feed"], item["epoch"], item["from"]
            feed = Feed(name, epoch, start, received=start, kept=start, acked=start)
            self._feeds[name] = feed
            kept = self.positions.get(name)
            if message["new"] and name == self.feeds[0]:
                self._load(feed)
            elif kept is None:
                self.positions[name] = Position(epoch, start)
            elif kept.epoch == epoch:
                feed.kept = max(start, kept.offset)
        return self._say(self._phase())

    def _resync(self, message: dict[str, Any]) -> None:
        feed, offset = self._feeds[message["feed"]], message["offset"]
        self.world.tally.counts["resyncs"] += 1
        self._heard(message)
        feed.epoch = message["epoch"]
        feed.start = feed.received = feed.kept = offset
        if feed.name == self.feeds[0]:
            self._shown.clear()  # offsets of what may not be there any more
        if not feed.loading:
            self._load(feed)

    def _events(self, name: str, events: Sequence[Numbered]) -> None:
        feed = self._feeds.get(name)
        if feed is None:
            return
        now, before = self.world.now(), max(feed.kept, feed.received if feed.loading else 0)
        for offset, event in events:
            self._received(feed, offset, event, now, offset <= before)
        self._keep(feed, feed.take(events))
        self._unacked += len(events)
        if self._unacked >= ACK_EVERY and self._acking:
            self._flush()

    def _received(self, feed: Feed, offset: int, event: dict[str, Any] | None, now: float, repeat: bool) -> None:
        counts = self.world.tally.counts
        if repeat:
            counts["repeats"] += 1
        else:
            counts["delivered"] += 1
            # What waited for the device itself, frozen or in traffic saving mode, says nothing of the gateway.
            if event is not None and self.state == "live" and not self.saver and _unix(event["time"]) >= self._awake:
                # The device's own clock, put right by `welcome.time`: a wrong clock must not show in what it measures.
                self.world.tally.arrived(now - _unix(event["time"]))
                self.world.tally.wire.add(max(0.0, now + self._clock + self._late - _unix(event["recordedtime"])))
        source, id, content = (event["source"], event["id"], digest(event)) if event is not None else (None, None, None)
        # Not `_note`: the run of kept events may go on.
        self.world.note(
            {
                "t": "event",
                "at": round(now, 3),
                "device": f"{self.account}/{self.name}",
                "feed": feed.name,
                "epoch": feed.epoch,
                "offset": offset,
                "source": source,
                "id": id,
                "digest": content,
            }
        )

    def _keep(self, feed: Feed, events: Sequence[Numbered]) -> None:
        if events:
            first, last = events[0][0], events[-1][0]
            self.positions[feed.name] = Position(feed.epoch, last)
            feed.kept = last
            self._ran(feed, first, last, len(events))
            if feed.name == self.feeds[0]:
                self._shown = [*self._shown, *(offset for offset, _ in events)][-MOST_SEEN:]
            elif feed.name.startswith("agency:"):
                self._remember(events)
        self.world.dirty.add(self)

    def _remember(self, events: Sequence[Numbered]) -> None:
        self._known.update((event["id"], None) for _, event in events if event is not None)
        while len(self._known) > MOST_KNOWN:
            del self._known[next(iter(self._known))]

    def _beat(self, message: dict[str, Any]) -> None:
        self._beat_s = message["next"]
        self._deadline = self.world.now() + self._beat_s + SILENCE_S
        heads = message["heads"]
        self._heard(message)
        for feed in self._feeds.values():
            if feed.stuck(heads.get(feed.name, 0)):
                self.world.tally.counts["holes_noticed"] += 1
                return self._fail("two beats showed more than came")
        return None

    def _caught_up(self) -> None:
        if self.state == "catching up":
            self.world.tally.caught_up(self.world.now() - self._began)
        if self.state != "frozen":
            self._say(self._phase())

    def _drain(self) -> None:
        """ "`drain` outrank[s] it": a new connection at once."""
        self._timer = None
        if self._transport is not None:
            self._flush()
            self._transport.write(masked(CLOSE, (1001).to_bytes(2, "big")))
            transport, self._transport = self._transport, None
            _detached(transport).close()
            self._after(None, "drained")
            if self.wanted:
                self._connect()

    # Snapshots

    def _load(self, feed: Feed) -> None:
        """On `resync` or `new`: until the snapshot is kept, nothing of the feed is acknowledged."""
        feed.loading, feed.acked = True, feed.start - 1
        self._loading += 1
        load = self._load_account if feed.name == self.feeds[0] else self._load_agency
        self.world.spawn(self._loaded(feed, self._session, load))

    async def _loaded(self, feed: Feed, session: str, load: "Callable[[Feed], Coroutine[Any, Any, int]]") -> None:
        try:
            offset = await load(feed)
        except (Unanswered, KeyError, ValueError) as error:
            if session == self._session and self._transport is not None:
                self._fail(f"no snapshot: {error}")
            return
        if session != self._session or self._transport is None:
            return  # of another connection: that one loads its own
        self._loading -= 1
        self.world.tally.counts["snapshots"] += 1
        if feed.name == self.feeds[0]:
            self._note("snapshot", feed=feed.name, epoch=feed.epoch, offset=offset)
        else:
            self._note("keep", feed=feed.name, epoch=feed.epoch, first=offset, offset=offset, events=0)
        self.positions[feed.name] = Position(feed.epoch, offset)
        self._keep(feed, feed.loaded(offset))
        if self.state == "loading":
            self._say(self._phase())

    async def _load_account(self, feed: Feed) -> int:
        pauses = full_jitter(self.rng, cap=5)
        for _ in range(SNAPSHOT_TRIES):
            status, answer = await self.world.get(self, "/v1/snapshot")
            if status == 200:
                position = Position(**answer["positions"][feed.name])
                # "it covers at least that offset, else fetch again"
                if position.epoch == feed.epoch and position.offset >= feed.start:
                    return position.offset
            await asyncio.sleep(next(pauses))
        raise ValueError(f"no snapshot that covers offset {feed.start} of {feed.name}")

    async def _load_agency(self, feed: Feed) -> int:
        """ "For an agency feed page through its history and drop known (`source`, `id`)." """
        kept = self.positions.get(feed.name)
        after = kept.offset if kept is not None and kept.epoch == feed.epoch else 0
        while after < feed.start:  # ends: each page is further on, and the head is where this session began
            status, page = await self.world.get(self, f"/v1/feeds/{feed.name}/events", {"after": after, "limit": 500})
            if status != 200 or page["epoch"] != feed.epoch:
                raise ValueError(f"the history of {feed.name} was answered with {status}")
            self._remember(page["events"])
            if not page["events"] or page["next"] is None:
                break
            after = page["events"][-1][0]
        return max(after, feed.start)

    # Attacks

    def _begin_attack(self, attack: Attack) -> None:
        if self._transport is None and self.state == "away":
            self._attack = attack
            self._codec = JSON  # in which the attacks are written
            self._connect()

    def _strike(self) -> None:
        assert self._attack is not None
        self._write(self._attack.make(self.rng, self._greeting(), self.feeds[0]))

    def _outcome(self, outcome: str) -> None:
        attack, self._attack = self._attack, None
        assert attack is not None
        allowed = outcome in attack.allowed
        self.world.tally.attacks[f"{attack.name}: {outcome}"] += 1
        self.world.tally.counts["attacks"] += 1
        if not allowed:
            self.world.tally.counts["attacks_got_through"] += 1
        self._note("attack", name=attack.name, outcome=outcome, allowed=allowed)

    # Small things

    def _kept(self, feed: str) -> int:
        position = self.positions.get(feed)
        return position.offset if position is not None else 0

    def _phase(self) -> str:
        if self._live < len(self._feeds) or not self._feeds:
            return "catching up"
        return "loading" if self._loading else "live"

    def _say(self, state: str) -> None:
        if state != self.state:
            states = self.world.tally.states
            states[self.state] -= 1
            states[state] += 1
            self.state = state

    # Notes

    def _note(self, t: str, **fields: Any) -> None:
        run, self._run = self._run, None
        if run is not None:
            self.world.note(run)
        at = round(self.world.now(), 3)
        self.world.note({"t": t, "at": at, "device": f"{self.account}/{self.name}", **fields})

    def _heard(self, message: dict[str, Any]) -> None:
        """A message of the gateway, as it is."""
        self._note(**message)

    def _ran(self, feed: Feed, first: int, last: int, number: int) -> None:
        """Kept: the next events of a feed. Those of one feed that follow each other are noted as one."""
        run = self._run
        if run is not None and (run["feed"], run["epoch"], run["offset"]) == (feed.name, feed.epoch, first - 1):
            run["offset"] = last
            run["events"] += number
            return
        if run is not None:
            self.world.note(run)
        who, at = f"{self.account}/{self.name}", round(self.world.now(), 3)
        where = {"feed": feed.name, "epoch": feed.epoch, "first": first, "offset": last, "events": number}
        self._run = {"t": "keep", "at": at, "device": who, **where}


class _Nobody(asyncio.Protocol):
    """Hears what still comes through a connection that a device has left."""


_NOBODY = _Nobody()


def _detached(transport: asyncio.Transport) -> asyncio.Transport:
    """Whatever it still says is not for the device any more: that may be in its next connection already."""
    transport.set_protocol(_NOBODY)
    return transport


def _unix(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _shrink(transport: asyncio.Transport) -> None:
    """A small receive buffer: what the device does not read, the gateway feels."""
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
