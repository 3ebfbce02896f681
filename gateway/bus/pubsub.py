"""What the bus is over Redis pub/sub, whether one server carries it or a cluster. Nothing in Redis must survive: the
store is the truth.

A publish that Redis acknowledged may still be lost on the way to another gateway (its output buffer overflows at
`client-output-buffer-limit pubsub`, 32 MB, and Redis drops that gateway; a primary dies): that is a closed connection
there, and a gap.
"""

import asyncio
import secrets
from collections.abc import Collection, Iterable, Sequence

from gateway.bus import wire
from gateway.bus.address import Command
from gateway.bus.base import Listener, Message
from gateway.bus.channels import Channels
from gateway.bus.link import Link, finish
from gateway.bus.sender import Timing
from gateway.errors import BusUnavailable
from gateway.logs import get_logger

log = get_logger("bus")

PREFIX = b"vestnik:"  # channel of a feed: prefix + feed
CONTROL = b"vestnik.control"
PROBE = b"vestnik.probe."  # + the id of the bus

TRIP_BYTES = 1 << 20  # sent before its answers are awaited: bounds the memory of a publish to a slow server
TRIP_MESSAGES = 1_000
GAP_PAUSE_S = 0.25  # between gaps: moving a thousand slots must not compare all heads a thousand times


class PubSub:
    """The parts of `gateway.bus.base.Bus` that every form shares. A form says which link a channel has (`_link`, of
    which there may be none yet), queues a channel there (`_queue`), sends (`_send`), opens and closes."""

    word = b"PUBLISH"

    def __init__(self, timing: Timing):
        self.channels = Channels()
        self.channels.want(CONTROL, "")
        self._timing = timing
        self._id = secrets.token_hex(6)
        self._listener: Listener | None = None
        self._subscribing: dict[asyncio.Future[None], set[Link | None]] = {}
        self._last_gap = 0.0
        self._gaps: set[asyncio.TimerHandle] = set()

    # A form's own

    def _link(self, channel: bytes) -> Link | None:
        raise NotImplementedError

    def _queue(self, channel: bytes) -> None:
        """It was wanted, or dropped: tell the server."""
        raise NotImplementedError

    async def _send(self, commands: list[Command]) -> None:
        """Returns when Redis answered all. Raises BusUnavailable."""
        raise NotImplementedError

    def _down(self, link: Link | None) -> str | None:
        """Why nothing can be confirmed there now."""
        return link.down if link is not None else None

    def _owe_gap(self, link: Link | None) -> None:
        """A subscription was given up: a gap is to be told when it is there at last."""
        if link is not None:
            link.gap_owed = True

    # Publishing

    async def publish(self, messages: Sequence[Message]) -> None:
        trip: list[Command] = []
        size, word = 0, self.word
        for message in messages:
            packed = wire.pack(message)
            trip.append((word, PREFIX + message.feed.encode(), packed))
            size += len(packed)
            if size >= TRIP_BYTES or len(trip) >= TRIP_MESSAGES:
                await self._send(trip)
                trip, size = [], 0
        if trip:
            await self._send(trip)

    async def announce(self, payload: bytes) -> None:
        await self._send([(self.word, CONTROL, payload)])

    # Subscribing

    async def subscribe(self, feeds: Collection[str]) -> None:
        """See `Bus.subscribe`. Refuses at once while the server is known to be away, so that a `hello` does not wait
        for it. Safe to cancel; the feeds stay wanted."""
        channels = [PREFIX + feed.encode() for feed in feeds]
        for channel, feed in zip(channels, feeds, strict=True):
            if self.channels.want(channel, feed):
                self._queue(channel)
        await self._confirmed(channels)

    async def unsubscribe(self, feeds: Collection[str]) -> None:
        """Nothing of these feeds arrives after this. A `subscribe` that still waits for one of them waits for it no
        more."""
        for feed in feeds:
            channel = PREFIX + feed.encode()
            if self.channels.drop(channel):
                self._queue(channel)

    async def _confirmed(self, channels: Sequence[bytes]) -> None:
        """Wait until all are live. Raises BusUnavailable when none of them became so for the timeout, or when a
        connection is lost; then a gap is owed."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = self.channels.wait(channels, lambda: finish(future))
        if waiter is None:
            return
        links = {self._link(channel) for channel in channels}
        self._subscribing[future] = links
        try:
            for link in links:
                if (why := self._down(link)) is not None:
                    raise BusUnavailable(why)
            left = waiter.left + 1
            while not future.done() and waiter.left < left:  # many take their time; a server that hangs does nothing
                left = waiter.left
                await asyncio.wait((future,), timeout=self._timing.timeout_s)
            if not future.done():
                raise BusUnavailable(f"Redis did not confirm a subscription within {self._timing.timeout_s:g} s")
            future.result()
        finally:
            del self._subscribing[future]
            if not future.done() or future.cancelled() or future.exception():
                for link in links:
                    self._owe_gap(link)
                self.channels.forget(channels, waiter)

    # What links say

    def heard(self, feed: str, data: bytes) -> None:
        listener = self._listener
        if listener is None:
            return
        if not feed:
            listener.control(data)
            return
        try:
            message = wire.unpack(feed, data)
        except ValueError as error:
            log.warning("bus_message_dropped", error=str(error), bytes=len(data))
        else:
            listener.received(message)

    def gap(self, after_s: float = 0.0) -> None:
        loop = asyncio.get_running_loop()
        at = loop.time() + after_s
        if any(at <= timer.when() <= at + GAP_PAUSE_S for timer in self._gaps):
            return  # that one will do
        at = max(at, self._last_gap + GAP_PAUSE_S)
        if at <= loop.time():
            self._gap()
            return

        def late() -> None:
            self._gaps.discard(timer)
            self._gap()

        timer = loop.call_at(at, late)
        self._gaps.add(timer)

    def _gap(self) -> None:
        self._last_gap = asyncio.get_running_loop().time()
        if self._listener is not None:
            try:
                self._listener.gap()
            except Exception:
                log.exception("bus_listener_failed")

    def lost(self, link: Link | None, why: str) -> None:
        for future, links in self._subscribing.items():
            if link in links and not future.done():
                future.set_exception(BusUnavailable(why))

    def _silence(self) -> None:
        """The bus closes: nobody waits, nobody hears."""
        self._listener = None
        for timer in self._gaps:
            timer.cancel()
        self._gaps.clear()
        for future in self._subscribing:
            if not future.done():
                future.set_exception(BusUnavailable("the bus is closed"))


async def gone(links: Iterable[Link]) -> None:
    """Returns when these, closed, have let their connections go."""
    await asyncio.gather(*(link.closed() for link in links))
