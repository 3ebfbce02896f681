"""A gateway without sockets: the real hub, sessions and memory store, with everything around them held in the hand.

`Clock` stands for the module `time` in hub and session; `Air` is a bus whose messages a test delivers, loses or
repeats; `Held` is a store whose answers a test may keep back; `Phone` is what a session writes to, and reads what came.
"""

import asyncio
import hashlib
import zlib
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Any

import orjson
import pytest

import gateway.hub
import gateway.session
from gateway import tokens
from gateway.bus.base import Listener, Message
from gateway.control import Control
from gateway.errors import BusUnavailable, StoreUnavailable
from gateway.hub import Hub
from gateway.metrics import Counts
from gateway.protocol import frames
from gateway.protocol.codec import JSON, Codec
from gateway.publisher import as_message
from gateway.session import Gate, Session
from gateway.settings import Settings, load
from gateway.store.base import Agency, Draft, Stored
from gateway.store.memory import MemoryStore

KEY = tokens.LocalKey(tokens._new_pem())
URGENT, HIGH, NORMAL, BULK = range(4)
Map = dict[str, Any]


class Clock:
    """Time that passes only when a test says so: `now` for both clocks, a constant apart."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic

    def time(self) -> float:
        return 1_800_000_000.0 + self.now


def settings(**given: Any) -> Settings:
    return load(env_file=None, **given)


def token(account: str, clock: Clock, *, ttl: float = 10_000_000, **claims: Any) -> str:
    return KEY.issue(account, now=clock.time(), ttl=ttl, **claims)


def draft(feed: str, name: str, *, priority: int = NORMAL, data: str = "") -> Draft:
    event = orjson.dumps({"specversion": "1.0", "id": name, "source": "/agencies/fns", "type": "t", "data": data})
    digest = hashlib.sha256(name.encode() + feed.encode()).digest()
    return Draft(feed, digest[:16], hashlib.sha256(event).digest(), event, "t", None, 0.0, priority)


class Air:
    """A bus: `flying` holds what was published to a wanted feed and has not arrived."""

    def __init__(self) -> None:
        self.listener: Listener
        self.feeds: set[str] = set()
        self.flying: list[Message] = []
        self.down = False
        self.healthy = True

    async def open(self, listener: Listener) -> None:
        self.listener = listener

    async def close(self) -> None: ...

    async def publish(self, messages: Sequence[Message]) -> None:
        self._up()
        self.flying += [message for message in messages if message.feed in self.feeds]

    async def announce(self, payload: bytes) -> None:
        self._up()
        self.listener.control(payload)

    async def subscribe(self, feeds: Collection[str]) -> None:
        self.feeds.update(feeds)
        self._up()

    async def unsubscribe(self, feeds: Collection[str]) -> None:
        self.feeds.difference_update(feeds)

    def _up(self) -> None:
        if self.down:
            raise BusUnavailable("the air is still")


class Held(MemoryStore):
    """A store that may be slow: while `slow`, calls wait until `answer`. Each did its work when it was called, or does
    it when it is answered (`late`)."""

    HOLDS = ("read", "join", "follow", "unfollow", "save", "heads", "seen", "touch")

    def __init__(self) -> None:
        super().__init__()
        self._open = True
        self.epoch = "e1"
        self.slow = self.late = self.away = False
        self.waiting: deque[tuple[str, asyncio.Future[None]]] = deque()
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def _check(self) -> None:
        super()._check()
        if self.away:
            raise StoreUnavailable("the store is away")

    def answer(self, error: Exception | None = None) -> None:
        """Let the call that waits longest go on, or fail."""
        while self.waiting:
            _, future = self.waiting.popleft()
            if not future.done():
                future.set_exception(error) if error else future.set_result(None)
                return


def _held(name: str) -> Callable[..., Any]:
    async def call(self: Held, *given: Any) -> Any:
        self.calls.append((name, given))
        work = getattr(super(Held, self), name)
        if not self.slow:
            return await work(*given)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append((name, future))
        if self.late:
            await future
            return await work(*given)
        result = await work(*given)
        await future
        return result

    return call


for _name in Held.HOLDS:
    setattr(Held, _name, _held(_name))


class Phone:
    """The far end of one connection: what was written to it, read when it likes to; and the link below the session."""

    def __init__(self, codec: Codec = JSON) -> None:
        self.codec = codec
        self.inbox: deque[tuple[int, bytes]] = deque()  # (opcode, payload), inflated
        self.writes: list[bytes] = []
        self.closed: tuple[int, str] | None = None
        self.compressed = 0
        self.on_write: Callable[[bytes], None] = lambda data: None
        self.session: Session

    def write(self, data: bytes) -> None:
        assert self.closed is None, "nothing is written after the close frame"
        self.on_write(data)
        self.writes.append(data)
        self.inbox.extend(self._frames(data))

    def close(self, code: int, reason: str) -> None:
        self.closed = code, reason

    def peer(self) -> str | None:
        return "192.0.2.1"

    def _frames(self, data: bytes) -> list[tuple[int, bytes]]:
        found, pos = [], 0
        for opcode, payload in frames.split(data):
            squeezed = data[pos] & 0x40
            pos += len(payload) + (2 if len(payload) < 126 else 4 if len(payload) < 65536 else 10)
            content = bytes(payload)
            if squeezed:
                self.compressed += 1
                content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content + b"\x00\x00\xff\xff")
            found.append((opcode, content))
        return found

    def read(self) -> list[Map]:
        """All messages that came since the last time, pings left out."""
        found = [self.codec.read(payload) for opcode, payload in self.inbox if opcode == self.codec.opcode]
        self.inbox.clear()
        return found

    def kinds(self) -> list[str]:
        return [message["t"] for message in self.read()]

    def say(self, t: str, **fields: Any) -> None:
        self.session.received(self.codec.opcode, self.codec.encode({"t": t, **fields}))

    def ack(self, feed: str, offset: int) -> None:
        self.say("ack", feed=feed, offset=offset)


def offsets(messages: Sequence[Map], feed: str | None = None) -> list[int]:
    """The offsets of all events in these messages, in the order in which they came."""
    found: list[int] = []
    for message in messages:
        if feed is None or message.get("feed") == feed:
            if message["t"] == "event":
                found.append(message["offset"])
            elif message["t"] == "batch":
                found += [offset for offset, _ in message["events"]]
    return found


class Bench:
    """One gateway process in the hand. Only the loops that wait for events run as tasks; what waits for time is called:
    `tick`, `flush`, `sweep`, `drop_empty`."""

    def __init__(self, clock: Clock, store: Held | None = None, air: Air | None = None, **given: Any):
        self.clock, self.settings = clock, settings(**given)
        self.store = store or Held()
        self.air = air or Air()
        self.counts = Counts()
        self.verifier = tokens.Verifier(KEY.keys(), counts=self.counts)
        self.hub = Hub(self.settings, self.store, self.air, self.counts)
        self.gate = Gate(self.hub, self.settings, self.counts, self.verifier)
        self.gate.agencies.update({code: Agency(code, ()) for code in ("fns", "mvd", *(f"a{n}" for n in range(40)))})
        self.control = Control(self.gate, self.store, self.hub)
        self.air.listener = self.control
        self.tasks = [asyncio.create_task(self.hub._reads()), asyncio.create_task(self.hub._join_trips())]

    async def settle(self) -> None:
        """Let everything happen that needs no time and no answer of a slow store."""
        for turn in range(1000):
            await asyncio.sleep(0)
            if turn >= 12 and not self.hub._waving:
                break
        for task in self.tasks:
            if task.done():
                task.result()

    async def stop(self) -> None:
        for task in (*self.tasks, *self.gate.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, *self.gate.tasks, return_exceptions=True)

    # Devices

    def phone(self, codec: Codec = JSON, *, deflate: bool = False) -> Phone:
        """A connection whose handshake is done."""
        phone = Phone(codec)
        phone.session = Session(self.gate, codec, phone, phone, deflate=deflate)
        return phone

    def hello(self, account: str = "a", device: str = "d1", *, phone: Phone | None = None, **fields: Any) -> Phone:
        phone = phone or self.phone()
        fields.setdefault("token", token(account, self.clock))
        phone.say("hello", device=device, **fields)
        return phone

    async def connect(self, account: str = "a", device: str = "d1", **fields: Any) -> Phone:
        phone = self.hello(account, device, **fields)
        await self.settle()
        return phone

    async def connect_many(self, count: int, feed: str = "agency:fns") -> list[Phone]:
        """Sessions of as many accounts, each with its own feed and `feed`, their inboxes read."""
        phones = [self.hello(f"x{n}", feeds=[feed]) for n in range(count)]
        while self.hub.joining:
            await self.settle()
        for phone in phones:
            assert phone.session.open
            phone.read()
        return phones

    # Events

    async def commit(self, feed: str, count: int = 1, *, priority: int = NORMAL, data: str = "") -> list[Stored]:
        """Stored, and not on the bus yet."""
        head = self.store._feed(feed).head
        drafts = [draft(feed, f"{feed}/{head + n + 1}", priority=priority, data=data) for n in range(count)]
        stored = await self.store.append(drafts, self.clock.time())
        assert all(isinstance(one, Stored) for one in stored)
        return stored  # type: ignore[return-value]

    def deliver(self, *stored: Stored) -> None:
        for one in stored:
            self.hub.received(as_message(one))

    async def publish(self, feed: str, count: int = 1, *, priority: int = NORMAL, data: str = "") -> list[Stored]:
        """Stored and delivered by the bus."""
        stored = await self.commit(feed, count, priority=priority, data=data)
        self.deliver(*stored)
        return stored

    # Time

    def tick(self, seconds: float = 0.0) -> None:
        self.clock.now += seconds
        self.hub._tick()

    async def sweep(self) -> None:
        await self.hub._compare(list(self.hub.feeds))
        await self.settle()


def use_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(gateway.hub, "time", clock)
    monkeypatch.setattr(gateway.session, "time", clock)
    monkeypatch.setattr(gateway.hub, "RETRY_S", 0)
    monkeypatch.setattr(gateway.hub, "JOIN_GATHER_S", 0)
    monkeypatch.setattr(gateway.hub, "READ_GATHER_S", 0)
    return clock
