"""The store on a real PostgreSQL: many nodes at once, a server that dies, freezes, is full or is another one.

Always the same: whoever was told that something is stored finds it; a call that failed did all of its work or none;
when the fault is over, the store goes on. What the store promises otherwise is tried in
`tests/contracts/test_store.py`.
"""

import asyncio
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import ConfigError, EpochChanged, StoreUnavailable
from gateway.store import hold_alone
from gateway.store.base import Conflict, CursorSave, Filter, Join, Outcome, Presence, Range, Row, Stored
from gateway.store.postgresql import PostgresqlStore, database, schema
from gateway.store.postgresql.address import parse
from tests import postgresql_server
from tests.contracts.test_store import ANN, NOW, draft, eraser, fill, hello, ids, joined, key, offsets, page, stored
from tests.postgresql_server import PASSWORD, USER, PostgresqlServer

SERVER = postgresql_server.shared


@asynccontextmanager
async def opened(url: str, **more: Any) -> AsyncIterator[PostgresqlStore]:
    store = PostgresqlStore(url, **more)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
def url() -> str:
    """An empty database on the server that all tests share."""
    server = SERVER()
    return server.url(server.empty())


@pytest.fixture
async def store(url: str) -> AsyncIterator[PostgresqlStore]:
    async with opened(url) as store:
        yield store


@pytest.fixture
def own() -> Iterator[PostgresqlServer]:
    """A server that the test may harm."""
    with PostgresqlServer() as server:
        yield server


async def ready(store: PostgresqlStore, patience_s: float = 20.0) -> None:
    async with asyncio.timeout(patience_s):
        while not await store.ready():
            await asyncio.sleep(0.02)


async def everything(store: PostgresqlStore, feeds: list[str]) -> dict[tuple[str, int], Row]:
    """Every event of these feeds; there are no holes and no repeats."""
    rows: dict[tuple[str, int], Row] = {}
    seen: set[Any] = set()
    for found in await store.read([Range(feed, 0, 100_000, 1 << 30) for feed in feeds]):
        assert offsets(found) == list(range(1, found.head + 1))
        rows |= {(found.feed, row.offset): row for row in found.rows}
        names = [id for id in ids(found) if id is not None]
        assert len(names) == len(set(names))
        assert not seen & set(names)
        seen |= set(names)
    return rows


def count(statement: str, url: str) -> int:
    return int(SERVER().sql(statement, url.rpartition("/")[2]))


# Many nodes at once


async def test_many_nodes_append_to_the_same_feeds_and_keys_without_holes_repeats_or_deadlocks(url: str) -> None:
    feeds = [f"account:{n}" for n in range(8)]
    before = count("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()", url)
    outcomes: list[tuple[Any, Outcome]] = []

    async def node(n: int) -> None:
        dice = random.Random(n)
        async with opened(url) as store:

            async def agency() -> None:
                for _ in range(12):
                    # Names from a small pot, in random order: the same ones meet in other feeds and with other content.
                    names = dice.sample(range(300), 12)
                    drafts = [
                        draft(f"{name}", dice.choice(feeds), text=dice.choice(["", "", "other"])) for name in names
                    ]
                    outcomes.extend(zip(drafts, await store.append(drafts, NOW), strict=True))

            await asyncio.gather(*(agency() for _ in range(3)))

    await asyncio.gather(*(node(n) for n in range(4)))
    async with opened(url) as store:
        rows = await everything(store, feeds)
    new = [outcome for _, outcome in outcomes if isinstance(outcome, Stored) and not outcome.duplicate]
    assert len(new) == len(rows), "each event was new to exactly one caller"
    assert len({outcome.seq for outcome in new}) == len(new)
    for _, outcome in outcomes:
        if isinstance(outcome, Stored):
            assert rows[outcome.feed, outcome.offset] == outcome.row
        else:
            assert isinstance(outcome, Conflict)
    assert any(isinstance(outcome, Conflict) for _, outcome in outcomes)
    assert {sent.key for sent, _ in outcomes} == {
        sent.key for sent, outcome in outcomes if isinstance(outcome, Stored) and not outcome.duplicate
    }
    after = count("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()", url)
    assert after == before, (SERVER().directory / "log").read_text()[-3000:]


async def test_everything_at_once_from_several_nodes_never_deadlocks(url: str) -> None:
    """Appends, joins, saves, marks, erasures, retention, relay and roster on the same few feeds and accounts."""
    people = [f"p{n}" for n in range(5)]
    own = [f"account:{name}" for name in people]
    feeds = [*own, "agency:tax", "agency:law"]
    before = count("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()", url)

    async def node(n: int) -> None:
        dice = random.Random(n)
        async with opened(url) as store:
            await store.join([Join(name, f"d{n}", (feed, *feeds[5:])) for name, feed in zip(people, own, strict=True)])

            def some(what: list[str]) -> list[str]:
                return dice.sample(what, dice.randrange(1, len(what) + 1))

            async def one(kind: int) -> None:
                for turn in range(8):
                    name = f"{n}/{kind}/{turn}"
                    if kind in (0, 1):
                        await store.append([draft(f"{name}/{feed}", feed) for feed in some(feeds)], NOW + turn)
                    elif kind == 2:
                        await store.join(
                            [Join(who, f"d{turn}", (f"account:{who}", *feeds[5:])) for who in some(people)]
                        )
                    elif kind == 3:
                        saves = [(who, feed) for who in some(people) for feed in (f"account:{who}", "agency:tax")]
                        await store.save(
                            [CursorSave(who, f"d{n}", feed, store.epoch, turn, NOW + turn) for who, feed in saves]
                        )
                    elif kind == 4:
                        await store.seen([(feed, [turn + 1, turn], NOW) for feed in some(own)])
                        await store.touch([(who, f"d{n}", NOW + turn) for who in some(people)])
                    elif kind == 5:
                        feed = dice.choice(own)
                        made = draft(name, feed, type="gov.erased")
                        await store.erase(feed, None, lambda ranges, made=made: made, NOW)  # type: ignore[misc]
                    elif kind == 6:
                        await store.retain(NOW + turn - 3, 7)
                    elif kind == 7:
                        await store.published([found.seq for found in await store.unpublished(NOW + 100, 50)])
                    else:
                        await store.lease(f"node:{n}", f"{n}", NOW + 60, NOW)
                        here = [Presence(who, "phone", f"{n}", f"{n}-{turn}", NOW + turn) for who in some(people)]
                        await store.enter(here, NOW + turn)
                        await store.keep(here, NOW + turn)
                        await store.leave(here[::2])

            await asyncio.gather(*(one(kind) for kind in range(9)))

    await asyncio.gather(*(node(n) for n in range(3)))
    after = count("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()", url)
    assert after == before, (SERVER().directory / "log").read_text()[-3000:]
    async with opened(url) as store:
        for found in await store.read([Range(feed, 0, 1000, 1 << 30) for feed in feeds]):
            assert offsets(found) == list(range(found.oldest, found.head + 1))


async def test_nodes_that_start_at_once_make_the_tables_once(own: PostgresqlServer) -> None:
    url = own.url(own.database())
    stores = [PostgresqlStore(url) for _ in range(8)]
    await asyncio.gather(*(store.open() for store in stores))
    try:
        assert len({store.epoch for store in stores}) == 1
        outcomes = await asyncio.gather(*(store.append([draft(f"{n}")], NOW) for n, store in enumerate(stores)))
        assert sorted(found.offset for [found] in map(stored, outcomes)) == list(range(1, 9))
    finally:
        await asyncio.gather(*(store.close() for store in stores))
    assert own.sql("SELECT count(*), max(schema) FROM vestnik.meta", "t1") == f"1|{len(schema.migrations())}"


async def test_more_calls_than_connections_wait_for_each_other(store: PostgresqlStore, url: str) -> None:
    calls = [store.append([draft(f"{n}", f"account:{n % 7}")], NOW) for n in range(100)]
    assert len(await asyncio.gather(*calls)) == 100
    where = "datname = current_database() AND application_name = 'vestnik'"
    assert count(f"SELECT count(*) FROM pg_stat_activity WHERE {where}", url) <= database.CONNECTIONS


async def test_no_statement_reads_a_whole_table(store: PostgresqlStore, url: str) -> None:
    """Plans are made for tables of any size, also while they are small."""
    sql = """
        SELECT coalesce(sum(seq_scan), 0) FROM pg_stat_user_tables
        WHERE relname IN ('events', 'feeds', 'devices', 'cursors', 'accounts', 'originals', 'things', 'delivered',
                          'seen', 'unpublished')"""
    await fill(store, 1)
    SERVER().sql("SELECT pg_stat_reset()", url.rpartition("/")[2])
    async with opened(url) as other:
        found = await fill(other, 20, now=NOW + 1)
        await other.append([draft("t", thing=bytes(16), sequence=1)], NOW)
        await joined(other, hello("phone", "agency:tax", fresh=True))
        await joined(other, hello("phone", "agency:tax"))
        await other.follow("ann", "phone", "agency:law", (other.epoch, 0), NOW)
        await other.unfollow("ann", "phone", "agency:law")
        await other.save([CursorSave("ann", "phone", ANN, other.epoch, 5, NOW)])
        await other.touch([("ann", "phone", NOW + 1)])
        await other.seen([(ANN, [1, 2], NOW)])
        await other.seen_offsets(ANN)
        await other.receipts([key("t")])
        await other.devices("ann")
        await page(other)
        await other.heads([ANN])
        for order in ({"after": 0, "before": None}, {"after": None, "before": None}):
            await other.history(ANN, limit=5, filter=Filter(types=["gov.notice.sent"]), **order)
        await other.unpublished(NOW + 9, 100)
        await other.published([one.seq for one in found])
        await other.kept(key("t"))
        await other.erase(ANN, 3, eraser("e"), NOW + 2)
        await other.retain(NOW + 1.5)
        await other.forget("ann", "phone")
    async with asyncio.timeout(10):
        while not count("SELECT coalesce(sum(idx_scan), 0) FROM pg_stat_user_tables", url):
            await asyncio.sleep(0.05)  # statistics come when a session ends
    assert count(sql, url) == 0


# A server that dies, freezes, or cuts connections


async def test_what_was_told_to_be_stored_is_there_after_each_kill_of_the_server(own: PostgresqlServer) -> None:
    url = own.url(own.database())
    feeds = [f"account:{n}" for n in range(3)]
    told: list[Stored] = []
    running = True
    unknown = 0

    async def agency(store: PostgresqlStore, n: int) -> None:
        nonlocal unknown
        number = 0
        while running:
            drafts = [draft(f"{n}/{number}/{k}", feeds[(number + k) % 3], text="x" * 500) for k in range(5)]
            try:
                told.extend(stored(await store.append(drafts, NOW)))
                number += 1
            except StoreUnavailable:
                unknown += 1
                await asyncio.sleep(0.02)  # sent again, with the same names

    async with opened(url) as one, opened(url) as two:
        epoch = one.epoch
        agencies = [asyncio.create_task(agency((one, two)[n % 2], n)) for n in range(6)]
        dice = random.Random(3)
        for _ in range(3):
            await asyncio.sleep(0.3 + dice.random() * 0.3)
            await asyncio.to_thread(own.kill)
            seen = len(told)
            own.start()  # on this thread: it ends with the thread that started it
            await ready(one)
            async with asyncio.timeout(20):
                while len(told) < seen + 50:
                    await asyncio.sleep(0.01)
        running = False
        await asyncio.gather(*agencies)
        assert unknown
        rows = await everything(two, feeds)
        assert all(rows[outcome.feed, outcome.offset] == outcome.row for outcome in told)
        assert one.epoch == two.epoch == epoch, "a crash loses nothing that was acknowledged"
        waiting = await one.unpublished(NOW + 1, 1_000_000)
        assert {(found.feed, found.offset) for found in waiting} == set(rows)


async def test_connections_that_are_cut_hurt_at_most_the_calls_on_them(store: PostgresqlStore, url: str) -> None:
    await fill(store, 3)
    cut = """
        SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
        WHERE application_name = 'vestnik' AND datname = current_database()"""
    told: list[Stored] = []
    running = True

    async def agency(n: int) -> None:
        number = 0
        while running:
            with suppress(StoreUnavailable):
                told.extend(stored(await store.append([draft(f"{n}/{number}", "account:bob")], NOW)))
                number += 1

    async def reader() -> None:
        while running:
            assert offsets(await page(store)) == [1, 2, 3]

    tasks = [asyncio.create_task(agency(n)) for n in range(3)]
    readers = [asyncio.create_task(reader()) for _ in range(2)]
    for _ in range(5):
        await asyncio.sleep(0.05)
        await asyncio.to_thread(count, cut, url)
    await asyncio.sleep(0.1)
    running = False
    await asyncio.gather(*tasks)
    for task in readers:
        with suppress(StoreUnavailable):
            await task
    await ready(store)
    rows = await everything(store, ["account:bob"])
    assert all(rows[outcome.feed, outcome.offset] == outcome.row for outcome in told)


async def test_an_idle_connection_that_was_cut_is_not_noticed(store: PostgresqlStore, url: str) -> None:
    await fill(store, 3)
    for _ in range(3):
        count(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE application_name = 'vestnik' AND datname = current_database()",
            url,
        )
        assert offsets(await page(store)) == [1, 2, 3]


async def test_a_frozen_server_is_unavailable_within_bounds(
    own: PostgresqlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "CALL_S", 0.5)
    monkeypatch.setattr(database, "CONNECT_S", 0.5)
    async with opened(own.url(own.database())) as store:
        await fill(store, 3)
        own.freeze()
        try:
            began = time.monotonic()
            calls = [store.append([draft(f"{n}")], NOW) for n in range(3)] + [page(store)]
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(result) for result in results} == {StoreUnavailable}
            assert await store.ready() is False
            assert time.monotonic() - began < 5
        finally:
            own.thaw()
        await ready(store)
        assert (await page(store)).head in range(3, 7), "the outcome was unknown"
        assert stored(await store.append([draft(f"{n}") for n in range(3)], NOW))
        assert (await page(store)).head == 6


async def test_a_node_that_freezes_inside_a_transaction_loses_its_locks(store: PostgresqlStore, url: str) -> None:
    await fill(store, 1)
    frozen = await database.plain(parse(url))
    try:
        await frozen.execute("SET idle_in_transaction_session_timeout = '300ms'")
        await frozen.execute("BEGIN")
        assert await frozen.fetch("SELECT FROM feeds FOR UPDATE")
        began = time.monotonic()
        assert (await fill(store, 1, now=NOW + 1))[0].offset == 2
        assert time.monotonic() - began > 0.1
    finally:
        frozen.terminate()
    assert database.IDLE_S < database.LOCK_S < database.STATEMENT_S < database.CALL_S


async def test_a_lock_held_too_long_is_unavailable(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(url) as store:
        await fill(store, 1)
        monkeypatch.setattr(database, "_SETTINGS", database._SETTINGS + "SET lock_timeout = '100ms';")
        async with opened(url) as other:
            holder = await database.plain(parse(url))
            try:
                await holder.execute("BEGIN")
                await holder.fetch("SELECT FROM feeds FOR UPDATE")
                with pytest.raises(StoreUnavailable, match="55P03"):
                    await other.append([draft("a")], NOW)
                assert offsets(await page(other)) == [1], "reading goes on"
                assert len(stored(await other.append([draft("b", "account:bob")], NOW))) == 1
            finally:
                holder.terminate()
            assert len(stored(await other.append([draft("a")], NOW))) == 1


async def test_a_cancelled_call_leaves_no_transaction_behind(store: PostgresqlStore, url: str) -> None:
    calls = [asyncio.create_task(store.append([draft(f"{n}")], NOW)) for n in range(20)]
    await asyncio.sleep(0.01)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    await fill(store, 1, "account:bob")
    await store.close()
    where = "datname = current_database() AND state LIKE 'idle in transaction%'"
    assert count(f"SELECT count(*) FROM pg_stat_activity WHERE {where}", url) == 0


async def test_the_limit_of_connections_is_passing(own: PostgresqlServer) -> None:
    name = own.database()
    own.sql(f"CREATE ROLE one LOGIN PASSWORD 'x' CONNECTION LIMIT 1; GRANT CREATE ON DATABASE {name} TO one")
    async with opened(own.url(name, "one", "x")) as store:
        results = await asyncio.gather(*(store.append([draft(f"{n}")], NOW) for n in range(4)), return_exceptions=True)
        assert {type(result) for result in results} == {list, StoreUnavailable}
        assert await store.ready()


# A disk that is full


@contextmanager
def small_disk(server: PostgresqlServer, size: int) -> Iterator[Callable[[], None]]:
    """Tables in the tablespace `small` may take about `size` bytes until the yielded function is called. A real small
    disk where that may be mounted, else a limit on the size of each file of the server."""
    path = server.directory / "small"
    path.mkdir()
    mounted = mount("-t", "tmpfs", "-o", f"size={size},mode=777", "tmpfs", str(path))
    if mounted:
        (path / "space").mkdir()
    space = path / "space" if mounted else path
    if not mounted:
        limit(server, size)
    else:
        server.give(space)
    server.sql(f"CREATE TABLESPACE small LOCATION '{space}'")
    try:
        yield lambda: mount("-o", "remount,size=256m", str(path)) if mounted else limit(server, resource.RLIM_INFINITY)
    finally:
        server.kill()
        if mounted:
            subprocess.run(["umount", "--lazy", str(path)], check=True)


def mount(*arguments: str) -> bool:
    return subprocess.run([shutil.which("mount") or "false", *arguments], capture_output=True).returncode == 0


def limit(server: PostgresqlServer, size: int) -> None:
    assert server.pid
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


async def test_a_full_disk_refuses_and_loses_nothing(own: PostgresqlServer) -> None:
    with small_disk(own, 24_000_000) as make_room:
        own.sql("CREATE DATABASE full_one TABLESPACE small")
        async with opened(own.url("full_one")) as store:
            done: list[Stored] = []
            refused = 0
            dice = random.Random(5)
            for n in range(2000):
                batch = [draft(f"{n}-{k}", f"account:{k}", text=dice.randbytes(20_000).hex()) for k in range(3)]
                try:
                    done += stored(await store.append(batch, NOW))
                except StoreUnavailable:
                    refused += 1
                    if refused == 5:
                        break
            assert refused == 5, "the disk never was full"
            assert done
            rows = await everything(store, [f"account:{k}" for k in range(3)])
            assert all(rows[outcome.feed, outcome.offset] == outcome.row for outcome in done), "reading goes on"
            make_room()
            await ready(store)
            assert len({found.head for found in await store.read([Range(f"account:{k}", 0) for k in range(3)])}) == 1
            await fill(store, 3, "account:more")


# Another server


@pytest.mark.parametrize("fate", ["killed", "frozen"])
async def test_a_standby_is_no_store_and_its_promotion_is_another_life(
    own: PostgresqlServer, fate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "CALL_S", 1.0)
    monkeypatch.setattr(database, "CONNECT_S", 1.0)
    name = own.database()
    async with opened(own.url(name)) as store:
        await fill(store, 3)
        await joined(store, hello())
        epoch = store.epoch
    with own.standby() as standby:
        only, both = standby.url(name), own.url(name, also=standby)
        with pytest.raises(StoreUnavailable, match="no server that can be written"):
            await PostgresqlStore(only).open()
        async with opened(both) as store, opened(f"{both}?standbys=synchronous") as trusting:
            assert store.epoch == trusting.epoch == epoch
            await fill(store, 3, now=NOW + 1)
            own.kill() if fate == "killed" else own.freeze()
            standby.run("pg_ctl", "promote", "--pgdata", str(standby.data), "--wait")
            await ended(store)
            assert await store.ready() is False
            with pytest.raises(EpochChanged):
                await page(store)
            await store.close()
            await store.open()
            assert store.epoch != epoch, "what the standby lacked nobody knows"
            result = await joined(store, hello(resume={ANN: (epoch, 2)}))
            assert result.starts[0].reason == "epoch"
            # Those who were sure that it lacked nothing see the epoch of those who were not.
            await ended(trusting)


async def test_a_gateway_ends_when_the_store_is_another_one(own: PostgresqlServer, tmp_path: Path) -> None:
    name = own.database()
    where = {"VESTNIK_STORE": own.url(name), "VESTNIK_DATA": str(tmp_path), "VESTNIK_LOG_FORMAT": "json"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway.cli", "serve", "--port", "0"),
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | where,
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(30):
            while b'"listening"' not in (line := await process.stderr.readline()):
                assert line, "it did not start"
        own.sql("UPDATE vestnik.meta SET epoch = 'another'", name)
        own.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'vestnik'")
        async with asyncio.timeout(20):
            said = (await process.stderr.read()).decode()
            assert await process.wait() == 1, "whoever watches it starts the next"
        assert "epoch_changed" in said
        assert '"stopped"' in said
        assert PASSWORD not in said
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def ended(store: PostgresqlStore) -> None:
    """It finds that the epoch is another one."""
    async with asyncio.timeout(30):
        while True:
            try:
                await store.append([draft("a")], NOW)
            except EpochChanged:
                return
            except StoreUnavailable:
                await asyncio.sleep(0.02)


async def test_a_synchronous_standby_goes_on_with_the_same_life(own: PostgresqlServer) -> None:
    name = own.database()
    async with opened(own.url(name)) as store:
        await fill(store, 3)
    with own.standby() as standby:
        url = own.url(name, also=standby) + "?standbys=synchronous"
        async with opened(url) as store:
            epoch = store.epoch
            async with asyncio.timeout(20):
                own.sql("ALTER SYSTEM SET synchronous_standby_names = '*'")
                own.sql("SELECT pg_reload_conf()")
                while own.sql("SELECT sync_state FROM pg_stat_replication") != "sync":
                    await asyncio.sleep(0.02)
            last = (await fill(store, 3, now=NOW + 1))[-1]
            own.kill()
            standby.sql("ALTER SYSTEM SET synchronous_standby_names = ''")
            standby.run("pg_ctl", "promote", "--pgdata", str(standby.data), "--wait")
            await ready(store)
            assert store.epoch == epoch
            assert (await page(store)).rows[-1] == last.row
            assert (await fill(store, 1, now=NOW + 2))[0].offset == 7
        async with opened(url) as store:
            assert store.epoch == epoch


async def test_a_copied_database_is_another_life(url: str) -> None:
    async with opened(url) as store:
        await fill(store, 3)
        epoch = store.epoch
    name = url.rpartition("/")[2]
    SERVER().sql(f"CREATE DATABASE copy_of_{name} TEMPLATE {name}")
    async with opened(SERVER().url(f"copy_of_{name}")) as copy, opened(url) as store:
        assert copy.epoch != epoch
        assert store.epoch == epoch
        assert (await page(copy)).head == 3


async def test_nobody_opens_a_store_while_it_is_held_alone(url: str) -> None:
    async with opened(url):
        alone = await database.plain(parse(url))
        try:
            assert await alone.fetchval("SELECT pg_try_advisory_lock($1)", database.OPEN) is False
        finally:
            await database.end(alone)
    alone = await database.plain(parse(url))
    try:
        assert await alone.fetchval("SELECT pg_try_advisory_lock($1)", database.OPEN) is True
        with pytest.raises(StoreUnavailable, match="migrated"):
            await PostgresqlStore(url).open()
    finally:
        await database.end(alone)


async def test_one_gateway_alone_on_a_database(url: str, tmp_path: Path) -> None:
    """With a bus that reaches nobody else. However the first ends, the next may run."""
    let_go = await hold_alone(url, tmp_path)
    assert let_go is not None
    with pytest.raises(ConfigError, match=r"^VESTNIK_BUS must reach all gateways on .* already\.$"):
        await hold_alone(url, tmp_path)
    await let_go()
    again = await hold_alone(url, tmp_path)
    assert again is not None
    await again()


# What never works is one sentence, without the password


async def sentence(url: str, **more: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        await PostgresqlStore(url, **more).open()
    said = str(caught.value)
    assert said.startswith("VESTNIK_STORE")
    assert said.endswith(".")
    assert PASSWORD not in said
    assert "s3cr" not in said
    assert "hunter2" not in said
    return said


async def test_a_wrong_password_or_user() -> None:
    assert "refuses the user" in await sentence(SERVER().url(password="hunter2"))
    assert "refuses the user" in await sentence(SERVER().url(user="nobody"))


async def test_no_such_database() -> None:
    assert "there is no database 'none'" in await sentence(SERVER().url("none"))


async def test_a_user_that_may_not_make_the_tables() -> None:
    SERVER().sql("DROP ROLE IF EXISTS guest; CREATE ROLE guest LOGIN PASSWORD 'hunter2'")
    assert "grant it CREATE" in await sentence(SERVER().url(SERVER().database(), "guest", "hunter2"))


async def test_a_plain_user_is_enough() -> None:
    server = SERVER()
    server.sql("DROP ROLE IF EXISTS plain; CREATE ROLE plain LOGIN PASSWORD 'x'")
    name = server.database()
    server.sql(f"GRANT CREATE ON DATABASE {name} TO plain")
    async with opened(server.url(name, "plain", "x")) as store:
        await fill(store, 3)
        await store.erase(ANN, 1, eraser("e"), NOW)
        assert await store.retain(NOW) == 0
    server.sql(f"REVOKE CREATE ON DATABASE {name} FROM plain")
    async with opened(server.url(name, "plain", "x")) as store:
        assert (await page(store)).head == 4


async def test_an_encoding_that_cannot_hold_every_text() -> None:
    server = SERVER()
    server.sql("DROP DATABASE IF EXISTS latin")
    server.sql("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0")
    assert "has the encoding LATIN1; the store needs UTF8" in await sentence(server.url("latin"))


async def test_a_server_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "OLDEST_SERVER", 99)
    assert "the store needs 99 or newer" in await sentence(SERVER().url())


async def test_a_newer_schema_and_another_programs(url: str) -> None:
    name = url.rpartition("/")[2]
    async with opened(url):
        pass
    try:
        SERVER().sql("UPDATE vestnik.meta SET schema = 99", name)
        assert "has schema 99" in await sentence(url)
    finally:
        SERVER().sql(f"UPDATE vestnik.meta SET schema = {len(schema.migrations())}", name)
    other = SERVER().database()
    SERVER().sql("CREATE SCHEMA vestnik; CREATE TABLE vestnik.things (a int)", other)
    assert "of another program" in await sentence(SERVER().url(other))


async def test_a_store_that_must_be_there() -> None:
    assert "holds no store" in await sentence(SERVER().url(SERVER().database()), make=False)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://vestnik:hunter2/x@127.0.0.1/db",
        "postgresql://vestnik:hunter2@2@127.0.0.1/db",
        "postgresql://vestnik:x@127.0.0.1:hunter2/db",
        "postgresql://vestnik:hunter2#x@127.0.0.1/db",
        "postgresql://vestnik:hunter2?x@127.0.0.1/db",
        "postgresql://vestnik:x@[::1/db",
        "postgresql://vestnik:hunter2@127.0.0.1/db?search_path=public",
        "postgresql://vestnik:hunter2@127.0.0.1/db?standbys=maybe",
        "postgresql://vestnik:hunter2@127.0.0.1/db?sslmode=hunter",
        "postgresql://vestnik:hunter2@127.0.0.1/db?sslmode=verify-full&sslrootcert=/nowhere/at/all",
    ],
)
async def test_a_url_that_is_none(url: str) -> None:
    await sentence(url)


async def test_a_server_that_is_not_there_is_passing() -> None:
    port = postgresql_server.free_port()
    with pytest.raises(StoreUnavailable, match="cannot be reached") as caught:
        await PostgresqlStore(f"postgresql://{USER}:hunter2@127.0.0.1:{port}/db").open()
    assert "hunter2" not in str(caught.value)
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        await PostgresqlStore(f"postgresql:///db?host={Path('/nowhere')}").open()


# Erasure


async def test_what_was_erased_leaves_the_tables_with_the_next_round_of_retention(own: PostgresqlServer) -> None:
    name = own.database()
    async with opened(own.url(name)) as store:
        await store.append([draft("a", text="of ann"), draft("b", text="long" * 5000)], NOW)
        await store.erase(ANN, None, eraser("e1"), NOW)
        own.sql("CREATE EXTENSION pageinspect", name)
        pages = "SELECT count(*) FROM heap_page_items(get_raw_page('vestnik.events', 0)) WHERE lp_len > 0"
        assert own.sql(pages, name) == "5", "two events, what is left of them, and what tells of it"
        assert await store.retain(NOW - 100) == 0
        assert own.sql(pages, name) == "3"
        assert own.sql("SELECT erased FROM vestnik.meta", name) == "0"
        toast = "(SELECT reltoastrelid FROM pg_class WHERE oid = 'vestnik.events'::regclass)"
        assert own.sql(f"SELECT pg_relation_size({toast})", name) == "0", "long texts lie in a table of their own"
