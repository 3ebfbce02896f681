"""The roster with a store in memory that several nodes share, and a bus whose messages a test delivers or loses."""

import asyncio
from collections.abc import AsyncIterator

import orjson
import pytest

from gateway import roster
from gateway.errors import StoreUnavailable
from gateway.store.base import Presence
from tests.kit import Air, Bench, Clock, Held, Phone, use_clock

REDIS = "redis://127.0.0.1:1"


class Wire(Air):
    """A bus to all nodes; `lost` loses what is announced."""

    def __init__(self) -> None:
        super().__init__()
        self.listeners: list[object] = []
        self.lost = False
        self.said: list[dict[str, object]] = []

    async def announce(self, payload: bytes) -> None:
        self._up()
        self.said.append(orjson.loads(payload))
        for listener in self.listeners if not self.lost else ():
            listener.control(payload)  # type: ignore[attr-defined]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = use_clock(monkeypatch)
    monkeypatch.setattr(roster, "time", clock)
    return clock


@pytest.fixture
async def nodes(clock: Clock) -> AsyncIterator[list[Bench]]:
    """Two of them, with their leases."""
    store, wire = Held(), Wire()
    benches = [Bench(clock, store, wire, bus=REDIS) for _ in range(2)]
    wire.listeners = [bench.control for bench in benches]
    for bench in benches:
        await bench.hub.roster.open()
    yield benches
    for bench in benches:
        await bench.stop()
        await bench.hub.roster.stop()


async def settle(nodes: list[Bench]) -> None:
    for node in nodes:
        await node.settle()


async def compare(node: Bench) -> None:
    """One look at all sessions."""
    hub = node.hub
    hub.roster.gap()
    looking = asyncio.create_task(hub.roster._comparisons(hub.all_sessions, hub.displaced))
    await node.settle()
    looking.cancel()
    await asyncio.wait([looking])


async def test_a_hello_on_another_node_closes_the_older_session_at_once(nodes: list[Bench]) -> None:
    older = await nodes[0].connect()
    newer = await nodes[1].connect()
    await settle(nodes)
    assert older.closed == (4409, "a newer session of this device")
    assert newer.closed is None
    again = await nodes[0].connect()
    await settle(nodes)
    assert (newer.closed or (0,))[0] == 4409
    assert again.closed is None


async def test_what_the_bus_lost_is_found_by_comparing(nodes: list[Bench]) -> None:
    wire = nodes[0].air
    assert isinstance(wire, Wire)
    wire.lost = True
    older = await nodes[0].connect()
    other = await nodes[0].connect("a", "d2")
    newer = await nodes[1].connect()
    assert older.closed is None
    await compare(nodes[1])
    await compare(nodes[0])
    assert older.closed == (4409, "a newer session of this device")
    assert (newer.closed, other.closed) == (None, None)


async def test_only_sessions_of_other_nodes_are_announced(nodes: list[Bench]) -> None:
    wire = nodes[0].air
    assert isinstance(wire, Wire)
    older = await nodes[0].connect()
    await nodes[0].connect()
    assert older.closed == (4409, "a newer session of this device")
    assert wire.said == []
    await nodes[1].connect()
    await settle(nodes)
    assert [said["k"] for said in wire.said] == ["newer"]


async def test_a_late_word_of_an_older_session_closes_nothing(nodes: list[Bench]) -> None:
    phone = await nodes[0].connect()
    entered = phone.session.entered
    for since, closed in ((entered - 1, None), (entered, None), (entered + 1, 4409)):
        nodes[0].control.control(orjson.dumps({"k": "newer", "sessions": [["a", "d1", "other", "other-1", since]]}))
        assert (phone.closed and phone.closed[0]) == closed


@pytest.mark.parametrize("said", [{}, {"sessions": [[]]}, {"sessions": [["a", "d1"]]}, {"sessions": 5}])
async def test_nonsense_on_the_bus_harms_nobody(nodes: list[Bench], said: dict[str, object]) -> None:
    phone = await nodes[0].connect()
    nodes[0].control.control(orjson.dumps({"k": "newer", **said}))
    assert phone.closed is None


async def test_a_session_that_ends_leaves_the_roster_with_the_next_flush(nodes: list[Bench]) -> None:
    phone = await nodes[0].connect()
    roster_ = nodes[1].hub.roster
    assert await roster_.connected("a") == {"d1"}
    phone.session.lost(1001)
    await nodes[0].hub._flush()
    assert await roster_.connected("a") == frozenset()


async def test_who_was_refused_or_left_on_the_way_in_is_not_in_the_roster(nodes: list[Bench]) -> None:
    store = nodes[0].store
    store.slow = True
    phone = nodes[0].hello()
    await nodes[0].settle()
    phone.session.lost(1006)
    store.slow = False
    store.answer()
    await nodes[0].settle()
    await nodes[0].hub.roster.flush()
    assert await nodes[1].hub.roster.connected("a") == frozenset()


async def test_a_connected_device_on_another_node_is_not_forgotten(nodes: list[Bench]) -> None:
    phones = [await nodes[n % 2].connect("a", f"d{n}") for n in range(10)]
    refused = await nodes[0].connect("a", "eleventh")
    assert refused.closed is not None
    assert refused.closed[0] == 4403
    await nodes[0].hub.roster.flush()
    assert await nodes[1].hub.roster.connected("a") == {f"d{n}" for n in range(10)}
    phones[3].session.lost(1001)
    await nodes[1].hub._flush()
    assert (await nodes[0].connect("a", "eleventh")).closed is None


async def test_a_device_that_was_signed_out_is_closed_without_the_bus(nodes: list[Bench]) -> None:
    phone = await nodes[0].connect()
    nodes[0].air.down = True
    await nodes[1].control.sign_out("a", "d1")
    await compare(nodes[0])
    assert phone.closed == (4410, "the device was signed out")
    assert await nodes[1].hub.roster.connected("a") == frozenset()
    nodes[0].air.down = False
    assert (await nodes[0].connect()).closed is None


async def test_a_late_word_of_a_sign_out_ends_no_later_session(nodes: list[Bench]) -> None:
    """A Redis that hung delivers what it was given before."""
    wire = nodes[0].air
    assert isinstance(wire, Wire)
    phone = await nodes[0].connect()
    wire.lost = True
    await nodes[1].control.sign_out("a", "d1")
    again = await nodes[0].connect()
    assert again.closed is None
    for said in wire.said:
        nodes[0].control.control(orjson.dumps(said))
    assert phone.closed is not None
    assert again.closed is None


async def test_a_node_without_a_lease_compares_at_once_when_it_has_one_again(nodes: list[Bench], clock: Clock) -> None:
    lease_s = nodes[0].settings.lease_s
    assert not nodes[0].hub.roster._wanted.is_set()
    clock.now += lease_s - 1
    await nodes[0].hub.roster._lease()
    assert not nodes[0].hub.roster._wanted.is_set()
    clock.now += lease_s + 1
    await nodes[0].hub.roster._lease()
    assert nodes[0].hub.roster._wanted.is_set()


async def test_ends_that_could_not_be_written_are_written_later(nodes: list[Bench]) -> None:
    phone = await nodes[0].connect()
    phone.session.lost(1001)
    nodes[0].store.away = True
    with pytest.raises(StoreUnavailable):
        await nodes[0].hub.roster.flush()
    nodes[0].store.away = False
    await nodes[0].hub.roster.flush()
    assert await nodes[1].hub.roster.connected("a") == frozenset()


async def test_a_node_that_stops_gives_its_lease_back(nodes: list[Bench]) -> None:
    await nodes[0].connect()
    await nodes[0].hub.roster.stop()
    assert await nodes[1].hub.roster.connected("a") == frozenset()


async def test_a_process_that_is_alone_writes_nothing(clock: Clock) -> None:
    bench = Bench(clock)
    await bench.hub.roster.open()
    phone: Phone = await bench.connect()
    newer = await bench.connect()
    assert phone.closed == (4409, "a newer session of this device")
    assert newer.session.entered == 0.0
    assert bench.store._presences == {}
    assert bench.store._leases == {}
    await bench.control.sign_out("a", "d1")
    assert (newer.closed or (0,))[0] == 4410
    assert bench.store._presences == {}
    assert await bench.hub.roster.connected("a") == frozenset()
    assert await bench.store.keep([Presence("a", "d1", "n", "n-1", 1.0)], 2.0) == []
    await bench.stop()
