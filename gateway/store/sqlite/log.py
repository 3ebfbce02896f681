"""Feeds and events: appending, reading, what waits for the bus. Functions of one transaction."""

import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from gateway.events import with_recordedtime
from gateway.store.base import HISTORY_BYTES, Conflict, Draft, Filter, Head, Outcome, Page, Range, Row, Stale, Stored
from gateway.store.sqlite.sql import among, dumps, gather, insert, micros, number, seconds

# Between the events of one long text: JSON never holds this character unescaped (RFC 8259, section 7).
_SEPARATOR = "\x1e"


@dataclass(slots=True)
class Feed:
    id: int
    name: str
    oldest: int
    head: int
    acked: int


def feeds(conn: sqlite3.Connection, names: Collection[str], *, make: bool = False) -> dict[str, Feed]:
    """The feeds of these names; those that have no row yet are left out, or get one."""
    wanted = dumps(list(names))
    rows = gather(conn, _FEEDS, wanted)
    if make and len(rows) < len(set(names)):
        conn.execute(_MAKE_FEEDS, (wanted,))
        rows = gather(conn, _FEEDS, wanted)
    return {row[1]: Feed(*row) for row in rows}


_FEEDS = """
    SELECT json_group_array(json_array(
        id, name, floor + 1, coalesce((SELECT max(offset) FROM events WHERE feed = feeds.id), floor), acked))
    FROM feeds WHERE name IN (SELECT value FROM json_each(?))"""
_MAKE_FEEDS = "INSERT INTO feeds (name) SELECT value FROM json_each(?) WHERE true ON CONFLICT DO NOTHING"


def append(conn: sqlite3.Connection, epoch: str, drafts: Sequence[Draft], now: float) -> list[Outcome]:
    return _Append(conn, epoch, drafts, now).run(drafts) if drafts else []


class _Append:
    """One append: look up all that it needs, decide in order, write all that is new."""

    def __init__(self, conn: sqlite3.Connection, epoch: str, drafts: Sequence[Draft], now: float):
        self.conn, self.epoch, self.now = conn, epoch, micros(now)
        self.known = _by_key(conn, list({draft.key for draft in drafts}))
        self.feeds = feeds(conn, {draft.feed for draft in drafts}, make=True)
        self.highest = _highest(conn, list({draft.thing for draft in drafts if draft.thing is not None}))
        self.seq = number(conn, "SELECT seq FROM sqlite_sequence WHERE name = 'events'")
        self.events: list[tuple[Any, ...]] = []
        self.things: dict[bytes, tuple[bytes, int, int]] = {}
        self.originals: dict[int, list[Any]] = {}
        self.started: list[int] = []  # ids of feeds that had no event

    def run(self, drafts: Sequence[Draft]) -> list[Outcome]:
        first = self.seq + 1
        outcomes = [self._decide(draft) for draft in drafts]
        if self.events:
            self._write(first)
        return outcomes

    def _decide(self, draft: Draft) -> Outcome:
        known = self.known.get(draft.key)
        if known is not None:
            digest, stored = known
            return Conflict(stored.offset) if digest not in (None, draft.digest) else stored
        if draft.thing is not None and draft.sequence is not None:
            highest = self.highest.get(draft.thing)
            if highest is not None and highest > draft.sequence:
                return Stale(highest)
        return self._add(draft)

    def _add(self, draft: Draft) -> Stored:
        feed = self.feeds[draft.feed]
        if feed.oldest > feed.head:
            self.started.append(feed.id)
        self.seq += 1
        feed.head += 1
        event = with_recordedtime(draft.event, seconds(self.now))
        place = (self.seq, feed.id, feed.head, self.now, draft.priority, len(event), draft.item, self._original(draft))
        content = (draft.type, draft.status, micros(draft.time), draft.digest, event.decode())
        self.events.append((*place, draft.key, draft.thing, *content))
        if draft.thing is not None and draft.sequence is not None:
            self.highest[draft.thing] = draft.sequence
            self.things[draft.thing] = (draft.thing, draft.sequence, self.seq)
        row = Row(feed.head, event, draft.priority, seconds(self.now))
        self.known[draft.key] = draft.digest, Stored(feed.name, self.epoch, feed.head, self.seq, True, row)
        return Stored(feed.name, self.epoch, feed.head, self.seq, False, row)

    def _original(self, draft: Draft) -> int | None:
        signed = draft.original
        if signed is None:
            return None
        row = self.originals.get(id(signed))
        if row is None:
            row = self.originals[id(signed)] = [
                *(self.seq, 0, signed.agency, signed.key_id, micros(signed.verified), sha256(signed.body).digest()),
                *(signed.webhook_id, signed.timestamp, signed.signature, signed.body),
            ]
        row[1] += 1
        return int(row[0])

    def _write(self, first: int) -> None:
        conn = self.conn
        insert(conn, "events", self.events)
        insert(conn, "originals", list(self.originals.values()))
        insert(conn, "things", list(self.things.values()), _NEWEST)
        conn.execute("INSERT INTO unpublished SELECT seq FROM events WHERE seq BETWEEN ? AND ?", (first, self.seq))
        if self.started:
            conn.execute(_SET_SINCE, (self.now, dumps(self.started)))


_NEWEST = "ON CONFLICT (thing) DO UPDATE SET sequence = excluded.sequence, seq = excluded.seq"
_SET_SINCE = "UPDATE feeds SET since = ? WHERE id IN (SELECT value FROM json_each(?))"


def _by_key(conn: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, tuple[bytes | None, Stored]]:
    """key -> (digest, None when erased; the stored event as a repeat sees it)."""
    marks, args = among(keys)
    return {
        bytes.fromhex(key): (bytes.fromhex(digest) or None, _stored(row, duplicate=True))
        for key, digest, *row in gather(conn, _BY_KEY + marks, *args)
    }


def _highest(conn: sqlite3.Connection, things: Sequence[bytes]) -> dict[bytes, int]:
    if not things:
        return {}
    marks, args = among(things)
    rows = gather(conn, _HIGHEST + marks, *args)
    return {bytes.fromhex(thing): sequence for thing, sequence in rows}


_HIGHEST = "SELECT json_group_array(json_array(hex(thing), sequence)) FROM things WHERE thing IN "


_STORED = "name, (SELECT epoch FROM meta), offset, seq, event, priority, recorded"
_BY_KEY = f"""
    SELECT json_group_array(json_array(hex(key), hex(digest), {_STORED}))
    FROM events JOIN feeds ON feeds.id = feed WHERE key IN """  # noqa: S608 - fixed words
_UNPUBLISHED = f"""
    SELECT json_group_array(json_array({_STORED})) FROM (
        SELECT * FROM events JOIN feeds ON feeds.id = feed
        WHERE seq IN unpublished AND recorded < ? ORDER BY seq LIMIT ?)"""  # noqa: S608


def _stored(row: Sequence[Any], *, duplicate: bool) -> Stored:
    name, epoch, offset, seq, event, priority, recorded = row
    written = None if event is None else event.encode()
    return Stored(name, epoch, offset, seq, duplicate, Row(offset, written, priority, seconds(recorded)))


def read(conn: sqlite3.Connection, ranges: Sequence[Range]) -> list[Page]:
    found = feeds(conn, {wanted.feed for wanted in ranges})
    pages = [
        Page(wanted.feed, feed.oldest, feed.head, [])
        if (feed := found.get(wanted.feed))
        else Page(wanted.feed, 1, 0, [])
        for wanted in ranges
    ]
    spans = {}  # index of the range -> [that index, feed id, first offset, last offset]
    for at, (wanted, page) in enumerate(zip(ranges, pages, strict=True)):
        first = max(wanted.after + 1, page.oldest)
        last = min(first + wanted.limit - 1, page.head)
        if first <= last:
            spans[at] = [at, found[page.feed].id, first, last]
    if spans:
        _cut(conn, spans, [wanted.max_bytes for wanted in ranges])
        for at, row in _rows(conn, list(spans.values())):
            pages[at].rows.append(row)
    return pages


# The order of the tables in a CROSS JOIN is the order of the loops: spans as given, offsets rising in each.
_SPANS = """
    FROM json_each(?) AS span CROSS JOIN events
    WHERE feed = json_extract(span.value, '$[1]')
      AND offset BETWEEN json_extract(span.value, '$[2]') AND json_extract(span.value, '$[3]')"""
_SIZES = f"SELECT json_group_array(json_array(json_extract(span.value, '$[0]'), offset, size)) {_SPANS}"
_LINES = f"""
    SELECT CAST(group_concat(
        json_extract(span.value, '$[0]') || ' ' || offset || ' ' || priority || ' ' || recorded || ' '
        || coalesce(event, ''), '{_SEPARATOR}') AS BLOB) {_SPANS}"""


def _cut(conn: sqlite3.Connection, spans: dict[int, list[int]], budgets: list[int]) -> None:
    """Shorten the spans to what fits, but always one event: nothing too large is ever loaded."""
    for at, offset, size in gather(conn, _SIZES, dumps(list(spans.values()))):
        budgets[at] -= size
        span = spans[at]
        if budgets[at] < 0 and offset > span[2]:
            span[3] = min(span[3], offset - 1)


def _rows(conn: sqlite3.Connection, spans: list[list[int]]) -> Iterator[tuple[int, Row]]:
    """(index of the range, event) for each event of the spans."""
    text: bytes = conn.execute(_LINES, (dumps(spans),)).fetchone()[0]
    for line in text.split(_SEPARATOR.encode()):
        at, offset, priority, recorded, event = line.split(b" ", 4)
        yield int(at), Row(int(offset), event or None, int(priority), seconds(int(recorded)))


def heads(conn: sqlite3.Connection, names: Collection[str]) -> dict[str, Head]:
    found = feeds(conn, names)
    return {name: Head(feed.oldest, feed.head) if (feed := found.get(name)) else Head(1, 0) for name in names}


def history(
    conn: sqlite3.Connection,
    name: str,
    after: int | None,
    before: int | None,
    limit: int,
    wanted: Filter,
    max_scan: int,
) -> tuple[Page, int | None]:
    feed = feeds(conn, [name]).get(name)
    if feed is None:
        return Page(name, 1, 0, []), None
    page = Page(name, feed.oldest, feed.head, [])
    low = max(feed.oldest, 0 if after is None else after + 1)
    high = feed.head if before is None else min(feed.head, before - 1)
    if low > high:
        return page, None
    rising = after is not None
    end = high if rising else low
    # There are no holes: so many offsets are so many rows.
    low, high = (low, min(high, low + max_scan - 1)) if rising else (max(low, high - max_scan + 1), high)
    matching = gather(conn, *_matching(feed.id, low, high, limit + 1, wanted, rising))
    count = _fitting((size for _, size in matching[:limit]), HISTORY_BYTES)
    taken = [offset for offset, _ in matching[:count]]
    if taken:
        found = {row.offset: row for _, row in _rows(conn, [[0, feed.id, n, n] for n in taken])}
        page.rows.extend(found[n] for n in taken)
    # All that was looked at is done with, unless the page was full before.
    last = taken[-1] if count < len(matching) else high if rising else low
    return page, last if last != end else None


def _matching(feed: int, low: int, high: int, limit: int, wanted: Filter, rising: bool) -> tuple[Any, ...]:
    terms: list[tuple[str, Any]] = [("feed = ?", feed), ("offset >= ?", low), ("offset <= ?", high)]
    if wanted.types:
        terms.append(("type IN (SELECT value FROM json_each(?))", dumps(list(wanted.types))))
    if wanted.statuses:
        terms.append(("status IN (SELECT value FROM json_each(?))", dumps(list(wanted.statuses))))
    if wanted.start is not None:
        terms.append(("time >= ?", micros(wanted.start)))
    if wanted.end is not None:
        terms.append(("time < ?", micros(wanted.end)))
    where, order = " AND ".join(term for term, _ in terms), "ASC" if rising else "DESC"
    rows = f"SELECT offset, size FROM events WHERE {where} ORDER BY offset {order} LIMIT ?"  # noqa: S608 - fixed words
    sql = f"SELECT json_group_array(json_array(offset, size)) FROM ({rows})"  # noqa: S608
    return sql, *(value for _, value in terms), limit


def _fitting(sizes: Iterable[int], budget: int) -> int:
    """How many, but always one when there is one."""
    count = 0
    for size in sizes:
        budget -= size
        if count and budget < 0:
            break
        count += 1
    return count


def published(conn: sqlite3.Connection, seqs: Collection[int]) -> None:
    conn.execute("DELETE FROM unpublished WHERE seq IN (SELECT value FROM json_each(?))", (dumps(list(seqs)),))


def unpublished(conn: sqlite3.Connection, before: float, limit: int) -> list[Stored]:
    return [_stored(row, duplicate=False) for row in gather(conn, _UNPUBLISHED, micros(before), limit)]
