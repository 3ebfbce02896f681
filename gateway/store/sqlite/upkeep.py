"""Erasure, retention and proof. Functions of one transaction."""

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

from gateway.store.base import ERASED_TYPE, Draft, Kept, Original, Stored, spans
from gateway.store.sqlite.log import append, feeds
from gateway.store.sqlite.sql import dumps, gather, micros, number, seconds


def erase(
    conn: sqlite3.Connection,
    epoch: str,
    name: str,
    offset: int | None,
    make: Callable[[Sequence[tuple[int, int]]], Draft],
    now: float,
) -> Stored | None:
    feed = feeds(conn, [name]).get(name)
    if feed is None:
        return None
    offsets = gather(conn, _ERASABLE, feed.id, offset, offset, ERASED_TYPE)
    if not offsets:
        return None
    draft = make(spans(offsets))
    for statement in _ERASE:
        conn.execute(statement, (feed.id, dumps(offsets)))
    [outcome] = append(conn, epoch, [draft], now)
    assert isinstance(outcome, Stored), "the name of a `gov.erased` event is new"
    return outcome


_ERASABLE = """
    SELECT json_group_array(offset) FROM (
        SELECT offset FROM events
        WHERE feed = ? AND (? IS NULL OR offset = ?) AND event IS NOT NULL AND type <> ? ORDER BY offset)"""
_ERASE = (
    """UPDATE originals SET body = NULL, signature = NULL, timestamp = NULL, webhook_id = NULL
       WHERE id IN (SELECT original FROM events WHERE feed = ? AND offset IN (SELECT value FROM json_each(?)))""",
    """UPDATE events SET event = NULL, digest = NULL, type = NULL, status = NULL, time = NULL, size = 4
       WHERE feed = ? AND offset IN (SELECT value FROM json_each(?))""",
    """DELETE FROM seen WHERE feed = ? AND offset IN (SELECT value FROM json_each(?))""",
)


def retain(conn: sqlite3.Connection, before: float, limit: int) -> int:
    """At most `limit` events of one feed, or of some: 0 when nothing is left to delete."""
    count = 0
    while count < limit:
        feed = number(conn, "SELECT id FROM feeds WHERE since < ? ORDER BY since LIMIT 1", micros(before))
        if not feed:
            break
        count += _retain(conn, feed, micros(before), limit - count)
    return count


def _retain(conn: sqlite3.Connection, feed: int, before: int, limit: int) -> int:
    """From the old end of a feed up to the first event that is young enough."""
    rows = gather(conn, _OLDEST, feed, limit + 1)
    young = next((n for n, (_, _, recorded, _) in enumerate(rows) if recorded >= before), len(rows))
    going, rest = rows[: min(young, limit)], rows[min(young, limit) :]
    last = going[-1][1]
    seqs = dumps([seq for seq, *_ in going])
    conn.execute(_DELETE_THINGS, (seqs, seqs))
    conn.execute("DELETE FROM unpublished WHERE seq IN (SELECT value FROM json_each(?))", (seqs,))
    conn.execute("DELETE FROM seen WHERE feed = ? AND offset <= ?", (feed, last))
    conn.execute("DELETE FROM delivered WHERE feed = ? AND upto <= ?", (feed, last))
    conn.execute("DELETE FROM events WHERE seq IN (SELECT value FROM json_each(?))", (seqs,))
    _release(conn, [original for *_, original in going if original is not None])
    since = rest[0][2] if rest else None
    conn.execute("UPDATE feeds SET floor = ?, since = ? WHERE id = ?", (last, since, feed))
    return len(going)


_OLDEST = """
    SELECT json_group_array(json_array(seq, offset, recorded, original)) FROM (
        SELECT seq, offset, recorded, original FROM events WHERE feed = ? ORDER BY offset LIMIT ?)"""
_DELETE_THINGS = """
    DELETE FROM things
    WHERE thing IN (SELECT thing FROM events WHERE seq IN (SELECT value FROM json_each(?)))
      AND seq IN (SELECT value FROM json_each(?))"""


def _release(conn: sqlite3.Connection, originals: list[int]) -> None:
    """These requests have one event less, once for each time they are named."""
    if originals:
        conn.execute(_COUNT_DOWN, (dumps(originals),))
        conn.execute(_DELETE_ORIGINALS, (dumps(originals),))


_DELETE_ORIGINALS = "DELETE FROM originals WHERE events = 0 AND id IN (SELECT value FROM json_each(?))"
_COUNT_DOWN = """
    UPDATE originals SET events = events - n.times
    FROM (SELECT value AS id, count(*) AS times FROM json_each(?) GROUP BY value) AS n WHERE originals.id = n.id"""


def kept(conn: sqlite3.Connection, key: bytes) -> Kept | None:
    row: tuple[Any, ...] | None = conn.execute(_KEPT, (key,)).fetchone()
    if row is None:
        return None
    name, offset, item, erased, key_id, agency, verified, digest, webhook_id, timestamp, signature, body = row
    original = None
    if body is not None:
        original = Original(agency, key_id, webhook_id, timestamp, signature, body, seconds(verified))
    return Kept(name, offset, item, bool(erased), key_id, agency, seconds(verified), digest, original)


_KEPT = """
    SELECT name, offset, item, event IS NULL, key_id, agency, verified, originals.digest,
           webhook_id, timestamp, signature, body
    FROM events JOIN feeds ON feeds.id = feed JOIN originals ON originals.id = original WHERE key = ?"""
