"""Devices, cursors, marks, receipts. Functions of one transaction, or of one statement."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.protocol.delivery import Beginning
from gateway.store import base
from gateway.store.base import CursorSave, Device, Join, Joined, Receipt, Start, TooManyDevices, Trace
from gateway.store.joining import begin, is_new, longest_away, own_feed
from gateway.store.postgresql import log
from gateway.store.postgresql.database import Again, Connection
from gateway.store.postgresql.log import Feed, feeds
from gateway.store.postgresql.sql import columns, micros, seconds, text


@dataclass(slots=True)
class _Known:
    id: int | None  # None: made by this call
    account: str
    device: str
    agent: str | None
    created: int
    last_seen: int
    cursors: dict[int, tuple[str, int]] = field(default_factory=dict)  # feed id -> (epoch, offset)
    moved: dict[int, int] = field(default_factory=dict)  # feed id -> offset to be stored
    emptied: bool = False  # its cursors go,
    spared: int = 0  # but that of this feed
    joins: bool = False  # in this call


class _Rises:
    """The highest acknowledged offsets of locked accounts, and those that rise, each with its time."""

    def __init__(self, acked: dict[str, int]) -> None:
        self.acked = acked
        self.rows: list[tuple[int, int, int]] = []  # feed id, up to, when
        self.risen: set[str] = set()

    def add(self, account: str, feed: Feed, offset: int, now: float) -> None:
        if feed.name == own_feed(account) and offset > self.acked[account]:
            self.acked[account] = offset
            self.rows.append((feed.id, offset, micros(now)))
            self.risen.add(account)

    async def write(self, conn: Connection) -> None:
        if self.rows:
            await conn.execute(_ADD_DELIVERED, *columns(self.rows))
            await conn.execute(_SET_ACKED, *columns([(account, self.acked[account]) for account in self.risen]))


_ADD_DELIVERED = """
    INSERT INTO delivered (feed, upto, at) SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[])
    ON CONFLICT DO NOTHING"""
_SET_ACKED = """
    UPDATE accounts SET acked = n.acked FROM unnest($1::text[], $2::bigint[]) AS n (account, acked)
    WHERE accounts.account = n.account"""


async def lock(conn: Connection, accounts: Collection[str], *, make: bool = False) -> dict[str, int]:
    """account -> its highest acknowledged offset. Nobody else writes anything of them until the end of the
    transaction. Those without a row are left out, or get one."""
    rows = await conn.fetch(_LOCK, list(accounts))
    if make and len(rows) < len(set(accounts)):
        missing = sorted(set(accounts) - {row[0] for row in rows})
        raise Again(lambda conn: conn.execute(_MAKE, missing))
    return dict(map(tuple, rows))


_LOCK = "SELECT account, acked FROM accounts WHERE account = ANY($1::text[]) ORDER BY account FOR NO KEY UPDATE"
_MAKE = """
    WITH relaxed AS (SELECT set_config('synchronous_commit', 'off', true))
    INSERT INTO accounts (account) SELECT account FROM relaxed, unnest($1::text[]) AS account ON CONFLICT DO NOTHING"""


async def _feeds(conn: Connection, names: Collection[str]) -> dict[str, Feed]:
    """The feeds of these names; those without a row get one."""
    found = await feeds(conn, names)
    if len(found) < len(set(names)):
        missing = sorted(set(names) - set(found))
        raise Again(lambda conn: log.make_feeds(conn, missing))
    return found


async def join(conn: Connection, epoch: str, joins: Sequence[Join]) -> list[Joined | TooManyDevices]:
    if not joins:
        return []
    work = _Joining(conn, epoch)
    await work.look(joins)
    results = [work.join(join) for join in joins]
    await work.write()
    return results


class _Joining:
    """One call of join: lock the accounts, look up all that it needs, decide in order, write all that changed."""

    def __init__(self, conn: Connection, epoch: str):
        self.conn, self.epoch = conn, epoch
        self.feeds: dict[str, Feed] = {}
        self.accounts: dict[str, dict[str, _Known]] = {}
        self.gone: list[int] = []  # device ids that are forgotten

    async def look(self, joins: Sequence[Join]) -> None:
        self.accounts = {join.account: {} for join in joins}
        self.rises = _Rises(await lock(self.conn, list(self.accounts), make=True))
        self.feeds = await _feeds(self.conn, {feed for join in joins for feed in join.feeds})
        for row in await self.conn.fetch(_DEVICES, list(self.accounts)):
            self.accounts[row[1]][row[2]] = _Known(*row)
        pairs = {(join.account, join.device) for join in joins}
        found = [self.accounts[account].get(device) for account, device in pairs]
        ids = {known.id: known for known in found if known is not None}
        for device, feed, its_epoch, offset in await self.conn.fetch(_CURSORS, list(ids)):
            ids[device].cursors[feed] = its_epoch, offset

    def join(self, join: Join) -> Joined | TooManyDevices:
        devices = self.accounts[join.account]
        forgotten = self._make_room(join, devices)
        if forgotten is None:
            return TooManyDevices()
        known = devices.get(join.device)
        if known is None:
            now = micros(join.now)
            known = devices[join.device] = _Known(None, join.account, join.device, None, now, now)
        known.joins = True
        known.last_seen = max(known.last_seen, micros(join.now))
        known.agent = text(join.agent) if join.agent is not None else known.agent
        own = self.feeds.get(own_feed(join.account))
        before = known.cursors.get(own.id) if own is not None else None
        if join.fresh:
            _empty(known, own.id if own is not None else 0)
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
            id = devices.pop(away).id
            assert id is not None, "one that was made by this call joins in it"
            self.gone.append(id)
            forgotten.append(away)
        return forgotten

    def _begin(self, join: Join, feed: Feed, known: _Known) -> Beginning:
        cursor = known.cursors.get(feed.id)
        began = begin(
            join,
            feed.name,
            epoch=self.epoch,
            oldest=feed.oldest,
            head=feed.head,
            acked=self.rises.acked[join.account],
            cursor=cursor,
        )
        if began.store is None:
            return began
        if cursor is None or cursor[0] != self.epoch or cursor[1] < began.store:
            known.cursors[feed.id] = self.epoch, began.store
            known.moved[feed.id] = began.store
        if not join.fresh and feed.name in join.resume:
            self.rises.add(join.account, feed, began.store, join.now)  # "it counts as an ack"
        return began

    async def write(self) -> None:
        conn = self.conn
        joined = [known for devices in self.accounts.values() for known in devices.values() if known.joins]
        if self.gone:
            await _forget(conn, self.gone)
        emptied = [(known.id, known.spared) for known in joined if known.emptied and known.id is not None]
        if emptied:
            await conn.execute(_EMPTY, *columns(emptied))
        await self._write_devices(joined)
        moved = [(known.id, feed, offset, self.epoch) for known in joined for feed, offset in known.moved.items()]
        await _move(conn, moved)
        await self.rises.write(conn)

    async def _write_devices(self, joined: list[_Known]) -> None:
        old = [(known.id, known.agent, known.last_seen) for known in joined if known.id is not None]
        if old:
            await self.conn.execute(_TOUCH, *columns(old))
        new = [known for known in joined if known.id is None]
        if new:
            rows = [(known.account, known.device, known.agent, known.created, known.last_seen) for known in new]
            ids = {(account, device): id for id, account, device in await self.conn.fetch(_ADD, *columns(rows))}
            for known in new:
                known.id = ids[known.account, known.device]


def _empty(known: _Known, spared: int) -> None:
    """What was stored before, and what this call was about to store, but for the feed `spared`."""
    known.cursors = {feed: at for feed, at in known.cursors.items() if feed == spared}
    known.moved = {feed: at for feed, at in known.moved.items() if feed == spared}
    known.emptied, known.spared = True, spared


async def _move(conn: Connection, rows: list[tuple[Any, ...]]) -> None:
    if rows:
        await conn.execute(_MOVE, *columns(rows))


_DEVICES = """
    SELECT id, account, device, agent, created, last_seen FROM devices WHERE account = ANY($1::text[]) ORDER BY id"""
_CURSORS = 'SELECT device, feed, epoch, "offset" FROM cursors WHERE device = ANY($1::bigint[])'
_EMPTY = """
    DELETE FROM cursors USING unnest($1::bigint[], $2::bigint[]) AS n (device, spared)
    WHERE cursors.device = n.device AND cursors.feed <> n.spared"""
_TOUCH = """
    UPDATE devices SET agent = n.agent, last_seen = n.last_seen
    FROM unnest($1::bigint[], $2::text[], $3::bigint[]) AS n (id, agent, last_seen) WHERE devices.id = n.id"""
_ADD = """
    INSERT INTO devices (account, device, agent, created, last_seen)
    SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bigint[])
    RETURNING id, account, device"""
_MOVE = """
    INSERT INTO cursors (device, feed, "offset", epoch)
    SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::text[])
    ON CONFLICT (device, feed) DO UPDATE SET epoch = excluded.epoch, "offset" = excluded."offset"
    WHERE cursors.epoch <> excluded.epoch OR excluded."offset" > cursors."offset\""""


async def follow(
    conn: Connection, epoch: str, account: str, device: str, name: str, resume: tuple[str, int] | None, now: float
) -> Start:
    rises = _Rises(await lock(conn, [account]))
    id = await _device(conn, account, device)
    feed = (await feeds(conn, [name])).get(name) if id is None else (await _feeds(conn, [name]))[name]
    feed = feed or Feed(0, name, 1, 0)
    row = await conn.fetchrow('SELECT epoch, "offset" FROM cursors WHERE device = $1 AND feed = $2', id, feed.id)
    join = Join(account, device, (name,), {} if resume is None else {name: resume})
    began = begin(
        join,
        name,
        epoch=epoch,
        oldest=feed.oldest,
        head=feed.head,
        acked=rises.acked.get(account, 0),
        cursor=None if row is None else (row[0], row[1]),
    )
    if id is not None and began.store is not None:
        await _move(conn, [(id, feed.id, began.store, epoch)])
        if resume is not None:
            rises.add(account, feed, began.store, now)
            await rises.write(conn)
    return Start(name, feed.head, began.offset, began.reason)


async def unfollow(conn: Connection, account: str, device: str, name: str) -> None:
    await lock(conn, [account])
    await conn.execute(
        "DELETE FROM cursors WHERE device = $1 AND feed = (SELECT id FROM feeds WHERE name = $2)",
        await _device(conn, account, device),
        name,
    )


async def save(conn: Connection, epoch: str, cursors: Sequence[CursorSave]) -> None:
    mine = [cursor for cursor in cursors if cursor.epoch == epoch]
    if not mine:
        return
    rises = _Rises(await lock(conn, {cursor.account for cursor in mine}))
    ids = await _ids(conn, {(cursor.account, cursor.device) for cursor in mine})
    known = await feeds(conn, {cursor.feed for cursor in mine})
    moves: dict[tuple[int, int], int] = {}  # (device id, feed id) -> offset
    for cursor in mine:
        id, feed = ids.get((cursor.account, cursor.device)), known.get(cursor.feed)
        if id is None or feed is None:
            continue
        offset = min(cursor.offset, feed.head)
        moves[id, feed.id] = max(offset, moves.get((id, feed.id), 0))
        rises.add(cursor.account, feed, offset, cursor.now)
    await _move(conn, [(*at, offset, epoch) for at, offset in moves.items()])
    await rises.write(conn)


async def touch(conn: Connection, touched: Sequence[tuple[str, str, float]]) -> None:
    if not touched:
        return
    await lock(conn, {account for account, _, _ in touched})
    times: dict[tuple[str, str], int] = {}
    for account, device, when in touched:
        times[account, device] = max(micros(when), times.get((account, device), 0))
    await conn.execute(_SET_LAST_SEEN, *columns([(*name, at) for name, at in times.items()]))


_SET_LAST_SEEN = """
    UPDATE devices SET last_seen = n.at FROM unnest($1::text[], $2::text[], $3::bigint[]) AS n (account, device, at)
    WHERE devices.account = n.account AND devices.device = n.device AND devices.last_seen < n.at"""


async def seen(conn: Connection, marks: Sequence[tuple[str, Sequence[int], float]]) -> None:
    # The feeds, not the accounts: an erasure or the retention takes marks away.
    known = await log.lock(conn, {feed for feed, _, _ in marks})
    rows = [
        (known[feed].id, offset, micros(when)) for feed, offsets, when in marks if feed in known for offset in offsets
    ]
    if rows:
        await conn.execute(_ADD_SEEN, *columns(rows))


# Only what is there to be seen; the first time stays, also among the rows of one call.
_ADD_SEEN = """
    INSERT INTO seen (feed, "offset", at)
    SELECT n.feed, n."offset", n.at
    FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) WITH ORDINALITY AS n (feed, "offset", at, place)
    JOIN events AS e ON e.feed = n.feed AND e."offset" = n."offset" AND e.event IS NOT NULL
    ORDER BY n.place
    ON CONFLICT DO NOTHING"""


async def seen_offsets(conn: Connection, name: str) -> set[int]:
    sql = 'SELECT "offset" FROM seen WHERE feed = (SELECT id FROM feeds WHERE name = $1)'
    return {row[0] for row in await conn.fetch(sql, name)}


async def receipts(conn: Connection, keys: Sequence[bytes]) -> list[Receipt | None]:
    rows = await conn.fetch(_RECEIPTS, list(dict.fromkeys(keys)))
    found = {key: base.receipt(_seconds(delivered), _seconds(seen)) for key, delivered, seen in rows}
    return [found.get(key) for key in keys]


_RECEIPTS = """
    SELECT e.key,
        (SELECT at FROM delivered WHERE feed = e.feed AND upto >= e."offset" ORDER BY upto LIMIT 1),
        (SELECT at FROM seen WHERE feed = e.feed AND "offset" = e."offset")
    FROM events AS e JOIN feeds AS f ON f.id = e.feed
    WHERE e.key = ANY($1::bytea[]) AND starts_with(f.name, 'account:')"""


async def traces(conn: Connection, name: str, offsets: Collection[int]) -> list[Trace]:
    rows = await conn.fetch(_TRACES, name, list(offsets))
    return [
        Trace(offset, signed, _seconds(verified), published, _seconds(delivered), _seconds(seen))
        for offset, signed, verified, published, delivered, seen in rows
    ]


_TRACES = """
    SELECT e."offset", o.timestamp::float8, o.verified, NOT EXISTS (SELECT FROM unpublished AS u WHERE u.seq = e.seq),
        (SELECT at FROM delivered WHERE feed = e.feed AND upto >= e."offset" ORDER BY upto LIMIT 1),
        (SELECT at FROM seen WHERE feed = e.feed AND "offset" = e."offset")
    FROM events AS e JOIN feeds AS f ON f.id = e.feed LEFT JOIN originals AS o ON o.id = e.original
    WHERE f.name = $1 AND e."offset" = ANY($2::bigint[]) ORDER BY e."offset\""""


async def cursors(conn: Connection, account: str) -> dict[str, dict[str, tuple[str, int]]]:
    found: dict[str, dict[str, tuple[str, int]]] = {}
    for device, feed, epoch, offset in await conn.fetch(_CURSORS_OF, account):
        found.setdefault(device, {})[feed] = (epoch, offset)
    return found


_CURSORS_OF = """
    SELECT d.device, f.name, c.epoch, c."offset" FROM devices AS d
    JOIN cursors AS c ON c.device = d.id JOIN feeds AS f ON f.id = c.feed WHERE d.account = $1"""


async def devices(conn: Connection, account: str) -> list[Device]:
    rows = await conn.fetch(_DEVICES, [account])
    return [Device(device, agent, seconds(created), seconds(last)) for _, _, device, agent, created, last in rows]


async def forget(conn: Connection, account: str, device: str) -> bool:
    await lock(conn, [account])
    id = await _device(conn, account, device)
    if id is not None:
        await _forget(conn, [id])
    return id is not None


async def _forget(conn: Connection, ids: list[int]) -> None:
    await conn.execute("DELETE FROM cursors WHERE device = ANY($1::bigint[])", ids)
    await conn.execute("DELETE FROM devices WHERE id = ANY($1::bigint[])", ids)


async def _device(conn: Connection, account: str, device: str) -> int | None:
    """Its id, None when unknown."""
    return (await _ids(conn, {(account, device)})).get((account, device))


async def _ids(conn: Connection, names: Collection[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """(account, device) -> id; unknown ones are left out."""
    rows = await conn.fetch(_IDS, *columns(list(names)))
    return {(account, device): id for account, device, id in rows}


_IDS = """
    SELECT d.account, d.device, d.id FROM unnest($1::text[], $2::text[]) AS n (account, device)
    JOIN devices AS d ON d.account = n.account AND d.device = n.device"""


def _seconds(micros: int | None) -> float | None:
    return None if micros is None else seconds(micros)
