"""What is the SQLite store's own: files and their modes, schemas, what cannot be opened, erased bytes, backup and
restore."""

import asyncio
import random
import sqlite3
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from threading import Thread

import pytest

from gateway.errors import ConfigError
from gateway.store import open_store, sqlite_path
from gateway.store.base import Range
from gateway.store.memory import MemoryStore
from gateway.store.sqlite import SqliteStore, restore, schema
from tests.contracts.test_store import ANN, NOW, draft, eraser, fill, ids, offsets, page, signed


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(path)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    async with opened(tmp_path / "vestnik.db") as store:
        yield store


async def refusal(path: Path) -> str:
    """The one sentence with which the store refuses to open."""
    with pytest.raises(ConfigError) as caught:
        async with opened(path):
            pass
    text = str(caught.value)
    assert text.startswith(f"VESTNIK_STORE: {path} ")
    assert text.endswith(".")
    return text


# By URL


async def test_a_store_is_chosen_by_the_scheme_of_its_url(tmp_path: Path) -> None:
    assert isinstance(open_store("memory://", tmp_path), MemoryStore)
    store = open_store(f"sqlite:///{tmp_path}/some/where/v.db", tmp_path)
    assert isinstance(store, SqliteStore)
    await store.open()
    await store.close()
    assert (tmp_path / "some/where/v.db").is_file()
    assert sqlite_path("sqlite:///", tmp_path) == tmp_path / "vestnik.db"
    assert sqlite_path("sqlite:///v.db", tmp_path) == Path("v.db")


@pytest.mark.parametrize("url", ["mysql://localhost/v", "sqlite://v.db", "v.db", "", "memory:"])
def test_an_unknown_scheme_is_refused_in_one_sentence(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"VESTNIK_STORE: .* is no store; use sqlite:///path.*\.$"):
        open_store(url, tmp_path)


# Files


async def test_only_the_owner_may_read_the_files(tmp_path: Path) -> None:
    async with opened(tmp_path / "new" / "vestnik.db") as store:
        await fill(store, 1)
        await store.backup(str(tmp_path / "new" / "copy"))
        found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new").iterdir()}
    names = ["copy", "vestnik.db", "vestnik.db-shm", "vestnik.db-wal", "vestnik.db.lock"]
    assert found == dict.fromkeys(names, 0o600)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


async def test_a_file_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    (tmp_path / "vestnik.db").touch(0o644)
    async with opened(tmp_path / "vestnik.db"):
        assert stat.S_IMODE((tmp_path / "vestnik.db").stat().st_mode) == 0o600


async def test_paths_of_any_letters(tmp_path: Path) -> None:
    path = tmp_path / "данные ?mode=ro&x=%41#" / "в.db"
    async with opened(path) as store:
        await fill(store, 1)
    assert path.is_file()


async def test_every_commit_waits_for_the_disk(store: SqliteStore) -> None:
    lanes = store._db._lanes
    assert lanes is not None
    await store.published([1])
    for pragma, value in [("synchronous", 2), ("journal_mode", "wal"), ("secure_delete", 1)]:
        assert await lanes[0].hop(lambda conn, p=pragma: conn.execute(f"PRAGMA {p}").fetchone()) == (value,)


# What cannot be opened


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "vestnik.db"
    path.write_bytes(b"this is a letter, not a database" * 100)
    assert "not a database" in await refusal(path)
    assert path.read_bytes().startswith(b"this is a letter")


async def test_a_database_of_another_program(tmp_path: Path) -> None:
    path = tmp_path / "vestnik.db"
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("CREATE TABLE meta (schema)")
    path.chmod(0o644)
    before = path.read_bytes()
    assert "another program" in await refusal(path)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (before, 0o644)


async def test_a_database_of_a_newer_program(tmp_path: Path) -> None:
    path = tmp_path / "vestnik.db"
    async with opened(path):
        pass
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.execute("UPDATE meta SET schema = 99")
    assert "has schema 99" in await refusal(path)


async def test_a_truncated_database(tmp_path: Path) -> None:
    path = tmp_path / "vestnik.db"
    async with opened(path) as store:
        await fill(store, 100)
    path.write_bytes(path.read_bytes()[:3000])
    await refusal(path)


async def test_a_directory_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "vestnik.db").mkdir()
    await refusal(tmp_path / "vestnik.db")


async def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    await refusal(tmp_path / "file" / "vestnik.db")


async def test_what_was_refused_can_be_opened_once_it_is_good(tmp_path: Path) -> None:
    path = tmp_path / "vestnik.db"
    path.write_bytes(b"no" * 1000)
    store = SqliteStore(path)
    with pytest.raises(ConfigError):
        await store.open()
    path.unlink()
    await store.open()
    assert await store.ready()
    await store.close()


# Schemas


def tables(conn: sqlite3.Connection) -> set[str]:
    return {name for (name,) in conn.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}


def migrate(conn: sqlite3.Connection, steps: list[str]) -> None:
    conn.execute("BEGIN IMMEDIATE")
    try:
        schema.migrate(conn, steps)
    except BaseException:
        conn.execute("ROLLBACK")
        raise
    conn.execute("COMMIT")


@pytest.fixture
def conn(tmp_path: Path) -> AsyncIterator[sqlite3.Connection]:
    with closing(sqlite3.connect(tmp_path / "some.db", isolation_level=None)) as conn:
        yield conn


def test_each_migration_runs_once_and_in_order(conn: sqlite3.Connection) -> None:
    steps = [*schema.migrations(), "CREATE TABLE more (a); -- why; not\nINSERT INTO more VALUES ('x;y');\n"]
    migrate(conn, steps[:-1])
    epoch = conn.execute("SELECT epoch FROM meta").fetchone()
    assert schema.version(conn) == len(steps) - 1
    for _ in range(2):
        migrate(conn, steps)
        assert schema.version(conn) == len(steps)
        assert conn.execute("SELECT a FROM more").fetchall() == [("x;y",)]
    assert conn.execute("SELECT epoch FROM meta").fetchone() == epoch


def test_a_migration_that_fails_leaves_the_file_as_it_was(conn: sqlite3.Connection) -> None:
    steps = schema.migrations()
    migrate(conn, steps)
    before = tables(conn)
    with pytest.raises(sqlite3.OperationalError):
        migrate(conn, [*steps, "CREATE TABLE more (a);\n", "NONSENSE;\n"])
    assert (tables(conn), schema.version(conn)) == (before, len(steps))


async def test_many_open_a_new_file_at_once(tmp_path: Path) -> None:
    stores = [SqliteStore(tmp_path / "vestnik.db") for _ in range(5)]
    await asyncio.gather(*(store.open() for store in stores))
    assert len({store.epoch for store in stores}) == 1
    for store in stores:
        await store.close()


# Erased bytes


def traces(directory: Path, *words: bytes) -> dict[str, int]:
    """How often the words stand in each file where they do."""
    counts = {path.name: sum(path.read_bytes().count(word) for word in words) for path in directory.iterdir()}
    return {name: count for name, count in counts.items() if count}


async def test_erased_bytes_are_nowhere_in_the_files(store: SqliteStore, tmp_path: Path) -> None:
    dice = random.Random(5)
    for n in range(40):
        batch = [
            draft(f"{n}-{k}", f"account:{dice.randrange(20)}", text="public" * dice.randrange(300)) for k in range(20)
        ]
        secret = "geheim" * dice.choice([1, 20, 400, 5000])
        request = signed(b"body of geheim " + secret.encode())
        batch.append(draft(f"secret {n}", ANN, text=secret, type="geheim.type", status="geheim", original=request))
        await store.append(batch, NOW + n)
        if n % 3 == 0:
            await store.erase(ANN, (await page(store)).head, eraser(f"e{n}"), NOW + n)
    assert traces(tmp_path, b"geheim")
    await store.erase(ANN, None, eraser("all"), NOW)
    assert traces(tmp_path, b"geheim") == {}
    assert traces(tmp_path, b"public")


async def test_erased_bytes_leave_the_log_later_when_someone_reads_what_was(store: SqliteStore, tmp_path: Path) -> None:
    await store.append([draft("a", text="geheim")], NOW)
    with closing(sqlite3.connect(store.path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM events").fetchone()
        lanes = store._db._lanes
        assert lanes is not None
        await lanes[0].hop(lambda conn: conn.execute("PRAGMA busy_timeout = 10"))
        assert await store.erase(ANN, 1, eraser("e"), NOW) is not None
        assert traces(tmp_path, b"geheim")
        reader.execute("COMMIT")
    await store.retain(0)
    assert traces(tmp_path, b"geheim") == {}


# Backup and restore


async def test_a_backup_of_a_running_store_is_one_moment_of_it(store: SqliteStore, tmp_path: Path) -> None:
    target = tmp_path / "copy.db"
    steps: list[tuple[int, int]] = []
    await fill(store, 3000, "account:many")
    busy = True

    async def writer() -> None:
        n = 0
        while busy:
            await store.append([draft(f"{n}a"), draft(f"{n}b", "account:bob")], NOW)
            n += 1

    writing = asyncio.create_task(writer())
    await asyncio.sleep(0.01)
    for _ in range(3):
        await store.backup(str(target), lambda done, total: steps.append((done, total)))
    busy = False
    await writing
    assert steps[-1][0] == steps[-1][1] > 100
    assert sorted(path.name for path in tmp_path.iterdir() if "copy" in path.name) == ["copy.db"]
    async with opened(target) as copy:
        ann, bob, many = await copy.read([Range(feed, 0, 10_000) for feed in (ANN, "account:bob", "account:many")])
        assert ann.head == bob.head > 0
        assert offsets(ann) == list(range(1, ann.head + 1))
        assert many.head == 3000
        assert copy.epoch == store.epoch, "a copy is not yet another life"


async def test_a_backup_that_cannot_be_written(store: SqliteStore, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for target in (tmp_path / "file" / "copy", tmp_path / "none" / "copy"):
        with pytest.raises(ConfigError, match=r"cannot be written: .*\.$"):
            await store.backup(str(target))
    (tmp_path / "dir").mkdir()
    with pytest.raises(ConfigError, match=r"cannot be written: .*\.$"):
        await store.backup(str(tmp_path / "dir"))
    assert await store.ready()
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".part"]


async def backed_up(tmp_path: Path) -> tuple[Path, str]:
    """A backup with two events, and the epoch that it has."""
    async with opened(tmp_path / "old.db") as store:
        await fill(store, 2)
        await store.backup(str(tmp_path / "backup"))
        return tmp_path / "backup", store.epoch


async def test_restore_brings_a_backup_back_with_a_new_epoch(tmp_path: Path) -> None:
    backup, old = await backed_up(tmp_path)
    steps: list[tuple[int, int]] = []
    target = tmp_path / "new" / "vestnik.db"
    epoch = restore(backup, target, lambda done, total: steps.append((done, total)))
    assert steps
    assert steps[-1][0] == steps[-1][1]
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    async with opened(target) as store:
        assert store.epoch == epoch != old
        assert offsets(await page(store)) == [1, 2]
        assert (await fill(store, 1, now=NOW + 1))[0].offset == 3
    assert restore(backup, target) not in (old, epoch)


async def test_a_store_cannot_be_opened_while_it_is_restored(tmp_path: Path) -> None:
    backup, _ = await backed_up(tmp_path)
    refused: list[str] = []

    def other_process() -> None:
        with pytest.raises(ConfigError) as caught:
            asyncio.run(SqliteStore(tmp_path / "vestnik.db").open())
        refused.append(str(caught.value))

    def during(done: int, total: int) -> None:
        thread = Thread(target=other_process)
        thread.start()
        thread.join()

    restore(backup, tmp_path / "vestnik.db", during)
    assert refused
    assert all("is being restored" in text for text in refused)


async def test_restore_replaces_what_was_there_its_log_too(tmp_path: Path) -> None:
    backup, _ = await backed_up(tmp_path)
    target = tmp_path / "vestnik.db"
    async with opened(target) as store:
        await store.append([draft("other")], NOW)
        for end in ("", "-wal"):
            (tmp_path / f"killed{end}").write_bytes((tmp_path / f"vestnik.db{end}").read_bytes())
    killed = tmp_path / "killed"
    restore(backup, killed)
    async with opened(killed) as store:
        assert "other" not in ids(await page(store))
        assert (await page(store)).head == 2


async def test_restore_over_a_broken_file(tmp_path: Path) -> None:
    backup, _ = await backed_up(tmp_path)
    target = tmp_path / "vestnik.db"
    target.write_bytes(b"broken")
    restore(backup, target)
    async with opened(target) as store:
        assert (await page(store)).head == 2


async def test_restore_refuses_while_the_target_is_in_use(tmp_path: Path) -> None:
    backup, _ = await backed_up(tmp_path)
    async with opened(tmp_path / "vestnik.db") as store:
        await fill(store, 5)
        with pytest.raises(ConfigError, match=r"is in use: stop the gateway and its workers first\.$"):
            restore(backup, tmp_path / "vestnik.db")
        assert (await page(store)).head == 5
        assert await store.ready()


def _garbage(path: Path) -> None:
    path.write_bytes(b"garbage" * 1000)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _missing(path: Path) -> None:
    path.unlink()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4096])


def _damaged(path: Path) -> None:
    bytes_ = bytearray(path.read_bytes())
    for at in range(4096, len(bytes_), 4096):
        bytes_[at : at + 64] = bytes(range(64))
    path.write_bytes(bytes_)


def _foreign(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("CREATE TABLE other (a)")


def _newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.execute("UPDATE meta SET schema = 99")


@pytest.mark.parametrize("spoil", [_garbage, _empty, _missing, _cut, _damaged, _foreign, _newer])
async def test_restore_refuses_what_is_no_whole_backup_and_changes_nothing(
    spoil: Callable[[Path], None], tmp_path: Path
) -> None:
    backup, _ = await backed_up(tmp_path)
    spoil(backup)
    async with opened(tmp_path / "vestnik.db") as store:
        await fill(store, 5)
        epoch = store.epoch
    with pytest.raises(ConfigError, match=r"\.$"):
        restore(backup, tmp_path / "vestnik.db")
    async with opened(tmp_path / "vestnik.db") as store:
        assert ((await page(store)).head, store.epoch) == (5, epoch)
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".part"]
