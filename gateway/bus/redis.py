"""The bus over Redis pub/sub (7 or newer) on one server: named in the URL, or found by sentinels.

Two connections. One publishes and is made again on demand. One is subscribed and is watched (`gateway.bus.link`).
"""

import asyncio

from gateway.bus.address import Address, Command, parse, parse_sentinel
from gateway.bus.base import Listener
from gateway.bus.link import Link
from gateway.bus.pubsub import CONTROL, PROBE, PubSub
from gateway.bus.sender import Find, Sender, Timing
from gateway.bus.sentinel import Sentinels


class RedisBus(PubSub):
    """`gateway.bus.base.Bus` over one Redis server. See `Timing` for the arguments."""

    def __init__(self, url: str, *, timeout_s: float = 2.0, probe_every_s: float = 2.0, backoff_cap_s: float = 2.0):
        super().__init__(Timing(timeout_s, probe_every_s, backoff_cap_s))
        find, primary = self._finder(url)
        self._sender = Sender(find, f"vestnik-pub-{self._id}", self._timing, primary=primary)
        self._only = Link(
            self, find, self._sender, f"vestnik-sub-{self._id}", PROBE + self._id.encode(), self._timing, primary
        )
        self._only.lane.queue(CONTROL)

    def _finder(self, url: str) -> tuple[Find, bool]:
        """Who says where the server is, and whether that can be a replica by mistake."""
        address = parse(url)

        async def find() -> Address:
            return address

        return find, False

    async def open(self, listener: Listener) -> None:
        self._listener = listener
        self._only.open()

    async def close(self) -> None:
        self._only.close()
        self._sender.close()
        self._silence()
        await asyncio.gather(self._only.closed(), self._sender.closed())

    @property
    def healthy(self) -> bool:
        return self._only.healthy

    def _link(self, channel: bytes) -> Link:
        return self._only

    def _queue(self, channel: bytes) -> None:
        self._only.lane.queue(channel)
        self._only.flush_soon()

    async def _send(self, commands: list[Command]) -> None:
        await self._sender.call(*commands)


class SentinelBus(RedisBus):
    """`gateway.bus.base.Bus` over the primary that sentinels name. It is looked for anew with each connection and each
    probe, and as soon as one sentinel says that it has switched."""

    def _finder(self, url: str) -> tuple[Find, bool]:
        self._sentinels = Sentinels(
            *parse_sentinel(url), name=f"vestnik-sentinel-{self._id}", timing=self._timing, switched=self._switched
        )
        return self._sentinels.find, True

    def _switched(self, primary: Address) -> None:
        self._sender.follow(primary)
        self._only.follow(primary)

    async def close(self) -> None:
        await super().close()
        await self._sentinels.close()
