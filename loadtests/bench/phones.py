"""Thousands of devices in one process: one small protocol object each, no task, no parser state between frames.

A phone does what the contract asks (hello, acks, pongs) and checks what it gets: offsets rise by one, repeats are
counted. Its frames are masked with a zero key, which is a key like any other (RFC 6455, 5.3) and costs us nothing.
"""

import asyncio
import base64
import os
import random
import struct
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import orjson

EVENT = b'{"t":"event"'
PING, CLOSE = 0x89, 0x88


class Broken(Exception):
    """A phone saw what must not be: a hole, a close, an answer that is not 101."""


def masked(payload: bytes, first: int = 0x81) -> bytes:
    """A whole frame of a client."""
    size = len(payload)
    head = struct.pack("!BB", first, 0x80 | size) if size < 126 else struct.pack("!BBH", first, 0x80 | 126, size)
    return head + b"\0\0\0\0" + payload


def upgrade(port: int, path: str, subprotocol: str | None, host: str = "127.0.0.1") -> bytes:
    """The request that opens a socket."""
    offered = f"Sec-WebSocket-Protocol: {subprotocol}\r\n" if subprotocol else ""
    return (
        f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}\r\nSec-WebSocket-Version: 13\r\n{offered}\r\n"
    ).encode()


class Swarm:
    """Phones that are measured together. `count` rises with each new event that any of them gets."""

    def __init__(self, name: str, port: int, path: str, subprotocol: str | None = None, host: str = "127.0.0.1"):
        self.name, self.host, self.port = name, host, port
        self.request = upgrade(port, path, subprotocol, host)
        self.count = 0  # new events
        self.repeats = 0
        self.size = 0  # bytes of the last event's message
        self.acks = 0
        self.refusals = 0  # handshakes answered 503, and tried again
        self.ready = 0  # phones that are caught up with every feed
        self.acking = False  # acknowledge at once; otherwise when told
        self.latencies: list[float] | None = None  # seconds from `recordedtime` to the phone, when it is a list
        self.broken: str | None = None
        self.phones: list[Phone] = []
        self.changed: Callable[[], None] = lambda: None
        self._attempts: set[asyncio.Task[None]] = set()
        self._target: tuple[Callable[[], bool], asyncio.Future[None]] | None = None

    async def connect(self, phones: Sequence["Phone"], at_once: int, patience_s: float = 60.0) -> None:
        """Returns when all are caught up. At most `at_once` are on their way at any moment."""
        self.phones = list(phones)
        self.ready = begun = 0
        deadline = time.monotonic() + patience_s
        while self.ready < len(phones):
            while begun < len(phones) and begun - self.ready < at_once:
                phone = phones[begun]
                self.open(phone)
                begun += 1
                if begun % 200 == 0:
                    await asyncio.sleep(0)
            ready = self.ready
            wanted = len(phones) if begun == len(phones) else ready + 1
            await self.until(lambda wanted=wanted: self.ready >= wanted, deadline - time.monotonic())  # type: ignore[misc]

    def open(self, phone: "Phone") -> None:
        """Begin to connect a phone."""
        task = asyncio.get_running_loop().create_task(_open(phone, self))
        self._attempts.add(task)
        task.add_done_callback(self._attempts.discard)

    async def until(self, condition: Callable[[], bool], patience_s: float = 60.0) -> None:
        """Wait for something that only arriving frames can bring about. Raises Broken when a phone is, or time is
        up."""
        self.check()
        if condition():
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._target = (condition, future)
        try:
            async with asyncio.timeout(patience_s):
                await future
        except TimeoutError:
            raise Broken(
                f"{self.name}: time is up with {self.ready} of {len(self.phones)} phones ready, {self.count} events"
            ) from None
        finally:
            self._target = None
        self.check()

    def moved(self) -> None:
        """Something was counted: is it what somebody waits for? Once for each read of a socket."""
        if self._target is not None and (self._target[0]() or self.broken) and not self._target[1].done():
            self._target[1].set_result(None)

    def fail(self, why: str) -> None:
        self.broken = self.broken or f"{self.name}: {why}"
        self.moved()

    def check(self) -> None:
        if self.broken:
            raise Broken(self.broken)

    def ack(self) -> None:
        """Every phone acknowledges all that it has."""
        for phone in self.phones:
            phone.ack()

    async def close(self) -> None:
        """Drop all connections, as phones do in a tunnel."""
        for phone in self.phones:
            phone.leave()
        self.phones = []
        await asyncio.sleep(0.1)


async def _open(phone: "Phone", swarm: Swarm) -> None:
    try:
        await asyncio.get_running_loop().create_connection(lambda: phone, swarm.host, swarm.port)
    except OSError as error:
        swarm.fail(f"cannot connect: {error}")


class Phone(asyncio.Protocol):
    """One device: `account`, its agency feeds, and how far it is in each feed.

    `connect` again with a new token resumes from what it has.
    """

    __slots__ = ("_dirty", "_live", "_rest", "_token", "_transport", "account", "device", "epoch", "feeds", "swarm")

    def __init__(self, swarm: Swarm, account: str, token: str, feeds: Sequence[str] = ()):
        self.swarm, self.account, self._token = swarm, account, token
        self.device = f"phone-{account}"
        self.feeds: dict[str, int] = dict.fromkeys([f"account:{account}", *feeds], -1)  # -1: where the gateway says
        self.epoch = ""
        self._transport: asyncio.Transport | None = None
        self._rest: bytes | None = b""  # None until the handshake is answered … then what is left of a frame
        self._live = 0
        self._dirty: dict[str, int] = {}

    def again(self, token: str, swarm: "Swarm | None" = None) -> None:
        """Get ready to connect once more."""
        self._token, self.swarm = token, swarm or self.swarm

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._rest, self._live = None, 0
        self._dirty.clear()
        transport.write(self.swarm.request)  # type: ignore[attr-defined]

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self._transport = None
            self.swarm.fail(f"a connection was lost: {exc}")

    @property
    def connected(self) -> bool:
        return self._transport is not None

    def leave(self) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()

    def stop_reading(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def read_again(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self._rest is None:
            head, found, data = data.partition(b"\r\n\r\n")
            if not found or not head.startswith(b"HTTP/1.1 101"):
                return self.refused(head)
            self._rest = b""
            self.opened()
        elif self._rest:
            data = self._rest + data
            self._rest = b""
        at, size = 0, len(data)
        while size - at >= 2:
            length, begin = data[at + 1], at + 2
            if length == 126:
                length, begin = int.from_bytes(data[at + 2 : at + 4], "big"), at + 4
            elif length == 127:
                length, begin = int.from_bytes(data[at + 2 : at + 10], "big"), at + 10
            if begin > size or begin + length > size:
                break
            self.frame(data[at], data[begin : begin + length])
            at = begin + length
        if at < size:
            self._rest = data[at:]
        if self._dirty and self.swarm.acking:
            self.ack()
        self.swarm.moved()
        return None

    def refused(self, head: bytes) -> None:
        """A 503 tells when to come again, and the phone does, within a second after that; anything else breaks."""
        if not head.startswith(b"HTTP/1.1 503"):
            return self.swarm.fail(f"the handshake was answered {head[:60]!r}")
        self.swarm.refusals += 1
        self.leave()
        wait_s = int(head.lower().partition(b"retry-after: ")[2].partition(b"\r\n")[0] or 1)
        asyncio.get_running_loop().call_later(wait_s + random.random(), self.swarm.open, self)
        return None

    def opened(self) -> None:
        hello: dict[str, Any] = {"t": "hello", "token": self._token, "device": self.device}
        feeds = list(self.feeds)
        if len(feeds) > 1:
            hello["feeds"] = feeds[1:]
        if self.epoch:
            hello["resume"] = {feed: {"epoch": self.epoch, "offset": offset} for feed, offset in self.feeds.items()}
        self.write(masked(orjson.dumps(hello)))

    def frame(self, first: int, payload: bytes) -> None:
        if payload.startswith(EVENT):
            self.event(payload)
        elif first == PING:
            self.write(masked(payload, 0x8A))
        elif first == CLOSE:
            self.swarm.fail(f"closed with {int.from_bytes(payload[:2], 'big')} {payload[2:].decode()}")
        else:
            self.message(orjson.loads(payload))

    def event(self, payload: bytes) -> None:
        # {"t":"event","feed":"…","offset":12,"event":{…,"recordedtime":"2026-11-22T14:00:00.123Z"}}
        end = payload.index(b'"', 21)
        feed = payload[21:end].decode()
        offset = int(payload[end + 11 : payload.index(b",", end + 11)])
        swarm, last = self.swarm, self.feeds[feed]
        if offset == last + 1:
            self.feeds[feed] = self._dirty[feed] = offset
            swarm.count += 1
            swarm.size = len(payload)
            if swarm.latencies is not None:
                recorded = datetime.fromisoformat(payload[-27:-3].decode())
                swarm.latencies.append(time.time() - recorded.timestamp())
        elif offset <= last:
            swarm.repeats += 1
        else:
            swarm.fail(f"a hole: {offset} after {last}")

    def message(self, message: dict[str, Any]) -> None:
        kind = message["t"]
        if kind == "welcome":
            for item in message["feeds"]:
                self.epoch = item["epoch"]
                if self.feeds[item["feed"]] < 0:
                    self.feeds[item["feed"]] = item["from"]
        elif kind == "live":
            self._live += 1
            if self._live == len(self.feeds):
                self.swarm.ready += 1
        elif kind == "batch":
            for offset, _ in message["events"]:
                if offset > self.feeds[message["feed"]]:
                    self.feeds[message["feed"]] = self._dirty[message["feed"]] = offset
                    self.swarm.count += 1
                else:
                    self.swarm.repeats += 1
        elif kind in ("resync", "error"):
            self.swarm.fail(f"unexpected {message}")

    def ack(self) -> None:
        if self._dirty and self._transport is not None:
            frames = [
                masked(b'{"t":"ack","feed":"%b","offset":%d}' % (feed.encode(), offset))
                for feed, offset in self._dirty.items()
            ]
            self.swarm.acks += len(frames)
            self._dirty.clear()
            self.write(b"".join(frames))

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


class Counter(Phone):
    """A socket of a reference server: says nothing, counts frames."""

    __slots__ = ()

    def opened(self) -> None:
        self.swarm.ready += 1

    def frame(self, first: int, payload: bytes) -> None:
        if first in (0x81, 0x82):
            self.swarm.count += 1
        elif first == PING:
            self.write(masked(payload, 0x8A))
        else:
            self.swarm.fail("closed")
