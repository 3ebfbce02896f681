from collections.abc import AsyncIterator

import pytest

from gateway.bus.base import Message
from gateway.bus.memory import MemoryBus
from gateway.errors import BusUnavailable
from gateway.metrics import Counts
from gateway.publisher import as_message
from gateway.store.base import Draft, Store, Stored
from gateway.store.memory import MemoryStore
from workers import relay
from workers.claims import Claim
from workers.relay import Relay

NOW = 1_700_000_000.0


def draft(number: int, feed: str = "account:a") -> Draft:
    key = number.to_bytes(16, "big")
    return Draft(feed, key, key * 2, b'{"id":"%d"}' % number, "gov.notice.sent", None, NOW, 2)


class Ear:
    def __init__(self) -> None:
        self.messages: list[Message] = []

    def received(self, message: Message) -> None:
        self.messages.append(message)

    def control(self, payload: bytes) -> None: ...

    def gap(self) -> None: ...


@pytest.fixture
async def store() -> AsyncIterator[MemoryStore]:
    store = MemoryStore()
    await store.open()
    yield store
    await store.close()


@pytest.fixture
def ear() -> Ear:
    return Ear()


@pytest.fixture
async def bus(ear: Ear) -> AsyncIterator[MemoryBus]:
    bus = MemoryBus()
    await bus.open(ear)
    await bus.subscribe(["account:a"])
    yield bus
    await bus.close()


def claim(store: Store, name: str = "work", at: float = NOW, hold_s: float = 5.0) -> Claim:
    """The claim of one process, whose clock stands still."""
    return Claim(store, name, hold_s, lambda: at)


async def append(store: MemoryStore, first: int, last: int, now: float = NOW) -> list[Stored]:
    outcomes = await store.append([draft(number) for number in range(first, last)], now)
    return [outcome for outcome in outcomes if isinstance(outcome, Stored)]


async def test_takes_what_is_old_enough_in_order_and_once(store: MemoryStore, bus: MemoryBus, ear: Ear) -> None:
    old, counts = await append(store, 0, 3), Counts()
    await append(store, 3, 5, NOW + 1.5)
    role = Relay(store, bus, claim(store), counts, after_s=2.0, clock=lambda: NOW + 3.0)
    assert not await role.step()
    assert ear.messages == [as_message(stored) for stored in old]
    assert not await role.step()
    assert len(ear.messages) == 3
    assert (counts.relayed, counts.unpublished) == (3, 0)


async def test_leaves_what_was_published(store: MemoryStore, bus: MemoryBus, ear: Ear) -> None:
    stored = await append(store, 0, 3)
    await store.published([one.seq for one in stored[:2]])
    await Relay(store, bus, claim(store), clock=lambda: NOW + 3.0).step()
    assert [message.offset for message in ear.messages] == [3]


async def test_a_long_backlog_goes_in_steps(
    store: MemoryStore, bus: MemoryBus, ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "LIMIT", 10)
    await append(store, 0, 25)
    role = Relay(store, bus, claim(store), clock=lambda: NOW + 3.0)
    assert [await role.step() for _ in range(3)] == [True, True, False]
    assert [message.offset for message in ear.messages] == list(range(1, 26))


async def test_what_the_bus_refused_is_tried_again(store: MemoryStore, ear: Ear) -> None:
    await append(store, 0, 3)
    bus = MemoryBus()
    role = Relay(store, bus, claim(store), clock=lambda: NOW + 3.0)
    with pytest.raises(BusUnavailable):
        await role.step()
    await bus.open(ear)
    await bus.subscribe(["account:a"])
    await role.step()
    assert len(ear.messages) == 3


async def test_of_two_relays_one_works_and_the_other_takes_over_when_it_dies(
    store: MemoryStore, bus: MemoryBus, ear: Ear
) -> None:
    await append(store, 0, 3)
    one = Relay(store, bus, claim(store, at=NOW + 3), clock=lambda: NOW + 3)
    assert not await one.step()
    assert len(ear.messages) == 3
    await append(store, 3, 5)
    other = Relay(store, bus, claim(store, at=NOW + 7.9), clock=lambda: NOW + 7.9)
    assert not await other.step()
    assert len(ear.messages) == 3, "the claim of the first holds for 5 s"
    late = Relay(store, bus, claim(store, at=NOW + 8), clock=lambda: NOW + 8)
    assert not await late.step()
    assert [message.offset for message in ear.messages] == [1, 2, 3, 4, 5]
