"""Slots that move and shards that die under publishing."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.bus import Bus, open_bus
from gateway.bus.pubsub import CONTROL, PREFIX
from gateway.bus.slots import SLOTS, slot_of
from gateway.errors import BusUnavailable
from tests.contracts.test_bus import Ear, message
from tests.faults.buses import CALM, FEEDS, QUICK, Witness, opened, pair, subscribed, unhealthy, whole_again
from tests.redis_cluster import Node, RedisCluster
from tests.redis_server import RedisServer

SLOTS_USED = sorted({slot_of(PREFIX + feed.encode()) for feed in FEEDS})


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[RedisCluster]:
    """Three primaries without replicas."""
    with RedisCluster(tmp_path) as servers:
        yield servers


@pytest.fixture
def doubled(tmp_path: Path) -> Iterator[RedisCluster]:
    """Three primaries, each with a replica."""
    with RedisCluster(tmp_path, replicas=1) as servers:
        yield servers


def feed_at(cluster: RedisCluster, node: Node) -> str:
    return next(feed for feed in FEEDS if cluster.owner(slot_of(PREFIX + feed.encode())) is node)


async def taken_over(cluster: RedisCluster, slot: int, old: Node) -> None:
    async with asyncio.timeout(20):
        while await asyncio.to_thread(cluster.owner, slot) is old:
            await asyncio.sleep(0.05)


async def test_slots_move_one_by_one(cluster: RedisCluster) -> None:
    """A hundred slots with feeds, the one of the control channel among them."""

    async def fault(bus: Bus, witness: Witness) -> None:
        control = slot_of(CONTROL)
        for slot in [control, *SLOTS_USED[::30]]:
            source = await asyncio.to_thread(cluster.owner, slot)
            target = cluster.nodes[(cluster.nodes.index(source) + 1) % 3]
            await asyncio.to_thread(cluster.move, slot, target)
        await bus.announce(b"still")
        await witness.until(lambda: b"still" in witness.controls)

    stream = await pair(cluster.url, fault, flows_s=2.0, told_s=3.0)
    assert stream.refused <= 3, "a slot that moves costs a publish nothing"


async def test_slots_move_back_and_forth(cluster: RedisCluster) -> None:
    slot = slot_of(PREFIX + FEEDS[0].encode())

    async def fault(bus: Bus, witness: Witness) -> None:
        for turn in range(12):
            await asyncio.to_thread(cluster.move, slot, cluster.nodes[turn % 3])

    await pair(cluster.url, fault, flows_s=2.0, told_s=3.0)


async def test_a_shard_is_emptied(cluster: RedisCluster) -> None:
    """All slots of a node leave it, its probe's too: its connections are let go."""
    witness = Witness()
    async with opened(cluster.url, witness, **CALM) as bus:
        await subscribed(bus, FEEDS)
        leaving, target = cluster.nodes[0], cluster.nodes[1]
        target_id = target.id
        take = [("CLUSTER", "SETSLOT", slot, "NODE", target_id) for slot in range(SLOTS // 3)]
        await asyncio.to_thread(target.many, take)  # thousands at once; the others learn it by gossip
        async with asyncio.timeout(10):
            while len(bus._shards) > 2:  # type: ignore[attr-defined]
                await asyncio.sleep(0.02)
        await whole_again(bus, witness, 0)
        leaving.kill()
        await asyncio.sleep(1.0)
        assert bus.healthy


async def test_primary_killed(doubled: RedisCluster) -> None:
    victim = doubled.nodes[0]

    async def fault(bus: Bus, witness: Witness) -> None:
        gaps = witness.gaps
        victim.kill()
        await unhealthy(bus, 1.0)
        await witness.until(lambda: witness.gaps > gaps, 1.0)
        other = feed_at(doubled, doubled.nodes[1])
        await bus.publish([message(other, 10**6)])
        await witness.until(lambda: (other, 10**6) in witness.heard)  # the other shards carry on
        assert not bus.healthy
        await taken_over(doubled, 0, victim)

    stream = await pair(doubled.url, fault, flows_s=4.0, told_s=8.0)
    assert stream.refused


async def test_primary_hung(doubled: RedisCluster) -> None:
    victim = doubled.nodes[2]
    thaw: list[Callable[[], None]] = []

    async def fault(bus: Bus, witness: Witness) -> None:
        victim.freeze()
        thaw.append(victim.thaw)
        await unhealthy(bus, 2.0)
        async with asyncio.timeout(20):
            while victim.port in {node.port for node in await asyncio.to_thread(primaries, doubled)}:
                await asyncio.sleep(0.05)

    try:
        await pair(doubled.url, fault, flows_s=4.0, told_s=8.0)
    finally:
        thaw[0]()


def primaries(cluster: RedisCluster) -> set[Node]:
    """By the first node."""
    found = {port for _, _, (_, port, *_), *_ in cluster.nodes[0].command("CLUSTER", "SLOTS")}
    return {node for node in cluster.nodes if node.port in found}


async def test_planned_failover(doubled: RedisCluster) -> None:
    """The old primary lives on as a replica."""

    async def fault(bus: Bus, witness: Witness) -> None:
        gaps = witness.gaps
        await asyncio.to_thread(doubled.nodes[3].command, "CLUSTER", "FAILOVER")
        await taken_over(doubled, 0, doubled.nodes[0])
        await witness.until(lambda: witness.gaps > gaps, 10.0)

    await pair(doubled.url, fault, flows_s=4.0, told_s=8.0)


async def test_a_lost_shard_is_said(cluster: RedisCluster) -> None:
    """No replica takes over: the other shards carry on, the bus is not healthy, and what is meant for the lost shard
    is refused; when it is back, all is whole."""
    witness = Witness()
    victim = cluster.nodes[1]
    there, here = feed_at(cluster, victim), feed_at(cluster, cluster.nodes[0])
    async with opened(cluster.url, witness) as bus:
        await subscribed(bus, FEEDS)
        victim.kill()
        await unhealthy(bus)
        await asyncio.sleep(2.0)  # until the cluster has given the shard up
        assert not bus.healthy
        with pytest.raises(BusUnavailable):
            await bus.publish([message(here, 7), message(there, 7)])
        await witness.until(lambda: (here, 7) in witness.heard)
        with pytest.raises(BusUnavailable):
            await bus.subscribe([f"{there}x{number}" for number in range(50)])
        gaps = witness.gaps
        victim.start()
        await whole_again(bus, witness, gaps)


async def test_a_shard_that_nobody_here_needs_is_not_missed(cluster: RedisCluster) -> None:
    witness = Witness()
    home = cluster.owner(slot_of(CONTROL))
    other = next(node for node in cluster.nodes if node is not home)
    async with opened(cluster.url, witness, **CALM) as bus:
        await bus.subscribe([feed_at(cluster, home)])
        feed = feed_at(cluster, other)
        await bus.subscribe([feed])
        await bus.unsubscribe([feed])
        other.kill()
        await asyncio.sleep(1.5)
        assert bus.healthy


async def test_subscriptions_ended_by_the_server(cluster: RedisCluster) -> None:
    """As when a slot leaves and comes back: they are asked for again, and a gap is told."""
    witness = Witness()
    async with opened(cluster.url, witness) as bus:
        await subscribed(bus, FEEDS)
        for shard in bus._shards.values():  # type: ignore[attr-defined]
            shard.link._connection.send((b"SUNSUBSCRIBE",))
        await witness.until(lambda: witness.gaps > 0)
        await whole_again(bus, witness, 0)


async def test_cluster_absent_at_start(tmp_path: Path) -> None:
    cluster, ear = RedisCluster(tmp_path), Witness()
    bus = open_bus(cluster.url)
    bus._timing = type(bus._timing)(**QUICK)  # type: ignore[attr-defined]
    await bus.open(ear)
    try:
        assert not bus.healthy
        with pytest.raises(BusUnavailable):
            await bus.subscribe(FEEDS)
        with pytest.raises(BusUnavailable):
            await bus.publish([message(FEEDS[0], 1)])
        cluster.__enter__()
        try:
            await whole_again(bus, ear, 0)
        finally:
            cluster.__exit__(None, None, None)
    finally:
        await bus.close()


async def test_a_server_without_a_cluster_says_so(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        bus = open_bus(f"redis+cluster://127.0.0.1:{server.port}")
        await bus.open(Ear())
        with pytest.raises(BusUnavailable, match="cluster support disabled"):
            await bus.subscribe(FEEDS)
        await bus.close()
