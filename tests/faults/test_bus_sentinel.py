"""A primary that dies, hangs or is replaced under publishing, with sentinels that look after it."""

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.bus import Bus, open_bus
from gateway.errors import BusUnavailable
from tests.contracts.test_bus import Ear, message
from tests.faults.buses import CALM, Witness, opened, pair, unhealthy
from tests.redis_sentinels import RedisSentinels, Sentinel
from tests.redis_server import RedisServer

PATIENCE_S = 15.0


@pytest.fixture
def sentinels(tmp_path: Path) -> Iterator[RedisSentinels]:
    with RedisSentinels(tmp_path) as servers:
        yield servers


async def elsewhere(sentinels: RedisSentinels, old: RedisServer) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while await asyncio.to_thread(sentinels.primary) is old:
            await asyncio.sleep(0.05)


async def test_primary_killed(sentinels: RedisSentinels) -> None:
    async def fault(bus: Bus, witness: Witness) -> None:
        old, gaps = sentinels.primary(), witness.gaps
        old.kill()
        await unhealthy(bus, 1.0)
        await witness.until(lambda: witness.gaps > gaps, 1.0)
        assert not bus.healthy
        await elsewhere(sentinels, old)

    stream = await pair(sentinels.url, fault, flows_s=3.0, told_s=3.0)
    assert stream.refused


async def test_primary_hung(sentinels: RedisSentinels) -> None:
    thaw: list[Callable[[], None]] = []

    async def fault(bus: Bus, witness: Witness) -> None:
        old = sentinels.primary()
        old.freeze()
        thaw.append(old.thaw)
        await unhealthy(bus, 2.0)
        await elsewhere(sentinels, old)

    try:
        await pair(sentinels.url, fault, flows_s=3.0, told_s=3.0)
    finally:
        thaw[0]()


async def test_planned_failover(sentinels: RedisSentinels) -> None:
    """The old primary lives on as a primary for many seconds and takes what is published there: nobody may stay."""

    async def fault(bus: Bus, witness: Witness) -> None:
        old, gaps = sentinels.primary(), witness.gaps
        sentinels.failover()
        await elsewhere(sentinels, old)
        await witness.until(lambda: witness.gaps > gaps)

    await pair(sentinels.url, fault, flows_s=3.0, told_s=3.0)


async def test_a_sentinel_that_was_cut_off_is_outbid(sentinels: RedisSentinels, tmp_path: Path) -> None:
    """It knows of no election and names a server that is a primary, but not ours any more."""
    old = sentinels.primary()
    await asyncio.to_thread(sentinels.failover)
    await elsewhere(sentinels, old)
    with RedisServer(tmp_path) as lonely, Sentinel(tmp_path, lonely.port, 1) as behind:
        url = sentinels.url.replace("redis+sentinel://", f"redis+sentinel://127.0.0.1:{behind.port},")
        ear = Ear()
        async with opened(url, ear, **CALM) as bus, opened(sentinels.url, Ear()) as other:
            await other.announce(b"hello")
            await ear.until(lambda: bool(ear.controls))
            assert bus.healthy


async def test_sentinels_hung_and_killed_are_not_missed(sentinels: RedisSentinels) -> None:
    witness = Witness()
    first, second, _ = sentinels.sentinels
    async with opened(sentinels.url, witness, **CALM) as bus:
        await bus.subscribe(["account:1"])
        first.freeze()
        second.kill()
        try:
            until = time.monotonic() + 2.0
            while time.monotonic() < until:
                await bus.publish([message("account:1", 1)])
                assert bus.healthy
                await asyncio.sleep(0.02)
            async with opened(sentinels.url, Ear()):
                pass
        finally:
            first.thaw()
        assert witness.gaps == 0


async def test_sentinels_all_away(sentinels: RedisSentinels) -> None:
    """A living connection to the primary does not need them; a new one does, and says so."""
    witness = Witness()
    async with opened(sentinels.url, witness, **CALM) as bus:
        for one in sentinels.sentinels:
            one.kill()
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            assert bus.healthy
            await asyncio.sleep(0.02)
        blind = open_bus(sentinels.url)
        await blind.open(Ear())
        with pytest.raises(BusUnavailable, match="no sentinel of 'vestnik' answers"):
            await blind.announce(b"")
        assert not blind.healthy
        await blind.close()


async def test_unknown_service(sentinels: RedisSentinels) -> None:
    bus = open_bus(sentinels.url.replace("/vestnik", "/other"))
    await bus.open(Ear())
    with pytest.raises(BusUnavailable, match="No such master"):
        await bus.announce(b"")
    await bus.close()


async def test_a_replica_is_not_taken_for_the_primary(tmp_path: Path) -> None:
    """A sentinel may still name a server that was demoted: what is published there reaches nobody else."""
    with RedisServer(tmp_path) as primary, RedisServer(tmp_path, replicaof=f"127.0.0.1 {primary.port}") as replica:
        bus = open_bus(replica.url)
        bus._sender._primary = True  # type: ignore[attr-defined]
        await bus.open(Ear())
        with pytest.raises(BusUnavailable, match="is not a primary"):
            await bus.announce(b"")
        await bus.close()


async def test_passwords_of_servers_and_sentinels(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    passwords = {"password": "sentinelword", "server_password": "serverword"}
    with RedisSentinels(tmp_path, replicas=1, sentinels=1, **passwords) as servers:
        ear = Ear()
        async with opened(servers.url, ear) as bus:
            await bus.announce(b"hello")
            await ear.until(lambda: bool(ear.controls))
        wrong = open_bus(servers.url.replace("sentinelword", "wrongword"))
        await wrong.open(Ear())
        with pytest.raises(BusUnavailable, match="WRONGPASS"):
            await wrong.announce(b"")
        await wrong.close()
    shown = "".join(capfd.readouterr())
    assert not [word for word in ("sentinelword", "serverword", "wrongword") if word in shown]
