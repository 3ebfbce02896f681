"""From a commit to the bus: what was stored is published at once, in order, and noted as published a little later.

Losing any of this costs speed only. Whatever is not noted as published, because the bus refused it, because there was
no room here or because the process died, is found by the relay (`workers.relay`), which publishes it again.
"""

import asyncio
from collections.abc import Sequence

from gateway.bus.base import Bus, Message
from gateway.errors import BusUnavailable, StoreUnavailable
from gateway.logs import get_logger
from gateway.metrics import Counts
from gateway.store.base import Draft, Store, Stored

log = get_logger("publisher")

BATCH = 1_000  # messages in one call of the bus
WAITING_BYTES = 32 << 20  # events not yet published: protects memory while the bus is slow; more is the relay's
MARKS = 100_000  # published and not yet noted: protects memory while the store is away; more is published twice
NOTE_EVERY_S = 0.5  # one trip to the store for all in between; well below the relay's patience
CLOSING_S = 5.0


def as_message(stored: Stored) -> Message:
    """A stored event as the bus carries it."""
    row = stored.row
    return Message(stored.feed, stored.epoch, stored.offset, row.event, row.priority, row.recorded)


class Publisher:
    """`put` after each commit, `close` at the end; nothing here ever raises to the caller."""

    def __init__(self, store: Store, bus: Bus, counts: Counts | None = None, *, note_every_s: float = NOTE_EVERY_S):
        self._store, self._bus, self._note_every_s = store, bus, note_every_s
        self._counts = Counts() if counts is None else counts
        self._waiting: list[Stored] = []
        self._waiting_bytes = 0
        self._published: list[int] = []  # seqs to be noted
        self._flushing: asyncio.Task[None] | None = None
        self._noting: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._down = False  # both only keep an outage to one line in the log
        self._store_away = False

    def put(self, stored: Sequence[Stored]) -> None:
        """Publish these in this order, soon and without waiting for it. Duplicates were published when they were new.
        Call it on the event loop, in the order of commits."""
        for one in stored:
            size = len(one.row.event or b"")
            if one.duplicate:
                continue
            if self._closing.is_set() or self._waiting_bytes + size > WAITING_BYTES:
                self._counts.bus_failures += 1
                continue
            self._waiting.append(one)
            self._waiting_bytes += size
        if self._waiting and self._flushing is None:
            self._flushing = asyncio.create_task(self._flush(), name="publisher")

    async def tell(self, drafts: Sequence[Draft], now: float) -> None:
        """Commit what the gateway itself has to say, and publish it. Returns when it is on disk. Raises
        StoreUnavailable."""
        outcomes = await self._store.append(drafts, now)
        self.put([outcome for outcome in outcomes if isinstance(outcome, Stored)])

    async def close(self) -> None:
        """Returns when what was put is published and noted, or after 5 s; the rest is the relay's."""
        self._closing.set()
        tasks = [task for task in (self._flushing, self._noting) if task is not None]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=CLOSING_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self._note()

    async def _flush(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
                self._waiting_bytes -= sum(len(one.row.event or b"") for one in batch)
                await self._publish(batch)
        finally:
            self._flushing = None

    async def _publish(self, batch: list[Stored]) -> None:
        try:
            await self._bus.publish([as_message(one) for one in batch])
        except BusUnavailable as error:
            self._counts.bus_failures += len(batch)
            if not self._down:
                log.warning("publish_failed", error=str(error), left_to_relay=len(batch))
            self._down = True
            return
        except Exception:
            self._counts.bus_failures += len(batch)
            log.exception("publish_failed", left_to_relay=len(batch))
            return
        self._down = False
        self._counts.bus_published += len(batch)
        if len(self._published) < MARKS:
            self._published += [one.seq for one in batch]
        if self._noting is None:
            self._noting = asyncio.create_task(self._note_later(), name="publisher notes")

    async def _note_later(self) -> None:
        try:
            while self._published and not self._closing.is_set():
                try:
                    async with asyncio.timeout(self._note_every_s):
                        await self._closing.wait()
                except TimeoutError:
                    await self._note()
        finally:
            self._noting = None

    async def _note(self) -> None:
        seqs, self._published = self._published, []
        if not seqs:
            return
        try:
            await self._store.published(seqs)
        except StoreUnavailable as error:
            self._published = seqs + self._published
            if not self._store_away:
                log.warning("published_not_noted", error=str(error), events=len(seqs))
            self._store_away = True
        except Exception:
            log.exception("published_not_noted", events=len(seqs))
        else:
            self._store_away = False
