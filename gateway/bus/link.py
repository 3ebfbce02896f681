"""The connection that listens, and the proof that it does.

A TCP connection can live while its subscription is dead. So every few seconds a unique probe is published through the
sender and must come back through this connection: only that makes the link healthy. A probe that stays away, like a
closed connection, ends it; the next one subscribes everything in batches and then reports a gap.

Nothing queues here: what arrives is handed on in the turn of the loop in which it arrived.
"""

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Any, Protocol

from gateway.bus import resp
from gateway.bus.address import Address
from gateway.bus.channels import Channels, Lane
from gateway.bus.sender import Backoff, Find, Sender, Timing
from gateway.errors import BusUnavailable
from gateway.logs import get_logger

log = get_logger("bus")

STALL_GRACE_S = 0.05  # after a stall of our own loop the timer fires first and the echo lies unread: look once more
PROBES = 3  # attempts when the probe's own channel moves to another server while it is under way


class Ear(Protocol):
    """The bus, as a link sees it."""

    channels: Channels

    def heard(self, feed: str, data: bytes) -> None:
        """A message came; `feed` is empty for one to every gateway."""

    def gap(self, after_s: float = 0.0) -> None:
        """See `Listener.gap`; `after_s` puts it off."""

    def lost(self, link: "Link", why: str) -> None:
        """Who waits for a confirmation of this link waits in vain."""


def finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Link:
    """All channels of a bus over one connection to the server that `find` names. `primary`: see `resp.connect`."""

    sharded = False

    def __init__(self, ear: Ear, find: Find, sender: Sender, name: str, probe: bytes, timing: Timing, primary: bool):
        self._ear, self._find, self._sender, self._name = ear, find, sender, name
        self._timing, self._primary = timing, primary
        self.lane = Lane(ear.channels, sharded=self.sharded)
        self.probe = probe
        ear.channels.want(probe, "")
        self.down: str | None = None  # why the last attempt failed; None at first and while a connection lives
        self.gap_owed = False
        self._whole = False  # everything wanted at the (re)connect was confirmed
        self._proved_until = 0.0
        self._connection: resp.Connection | None = None  # set while it lives
        self._server: Address | None = None  # of this life, or of the last
        self._task: asyncio.Task[None] | None = None
        self._flushing = False
        self._hurry = asyncio.Event()
        self._probes = 0
        self._echo: tuple[bytes, asyncio.Future[None]] | None = None

    def open(self) -> None:
        """Connect in the background. Once."""
        self._task = asyncio.create_task(self._supervise(), name="bus")

    def close(self) -> None:
        """For good; `closed` returns when it is done."""
        if self._task is not None:
            self._task.cancel()
        if self._connection is not None:
            self._connection.abort("the bus gave it up")
        self._whole, self.down = False, "the bus is closed"

    async def closed(self) -> None:
        if self._task is not None:
            await asyncio.wait([self._task])

    @property
    def healthy(self) -> bool:
        # The age of the proof counts, so that it runs out by itself should this task ever be held up.
        return self._whole and asyncio.get_running_loop().time() < self._proved_until

    def follow(self, server: Address) -> None:
        """This is the server now."""
        if self._connection is None:
            self._hurry.set()
        elif self._server != server:
            self._hurry.set()
            self._connection.abort(f"the primary is {server} now")

    def owe_gap(self) -> None:
        """Something of the lane was not subscribed for a time: not whole, and a gap, until all is confirmed."""
        self._whole, self.gap_owed = False, True

    def use_probe(self, channel: bytes) -> None:
        """Prove by another channel from now on; a probe under way is sent again."""
        channels = self._ear.channels
        channels.drop(self.probe)
        self.lane.leave(self.probe)
        self.probe = channel
        channels.want(channel, "")
        self.lane.queue(channel)
        self.flush_soon()
        if self._echo is not None:
            finish(self._echo[1])

    def flush_soon(self) -> None:
        """Everything that is asked for in one turn of the loop travels together."""
        if not self._flushing and self._connection is not None:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._connection is None:
            return
        if commands := self.lane.commands():
            try:
                self._connection.send(*commands)
            except BusUnavailable as error:
                self._connection.abort(str(error))
        elif self.lane.settled:
            self._settle()

    # What a cluster does differently

    def _mine(self) -> Iterable[bytes]:
        """The channels of this link. The probe is first, so that it is confirmed first."""
        return {self.probe: None, **self._ear.channels.wanted}

    def _complete(self) -> bool:
        """A settled lane is all there is."""
        return True

    def _unasked(self, kind: bytes, channel: bytes) -> None:
        """The server ended a subscription by itself."""

    def _refused(self, error: str) -> bool:
        """The server refused a subscription: may the connection live on?"""
        return False

    # Receiving

    def _pushed(self, reply: list[Any]) -> None:
        kind, channel, data = reply
        try:
            if kind == b"message" or kind == b"smessage":
                feed = self._ear.channels.wanted.get(channel)
                if feed is None:
                    return
                if not feed and self._echo is not None and channel == self.probe:
                    if data == self._echo[0]:
                        finish(self._echo[1])
                else:
                    self._ear.heard(feed, data)
            elif self.lane.confirmed(channel):
                self._settle()
            else:
                self._unasked(kind, channel)
        except Exception:
            # A listener must not raise; should it, the messages behind this one do not suffer for it.
            log.exception("bus_listener_failed")

    def _settle(self) -> None:
        if not self.lane.settled:
            self.flush_soon()
        elif self._complete():
            self._whole = True
            if self.gap_owed:
                self.gap_owed = False
                self._ear.gap()

    # Staying alive

    async def _supervise(self) -> None:
        backoff, said = Backoff(self._timing.backoff_cap_s), False
        while True:
            self._proved_until = 0.0
            self._hurry.clear()
            try:
                await self._live()
            except BusUnavailable as error:
                why = str(error)
            except Exception as error:
                log.exception("bus_failed")
                why = f"{type(error).__name__}: {error}"
            finally:
                proved, was_live = self._proved_until > 0.0, self._connection is not None
                await self._detach()
            if proved:
                backoff.reset()
            if proved or not said:
                log.warning("bus_down", error=why)
                said = True  # an outage is one line
            self._lost(why, was_live)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(backoff.next()):
                    await self._hurry.wait()

    async def _live(self) -> None:
        """One life of the connection. Ends by raising BusUnavailable."""
        timing = self._timing
        address = await self._find()
        self._sender.follow(address)  # or probes go where nobody listens
        connection = resp.Connection(self._pushed, self._refused)
        await resp.connect(connection, address, name=self._name, timeout_s=timing.timeout_s, primary=self._primary)
        if self._server not in (None, address):
            # Others may publish to the old server until their own looks find it out.
            self._ear.gap(after_s=timing.probe_every_s + timing.timeout_s)
        self._server = address
        self.lane.reset(self._mine())
        self._connection, self.down = connection, None
        self._flush()
        await self._subscribed(connection)
        await self._watch(connection, address)

    async def _watch(self, connection: resp.Connection, address: Address) -> None:
        """Prove the connection again and again, and look meanwhile whether the server is still the one. A slow look
        delays no proof. Ends by raising BusUnavailable."""
        timing, loop = self._timing, asyncio.get_running_loop()
        look = asyncio.ensure_future(self._look(address))
        try:
            while True:
                await self._prove(connection)
                if not self._proved_until:
                    feeds = sum(1 for feed in self._ear.channels.wanted.values() if feed)
                    log.info("bus_up", server=str(address), feeds=feeds)
                until = loop.time() + timing.probe_every_s
                self._proved_until = until + timing.timeout_s + 2 * STALL_GRACE_S
                either: list[asyncio.Future[Any]] = [connection.closed, look]
                await asyncio.wait(either, timeout=timing.probe_every_s, return_when=asyncio.FIRST_COMPLETED)
                if look.done():
                    if (now := look.result()) != address:
                        self._hurry.set()
                        raise BusUnavailable(f"the primary is {now} now and no more {address}")
                    self._sender.follow(address)
                    await asyncio.wait([connection.closed], timeout=max(0.0, until - loop.time()))
                    look = asyncio.ensure_future(self._look(address))
        finally:
            look.cancel()

    async def _look(self, address: Address) -> Address:
        """Where the server is now; unchanged when nobody can say."""
        try:
            return await self._find()
        except BusUnavailable:
            return address

    async def _subscribed(self, connection: resp.Connection) -> None:
        """Returns when the probe's channel is live, and so may be used."""
        live: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        names = [self.probe]
        if (waiter := self._ear.channels.wait(names, lambda: finish(live))) is None:
            return
        try:
            await self._first(live, connection)
        finally:
            self._ear.channels.forget(names, waiter)
        if connection.closed.done() or not live.done():
            raise BusUnavailable(self._why(connection, "did not confirm a subscription"))

    async def _prove(self, connection: resp.Connection) -> None:
        """Returns when a new message came the whole way round. Raises BusUnavailable when it did not in time."""
        word = b"SPUBLISH" if self.sharded else b"PUBLISH"
        for attempt in range(1, PROBES + 1):
            channel = self.probe
            self._probes += 1
            token = str(self._probes).encode()
            echo: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._echo = (token, echo)
            try:
                if not connection.closed.done():
                    await self._sender.call((word, channel, token))
                    await self._first(echo, connection)
            except BusUnavailable:
                if channel == self.probe or attempt == PROBES:
                    raise
            if connection.closed.done():
                break
            if echo.done() and channel == self.probe:
                return
            if channel != self.probe:
                await self._subscribed(connection)
        raise BusUnavailable(self._why(connection, "did not send a probe back"))

    async def _first(self, future: asyncio.Future[None], connection: resp.Connection) -> None:
        """Wait until it is done, or the connection is gone, or the time is over."""
        for patience_s in (self._timing.timeout_s, STALL_GRACE_S):
            await asyncio.wait([future, connection.closed], timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
            if future.done() or connection.closed.done():
                return

    def _why(self, connection: resp.Connection, late: str) -> str:
        what = connection.why if connection.closed.done() else f"{late} within {self._timing.timeout_s:g} s"
        return f"Redis at {self._server}: {what}"

    async def _detach(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort("the bus gave it up")
            await connection.closed

    def _lost(self, why: str, was_live: bool) -> None:
        self._whole, self._proved_until, self.down, self.gap_owed = False, 0.0, why, True
        self.lane.reset(self._mine())
        self._ear.lost(self, why)
        if was_live:
            self._ear.gap()  # what was lost until now is found at once, not when the server is back
