"""What every store must do (`gateway/store/base.py`), tried on each of them. Each test is named after its sentence.

A new backend joins by one more class with the three methods of `Backend`.
"""

import asyncio
import hashlib
import json
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import pytest

from gateway.errors import ConfigError, StoreUnavailable
from gateway.store.base import (
    HISTORY_BYTES,
    MAX_DEVICES,
    AgencyKey,
    Conflict,
    CursorSave,
    Device,
    Draft,
    Filter,
    Head,
    Join,
    Joined,
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
    Store,
    Stored,
    TooManyDevices,
    Trace,
)
from gateway.store.memory import MemoryStore
from gateway.store.postgresql import PostgresqlStore
from gateway.store.sqlite import SqliteStore, restore
from tests import postgresql_server

NOW = 1_700_000_000.125
ANN = "account:ann"


class Backend(Protocol):
    """One kind of store with one set of data."""

    async def open(self) -> Store:
        """One more store on the same data, open; as another process would have it."""

    async def restored(self) -> Store:
        """The same data as a restore leaves it, with a new epoch. No store may be open before."""

    async def close(self) -> None:
        """All that were opened."""


class Memory:
    """Several stores on one data are one store here: nobody else can reach it."""

    def __init__(self, path: Path) -> None:
        self.store = MemoryStore()

    async def open(self) -> Store:
        await self.store.open()
        return self.store

    async def restored(self) -> Store:
        self.store.epoch += "+"
        return await self.open()

    async def close(self) -> None:
        await self.store.close()


class Sqlite:
    def __init__(self, path: Path) -> None:
        self.path = path / "vestnik.db"
        self.opened: list[SqliteStore] = []

    async def open(self) -> Store:
        store = SqliteStore(self.path)
        await store.open()
        self.opened.append(store)
        return store

    async def restored(self) -> Store:
        self.opened[0] = store = SqliteStore(self.path)
        await store.open()
        await store.backup(str(self.path.with_name("backup")))
        await store.close()
        restore(self.path.with_name("backup"), self.path)
        return await self.open()

    async def close(self) -> None:
        for store in self.opened:
            await store.close()


class Postgresql:
    """An empty database on the server that all tests share. A restore is that of a dump."""

    def __init__(self, path: Path) -> None:
        self.server = postgresql_server.shared()
        self.database = self.server.empty()
        self.opened: list[PostgresqlStore] = []

    async def open(self) -> Store:
        store = PostgresqlStore(self.server.url(self.database))
        await store.open()
        self.opened.append(store)
        return store

    async def restored(self) -> Store:
        dump = self.server.directory / f"{self.database}.dump"
        copy = self.server.database()
        self.server.run("pg_dump", "--format=custom", f"--file={dump}", "--dbname", self.server.local(self.database))
        self.server.run("pg_restore", "--dbname", self.server.local(copy), str(dump))
        self.database = copy
        return await self.open()

    async def close(self) -> None:
        for store in self.opened:
            await store.close()


@pytest.fixture(params=[Memory, Sqlite, Postgresql], ids=["memory", "sqlite", "postgresql"])
async def backend(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Backend]:
    backend = request.param(tmp_path)
    yield backend
    await backend.close()


@pytest.fixture
async def store(backend: Backend) -> Store:
    return await backend.open()


def draft(id: str, feed: str = ANN, *, text: str = "", **more: Any) -> Draft:
    event = json.dumps({"id": id, "text": text}, separators=(",", ":"), ensure_ascii=False).encode()
    return replace(
        Draft(
            feed=feed,
            key=hashlib.blake2b(id.encode(), digest_size=16).digest(),
            digest=hashlib.sha256(event).digest(),
            event=event,
            type="gov.notice.sent",
            status=None,
            time=NOW,
            priority=2,
        ),
        **more,
    )


def key(id: str) -> bytes:
    return draft(id).key


def thing(id: str, name: str, sequence: int, feed: str = ANN) -> Draft:
    digest = hashlib.blake2b(f"{feed} {name}".encode(), digest_size=16).digest()
    return draft(id, feed, thing=digest, sequence=sequence)


async def fill(store: Store, count: int, feed: str = ANN, now: float = NOW) -> list[Stored]:
    return stored(await store.append([draft(f"{feed}/{now}/{n}", feed) for n in range(1, count + 1)], now))


def stored(outcomes: Sequence[Outcome]) -> list[Stored]:
    assert all(isinstance(outcome, Stored) for outcome in outcomes)
    return [outcome for outcome in outcomes if isinstance(outcome, Stored)]


async def page(store: Store, feed: str = ANN, after: int = 0, **more: int) -> Page:
    [found] = await store.read([Range(feed, after, **more)])
    return found


def offsets(found: Page) -> list[int]:
    return [row.offset for row in found.rows]


def ids(found: Page) -> list[Any]:
    return [json.loads(row.event)["id"] if row.event is not None else None for row in found.rows]


# Events


async def test_offsets_begin_at_1_and_go_on_without_holes_in_each_feed(store: Store) -> None:
    outcomes = stored(await store.append([draft("a"), draft("b", "agency:tax"), draft("c")], NOW))
    assert [(o.feed, o.offset, o.duplicate) for o in outcomes] == [
        (ANN, 1, False),
        ("agency:tax", 1, False),
        (ANN, 2, False),
    ]
    assert [o.offset for o in stored(await store.append([draft("d"), draft("e", "agency:tax")], NOW))] == [3, 2]
    assert {o.epoch for o in outcomes} == {store.epoch}


async def test_seq_numbers_commits_of_the_whole_store_rising(store: Store) -> None:
    first = stored(await store.append([draft("a"), draft("b", "agency:tax")], NOW))
    second = stored(await store.append([draft("c")], NOW))
    seqs = [o.seq for o in first + second]
    assert seqs == sorted(set(seqs))


async def test_append_of_nothing_is_nothing(store: Store) -> None:
    assert await store.append([], NOW) == []


async def test_recordedtime_is_the_last_member_of_each_event(store: Store) -> None:
    [outcome] = stored(await store.append([draft("a", text="Ждём «вас» \U0001f4ec")], NOW))
    expected = '{"id":"a","text":"Ждём «вас» \U0001f4ec","recordedtime":"2023-11-14T22:13:20.125Z"}'.encode()
    assert outcome.row == Row(1, expected, 2, NOW)
    assert (await page(store)).rows == [outcome.row]


async def test_many_events_of_many_feeds_in_one_append(store: Store) -> None:
    drafts = [draft(f"{n}", f"account:{n % 300}") for n in range(1000)]
    outcomes = stored(await store.append(drafts, NOW))
    assert [o.offset for o in outcomes] == [n // 300 + 1 for n in range(1000)]
    pages = await store.read([Range(f"account:{n}", 0) for n in range(300)])
    assert [ids(p) for p in pages] == [[str(n + 300 * k) for k in range(4) if n + 300 * k < 1000] for n in range(300)]


async def test_a_repeat_is_recognised_and_gets_the_first_answer(store: Store) -> None:
    [first] = stored(await store.append([draft("a")], NOW))
    [again] = stored(await store.append([draft("a")], NOW + 60))
    assert again == replace(first, duplicate=True)
    assert (await page(store)).head == 1


async def test_drafts_of_one_batch_that_repeat_each_other(store: Store) -> None:
    a, b = draft("a"), draft("b")
    outcomes = stored(await store.append([a, b, a, a], NOW))
    assert [(o.offset, o.duplicate) for o in outcomes] == [(1, False), (2, False), (1, True), (1, True)]
    assert outcomes[2].row == outcomes[0].row
    assert (await page(store)).head == 2


async def test_the_same_name_with_other_content_is_a_conflict_and_writes_nothing(store: Store) -> None:
    await store.append([draft("0"), draft("a")], NOW)
    assert await store.append([draft("a", text="other")], NOW) == [Conflict(2)]
    outcomes = await store.append([draft("b"), draft("b", text="other"), draft("c")], NOW)
    assert isinstance(outcomes[0], Stored)
    assert outcomes[1] == Conflict(3)
    assert isinstance(outcomes[2], Stored)
    assert ids(await page(store)) == ["0", "a", "b", "c"]


async def test_a_lower_sequence_is_stale_and_an_equal_one_is_not(store: Store) -> None:
    await store.append([thing("a", "car", 5)], NOW)
    assert await store.append([thing("b", "car", 4)], NOW) == [Stale(5)]
    assert stored(await store.append([thing("c", "car", 5), thing("d", "car", 9)], NOW))[1].offset == 3
    assert await store.append([thing("e", "car", 8)], NOW) == [Stale(9)]
    assert ids(await page(store)) == ["a", "c", "d"]


async def test_staleness_inside_one_batch(store: Store) -> None:
    outcomes = await store.append([thing("a", "car", 2), thing("b", "car", 1), thing("c", "car", 3)], NOW)
    assert [type(o) for o in outcomes] == [Stored, Stale, Stored]
    assert outcomes[1] == Stale(2)


async def test_staleness_is_of_one_thing_of_one_feed(store: Store) -> None:
    await store.append([thing("a", "car", 5), draft("x")], NOW)
    drafts = [thing("b", "house", 1), thing("c", "car", 1, "account:bob"), draft("d")]
    assert len(stored(await store.append(drafts, NOW))) == 3


async def test_negative_sequences_are_numbers_too(store: Store) -> None:
    await store.append([thing("a", "car", -3)], NOW)
    assert await store.append([thing("b", "car", -4)], NOW) == [Stale(-3)]
    assert len(stored(await store.append([thing("c", "car", 0)], NOW))) == 1
    assert await store.append([thing("d", "car", -1)], NOW) == [Stale(0)]


async def test_duplicates_are_recognised_before_staleness(store: Store) -> None:
    old, new = thing("a", "car", 1), thing("b", "car", 2)
    await store.append([old, new], NOW)
    [again] = stored(await store.append([old], NOW))
    assert (again.offset, again.duplicate) == (1, True)
    assert await store.append([replace(old, digest=bytes(32))], NOW) == [Conflict(1)]


async def test_read_gives_one_page_for_each_range_in_order(store: Store) -> None:
    await fill(store, 5)
    await fill(store, 3, "agency:tax")
    pages = await store.read(
        [Range("agency:tax", 1), Range(ANN, 0, limit=2), Range("account:nobody", 0), Range(ANN, 4), Range(ANN, 5)]
    )
    assert [(p.feed, p.oldest, p.head, offsets(p)) for p in pages] == [
        ("agency:tax", 1, 3, [2, 3]),
        (ANN, 1, 5, [1, 2]),
        ("account:nobody", 1, 0, []),
        (ANN, 1, 5, [5]),
        (ANN, 1, 5, []),
    ]


async def test_read_of_nothing_and_past_the_head(store: Store) -> None:
    assert await store.read([]) == []
    await fill(store, 2)
    assert (await page(store, after=99)) == Page(ANN, 1, 2, [])


async def test_a_page_keeps_to_its_bytes_but_has_always_one(store: Store) -> None:
    await store.append([draft(f"{n}", text="x" * 1000) for n in range(10)], NOW)
    size = len((await page(store)).rows[0].event or b"")
    assert offsets(await page(store, max_bytes=3 * size)) == [1, 2, 3]
    assert offsets(await page(store, max_bytes=3 * size - 1)) == [1, 2]
    assert offsets(await page(store, max_bytes=1)) == [1]
    assert offsets(await page(store, after=7, max_bytes=1)) == [8]
    pages = await store.read([Range(ANN, 0, max_bytes=2 * size), Range(ANN, 5, max_bytes=3 * size)])
    assert [offsets(p) for p in pages] == [[1, 2], [6, 7, 8]]


async def test_events_of_any_text_come_back_as_they_are(store: Store) -> None:
    texts = ["", " ", "a\nb\r\t\x1e\x00\x7f", "пробел в тексте", '"\\/', "\u2028\ufeff", "\U0001f4ec" * 10_000]
    await store.append([draft(f"{n}", text=text) for n, text in enumerate(texts)], NOW)
    rows = (await page(store, max_bytes=1 << 20)).rows
    assert [json.loads(row.event or b"")["text"] for row in rows] == texts


async def test_rows_carry_priority_and_time_of_commit(store: Store) -> None:
    await store.append([draft("a", priority=0)], NOW)
    await store.append([draft("b", priority=3)], NOW + 0.000001)
    assert [(row.priority, row.recorded) for row in (await page(store)).rows] == [(0, NOW), (3, NOW + 0.000001)]


async def test_heads_of_every_feed_asked(store: Store) -> None:
    await fill(store, 3)
    assert await store.heads([ANN, "agency:none"]) == {ANN: Head(1, 3), "agency:none": Head(1, 0)}
    assert await store.heads([]) == {}


# History


async def history(store: Store, limit: int = 3, filter: Filter | None = None, **more: Any) -> list[list[int]]:
    """Offsets of all pages, each as it came. `after` or `before` says where to begin."""
    rising = more.get("after") is not None
    args: dict[str, Any] = {"after": None, "before": None, **more}
    pages = []
    for _ in range(100):
        found, following = await store.history(ANN, limit=limit, filter=filter or Filter(), **args)
        assert len(found.rows) <= limit
        pages.append(offsets(found))
        if following is None:
            return pages
        args["after" if rising else "before"] = following
    raise AssertionError("the history has no end")


async def test_history_is_newest_first_and_oldest_first_with_after(store: Store) -> None:
    await fill(store, 7)
    assert await history(store) == [[7, 6, 5], [4, 3, 2], [1]]
    assert await history(store, before=6) == [[5, 4, 3], [2, 1]]
    assert await history(store, after=0) == [[1, 2, 3], [4, 5, 6], [7]]
    assert await history(store, after=3) == [[4, 5, 6], [7]]
    assert await history(store, after=2, before=5) == [[3, 4]]


async def test_history_at_its_ends(store: Store) -> None:
    assert await history(store) == [[]]
    assert await history(store, after=0) == [[]]
    await fill(store, 3)
    assert await history(store) == [[3, 2, 1]]
    assert await history(store, after=3) == [[]]
    assert await history(store, after=99) == [[]]
    assert await history(store, before=1) == [[]]
    assert await history(store, before=99) == [[3, 2, 1]]
    found, _ = await store.history(ANN, after=None, before=None, limit=1, filter=Filter())
    assert (found.feed, found.oldest, found.head) == (ANN, 1, 3)
    assert found.rows == (await page(store)).rows[2:]


async def mixed(store: Store) -> None:
    await store.append(
        [
            draft("1", type="gov.status.changed", status="checking", time=NOW),
            draft("2", type="gov.notice.sent", time=NOW + 10),
            draft("3", type="gov.status.changed", status="done", time=NOW + 20),
            draft("4", type="gov.record.changed", time=NOW + 30),
            draft("5", type="gov.status.changed", status="checking", time=NOW + 40),
        ],
        NOW + 100,
    )


async def test_history_filters(store: Store) -> None:
    await mixed(store)

    async def found(**more: Any) -> list[int]:
        return [offset for found in await history(store, 10, Filter(**more), after=0) for offset in found]

    assert await found(types=["gov.status.changed"]) == [1, 3, 5]
    assert await found(types={"gov.notice.sent", "gov.record.changed"}) == [2, 4]
    assert await found(statuses=["checking"]) == [1, 5]
    assert await found(statuses=["checking", "done"], types=["gov.status.changed"]) == [1, 3, 5]
    assert await found(statuses=["checking"], types=["gov.notice.sent"]) == []
    assert await found(start=NOW + 10) == [2, 3, 4, 5]
    assert await found(end=NOW + 10) == [1]
    assert await found(start=NOW + 10, end=NOW + 30, types=["gov.status.changed"]) == [3]


async def test_erased_events_match_only_an_empty_filter(store: Store) -> None:
    await mixed(store)
    await store.erase(ANN, 3, eraser("e"), NOW + 200)
    assert await history(store, 10, after=0) == [[1, 2, 3, 4, 5, 6]]
    assert await history(store, 10, Filter(types=["gov.status.changed"]), after=0) == [[1, 5]]
    assert await history(store, 10, Filter(statuses=["done"]), after=0) == [[]]
    assert await history(store, 10, Filter(end=NOW + 50), after=0) == [[1, 2, 4, 5, 6]]


async def test_history_looks_at_a_bounded_number_of_events_and_says_where_to_go_on(store: Store) -> None:
    await store.append([draft(f"{n}", type="rare" if n in (3, 17) else "common") for n in range(1, 21)], NOW)
    rare = Filter(types=["rare"])
    assert await history(store, 3, rare, max_scan=5) == [[17], [], [], [3]]
    assert await history(store, 3, rare, after=0, max_scan=5) == [[3], [], [], [17]]
    found, following = await store.history(ANN, after=None, before=16, limit=3, filter=rare, max_scan=5)
    assert (found.rows, following) == ([], 11)


async def test_history_page_keeps_to_its_bytes_but_has_always_one(store: Store) -> None:
    size = HISTORY_BYTES // 2
    await store.append([draft(f"{n}", text="x" * size) for n in range(1, 4)], NOW)
    assert await history(store) == [[3], [2], [1]]
    assert await history(store, after=0) == [[1], [2], [3]]


# The way to the bus


async def test_what_is_committed_is_unpublished_until_published_names_it(store: Store) -> None:
    first = stored(await store.append([draft("a"), draft("b", "agency:tax")], NOW))
    second = stored(await store.append([draft("c")], NOW + 1))
    assert await store.unpublished(NOW + 2, 100) == first + second
    assert await store.unpublished(NOW + 1, 100) == first
    assert await store.unpublished(NOW + 2, 1) == first[:1]
    await store.published([first[1].seq, 999_999, first[1].seq])
    await store.published([])
    assert await store.unpublished(NOW + 2, 100) == [first[0], *second]
    await store.published([o.seq for o in first + second])
    assert await store.unpublished(NOW + 2, 100) == []


async def test_repeats_are_not_unpublished_again(store: Store) -> None:
    [outcome] = stored(await store.append([draft("a")], NOW))
    await store.published([outcome.seq])
    await store.append([draft("a")], NOW)
    assert await store.unpublished(NOW + 1, 100) == []


async def test_unpublished_shows_what_was_erased_without_its_bytes(store: Store) -> None:
    [one] = stored(await store.append([draft("a")], NOW))
    erased = await store.erase(ANN, 1, eraser("e"), NOW)
    assert await store.unpublished(NOW + 1, 100) == [replace(one, row=replace(one.row, event=None)), erased]


# Devices and cursors


def hello(device: str = "phone", *feeds: str, account: str = "ann", **more: Any) -> Join:
    return replace(Join(account, device, (f"account:{account}", *feeds), now=NOW), **more)


async def joined(store: Store, join: Join) -> Joined:
    [result] = await store.join([join])
    assert isinstance(result, Joined)
    return result


async def ack(store: Store, offset: int, device: str = "phone", feed: str = ANN, now: float = NOW, **more: Any) -> None:
    await store.save([replace(CursorSave("ann", device, feed, store.epoch, offset, now), **more)])


async def start(store: Store, device: str = "phone", feed: str = ANN) -> Start:
    """Where this feed starts for a device that brings nothing."""
    result = await joined(store, hello(device, *(() if feed == ANN else (feed,))))
    return next(start for start in result.starts if start.feed == feed)


async def test_the_first_device_starts_before_everything_that_nobody_received(store: Store) -> None:
    await fill(store, 3)
    assert await joined(store, hello()) == Joined(store.epoch, True, [Start(ANN, 3, 0)])


async def test_a_known_device_starts_at_its_cursor(store: Store) -> None:
    await fill(store, 5)
    await joined(store, hello())
    await ack(store, 3)
    assert await joined(store, hello()) == Joined(store.epoch, False, [Start(ANN, 5, 3)])


async def test_start_positions_are_stored_before_they_are_announced(store: Store) -> None:
    await fill(store, 2, "agency:tax")
    assert (await start(store, feed="agency:tax")).offset == 2
    await fill(store, 3, "agency:tax", NOW + 1)
    assert await joined(store, hello("phone", "agency:tax")) == Joined(
        store.epoch, False, [Start(ANN, 0, 0), Start("agency:tax", 5, 2)]
    )


async def test_a_new_device_starts_after_the_highest_offset_that_any_device_acknowledged(store: Store) -> None:
    await fill(store, 9)
    for device, offset in (("phone", 4), ("tablet", 7), ("laptop", 5)):
        await joined(store, hello(device))
        await ack(store, offset, device)
    assert await joined(store, hello("watch")) == Joined(store.epoch, True, [Start(ANN, 9, 7)])
    assert await start(store, "phone") == Start(ANN, 9, 4)


async def test_an_agency_feed_not_followed_before_starts_at_its_head(store: Store) -> None:
    await fill(store, 4, "agency:tax")
    await joined(store, hello("tablet", "agency:tax"))
    await joined(store, hello())
    result = await joined(store, hello("phone", "agency:tax", "agency:none"))
    assert result.starts == [Start(ANN, 0, 0), Start("agency:tax", 4, 4), Start("agency:none", 0, 0)]


async def test_resume_outranks_the_stored_cursor_and_counts_as_an_ack(store: Store) -> None:
    await fill(store, 9)
    await joined(store, hello())
    await ack(store, 3)
    result = await joined(store, hello(resume={ANN: (store.epoch, 6)}))
    assert result == Joined(store.epoch, False, [Start(ANN, 9, 6)])
    assert (await start(store)).offset == 6
    assert (await start(store, "tablet")).offset == 6, "a new device starts after the highest acknowledgement"
    assert await store.receipts([key(f"{ANN}/{NOW}/6"), key(f"{ANN}/{NOW}/7")]) == [
        Receipt("delivered", NOW, None),
        Receipt("pending", None, None),
    ]


async def test_resume_behind_the_cursor_replays_and_moves_nothing_back(store: Store) -> None:
    await fill(store, 9)
    await joined(store, hello())
    await ack(store, 8)
    assert (await joined(store, hello(resume={ANN: (store.epoch, 2)}))).starts == [Start(ANN, 9, 2)]
    assert (await start(store)).offset == 8


async def test_a_device_never_seen_with_a_usable_resume_is_not_new(store: Store) -> None:
    await fill(store, 5)
    result = await joined(store, hello(resume={ANN: (store.epoch, 5)}))
    assert result == Joined(store.epoch, False, [Start(ANN, 5, 5)])


async def test_resume_of_another_feed_says_nothing_about_the_accounts_own(store: Store) -> None:
    await fill(store, 5, "agency:tax")
    result = await joined(
        store, hello("phone", "agency:tax", resume={"agency:tax": (store.epoch, 2), "agency:law": (store.epoch, 1)})
    )
    assert result == Joined(store.epoch, True, [Start(ANN, 0, 0), Start("agency:tax", 5, 2)])


@pytest.mark.parametrize("resume", [("another life", 2), (None, 6)], ids=["epoch", "past the head"])
async def test_an_unusable_resume_is_a_resync_and_moves_no_cursor(store: Store, resume: tuple[Any, int]) -> None:
    await fill(store, 5)
    await joined(store, hello())
    await ack(store, 3)
    position = (resume[0] or store.epoch, resume[1])
    result = await joined(store, hello(resume={ANN: position}))
    assert result == Joined(store.epoch, False, [Start(ANN, 5, 5, "epoch")])
    assert (await start(store)).offset == 3
    assert (await start(store, "tablet")).offset == 3


async def test_a_new_device_with_an_unusable_resume_stays_new_until_it_has_a_position(store: Store) -> None:
    await fill(store, 5)
    result = await joined(store, hello(resume={ANN: ("another life", 2)}))
    assert result == Joined(store.epoch, True, [Start(ANN, 5, 5, "epoch")])
    assert (await joined(store, hello(resume={ANN: ("another life", 2)}))).new
    await ack(store, 5)
    assert await joined(store, hello()) == Joined(store.epoch, False, [Start(ANN, 5, 5)])


async def test_fresh_is_treated_as_new_and_ignores_resume(store: Store) -> None:
    await fill(store, 9)
    await fill(store, 3, "agency:tax")
    await fill(store, 3, "agency:law")
    await joined(store, hello("phone", "agency:tax", "agency:law"))
    await joined(store, hello("tablet"))
    await ack(store, 6, "tablet")
    await ack(store, 4)
    await fill(store, 2, "agency:tax", NOW + 1)
    await fill(store, 2, "agency:law", NOW + 1)
    result = await joined(store, hello("phone", "agency:tax", fresh=True, resume={ANN: (store.epoch, 2)}))
    assert result == Joined(store.epoch, True, [Start(ANN, 9, 6), Start("agency:tax", 5, 5)])
    assert (await start(store)).offset == 6
    assert (await start(store, feed="agency:law")).offset == 5, "followed anew"
    assert [d.device for d in await store.devices("ann")] == ["phone", "tablet"]


async def test_fresh_never_takes_the_accounts_cursor_back(store: Store) -> None:
    await fill(store, 9)
    await joined(store, hello(fresh=True))
    await ack(store, 7)
    await joined(store, hello(fresh=True))
    assert (await start(store)).offset == 7


async def test_joins_of_one_call_see_each_other_in_order(store: Store) -> None:
    await fill(store, 5)
    await fill(store, 4, "agency:tax")
    results = await store.join(
        [
            hello("phone", "agency:tax"),
            hello("phone", resume={ANN: (store.epoch, 4)}),
            hello("tablet"),
            hello("phone", now=NOW + 5, agent="app/2"),
            hello("tablet", account="bob"),
            hello("phone", "agency:tax", fresh=True),
            hello("phone", "agency:tax"),
        ]
    )
    assert [(r.new, [s.offset for s in r.starts]) for r in results if isinstance(r, Joined)] == [
        (True, [0, 4]),
        (False, [4]),
        (True, [4]),
        (False, [4]),
        (True, [0]),
        (True, [4, 4]),
        (False, [4, 4]),
    ]
    assert await store.devices("ann") == [Device("phone", "app/2", NOW, NOW + 5), Device("tablet", None, NOW, NOW)]
    assert await store.join([]) == []


async def test_join_touches_last_seen_and_keeps_agent(store: Store) -> None:
    await joined(store, hello(agent="app/1"))
    await joined(store, hello(now=NOW + 9))
    assert await store.devices("ann") == [Device("phone", "app/1", NOW, NOW + 9)]
    await joined(store, hello(now=NOW + 1, agent="app/2 «бета»"))
    assert await store.devices("ann") == [Device("phone", "app/2 «бета»", NOW, NOW + 9)]


async def test_one_agent_that_no_one_can_write_harms_no_one(store: Store) -> None:
    results = await store.join([hello("a", agent="\ud800"), hello("b", agent="x\x00y")])
    assert all(isinstance(result, Joined) for result in results)
    assert [d.device for d in await store.devices("ann")] == ["a", "b"]


async def test_the_one_longest_away_that_is_not_connected_is_forgotten_with_its_cursors(store: Store) -> None:
    await fill(store, 5)
    for n in range(MAX_DEVICES):
        await joined(store, hello(f"d{n}", now=NOW + n))
        await ack(store, n % 5, f"d{n}")
    result = await joined(store, hello("more", connected=frozenset({"d0", "d2"}), now=NOW + 50))
    assert result.forgotten == ("d1",)
    assert [d.device for d in await store.devices("ann")] == ["d0", *(f"d{n}" for n in range(2, 10)), "more"]
    assert (await joined(store, hello("d1", now=NOW + 60))).new
    assert (await joined(store, hello("d3", now=NOW + 60))).starts == [Start(ANN, 5, 3)]


async def test_a_known_device_needs_no_room(store: Store) -> None:
    for n in range(MAX_DEVICES):
        await joined(store, hello(f"d{n}"))
    assert (await joined(store, hello("d7", connected=frozenset({"d1"})))).forgotten == ()
    assert len(await store.devices("ann")) == MAX_DEVICES


async def test_too_many_devices_when_all_are_connected_and_nothing_is_written(store: Store) -> None:
    names = [f"d{n}" for n in range(MAX_DEVICES)]
    for name in names:
        await joined(store, hello(name))
    results = await store.join([hello("more", connected=frozenset(names)), hello("phone", account="bob")])
    assert isinstance(results[0], TooManyDevices)
    assert isinstance(results[1], Joined)
    assert [d.device for d in await store.devices("ann")] == names


async def test_devices_that_join_in_the_same_call_are_not_forgotten_for_each_other(store: Store) -> None:
    results = await store.join([hello(f"d{n}", now=NOW - n) for n in range(MAX_DEVICES + 2)])
    assert [type(r) for r in results] == [Joined] * MAX_DEVICES + [TooManyDevices] * 2


async def test_cursors_are_a_maximum(store: Store) -> None:
    await fill(store, 9)
    await joined(store, hello())
    await ack(store, 6)
    await ack(store, 4)
    assert (await start(store)).offset == 6
    await store.save([CursorSave("ann", "phone", ANN, store.epoch, n, NOW) for n in (7, 8, 5)])
    assert (await start(store)).offset == 8
    assert (await start(store, "tablet")).offset == 8
    await store.save([])


async def test_a_save_past_the_head_counts_as_the_head(store: Store) -> None:
    await fill(store, 3)
    await joined(store, hello())
    await ack(store, 99)
    assert await start(store) == Start(ANN, 3, 3)
    assert (await start(store, "tablet")).offset == 3


async def test_a_save_of_another_epoch_is_ignored(store: Store) -> None:
    await fill(store, 3)
    await joined(store, hello())
    await ack(store, 2, epoch="another life")
    assert await start(store) == Start(ANN, 3, 0)
    assert (await start(store, "tablet")).offset == 0


async def test_saving_never_brings_a_forgotten_device_back(store: Store) -> None:
    await fill(store, 3)
    await joined(store, hello())
    assert await store.forget("ann", "phone")
    await ack(store, 2)
    await store.touch([("ann", "phone", NOW + 5)])
    assert await store.devices("ann") == []
    result = await joined(store, hello())
    assert result.new
    assert result.starts == [Start(ANN, 3, 0)], "its acknowledgement was ignored"


async def test_a_save_in_an_agency_feed_or_anothers_feed_is_no_delivery(store: Store) -> None:
    await fill(store, 3)
    await fill(store, 3, "agency:tax")
    await joined(store, hello("phone", "agency:tax"))
    await joined(store, hello("phone", account="bob"))
    await ack(store, 2, feed="agency:tax")
    await ack(store, 2, account="bob")
    assert (await start(store, "tablet", "agency:tax")).offset == 3
    assert (await start(store, "tablet")).offset == 0


async def test_a_save_in_an_unknown_feed_is_ignored(store: Store) -> None:
    await joined(store, hello())
    await ack(store, 2, feed="agency:none")
    assert await start(store, feed="agency:none") == Start("agency:none", 0, 0)


async def test_touch_moves_last_seen_forward_only(store: Store) -> None:
    await joined(store, hello())
    await store.touch([("ann", "phone", NOW + 7), ("ann", "phone", NOW + 3), ("ann", "none", NOW), ("bob", "x", NOW)])
    await store.touch([("ann", "phone", NOW - 7)])
    await store.touch([])
    assert await store.devices("ann") == [Device("phone", None, NOW, NOW + 7)]
    assert await store.devices("bob") == []


async def test_follow_and_unfollow_one_more_feed(store: Store) -> None:
    await fill(store, 4, "agency:tax")
    await joined(store, hello())
    assert await store.follow("ann", "phone", "agency:tax", None, NOW) == Start("agency:tax", 4, 4)
    await fill(store, 2, "agency:tax", NOW + 1)
    assert await store.follow("ann", "phone", "agency:tax", None, NOW) == Start("agency:tax", 6, 4)
    assert await store.follow("ann", "phone", "agency:tax", (store.epoch, 5), NOW) == Start("agency:tax", 6, 5)
    assert await store.follow("ann", "phone", "agency:tax", (store.epoch, 2), NOW) == Start("agency:tax", 6, 2)
    assert await store.follow("ann", "phone", "agency:tax", ("x", 2), NOW) == Start("agency:tax", 6, 6, "epoch")
    assert (await start(store, feed="agency:tax")).offset == 5
    await store.unfollow("ann", "phone", "agency:tax")
    await store.unfollow("ann", "phone", "agency:tax")
    assert (await start(store, feed="agency:tax")).offset == 6


async def test_follow_of_an_unknown_device_stores_nothing(store: Store) -> None:
    await fill(store, 4, "agency:tax")
    assert await store.follow("ann", "phone", "agency:tax", (store.epoch, 1), NOW) == Start("agency:tax", 4, 1)
    await store.unfollow("ann", "phone", "agency:tax")
    assert await store.devices("ann") == []
    assert (await start(store, feed="agency:tax")).offset == 4


async def test_forget_takes_the_device_and_its_cursors(store: Store) -> None:
    await fill(store, 5)
    await fill(store, 5, "agency:tax")
    await joined(store, hello("phone", "agency:tax"))
    await joined(store, hello("tablet"))
    await ack(store, 2)
    assert await store.forget("ann", "phone") is True
    assert await store.forget("ann", "phone") is False
    assert await store.forget("bob", "tablet") is False
    assert [d.device for d in await store.devices("ann")] == ["tablet"]
    await fill(store, 1, "agency:tax", NOW + 1)
    assert await joined(store, hello("phone", "agency:tax")) == Joined(
        store.epoch, True, [Start(ANN, 5, 2), Start("agency:tax", 6, 6)]
    )


# Receipts


async def test_receipts_have_the_first_time_of_each(store: Store) -> None:
    await store.append([draft(id) for id in "abcd"], NOW)
    await joined(store, hello())
    await joined(store, hello("tablet"))
    await ack(store, 1, now=NOW + 1)
    await ack(store, 3, "tablet", now=NOW + 2)
    await ack(store, 2, now=NOW + 3)
    await store.seen([(ANN, [1, 2], NOW + 4), (ANN, [2, 3], NOW + 5)])
    assert await store.receipts([key(id) for id in "abcd"]) == [
        Receipt("seen", NOW + 1, NOW + 4),
        Receipt("seen", NOW + 2, NOW + 4),
        Receipt("seen", NOW + 2, NOW + 5),
        Receipt("pending", None, None),
    ]


async def test_receipts_of_unknown_and_public_events_are_none(store: Store) -> None:
    await store.append([draft("a"), draft("p", "agency:tax")], NOW)
    await joined(store, hello("phone", "agency:tax"))
    await ack(store, 1, feed="agency:tax")
    assert await store.receipts([key("p"), key("none"), key("a"), key("a")]) == [
        None,
        None,
        Receipt("pending", None, None),
        Receipt("pending", None, None),
    ]
    assert await store.receipts([]) == []


async def test_what_was_seen_was_delivered_at_that_time_at_the_latest(store: Store) -> None:
    await store.append([draft("a")], NOW)
    await joined(store, hello())
    await store.seen([(ANN, [1], NOW + 3)])
    assert await store.receipts([key("a")]) == [Receipt("seen", NOW + 3, NOW + 3)]
    await ack(store, 1, now=NOW + 4)
    assert await store.receipts([key("a")]) == [Receipt("seen", NOW + 3, NOW + 3)]


async def test_seen_keeps_what_is_there_to_be_seen(store: Store) -> None:
    await fill(store, 5)
    await store.seen([(ANN, [2, 4, 4, 6, 99, 0, -1], NOW), ("account:nobody", [1], NOW), (ANN, [], NOW)])
    await store.seen([])
    assert await store.seen_offsets(ANN) == {2, 4}
    assert await store.seen_offsets("account:nobody") == set()
    await store.erase(ANN, 3, eraser("e"), NOW)
    await store.seen([(ANN, [3], NOW)])
    assert await store.seen_offsets(ANN) == {2, 4}


# Erasure, retention, proof


class eraser:
    """`make` of an erasure, which remembers what it was asked."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.ranges: list[list[tuple[int, int]]] = []

    def __call__(self, ranges: Sequence[tuple[int, int]]) -> Draft:
        self.ranges.append(list(ranges))
        return draft(self.id, type="gov.erased", text=str(list(ranges)))


async def test_an_erased_event_keeps_its_offset_and_is_none(store: Store) -> None:
    await fill(store, 3)
    make = eraser("e")
    erased = await store.erase(ANN, 2, make, NOW + 9)
    assert make.ranges == [[(2, 2)]]
    assert erased is not None
    assert (erased.feed, erased.offset, erased.duplicate) == (ANN, 4, False)
    found = await page(store)
    assert [row.event is None for row in found.rows] == [False, True, False, False]
    assert found.rows[1] == Row(2, None, 2, NOW)
    assert found.rows[3] == erased.row
    assert erased.row.recorded == NOW + 9


async def test_erasing_all_names_ranges_and_spares_what_tells_of_erasure(store: Store) -> None:
    await fill(store, 3)
    await store.erase(ANN, 2, eraser("e1"), NOW)
    await fill(store, 2, now=NOW + 1)
    make = eraser("e2")
    assert await store.erase(ANN, None, make, NOW) is not None
    assert make.ranges == [[(1, 1), (3, 3), (5, 6)]]
    assert ids(await page(store)) == [None, None, None, "e1", None, None, "e2"]


async def test_nothing_left_to_erase(store: Store) -> None:
    make = eraser("e")
    assert await store.erase(ANN, None, make, NOW) is None
    assert await store.erase(ANN, 1, make, NOW) is None
    await fill(store, 1)
    assert await store.erase(ANN, 2, make, NOW) is None
    assert await store.erase(ANN, None, eraser("e1"), NOW) is not None
    assert await store.erase(ANN, None, make, NOW) is None
    assert await store.erase(ANN, 1, make, NOW) is None
    assert await store.erase(ANN, 2, make, NOW) is None
    assert make.ranges == []
    assert (await page(store)).head == 2


async def test_erasing_touches_one_feed(store: Store) -> None:
    await fill(store, 2)
    await fill(store, 2, "account:bob")
    await store.erase(ANN, None, eraser("e"), NOW)
    assert None not in ids(await page(store, "account:bob"))


async def test_a_repeat_of_an_erased_event_is_recognised_whatever_its_content(store: Store) -> None:
    await store.append([draft("a")], NOW)
    await store.erase(ANN, 1, eraser("e"), NOW)
    outcomes = stored(await store.append([draft("a"), draft("a", text="other")], NOW + 1))
    assert [(o.offset, o.duplicate, o.row.event) for o in outcomes] == [(1, True, None)] * 2
    assert (await page(store)).head == 2


async def test_an_erased_event_still_counts_for_staleness_and_receipts(store: Store) -> None:
    await store.append([thing("a", "car", 5)], NOW)
    await joined(store, hello())
    await ack(store, 1, now=NOW + 1)
    await store.seen([(ANN, [1], NOW + 2)])
    await store.erase(ANN, 1, eraser("e"), NOW)
    assert await store.append([thing("b", "car", 4)], NOW) == [Stale(5)]
    assert await store.seen_offsets(ANN) == set()
    assert await store.receipts([key("a")]) == [Receipt("delivered", NOW + 1, None)]


async def test_an_erasure_that_cannot_be_told_did_not_happen(store: Store) -> None:
    await fill(store, 2)

    def fails(ranges: Sequence[tuple[int, int]]) -> Draft:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        await store.erase(ANN, None, fails, NOW)
    assert None not in ids(await page(store))


def signed(body: bytes, webhook_id: str = "msg_1") -> Original:
    return Original("tax", "key1", webhook_id, 1_700_000_000, "v1,abc=", body, NOW)


async def test_the_original_of_an_event_can_be_verified_again(store: Store) -> None:
    request = signed(b"[\xff\x00 raw bytes]")
    await store.append([draft("a", original=request), draft("b", original=request, item=1), draft("c")], NOW)
    kept = await store.kept(key("b"))
    assert kept is not None
    assert (kept.feed, kept.offset, kept.item, kept.erased) == (ANN, 2, 1, False)
    assert (kept.agency, kept.key_id, kept.verified) == ("tax", "key1", NOW)
    assert kept.original == request
    assert kept.digest == hashlib.sha256(request.body).digest()
    assert await store.kept(key("c")) is None
    assert await store.kept(key("none")) is None


async def test_a_repeat_leaves_the_first_original(store: Store) -> None:
    first, second = signed(b"first"), signed(b"second", "msg_2")
    await store.append([draft("a", original=first)], NOW)
    await store.append([draft("a", original=second), draft("b", original=second, item=1)], NOW)
    a, b = await store.kept(key("a")), await store.kept(key("b"))
    assert a is not None
    assert a.original == first
    assert b is not None
    assert (b.original, b.item) == (second, 1)


async def test_erasing_one_event_of_a_request_deletes_its_bytes_and_leaves_the_others_their_digest(
    store: Store,
) -> None:
    request, other = signed(b"both"), signed(b"other", "msg_2")
    drafts = [draft("a", original=request), draft("b", original=request, item=1), draft("c", original=other)]
    await store.append(drafts, NOW)
    await store.erase(ANN, 1, eraser("e"), NOW)
    a, b, c = [await store.kept(key(id)) for id in "abc"]
    assert a is not None
    assert (a.erased, a.original) == (True, None)
    assert b is not None
    assert (b.erased, b.original, b.verified) == (False, None, NOW)
    assert b.digest == hashlib.sha256(b"both").digest()
    assert c is not None
    assert c.original == other


async def test_retention_deletes_from_the_old_end_and_keeps_the_head(store: Store) -> None:
    await fill(store, 3)
    await fill(store, 2, now=NOW + 10)
    await fill(store, 1, "account:bob")
    assert await store.retain(NOW + 10) == 4
    assert await store.retain(NOW + 10) == 0
    found = await page(store)
    assert (found.oldest, found.head, offsets(found)) == (4, 5, [4, 5])
    assert await store.heads([ANN, "account:bob"]) == {ANN: Head(4, 5), "account:bob": Head(2, 1)}
    assert (await fill(store, 1, "account:bob", NOW + 11))[0].offset == 2
    assert offsets(await page(store, "account:bob")) == [2]
    assert await history(store, 10) == [[5, 4]]
    assert await history(store, 10, after=0) == [[4, 5]]


async def test_retention_stops_at_the_first_event_that_is_young_enough(store: Store) -> None:
    for n, recorded in enumerate((NOW, NOW + 20, NOW)):  # the clock of the machine went back
        await store.append([draft(f"{n}")], recorded)
    assert await store.retain(NOW + 10) == 1
    assert offsets(await page(store)) == [2, 3]
    assert await store.retain(NOW + 10) == 0
    assert await store.retain(NOW + 21) == 2
    assert await page(store) == Page(ANN, 4, 3, [])


async def test_retention_keeps_to_its_limit_and_goes_on_next_time(store: Store) -> None:
    await fill(store, 700)
    await fill(store, 600, "account:bob")
    assert await store.retain(NOW + 1, limit=650) == 650
    kept = [page.head - page.oldest + 1 for page in await store.read([Range(ANN, 0), Range("account:bob", 0)])]
    assert sum(kept) == 650
    assert await store.retain(NOW + 1) == 650
    assert await store.heads([ANN, "account:bob"]) == {ANN: Head(701, 700), "account:bob": Head(601, 600)}


async def test_retention_of_one_feed_touches_no_other(store: Store) -> None:
    await fill(store, 700)
    await fill(store, 3, "account:bob")
    await fill(store, 1, now=NOW + 10)
    assert await store.retain(NOW + 10, limit=650, feed=ANN) == 650
    assert await store.retain(NOW + 10, feed=ANN) == 50
    assert await store.retain(NOW + 10, feed=ANN) == 0
    assert await store.retain(NOW + 10, feed="account:nobody") == 0
    assert await store.heads([ANN, "account:bob"]) == {ANN: Head(701, 701), "account:bob": Head(1, 3)}


async def test_what_hangs_on_an_event_goes_with_it(store: Store) -> None:
    request = signed(b"request")
    old = replace(thing("a", "car", 5), original=request)
    await store.append([old, thing("b", "house", 5), replace(draft("c"), original=request)], NOW)
    await store.append([thing("d", "house", 6)], NOW + 10)
    await joined(store, hello())
    await ack(store, 4, now=NOW + 11)
    await store.seen([(ANN, [1, 4], NOW + 12)])
    assert await store.retain(NOW + 10) == 3
    assert await store.seen_offsets(ANN) == {4}
    assert await store.kept(key("a")) is None
    assert await store.receipts([key("a"), key("d")]) == [None, Receipt("seen", NOW + 11, NOW + 12)]
    assert [s.seq for s in await store.unpublished(NOW + 99, 10)] == [4]
    assert await store.append([thing("x", "house", 5)], NOW + 13) == [Stale(6)], "its latest event is kept"
    outcomes = stored(await store.append([thing("y", "car", 1), replace(old, digest=bytes(32))], NOW + 13))
    assert [o.offset for o in outcomes] == [5, 6], "thing and name are forgotten with the last event"


async def test_a_request_is_kept_as_long_as_one_of_its_events(store: Store) -> None:
    request = signed(b"request")
    await store.append([draft("a", original=request), draft("b", "account:bob", original=request, item=1)], NOW)
    assert await store.retain(NOW + 1, limit=1) == 1
    left = [kept for id in "ab" if (kept := await store.kept(key(id))) is not None]
    assert [kept.original for kept in left] == [request]


async def test_retention_is_seen_by_those_who_were_away(store: Store) -> None:
    await fill(store, 5)
    await joined(store, hello())
    await ack(store, 2)
    await fill(store, 5, now=NOW + 10)
    await store.retain(NOW + 10)
    assert await start(store) == Start(ANN, 10, 10, "retention")
    assert await start(store) == Start(ANN, 10, 10, "retention"), "a resync moves no cursor"
    assert await joined(store, hello("tablet")) == Joined(store.epoch, True, [Start(ANN, 10, 5)])
    found = await page(store, after=2)
    assert (found.oldest, offsets(found)) == (6, [6, 7, 8, 9, 10])
    await ack(store, 10)
    assert await start(store) == Start(ANN, 10, 10)


async def test_commit_numbers_are_not_given_twice_even_after_all_events_are_gone(store: Store) -> None:
    last = (await fill(store, 3))[-1].seq
    await store.retain(NOW + 1)
    assert (await fill(store, 1, now=NOW + 2))[0].seq > last


# Control


def hmac(id: str, **more: Any) -> AgencyKey:
    return replace(AgencyKey(id, "hmac", b"\x00\xffsecret", NOW), **more)


async def test_agencies_and_their_keys(store: Store) -> None:
    assert await store.agencies() == []
    await store.add_agency_key("tax", hmac("k1"), None, NOW)
    await store.add_agency_key("law", hmac("k1", kind="ed25519"), ["gov.notice.published"], NOW + 1)
    await store.add_agency_key("tax", hmac("k2", created=NOW + 2), ["gov.status.changed", "gov.notice.sent"], NOW + 2)
    await store.add_agency_key("tax", hmac("k0"), None, NOW + 3)
    law, tax = await store.agencies()
    assert (law.code, law.types, law.created) == ("law", ("gov.notice.published",), NOW + 1)
    assert law.keys == (hmac("k1", kind="ed25519"),)
    assert (tax.code, tax.types, tax.created) == ("tax", ("gov.status.changed", "gov.notice.sent"), NOW)
    assert tax.keys == (hmac("k1"), hmac("k2", created=NOW + 2), hmac("k0"))
    await store.add_agency_key("tax", hmac("k4"), [], NOW)
    assert (await store.agencies())[1].types == ()


async def test_a_key_id_is_given_once(store: Store) -> None:
    await store.add_agency_key("tax", hmac("k1"), None, NOW)
    before = await store.revision()
    with pytest.raises(ValueError, match="k1"):
        await store.add_agency_key("tax", hmac("k1", material=b"other"), ["x"], NOW)
    assert await store.revision() == before
    assert (await store.agencies())[0].keys == (hmac("k1"),)


async def test_a_retired_key_stays_to_verify_what_it_signed(store: Store) -> None:
    await store.add_agency_key("tax", hmac("k1"), None, NOW)
    await store.add_agency_key("tax", hmac("k2"), None, NOW)
    assert await store.retire_agency_key("tax", "k1", NOW + 5) is True
    assert await store.retire_agency_key("tax", "k1", NOW + 6) is False
    assert await store.retire_agency_key("tax", "none", NOW) is False
    assert await store.retire_agency_key("none", "k1", NOW) is False
    assert (await store.agencies())[0].keys == (hmac("k1", retired=NOW + 5), hmac("k2"))


async def test_the_latest_revocation_of_the_same_thing_wins(store: Store) -> None:
    await store.revoke(Revocation("sub", "ann", NOW))
    await store.revoke(Revocation("sub", "ann", NOW + 5))
    await store.revoke(Revocation("sub", "ann", NOW + 1))
    await store.revoke(Revocation("device", "ann/phone", NOW))
    await store.revoke(Revocation("sid", "ann", NOW))
    assert sorted(await store.revocations(), key=lambda r: r.kind) == [
        Revocation("device", "ann/phone", NOW),
        Revocation("sid", "ann", NOW),
        Revocation("sub", "ann", NOW + 5),
    ]


async def test_revision_grows_with_every_change_by_whichever_process(backend: Backend) -> None:
    store, other = await backend.open(), await backend.open()
    seen = [await store.revision()]
    await other.add_agency_key("tax", hmac("k1"), None, NOW)
    seen.append(await store.revision())
    await other.retire_agency_key("tax", "k1", NOW)
    seen.append(await store.revision())
    await other.revoke(Revocation("sub", "ann", NOW))
    seen.append(await store.revision())
    assert seen == sorted(set(seen))
    assert await store.agencies() == await other.agencies()
    await other.append([draft("a")], NOW)
    await other.join([hello()])
    assert await store.revision() == seen[-1], "only what is polled changes it"


# Life


async def test_everything_is_there_after_opening_again(backend: Backend) -> None:
    store = await backend.open()
    epoch = store.epoch
    outcomes = await store.append([draft("a"), thing("b", "car", 5)], NOW)
    await joined(store, hello("phone", "agency:tax"))
    await ack(store, 1)
    await store.add_agency_key("tax", hmac("k1"), None, NOW)
    await store.close()
    store = await backend.open()
    assert store.epoch == epoch
    assert await store.unpublished(NOW + 1, 10) == outcomes
    assert await joined(store, hello("phone", "agency:tax")) == Joined(
        epoch, False, [Start(ANN, 2, 1), Start("agency:tax", 0, 0)]
    )
    assert [agency.code for agency in await store.agencies()] == ["tax"]
    assert await store.append([thing("c", "car", 4)], NOW) == [Stale(5)]


async def test_ready_while_open(backend: Backend) -> None:
    store = await backend.open()
    assert await store.ready() is True
    await store.close()
    assert await store.ready() is False


async def test_a_closed_store_is_unavailable(backend: Backend) -> None:
    store = await backend.open()
    await store.close()
    with pytest.raises(StoreUnavailable):
        await store.append([draft("a")], NOW)
    with pytest.raises(StoreUnavailable):
        await store.read([Range(ANN, 0)])
    await store.close()


async def test_a_restored_store_has_another_epoch_and_resyncs_each_device_until_it_acknowledges(
    backend: Backend,
) -> None:
    store = await backend.open()
    old = store.epoch
    await fill(store, 5)
    await fill(store, 5, "agency:tax")
    await joined(store, hello("phone", "agency:tax"))
    await ack(store, 3)
    await store.close()
    store = await backend.restored()
    assert store.epoch != old
    resync = [Start(ANN, 5, 5, "epoch"), Start("agency:tax", 5, 5, "epoch")]
    assert await joined(store, hello("phone", "agency:tax")) == Joined(store.epoch, False, resync)
    assert (await joined(store, hello("phone", "agency:tax", resume={ANN: (old, 5)}))).starts == resync
    await ack(store, 4, epoch=old)
    assert (await start(store)).reason == "epoch"
    await ack(store, 1)
    assert await start(store) == Start(ANN, 5, 1), "a newer epoch replaces, lower or not"
    assert await start(store, "tablet") == Start(ANN, 5, 3)
    assert (await fill(store, 1, now=NOW + 9))[0].epoch == store.epoch
    assert (await page(store)).head == 6


async def test_fresh_after_a_restore_gets_a_cursor_of_the_new_epoch(backend: Backend) -> None:
    store = await backend.open()
    await fill(store, 5)
    await joined(store, hello())
    await ack(store, 4)
    await store.close()
    store = await backend.restored()
    assert await joined(store, hello(fresh=True)) == Joined(store.epoch, True, [Start(ANN, 5, 4)])
    assert await start(store) == Start(ANN, 5, 4)


async def test_two_stores_on_the_same_data_append_at_once_without_holes_or_repeats(backend: Backend) -> None:
    one, two = await backend.open(), await backend.open()
    feeds = [ANN, "account:bob", "agency:tax"]

    async def writer(store: Store, name: str) -> list[Stored]:
        done = []
        for n in range(40):
            # Every third is named alike by both: one of them stores it, the other is told of a repeat.
            batch = [draft(f"{n}" if n % 3 == 0 else f"{name}{n}", feeds[n % 3]), draft(f"{name}{n}+", feeds[n % 2])]
            done += stored(await store.append(batch, NOW))
        return done

    results = await asyncio.gather(writer(one, "x"), writer(two, "y"), writer(one, "z"))
    everything = [outcome for done in results for outcome in done]
    pages = await one.read([Range(feed, 0, limit=1000) for feed in feeds])
    for found in pages:
        assert offsets(found) == list(range(1, found.head + 1))
        assert len(set(ids(found))) == found.head
    assert sum(found.head for found in pages) == len({o.seq for o in everything if not o.duplicate})
    at = {(found.feed, row.offset): row for found in pages for row in found.rows}
    assert all(at[o.feed, o.offset] == o.row for o in everything)


async def test_two_stores_on_the_same_data_join_and_save_at_once(backend: Backend) -> None:
    one, two = await backend.open(), await backend.open()
    await fill(one, 100)

    async def device(store: Store, name: str) -> None:
        for offset in range(1, 11):
            await ack(store, offset * (3 if name == "d1" else 2), name)

    await asyncio.gather(*(joined((one, two)[n % 2], hello(f"d{n}")) for n in range(6)))
    await asyncio.gather(*(device((one, two)[n % 2], f"d{n}") for n in range(6)))
    assert [(await start(two, f"d{n}")).offset for n in range(6)] == [20, 30, 20, 20, 20, 20]
    assert (await start(one, "d9")).offset == 30


async def test_what_was_appended_is_read_at_once_by_everyone(backend: Backend) -> None:
    one, two = await backend.open(), await backend.open()
    for n in range(1, 20):
        await one.append([draft(f"{n}")], NOW)
        assert (await page(two, after=n - 1)).head == n
        assert offsets(await page(one, after=n - 1)) == [n]


async def test_cancelling_a_call_is_safe_for_the_store(store: Store) -> None:
    calls = [asyncio.create_task(store.append([draft(f"{n}a"), draft(f"{n}b")], NOW)) for n in range(20)]
    await asyncio.sleep(0)
    for call in calls[::2]:
        call.cancel()
    results = await asyncio.gather(*calls, return_exceptions=True)
    kept = set(ids(await page(store)))
    for n, result in enumerate(results):
        assert ({f"{n}a", f"{n}b"} <= kept) or not ({f"{n}a", f"{n}b"} & kept), "all of a call or none of it"
        assert isinstance(result, asyncio.CancelledError) or f"{n}a" in kept
    assert await store.ready()


async def test_a_backup_is_one_file_or_a_sentence_why_not(store: Store, tmp_path: Path) -> None:
    await fill(store, 3)
    try:
        await store.backup(str(tmp_path / "copy"))
    except ConfigError as error:
        sentence = str(error)
        assert sentence.endswith(".")
    else:
        assert (tmp_path / "copy").is_file()


# The specification that runs


class Dice:
    """A random but repeatable life of a store: calls with arguments, the same for every store."""

    def __init__(self, seed: int, epoch: str) -> None:
        self.dice = random.Random(seed)
        self.epoch = epoch
        self.now = NOW
        self.count = 0

    def feed(self) -> str:
        return self.dice.choice([ANN, ANN, "account:bob", "agency:tax", "agency:law"])

    def draft(self) -> Draft:
        self.count += 1
        id = f"{self.count}" if self.dice.random() < 0.8 else f"{self.dice.randrange(1, self.count + 1)}"
        feed = self.feed()
        made = draft(id, feed, text=self.dice.choice(["", "", "x", "ы" * 300]), type=self.dice.choice("ab"))
        if self.dice.random() < 0.4:
            name = self.dice.choice(["car", "house"])
            made = replace(made, thing=thing("", name, 0, feed).thing, sequence=self.dice.randrange(9))
        if self.dice.random() < 0.3:
            made = replace(made, original=signed(f"{self.count // 3}".encode()))
        return made

    def position(self) -> tuple[str, int]:
        return self.dice.choice([self.epoch] * 4 + ["another life"]), self.dice.randrange(30)

    def join(self) -> Join:
        account = self.dice.choice(["ann", "bob"])
        feeds = (f"account:{account}", *self.dice.sample(["agency:tax", "agency:law"], self.dice.randrange(3)))
        return Join(
            account,
            f"d{self.dice.randrange(14)}",
            feeds,
            {feed: self.position() for feed in feeds if self.dice.random() < 0.3},
            self.dice.random() < 0.2,
            self.dice.choice([None, "app/1", "app/2"]),
            frozenset(f"d{n}" for n in range(14) if self.dice.random() < 0.3),
            self.now,
        )

    def save(self) -> CursorSave:
        account, (epoch, offset) = self.dice.choice(["ann", "bob"]), self.position()
        feed = self.dice.choice([f"account:{account}", "agency:tax", "agency:law"])
        return CursorSave(account, f"d{self.dice.randrange(14)}", feed, epoch, offset, self.now)

    def call(self) -> tuple[str, list[Any], dict[str, Any]]:
        self.now += self.dice.choice([0, 0.5, 3, -1])
        some = range(self.dice.randrange(5))
        match self.dice.randrange(12):
            case 0 | 1 | 2:
                return "append", [[self.draft() for _ in some], self.now], {}
            case 3 | 4:
                return "join", [[self.join() for _ in some]], {}
            case 5 | 6:
                return "save", [[self.save() for _ in some]], {}
            case 7:
                marks = [(self.feed(), [self.dice.randrange(30) for _ in some], self.now) for _ in some]
                return "seen", [marks], {}
            case 8:
                self.count += 1
                offset = self.dice.choice([None, *range(1, 30)])
                return "erase", [ANN, offset, eraser(f"e{self.count}"), self.now], {}
            case 9:
                return "retain", [self.now - self.dice.randrange(20), 10_000], {}
            case 10:
                feed = self.dice.choice(["agency:tax", "agency:law"])
                device = f"d{self.dice.randrange(14)}"
                if self.dice.random() < 0.3:
                    return "unfollow", ["ann", device, feed], {}
                return "follow", ["ann", device, feed, self.dice.choice([None, self.position()]), self.now], {}
            case _:
                bounds = {"after": self.dice.choice([None, 0, 5]), "before": self.dice.choice([None, 20])}
                wanted = self.dice.choice([Filter(), Filter(types=["a"]), Filter(types=["b"], start=NOW)])
                return "history", [self.feed()], {**bounds, "limit": 4, "filter": wanted, "max_scan": 7}


async def picture(store: Store) -> list[Any]:
    """All that can be asked of a store."""
    feeds = [ANN, "account:bob", "agency:tax", "agency:law"]
    names = [key(f"{n}") for n in range(400)]
    return [
        await store.read([Range(feed, 0, limit=1000, max_bytes=1 << 30) for feed in feeds]),
        await store.heads(feeds),
        await store.unpublished(NOW + 10_000, 1000),
        [await store.seen_offsets(feed) for feed in feeds],
        await store.receipts(names),
        [await store.kept(name) for name in names],
        [await store.devices(account) for account in ("ann", "bob")],
    ]


@pytest.mark.parametrize("seed", range(6))
async def test_it_does_what_the_memory_store_does(backend: Backend, seed: int) -> None:
    store, memory = await backend.open(), MemoryStore()
    await memory.open()
    memory.epoch = store.epoch
    dice = Dice(seed, store.epoch)
    for n in range(150):
        name, args, more = dice.call()
        result = await getattr(store, name)(*args, **more)
        expected = await getattr(memory, name)(*args, **more)
        assert result == expected, (n, name, args, more)
    assert await picture(store) == await picture(memory)


# What operators ask


async def test_the_traces_of_events(store: Store) -> None:
    request = signed(b"request")
    await store.append([draft("a", original=request), draft("b", original=request, item=1), draft("c")], NOW)
    await store.append([draft("x", "agency:tax")], NOW)
    await joined(store, hello())
    await ack(store, 2, now=NOW + 11)
    await store.seen([(ANN, [1], NOW + 12)])
    [seq] = [one.seq for one in await store.unpublished(NOW + 99, 10) if (one.feed, one.offset) == (ANN, 2)]
    await store.published([seq])
    at = float(request.timestamp)
    first = Trace(1, at, NOW, False, NOW + 11, NOW + 12)
    second = Trace(2, at, NOW, True, NOW + 11, None)
    assert await store.traces(ANN, [2, 9, 1, 1]) == [first, second]
    assert await store.traces(ANN, [3]) == [Trace(3, None, None, False, None, None)], "it came without a request"
    assert await store.traces("agency:tax", [1]) == [Trace(1, None, None, False, None, None)]
    assert await store.traces("account:nobody", [1]) == []
    assert await store.traces(ANN, []) == []
    await store.erase(ANN, 1, eraser("e"), NOW + 20)
    assert (await store.traces(ANN, [1, 2]))[0] == replace(first, signed=None, seen=None)
    await store.retain(NOW + 1)
    assert [trace.offset for trace in await store.traces(ANN, range(9))] == [4]


async def test_the_cursors_of_an_account(store: Store) -> None:
    await fill(store, 3)
    await fill(store, 2, "agency:tax")
    assert await store.cursors("ann") == {}
    await joined(store, replace(hello("phone"), feeds=(ANN, "agency:tax")))
    await joined(store, hello("tablet"))
    await joined(store, replace(hello("phone"), account="bob", feeds=("account:bob",)))
    await ack(store, 2, device="tablet")
    epoch = store.epoch
    assert await store.cursors("ann") == {
        "phone": {ANN: (epoch, 0), "agency:tax": (epoch, 2)},
        "tablet": {ANN: (epoch, 2)},
    }
    await store.forget("ann", "phone")
    assert (await store.cursors("ann")).keys() == {"tablet"}


# Presence and leases


def session(name: str, device: str = "d1", account: str = "ann") -> Presence:
    """`a-1` is the first session of node a."""
    return Presence(account, device, name.partition("-")[0], name)


async def enter(store: Store, *presences: Presence, now: float = NOW) -> list[Presence]:
    """As they stand."""
    told = await store.enter(presences, now)
    return [replace(one, since=entered.since) for one, entered in zip(presences, told, strict=True)]


async def nodes(store: Store, *names: str, until: float = NOW + 15) -> None:
    for name in names:
        assert await store.lease(f"node:{name}", name, until, NOW)


async def test_the_newest_session_of_a_device_stands_for_it_whatever_the_clocks_say(store: Store) -> None:
    [first] = await store.enter([session("a-1")], NOW)
    [second] = await store.enter([session("b-1")], NOW - 5)
    assert (first.since, first.before) == (NOW, None)
    assert (second.since, second.before) == (NOW + 0.000001, "a-1")
    again, other = await store.enter([session("b-1"), session("b-2", "d2")], NOW + 1)
    assert (again.since, again.before, other.before) == (NOW + 1, None, None)


async def test_sessions_of_one_call_enter_in_order(store: Store) -> None:
    told = await store.enter([session("a-1"), session("a-2"), session("a-3")], NOW)
    assert [entered.before for entered in told] == [None, "a-1", "a-2"]
    assert [entered.since for entered in told] == [NOW, NOW + 0.000001, NOW + 0.000002]


async def test_whoever_enters_is_told_the_other_devices_that_are_connected(store: Store) -> None:
    await nodes(store, "a")
    await enter(store, session("a-1"), session("b-1", "d2"), session("a-2", "d3", "bob"))
    told = await store.enter([session("a-3", "d4"), session("a-4", "d5")], NOW)
    assert [entered.others for entered in told] == [{"d1"}, {"d1", "d4"}], "b has no lease"


async def test_present_are_devices_on_nodes_with_a_lease(store: Store) -> None:
    await nodes(store, "a", "b")
    await enter(store, session("a-1"), session("b-1", "d2"), session("c-1", "d3"), session("a-2", "d1", "bob"))
    assert await store.present("ann", NOW) == {"d1", "d2"}
    assert await store.lease("node:b", "b", NOW + 60, NOW + 1)
    assert await store.present("ann", NOW + 15) == {"d2"}
    assert await store.present("nobody", NOW) == frozenset()


async def test_leaving_ends_only_what_stands(store: Store) -> None:
    await nodes(store, "a", "b")
    old, other = await enter(store, session("a-1"), session("a-2", "d2"))
    await enter(store, session("b-1"))
    await store.leave([old, other, session("a-9", "d9")])
    assert await store.present("ann", NOW) == {"d1"}


async def test_keep_tells_what_stands_instead_and_changes_nothing_about_it(store: Store) -> None:
    old, kept = await enter(store, session("a-1"), session("a-2", "d2"))
    [new] = await enter(store, session("b-1"))
    for _ in range(2):
        assert await store.keep([old, kept], NOW + 30) == [new]
    assert await store.keep([new], NOW + 30) == []


async def test_keep_brings_back_what_is_not_known_any_more(store: Store) -> None:
    """As after a crash of PostgreSQL: two nodes still believe in a session of the same device."""
    await nodes(store, "a", "b")
    [old] = await enter(store, session("a-1"))
    [new] = await enter(store, session("b-1"))
    await store.leave([new])
    assert await store.keep([old], NOW + 30) == []
    assert await store.present("ann", NOW) == {"d1"}
    assert await store.keep([new], NOW + 30) == [], "it is newer and takes its place"
    assert await store.keep([old], NOW + 30) == [new]


async def test_a_device_that_was_signed_out_is_not_present_and_its_session_is_told(store: Store) -> None:
    await nodes(store, "a")
    [old] = await enter(store, session("a-1"))
    [out] = await enter(store, Presence("ann", "d1", "", ""))
    assert await store.present("ann", NOW) == frozenset()
    assert await store.keep([old], NOW) == [out]
    [back] = await store.enter([session("a-2")], NOW)
    assert back.before is None, "nobody is there to be told"


async def test_many_nodes_enter_and_leave_the_same_devices_at_once(backend: Backend) -> None:
    stores = [await backend.open() for _ in range(3)]
    await nodes(stores[0], "a", "b", "c")

    async def node(store: Store, name: str) -> list[Presence]:
        rng, mine = random.Random(name), list[Presence]()
        for turn in range(10):
            devices = [f"d{n}" for n in rng.sample(range(10), 6)]
            entered = await enter(store, *(session(f"{name}-{turn}{device}", device) for device in devices))
            await store.leave(rng.sample(entered, 3))
            mine += entered
        return mine

    last = await asyncio.gather(*(node(store, name) for store, name in zip(stores, "abc", strict=True)))
    mine = [one for each in last for one in each]
    for _ in range(2):
        instead = {one.session for one in await stores[0].keep(mine, NOW)}
    standing = [one.device for one in mine if await stores[1].keep([one], NOW) == []]
    assert sorted(standing) == sorted({one.device for one in mine}), "one for each, and everybody sees the same"
    assert instead <= {one.session for one in mine}


async def test_a_lease_has_one_owner_until_it_ends(store: Store) -> None:
    assert await store.lease("retention", "x", NOW + 10, NOW)
    assert not await store.lease("retention", "y", NOW + 20, NOW + 9.5)
    assert await store.lease("retention", "x", NOW + 20, NOW + 9.5), "its owner may hold it longer"
    assert await store.lease("relay", "y", NOW + 20, NOW)
    assert not await store.lease("retention", "y", NOW + 40, NOW + 19)
    assert await store.lease("retention", "y", NOW + 40, NOW + 20), "taken over"
    assert not await store.lease("retention", "x", NOW + 50, NOW + 20)


async def test_a_lease_is_let_go_by_its_owner(store: Store) -> None:
    assert await store.lease("retention", "x", NOW + 10, NOW)
    await store.release("retention", "y")
    assert not await store.lease("retention", "y", NOW + 10, NOW)
    await store.release("retention", "x")
    assert await store.lease("retention", "y", NOW + 10, NOW)


async def test_leases_are_those_held_now(store: Store) -> None:
    for name, until in (("role:tidy", 10), ("role:relay", 20.5), ("role:old", 1), ("rolex", 20), ("node:a", 20)):
        assert await store.lease(name, f"{name}'s", NOW + until, NOW)
    held = [Lease("role:relay", "role:relay's", NOW + 20.5), Lease("role:tidy", "role:tidy's", NOW + 10)]
    assert await store.leases("role:", NOW + 1) == held
    assert await store.leases("role:", NOW + 10) == held[:1]
    assert await store.leases("ro%e:", NOW) == []
    assert [lease.name for lease in await store.leases("", NOW + 15)] == ["node:a", "role:relay", "rolex"]


async def test_a_lease_asked_for_by_many_at_once_goes_to_one(backend: Backend) -> None:
    stores = [await backend.open() for _ in range(3)]
    won = await asyncio.gather(*(store.lease("relay", str(n), NOW + 10, NOW) for n, store in enumerate(stores * 4)))
    assert sum(won) == 1


async def test_expire_forgets_ended_leases_and_the_presences_of_their_nodes(store: Store) -> None:
    await nodes(store, "a")
    await nodes(store, "b", until=NOW + 100)
    gone, kept = await enter(store, session("a-1"), session("b-1", "d2"))
    await enter(store, Presence("ann", "d3", "", ""), session("a-2", "d4"), now=NOW + 60)
    assert await store.expire(NOW + 50) == 2
    assert await store.present("ann", NOW) == {"d2"}
    assert await store.keep([replace(gone, session="a-9"), kept], NOW) == [], "nothing is known of d1"
    assert await store.expire(NOW + 50, 1) == 1
    assert await store.expire(NOW + 50) == 0
