"""The SQLite store on a disk that is full, that fails, that is locked; and killed at any moment.

Always the same: whoever was told that something is stored finds it; a call that failed did all of its work or none;
when the fault is over, the store goes on.
"""

import asyncio
import errno
import random
import resource
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path

import pytest

from gateway.batcher import Batcher
from gateway.errors import StoreUnavailable
from gateway.store.base import Draft, Outcome, Range, Row, Stored
from gateway.store.sqlite import SqliteStore, database
from tests.contracts.test_store import ANN, NOW, Dice, draft, fill, hello, ids, joined, offsets, page, stored
from tests.faults.seccomp import fail

ROOT = Path(__file__).parents[2]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    async with opened(tmp_path / "vestnik.db") as store:
        yield store


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[SqliteStore]:
    """Closed again also when the test fails: a thread that is left keeps the interpreter from ending."""
    store = SqliteStore(path)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def on_thread(store: SqliteStore, lane: int, work: Callable[[], None]) -> None:
    """Run something on the thread of the writing (0) or reading (1) connection."""
    lanes = store._db._lanes
    assert lanes is not None
    await lanes[lane].hop(lambda conn: work())


async def ready(store: SqliteStore, patience_s: float = 10.0) -> None:
    async with asyncio.timeout(patience_s):
        while not await store.ready():
            await asyncio.sleep(0.02)


# A disk that fails


async def test_a_failed_fsync_is_told_to_everybody_of_the_trip_and_the_store_goes_on(store: SqliteStore) -> None:
    await fill(store, 3)

    async def work(drafts: list[Draft]) -> list[Outcome]:
        return await store.append(drafts, NOW)

    append = Batcher(work, max_items=100)
    await on_thread(store, 0, lambda: fail("fdatasync", "fsync", error=errno.EIO))
    results = await asyncio.gather(*(append(draft(f"lost{n}")) for n in range(5)), return_exceptions=True)
    assert [type(result) for result in results] == [StoreUnavailable] * 5
    assert await store.ready() is False, "what the disk holds is unknown now"
    with pytest.raises(StoreUnavailable):
        await store.append([draft("refused")], NOW)
    await ready(store)
    found = ids(await page(store))
    assert len(found) in (3, 8), "all of the trip or none of it"
    # Whoever was told 503 sends it again, with the same id.
    outcomes = stored(await store.append([draft(f"lost{n}") for n in range(5)], NOW))
    assert [outcome.offset for outcome in outcomes] == [4, 5, 6, 7, 8]
    assert {outcome.duplicate for outcome in outcomes} == {len(found) == 8}
    assert offsets(await page(store)) == list(range(1, 9))


async def test_trips_that_wait_behind_a_failed_one_do_not_start(store: SqliteStore) -> None:
    await on_thread(store, 0, lambda: fail("fdatasync", "fsync", error=errno.EIO))
    calls = [store.append([draft(f"{n}")], NOW) for n in range(10)] + [store.append([draft("more")], NOW)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(result) for result in results} == {StoreUnavailable}
    await ready(store)
    assert set(ids(await page(store))) <= {"0"}, "only the first one reached the disk at all"


async def test_reads_and_cursors_survive_a_failed_fsync(store: SqliteStore) -> None:
    await fill(store, 3)
    await joined(store, hello())
    await on_thread(store, 0, lambda: fail("fdatasync", "fsync", error=errno.EIO))
    with pytest.raises(StoreUnavailable):
        await store.join([hello("tablet")])
    await ready(store)
    assert (await joined(store, hello())).new is False
    assert {device.device for device in await store.devices("ann")} >= {"phone"}
    assert len(await store.unpublished(NOW + 1, 10)) == 3


async def test_a_disk_that_cannot_be_written(store: SqliteStore) -> None:
    await fill(store, 3)
    await on_thread(store, 0, lambda: fail("pwrite64", error=errno.EIO))
    with pytest.raises(StoreUnavailable):
        await store.append([draft("a")], NOW)
    await ready(store)
    assert offsets(await page(store)) == [1, 2, 3]
    assert (await fill(store, 1, now=NOW + 1))[0].offset == 4


async def test_a_disk_that_cannot_be_read(store: SqliteStore) -> None:
    await fill(store, 3)
    await store.close()
    await store.open()  # nothing is in memory
    await on_thread(store, 1, lambda: fail("pread64", error=errno.EIO))
    with pytest.raises(StoreUnavailable):
        await store.read([Range(ANN, 0)])
    await ready(store)
    assert offsets(await page(store)) == [1, 2, 3]


def test_a_disk_that_goes_on_failing_is_tried_again_at_most_every_few_seconds(tmp_path: Path) -> None:
    found: list[object] = []

    async def life() -> None:
        async with opened(tmp_path / "vestnik.db") as store:
            await fill(store, 3)
            fail("fdatasync", "fsync", error=errno.EIO)  # of this thread and all that it starts from now on
            await on_thread(store, 0, lambda: fail("fdatasync", "fsync", error=errno.EIO))
            for _ in range(300):
                try:
                    found.append(await store.append([draft("a")], NOW))
                except StoreUnavailable:
                    found.append(None)
                await asyncio.sleep(0.002)
            found.append(await store.ready())
            found.append(store._db._failures)

    before = threading.active_count()
    runner = threading.Thread(target=lambda: asyncio.run(life()))
    runner.start()
    runner.join()
    assert found[:-1] == [None] * 300 + [False]
    assert found[-1] in (2, 3, 4), "0.1 s, 0.3 s, 1 s between"
    assert threading.active_count() == before, "no thread is left of connections that failed"

    async def after() -> None:
        async with opened(tmp_path / "vestnik.db") as store:
            assert offsets(await page(store))[:3] == [1, 2, 3]
            assert await store.ready()

    asyncio.run(after())


async def test_a_file_that_vanished_is_not_begun_anew(store: SqliteStore) -> None:
    await fill(store, 3)
    await on_thread(store, 0, lambda: fail("fdatasync", "fsync", error=errno.EIO))
    with pytest.raises(StoreUnavailable):
        await store.append([draft("a")], NOW)
    moved = store.path.with_name("moved")
    store.path.rename(moved)
    await asyncio.sleep(0.15)
    with pytest.raises(StoreUnavailable):
        await store.append([draft("a")], NOW)
    assert not store.path.exists()
    moved.rename(store.path)
    await ready(store)
    assert offsets(await page(store))[:3] == [1, 2, 3]


# A disk that is full


@contextmanager
def small_disk(path: Path, size: int) -> Iterator[Callable[[], None]]:
    """No more than about `size` bytes fit under `path`, until the yielded function is called. A real small disk where
    that may be mounted, else a limit on the size of each file."""
    path.mkdir()
    mount = shutil.which("mount")
    tmpfs = [mount or "false", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    if subprocess.run(tmpfs, capture_output=True).returncode == 0:
        try:
            yield lambda: subprocess.run([mount or "", "-o", "remount,size=64m", str(path)], check=True) and None
        finally:
            subprocess.run(["umount", "--lazy", str(path)], check=True)
        return
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, before[1]))
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_full_disk_refuses_and_loses_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 2_000_000) as make_room:
        async with opened(tmp_path / "disk" / "vestnik.db") as store:
            done: list[Stored] = []
            refused = 0
            for n in range(400):
                batch = [draft(f"{n}-{k}", f"account:{k}", text="x" * 3000) for k in range(3)]
                try:
                    done += stored(await store.append(batch, NOW))
                except StoreUnavailable:
                    refused += 1
                    if refused == 5:
                        break
                    await asyncio.sleep(0.1)
            assert refused == 5, "the disk never was full"
            assert done
            assert await store.ready() is False
            make_room()
            await ready(store)
            pages = await store.read([Range(f"account:{k}", 0, 1000, 1 << 30) for k in range(3)])
            rows: dict[tuple[str, int], Row] = {(found.feed, row.offset): row for found in pages for row in found.rows}
            assert all(rows[outcome.feed, outcome.offset] == outcome.row for outcome in done)
            assert len({found.head for found in pages}) == 1, "each call wrote all of its three events or none"
            assert all(offsets(found) == list(range(1, found.head + 1)) for found in pages)
            await fill(store, 3, "account:more")


# A file that is locked


async def test_a_file_locked_beyond_the_timeout_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_S", 0.05)
    async with opened(tmp_path / "vestnik.db") as store:
        await fill(store, 3)
        with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailable, match="locked"):
                await store.append([draft("a")], NOW)
            assert await store.ready() is False
            assert offsets(await page(store)) == [1, 2, 3], "reading goes on"
            other.execute("ROLLBACK")
        assert await store.ready() is True
        assert stored(await store.append([draft("a")], NOW))[0].offset == 4


# A process that is killed


def test_what_was_told_to_be_stored_is_there_after_each_of_ten_kills(tmp_path: Path) -> None:
    path = tmp_path / "vestnik.db"
    told: set[int] = set()
    dice = random.Random(7)
    for life in range(10):
        first = life * 10_000
        command = [sys.executable, "-m", "tests.faults.appender", str(path), str(first)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as child:
            assert child.stdout is not None
            for _ in range(dice.randrange(20, 200)):
                told.add(int(child.stdout.readline()))
            time.sleep(dice.random() * 0.01)
            child.kill()
            told |= {int(line) for line in child.stdout if line.endswith(b"\n")}
        asyncio.run(_check(path, told))


async def _check(path: Path, told: set[int]) -> None:
    async with opened(path) as store:
        pages = await store.read([Range(f"account:{n}", 0, 10_000, 1 << 30) for n in range(3)])
        found = [int(id) for each in pages for id in ids(each)]
        assert len(found) == len(set(found))
        assert told <= set(found)
        assert all(offsets(each) == list(range(1, each.head + 1)) for each in pages)
        assert len(await store.unpublished(NOW + 1, 100_000)) == len(found)


async def test_a_killed_store_is_the_same_as_one_that_was_closed(tmp_path: Path) -> None:
    """Files as they lie on the disk in the middle of a life, opened elsewhere."""
    async with opened(tmp_path / "vestnik.db") as store:
        dice = Dice(3, store.epoch)
        for _ in range(60):
            name, args, more = dice.call()
            await getattr(store, name)(*args, **more)
        copy = tmp_path / "copy"
        copy.mkdir()
        for name in ("vestnik.db", "vestnik.db-wal"):
            await asyncio.to_thread(_copy, tmp_path / name, copy / name)
        async with opened(copy / "vestnik.db") as other:
            feeds = [Range(feed, 0, 1000) for feed in (ANN, "account:bob", "agency:tax", "agency:law")]
            assert await other.read(feeds) == await store.read(feeds)
            assert await other.devices("ann") == await store.devices("ann")


def _copy(source: Path, target: Path) -> None:
    """In a process of its own: closing any descriptor of the file would take this process's locks off it."""
    subprocess.run(["cp", str(source), str(target)], check=True)
