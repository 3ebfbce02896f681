"""What every bus must do (`gateway/bus/base.py`), tried on each of them; the servers are real."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from gateway.bus import Bus, Message, open_bus
from gateway.errors import BusUnavailable
from tests.redis_cluster import RedisCluster
from tests.redis_sentinels import RedisSentinels
from tests.redis_server import RedisServer

PATIENCE_S = 5.0


def message(feed: str, offset: int, event: bytes | None = b'{"id":"1"}') -> Message:
    return Message(feed, "e1", offset, event, 2, 1700000000.25)


class Ear:
    """A listener that keeps everything, and lets a test wait for it."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.controls: list[bytes] = []
        self.gaps = 0
        self._changed = asyncio.Event()

    def received(self, message: Message) -> None:
        self.messages.append(message)
        self._changed.set()

    def control(self, payload: bytes) -> None:
        self.controls.append(payload)
        self._changed.set()

    def gap(self) -> None:
        self.gaps += 1
        self._changed.set()

    async def until(self, condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
        async with asyncio.timeout(patience_s):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


async def healthy(bus: Bus, patience_s: float = PATIENCE_S) -> None:
    """Wait until the bus says that it lives."""
    async with asyncio.timeout(patience_s):
        while not bus.healthy:
            await asyncio.sleep(0.01)


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def sentinels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisSentinels]:
    with RedisSentinels(tmp_path_factory.mktemp("sentinels")) as servers:
        yield servers


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    with RedisCluster(tmp_path_factory.mktemp("cluster")) as servers:
        yield servers


SHARED = ["redis", "sentinels", "cluster"]
"""The forms that reach other processes."""


@pytest.fixture(params=["memory", *SHARED])
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "memory":
        return "memory://"
    return str(request.getfixturevalue(request.param).url)


@pytest.fixture(params=SHARED)
def shared_url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param).url)


@pytest.fixture
def ear() -> Ear:
    return Ear()


@pytest.fixture
async def bus(url: str, ear: Ear) -> AsyncIterator[Bus]:
    bus = open_bus(url)
    await bus.open(ear)
    await healthy(bus)
    yield bus
    await bus.close()


async def test_a_message_arrives_as_it_was(bus: Bus, ear: Ear) -> None:
    await bus.subscribe(["account:a"])
    sent = [message("account:a", 1), message("account:a", 2, None), message("account:a", 3, "«Обновить»".encode())]
    await bus.publish(sent)
    await ear.until(lambda: len(ear.messages) == 3)
    assert ear.messages == sent


async def test_what_is_published_after_subscribe_returned_arrives(bus: Bus, ear: Ear) -> None:
    for number in range(200):
        feed = f"account:{number}"
        await bus.subscribe([feed])
        await bus.publish([message(feed, 1)])
    await ear.until(lambda: len(ear.messages) == 200)
    assert {one.feed for one in ear.messages} == {f"account:{number}" for number in range(200)}


async def test_only_subscribed_feeds_arrive(bus: Bus, ear: Ear) -> None:
    await bus.subscribe(["account:a"])
    await bus.publish([message("account:b", 1), message("agency:a", 1), message("account:a", 1)])
    await ear.until(lambda: bool(ear.messages))
    assert [one.feed for one in ear.messages] == ["account:a"]


async def test_an_unsubscribed_feed_falls_silent(bus: Bus, ear: Ear) -> None:
    await bus.subscribe(["account:a", "account:b"])
    await bus.unsubscribe(["account:a", "account:never"])
    await bus.publish([message("account:a", 1), message("account:b", 1)])
    await ear.until(lambda: bool(ear.messages))
    assert [one.feed for one in ear.messages] == ["account:b"]


async def test_a_feed_taken_up_again_at_once_arrives(bus: Bus, ear: Ear) -> None:
    for offset in range(1, 51):
        await bus.subscribe(["account:a"])
        await bus.publish([message("account:a", offset)])
        await bus.unsubscribe(["account:a"])
        await bus.subscribe(["account:a"])
        await bus.publish([message("account:a", 1000 + offset)])
        await bus.unsubscribe(["account:a"])
    await bus.subscribe(["account:a", "account:end"])
    await bus.publish([message("account:end", 1)])
    await ear.until(lambda: ear.messages != [] and ear.messages[-1].feed == "account:end")


async def test_subscribing_twice_is_harmless(bus: Bus, ear: Ear) -> None:
    await asyncio.gather(*(bus.subscribe(["account:a", "agency:b", "account:a"]) for _ in range(20)))
    await bus.publish([message("account:a", 1), message("agency:b", 1)])
    await ear.until(lambda: len(ear.messages) == 2)
    assert {one.feed for one in ear.messages} == {"account:a", "agency:b"}


async def test_many_subscribe_at_once(bus: Bus, ear: Ear) -> None:
    feeds = [f"account:{number}" for number in range(12_000)]
    await asyncio.gather(*(bus.subscribe([feed, "agency:shared"]) for feed in feeds[:5_000]), bus.subscribe(feeds))
    await bus.publish([message(feed, 1) for feed in feeds])
    await ear.until(lambda: len(ear.messages) == len(feeds))
    assert {one.feed for one in ear.messages} == set(feeds)


async def test_order_of_a_feed_is_kept_when_nothing_fails(bus: Bus, ear: Ear) -> None:
    await bus.subscribe(["account:a"])
    for first in range(1, 5_001, 1_000):
        await bus.publish([message("account:a", offset) for offset in range(first, first + 1_000)])
    await ear.until(lambda: len(ear.messages) == 5_000)
    assert [one.offset for one in ear.messages] == list(range(1, 5_001))


async def test_large_events_travel(bus: Bus, ear: Ear) -> None:
    await bus.subscribe(["account:a"])
    event = b'"' + b"x" * 65_534 + b'"'
    await bus.publish([message("account:a", offset, event) for offset in range(1, 101)])
    await ear.until(lambda: len(ear.messages) == 100)
    assert all(one.event == event for one in ear.messages)


async def test_control_reaches_the_sender_too(bus: Bus, ear: Ear) -> None:
    await bus.announce(b"\x00revoked\xff")
    await ear.until(lambda: bool(ear.controls))
    assert ear.controls == [b"\x00revoked\xff"]


async def test_nothing_is_published_without_messages(bus: Bus, ear: Ear) -> None:
    await bus.publish([])
    await bus.subscribe([])
    await bus.unsubscribe([])
    assert ear.messages == []


async def test_a_failing_listener_harms_no_later_message(shared_url: str) -> None:
    """A listener must not raise; should it, the other feeds of the connection do not suffer."""

    class Clumsy(Ear):
        def received(self, message: Message) -> None:
            super().received(message)
            if message.offset == 1:
                raise RuntimeError("clumsy")

    ear = Clumsy()
    bus = open_bus(shared_url)
    await bus.open(ear)
    try:
        await bus.subscribe(["account:a"])
        await bus.publish([message("account:a", 1), message("account:a", 2)])
        await ear.until(lambda: len(ear.messages) == 2)
    finally:
        await bus.close()


async def test_a_closed_bus_says_so(url: str) -> None:
    bus = open_bus(url)
    await bus.open(Ear())
    await healthy(bus)
    await bus.close()
    assert not bus.healthy
    with pytest.raises(BusUnavailable):
        await bus.publish([message("account:a", 1)])


async def test_gateways_hear_each_other(shared_url: str) -> None:
    ears = [Ear(), Ear()]
    buses = [open_bus(shared_url) for _ in ears]
    for bus, ear in zip(buses, ears, strict=True):
        await bus.open(ear)
        await healthy(bus)
    try:
        await buses[0].subscribe(["account:a"])
        await buses[1].publish([message("account:a", 1)])
        await buses[1].announce(b"to all")
        await ears[0].until(lambda: bool(ears[0].messages and ears[0].controls))
        await ears[1].until(lambda: bool(ears[1].controls))
        assert ears[1].messages == []
    finally:
        for bus in buses:
            await bus.close()
