"""A device from outside, on the `websockets` library: speaks both subprotocols, keeps a journal, acknowledges, resumes.

Every message that the gateway sends passes through `Device.next`, which holds it to section 3 whatever the test is
about: the fields of each `t`, `t` first, offsets that rise by exactly one, the window, one `live` a feed, the order at
the start.
"""

import asyncio
import datetime
import json
import math
import time
import uuid
from collections.abc import Callable, Collection
from typing import Any, Self

import msgpack
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from .agent import witness

JSON = "vestnik.v1.json"
MSGPACK = "vestnik.v1.msgpack"
BOTH = (JSON, MSGPACK)

ERRORS = {"unknown_type", "invalid", "unknown_feed", "forbidden", "limit", "unavailable"}
STOP = {4400, 4401, 4403, 4409, 4410, 4426}
WINDOW = 256
LIMITS = {"feeds", "message", "rate", "backoff"}

Message = dict[str, Any]
Position = tuple[str, int]


class Closed(Exception):
    """The gateway ended the session. `code` is None when the connection ended without a close frame."""

    def __init__(self, code: int | None, reason: str = ""):
        super().__init__(f"closed with {code} {reason!r}")
        self.code, self.reason = code, reason


def ended(closed: ConnectionClosed) -> Closed:
    return Closed(closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else Closed(None)


# What a message looks like. Unknown keys are allowed: "both sides ignore unknown keys".


def text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def flag(value: Any) -> bool:
    return isinstance(value, bool)


def offset(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def seconds(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def moment(value: Any) -> bool:
    """RFC 3339 with a zone."""
    return isinstance(value, str) and "T" in value and parse_time(value).tzinfo is not None


def parse_time(value: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(value.replace("Z", "+00:00"))


def feed(value: Any) -> bool:
    return isinstance(value, str) and value.partition(":")[1] == ":" and value.partition(":")[2] != ""


def start(value: Any) -> bool:
    return (
        feed(value["feed"]) and text(value["epoch"]) and offset(value["head"]) and 0 <= value["from"] <= value["head"]
    )


def event(value: Any) -> bool:
    """None is an erased event. The one attribute of the gateway is there, and is a time."""
    return value is None or (
        isinstance(value, dict) and value["specversion"] == "1.0" and moment(value["recordedtime"])
    )


def one_of(*values: str) -> Callable[[Any], bool]:
    return lambda value: value in values


def listing(check: Callable[[Any], bool], most: int = 10**6) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and len(value) <= most and all(map(check, value))


def pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and offset(value[0]) and event(value[1])


def heads(value: Any) -> bool:
    return isinstance(value, dict) and all(feed(key) and offset(item) for key, item in value.items())


FIELDS: dict[str, dict[str, Callable[[Any], bool]]] = {
    "welcome": {
        "session": text, "account": text, "new": flag, "time": moment, "expires": moment, "window": offset,
        "limits": lambda value: value.keys() >= LIMITS and all(map(seconds, value.values())),
        "feeds": listing(start),
    },
    "event": {"feed": feed, "offset": offset, "event": event},
    "batch": {"feed": feed, "events": listing(pair, 100)},
    "live": {"feed": feed},
    "resync": {"feed": feed, "epoch": text, "offset": offset, "reason": one_of("retention", "epoch")},
    "seen": {"feed": feed, "offsets": listing(offset)},
    # `next` says when, in seconds: the contract adds 10 s to it. A time would also be "when": both are taken.
    "beat": {"heads": heads, "next": lambda value: seconds(value) or moment(value)},
    "subscribed": {"feed": feed, "epoch": text, "head": offset, "from": offset},
    "unsubscribed": {"feed": feed},
    "refresh": {"source": text, "status": one_of("accepted", "done", "failed", "cooldown")},
    "mode": {"mode": one_of("full", "saver")},
    "expiring": {"in": seconds},
    "renewed": {"expires": moment},
    "drain": {"after": seconds},
    "error": {"code": one_of(*ERRORS), "detail": text},
    "pong": {},
}  # fmt: skip
OPTIONAL: dict[str, dict[str, Callable[[Any], bool]]] = {
    "refresh": {"reason": text, "retry_after": seconds, "updated": moment},
    "error": {"feed": lambda value: isinstance(value, str)},
}


def check(message: Any) -> None:
    """Hold one message of the gateway to its row of the table "From the gateway"."""
    assert isinstance(message, dict), message
    assert next(iter(message)) == "t", f"`t` first: {message}"
    name = message["t"]
    assert name in FIELDS, f"no such message: {message}"
    for key, right in FIELDS[name].items():
        assert key in message, f"{name} without {key}: {message}"
        assert right(message[key]), f"{name}.{key}: {message}"
    for key, right in OPTIONAL.get(name, {}).items():
        assert key not in message or right(message[key]), f"{name}.{key}: {message}"


def encode(message: Any, protocol: str) -> str | bytes:
    if protocol == MSGPACK:
        packed = msgpack.packb(message)
        assert isinstance(packed, bytes)
        return packed
    return json.dumps(message, ensure_ascii=False, separators=(",", ":"))


def decode(raw: str | bytes, protocol: str) -> Any:
    if protocol == MSGPACK:
        assert isinstance(raw, bytes), "vestnik.v1.msgpack is binary frames"
        return msgpack.unpackb(raw)
    assert isinstance(raw, str), "vestnik.v1.json is text frames"
    return json.loads(raw)


class Device:
    """One installed app. It survives its sessions: `kept` and `positions` are what its own disk holds."""

    def __init__(self, port: int, account: str, token: str, *, device: str | None = None, protocol: str | None = JSON):
        self.port, self.account, self.token = port, account, token
        self.device = device or f"dev-{uuid.uuid4().hex[:12]}"
        self.offers, self.protocol = protocol, protocol or JSON
        self.kept: dict[str, dict[int, Any]] = {}
        self.positions: dict[str, Position] = {}
        self.raw: dict[tuple[str, int], str | bytes] = {}
        self.repeats = 0
        self.ws: ClientConnection | None = None
        self._clear()

    @property
    def feed(self) -> str:
        return f"account:{self.account}"

    def _clear(self) -> None:
        self.welcome: Message = {}
        self.messages: list[Message] = []
        self.at: dict[str, float] = {}
        self.told: dict[str, int] = {}
        self.acked: dict[str, int] = {}
        self.sent_acks: dict[str, int] = {}
        self.epochs: dict[str, str] = {}
        self.started: set[str] = set()
        self.live: set[str] = set()
        self.waiting: dict[str, str] = {}

    # A session

    async def open(self, *, compression: str | None = None, origin: str | None = None, **options: Any) -> Self:
        """The handshake alone."""
        self._clear()
        headers = {"Origin": origin} if origin else {}
        self.ws = await connect(
            f"ws://127.0.0.1:{self.port}/v1/socket",
            subprotocols=[Subprotocol(self.offers)] if self.offers else None,
            compression=compression,
            additional_headers=headers,
            max_size=2**24,
            max_queue=None,
            ping_interval=None,
            close_timeout=5,
            open_timeout=10,
            proxy=None,
            **options,
        )
        assert self.ws.subprotocol == self.offers
        return self

    async def send(self, t: str, **fields: Any) -> None:
        assert self.ws is not None
        try:
            await self.ws.send(encode({"t": t, **fields}, self.protocol))
        except ConnectionClosed as closed:
            raise ended(closed) from None

    async def hello(self, *, resume: Any = None, **fields: Any) -> Message:
        """Say hello and return `welcome`, which must be the first answer. `resume=True` gives what this device
        keeps."""
        if resume is True:
            resume = {name: {"epoch": epoch, "offset": at} for name, (epoch, at) in self.positions.items()}
        if resume:
            fields["resume"] = resume
        await self.send("hello", **({"token": self.token, "device": self.device} | fields))
        welcome = await self.next()
        assert welcome["t"] == "welcome", welcome
        return welcome

    async def start(self, *, compression: str | None = None, **fields: Any) -> Message:
        """open() and hello()."""
        await self.open(compression=compression)
        return await self.hello(**fields)

    async def next(self, timeout: float = 5) -> Message:
        """The next message, checked. Raises Closed, or TimeoutError after so many seconds."""
        assert self.ws is not None
        try:
            raw = await asyncio.wait_for(self.ws.recv(), timeout)
        except ConnectionClosed as closed:
            raise ended(closed) from None
        message = decode(raw, self.protocol)
        check(message)
        assert isinstance(message, dict)
        witness({"message": message})
        self.messages.append(message)
        if not self.welcome:
            assert message["t"] in ("welcome", "error", "pong"), f"nothing comes before welcome: {message}"
        handler = getattr(self, f"_{message['t']}", None)
        if handler is not None:
            handler(message, raw)
        return message

    def _welcome(self, message: Message, _raw: str | bytes) -> None:
        assert not self.welcome, "a second welcome"
        assert message["account"] == self.account
        assert [item["feed"] for item in message["feeds"]].count(self.feed) == 1
        self.welcome = message
        for item in message["feeds"]:
            self._begin(item)

    def _subscribed(self, message: Message, _raw: str | bytes) -> None:
        self._begin(message)

    def _unsubscribed(self, message: Message, _raw: str | bytes) -> None:
        for table in (self.told, self.acked, self.epochs):
            table.pop(message["feed"], None)
        self.positions.pop(message["feed"], None)

    def _begin(self, item: Message) -> None:
        """ "`events follow from `from` + 1"."""
        name = item["feed"]
        self.told[name] = self.acked[name] = item["from"]
        self.epochs[name] = item["epoch"]
        self.positions.setdefault(name, (item["epoch"], item["from"]))
        self.live.discard(name)
        self.started.discard(name)

    def _resync(self, message: Message, _raw: str | bytes) -> None:
        name = message["feed"]
        assert name not in self.started, "resync comes before the events"
        assert name not in self.live, "resync comes before live"
        assert message["offset"] == self.told[name], "`from` of the feed is the offset of its resync"
        assert message["epoch"] == self.epochs[name]
        # The device would now load the snapshot; the position that it has then is this one.
        self.kept.pop(name, None)
        self.positions[name] = (message["epoch"], message["offset"])

    def _event(self, message: Message, raw: str | bytes) -> None:
        self._keep(message["feed"], message["offset"], message["event"])
        self.raw[message["feed"], message["offset"]] = raw

    def _batch(self, message: Message, raw: str | bytes) -> None:
        assert message["events"], "a batch of nothing"
        # "up to 100 events or 64 KiB": one event alone may be as large as that, so the map around it is given some
        # room.
        assert len(raw.encode() if isinstance(raw, str) else raw) <= 65536 + 1024 or len(message["events"]) == 1
        for at, item in message["events"]:
            self._keep(message["feed"], at, item)

    def _keep(self, name: str, at: int, item: Any) -> None:
        assert name in self.told, f"an event of {name}, which is not followed"
        assert at == self.told[name] + 1, f"{name}: offset {at} after {self.told[name]}"
        self.told[name] = at
        self.started.add(name)
        assert at - self.acked[name] <= WINDOW, f"{name}: {at} is more than a window beyond the ack {self.acked[name]}"
        epoch, position = self.positions.get(name, (self.epochs[name], 0))
        if epoch != self.epochs[name] or at > position:
            self.positions[name] = (self.epochs[name], at)
        if at in self.kept.setdefault(name, {}):
            self.repeats += 1
            assert item is None or self.kept[name][at] == item, "the same (epoch, offset) is the same event for ever"
        self.kept[name][at] = item
        self.at[f"{name}/{at}"] = time.monotonic()

    def _live(self, message: Message, _raw: str | bytes) -> None:
        name = message["feed"]
        assert name in self.told, f"live for {name}, which is not followed"
        assert name not in self.live, f"{name}: live comes once"
        self.live.add(name)

    # Waiting

    async def until(self, *names: str, timeout: float = 5, **match: Any) -> Message:
        """The next message with one of these `t` and these fields; what comes between is kept in `messages`."""
        deadline = time.monotonic() + timeout
        seen: list[str] = []
        while (left := deadline - time.monotonic()) > 0:
            try:
                message = await self.next(left)
            except TimeoutError:
                break
            if message["t"] in names and all(message.get(key) == value for key, value in match.items()):
                return message
            seen.append(message["t"])
        raise TimeoutError(f"no {'/'.join(names)} {match} in {timeout} s, but {seen[-20:]}")

    async def reach(self, at: int, name: str | None = None, *, timeout: float = 15, ack: bool = False) -> None:
        """Receive until this offset of the feed was told; `ack` acknowledges every 64 events and at the end."""
        name = name or self.feed
        deadline = time.monotonic() + timeout
        while self.told[name] < at:
            await self.next(max(0.01, deadline - time.monotonic()))
            if ack and self.told[name] - self.acked[name] >= 64:
                await self.ack(name)
        if ack and self.acked[name] < self.told[name]:
            await self.ack(name)

    async def caught_up(self, *feeds: str, timeout: float = 10) -> None:
        """Receive until `live` came for these feeds, or for all that are followed."""
        deadline = time.monotonic() + timeout
        while not set(feeds or self.told) <= self.live:
            await self.next(max(0.01, deadline - time.monotonic()))

    async def ack(self, name: str | None = None, at: int | None = None) -> None:
        name = name or self.feed
        at = self.told[name] if at is None else at
        await self.send("ack", feed=name, offset=at)
        self.acked[name] = max(self.acked[name], min(at, self.told[name]))

    async def settle(self) -> list[Message]:
        """Ask with a ping and return what came before its pong: after this, all sent so far was obeyed."""
        ref = uuid.uuid4().hex
        before = len(self.messages)
        await self.send("ping", ref=ref)
        await self.until("pong", ref=ref)
        return self.messages[before:-1]

    async def idle(self, duration: float) -> list[Message]:
        """Everything that comes within so many seconds."""
        before = len(self.messages)
        deadline = time.monotonic() + duration
        while (left := deadline - time.monotonic()) > 0:
            try:
                await self.next(left)
            except TimeoutError:
                break
        return self.messages[before:]

    async def closed(self, timeout: float = 5) -> Closed:
        """Read on until the gateway closes; what it said."""
        deadline = time.monotonic() + timeout
        try:
            while True:
                await self.next(max(0.01, deadline - time.monotonic()))
        except Closed as closed:
            return closed

    async def answered(self, *names: str, timeout: float = 5) -> Message | None:
        """The next message with one of these `t`, after which the session still lives; or None, closed with 4400 as the
        program's fault. For what the contract leaves open between the two."""
        try:
            message = await self.until(*names, timeout=timeout)
            await self.settle()
        except Closed as closed:
            if closed.code == 4400:
                return None
            raise
        return message

    async def send_many(self, t: str, count: int, **fields: Any) -> Closed | None:
        """Send so many messages without pause, then a ping; how the gateway ended it, or None when it took all."""
        try:
            for _ in range(count):
                await self.send(t, **fields)
            await self.settle()
        except Closed as closed:
            return closed
        return None

    async def close(self) -> None:
        if self.ws is not None:
            await self.ws.close()
            self.ws = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def received(self, name: str | None = None) -> list[int]:
        """Offsets of the feed in the journal."""
        return sorted(self.kept.get(name or self.feed, {}))

    def answers(self, *names: str) -> list[Message]:
        return [message for message in self.messages if message["t"] in names]


def without_recorded(item: Any, ignore: Collection[str] = ("recordedtime",)) -> Any:
    return {key: value for key, value in item.items() if key not in ignore}
