"""Presences and leases. Functions of one transaction. Rows are locked in the order of account and device."""

from collections.abc import Sequence

from gateway.store import presence
from gateway.store.base import Entered, Lease, Presence
from gateway.store.postgresql.database import Connection
from gateway.store.postgresql.sql import columns, micros, seconds


async def enter(conn: Connection, presences: Sequence[Presence], now: float) -> list[Entered]:
    if not presences:
        return []
    known = await _known(conn, presences, _LOCKED)
    accounts = sorted({one.account for one in presences})
    present: dict[str, set[str]] = {}
    for account, device in await conn.fetch(_PRESENT, accounts, micros(now)):
        present.setdefault(account, set()).add(device)
    told, rows = presence.enter(presences, known, {name: frozenset(found) for name, found in present.items()}, now)
    await again(conn, rows)
    return told


async def kept(conn: Connection, presences: Sequence[Presence]) -> tuple[list[Presence], list[Presence]]:
    """As `presence.superseded`. One statement that reads."""
    return presence.superseded(presences, await _known(conn, presences, _KNOWN)) if presences else ([], [])


async def again(conn: Connection, presences: Sequence[Presence]) -> None:
    """Sorted, and each device once."""
    rows = [(one.account, one.device, one.node, one.session, micros(one.since)) for one in presences]
    await conn.execute(_WRITE, *columns(rows))


_WRITE = """
    INSERT INTO presences SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[])
    ON CONFLICT (account, device) DO UPDATE
    SET node = excluded.node, session = excluded.session, since = excluded.since
    WHERE presences.since < excluded.since"""


async def leave(conn: Connection, presences: Sequence[Presence]) -> None:
    if presences:
        await conn.execute(_LEAVE, *columns([(one.account, one.device, one.session) for one in presences]))


_LEAVE = """
    WITH going AS (
        SELECT account, device FROM unnest($1::text[], $2::text[], $3::text[]) AS given (account, device, session)
        JOIN presences USING (account, device, session) ORDER BY account, device FOR UPDATE OF presences)
    DELETE FROM presences USING going WHERE presences.account = going.account AND presences.device = going.device"""


async def present(conn: Connection, account: str, now: float) -> frozenset[str]:
    return frozenset(device for _, device in await conn.fetch(_PRESENT, [account], micros(now)))


_PRESENT = """
    SELECT account, device FROM unnest($1::text[]) AS given (account) JOIN presences USING (account)
    JOIN leases ON name = 'node:' || node AND until > $2 WHERE session <> ''"""


async def _known(conn: Connection, presences: Sequence[Presence], sql: str) -> dict[presence.Key, Presence]:
    rows = await conn.fetch(sql, *columns([(one.account, one.device) for one in presences]))
    return {
        (account, device): Presence(account, device, node, session, seconds(since))
        for account, device, node, session, since in rows
    }


_KNOWN = """
    SELECT account, device, node, session, since FROM unnest($1::text[], $2::text[]) AS given (account, device)
    JOIN presences USING (account, device)"""
_LOCKED = f"{_KNOWN} ORDER BY account, device FOR UPDATE OF presences"


async def lease(conn: Connection, name: str, owner: str, until: float, now: float) -> bool:
    done: str = await conn.execute(_LEASE, name, owner, micros(until), micros(now))
    return done != "INSERT 0 0"


_LEASE = """
    INSERT INTO leases VALUES ($1, $2, $3) ON CONFLICT (name) DO UPDATE
    SET owner = excluded.owner, until = excluded.until WHERE leases.owner = excluded.owner OR leases.until <= $4"""


async def release(conn: Connection, name: str, owner: str) -> None:
    await conn.execute("DELETE FROM leases WHERE name = $1 AND owner = $2", name, owner)


async def leases(conn: Connection, prefix: str, now: float) -> list[Lease]:
    rows = await conn.fetch(_LEASES, prefix, micros(now))
    return [Lease(name, owner, seconds(until)) for name, owner, until in rows]


_LEASES = "SELECT name, owner, until FROM leases WHERE starts_with(name, $1) AND until > $2 ORDER BY name"


async def expire(conn: Connection, before: float, limit: int) -> int:
    leases: str = await conn.execute(_EXPIRE_LEASES, micros(before), limit)
    presences: str = await conn.execute(_EXPIRE, micros(before), limit)
    return int(leases.split()[-1]) + int(presences.split()[-1])


_EXPIRE_LEASES = """
    DELETE FROM leases WHERE name IN (SELECT name FROM leases WHERE until < $1 LIMIT $2 FOR UPDATE SKIP LOCKED)"""
# Not in the order of the others, so it waits for nobody.
_EXPIRE = """
    WITH old AS (
        SELECT account, device FROM presences
        WHERE since < $1 AND NOT EXISTS (SELECT FROM leases WHERE name = 'node:' || node)
        LIMIT $2 FOR UPDATE SKIP LOCKED)
    DELETE FROM presences USING old WHERE presences.account = old.account AND presences.device = old.device"""
