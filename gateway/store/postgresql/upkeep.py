"""Erasure, retention and proof. Functions of one transaction, or of one statement."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from gateway.store.base import ERASED_TYPE, Draft, Kept, Original, Stored, spans
from gateway.store.postgresql.database import SWEEPING, Again, Connection
from gateway.store.postgresql.log import append, lock
from gateway.store.postgresql.sql import columns, micros, seconds


async def erase(
    conn: Connection,
    epoch: str,
    name: str,
    offset: int | None,
    make: Callable[[Sequence[tuple[int, int]]], Draft],
    now: float,
) -> Stored | None:
    feed = (await lock(conn, [name])).get(name)
    if feed is None:
        return None
    rows = await conn.fetch(_ERASABLE, feed.id, offset, ERASED_TYPE)
    if not rows:
        return None
    offsets = [row[0] for row in rows]
    draft = make(spans(offsets))
    originals = sorted({row[1] for row in rows if row[1] is not None})
    await _lock_originals(conn, originals)
    await conn.execute(_ERASE_ORIGINALS, originals)
    await conn.execute(_ERASE_EVENTS, feed.id, offsets)
    await conn.execute('DELETE FROM seen WHERE feed = $1 AND "offset" = ANY($2::bigint[])', feed.id, offsets)
    await conn.execute("UPDATE meta SET erased = erased + 1")
    [outcome] = await append(conn, epoch, [draft], now)
    assert isinstance(outcome, Stored), "the name of a `gov.erased` event is new"
    return outcome


_ERASABLE = """
    SELECT "offset", original FROM events
    WHERE feed = $1 AND ($2::bigint IS NULL OR "offset" = $2) AND event IS NOT NULL AND type <> $3 ORDER BY "offset\""""
_ERASE_ORIGINALS = """
    UPDATE originals SET body = NULL, signature = NULL, timestamp = NULL, webhook_id = NULL
    WHERE id = ANY($1::bigint[])"""
_ERASE_EVENTS = """
    UPDATE events SET event = NULL, digest = NULL, type = NULL, status = NULL, time = NULL, size = 4
    WHERE feed = $1 AND "offset" = ANY($2::bigint[])"""


async def _lock_originals(conn: Connection, ids: list[int]) -> None:
    """A request may have events in many feeds: two transactions that hold different feeds meet here."""
    await conn.execute("SELECT FROM originals WHERE id = ANY($1::bigint[]) ORDER BY id FOR UPDATE", ids)


async def retain(conn: Connection, before: float, limit: int, name: str | None = None) -> int:
    """At most `limit` events of some feeds (of this one): 0 when nothing is left to delete."""
    if name is None:
        feeds = await _old_feeds(conn, micros(before), limit)
    else:
        feeds = [row[0] for row in await conn.fetch(_OLD_FEED, micros(before), name)]
    if not feeds:
        return 0
    rows = await conn.fetch(_OLD_EVENTS, feeds, limit)
    going = _going(rows, micros(before))
    last = {row[0]: row[1] for row in going}
    seqs = [row[2] for row in going]
    things = [(row[4], row[2]) for row in going if row[4] is not None]
    if things:
        await conn.execute(_DELETE_THINGS, *columns(things))
    await conn.execute("DELETE FROM unpublished WHERE seq = ANY($1::bigint[])", seqs)
    for table, column in (("seen", '"offset"'), ("delivered", "upto"), ("events", '"offset"')):
        await conn.execute(
            f"DELETE FROM {table} AS t USING unnest($1::bigint[], $2::bigint[]) AS n (feed, last)"  # noqa: S608
            f" WHERE t.feed = n.feed AND t.{column} <= n.last",
            *columns(list(last.items())),
        )
    await conn.execute(_SET_OLDEST, *columns(list(last.items())))
    await _release(conn, Counter(row[5] for row in going if row[5] is not None))
    return len(going)


async def _old_feeds(conn: Connection, before: int, limit: int) -> list[int]:
    """Feeds with something to delete, locked. Those that others hold are left for later: they are not locked in their
    order here, so this must not wait."""
    rows = await conn.fetch(_OLD_FEEDS, before, limit)
    if rows:
        return [row[0] for row in rows]
    # Nothing is left, or others are writing to all that is left: wait for one of them. It is chosen first and locked by
    # its name alone: whoever waits for a row that is no longer wanted afterwards holds it all the same.
    oldest = await conn.fetchval("SELECT id FROM feeds WHERE since < $1 ORDER BY since LIMIT 1", before)
    if oldest is None:
        return []
    since = await conn.fetchval("SELECT since FROM feeds WHERE id = $1 FOR NO KEY UPDATE", oldest)
    if since is None or since >= before:
        raise Again()  # another deleted it meanwhile
    return [oldest]


_OLD_FEEDS = """
    SELECT id FROM feeds WHERE since < $1 ORDER BY since LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED"""


_OLD_FEED = "SELECT id FROM feeds WHERE since < $1 AND name = $2 FOR NO KEY UPDATE"


def _going(rows: Sequence[Any], before: int) -> list[Any]:
    """From the old end of each feed up to its first event that is young enough."""
    going, ended = [], set()
    for row in rows:
        if row[3] >= before:
            ended.add(row[0])
        if row[0] not in ended:
            going.append(row)
    return going


# feed, offset, seq, recorded, thing, original
_OLD_EVENTS = """
    SELECT e.feed, e."offset", e.seq, e.recorded, e.thing, e.original
    FROM unnest($1::bigint[]) WITH ORDINALITY AS n (feed, place) CROSS JOIN LATERAL (
        SELECT * FROM events WHERE events.feed = n.feed ORDER BY events."offset" LIMIT $2::bigint) AS e
    ORDER BY n.place, e."offset" LIMIT $2::bigint"""
_DELETE_THINGS = """
    DELETE FROM things USING unnest($1::bytea[], $2::bigint[]) AS n (thing, seq)
    WHERE things.thing = n.thing AND things.seq = n.seq"""
_SET_OLDEST = """
    UPDATE feeds SET oldest = n.last + 1,
        since = (SELECT recorded FROM events WHERE feed = n.feed AND "offset" = n.last + 1)
    FROM unnest($1::bigint[], $2::bigint[]) AS n (feed, last) WHERE feeds.id = n.feed"""


async def _release(conn: Connection, originals: Counter[int]) -> None:
    """These requests have so many events less."""
    if originals:
        await _lock_originals(conn, sorted(originals))
        await conn.execute(_COUNT_DOWN, *columns(sorted(originals.items())))
        await conn.execute("DELETE FROM originals WHERE events = 0 AND id = ANY($1::bigint[])", sorted(originals))


_COUNT_DOWN = """
    UPDATE originals SET events = events - n.times FROM unnest($1::bigint[], $2::bigint[]) AS n (id, times)
    WHERE originals.id = n.id"""


async def sweep(conn: Connection) -> None:
    """Overwrite what erasures left behind: an updated row's old version stays in its page until a VACUUM. Outside of
    any transaction."""
    if not await conn.fetchval("SELECT erased FROM meta"):
        return
    if not await conn.fetchval("SELECT pg_try_advisory_lock($1)", SWEEPING):
        return  # another does it
    try:
        count = await conn.fetchval("SELECT erased FROM meta")
        await conn.execute("VACUUM events, originals, seen")
        # Not to nothing: others came meanwhile. And only now: whoever dies before leaves it to the next.
        await conn.execute("UPDATE meta SET erased = erased - $1", count)
    finally:
        if not conn.is_closed():
            await conn.fetchval("SELECT pg_advisory_unlock($1)", SWEEPING)


async def kept(conn: Connection, key: bytes) -> Kept | None:
    row = await conn.fetchrow(_KEPT, key)
    if row is None:
        return None
    name, offset, item, erased, key_id, agency, verified, digest, webhook_id, timestamp, signature, body = row
    original = None
    if body is not None:
        original = Original(agency, key_id, webhook_id, timestamp, signature, body, seconds(verified))
    return Kept(name, offset, item, erased, key_id, agency, seconds(verified), digest, original)


_KEPT = """
    SELECT f.name, e."offset", e.item, e.event IS NULL, o.key_id, o.agency, o.verified, o.digest,
           o.webhook_id, o.timestamp, o.signature, o.body
    FROM events AS e JOIN feeds AS f ON f.id = e.feed JOIN originals AS o ON o.id = e.original WHERE e.key = $1"""
