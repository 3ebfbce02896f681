"""Feeds and events: appending, reading, what waits for the bus. Functions of one transaction, or of one statement."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from gateway.events import with_recordedtime
from gateway.store.base import HISTORY_BYTES, Conflict, Draft, Filter, Head, Outcome, Page, Range, Row, Stale, Stored
from gateway.store.postgresql.database import Again, Connection
from gateway.store.postgresql.sql import columns, micros, seconds


@dataclass(slots=True)
class Feed:
    id: int
    name: str
    oldest: int
    head: int


async def feeds(conn: Connection, names: Collection[str]) -> dict[str, Feed]:
    """The feeds of these names as they are now; those that have no row are left out."""
    rows = await conn.fetch("SELECT id, name, oldest, head FROM feeds WHERE name = ANY($1::text[])", list(names))
    return {row[1]: Feed(*row) for row in rows}


async def lock(conn: Connection, names: Collection[str], *, make: bool = False) -> dict[str, Feed]:
    """The same, and nobody else writes anything of them until the end of the transaction. With `make`, those that
    have no row get one."""
    rows = await conn.fetch(_LOCK, list(names))
    if make and len(rows) < len(set(names)):
        missing = sorted(set(names) - {row[1] for row in rows})
        raise Again(lambda conn: make_feeds(conn, missing))
    return {row[1]: Feed(*row) for row in rows}


_LOCK = "SELECT id, name, oldest, head FROM feeds WHERE name = ANY($1::text[]) ORDER BY id FOR NO KEY UPDATE"


async def make_feeds(conn: Connection, names: Sequence[str]) -> None:
    """`names` are sorted: two nodes that make the same ones wait for each other in one direction only."""
    # Nobody is told of a feed without events, so there is nothing to wait for the disk for.
    await conn.execute(_MAKE, names)


_MAKE = """
    WITH relaxed AS (SELECT set_config('synchronous_commit', 'off', true))
    INSERT INTO feeds (name) SELECT name FROM relaxed, unnest($1::text[]) AS name ON CONFLICT DO NOTHING"""


async def append(conn: Connection, epoch: str, drafts: Sequence[Draft], now: float) -> list[Outcome]:
    if not drafts:
        return []
    work = _Append(conn, epoch, now)
    await work.look(drafts)
    decided = [work.decide(draft) for draft in drafts]
    if work.new:
        await work.write()
    return [work.outcome(*one) if isinstance(one, tuple) else one for one in decided]


@dataclass(slots=True)
class _New:
    """An event on its way in; `seq` comes when it is known how many there are."""

    draft: Draft
    feed: Feed
    row: Row
    seq: int = 0


# A new event, or a repeat of one that this same call brings.
_Decided = Conflict | Stale | Stored | tuple[_New, bool]


class _Append:
    """One append: lock the feeds, look up all that it needs, decide in order, write all that is new."""

    def __init__(self, conn: Connection, epoch: str, now: float):
        self.conn, self.epoch, self.now = conn, epoch, micros(now)
        self.feeds: dict[str, Feed] = {}
        self.known: dict[bytes, tuple[bytes | None, Stored | _New]] = {}  # key -> (digest, None when erased; the event)
        self.highest: dict[bytes, int] = {}
        self.new: list[_New] = []

    async def look(self, drafts: Sequence[Draft]) -> None:
        self.feeds = await lock(self.conn, {draft.feed for draft in drafts}, make=True)
        rows = await self.conn.fetch(_BY_KEY, list({draft.key for draft in drafts}))
        self.known = {key: (digest, _stored(self.epoch, row, duplicate=True)) for key, digest, *row in rows}
        things = list({draft.thing for draft in drafts if draft.thing is not None})
        if things:
            rows = await self.conn.fetch("SELECT thing, sequence FROM things WHERE thing = ANY($1::bytea[])", things)
            self.highest = dict(map(tuple, rows))

    def decide(self, draft: Draft) -> _Decided:
        if draft.key in self.known:
            digest, first = self.known[draft.key]
            if digest not in (None, draft.digest):
                return Conflict(first.row.offset)
            return first if isinstance(first, Stored) else (first, True)
        if draft.thing is not None and draft.sequence is not None:
            highest = self.highest.get(draft.thing)
            if highest is not None and highest > draft.sequence:
                return Stale(highest)
            self.highest[draft.thing] = draft.sequence
        feed = self.feeds[draft.feed]
        feed.head += 1
        event = with_recordedtime(draft.event, seconds(self.now))
        new = _New(draft, feed, Row(feed.head, event, draft.priority, seconds(self.now)))
        self.new.append(new)
        self.known[draft.key] = draft.digest, new
        return new, False

    def outcome(self, new: _New, duplicate: bool) -> Stored:
        return Stored(new.feed.name, self.epoch, new.row.offset, new.seq, duplicate, new.row)

    async def write(self) -> None:
        conn, new = self.conn, self.new
        for event, [seq] in zip(new, await conn.fetch(_NUMBERS, len(new)), strict=True):
            event.seq = seq
        originals = self._originals()
        # Sorted by key: two nodes with the same new keys wait for each other in one direction only.
        events = [self._event(event, originals) for event in sorted(new, key=lambda event: event.draft.key)]
        await conn.execute(_ADD_EVENTS, self.now, *columns(events))
        heads = {event.feed.id: event.feed.head for event in new}
        await conn.execute(_SET_HEADS, list(heads), list(heads.values()), self.now)
        if originals:
            await conn.execute(_ADD_ORIGINALS, *columns(list(originals.values())))
        things = {event.draft.thing: event for event in new if event.draft.thing is not None}
        if things:
            rows = [(thing, event.draft.sequence, event.seq) for thing, event in things.items()]
            await conn.execute(_ADD_THINGS, *columns(rows))

    def _event(self, event: _New, originals: dict[int, list[Any]]) -> tuple[Any, ...]:
        draft, written = event.draft, event.row.event
        assert written is not None
        original = None if draft.original is None else originals[id(draft.original)][0]
        place = (event.feed.id, event.row.offset, event.seq, original, len(written), draft.item, draft.priority)
        content = (micros(draft.time), draft.type, draft.status, draft.digest, written)
        return *place, draft.key, draft.thing, *content

    def _originals(self) -> dict[int, list[Any]]:
        """id() of the original -> its row. Its id is the `seq` of its first event."""
        rows: dict[int, list[Any]] = {}
        for event in self.new:
            signed = event.draft.original
            if signed is None:
                continue
            row = rows.get(id(signed))
            if row is None:
                row = rows[id(signed)] = [
                    *(event.seq, micros(signed.verified), 0, sha256(signed.body).digest(), signed.agency),
                    *(signed.key_id, signed.timestamp, signed.webhook_id, signed.signature, signed.body),
                ]
            row[2] += 1
        return rows


_STORED = """
    f.name, e."offset", e.seq, e.event, e.priority, e.recorded FROM events AS e JOIN feeds AS f ON f.id = e.feed"""
_BY_KEY = f"SELECT e.key, e.digest, {_STORED} WHERE e.key = ANY($1::bytea[])"
_NUMBERS = "SELECT nextval('commits') FROM generate_series(1, $1::int)"
# What is new is unpublished.
_ADD_EVENTS = """
    WITH added AS (
        INSERT INTO events (recorded, feed, "offset", seq, original, size, item, priority, key, thing, time, type,
                            status, digest, event)
        SELECT $1, n.* FROM unnest(
            $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::int[], $7::int[], $8::smallint[],
            $9::bytea[], $10::bytea[], $11::bigint[], $12::text[], $13::text[], $14::bytea[], $15::bytea[]) AS n
        RETURNING seq, feed, "offset", recorded)
    INSERT INTO unpublished (seq, feed, "offset", recorded) SELECT seq, feed, "offset", recorded FROM added"""
_SET_HEADS = """
    UPDATE feeds SET head = n.head, since = coalesce(since, $3)
    FROM unnest($1::bigint[], $2::bigint[]) AS n (id, head) WHERE feeds.id = n.id"""
_ADD_ORIGINALS = """
    INSERT INTO originals (id, verified, events, digest, agency, key_id, timestamp, webhook_id, signature, body)
    SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::int[], $4::bytea[], $5::text[], $6::text[], $7::bigint[],
                         $8::text[], $9::text[], $10::bytea[])"""
_ADD_THINGS = """
    INSERT INTO things (thing, sequence, seq) SELECT * FROM unnest($1::bytea[], $2::bigint[], $3::bigint[])
    ON CONFLICT (thing) DO UPDATE SET sequence = excluded.sequence, seq = excluded.seq"""


def _stored(epoch: str, row: Sequence[Any], *, duplicate: bool) -> Stored:
    name, offset, seq, event, priority, recorded = row
    return Stored(name, epoch, offset, seq, duplicate, Row(offset, event, priority, seconds(recorded)))


async def read(conn: Connection, ranges: Sequence[Range]) -> list[Page]:
    pages = [Page(wanted.feed, 1, 0, []) for wanted in ranges]
    if not ranges:
        return pages
    wanted = [(wanted.feed, wanted.after, wanted.limit, wanted.max_bytes) for wanted in ranges]
    for at, oldest, head, *row in await conn.fetch(_READ, *columns(wanted)):
        page = pages[at - 1]
        if page.head != head:
            page = pages[at - 1] = Page(page.feed, oldest, head, [])
        if row[0] is not None:
            offset, event, priority, recorded = row
            page.rows.append(Row(offset, event, priority, seconds(recorded)))
    return pages


# One look at the database for all ranges, so that each page and its bounds are of the same moment. Events that do not
# fit are never loaded: the sizes stand beside them.
_READ = """
    SELECT w.at, f.oldest, f.head, e."offset", e.event, e.priority, e.recorded
    FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[])
         WITH ORDINALITY AS w (name, after, "limit", max_bytes, at)
    JOIN feeds AS f ON f.name = w.name
    LEFT JOIN LATERAL (
        SELECT * FROM (
            SELECT "offset", event, priority, recorded, row_number() OVER run AS n, sum(size) OVER run AS total
            FROM (SELECT * FROM events WHERE feed = f.id AND "offset" > w.after
                  ORDER BY "offset" LIMIT w."limit") AS next
            WINDOW run AS (ORDER BY "offset" ROWS UNBOUNDED PRECEDING)) AS summed
        WHERE n = 1 OR total <= w.max_bytes) AS e ON true
    ORDER BY w.at, e."offset" ASC"""


async def heads(conn: Connection, names: Collection[str]) -> dict[str, Head]:
    found = await feeds(conn, names)
    return {name: Head(feed.oldest, feed.head) if (feed := found.get(name)) else Head(1, 0) for name in names}


async def history(
    conn: Connection, name: str, after: int | None, before: int | None, limit: int, wanted: Filter, max_scan: int
) -> tuple[Page, int | None]:
    rising = after is not None
    rows = await conn.fetch(
        _RISING if rising else _FALLING,
        *(name, after, before, limit + 1, max_scan, HISTORY_BYTES),
        *(list(wanted.types) or None, list(wanted.statuses) or None),
        *(None if time is None else micros(time) for time in (wanted.start, wanted.end)),
    )
    if not rows:
        return Page(name, 1, 0, []), None
    oldest, head, low, high = rows[0][:4]
    page = Page(name, oldest, head, [])
    if low > high:
        return page, None
    end = high if rising else low
    last = min(high, low + max_scan - 1) if rising else max(low, high - max_scan + 1)
    matching = [row[4:] for row in rows if row[4] is not None]
    for offset, event, priority, recorded, fits in matching[:limit]:
        if not fits:
            break
        page.rows.append(Row(offset, event, priority, seconds(recorded)))
    # All that was looked at is done with, unless the page was full before.
    if len(page.rows) < len(matching):
        last = page.rows[-1].offset
    return page, last if last != end else None


def _history(low: str, high: str, order: str) -> str:
    """There are no holes: so many offsets are so many rows."""
    return f"""
    WITH f AS (
        SELECT id, oldest, head, greatest(oldest, $2 + 1) AS low, least(head, $3 - 1) AS high
        FROM feeds WHERE name = $1)
    SELECT f.oldest, f.head, f.low, f.high, e."offset", e.event, e.priority, e.recorded, e.fits
    FROM f LEFT JOIN LATERAL (
        SELECT "offset", CASE WHEN fits THEN event END AS event, priority, recorded, fits FROM (
            SELECT *, row_number() OVER run = 1 OR sum(size) OVER run <= $6 AS fits FROM (
                SELECT "offset", event, priority, recorded, size FROM events
                WHERE feed = f.id AND "offset" BETWEEN {low} AND {high}
                  AND ($7::text[] IS NULL OR type = ANY($7)) AND ($8::text[] IS NULL OR status = ANY($8))
                  AND ($9::bigint IS NULL OR time >= $9) AND ($10::bigint IS NULL OR time < $10)
                ORDER BY "offset" {order} LIMIT $4::bigint) AS next
            WINDOW run AS (ORDER BY "offset" {order} ROWS UNBOUNDED PRECEDING)) AS summed) AS e ON true
    ORDER BY e."offset" {order}"""  # noqa: S608 - fixed words


_RISING = _history("f.low", "least(f.high, f.low + $5::bigint - 1)", "ASC")
_FALLING = _history("greatest(f.low, f.high - $5::bigint + 1)", "f.high", "DESC")


async def published(conn: Connection, seqs: Collection[int]) -> None:
    """Rows that another deletes at the same moment are left to it: nobody waits; at worst one is published twice."""
    await conn.execute(_PUBLISHED, list(seqs))


_PUBLISHED = """
    DELETE FROM unpublished WHERE seq IN (
        SELECT seq FROM unpublished WHERE seq = ANY($1::bigint[]) FOR UPDATE SKIP LOCKED)"""


async def unpublished(conn: Connection, epoch: str, before: float, limit: int) -> list[Stored]:
    rows = await conn.fetch(_UNPUBLISHED, micros(before), limit)
    return [_stored(epoch, row, duplicate=False) for row in rows]


_UNPUBLISHED = """
    SELECT f.name, e."offset", e.seq, e.event, e.priority, e.recorded
    FROM (SELECT seq, feed, "offset" FROM unpublished WHERE recorded < $1 ORDER BY seq LIMIT $2) AS u
    JOIN events AS e ON e.feed = u.feed AND e."offset" = u."offset" JOIN feeds AS f ON f.id = e.feed ORDER BY u.seq"""
