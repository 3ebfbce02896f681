"""The memory store: for tests, and the specification that runs. Short before fast; what it holds ends with the process.

No method waits for anything, so each is one transaction by itself: nothing else runs in between.
"""

import secrets
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import islice

from gateway.errors import ConfigError, StoreUnavailable
from gateway.events import with_recordedtime
from gateway.protocol.delivery import Beginning
from gateway.store import base, presence
from gateway.store.base import (
    Agency,
    AgencyKey,
    Conflict,
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
    Original,
    Outcome,
    Page,
    Presence,
    Range,
    Receipt,
    Revocation,
    Row,
    Stale,
    Start,
    Stored,
    TooManyDevices,
    Trace,
)
from gateway.store.joining import begin, is_new, longest_away, own_feed


@dataclass(slots=True)
class _Request:
    """What is left of a signed request: `original` goes with the first of its events that is erased."""

    original: Original | None
    agency: str
    key_id: str
    verified: float
    digest: bytes


@dataclass(slots=True)
class _Event:
    draft: Draft
    offset: int
    seq: int
    recorded: float
    event: bytes | None
    digest: bytes | None
    request: _Request | None
    seen: float | None = None

    @property
    def row(self) -> Row:
        return Row(self.offset, self.event, self.draft.priority, self.recorded)

    def matches(self, wanted: Filter) -> bool:
        if wanted == Filter():
            return True
        return (
            self.event is not None
            and (not wanted.types or self.draft.type in wanted.types)
            and (not wanted.statuses or self.draft.status in wanted.statuses)
            and (wanted.start is None or self.draft.time >= wanted.start)
            and (wanted.end is None or self.draft.time < wanted.end)
        )


@dataclass(slots=True)
class _Feed:
    name: str
    head: int = 0
    acked: int = 0  # highest offset that any device of the account acknowledged; account feeds only
    events: dict[int, _Event] = field(default_factory=dict)  # offset -> event, rising
    delivered: list[tuple[int, float]] = field(default_factory=list)  # (up to this offset, when), rising
    things: dict[bytes, int] = field(default_factory=dict)  # thing -> offset of its latest event

    @property
    def oldest(self) -> int:
        return next(iter(self.events), self.head + 1)

    def page(self, rows: list[Row]) -> Page:
        return Page(self.name, self.oldest, self.head, rows)


@dataclass(slots=True)
class _Device:
    device: str
    agent: str | None
    created: float
    last_seen: float
    cursors: dict[str, tuple[str, int]] = field(default_factory=dict)  # feed -> (epoch, offset)

    def move(self, feed: str, epoch: str, offset: int) -> None:
        """Contract, section 1: "Within an epoch it never goes back"."""
        if feed not in self.cursors or self.cursors[feed][0] != epoch or self.cursors[feed][1] < offset:
            self.cursors[feed] = (epoch, offset)


class MemoryStore:
    def __init__(self) -> None:
        self.epoch = secrets.token_hex(8)
        self._feeds: dict[str, _Feed] = {}
        self._keys: dict[bytes, tuple[_Feed, _Event]] = {}
        self._seq = 0
        self._unpublished: dict[int, tuple[_Feed, _Event]] = {}  # seq -> event, rising
        self._accounts: dict[str, dict[str, _Device]] = {}
        self._agencies: dict[str, Agency] = {}
        self._revocations: dict[tuple[str, str], Revocation] = {}
        self._presences: dict[presence.Key, Presence] = {}
        self._leases: dict[str, tuple[str, float]] = {}  # name -> (owner, until)
        self._revision = 0
        self._open = False

    async def open(self) -> None:
        self._open = True

    async def close(self) -> None:
        self._open = False

    async def ready(self) -> bool:
        return self._open

    def _check(self) -> None:
        if not self._open:
            raise StoreUnavailable("the store is closed")

    def _feed(self, name: str) -> _Feed:
        """The feed, or an empty one that is not kept."""
        return self._feeds.get(name) or _Feed(name)

    # Events

    async def append(self, drafts: Sequence[Draft], now: float) -> list[Outcome]:
        self._check()
        requests: dict[int, _Request] = {}
        return [self._append(draft, now, requests) for draft in drafts]

    def _append(self, draft: Draft, now: float, requests: dict[int, _Request]) -> Outcome:
        if draft.key in self._keys:
            feed, event = self._keys[draft.key]
            if event.digest not in (None, draft.digest):
                return Conflict(event.offset)
            return self._stored(feed, event, duplicate=True)
        feed = self._feeds.setdefault(draft.feed, _Feed(draft.feed))
        if draft.thing is not None and draft.sequence is not None:
            latest = feed.things.get(draft.thing)
            highest = feed.events[latest].draft.sequence if latest is not None else None
            if highest is not None and highest > draft.sequence:
                return Stale(highest)
            feed.things[draft.thing] = feed.head + 1
        request = None
        if (signed := draft.original) is not None:
            request = requests.setdefault(
                id(signed),
                _Request(signed, signed.agency, signed.key_id, signed.verified, sha256(signed.body).digest()),
            )
        feed.head += 1
        self._seq += 1
        written = with_recordedtime(draft.event, now)
        kept = replace(draft, event=b"", original=None)
        event = _Event(kept, feed.head, self._seq, now, written, draft.digest, request)
        feed.events[feed.head] = event
        self._keys[draft.key] = self._unpublished[self._seq] = feed, event
        return self._stored(feed, event, duplicate=False)

    def _stored(self, feed: _Feed, event: _Event, *, duplicate: bool) -> Stored:
        return Stored(feed.name, self.epoch, event.offset, event.seq, duplicate, event.row)

    async def read(self, ranges: Sequence[Range]) -> list[Page]:
        self._check()
        return [self._read(wanted) for wanted in ranges]

    def _read(self, wanted: Range) -> Page:
        feed = self._feed(wanted.feed)
        first = max(wanted.after + 1, feed.oldest)
        rows = [feed.events[n].row for n in range(first, min(feed.head, first + wanted.limit - 1) + 1)]
        return feed.page(_within(rows, wanted.max_bytes))

    async def heads(self, feeds: Collection[str]) -> dict[str, Head]:
        self._check()
        return {name: Head(self._feed(name).oldest, self._feed(name).head) for name in feeds}

    async def history(
        self, feed: str, *, after: int | None, before: int | None, limit: int, filter: Filter, max_scan: int = 5000
    ) -> tuple[Page, int | None]:
        self._check()
        log = self._feed(feed)
        low = max(log.oldest, 0 if after is None else after + 1)
        high = log.head if before is None else min(log.head, before - 1)
        offsets = range(low, high + 1) if after is not None else range(high, low - 1, -1)
        scanned = offsets[:max_scan]
        rows = [log.events[n].row for n in scanned if log.events[n].matches(filter)]
        page = log.page(_within(rows[:limit], base.HISTORY_BYTES))
        # All that was looked at is done with, unless the page was full before.
        last = page.rows[-1].offset if len(page.rows) < len(rows) else scanned[-1] if scanned else None
        return page, last if last is not None and last != offsets[-1] else None

    async def published(self, seqs: Collection[int]) -> None:
        self._check()
        for seq in seqs:
            self._unpublished.pop(seq, None)

    async def unpublished(self, before: float, limit: int) -> list[Stored]:
        self._check()
        waiting = (self._stored(f, e, duplicate=False) for f, e in self._unpublished.values() if e.recorded < before)
        return list(islice(waiting, limit))

    # Devices and cursors

    async def join(self, joins: Sequence[Join]) -> list[Joined | TooManyDevices]:
        self._check()
        joining: dict[str, set[str]] = {}
        return [self._join(join, joining.setdefault(join.account, set())) for join in joins]

    def _join(self, join: Join, joining: set[str]) -> Joined | TooManyDevices:
        devices = self._accounts.setdefault(join.account, {})
        forgotten = []
        while join.device not in devices and len(devices) >= base.MAX_DEVICES:
            away = longest_away(((d.device, d.last_seen) for d in devices.values()), joining | join.connected)
            if away is None:
                return TooManyDevices()
            del devices[away]
            forgotten.append(away)
        joining.add(join.device)
        device = devices.setdefault(join.device, _Device(join.device, None, join.now, join.now))
        device.last_seen = max(device.last_seen, join.now)
        device.agent = join.agent if join.agent is not None else device.agent
        own, new = own_feed(join.account), False
        before = dict(device.cursors)
        if join.fresh:
            device.cursors = {feed: at for feed, at in before.items() if feed == own}
        starts = []
        for feed in join.feeds:
            began, start = self._start(join, feed, device)
            starts.append(start)
            if feed == own:
                new = is_new(join, began, before.get(own))
        return Joined(self.epoch, new, starts, tuple(forgotten))

    def _start(self, join: Join, name: str, device: _Device | None) -> tuple[Beginning, Start]:
        feed = self._feeds.setdefault(name, _Feed(name))
        cursor = device.cursors.get(name) if device is not None else None
        began = begin(join, name, epoch=self.epoch, oldest=feed.oldest, head=feed.head, acked=feed.acked, cursor=cursor)
        if device is not None and began.store is not None:
            device.move(name, self.epoch, began.store)
            if not join.fresh and name in join.resume:
                self._acked(join.account, feed, began.store, join.now)  # "it counts as an ack"
        return began, Start(name, feed.head, began.offset, began.reason)

    async def follow(self, account: str, device: str, feed: str, resume: tuple[str, int] | None, now: float) -> Start:
        self._check()
        join = Join(account, device, (feed,), {} if resume is None else {feed: resume}, now=now)
        return self._start(join, feed, self._accounts.get(account, {}).get(device))[1]

    async def unfollow(self, account: str, device: str, feed: str) -> None:
        self._check()
        if (known := self._accounts.get(account, {}).get(device)) is not None:
            known.cursors.pop(feed, None)

    async def save(self, cursors: Sequence[CursorSave]) -> None:
        self._check()
        for cursor in cursors:
            device = self._accounts.get(cursor.account, {}).get(cursor.device)
            feed = self._feeds.get(cursor.feed)
            if device is None or feed is None or cursor.epoch != self.epoch:
                continue
            device.move(cursor.feed, self.epoch, min(cursor.offset, feed.head))
            self._acked(cursor.account, feed, min(cursor.offset, feed.head), cursor.now)

    def _acked(self, account: str, feed: _Feed, offset: int, now: float) -> None:
        if feed.name == own_feed(account) and offset > feed.acked:
            feed.acked = offset
            feed.delivered.append((offset, now))

    async def touch(self, devices: Sequence[tuple[str, str, float]]) -> None:
        self._check()
        for account, name, when in devices:
            if (device := self._accounts.get(account, {}).get(name)) is not None:
                device.last_seen = max(device.last_seen, when)

    async def seen(self, marks: Sequence[tuple[str, Sequence[int], float]]) -> None:
        self._check()
        for feed, offsets, when in marks:
            for offset in offsets:
                event = self._feed(feed).events.get(offset)
                if event is not None and event.event is not None and event.seen is None:
                    event.seen = when

    async def seen_offsets(self, feed: str) -> set[int]:
        self._check()
        return {offset for offset, event in self._feed(feed).events.items() if event.seen is not None}

    async def receipts(self, keys: Sequence[bytes]) -> list[Receipt | None]:
        self._check()
        return [self._receipt(key) for key in keys]

    def _receipt(self, key: bytes) -> Receipt | None:
        feed, event = self._keys.get(key, (None, None))
        if feed is None or event is None or not feed.name.startswith("account:"):
            return None
        delivered = next((when for upto, when in feed.delivered if upto >= event.offset), None)
        return base.receipt(delivered, event.seen)

    async def traces(self, feed: str, offsets: Collection[int]) -> list[Trace]:
        self._check()
        log = self._feed(feed)
        return [self._trace(log, log.events[n]) for n in sorted(set(offsets)) if n in log.events]

    def _trace(self, feed: _Feed, event: _Event) -> Trace:
        request = event.request
        original = None if request is None else request.original
        return Trace(
            event.offset,
            None if original is None else float(original.timestamp),
            None if request is None else request.verified,
            event.seq not in self._unpublished,
            next((when for upto, when in feed.delivered if upto >= event.offset), None),
            event.seen,
        )

    async def cursors(self, account: str) -> dict[str, dict[str, tuple[str, int]]]:
        self._check()
        devices = self._accounts.get(account, {})
        return {name: dict(device.cursors) for name, device in devices.items() if device.cursors}

    async def devices(self, account: str) -> list[Device]:
        self._check()
        known = self._accounts.get(account, {}).values()
        return [Device(d.device, d.agent, d.created, d.last_seen) for d in known]

    async def forget(self, account: str, device: str) -> bool:
        self._check()
        return self._accounts.get(account, {}).pop(device, None) is not None

    # Presence and leases

    async def enter(self, presences: Sequence[Presence], now: float) -> list[Entered]:
        self._check()
        present = {account: self._present(account, now) for account in {one.account for one in presences}}
        told, rows = presence.enter(presences, self._presences, present, now)
        self._presences.update(((row.account, row.device), row) for row in rows)
        return told

    async def keep(self, presences: Sequence[Presence], now: float) -> list[Presence]:
        self._check()
        instead, again = presence.superseded(presences, self._presences)
        self._presences.update(((row.account, row.device), row) for row in again)
        return instead

    async def leave(self, presences: Sequence[Presence]) -> None:
        self._check()
        for one in presences:
            found = self._presences.get((one.account, one.device))
            if found is not None and found.session == one.session:
                del self._presences[one.account, one.device]

    async def present(self, account: str, now: float) -> frozenset[str]:
        self._check()
        return self._present(account, now)

    def _present(self, account: str, now: float) -> frozenset[str]:
        found = (one for one in self._presences.values() if one.account == account and one.session)
        return frozenset(one.device for one in found if self._leases.get(f"node:{one.node}", ("", 0.0))[1] > now)

    async def lease(self, name: str, owner: str, until: float, now: float) -> bool:
        self._check()
        holder, ends = self._leases.get(name, (owner, now))
        if holder != owner and ends > now:
            return False
        self._leases[name] = owner, until
        return True

    async def release(self, name: str, owner: str) -> None:
        self._check()
        if self._leases.get(name, ("", 0.0))[0] == owner:
            del self._leases[name]

    async def leases(self, prefix: str, now: float) -> list[Lease]:
        self._check()
        held = sorted(self._leases.items())
        return [Lease(name, *held_by) for name, held_by in held if name.startswith(prefix) and held_by[1] > now]

    async def expire(self, before: float, limit: int = 10_000) -> int:
        self._check()
        ended = [name for name, (_, until) in self._leases.items() if until < before][:limit]
        for name in ended:
            del self._leases[name]
        old = (key for key, one in self._presences.items() if one.since < before)
        gone = [key for key in old if f"node:{self._presences[key].node}" not in self._leases][:limit]
        for key in gone:
            del self._presences[key]
        return len(ended) + len(gone)

    # Erasure, retention, proof

    async def erase(
        self, feed: str, offset: int | None, make: Callable[[Sequence[tuple[int, int]]], Draft], now: float
    ) -> Stored | None:
        self._check()
        log = self._feed(feed)
        going = [
            event
            for event in log.events.values()
            if event.offset == (offset or event.offset)
            and event.event is not None
            and event.draft.type != base.ERASED_TYPE
        ]
        if not going:
            return None
        draft = make(base.spans(event.offset for event in going))
        for event in going:
            event.event = event.digest = event.seen = None
            if event.request is not None:
                event.request.original = None
        outcome = self._append(draft, now, {})
        assert isinstance(outcome, Stored), "the name of a `gov.erased` event is new"
        return outcome

    async def retain(self, before: float, limit: int = 10_000, feed: str | None = None) -> int:
        self._check()
        count = 0
        for log in self._feeds.values() if feed is None else [self._feed(feed)]:
            for event in list(log.events.values()):
                if event.recorded >= before or count == limit:
                    break
                self._delete(log, event)
                count += 1
        return count

    def _delete(self, feed: _Feed, event: _Event) -> None:
        del feed.events[event.offset]
        del self._keys[event.draft.key]
        self._unpublished.pop(event.seq, None)
        thing = event.draft.thing
        if thing is not None and feed.things.get(thing) == event.offset:
            del feed.things[thing]
        feed.delivered = [(upto, when) for upto, when in feed.delivered if upto > event.offset]

    async def kept(self, key: bytes) -> Kept | None:
        self._check()
        feed, event = self._keys.get(key, (None, None))
        if feed is None or event is None or (request := event.request) is None:
            return None
        return Kept(
            feed.name,
            event.offset,
            event.draft.item,
            event.event is None,
            request.key_id,
            request.agency,
            request.verified,
            request.digest,
            request.original,
        )

    # Control

    async def revision(self) -> int:
        self._check()
        return self._revision

    async def agencies(self) -> list[Agency]:
        self._check()
        return sorted(self._agencies.values(), key=lambda agency: agency.code)

    async def add_agency_key(self, code: str, key: AgencyKey, types: Sequence[str] | None, now: float) -> None:
        self._check()
        agency = self._agencies.get(code, Agency(code, (), (), now))
        if any(key.id == other.id for other in agency.keys):
            raise ValueError(f"agency {code} already has a key {key.id}")
        may = agency.types if types is None else tuple(types)
        self._agencies[code] = replace(agency, keys=(*agency.keys, key), types=may)
        self._revision += 1

    async def retire_agency_key(self, code: str, key_id: str, now: float) -> bool:
        self._check()
        agency = self._agencies.get(code)
        if agency is None or not any(key.id == key_id and key.retired is None for key in agency.keys):
            return False
        keys = tuple(replace(key, retired=now) if key.id == key_id else key for key in agency.keys)
        self._agencies[code] = replace(agency, keys=keys)
        self._revision += 1
        return True

    async def revoke(self, revocation: Revocation) -> None:
        self._check()
        name = (revocation.kind, revocation.value)
        if name not in self._revocations or self._revocations[name].before < revocation.before:
            self._revocations[name] = revocation
            self._revision += 1

    async def revocations(self) -> list[Revocation]:
        self._check()
        return list(self._revocations.values())

    async def backup(self, path: str, progress: Callable[[int, int], None] | None = None) -> None:
        raise ConfigError(
            "VESTNIK_STORE is memory://, which keeps nothing that a backup could hold; use sqlite:///path."
        )


def _within(rows: Iterable[Row], max_bytes: int) -> list[Row]:
    """As many rows as fit, but always one."""
    taken: list[Row] = []
    size = 0
    for row in rows:
        size += base.size(row.event)
        if taken and size > max_bytes:
            break
        taken.append(row)
    return taken
