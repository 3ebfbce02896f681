"""Deletes what is older than the retention, a little at a time, so that commits go on in between."""

import asyncio
import time
from collections.abc import Callable

from gateway.logs import get_logger
from gateway.metrics import Counts
from gateway.opsfeeds import FIGURES, REJECTED
from gateway.store.base import Store
from workers.claims import Claim

log = get_logger("retention")

SHORTER_S = {  # feeds that are kept for less
    FIGURES: 2 * 3600.0,  # what operators draw is the last hours; older figures are a monitoring system's business
    REJECTED: 7 * 86400.0,  # anybody can make us write there, though slowly
}
CHUNK = 2_000  # events in one transaction: commits wait for it, so it stays in the tens of milliseconds
BREATH_S = 0.05  # between transactions


class Retention:
    """Events recorded more than `keep_s` ago go, from the old end of each feed, with the ids that recognise their
    repeats; in the feeds of SHORTER_S sooner."""

    name = "retention"

    def __init__(
        self,
        store: Store,
        claim: Claim,
        counts: Counts | None = None,
        *,
        keep_s: float = 90 * 86400.0,
        every_s: float = 3600.0,
        breath_s: float = BREATH_S,
        clock: Callable[[], float] = time.time,
    ):
        self.every_s = every_s
        self._store, self._claim, self._keep_s, self._breath_s, self._clock = store, claim, keep_s, breath_s, clock
        self._counts = Counts() if counts is None else counts
        self._deleted = 0  # in this round

    async def step(self) -> bool:
        if not await self._claim.take():
            return False
        now = self._clock()
        deleted = await self._store.retain(now - self._keep_s, CHUNK)
        for feed, keep_s in SHORTER_S.items():
            deleted = deleted or await self._store.retain(now - keep_s, CHUNK, feed)
        self._deleted += deleted
        self._counts.retained += deleted
        if deleted:
            if self._deleted // 100_000 > (self._deleted - deleted) // 100_000:
                log.info("retention_goes_on", deleted=self._deleted)
            await asyncio.sleep(self._breath_s)
            return True
        if self._deleted:
            log.info("retention_done", deleted=self._deleted)
            self._deleted = 0
        await self._claim.release()
        return False
