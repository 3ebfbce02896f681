"""The hub: which sessions follow which feed here, and the loop that brings each level with the store.

Resuming, catching up and live are one loop, `pump`: while the session's window and its transport allow, write what
lies after its position, from the tail or else from the store. It is a plain function; nothing is queued for a session,
and a session that cannot take more is simply behind. The bus only says that a head has risen; a loss, a repeat or a
swap on it changes nothing but the time (invariants 5, 8, 11, 12, 19).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from gateway import logs
from gateway.bus.base import Bus, Message
from gateway.errors import BusUnavailable, StoreUnavailable
from gateway.metrics import Counts
from gateway.protocol import messages
from gateway.protocol.codec import Codec
from gateway.protocol.delivery import Track
from gateway.rfc3339 import format_time
from gateway.roster import Roster
from gateway.settings import Settings
from gateway.store.base import CursorSave, Entered, Join, Joined, Page, Presence, Range, Start, Store, TooManyDevices
from gateway.tail import Entries, Entry, Tail
from gateway.waiting import always, woken

if TYPE_CHECKING:
    from gateway.session import Session

log = logs.get_logger("hub")

SLICE = 256  # sessions of a broadcast written before others get their turn: about 2 ms of the loop
WRITE_BYTES = 65_536  # written to one session in one go; more would only fill the transport's buffer
READ_FEEDS = 256  # sessions behind that share one trip to the store
JOINS = 256  # hellos that share one trip
JOIN_GATHER_S = 0.03  # after a trip that was shared, while more gathers: a trip costs 1.5 ms of processor time however
# many share it, a fifth of all that a storm of reconnects takes, and there nobody notices the wait
READ_GATHER_S = 0.02
MARKS = 10_000  # `seen` and last times here that wait while the store is away; protects memory, the oldest go first
RETRY_S = 0.5  # before a read that failed is tried again
BLIND_SWEEP_S = 2.0  # between sweeps while the bus is down: then they alone deliver
LINGER_S = 2.0  # how long a feed without sessions keeps its subscription
WAITS = 2  # priorities from here on (normal, bulk) wait in saver mode


class Feed:
    """A feed that somebody follows here."""

    __slots__ = ("checked", "entries", "follows", "head", "name", "pins", "waving")

    def __init__(self, name: str):
        self.name = name
        self.head = 0  # highest offset known, by bus or store
        self.checked = 0  # highest offset that a comparison with the store showed; what beats tell
        self.follows: list[Follow] = []
        self.entries: Entries | None = None
        self.pins = 0  # sessions on their way in
        self.waving = False  # a broadcast over its sessions is under way


class Follow(Track):
    """One feed of one session."""

    __slots__ = ("dirty", "feed", "held", "index", "level", "owing", "reading", "session")

    def __init__(self, session: Session, feed: Feed, offset: int, *, owing: bool = False):
        super().__init__(offset)
        self.session = session
        self.feed = feed
        self.index = -1  # its place in feed.follows; -1 when it is not followed (any more)
        self.level = False  # `live` was said
        self.reading = False  # waits for the store
        self.held = False  # saver mode: events wait here
        self.dirty = False  # acked, not yet saved
        self.owing = owing  # began with a resync: no cursor stands for the offset until the device acknowledges it


class Hub:
    """All sessions of this process. Everything here runs on the event loop and only there."""

    def __init__(self, settings: Settings, store: Store, bus: Bus, counts: Counts):
        self.settings, self.store, self.bus, self.counts = settings, store, bus, counts
        self.window = settings.window
        self.roster = Roster(settings, store, bus)
        self.feeds: dict[str, Feed] = {}
        self.tail = Tail(settings.tail_bytes)
        self.sessions = 0  # open ones
        self.opening = 0  # connections that have not finished their hello
        self.now = time.monotonic()  # of the last tick; good to a quarter of a second
        self.draining = False
        self._behind: deque[Follow] = deque()
        self._read_wanted = asyncio.Event()
        self.joining: set[Session] = set()  # said hello, not welcomed yet
        self._joins: deque[tuple[Session, Join]] = deque()
        self._join_wanted = asyncio.Event()
        self._waves: list[deque[tuple[Feed, list[Follow], int]]] = [deque() for _ in range(4)]
        self._waving = False
        self._dirty: list[Follow] = []
        self._dirty_accounts: set[str] = set()
        self._seen: list[tuple[str, Sequence[int], float]] = []
        self._touched: list[tuple[str, str, float]] = []
        self._flush_wanted = asyncio.Event()
        self._saving = asyncio.Lock()
        self._empty: set[Feed] = set()
        self._wheel: dict[int, list[Session]] = {}
        self._slot = int(self.now * 4)
        self._sweep_wanted = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    # Life

    def start(self) -> None:
        """Start the few tasks that serve all sessions. The store is open; the bus may still be connecting."""
        for work in (self._ticks, self._reads, self._join_trips, self._flushes, self._sweeps, self._let_go):
            name = f"hub.{work.__name__.strip('_')}"
            self._tasks.append(asyncio.create_task(always(name, work), name=name))
        self.roster.start(self.all_sessions, self.displaced)

    async def stop(self) -> None:
        """Stop the tasks and save what is not saved. Sessions are closed before."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(StoreUnavailable):
            await self._flush()
        await self.roster.stop()

    # From the bus

    def received(self, message: Message) -> None:
        """A committed event arrived. Nothing but the next offset of its feed is written through at once."""
        feed = self.feeds.get(message.feed)
        if feed is None:
            return
        if message.epoch != self.store.epoch:
            # "An epoch never changes within a session": the store under us is another one.
            log.error("epoch_changed", feed_kind=message.feed.partition(":")[0])
            self.close_all(4503, "the store was restored")
            return
        self.counts.bus_received += 1
        hole = message.offset > feed.head + 1
        if message.offset <= feed.head:
            self.counts.bus_repeats += 1
            return  # a repeat, or late: who needed it has asked the store
        if hole and feed.follows:
            self.counts.bus_holes += 1
        if feed.entries is None:
            feed.entries = {}
        elif hole or (message.event is not None and b'"gov.erased"' in message.event):
            self.tail.drop(feed.entries)  # what was erased is not sent from memory; what was lost may have said so
        entry = Entry(message)
        self.tail.put(feed.entries, entry, self.now)
        feed.head = message.offset
        # What was lost may have been urgent, so nothing waits behind a hole.
        if len(feed.follows) <= SLICE:
            self._write_entry(feed, feed.follows, entry, hurry=hole)
        else:
            self._wave(feed, min(message.priority, 1) if hole else message.priority)

    def gauges(self) -> None:
        """Fill the gauges, when somebody reads them."""
        counts = self.counts
        counts.sessions, counts.opening, counts.feeds = self.sessions, self.opening, len(self.feeds)
        counts.tail_bytes, counts.tail_entries = self.tail.used, len(self.tail)
        counts.tail_evicted = self.tail.evicted
        counts.draining, counts.bus_healthy = int(self.draining), int(self.bus.healthy)

    def gap(self) -> None:
        """The bus may have lost something: compare all heads with the store now."""
        self.counts.bus_gaps += 1
        self._sweep_wanted.set()
        self.roster.gap()

    def _write_entry(self, feed: Feed, follows: Iterable[Follow], entry: Entry, *, hurry: bool) -> None:
        """Write one event to those who are level; let `pump` find out about the rest. With `hurry` nothing waits.

        The hot loop of the gateway: `Track.room` and `Track.advance` stand here in their own words.
        """
        offset, previous, full = entry.offset, entry.offset - 1, entry.offset - self.window
        codec: Codec | None = None
        frame = b""
        written = size = counted = 0
        failed: list[Session] = []
        for follow in follows:
            session = follow.session
            try:
                if follow.sent == previous and session.flowing and follow.acked >= full and follow.level:
                    if session.codec is not codec:
                        size, counted = size + (written - counted) * len(frame), written
                        codec = session.codec
                        frame = entry.frame(codec, feed.name)
                    follow.sent = offset
                    session.out.write(frame)
                    written += 1
                elif follow.sent < offset:
                    if session.saver and not hurry and self._holds(follow, entry):
                        continue
                    self.pump(follow)
            except Exception:
                log.exception("session_failed", session=session.id)
                failed.append(session)
        for session in failed:
            session.close(4503, "the gateway failed")
        if written:
            now = time.time()
            if not entry.written:
                entry.written = now
            self.counts.written_bytes += size + (written - counted) * len(frame)
            self._count(entry.priority, written, now - entry.recorded)

    def _holds(self, follow: Follow, entry: Entry) -> bool:
        """Saver mode: does this event wait? Only behind a position that is known to be level or already waiting."""
        if entry.priority < WAITS or not follow.level or not (follow.held or follow.sent == entry.offset - 1):
            return False
        if not follow.held:
            follow.held = True
            follow.session.hold()
        return True

    def _count(self, priority: int, events: int, seconds: float | None) -> None:
        """Events were written; `seconds` since their commit when they are live ones."""
        self.counts.delivered[priority] += events
        if seconds is not None:
            self.counts.to_socket[priority].observe(seconds, events)

    # Broadcasts

    def _wave(self, feed: Feed, priority: int) -> None:
        """Bring all followers of a big feed level, a slice at a time, urgent feeds first."""
        if feed.waving:
            # Those already passed in this wave need another visit; the others are level by then and cost a comparison.
            for waves in self._waves[: priority + 1]:
                if any(waiting is feed for waiting, _, done in waves if not done):
                    return
        feed.waving = True
        self._waves[priority].append((feed, feed.follows.copy(), 0))
        if not self._waving:
            self._waving = True
            asyncio.get_running_loop().call_soon(self._next_slice)

    def _next_slice(self) -> None:
        for priority, waves in enumerate(self._waves):  # noqa: B007 - used after the loop
            if waves:
                break
        else:
            self._waving = False
            return
        feed, follows, done = waves.popleft()
        if done + SLICE < len(follows):
            waves.appendleft((feed, follows, done + SLICE))
        else:
            feed.waving = any(waiting is feed for others in self._waves for waiting, _, _ in others)
        # Not this very turn: what has arrived meanwhile, personal and urgent events among it, goes between the slices.
        asyncio.get_running_loop().call_soon(self._next_slice)
        part = [follow for follow in follows[done : done + SLICE] if follow.index >= 0]
        entry = feed.entries.get(feed.head) if feed.entries else None
        if entry is not None:
            # The wave began for an event that does not wait, though the latest one might.
            self._write_entry(feed, part, entry, hurry=priority < WAITS)
        else:
            for follow in part:
                self._pump_apart(follow)

    # The one loop

    def pump(self, follow: Follow) -> None:
        """Write what lies after the session's position, as far as window and transport allow."""
        feed, session = follow.feed, follow.session
        if follow.index < 0 or not session.open:
            return
        follow.held = False  # from now on only window and transport hold it up
        while follow.sent < feed.head:
            if not session.writable:
                session.stall()
                return
            room = follow.room(self.window)
            if room <= 0:
                session.stall()
                return
            if follow.reading:
                return
            entries = feed.entries
            entry = entries.get(follow.sent + 1) if entries else None
            if entry is None:
                follow.reading = True
                self._behind.append(follow)
                self._read_wanted.set()
                return
            assert entries is not None
            self._write_run(follow, entries, room)
        if not follow.level:
            follow.level = True
            session.send(messages.live(feed.name))

    def _pump_apart(self, follow: Follow) -> None:
        """A fault of ours costs one session, not those that come after it."""
        try:
            self.pump(follow)
        except Exception:
            self._failed(follow.session)

    def _failed(self, session: Session) -> None:
        """Called where an exception was caught: the device comes back and reads on from what it kept."""
        log.exception("session_failed", session=session.id)
        session.close(4503, "the gateway failed")

    def _write_run(self, follow: Follow, entries: Entries, room: int) -> None:
        """Write an unbroken run from the tail as one write."""
        session, name = follow.session, follow.feed.name
        run: list[Entry] = []
        size, offset = 0, follow.sent
        entry = entries.get(offset + 1)
        while entry is not None and room > 0 and size < WRITE_BYTES:
            run.append(entry)
            size += len(entry.event or b"") + 64
            room -= 1
            offset += 1
            entry = entries.get(offset + 1)
        now = time.time()
        for entry in run:
            if not entry.written:
                entry.written = now
            self._count(entry.priority, 1, now - entry.recorded if follow.level else None)
        follow.advance(run[0].offset, offset)
        if session.saver and len(run) > 1:
            items = [(entry.offset, entry.event) for entry in run]
            parts = session.codec.batch_frames(name, items, compress=session.deflate)
            self.counts.batches += len(parts)
        else:
            parts = [entry.frame(session.codec, name) for entry in run]
        data = b"".join(parts)
        self.counts.written_bytes += len(data)
        session.out.write(data)

    # Behind: reads from the store

    async def _reads(self) -> None:
        """Serve sessions whose next event is not in the tail; many share a trip, each gets a page in turn."""
        while True:
            await self._read_wanted.wait()
            self._read_wanted.clear()
            while self._behind:
                shared = await self._read_trip() > 1
                await asyncio.sleep(READ_GATHER_S if shared else 0)

    async def _read_trip(self) -> int:
        """Read a page for those who wait longest; how many they were. A method, so that pages and sessions are let go
        when it is done and not at the next trip."""
        group = [self._behind.popleft() for _ in range(min(READ_FEEDS, len(self._behind)))]
        asked = [(follow, (follow.feed.name, follow.sent)) for follow in group if follow.index >= 0]
        ranges = {key: 0 for _, key in asked}
        for follow, key in asked:
            ranges[key] = max(ranges[key], min(100, follow.room(self.window)))
        begun = time.perf_counter()
        try:
            pages = await self.store.read([Range(feed, after, max(1, n)) for (feed, after), n in ranges.items()])
        except StoreUnavailable as error:
            self.counts.store_failures += 1
            log.warning("read_failed", error=str(error))
            self._behind.extendleft(follow for follow, _ in reversed(asked))
            await asyncio.sleep(RETRY_S)
            return 0
        except Exception:
            for follow, _ in asked:
                self._failed(follow.session)
            return 0
        self.counts.read.observe(time.perf_counter() - begun)
        self.counts.store_reads += 1
        self.counts.store_ranges += len(pages)
        found = dict(zip(ranges, pages, strict=True))
        ready: dict[object, bytes] = {}
        for follow, key in asked:
            follow.reading = False
            if follow.index >= 0:
                try:
                    self._serve(follow, found[key], ready)
                except Exception:
                    self._failed(follow.session)
        return len(group)

    def _serve(self, follow: Follow, page: Page, ready: dict[object, bytes]) -> None:
        """Write a page read from the store, if the session can still take it."""
        feed, session = follow.feed, follow.session
        if not session.open or not session.writable:
            session.stall()
            return  # `writable()` comes back to it
        if follow.sent + 1 < page.oldest:
            # Retention overtook a live session. Continuity is told at a hello, so let it say hello.
            session.close(4503, "history ended before this session had it")
            return
        rows = page.rows[: max(0, follow.room(self.window))]
        if rows:
            assert rows[0].offset == follow.sent + 1
            last = rows[-1].offset
            key = (session.codec, session.saver and session.deflate, feed.name, follow.sent, last)
            data = ready.get(key)
            if data is None:
                if len(rows) == 1:
                    data = session.codec.event_frame(feed.name, last, rows[0].event)
                else:
                    items = [(row.offset, row.event) for row in rows]
                    compress = session.saver and session.deflate
                    data = b"".join(session.codec.batch_frames(feed.name, items, compress=compress))
                ready[key] = data
            now = time.time()
            for row in rows:
                self._count(row.priority, 1, now - row.recorded if follow.level else None)
            self.counts.replayed += len(rows)
            follow.advance(rows[0].offset, last)
            self.counts.written_bytes += len(data)
            session.out.write(data)
        elif follow.sent < feed.head and follow.room(self.window) > 0:
            # A head that the store does not have: it was announced by a log that is gone.
            log.error("head_past_store", feed_kind=feed.name.partition(":")[0], head=feed.head, sent=follow.sent)
            session.close(4503, "the store was restored")
            return
        # Only now: whoever is woken by a higher head reads on from where it stands, this session too.
        self._raise_head(feed, page.head)
        self.pump(follow)

    def _raise_head(self, feed: Feed, head: int) -> None:
        """The store may have more than the bus told: wake whoever is behind, the bus will not do it any more."""
        if head <= feed.head:
            return
        feed.head = head
        if feed.entries:
            self.tail.drop(feed.entries)  # what the bus did not tell may have been an erasure
        if len(feed.follows) > SLICE:
            self._wave(feed, WAITS)
        else:
            for follow in feed.follows.copy():
                if follow.sent < head:
                    self._pump_apart(follow)

    # Joining

    def join(self, session: Session, join: Join) -> None:
        """A good hello: the session is told `joined` or closed, after one trip that it shares with others."""
        for name in join.feeds:
            self._pin(name)
        self.joining.add(session)
        self._joins.append((session, join))
        self._join_wanted.set()

    def _pin(self, name: str) -> Feed:
        feed = self.feeds.get(name)
        if feed is None:
            feed = self.feeds[name] = Feed(name)
        feed.pins += 1
        return feed

    def _unpin(self, feed: Feed) -> None:
        feed.pins -= 1
        if not feed.pins and not feed.follows:
            self._empty.add(feed)

    async def _subscribe(self, names: Collection[str]) -> None:
        """A subscription counts only when the server confirmed it; the store is read after it: no hole at the seam."""
        try:
            await self.bus.subscribe(names)
        except BusUnavailable as error:
            log.warning("subscribe_failed", feeds=len(names), error=str(error))  # slower, by the sweep; never wrong

    async def _join_trips(self) -> None:
        while True:
            await self._join_wanted.wait()
            self._join_wanted.clear()
            while self._joins:
                if await self._join_trip() > 1:
                    await asyncio.sleep(JOIN_GATHER_S)

    def _with_connected(self, joins: Iterable[Join], entered: Iterable[Entered]) -> list[Join]:
        """Say which devices must not be forgotten: those connected now, here or anywhere, and those that join just
        before."""
        connected: dict[str, frozenset[str]] = {}
        told = []
        for join, known in zip(joins, entered, strict=True):
            devices = connected.get(join.account)
            if devices is None:
                devices = self.connected(join.account) | known.others
            told.append(dataclasses.replace(join, connected=devices) if devices else join)
            connected[join.account] = devices | {join.device}
        return told

    async def _join_trip(self) -> int:
        group = [self._joins.popleft() for _ in range(min(JOINS, len(self._joins)))]
        names = {name for _, join in group for name in join.feeds}
        try:
            await self._subscribe([name for name in names if not self.feeds[name].follows])
            accounts = {join.account for _, join in group}
            if self._saving.locked() or not self._dirty_accounts.isdisjoint(accounts):
                await self._flush()  # a device that flaps starts after what it acknowledged a moment ago
            sessions = [session for session, _ in group]
            entered = await self.roster.enter(sessions)
            results = await self.store.join(self._with_connected((join for _, join in group), entered))
        except StoreUnavailable as error:
            self.counts.store_failures += 1
            log.warning("join_failed", sessions=len(group), error=str(error))
            for session, _ in group:
                session.close(4503, "the store does not answer")
        except Exception:
            log.exception("join_failed", sessions=len(group))  # once, however many wait
            for session, _ in group:
                session.close(4503, "the gateway failed")
        else:
            time_text = format_time(time.time())
            for (session, _), result in zip(group, results, strict=True):
                self._join_end(session, result, time_text)
            self.roster.announce(sessions, entered)
        finally:
            for session, join in group:
                self.joining.discard(session)
                if not session.open:
                    self.roster.left(session)
                for name in join.feeds:
                    self._unpin(self.feeds[name])
        return len(group)

    def _join_end(self, session: Session, result: Joined | TooManyDevices, time_text: str) -> None:
        self.joining.discard(session)
        try:
            if isinstance(result, TooManyDevices):
                session.close(4403, "the account has too many devices and all are connected")
            else:
                session.joined(result, time_text)
        except Exception:
            self._failed(session)

    async def follow(self, session: Session, name: str, resume: tuple[str, int] | None) -> Start:
        """Prepare one more feed for a session that has joined. Raises StoreUnavailable."""
        feed = self._pin(name)
        try:
            if not feed.follows:
                await self._subscribe([name])
            return await self.store.follow(session.account, session.device, name, resume, time.time())
        finally:
            # The follow itself is added by the caller in the same turn; until the next tick an empty feed stays.
            self._unpin(feed)

    def add(self, session: Session, start: Start) -> Follow:
        """From now on the session follows the feed after `start.offset`. Pump it once all before it is written."""
        feed = self.feeds.get(start.feed)
        if feed is None:
            feed = self.feeds[start.feed] = Feed(start.feed)
        if start.offset < start.head or not feed.follows:
            self._raise_head(feed, start.head)
        # Else the new one alone is ahead, and the message that is on its way wakes the others sooner than a read would.
        feed.checked = max(feed.checked, start.head)
        follow = Follow(session, feed, start.offset, owing=start.reason is not None)
        follow.index = len(feed.follows)
        feed.follows.append(follow)
        self._empty.discard(feed)
        return follow

    def remove(self, follow: Follow) -> None:
        """The session follows this feed no more."""
        feed, index = follow.feed, follow.index
        if index < 0:
            return
        last = feed.follows.pop()
        if last is not follow:
            feed.follows[index] = last
            last.index = index
        follow.index = -1
        if not feed.follows and not feed.pins:
            self._empty.add(feed)

    def sessions_of(self, account: str) -> list[Session]:
        """The sessions of an account here; every session follows its own account's feed."""
        feed = self.feeds.get(f"account:{account}")
        return [follow.session for follow in feed.follows] if feed else []

    def connected(self, account: str) -> frozenset[str]:
        """The devices of an account that are connected here."""
        return frozenset(session.device for session in self.sessions_of(account))

    def all_sessions(self) -> list[Session]:
        """Everybody whose account is known, those included that wait for their welcome."""
        welcomed = [
            follow.session
            for name, feed in self.feeds.items()
            if name.startswith("account:")
            for follow in feed.follows
        ]
        return [*welcomed, *self.joining]

    def close_all(self, code: int, reason: str) -> None:
        for session in self.all_sessions():
            session.close(code, reason)

    # What is saved a little later

    def acked(self, follow: Follow) -> None:
        """A position rose: save it within a second."""
        if not follow.dirty:
            follow.dirty = True
            self._dirty.append(follow)
            self._dirty_accounts.add(follow.session.account)

    def was_seen(self, feed: str, offsets: Sequence[int]) -> None:
        self._seen.append((feed, offsets, time.time()))

    def left(self, session: Session) -> None:
        """A session ended: save its positions soon, and when it was last here."""
        self._touched.append((session.account, session.device, time.time()))
        self._dirty_accounts.add(session.account)
        self.roster.left(session)
        self._flush_wanted.set()

    async def _flushes(self) -> None:
        """Cursors go to the store every second and after sessions end."""
        while True:
            await woken(self._flush_wanted, self.settings.save_s)
            try:
                await self._flush()
            except StoreUnavailable as error:
                self.counts.store_failures += 1
                log.warning("save_failed", error=str(error))
                await asyncio.sleep(1.0)
            await asyncio.sleep(0.05)  # sessions that end together are saved together

    async def _flush(self) -> None:
        """One at a time: what is asked of the store after it comes after all that was acknowledged before."""
        async with self._saving:
            await self._save()

    async def unfollow(self, follow: Follow | None, account: str, device: str, feed: str) -> None:
        """Forget the cursor, for good: no save that is under way or owed brings it back. Raises StoreUnavailable; then
        the cursor is kept."""
        if follow is not None:
            if follow.dirty:
                self._dirty.remove(follow)
            follow.dirty = True  # so nobody puts it among them again
        try:
            async with self._saving:
                await self.store.unfollow(account, device, feed)
        except StoreUnavailable:
            if follow is not None:
                follow.dirty = False
                self.acked(follow)
            raise

    async def _save(self) -> None:
        dirty, self._dirty = self._dirty, []
        self._dirty_accounts.clear()
        seen, self._seen = self._seen, []
        touched, self._touched = self._touched, []
        now, epoch = time.time(), self.store.epoch
        for follow in dirty:
            follow.dirty = False
        try:
            if dirty:
                await self.store.save(
                    [CursorSave(f.session.account, f.session.device, f.feed.name, epoch, f.acked, now) for f in dirty]
                )
            self.counts.cursors_saved += len(dirty)
            dirty = []
            if seen:
                await self.store.seen(seen)
            seen = []
            if touched:
                await self.store.touch(touched)
            touched = []
            await self.roster.flush()
        except BaseException:
            # Not known to be saved; being cancelled at the end is no different, `stop` saves once more.
            for follow in dirty:
                self.acked(follow)
            self._seen = (seen + self._seen)[-MARKS:]
            self._touched = (touched + self._touched)[-MARKS:]
            raise

    # Repair

    async def _sweeps(self) -> None:
        """Compare heads with the store: a page of feeds at a time, all within one interval, which is short while the
        bus is down; all at once after a gap.
        """
        names: list[str] = []
        while True:
            size = max(100, len(self.feeds) // 25)
            around_s = self.settings.sweep_s if self.bus.healthy else min(BLIND_SWEEP_S, self.settings.sweep_s)
            pause = around_s * size / max(size, len(self.feeds))
            hurried = await woken(self._sweep_wanted, pause)
            if hurried or not names:
                names = list(self.feeds)
            size = len(names) if hurried else size
            part, names = names[:size], names[size:]
            try:
                for begin in range(0, len(part), 1000):
                    await self._compare(part[begin : begin + 1000])
            except StoreUnavailable as error:
                self.counts.store_failures += 1
                log.warning("sweep_failed", error=str(error))
                names = part + names
                if hurried:
                    self._sweep_wanted.set()
                await asyncio.sleep(1.0)

    async def _compare(self, names: Collection[str]) -> None:
        self.counts.sweeps += 1
        for name, found in (await self.store.heads(names)).items():
            feed = self.feeds.get(name)
            if feed is None:
                continue
            feed.checked = max(feed.checked, found.head)
            if found.head > feed.head:
                self.counts.sweep_behind += 1
                self._raise_head(feed, found.head)

    # Time

    def wake_at(self, session: Session, at: float) -> None:
        """Call `session.check` at this monotonic time, to a quarter of a second; replaces what was asked before if that
        is later.
        """
        slot = max(int(at * 4), self._slot + 1)
        if session.slot > self._slot and session.slot <= slot:
            return
        session.slot = slot
        self._wheel.setdefault(slot, []).append(session)

    async def _ticks(self) -> None:
        while True:
            self._tick()
            await asyncio.sleep(0.25 - time.monotonic() % 0.25)

    def _tick(self) -> None:
        """Do what became due since the last time."""
        self.now = time.monotonic()
        current = int(self.now * 4)
        while self._slot < current:
            self._slot += 1
            for session in self._wheel.pop(self._slot, ()):
                if session.slot == self._slot:
                    try:
                        session.check(self.now)
                    except Exception:
                        self._failed(session)
        self.tail.trim(self.now)

    async def _let_go(self) -> None:
        """Unsubscribe from feeds that have nobody here any more; a device that flaps finds its feed still here."""
        while True:
            await asyncio.sleep(LINGER_S)
            await self._drop_empty()

    async def _drop_empty(self) -> None:
        gone = [feed for feed in self._empty if not feed.follows and not feed.pins]
        self._empty.clear()
        for feed in gone:
            del self.feeds[feed.name]
            if feed.entries:
                self.tail.drop(feed.entries)
        if gone:
            with contextlib.suppress(BusUnavailable):
                await self.bus.unsubscribe([feed.name for feed in gone])

    # Between devices and nodes

    def displaced(self, newer: Presence) -> None:
        """Something else stands for this device: end its older sessions here. Who has not entered yet will be newer."""
        code, reason = (
            (4409, "a newer session of this device") if newer.session else (4410, "the device was signed out")
        )
        for session in (*self.sessions_of(newer.account), *self.joining):
            if (session.account, session.device) == (newer.account, newer.device) and 0 < session.entered < newer.since:
                session.close(code, reason)

    def share_seen(self, origin: str, account: str, feed: str, offsets: Sequence[int]) -> None:
        """Another device of the account showed these events: tell those that are here."""
        frames: dict[object, bytes] = {}
        for session in self.sessions_of(account):
            if session.id == origin or not session.open or session.find(feed) is None:
                continue
            frame = frames.get(session.codec)
            if frame is None:
                frame = frames[session.codec] = session.codec.message_frame(messages.seen(feed, offsets))
            session.out.write(frame)

    def heads_of(self, follows: Iterable[Follow]) -> Mapping[str, int]:
        return {follow.feed.name: follow.feed.checked for follow in follows}
