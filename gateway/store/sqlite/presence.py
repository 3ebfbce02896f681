"""Presences and leases. Functions of one transaction."""

import sqlite3
from collections.abc import Sequence

from gateway.store import presence
from gateway.store.base import Entered, Lease, Presence
from gateway.store.sqlite.sql import dumps, gather, insert, micros, seconds


def enter(conn: sqlite3.Connection, presences: Sequence[Presence], now: float) -> list[Entered]:
    told, rows = presence.enter(presences, _known(conn, presences), _present(conn, presences, now), now)
    _write(conn, rows)
    return told


def kept(conn: sqlite3.Connection, presences: Sequence[Presence]) -> tuple[list[Presence], list[Presence]]:
    """As `presence.superseded`. Reads only."""
    return presence.superseded(presences, _known(conn, presences))


def again(conn: sqlite3.Connection, presences: Sequence[Presence]) -> None:
    _write(conn, presences)


def leave(conn: sqlite3.Connection, presences: Sequence[Presence]) -> None:
    conn.execute(_LEAVE, (dumps([(one.account, one.device, one.session) for one in presences]),))


_LEAVE = """
    DELETE FROM presences WHERE (account, device, session) IN (
        SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]')
        FROM json_each(?))"""


def present(conn: sqlite3.Connection, account: str, now: float) -> frozenset[str]:
    return frozenset(device for _, device in gather(conn, _PRESENT, dumps([account]), micros(now)))


def _present(conn: sqlite3.Connection, presences: Sequence[Presence], now: float) -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    accounts = dumps(sorted({one.account for one in presences}))
    for account, device in gather(conn, _PRESENT, accounts, micros(now)):
        found.setdefault(account, set()).add(device)
    return {account: frozenset(devices) for account, devices in found.items()}


_PRESENT = """
    SELECT json_group_array(json_array(account, device)) FROM json_each(?) AS given
    CROSS JOIN presences ON account = given.value AND session <> ''
    JOIN leases ON name = 'node:' || node AND until > ?"""


def _known(conn: sqlite3.Connection, presences: Sequence[Presence]) -> dict[presence.Key, Presence]:
    rows = gather(conn, _KNOWN, dumps([(one.account, one.device) for one in presences]))
    return {
        (account, device): Presence(account, device, node, session, seconds(since))
        for account, device, node, session, since in rows
    }


_KNOWN = """
    SELECT json_group_array(json_array(account, device, node, session, since)) FROM json_each(?) AS given
    CROSS JOIN presences
    ON account = json_extract(given.value, '$[0]') AND device = json_extract(given.value, '$[1]')"""


def _write(conn: sqlite3.Connection, presences: Sequence[Presence]) -> None:
    rows = [(one.account, one.device, one.node, one.session, micros(one.since)) for one in presences]
    insert(conn, "presences", rows, _NEWER)


_NEWER = """
    ON CONFLICT (account, device) DO UPDATE
    SET node = excluded.node, session = excluded.session, since = excluded.since WHERE since < excluded.since"""


def lease(conn: sqlite3.Connection, name: str, owner: str, until: float, now: float) -> bool:
    return conn.execute(_LEASE, (name, owner, micros(until), micros(now))).rowcount > 0


_LEASE = """
    INSERT INTO leases VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, until = excluded.until
    WHERE owner = excluded.owner OR until <= ?"""


def release(conn: sqlite3.Connection, name: str, owner: str) -> None:
    conn.execute("DELETE FROM leases WHERE name = ? AND owner = ?", (name, owner))


def leases(conn: sqlite3.Connection, prefix: str, now: float) -> list[Lease]:
    rows = gather(conn, _LEASES, prefix, micros(now))
    return [Lease(name, owner, seconds(until)) for name, owner, until in sorted(rows)]


_LEASES = """
    SELECT json_group_array(json_array(name, owner, until)) FROM leases
    WHERE substr(name, 1, length(?1)) = ?1 AND until > ?2"""


def expire(conn: sqlite3.Connection, before: float, limit: int) -> int:
    leases = conn.execute(_EXPIRE_LEASES, (micros(before), limit)).rowcount
    return leases + conn.execute(_EXPIRE, (micros(before), limit)).rowcount


_EXPIRE_LEASES = "DELETE FROM leases WHERE name IN (SELECT name FROM leases WHERE until < ? LIMIT ?)"
_EXPIRE = """
    DELETE FROM presences WHERE (account, device) IN (
        SELECT account, device FROM presences
        WHERE since < ? AND NOT EXISTS (SELECT 1 FROM leases WHERE name = 'node:' || node) LIMIT ?)"""
