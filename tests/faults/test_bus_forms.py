"""A Redis that is full, hung or drops a slow gateway: the same truth over one server, sentinels and a cluster, told by
the bus, by readiness and by the metrics, while events reach their devices by the sweep."""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from gateway.bus import Bus
from gateway.bus.link import Link
from gateway.bus.sender import Timing
from tests.contracts.test_bus import healthy, message
from tests.faults.buses import CALM, FEEDS, QUICK, Witness, opened, subscribed, unhealthy, whole_again
from tests.kit import Phone, offsets
from tests.redis_cluster import RedisCluster
from tests.redis_sentinels import RedisSentinels
from tests.redis_server import RedisServer
from tests.running import Running, Watched, notice, running


class Form:
    """Servers of one form; `primaries` are those that carry messages now."""

    def __init__(self, servers: Any, primaries: Callable[[], Sequence[RedisServer]]):
        self.servers, self.url, self.primaries = servers, str(servers.url), primaries

    def admins(self) -> "list[Redis[Any]]":
        return [Redis(port=server.port) for server in self.primaries()]


@pytest.fixture(scope="module", params=["redis", "sentinels", "cluster"])
def form(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Form]:
    directory = tmp_path_factory.mktemp(request.param)
    match request.param:
        case "redis":
            with RedisServer(directory) as server:
                yield Form(server, lambda: [server])
        case "sentinels":
            with RedisSentinels(directory) as sentinels:
                yield Form(sentinels, lambda: [sentinels.primary()])
        case _:
            with RedisCluster(directory) as cluster:
                yield Form(cluster, lambda: cluster.nodes)


@pytest.fixture
def ear() -> Witness:
    return Witness()


@pytest.fixture
async def bus(form: Form, ear: Witness) -> AsyncIterator[Bus]:
    async with opened(form.url, ear, **CALM) as bus:
        await subscribed(bus, FEEDS)
        yield bus


def links(bus: Any) -> list[Link]:
    return [bus._only] if hasattr(bus, "_only") else [shard.link for shard in bus._shards.values() if shard.link]


async def test_full(form: Form, bus: Bus, ear: Witness) -> None:
    """At `maxmemory` writes fail; messages and new subscriptions still travel."""
    for redis in form.admins():
        with redis:
            redis.config_set("maxmemory", "1")
            with pytest.raises(ResponseError, match="maxmemory"):
                redis.execute_command("SET", next(key for key in keys() if owns(redis, key)), "x")
    try:
        await bus.subscribe([f"{feed}new" for feed in FEEDS[:50]])
        await bus.publish([message(f"{feed}new", 1) for feed in FEEDS[:50]])
        await ear.until(lambda: len(ear.messages) == 50)
        assert bus.healthy
    finally:
        for redis in form.admins():
            with redis:
                redis.config_set("maxmemory", "0")


def keys() -> Iterator[str]:
    return (f"key{number}" for number in range(1_000))


def owns(redis: "Redis[Any]", key: str) -> bool:
    try:
        redis.get(key)
    except ResponseError:  # MOVED
        return False
    return True


async def test_a_slow_gateway_is_dropped_and_comes_back(form: Form, bus: Bus, ear: Witness) -> None:
    """Redis drops a subscriber at `client-output-buffer-limit pubsub`; that must be a gap, not a silence."""
    for redis in form.admins():
        with redis:
            redis.config_set("client-output-buffer-limit", "pubsub 100kb 100kb 0")
    try:
        for link in links(bus):
            assert link._connection is not None
            assert link._connection._transport is not None
            link._connection._transport.pause_reading()
        large = b'"' + b"x" * 60_000 + b'"'
        for _ in range(10):
            with contextlib.suppress(Exception):
                await bus.publish([message(feed, 1, large) for feed in FEEDS[:100]])
        await unhealthy(bus, 5.0)
        await ear.until(lambda: ear.gaps > 0)
    finally:
        for redis in form.admins():
            with redis:
                redis.config_set("client-output-buffer-limit", "pubsub 32mb 8mb 60")
    await whole_again(bus, ear, 0)


async def test_killed_connections(form: Form, bus: Bus, ear: Witness) -> None:
    for _ in range(3):
        gaps = ear.gaps
        for redis in form.admins():
            with redis:
                redis.client_kill_filter(_type="pubsub")
        await ear.until(lambda gaps=gaps: ear.gaps > gaps)  # type: ignore[misc]
        await whole_again(bus, ear, gaps)


async def test_no_connection_is_left_behind(form: Form) -> None:
    def ours() -> list[str]:
        found = []
        for redis in form.admins():
            with redis:
                found += [one["name"] for one in redis.client_list() if one["name"].startswith("vestnik")]
        return found

    async with opened(form.url, Witness()) as bus:
        await subscribed(bus, FEEDS)
        await bus.publish([message(feed, 1) for feed in FEEDS])
        shards = len(form.primaries())
        assert sorted(name.rsplit("-", 1)[0] for name in ours() if "map" not in name) == sorted(
            ["vestnik-pub", "vestnik-sub"] * shards
        )
    async with asyncio.timeout(2.0):
        while ours():
            await asyncio.sleep(0.02)


# Two gateways on one store


class Pair:
    """Ivan's phone is at `near`; what is posted to `far` reaches it."""

    def __init__(self, near: Running, far: Running, phone: Phone):
        self.near, self.far, self.phone = near, far, phone
        self.got: list[int] = []

    async def post(self) -> None:
        assert (await self.far.post(notice())).status_code == 202

    async def level(self, patience_s: float) -> float:
        """Post, and wait until the phone has it. Returns after how many seconds."""
        await self.post()
        started, wanted = time.monotonic(), len(self.far.store.commits)
        async with asyncio.timeout(patience_s):
            while len(self.got) < wanted:
                self.got += offsets(self.phone.read(), "account:ivan")
                await asyncio.sleep(0.002)
        self.phone.ack("account:ivan", self.got[-1])
        assert self.got == list(range(1, wanted + 1))
        return time.monotonic() - started

    async def metric(self, name: str) -> float:
        text = (await self.near.client.get("/metrics")).text
        found = re.search(rf"^vestnik_{name} ([0-9.e+]+)$", text, re.MULTILINE)
        assert found is not None, name
        return float(found[1])

    async def ready(self) -> bool:
        answer = await self.near.client.get("/health/ready")
        parts = answer.json()["parts"]
        assert answer.status_code == (200 if all(parts.values()) else 503)
        assert [name for name, good in parts.items() if not good] in ([], ["bus"])
        assert bool(await self.metric("bus_healthy")) is parts["bus"]
        return bool(parts["bus"])

    async def until_ready(self, wanted: bool, patience_s: float) -> None:
        async with asyncio.timeout(patience_s):
            while await self.ready() is not wanted:
                await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def gateways(form: Form, tmp_path: Path) -> AsyncIterator[Pair]:
    store = Watched()
    (tmp_path / "near").mkdir()
    settings: dict[str, Any] = {"bus": form.url, "sweep_s": 60, "workers": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Timing, "__init__", quick(Timing.__init__))
        async with running(tmp_path, store, **settings) as near, running(tmp_path, store, **settings) as far:
            pair = Pair(near, far, await near.phone())
            await pair.until_ready(True, 10.0)
            await healthy(far.gateway.bus, 10.0)
            yield pair


def quick(make: Callable[..., None]) -> Callable[..., None]:
    return lambda self, *_: make(self, **QUICK)


async def test_a_hung_redis_under_two_gateways(form: Form, tmp_path: Path) -> None:
    """Paused for 3 s: the sweep delivers; then the bus is whole again. (Sentinels may make another primary.)"""
    async with gateways(form, tmp_path) as pair:
        assert await pair.level(2.0) < 0.5
        gaps, failures = await pair.metric("bus_gaps_total"), pair.far.gateway.counts.bus_failures
        for redis in form.admins():
            with redis:
                redis.client_pause(3_000)
        await pair.post()
        await pair.until_ready(False, 2.0)
        await pair.level(4.0)
        assert pair.far.gateway.counts.bus_failures > failures
        assert await pair.metric("bus_gaps_total") > gaps
        await pair.until_ready(True, 10.0)
        await healthy(pair.far.gateway.bus, 10.0)
        assert await pair.level(2.0) < 0.5
