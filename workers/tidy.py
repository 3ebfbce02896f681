"""Forgets leases that ended and presences of nodes that are gone. They count for nothing: this only saves space."""

import time
from collections.abc import Callable

from gateway.store.base import Store
from workers.claims import Claim

LIMIT = 2_000  # rows in one transaction
OLD_S = 3600.0  # longer than any lease and any sweep: no node still asks about it


class Tidy:
    name = "tidy"
    every_s = 600.0

    def __init__(self, store: Store, claim: Claim, *, clock: Callable[[], float] = time.time):
        self._store, self._claim, self._clock = store, claim, clock

    async def step(self) -> bool:
        if not await self._claim.take():
            return False
        if await self._store.expire(self._clock() - OLD_S, LIMIT) >= LIMIT:
            return True
        await self._claim.release()
        return False
