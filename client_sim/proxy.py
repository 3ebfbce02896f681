"""A TCP proxy that makes a good connection a bad one: latency, jitter, bandwidth, loss, slices, cuts, half-open ends.

    async with Proxy("127.0.0.1", 8080, NETWORKS["edge"], Random(7)) as proxy:
        …  # connect to 127.0.0.1 port proxy.port instead
        proxy.cut("silent", share=0.5)

It runs in the loop of its user, without a task for a connection. What goes through it is never read, only delayed;
back-pressure goes through it in both directions, bounded by the network's `buffer_bytes`.
"""

import asyncio
import contextlib
import socket
import struct
from collections import deque
from random import Random
from types import TracebackType
from typing import Self, cast

from client_sim.networks import How, Network, Stretch, pieces

TICK_S = 0.5  # how often idle and old connections are looked for
HELD_S = 120.0  # how long a silent end stays open
CONNECT_S = 10.0
_RESET = struct.pack("ii", 1, 0)


class Proxy:
    """Listens on a free loopback port while the block is entered. `down` refuses new connections; `calm` leaves the
    network as slow as it is, and cuts no connection by itself any more."""

    def __init__(self, host: str, port: int, network: Network, rng: Random):
        self.host, self.target, self.network, self.rng = host, port, network, rng
        self.port = 0
        self.down = self.calm = False
        self.links: set[_Link] = set()
        self.cuts = 0
        self._server: asyncio.Server
        self._ticking: asyncio.TimerHandle
        self._loop: asyncio.AbstractEventLoop
        self._opening: set[asyncio.Task[None]] = set()
        self._stalled = False
        self._silent: dict[_Link, asyncio.TimerHandle] = {}  # ended, and nobody was told

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._server = await self._loop.create_server(self._accept, "127.0.0.1", 0, backlog=4096)
        self.port = self._server.sockets[0].getsockname()[1]
        self._tick()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ticking.cancel()
        self._server.close()
        for task in list(self._opening):
            task.cancel()
        for link in list(self.links):
            link.end("close")
        for link, timer in list(self._silent.items()):
            timer.cancel()
            self._forget(link)
        await asyncio.sleep(0)

    def cut(self, how: How, share: float = 1.0) -> int:
        """End this share of the connections now; how many these were."""
        chosen = [link for link in list(self.links) if self.rng.random() < share]
        for link in chosen:
            link.end(how)
        self.cuts += len(chosen)
        return len(chosen)

    def stall(self, stalled: bool) -> None:
        """While stalled nothing comes through; nothing is lost."""
        self._stalled = stalled
        for link in list(self.links):
            link.pump()

    @property
    def stalled(self) -> bool:
        return self._stalled

    def _accept(self) -> asyncio.Protocol:
        return _Link(self).near

    def _tick(self) -> None:
        now = self._loop.time()
        for link in list(self.links):
            if not self.calm and link.expired(now):
                link.end(self.network.cut)
                self.cuts += 1
        self._ticking = self._loop.call_later(TICK_S, self._tick)

    def _hold(self, link: "_Link") -> None:
        self._silent[link] = self._loop.call_later(HELD_S, self._forget, link)

    def _forget(self, link: "_Link") -> None:
        del self._silent[link]
        link.near.drop(True)
        link.far.drop(True)

    def _open(self, link: "_Link") -> None:
        task = self._loop.create_task(self._reach(link))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _reach(self, link: "_Link") -> None:
        try:
            async with asyncio.timeout(CONNECT_S):
                await self._loop.create_connection(lambda: link.far, self.host, self.target)
        except (OSError, TimeoutError):
            link.end("reset")


class _End(asyncio.Protocol):
    """One socket of a link."""

    __slots__ = ("full", "link", "other", "queue", "queued", "stretch", "timer", "transport")

    def __init__(self, link: "_Link", stretch: Stretch):
        self.link = link
        self.stretch = stretch  # of the bytes that leave through this end
        self.transport: asyncio.Transport | None = None
        self.other: _End
        self.queue: deque[tuple[float, bytes]] = deque()  # (when, bytes) to be written here; empty bytes: the end
        self.queued = 0
        self.full = False  # the socket takes no more
        self.timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.link.connected(self)

    def data_received(self, data: bytes) -> None:
        self.link.moved_at = self.link.loop.time()
        for piece in pieces(data, self.link.proxy.network.slice_bytes):
            self.other.take(piece)
        if self.other.queued > self.link.proxy.network.buffer_bytes and self.transport is not None:
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        self.other.take(b"")
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self.link.end("reset" if exc is not None else "close")

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False
        self.pump()

    def take(self, data: bytes) -> None:
        """Bytes that shall leave here, after their time."""
        self.queue.append((self.stretch.due(self.link.loop.time(), len(data)), data))
        self.queued += len(data)
        self.pump()

    def pump(self) -> None:
        """Write what is due, and come back for what is not."""
        loop, transport = self.link.loop, self.transport
        if transport is None or self.full or self.link.proxy.stalled:
            return
        # Timers fire a little early (a millisecond with uvloop), which must not spin.
        now = loop.time() + 0.001
        while self.queue and self.queue[0][0] <= now and not self.full:
            _, data = self.queue.popleft()
            self.queued -= len(data)
            if data:
                transport.write(data)
            else:
                transport.close()
        source = self.other.transport
        if source is not None and self.queued < self.link.proxy.network.buffer_bytes / 2:
            source.resume_reading()
        if self.queue and self.timer is None:
            self.timer = loop.call_at(self.queue[0][0], self._again)

    def _again(self) -> None:
        self.timer = None
        self.pump()

    def drop(self, reset: bool) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.queue.clear()
        transport, self.transport = self.transport, None
        if transport is not None:
            if reset:
                with contextlib.suppress(OSError):
                    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                transport.abort()
            else:
                transport.close()


class _Link:
    """A connection through the proxy: the device is near, the gateway is far."""

    __slots__ = ("_dies_at", "_ended", "far", "loop", "moved_at", "near", "proxy")

    def __init__(self, proxy: Proxy):
        self.proxy, self.loop = proxy, proxy._loop
        network = proxy.network
        self.near = _End(self, Stretch(network, network.down_bps, proxy.rng))
        self.far = _End(self, Stretch(network, network.up_bps, proxy.rng))
        self.near.other, self.far.other = self.far, self.near
        self.moved_at = self.loop.time()
        self._dies_at = self.moved_at + self.near.stretch.life_s()
        self._ended = False

    def connected(self, end: _End) -> None:
        assert end.transport is not None
        if self._ended or (end is self.near and self.proxy.down):
            end.transport.abort()
        elif end is self.near:
            self.proxy.links.add(self)
            self.proxy._open(self)
        else:
            self.pump()

    def pump(self) -> None:
        self.near.pump()
        self.far.pump()

    def expired(self, now: float) -> bool:
        idle_s = self.proxy.network.idle_s
        return now >= self._dies_at or bool(idle_s and now - self.moved_at >= idle_s)

    def end(self, how: How) -> None:
        """No byte passes any more. With `silent` both sockets stay open for a while, as when a cable is pulled."""
        if self._ended:
            return
        self._ended = True
        self.proxy.links.discard(self)
        if how != "silent":
            self.near.drop(how == "reset")
            self.far.drop(how == "reset")
            return
        for end in (self.near, self.far):
            if end.transport is not None:
                end.transport.pause_reading()
            end.full = True
        self.proxy._hold(self)
