"""From a SQLite file to a PostgreSQL database, with everything, whatever comes in between."""

import asyncio
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gateway.cli import cli
from gateway.errors import ConfigError, StoreUnavailable, VestnikError
from gateway.store.base import Revocation, Stored
from gateway.store.migrate import TABLES, migrate
from gateway.store.postgresql import PostgresqlStore
from gateway.store.sqlite import SqliteStore
from tests import postgresql_server
from tests.contracts.test_store import (
    ANN,
    NOW,
    Dice,
    draft,
    eraser,
    fill,
    hello,
    hmac,
    joined,
    picture,
    signed,
    stored,
    thing,
)
from tests.postgresql_server import PostgresqlServer


@pytest.fixture
def url() -> str:
    """An empty database."""
    server = postgresql_server.shared()
    return server.url(server.database())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vestnik.db"


async def lived(path: Path, seed: int = 1) -> list[Any]:
    """A store that has seen everything, closed; its picture."""
    store = SqliteStore(path)
    await store.open()
    dice = Dice(seed, store.epoch)
    for _ in range(200):
        name, args, more = dice.call()
        await getattr(store, name)(*args, **more)
    await store.append([thing("car1", "car", 100), draft("s", original=signed(b"\x00\xff body"))], NOW)
    await store.append([draft(f"big{n}", "account:carol", text="ы" * 20_000) for n in range(5)], NOW)
    await store.erase("account:carol", 2, lambda ranges: draft("erased", "account:carol", type="gov.erased"), NOW)
    await store.seen([("account:carol", [1, 3], NOW)])
    await joined(store, hello("phone", account="carol", agent="a\x00b «в»"))
    await store.add_agency_key("tax", hmac("k1"), ["gov.notice.sent", "gov.status.changed"], NOW)
    await store.add_agency_key("law", hmac("k1", retired=NOW), None, NOW + 0.000001)
    await store.revoke(Revocation("sub", "ann", NOW))
    found = await seen_of(store)
    await store.close()
    return found


async def seen_of(store: Any) -> list[Any]:
    devices = [(d.device, (d.agent or "").replace("\0", "")) for d in await store.devices("carol")]
    return [
        store.epoch,
        await picture(store),
        await store.agencies(),
        sorted(await store.revocations(), key=repr),
        await store.revision(),
        devices,
        await store.unpublished(NOW + 10_000, 10_000),
    ]


async def opened(url: str) -> PostgresqlStore:
    store = PostgresqlStore(url)
    await store.open()
    return store


async def test_everything_goes_over(path: Path, url: str) -> None:
    before = await lived(path)
    steps: list[tuple[str, int, int]] = []
    moved = await migrate(path, url, lambda *step: steps.append(step))
    assert (moved.epoch, moved.resumed) == (before[0], False)
    assert set(moved.rows) == {table.name for table in TABLES}
    assert all(moved.rows.values()), "each table had something to move"
    assert steps[-1][1] == steps[-1][2] == 2 * sum(moved.rows.values())
    assert [done for _, done, _ in steps] == sorted(done for _, done, _ in steps)
    store = await opened(url)
    try:
        assert await seen_of(store) == before
    finally:
        await store.close()


async def test_life_goes_on_as_it_would_have(path: Path, url: str, tmp_path: Path) -> None:
    await lived(path)
    twin = tmp_path / "twin.db"
    with closing(sqlite3.connect(path)) as here, closing(sqlite3.connect(twin)) as there:
        here.backup(there)
    await migrate(path, url)
    one, two = await opened(url), SqliteStore(twin)
    await two.open()
    try:
        assert one.epoch == two.epoch
        dice, same = Dice(2, one.epoch), Dice(2, one.epoch)
        for _ in range(150):
            name, args, more = dice.call()
            _, again, _ = same.call()
            assert await getattr(one, name)(*args, **more) == await getattr(two, name)(*again, **more), name
        assert await seen_of(one) == await seen_of(two)
    finally:
        await one.close()
        await two.close()


async def test_a_store_without_anything_goes_over_too(path: Path, url: str) -> None:
    store = SqliteStore(path)
    await store.open()
    await store.close()
    moved = await migrate(path, url)
    assert not any(moved.rows.values())
    target = await opened(url)
    assert (target.epoch, await target.revision()) == (moved.epoch, 0)
    assert (await fill(target, 1))[0].seq == 1
    await target.close()


async def test_the_file_becomes_a_copy_with_another_epoch(path: Path, url: str) -> None:
    before = await lived(path)
    await migrate(path, url)
    store = SqliteStore(path)
    await store.open()
    assert store.epoch != before[0]
    assert (await joined(store, hello("phone", account="carol"))).starts[0].reason == "epoch"
    await store.close()
    with pytest.raises(ConfigError, match="holds a store already"):
        await migrate(path, url)


class Stop(Exception):
    pass


def stop_at(place: str, then: Callable[[], None] | None = None) -> Callable[[str, int, int], None]:
    def progress(what: str, done: int, total: int) -> None:
        if what == place:
            if then is None:
                raise Stop(what)
            then()

    return progress


async def test_it_goes_on_where_it_was_stopped(path: Path, url: str) -> None:
    before = await lived(path)
    for place in ("copying feeds", "copying originals", "copying cursors", "comparing things"):
        with pytest.raises(Stop):
            await migrate(path, url, stop_at(place))
        with pytest.raises(ConfigError, match="run `vestnik migrate` to its end"):
            await opened(url)
    steps: list[int] = []
    moved = await migrate(path, url, lambda what, done, all: steps.append(done))
    total = sum(moved.rows.values())
    assert moved.resumed
    assert steps[-1] == 2 * total
    store = await opened(url)
    assert await seen_of(store) == before
    await store.close()


async def test_a_file_that_changed_in_between_is_copied_anew(path: Path, url: str) -> None:
    await lived(path)
    with pytest.raises(Stop):
        await migrate(path, url, stop_at("copying devices"))
    store = SqliteStore(path)
    await store.open()
    await store.touch([("carol", "phone", NOW + 77)])
    await store.append([draft("later", "account:carol")], NOW + 77)
    after = await seen_of(store)
    await store.close()
    assert not (await migrate(path, url)).resumed
    target = await opened(url)
    assert await seen_of(target) == after
    await target.close()


async def test_finished_but_not_told(path: Path, url: str) -> None:
    """Killed between the last commit and the new epoch of the file."""
    before = await lived(path)
    await migrate(path, url)
    with closing(sqlite3.connect(path)) as file:
        file.execute("UPDATE meta SET epoch = ?", (before[0],))
        file.commit()
    assert (await migrate(path, url)).resumed
    with closing(sqlite3.connect(path)) as file:
        assert file.execute("SELECT epoch FROM meta").fetchone()[0] != before[0]


async def test_a_server_that_is_killed_in_the_middle(path: Path) -> None:
    before = await lived(path)
    with PostgresqlServer() as server:
        url = server.url(server.database())
        with pytest.raises(StoreUnavailable):
            await migrate(path, url, stop_at("copying devices", server.kill))
        server.start()
        await migrate(path, url)
        store = await opened(url)
        assert await seen_of(store) == before
        await store.close()


async def test_what_differs_in_the_end_is_no_store(path: Path, url: str) -> None:
    before = await lived(path)
    name = url.rpartition("/")[2]
    spoiled = False

    def spoil(what: str, done: int, total: int) -> None:
        nonlocal spoiled
        if what == "comparing feeds" and not spoiled:
            spoiled = True
            postgresql_server.shared().sql('UPDATE vestnik.cursors SET "offset" = "offset" + 1', name)

    with pytest.raises(VestnikError, match="Table cursors differs"):
        await migrate(path, url, spoil)
    await migrate(path, url)
    store = await opened(url)
    assert await seen_of(store) == before
    await store.close()


async def test_neither_side_may_be_in_use(path: Path, url: str) -> None:
    await lived(path)
    source = SqliteStore(path)
    await source.open()
    with pytest.raises(ConfigError, match="is in use: stop the gateway and its workers first"):
        await migrate(path, url)
    await source.close()
    target = await opened(url)
    with pytest.raises(ConfigError, match="is in use: stop its gateways and workers first"):
        await migrate(path, url)
    await target.close()
    assert not (await migrate(path, url)).resumed, "a store without anything in it counts as empty"


async def test_what_is_there_is_never_overwritten(path: Path, url: str, tmp_path: Path) -> None:
    await lived(path)
    target = await opened(url)
    await fill(target, 1)
    await target.close()
    with pytest.raises(ConfigError, match="holds a store already"):
        await migrate(path, url)
    other = postgresql_server.shared().url(postgresql_server.shared().database())
    with pytest.raises(Stop):
        await migrate(path, other, stop_at("copying devices"))
    await lived(tmp_path / "another.db")
    with pytest.raises(ConfigError, match="holds a part of another store"):
        await migrate(tmp_path / "another.db", other)


async def test_files_that_are_no_stores(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match="There is no store at"):
        await migrate(tmp_path / "none.db", url)
    (tmp_path / "text").write_text("not a database" * 100)
    with pytest.raises(ConfigError, match="cannot be moved"):
        await migrate(tmp_path / "text", url)
    (tmp_path / "nothing").touch()
    with pytest.raises(ConfigError, match="it is empty"):
        await migrate(tmp_path / "nothing", url)


# The commands


def run(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(cli, list(arguments), env=environment, prog_name="vestnik")


def test_the_command(path: Path, url: str) -> None:
    before = asyncio.run(lived(path))
    done = run("migrate", f"sqlite:///{path}", url, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["epoch"] == before[0]
    assert "were compared" in done.stderr
    again = run("migrate", f"sqlite:///{path}", url)
    assert again.exit_code == 3
    assert "holds a store already" in again.stderr
    assert postgresql_server.PASSWORD not in again.output


def test_the_command_goes_one_way(path: Path, url: str) -> None:
    for arguments in ((url, f"sqlite:///{path}"), ("memory://", url), (f"sqlite:///{path}", "memory://")):
        done = run("migrate", *arguments)
        assert done.exit_code == 1
        assert "in no other way" in done.stderr
        assert postgresql_server.PASSWORD not in done.output


def test_other_commands_on_postgresql(url: str, tmp_path: Path) -> None:
    use = {"VESTNIK_STORE": url, "VESTNIK_DATA": str(tmp_path)}
    refused = run("erase", "--account", "ann", "--yes", **use)
    assert refused.exit_code == 3
    assert "holds no store" in refused.stderr
    assert run("agency", "add", "tax", **use).exit_code == 0
    assert "\ntax " in run("agency", "list", **use).stdout
    backup = run("backup", str(tmp_path / "copy"), **use)
    assert backup.exit_code == 3
    assert "pg_dump" in backup.stderr


async def _first(url: str) -> Stored:
    store = await opened(url)
    [outcome] = stored(await store.append([draft("a")], NOW))
    await store.close()
    return outcome


def test_a_new_epoch_by_hand(url: str, path: Path) -> None:
    use = {"VESTNIK_STORE": url}
    assert run("restore", "--new-epoch", **use).exit_code == 3, "there is no store"
    before = asyncio.run(_first(url))
    done = run("restore", "--new-epoch", "--json", **use)
    assert done.exit_code == 0, done.output
    after = asyncio.run(_first(url))
    assert (after.duplicate, after.offset, after.epoch) == (True, before.offset, json.loads(done.stdout)["epoch"])
    assert after.epoch != before.epoch
    assert "own tools" in run("restore", str(path), **use).stderr
    assert "is for a store on PostgreSQL" in run("restore", "--new-epoch", VESTNIK_STORE=f"sqlite:///{path}").stderr


async def test_no_new_epoch_while_somebody_is_there(url: str) -> None:
    store = await opened(url)
    done = await asyncio.to_thread(run, "restore", "--new-epoch", VESTNIK_STORE=url)
    assert done.exit_code == 3
    assert "is in use" in done.stderr
    make = eraser("e")
    assert await store.erase(ANN, None, make, NOW) is None
    await store.close()
