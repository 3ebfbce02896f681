"""Publishes what was committed and never published: its gateway died, its bus was away, its queue was full."""

import time
from collections.abc import Callable

from gateway.bus.base import Bus
from gateway.logs import get_logger
from gateway.metrics import Counts
from gateway.publisher import as_message
from gateway.store.base import Store
from workers.claims import Claim

log = get_logger("relay")

LIMIT = 500  # events in one step: at 64 KiB each they hold 32 MiB


class Relay:
    """Takes what is older than `after_s`, which leaves the gateway's own publisher its time. Of several relays the one
    with the claim works, and claims only when something waits. A relay and a publisher at once, or a relay that was
    stopped and the one that took over, publish some events twice; that is harmless."""

    name = "relay"
    every_s = 1.0

    def __init__(
        self,
        store: Store,
        bus: Bus,
        claim: Claim,
        counts: Counts | None = None,
        *,
        after_s: float = 2.0,
        clock: Callable[[], float] = time.time,
    ):
        self._store, self._bus, self._claim, self._after_s, self._clock = store, bus, claim, after_s, clock
        self._counts = Counts() if counts is None else counts

    async def step(self) -> bool:
        waiting = await self._store.unpublished(self._clock() - self._after_s, LIMIT)
        self._counts.unpublished = len(waiting)
        if not waiting or not await self._claim.take():
            return False
        await self._bus.publish([as_message(stored) for stored in waiting])
        # Only now: dying in between publishes twice, the other way round it would be never.
        await self._store.published([stored.seq for stored in waiting])
        self._counts.relayed += len(waiting)
        self._counts.unpublished = 0
        log.info("relayed", events=len(waiting))
        return len(waiting) == LIMIT
