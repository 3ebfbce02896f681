import asyncio
from collections.abc import Collection, Sequence

import pytest

from gateway import publisher as module
from gateway.bus.base import Message
from gateway.bus.memory import MemoryBus
from gateway.errors import BusUnavailable, StoreUnavailable
from gateway.metrics import Counts
from gateway.publisher import Publisher, as_message
from gateway.store.base import Range
from gateway.store.memory import MemoryStore
from tests.workers.test_relay import NOW, Ear, append, bus, draft, ear, store

__all__ = ["bus", "ear", "store"]  # fixtures


async def left(store: MemoryStore) -> list[int]:
    return [stored.offset for stored in await store.unpublished(NOW + 1e6, 10_000)]


async def test_publishes_in_order_and_notes_it_at_close(store: MemoryStore, bus: MemoryBus, ear: Ear) -> None:
    counts = Counts()
    publisher = Publisher(store, bus, counts)
    stored = await append(store, 0, 2_500)
    publisher.put(stored[:1])
    publisher.put(stored[1:])
    await publisher.close()
    assert ear.messages == [as_message(one) for one in stored]
    assert await left(store) == []
    assert (counts.bus_published, counts.bus_failures) == (2_500, 0)


async def test_publishes_at_once_and_notes_it_later(store: MemoryStore, bus: MemoryBus, ear: Ear) -> None:
    publisher = Publisher(store, bus, note_every_s=0.01)
    publisher.put(await append(store, 0, 3))
    for _ in range(3):
        await asyncio.sleep(0)
    assert len(ear.messages) == 3
    assert len(await left(store)) == 3
    async with asyncio.timeout(2):
        while await left(store):
            await asyncio.sleep(0.005)
    await publisher.close()


async def test_duplicates_are_not_published_again(store: MemoryStore, bus: MemoryBus, ear: Ear) -> None:
    publisher = Publisher(store, bus)
    publisher.put(await append(store, 0, 2))
    publisher.put(await append(store, 0, 3))
    await publisher.close()
    assert [message.offset for message in ear.messages] == [1, 2, 3]


async def test_what_the_bus_refuses_is_left_to_the_relay(store: MemoryStore, ear: Ear) -> None:
    class Flaky(MemoryBus):
        refuse = True

        async def publish(self, messages: Sequence[Message]) -> None:
            if self.refuse:
                raise BusUnavailable("away")
            await super().publish(messages)

    bus, counts = Flaky(), Counts()
    await bus.open(ear)
    await bus.subscribe(["account:a"])
    publisher = Publisher(store, bus, counts)
    publisher.put(await append(store, 0, 2))
    await asyncio.sleep(0.01)
    bus.refuse = False
    publisher.put(await append(store, 2, 4))
    await publisher.close()
    assert [message.offset for message in ear.messages] == [3, 4]
    assert await left(store) == [1, 2]
    assert (counts.bus_published, counts.bus_failures) == (2, 2)


async def test_memory_is_bounded_while_the_bus_hangs(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    class Hanging(MemoryBus):
        async def publish(self, messages: Sequence[Message]) -> None:
            await asyncio.sleep(3600)

    monkeypatch.setattr(module, "WAITING_BYTES", 200)
    monkeypatch.setattr(module, "CLOSING_S", 0.01)
    publisher = Publisher(store, Hanging(), Counts())
    for number in range(100):
        publisher.put(await append(store, number, number + 1))
        await asyncio.sleep(0)
    assert publisher._waiting_bytes <= 200
    await publisher.close()
    assert len(await left(store)) == 100


async def test_a_store_that_is_away_is_told_later(bus: MemoryBus, ear: Ear) -> None:
    class Away(MemoryStore):
        away = 2

        async def published(self, seqs: Collection[int]) -> None:
            if self.away:
                self.away -= 1
                raise StoreUnavailable("away")
            await super().published(seqs)

    store = Away()
    await store.open()
    publisher = Publisher(store, bus, note_every_s=0.01)
    publisher.put(await append(store, 0, 3))
    async with asyncio.timeout(2):
        while await left(store):
            await asyncio.sleep(0.005)
    await publisher.close()
    assert len(ear.messages) == 3


async def test_after_close_everything_is_the_relays(store: MemoryStore, bus: MemoryBus, ear: Ear) -> None:
    publisher = Publisher(store, bus)
    await publisher.close()
    publisher.put(await append(store, 0, 2))
    assert ear.messages == []
    assert await left(store) == [1, 2]


async def test_what_is_told_is_on_disk_and_published_once(store: MemoryStore, bus: MemoryBus, ear: Ear) -> None:
    publisher = Publisher(store, bus)
    drafts = [draft(n) for n in range(3)]
    await publisher.tell(drafts, NOW)
    await publisher.tell(drafts, NOW)
    (page,) = await store.read([Range("account:a", 0)])
    assert page.head == 3
    await publisher.close()
    assert [message.offset for message in ear.messages] == [1, 2, 3]
    assert await left(store) == []
