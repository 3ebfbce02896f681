"""The bus over Redis pub/sub on one server (7 or newer). Nothing here must survive: the store is the truth.

Two connections. One publishes and is made again on demand. One is subscribed and is watched: every few seconds a
unique probe is published through the first and must come back through the second, because a TCP connection can live
while its subscription is dead. Only that makes the bus healthy. A probe that stays away, like a closed connection,
ends the subscribed connection; the next one subscribes everything wanted in batches and then reports a gap.

Nothing queues here: what arrives is handed on in the turn of the loop in which it arrived, publishing waits for the
answers. A publish that Redis acknowledged may still be lost on the way to another gateway (its output buffer
overflows at `client-output-buffer-limit pubsub`, 32 MB, and Redis drops that gateway): that is a closed connection
there, and a gap.
"""

import asyncio
import contextlib
import random
import secrets
from collections.abc import Collection, Sequence
from typing import Any

from gateway.bus import resp, wire
from gateway.bus.base import Listener, Message
from gateway.bus.channels import Channels
from gateway.errors import BusUnavailable
from gateway.logs import get_logger
from gateway.protocol.backoff import full_jitter

log = get_logger("bus")

PREFIX = b"vestnik:"  # channel of a feed: prefix + feed
CONTROL = b"vestnik.control"
PROBE = b"vestnik.probe."  # + the id of this bus

TRIP_BYTES = 1 << 20  # sent before its answers are awaited: bounds the memory of a publish to a slow server
TRIP_MESSAGES = 1_000
BACKOFF_BASE_S = 0.1
STALL_GRACE_S = 0.05  # after a stall of our own loop the timer fires first and the echo lies unread: look once more

_random = random.SystemRandom()


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Sender:
    """Publishes over a connection that it makes when it is needed and none lives. After a failure it refuses at once
    until the backoff is over, so that a dead server costs its callers nothing."""

    def __init__(self, address: resp.Address, name: str, timeout_s: float, cap_s: float):
        self._address, self._name, self._timeout_s, self._cap_s = address, name, timeout_s, cap_s
        self._connection: resp.Connection | None = None
        self._connecting = asyncio.Lock()
        self._attempts = 0
        self._delays = full_jitter(_random, BACKOFF_BASE_S, cap_s)
        self._not_before = 0.0
        self._why = ""
        self._closed = False

    async def call(self, *commands: resp.Command) -> None:
        """Returns when Redis answered every command. Raises BusUnavailable within twice the timeout."""
        connection = await self._live()
        try:
            async with asyncio.timeout(self._timeout_s):
                await connection.call(*commands)
        except TimeoutError:
            why = f"Redis at {self._address} did not answer within {self._timeout_s:g} s"
            connection.abort(why)
            self._failed(why)
            raise BusUnavailable(why) from None

    async def close(self) -> None:
        self._closed = True
        if self._connection is not None:
            self._connection.abort("the bus is closed")
            await self._connection.closed

    async def _live(self) -> resp.Connection:
        attempts = self._attempts
        async with self._connecting:
            if self._connection is not None and not self._connection.closed.done():
                return self._connection
            if self._closed:
                raise BusUnavailable("the bus is closed")
            # Who queued behind a failed attempt shares its outcome, or waiting would add up.
            if self._attempts > attempts or asyncio.get_running_loop().time() < self._not_before:
                raise BusUnavailable(self._why)
            self._attempts += 1
            try:
                self._connection = await resp.connect(self._address, self._name, timeout_s=self._timeout_s)
            except BusUnavailable as error:
                self._failed(str(error))
                raise
            self._delays = full_jitter(_random, BACKOFF_BASE_S, self._cap_s)
            return self._connection

    def _failed(self, why: str) -> None:
        self._why = why
        self._not_before = asyncio.get_running_loop().time() + next(self._delays)


class RedisBus:
    """`gateway.bus.base.Bus` over one Redis server.

    `timeout_s` is the patience for each answer of the server and for a probe, `probe_every_s` the pause between
    probes: a server that hangs is noticed within their sum. `backoff_cap_s` is the longest pause between attempts to
    come back.
    """

    def __init__(self, url: str, *, timeout_s: float = 2.0, probe_every_s: float = 2.0, backoff_cap_s: float = 2.0):
        self._address = resp.parse(url)
        self._timeout_s, self._probe_every_s, self._cap_s = timeout_s, probe_every_s, backoff_cap_s
        self._id = secrets.token_hex(6)
        self._probe_channel = PROBE + self._id.encode()
        self._sender = Sender(self._address, f"vestnik-pub-{self._id}", timeout_s, backoff_cap_s)
        self._channels = Channels()
        self._channels.want(self._probe_channel, "")  # first, so that it is confirmed first after a reconnect
        self._channels.want(CONTROL, "")
        self._listener: Listener | None = None
        self._subscriber: resp.Connection | None = None  # set while the connection lives
        self._task: asyncio.Task[None] | None = None
        self._flushing = False
        self._down: str | None = None  # why the last attempt failed; None at first and while a connection lives
        self._gap_owed = False
        self._whole = False  # everything wanted at the (re)connect was confirmed
        self._proved_until = 0.0
        self._probes = 0
        self._echo: tuple[bytes, asyncio.Future[None]] | None = None
        self._subscribing: set[asyncio.Future[None]] = set()

    async def open(self, listener: Listener) -> None:
        self._listener = listener
        self._task = asyncio.create_task(self._supervise(), name="bus")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        self._whole, self._down = False, "the bus is closed"
        for future in self._subscribing:
            if not future.done():
                future.set_exception(BusUnavailable(self._down))
        await self._sender.close()
        self._listener = None

    @property
    def healthy(self) -> bool:
        # The age of the proof counts, so that it runs out by itself should this task ever be held up.
        return self._whole and asyncio.get_running_loop().time() < self._proved_until

    # Publishing

    async def publish(self, messages: Sequence[Message]) -> None:
        trip: list[resp.Command] = []
        size = 0
        for message in messages:
            packed = wire.pack(message)
            trip.append((b"PUBLISH", PREFIX + message.feed.encode(), packed))
            size += len(packed)
            if size >= TRIP_BYTES or len(trip) >= TRIP_MESSAGES:
                await self._sender.call(*trip)
                trip, size = [], 0
        if trip:
            await self._sender.call(*trip)

    async def announce(self, payload: bytes) -> None:
        await self._sender.call((b"PUBLISH", CONTROL, payload))

    # Subscribing

    async def subscribe(self, feeds: Collection[str]) -> None:
        """See `Bus.subscribe`. Refuses at once while the server is known to be away, so that a `hello` does not wait
        for it. Safe to cancel; the feeds stay wanted."""
        channels = [PREFIX + feed.encode() for feed in feeds]
        for channel, feed in zip(channels, feeds, strict=True):
            self._channels.want(channel, feed)
        self._flush_soon()
        await self._confirmed(channels)

    async def unsubscribe(self, feeds: Collection[str]) -> None:
        """Nothing of these feeds arrives after this. A `subscribe` that still waits for one of them waits for it no
        more."""
        for feed in feeds:
            self._channels.drop(PREFIX + feed.encode())
        self._flush_soon()

    async def _confirmed(self, channels: Sequence[bytes]) -> None:
        """Wait until all are live. Raises BusUnavailable after the timeout or when the connection is lost; then a gap
        is owed."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = self._channels.wait(channels, lambda: _finish(future))
        if waiter is None:
            return
        self._subscribing.add(future)
        try:
            if self._down is not None:
                raise BusUnavailable(self._down)
            async with asyncio.timeout(self._timeout_s):
                await future
        except TimeoutError:
            raise BusUnavailable(f"Redis did not confirm a subscription within {self._timeout_s:g} s") from None
        finally:
            self._subscribing.discard(future)
            if not future.done() or future.cancelled() or future.exception():
                self._gap_owed = True
                self._channels.forget(channels, waiter)

    def _flush_soon(self) -> None:
        """Everything that is asked for in one turn of the loop travels together."""
        if not self._flushing and self._subscriber is not None:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._subscriber is None:
            return
        if commands := self._channels.commands():
            try:
                self._subscriber.send(*commands)
            except BusUnavailable as error:
                self._subscriber.abort(str(error))

    # Receiving

    def _pushed(self, reply: list[Any]) -> None:
        kind, channel, data = reply
        try:
            if kind == b"message":
                self._received(channel, data)
            else:
                self._confirmation(channel)
        except Exception:
            # A listener must not raise; should it, the messages behind this one do not suffer for it.
            log.exception("bus_listener_failed")

    def _received(self, channel: bytes, data: bytes) -> None:
        feed = self._channels.wanted.get(channel)
        if feed is None or self._listener is None:
            return
        if feed:
            try:
                message = wire.unpack(feed, data)
            except ValueError as error:
                log.warning("bus_message_dropped", error=str(error), bytes=len(data))
            else:
                self._listener.received(message)
        elif channel == CONTROL:
            self._listener.control(data)
        elif self._echo is not None and data == self._echo[0]:
            _finish(self._echo[1])

    def _confirmation(self, channel: bytes) -> None:
        self._channels.confirmed(channel)
        if not self._channels.settled:
            self._flush_soon()
            return
        self._whole = True
        if self._gap_owed:
            self._gap_owed = False
            self._gap()

    def _gap(self) -> None:
        if self._listener is not None:
            try:
                self._listener.gap()
            except Exception:
                log.exception("bus_listener_failed")

    # Staying alive

    async def _supervise(self) -> None:
        delays, said = full_jitter(_random, BACKOFF_BASE_S, self._cap_s), False
        while True:
            self._proved_until = 0.0
            try:
                await self._live()
            except BusUnavailable as error:
                why = str(error)
            except Exception as error:
                log.exception("bus_failed")
                why = f"{type(error).__name__}: {error}"
            finally:
                proved, was_live = self._proved_until > 0.0, self._subscriber is not None
                await self._detach()
            if proved:
                delays = full_jitter(_random, BACKOFF_BASE_S, self._cap_s)
            if proved or not said:
                log.warning("bus_down", error=why)
                said = True  # an outage is one line
            self._lost(why, was_live)
            await asyncio.sleep(next(delays))

    async def _live(self) -> None:
        """One life of the subscribed connection. Ends by raising BusUnavailable."""
        subscriber = await resp.connect(
            self._address, f"vestnik-sub-{self._id}", timeout_s=self._timeout_s, pushed=self._pushed
        )
        self._channels.reset()
        self._subscriber, self._down = subscriber, None
        self._flush()
        await self._confirmed([self._probe_channel, CONTROL])
        while True:
            await self._probe(subscriber)
            if not self._proved_until:
                log.info("bus_up", server=str(self._address), feeds=len(self._channels.wanted) - 2)
            now = asyncio.get_running_loop().time()
            self._proved_until = now + self._probe_every_s + self._timeout_s + 2 * STALL_GRACE_S
            await asyncio.wait([subscriber.closed], timeout=self._probe_every_s)

    async def _probe(self, subscriber: resp.Connection) -> None:
        """Returns when a new message came the whole way round. Raises BusUnavailable when it did not in time."""
        self._probes += 1
        token = str(self._probes).encode()
        echo: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._echo = (token, echo)
        if not subscriber.closed.done():
            await self._sender.call((b"PUBLISH", self._probe_channel, token))
            for patience_s in (self._timeout_s, STALL_GRACE_S):
                await asyncio.wait([echo, subscriber.closed], timeout=patience_s, return_when="FIRST_COMPLETED")
                if echo.done() or subscriber.closed.done():
                    break
        if subscriber.closed.done():
            raise BusUnavailable(f"Redis at {self._address}: {subscriber.why}")
        if not echo.done():
            raise BusUnavailable(f"a probe did not come back through Redis at {self._address} in {self._timeout_s:g} s")

    async def _detach(self) -> None:
        subscriber, self._subscriber = self._subscriber, None
        if subscriber is not None:
            subscriber.abort("the bus gave it up")
            await subscriber.closed

    def _lost(self, why: str, was_live: bool) -> None:
        self._whole, self._proved_until, self._down, self._gap_owed = False, 0.0, why, True
        self._channels.reset()
        for future in self._subscribing:
            if not future.done():
                future.set_exception(BusUnavailable(why))
        if was_live:
            self._gap()  # what was lost until now is found at once, not when the server is back
