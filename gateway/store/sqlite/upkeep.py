"""Erasure, retention and proof. Functions of one transaction."""

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

from gateway.store.base import ERASED_TYPE, Draft, Kept, Original, Stored, spans
from gateway.store.sqlite.log import append, feeds
from gateway.store.sqlite.sql import dumps, gather, micros, seconds


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


def retain(conn: sqlite3.Connection, before: float, limit: int, name: str | None = None) -> int:
    """Some events from the old end of some feeds (of this one), at most `limit`. 0 when nothing is left to delete."""
    if name is None:
        floors = dict(gather(conn, _OLD_FEEDS, micros(before), min(limit, _FEEDS_AT_ONCE)))
    else:
        floors = dict(gather(conn, _OLD_FEED, micros(before), name))
    if not floors:
        return 0
    window = limit // len(floors)
    rows = gather(conn, _OLDEST, dumps([(feed, floor + 1, floor + window) for feed, floor in floors.items()]))
    stopped: set[int] = set()  # feeds where an event was young enough
    seqs, originals = [], []
    for feed, offset, seq, recorded, original in rows:
        if recorded >= micros(before):
            stopped.add(feed)
        if feed not in stopped:
            floors[feed] = offset
            seqs.append(seq)
            originals.append(original)
    for statement in _DELETE:
        conn.execute(statement, (dumps(seqs),))
    _release(conn, [original for original in originals if original is not None])
    conn.execute(_SET_FLOORS, (dumps(list(floors.items())),))
    return len(seqs)


_FEEDS_AT_ONCE = 100
_OLD_FEEDS = """
    SELECT json_group_array(json_array(id, floor)) FROM (
        SELECT id, floor FROM feeds WHERE since < ? ORDER BY since LIMIT ?)"""
_OLD_FEED = "SELECT json_group_array(json_array(id, floor)) FROM feeds WHERE since < ? AND name = ?"
# The order of the tables in a CROSS JOIN is the order of the loops: offsets rise in each feed.
_OLDEST = """
    SELECT json_group_array(json_array(feed, offset, seq, recorded, original))
    FROM json_each(?) AS span CROSS JOIN events
    WHERE feed = json_extract(span.value, '$[0]')
      AND offset BETWEEN json_extract(span.value, '$[1]') AND json_extract(span.value, '$[2]')"""
# A thing goes with its latest event. Every `upto` is the offset of an event.
_DELETE = (
    """DELETE FROM things WHERE seq IN (SELECT value FROM json_each(?1))
       AND thing IN (SELECT thing FROM events WHERE seq IN (SELECT value FROM json_each(?1)))""",
    """DELETE FROM seen WHERE (feed, offset) IN
       (SELECT feed, offset FROM events WHERE seq IN (SELECT value FROM json_each(?1)))""",
    """DELETE FROM delivered WHERE (feed, upto) IN
       (SELECT feed, offset FROM events WHERE seq IN (SELECT value FROM json_each(?1)))""",
    "DELETE FROM unpublished WHERE seq IN (SELECT value FROM json_each(?1))",
    "DELETE FROM events WHERE seq IN (SELECT value FROM json_each(?1))",
)
_SET_FLOORS = """
    UPDATE feeds SET
        floor = n.floor,
        since = (SELECT recorded FROM events WHERE feed = feeds.id AND offset = n.floor + 1)
    FROM (SELECT json_extract(value, '$[0]') AS id, json_extract(value, '$[1]') AS floor FROM json_each(?)) AS n
    WHERE feeds.id = n.id"""


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
