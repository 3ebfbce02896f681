import time

import pytest

from gateway.bus.memory import MemoryBus
from gateway.metrics import Counts
from gateway.settings import Settings
from gateway.store.base import Presence
from gateway.store.memory import MemoryStore
from tests.workers.test_relay import NOW, append, claim
from workers import retention, tidy
from workers.claims import Claim
from workers.retention import Retention
from workers.roles import make
from workers.tidy import Tidy


async def test_one_holds_it_until_it_lets_go_or_dies() -> None:
    store = MemoryStore()
    await store.open()
    one, other = claim(store), claim(store)
    assert await one.take()
    assert await one.take(), "again, for longer"
    assert not await other.take()
    await other.release()
    assert not await other.take(), "it is not its to let go"
    await one.release()
    assert await other.take()
    assert not await claim(store, at=NOW + 4.9).take()
    assert await claim(store, at=NOW + 5).take(), "the owner died"
    assert await claim(store, "else").take()


async def test_operators_see_which_process_holds_it() -> None:
    store = MemoryStore()
    await store.open()
    (alerts,) = make(["alerts"], Settings(), store, MemoryBus(), Counts(), owner="1f2e3d4c")
    await alerts.step()
    ((name, owner),) = [(lease.name, lease.owner) for lease in await store.leases("role:", time.time())]
    assert (name, owner) == ("role:alerts", "1f2e3d4c")


async def test_retention_is_done_by_one_and_let_go_when_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "CHUNK", 10)
    store = MemoryStore()
    await store.open()
    await append(store, 0, 15)
    one = Retention(store, claim(store), keep_s=0, breath_s=0, clock=lambda: NOW + 1)
    other = Retention(store, claim(store), keep_s=0, breath_s=0, clock=lambda: NOW + 1)
    assert await one.step()
    assert not await other.step()
    assert (await store.heads(["account:a"]))["account:a"].oldest == 11, "the other did nothing"
    assert await one.step()
    assert not await one.step()
    assert await store.lease("role:work", "x", NOW + 5, NOW), "it was let go"


async def test_tidy_forgets_what_ended_long_ago_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tidy, "LIMIT", 2)
    store = MemoryStore()
    await store.open()
    for number in range(3):
        await store.enter([Presence(f"a{number}", "d", "gone", f"gone-{number}")], NOW)
    await store.lease("node:alive", "alive", NOW + 2 * tidy.OLD_S, NOW)
    await store.enter([Presence("b", "d", "alive", "alive-1")], NOW)
    role = Tidy(store, claim(store), clock=lambda: NOW + tidy.OLD_S + 1)
    busy = Tidy(store, Claim(store, "work", 5, lambda: NOW), clock=role._clock)
    assert await role.step()
    assert not await busy.step()
    assert not await role.step()
    assert list(store._presences) == [("b", "d")]
