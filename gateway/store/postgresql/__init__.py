"""The store in a PostgreSQL database: for as many gateways on as many machines as one likes. README.md beside this
file says how it stays right and fast.

    address    the URL          failures   what errors mean          life     epochs and places
    database   connections, transactions, locks and their order
    schema/    the tables, and how older databases become newer ones
    sql        many rows in one statement
    log        feeds and events        devices    devices, cursors, marks, receipts
    upkeep     erasure, retention      control    agencies, revocations
    presence   who is connected where, leases

Here each promise of `gateway.store.base` becomes one transaction, or one statement, of one of these functions.
"""

import asyncio
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Final

from gateway.errors import ConfigError, StoreUnavailable
from gateway.store.base import (
    Agency,
    AgencyKey,
    CursorSave,
    Device,
    Draft,
    Entered,
    Filter,
    Head,
    Join,
    Joined,
    Kept,
    Lease,
    Outcome,
    Page,
    Presence,
    Range,
    Receipt,
    Revocation,
    Start,
    Stored,
    TooManyDevices,
    Trace,
)
from gateway.store.postgresql import control, devices, log, presence, upkeep
from gateway.store.postgresql.address import parse
from gateway.store.postgresql.database import Connection, Database, hold, renew_epoch

__all__ = ["PostgresqlStore", "hold", "parse", "renew"]

READY_S: Final = 2.0
RETAIN_CHUNK: Final = 500  # events deleted while an append to their feeds waits: some milliseconds
SWEEP_S: Final = 600.0


class PostgresqlStore:
    """`url` as in `gateway.store.postgresql.address`; a wrong one raises ConfigError. An empty database gets the
    tables, unless `make` is False."""

    def __init__(self, url: str, *, make: bool = True):
        self._db = Database(parse(url), make=make)

    @property
    def epoch(self) -> str:
        return self._db.epoch

    async def open(self) -> None:
        await self._db.open()

    async def close(self) -> None:
        await self._db.close()

    async def ready(self) -> bool:
        try:
            async with asyncio.timeout(READY_S):
                await self._db.write(_probe)
        except (StoreUnavailable, TimeoutError):
            return False
        return True

    # Events

    async def append(self, drafts: Sequence[Draft], now: float) -> list[Outcome]:
        return await self._db.write(lambda conn: log.append(conn, self.epoch, drafts, now))

    async def read(self, ranges: Sequence[Range]) -> list[Page]:
        return await self._db.read(lambda conn: log.read(conn, ranges))

    async def heads(self, feeds: Collection[str]) -> dict[str, Head]:
        return await self._db.read(lambda conn: log.heads(conn, feeds))

    async def history(
        self, feed: str, *, after: int | None, before: int | None, limit: int, filter: Filter, max_scan: int = 5000
    ) -> tuple[Page, int | None]:
        return await self._db.read(lambda conn: log.history(conn, feed, after, before, limit, filter, max_scan))

    async def published(self, seqs: Collection[int]) -> None:
        await self._db.write(lambda conn: log.published(conn, seqs), relaxed=True)

    async def unpublished(self, before: float, limit: int) -> list[Stored]:
        return await self._db.read(lambda conn: log.unpublished(conn, self.epoch, before, limit))

    # Devices and cursors

    async def join(self, joins: Sequence[Join]) -> list[Joined | TooManyDevices]:
        return await self._db.write(lambda conn: devices.join(conn, self.epoch, joins))

    async def follow(self, account: str, device: str, feed: str, resume: tuple[str, int] | None, now: float) -> Start:
        return await self._db.write(lambda conn: devices.follow(conn, self.epoch, account, device, feed, resume, now))

    async def unfollow(self, account: str, device: str, feed: str) -> None:
        await self._db.write(lambda conn: devices.unfollow(conn, account, device, feed))

    async def save(self, cursors: Sequence[CursorSave]) -> None:
        await self._db.write(lambda conn: devices.save(conn, self.epoch, cursors))

    async def touch(self, devices_: Sequence[tuple[str, str, float]]) -> None:
        await self._db.write(lambda conn: devices.touch(conn, devices_), relaxed=True)

    async def seen(self, marks: Sequence[tuple[str, Sequence[int], float]]) -> None:
        await self._db.write(lambda conn: devices.seen(conn, marks))

    async def seen_offsets(self, feed: str) -> set[int]:
        return await self._db.read(lambda conn: devices.seen_offsets(conn, feed))

    async def receipts(self, keys: Sequence[bytes]) -> list[Receipt | None]:
        return await self._db.read(lambda conn: devices.receipts(conn, keys))

    async def traces(self, feed: str, offsets: Collection[int]) -> list[Trace]:
        return await self._db.read(lambda conn: devices.traces(conn, feed, offsets))

    async def cursors(self, account: str) -> dict[str, dict[str, tuple[str, int]]]:
        return await self._db.read(lambda conn: devices.cursors(conn, account))

    async def devices(self, account: str) -> list[Device]:
        return await self._db.read(lambda conn: devices.devices(conn, account))

    async def forget(self, account: str, device: str) -> bool:
        return await self._db.write(lambda conn: devices.forget(conn, account, device))

    # Presence and leases

    async def enter(self, presences: Sequence[Presence], now: float) -> list[Entered]:
        return await self._db.write(lambda conn: presence.enter(conn, presences, now), relaxed=True)

    async def keep(self, presences: Sequence[Presence], now: float) -> list[Presence]:
        instead, again = await self._db.read(lambda conn: presence.kept(conn, presences))
        if again:  # rarely: most looks only read
            await self._db.write(lambda conn: presence.again(conn, again), relaxed=True)
        return instead

    async def leave(self, presences: Sequence[Presence]) -> None:
        await self._db.write(lambda conn: presence.leave(conn, presences), relaxed=True)

    async def present(self, account: str, now: float) -> frozenset[str]:
        return await self._db.read(lambda conn: presence.present(conn, account, now))

    async def lease(self, name: str, owner: str, until: float, now: float) -> bool:
        return await self._db.write(lambda conn: presence.lease(conn, name, owner, until, now), relaxed=True)

    async def release(self, name: str, owner: str) -> None:
        await self._db.write(lambda conn: presence.release(conn, name, owner), relaxed=True)

    async def leases(self, prefix: str, now: float) -> list[Lease]:
        return await self._db.read(lambda conn: presence.leases(conn, prefix, now))

    async def expire(self, before: float, limit: int = 10_000) -> int:
        return await self._db.write(lambda conn: presence.expire(conn, before, limit), relaxed=True)

    # Erasure, retention, proof

    async def erase(
        self, feed: str, offset: int | None, make: Callable[[Sequence[tuple[int, int]]], Draft], now: float
    ) -> Stored | None:
        return await self._db.write(lambda conn: upkeep.erase(conn, self.epoch, feed, offset, make, now))

    async def retain(self, before: float, limit: int = 10_000, feed: str | None = None) -> int:
        count = 0
        while count < limit:
            chunk = min(RETAIN_CHUNK, limit - count)
            done = await self._db.write(partial(upkeep.retain, before=before, limit=chunk, name=feed))
            count += done
            if not done:
                await self._db.outside(upkeep.sweep, limit_s=SWEEP_S)
                break
        return count

    async def kept(self, key: bytes) -> Kept | None:
        return await self._db.read(lambda conn: upkeep.kept(conn, key))

    # Control

    async def revision(self) -> int:
        return await self._db.read(control.revision)

    async def agencies(self) -> list[Agency]:
        return await self._db.read(control.agencies)

    async def add_agency_key(self, code: str, key: AgencyKey, types: Sequence[str] | None, now: float) -> None:
        await self._db.write(lambda conn: control.add_agency_key(conn, code, key, types, now))

    async def retire_agency_key(self, code: str, key_id: str, now: float) -> bool:
        return await self._db.write(lambda conn: control.retire_agency_key(conn, code, key_id, now))

    async def revoke(self, revocation: Revocation) -> None:
        await self._db.write(lambda conn: control.revoke(conn, revocation))

    async def revocations(self) -> list[Revocation]:
        return await self._db.read(control.revocations)

    async def backup(self, path: str, progress: Callable[[int, int], None] | None = None) -> None:
        raise ConfigError(
            "VESTNIK_STORE is PostgreSQL, which has its own backups: use pg_basebackup with an archive of its log, or"
            " pg_dump; what is restored from either gets a new epoch when a gateway opens it."
        )


async def renew(url: str) -> str:
    """Give the store at `url` a new epoch, which is returned: every device resyncs once. Raises ConfigError when it is
    in use, or is none; StoreUnavailable when the server cannot do it now."""
    return await renew_epoch(parse(url))


async def _probe(conn: Connection) -> None:
    await conn.execute("UPDATE meta SET probed = probed + 1")
