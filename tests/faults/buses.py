"""Two gateways on one bus, and the question that every fault asks: what was published, did it arrive, and if not, was
the listener told?"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import Any

from gateway.bus import FORMS, Bus
from gateway.errors import BusUnavailable
from tests.contracts.test_bus import Ear, healthy, message

FEEDS = [f"account:{number}" for number in range(3_000)]
QUICK: dict[str, Any] = {"timeout_s": 0.4, "probe_every_s": 0.2, "backoff_cap_s": 0.3}
CALM: dict[str, Any] = {**QUICK, "timeout_s": 1.0}  # where a bus must stay healthy on a machine that is busy


class Witness(Ear):
    """An ear that remembers when its gaps were."""

    def __init__(self) -> None:
        super().__init__()
        self.last_gap = 0.0
        self.heard: set[tuple[str, int]] = set()

    def received(self, message: Any) -> None:
        self.heard.add((message.feed, message.offset))
        super().received(message)

    def gap(self) -> None:
        self.last_gap = asyncio.get_running_loop().time()
        super().gap()


@contextlib.asynccontextmanager
async def opened(url: str, ear: Ear, **timing: float) -> AsyncIterator[Bus]:
    """A quick bus that lives."""
    bus: Any = FORMS[url.partition("://")[0]]
    bus = bus(url, **(timing or QUICK))
    await bus.open(ear)
    try:
        await healthy(bus, 20.0)
        yield bus
    finally:
        await bus.close()


async def subscribed(bus: Bus, feeds: Collection[str]) -> None:
    """A quick bus on a busy machine may be too slow for its own patience: then again."""
    for _ in range(20):
        try:
            return await bus.subscribe(feeds)
        except BusUnavailable:
            await healthy(bus, 20.0)
    raise AssertionError("subscribing did not succeed")


async def unhealthy(bus: Bus, patience_s: float = 3.0) -> None:
    async with asyncio.timeout(patience_s):
        while bus.healthy:
            await asyncio.sleep(0.005)


async def whole_again(bus: Bus, ear: Ear, gaps: int, patience_s: float = 20.0) -> None:
    """A gap was reported after `gaps`, every feed is live, nothing needs to be asked for again. The bus may not know
    yet that it was hurt, so what is published is published again."""
    await ear.until(lambda: ear.gaps > gaps, patience_s)
    ear.messages.clear()
    async with asyncio.timeout(patience_s):
        while {one.feed for one in ear.messages} != set(FEEDS):
            with contextlib.suppress(BusUnavailable, TimeoutError):
                await healthy(bus, patience_s)
                await bus.publish([message(feed, 1) for feed in FEEDS])
                await ear.until(lambda: len({one.feed for one in ear.messages}) == len(FEEDS), 1.0)


class Stream:
    """Publishes to feed after feed on one bus while another listens. `accepted` holds what the bus took, and when."""

    def __init__(self, publisher: Bus, witness: Witness, feeds: list[str]):
        self._publisher, self._witness, self._feeds = publisher, witness, feeds
        self.accepted: dict[tuple[str, int], float] = {}
        self.refused = 0
        self._offset = 0
        self._task: asyncio.Task[None] | None = None

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._offset += 1
            sent = [message(self._feeds[(self._offset * 7 + one) % len(self._feeds)], self._offset) for one in range(7)]
            try:
                await self._publisher.publish(sent)
            except BusUnavailable:
                self.refused += 1
            else:
                self.accepted |= {(one.feed, one.offset): loop.time() for one in sent}
            await asyncio.sleep(0.005)

    async def __aenter__(self) -> "Stream":
        self._task = asyncio.create_task(self._run())
        await self.flows()
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])

    async def flows(self, patience_s: float = 10.0) -> float:
        """Wait until messages published from now on arrive. Returns after how many seconds they did."""
        loop = asyncio.get_running_loop()
        started, first = loop.time(), self._offset + 1
        fresh: set[int] = set()

        def enough() -> bool:
            fresh.update(offset for _, offset in self._witness.heard if offset >= first)
            return len(fresh) >= 20

        await self._witness.until(enough, patience_s)
        return loop.time() - started

    def untold(self) -> list[tuple[str, int]]:
        """What the bus took, what did not arrive, and what no gap since then told of."""
        gap = self._witness.last_gap
        return [one for one, at in self.accepted.items() if one not in self._witness.heard and at > gap]

    async def told(self, patience_s: float) -> None:
        """Wait until everything taken has arrived or was told of."""
        async with asyncio.timeout(patience_s):
            while self.untold():
                await asyncio.sleep(0.02)


async def pair(url: str, fault: Callable[[Bus, Witness], Awaitable[None]], *, flows_s: float, told_s: float) -> Stream:
    """Two gateways, one publishing to all feeds of the other, through a fault. Delivery goes on within `flows_s` of
    the fault's end, and nothing is lost untold."""
    witness = Witness()
    async with opened(url, witness) as listener, opened(url, Ear()) as publisher:
        await subscribed(listener, FEEDS)
        async with Stream(publisher, witness, FEEDS) as stream:
            await fault(listener, witness)
            await stream.flows(flows_s)
            await healthy(listener, flows_s)
            await healthy(publisher, flows_s)
            accepted = len(stream.accepted)
            await stream.flows()
        await stream.told(told_s)
        assert len(stream.accepted) > accepted
        await whole_again(listener, witness, witness.gaps - 1)
        return stream
