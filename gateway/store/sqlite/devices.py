"""Devices, cursors, marks, receipts. Functions of one transaction."""

import sqlite3
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from gateway.protocol.delivery import Beginning
from gateway.store import base
from gateway.store.base import CursorSave, Device, Join, Joined, Receipt, Start, TooManyDevices, Trace
from gateway.store.joining import begin, is_new, longest_away, own_feed
from gateway.store.sqlite.log import Feed, feeds
from gateway.store.sqlite.sql import among, dumps, gather, insert, micros, number, seconds

_MOVE = """
    ON CONFLICT (device, feed) DO UPDATE SET epoch = excluded.epoch, offset = excluded.offset
    WHERE epoch <> excluded.epoch OR offset < excluded.offset"""


@dataclass(slots=True)
class _Known:
    id: int
    device: str
    agent: str | None
    created: int
    last_seen: int
    cursors: dict[int, tuple[str, int]] = field(default_factory=dict)  # feed id -> (epoch, offset)
    joins: bool = False  # in this call


class _Rises:
    """New highest acknowledged offsets of accounts, each with its time."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, int, int]] = []  # feed id, up to, when

    def add(self, account: str, feed: Feed, offset: int, now: float) -> None:
        if feed.name == own_feed(account) and offset > feed.acked:
            feed.acked = offset
            self.rows.append((feed.id, offset, micros(now)))

    def write(self, conn: sqlite3.Connection) -> None:
        if not self.rows:
            return
        insert(conn, "delivered", self.rows)
        conn.execute(_SET_ACKED, (dumps([(feed, upto) for feed, upto, _ in self.rows]),))


_SET_ACKED = """
    UPDATE feeds SET acked = n.acked
    FROM (SELECT json_extract(value, '$[0]') AS id, max(json_extract(value, '$[1]')) AS acked
          FROM json_each(?) GROUP BY 1) AS n
    WHERE feeds.id = n.id"""


def join(conn: sqlite3.Connection, epoch: str, joins: Sequence[Join]) -> list[Joined | TooManyDevices]:
    return _Joining(conn, epoch, joins).run(joins)


class _Joining:
    """One call of join: look up all that it needs, decide in order, write all that changed."""

    def __init__(self, conn: sqlite3.Connection, epoch: str, joins: Sequence[Join]):
        self.conn, self.epoch = conn, epoch
        self.feeds = feeds(conn, {feed for join in joins for feed in join.feeds}, make=True)
        self.accounts: dict[str, dict[str, _Known]] = {join.account: {} for join in joins}
        for account, *row in gather(conn, _DEVICES, dumps(list(self.accounts))):
            self.accounts[account][row[1]] = _Known(*row)
        joining = {(join.account, join.device) for join in joins}
        ids = {
            known.id: known
            for account, devices in self.accounts.items()
            for known in devices.values()
            if (account, known.device) in joining
        }
        for device, feed, its_epoch, offset in gather(conn, _CURSORS, dumps(list(ids))):
            ids[device].cursors[feed] = its_epoch, offset
        self.next_id = 0  # looked up when needed
        self.moved: dict[tuple[int, int], int] = {}  # (device id, feed id) -> offset
        self.emptied: list[int] = []  # device ids whose cursors go,
        self.spared: list[int] = []  # but those of these feeds
        self.gone: list[int] = []  # device ids that are forgotten
        self.rises = _Rises()

    def run(self, joins: Sequence[Join]) -> list[Joined | TooManyDevices]:
        results = [self._join(join) for join in joins]
        self._write()
        return results

    def _join(self, join: Join) -> Joined | TooManyDevices:
        devices = self.accounts[join.account]
        forgotten = self._make_room(join, devices)
        if forgotten is None:
            return TooManyDevices()
        known = devices.get(join.device)
        if known is None:
            known = devices[join.device] = _Known(self._new_id(), join.device, None, micros(join.now), micros(join.now))
        known.joins = True
        known.last_seen = max(known.last_seen, micros(join.now))
        known.agent = _text(join.agent) if join.agent is not None else known.agent
        own = self.feeds.get(own_feed(join.account))
        before = known.cursors.get(own.id) if own is not None else None
        if join.fresh:
            self._empty(known, own)
        starts, new = [], False
        for name in join.feeds:
            feed = self.feeds[name]
            began = self._begin(join, feed, known)
            starts.append(Start(name, feed.head, began.offset, began.reason))
            if feed is own:
                new = is_new(join, began, before)
        return Joined(self.epoch, new, starts, tuple(forgotten))

    def _make_room(self, join: Join, devices: dict[str, _Known]) -> list[str] | None:
        """Who was forgotten for this join; None when there is no room."""
        forgotten: list[str] = []
        while join.device not in devices and len(devices) >= base.MAX_DEVICES:
            staying = join.connected | {known.device for known in devices.values() if known.joins}
            away = longest_away(((known.device, known.last_seen) for known in devices.values()), staying)
            if away is None:
                return None
            self.gone.append(devices.pop(away).id)
            forgotten.append(away)
        return forgotten

    def _empty(self, known: _Known, own: Feed | None) -> None:
        spared = own.id if own is not None else 0
        known.cursors = {feed: at for feed, at in known.cursors.items() if feed == spared}
        self.moved = {at: to for at, to in self.moved.items() if at[0] != known.id or at[1] == spared}
        self.emptied.append(known.id)
        self.spared.append(spared)

    def _begin(self, join: Join, feed: Feed, known: _Known) -> Beginning:
        cursor = known.cursors.get(feed.id)
        began = begin(
            join, feed.name, epoch=self.epoch, oldest=feed.oldest, head=feed.head, acked=feed.acked, cursor=cursor
        )
        if began.store is None:
            return began
        if cursor is None or cursor[0] != self.epoch or cursor[1] < began.store:
            known.cursors[feed.id] = self.epoch, began.store
            self.moved[known.id, feed.id] = began.store
        if not join.fresh and feed.name in join.resume:
            self.rises.add(join.account, feed, began.store, join.now)  # "it counts as an ack"
        return began

    def _new_id(self) -> int:
        self.next_id = 1 + (self.next_id or number(self.conn, "SELECT max(id) FROM devices"))
        return self.next_id

    def _write(self) -> None:
        conn = self.conn
        if self.gone:
            _forget(conn, self.gone)
        if self.emptied:
            conn.execute(_EMPTY, (dumps(self.emptied), dumps(self.spared)))
        rows = [
            (known.id, account, known.device, known.agent, known.created, known.last_seen)
            for account, devices in self.accounts.items()
            for known in devices.values()
            if known.joins
        ]
        insert(conn, "devices", rows, _TOUCH)
        insert(conn, "cursors", [(*at, self.epoch, offset) for at, offset in self.moved.items()], _MOVE)
        self.rises.write(conn)


_DEVICES = """
    SELECT json_group_array(json_array(account, id, device, agent, created, last_seen))
    FROM devices WHERE account IN (SELECT value FROM json_each(?))"""
_CURSORS = """
    SELECT json_group_array(json_array(device, feed, epoch, offset))
    FROM cursors WHERE device IN (SELECT value FROM json_each(?))"""
_EMPTY = """
    DELETE FROM cursors
    WHERE device IN (SELECT value FROM json_each(?)) AND feed NOT IN (SELECT value FROM json_each(?))"""
_TOUCH = "ON CONFLICT (id) DO UPDATE SET agent = excluded.agent, last_seen = excluded.last_seen"


def follow(
    conn: sqlite3.Connection,
    epoch: str,
    account: str,
    device: str,
    name: str,
    resume: tuple[str, int] | None,
    now: float,
) -> Start:
    feed = feeds(conn, [name], make=True)[name]
    id = _device(conn, account, device)
    cursor = conn.execute("SELECT epoch, offset FROM cursors WHERE device = ? AND feed = ?", (id, feed.id)).fetchone()
    join = Join(account, device, (name,), {} if resume is None else {name: resume})
    began = begin(join, name, epoch=epoch, oldest=feed.oldest, head=feed.head, acked=feed.acked, cursor=cursor)
    if id and began.store is not None:
        insert(conn, "cursors", [(id, feed.id, epoch, began.store)], _MOVE)
        if resume is not None:
            rises = _Rises()
            rises.add(account, feed, began.store, now)
            rises.write(conn)
    return Start(name, feed.head, began.offset, began.reason)


def unfollow(conn: sqlite3.Connection, account: str, device: str, name: str) -> None:
    conn.execute(
        "DELETE FROM cursors WHERE device = ? AND feed = (SELECT id FROM feeds WHERE name = ?)",
        (_device(conn, account, device), name),
    )


def save(conn: sqlite3.Connection, epoch: str, cursors: Sequence[CursorSave]) -> None:
    mine = [cursor for cursor in cursors if cursor.epoch == epoch]
    ids = gather(conn, _IDS, dumps([(cursor.account, cursor.device) for cursor in mine]))
    known = feeds(conn, {cursor.feed for cursor in mine})
    rises = _Rises()
    moves: dict[tuple[int, int], int] = {}  # (device id, feed id) -> offset
    for cursor, id in zip(mine, ids, strict=True):
        feed = known.get(cursor.feed)
        if id is None or feed is None:
            continue
        offset = min(cursor.offset, feed.head)
        moves[id, feed.id] = max(offset, moves.get((id, feed.id), 0))
        rises.add(cursor.account, feed, offset, cursor.now)
    insert(conn, "cursors", [(*at, epoch, offset) for at, offset in moves.items()], _MOVE)
    rises.write(conn)


_IDS = """
    SELECT json_group_array((SELECT id FROM devices
        WHERE account = json_extract(value, '$[0]') AND device = json_extract(value, '$[1]'))) FROM json_each(?)"""


def touch(conn: sqlite3.Connection, touched: Sequence[tuple[str, str, float]]) -> None:
    ids = gather(conn, _IDS, dumps([(account, device) for account, device, _ in touched]))
    times = [(id, micros(when)) for id, (_, _, when) in zip(ids, touched, strict=True) if id is not None]
    conn.execute(_SET_LAST_SEEN, (dumps(times),))


_SET_LAST_SEEN = """
    UPDATE devices SET last_seen = n.at
    FROM (SELECT json_extract(value, '$[0]') AS id, max(json_extract(value, '$[1]')) AS at
          FROM json_each(?) GROUP BY 1) AS n
    WHERE devices.id = n.id AND last_seen < n.at"""


def seen(conn: sqlite3.Connection, marks: Sequence[tuple[str, Sequence[int], float]]) -> None:
    known = feeds(conn, {feed for feed, _, _ in marks})
    rows = [
        (known[feed].id, offset, micros(when)) for feed, offsets, when in marks if feed in known for offset in offsets
    ]
    conn.execute(_ADD_SEEN, (dumps(rows),))


# Only what is there to be seen; the first time stays.
_ADD_SEEN = """
    INSERT INTO seen (feed, offset, at)
    SELECT feed, offset, json_extract(value, '$[2]') FROM json_each(?) CROSS JOIN events
    WHERE feed = json_extract(value, '$[0]') AND offset = json_extract(value, '$[1]') AND event IS NOT NULL
    ON CONFLICT DO NOTHING"""


def seen_offsets(conn: sqlite3.Connection, name: str) -> set[int]:
    return set(gather(conn, _SEEN, name))


_SEEN = "SELECT json_group_array(offset) FROM seen WHERE feed = (SELECT id FROM feeds WHERE name = ?)"


def receipts(conn: sqlite3.Connection, keys: Sequence[bytes]) -> list[Receipt | None]:
    if not keys:
        return []
    marks, args = among(list(dict.fromkeys(keys)))
    found = {
        bytes.fromhex(key): base.receipt(_seconds(delivered), _seconds(seen))
        for key, delivered, seen in gather(conn, _RECEIPTS + marks, *args)
    }
    return [found.get(key) for key in keys]


_RECEIPTS = """
    SELECT json_group_array(json_array(
        hex(key),
        (SELECT at FROM delivered WHERE feed = events.feed AND upto >= events.offset ORDER BY upto LIMIT 1),
        (SELECT at FROM seen WHERE feed = events.feed AND offset = events.offset)))
    FROM events JOIN feeds ON feeds.id = feed
    WHERE name >= 'account:' AND name < 'account;' AND key IN """


def traces(conn: sqlite3.Connection, name: str, offsets: Collection[int]) -> list[Trace]:
    rows = gather(conn, _TRACES, name, dumps(list(offsets)))
    return [
        Trace(offset, signed, _seconds(verified), bool(published), _seconds(delivered), _seconds(seen))
        for offset, signed, verified, published, delivered, seen in sorted(rows)
    ]


_TRACES = """
    SELECT json_group_array(json_array(
        offset, timestamp, verified, NOT EXISTS (SELECT 1 FROM unpublished WHERE seq = events.seq),
        (SELECT at FROM delivered WHERE feed = events.feed AND upto >= events.offset ORDER BY upto LIMIT 1),
        (SELECT at FROM seen WHERE feed = events.feed AND offset = events.offset)))
    FROM events LEFT JOIN originals ON originals.id = original
    WHERE feed = (SELECT id FROM feeds WHERE name = ?) AND offset IN (SELECT value FROM json_each(?))"""


def cursors(conn: sqlite3.Connection, account: str) -> dict[str, dict[str, tuple[str, int]]]:
    found: dict[str, dict[str, tuple[str, int]]] = {}
    for device, feed, epoch, offset in gather(conn, _CURSORS_OF, account):
        found.setdefault(device, {})[feed] = (epoch, offset)
    return found


_CURSORS_OF = """
    SELECT json_group_array(json_array(devices.device, name, epoch, offset))
    FROM devices JOIN cursors ON cursors.device = devices.id JOIN feeds ON feeds.id = feed WHERE account = ?"""


def devices(conn: sqlite3.Connection, account: str) -> list[Device]:
    return [
        Device(known.device, known.agent, seconds(known.created), seconds(known.last_seen))
        for _, *row in sorted(gather(conn, _DEVICES, dumps([account])), key=lambda row: int(row[1]))
        if (known := _Known(*row))
    ]


def forget(conn: sqlite3.Connection, account: str, device: str) -> bool:
    id = _device(conn, account, device)
    if id:
        _forget(conn, [id])
    return id != 0


def _forget(conn: sqlite3.Connection, ids: list[int]) -> None:
    conn.execute("DELETE FROM cursors WHERE device IN (SELECT value FROM json_each(?))", (dumps(ids),))
    conn.execute("DELETE FROM devices WHERE id IN (SELECT value FROM json_each(?))", (dumps(ids),))


def _device(conn: sqlite3.Connection, account: str, device: str) -> int:
    """Its id, 0 when unknown."""
    return number(conn, "SELECT id FROM devices WHERE account = ? AND device = ?", account, device)


def _seconds(micros: int | None) -> float | None:
    return None if micros is None else seconds(micros)


def _text(agent: str) -> str:
    """Without lone surrogates: one such `agent` would fail every join of the trip."""
    return agent.encode(errors="replace").decode()
