"""Three gateways on one store and one bus: to a person and to an agency they are one."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from websockets.exceptions import ConnectionClosed

from client_sim.local import command
from tests import postgresql_server
from tests.nodes import Cluster, Device, Stopped, cluster
from tests.redis_server import RedisServer

pytestmark = pytest.mark.asyncio(loop_scope="module")

_people = (f"person-{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def database() -> str:
    return postgresql_server.shared().database()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def three(redis: RedisServer, database: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    store = postgresql_server.shared().url(database)
    async with cluster(3, tmp_path_factory.mktemp("nodes"), store, redis.url, sweep_s="4", ops_s="1") as made:
        yield made


async def person(three: Cluster) -> tuple[str, str]:
    """A new account and its token."""
    account = next(_people)
    [token] = await three.tokens(account)
    return account, token


async def devices(three: Cluster, token: str) -> list[Device]:
    """One on each node."""
    return [await Device.join(node.address, token, f"d{node.number}") for node in three.nodes]


async def leave(*devices: Device) -> None:
    await asyncio.gather(*(device.leave() for device in devices))


async def test_what_is_posted_to_any_node_reaches_devices_on_any_node(three: Cluster) -> None:
    account, token = await person(three)
    held = await devices(three, token)
    for node in three.nodes:
        await three.post(node.number, account, f"{account}-{node.number}-a", f"{account}-{node.number}-b")
    expected = [f"{account}-{node.number}-{part}" for node in three.nodes for part in "ab"]
    assert [await device.events(6) for device in held] == [expected] * 3
    await leave(*held)


async def test_operators_see_every_node_and_every_look_from_any(three: Cluster) -> None:
    [token] = (await command("token", "op", "--scope", "ops", environment=three.nodes[0].environment)).split()
    op = await Device.join(three.nodes[1].address, token, "desk", feeds=["ops:figures", "ops:audit"])
    account, _ = await person(three)
    await three.post(0, account, f"{account}-a")
    url = f"{three.nodes[2].address}/v1/ops/accounts/{account}/events/1"
    answer = await three.http.get(url, headers={"authorization": f"Bearer {token}"})
    assert answer.json()["id"] == f"{account}-a"
    nodes: set[str] = set()
    looks: list[tuple[str, str, int]] = []
    accepted = 0
    async with asyncio.timeout(15):
        while len(nodes) < 3 or not accepted or not looks:
            message = await op.read("event")
            data = message["event"]["data"]
            if message["feed"] == "ops:audit":
                looks.append((data["operator"], data["account"], data["offset"]))
            else:
                nodes.add(data["node"])
                accepted += data["agencies"]["fns"]["accepted"]
    assert looks == [("op", account, 1)]
    await op.leave()


async def test_seen_reaches_the_devices_on_other_nodes(three: Cluster) -> None:
    account, token = await person(three)
    held = await devices(three, token)
    await three.post(0, account, f"{account}-x")
    for device in held:
        await device.events(1)
    await held[0].say("seen", feed=f"account:{account}", offsets=[1])
    for device in held[1:]:
        assert (await device.read("seen"))["offsets"] == [1]
    await leave(*held)


async def test_the_newest_session_of_a_device_closes_the_older_one_on_another_node(three: Cluster) -> None:
    account, token = await person(three)
    older = await Device.join(three.nodes[0].address, token, "d")
    for turn in (1, 2, 0, 1):
        newer = await Device.join(three.nodes[turn].address, token, "d")
        assert await older.closed(2) == 4409
        older = newer
    await three.post(2, account, f"{account}-x")
    assert await older.events(1) == [f"{account}-x"]
    await leave(older)


async def test_hellos_of_one_device_on_all_nodes_at_once_leave_one_session(three: Cluster) -> None:
    _, token = await person(three)
    addresses = [three.nodes[number % 3].address for number in range(9)]
    tried = await asyncio.gather(*(Device.join(address, token, "d") for address in addresses), return_exceptions=True)
    came = [device for device in tried if isinstance(device, Device)]
    ends = {asyncio.create_task(device.closed(60)): device for device in came}
    while len(ends) > 1:
        done, _ = await asyncio.wait(ends, timeout=10, return_when=asyncio.FIRST_COMPLETED)
        assert done, "two sessions of one device"
        for one in done:
            assert one.result() == 4409
            del ends[one]
    [(waits, last)] = ends.items()
    await three.shows(0, token, {"d": True})
    waits.cancel()
    await asyncio.wait([waits])
    await leave(last)


async def test_every_node_tells_which_devices_are_connected_anywhere(three: Cluster) -> None:
    _, token = await person(three)
    held = await devices(three, token)
    for node in three.nodes:
        await three.shows(node.number, token, {"d0": True, "d1": True, "d2": True})
    await leave(held[1])
    for node in three.nodes:
        await three.shows(node.number, token, {"d0": True, "d1": False, "d2": True})
    await leave(*held)


async def test_a_connected_device_is_not_forgotten_for_one_on_another_node(three: Cluster) -> None:
    _, token = await person(three)
    addresses = [three.nodes[number % 3].address for number in range(10)]
    held = [await Device.join(address, token, f"d{number}") for number, address in enumerate(addresses)]
    with pytest.raises(ConnectionClosed) as refused:
        await Device.join(addresses[0], token, "eleventh")
    assert refused.value.rcvd is not None
    assert refused.value.rcvd.code == 4403
    await leave(held[4])
    await three.shows(0, token, {f"d{number}": number != 4 for number in range(10)})
    eleventh = await Device.join(addresses[2], token, "eleventh")
    await three.shows(1, token, {f"d{number}": True for number in range(10) if number != 4} | {"eleventh": True})
    await leave(*held, eleventh)


@pytest.mark.parametrize("bus", ["with the bus", "without the bus"])
async def test_a_device_that_is_forgotten_is_closed_on_every_node(three: Cluster, redis: RedisServer, bus: str) -> None:
    _, token = await person(three)
    held = await devices(three, token)
    if bus == "without the bus":
        redis.freeze()
    try:
        headers = {"authorization": f"Bearer {token}"}
        deleting = three.http.delete(f"{three.nodes[0].address}/v1/devices/d2", headers=headers)
        answer, code = await asyncio.gather(deleting, held[2].closed(5))
        assert (answer.status_code, code) == (204, 4410)
        assert (await three.connected(1, token)) == {"d0": True, "d1": True}
    finally:
        redis.thaw()
    again = await Device.join(three.nodes[1].address, token, "d2")
    await three.shows(0, token, {"d0": True, "d1": True, "d2": True})
    await leave(*held, again)


@pytest.mark.parametrize("bus", ["with the bus", "without the bus"])
async def test_a_revocation_closes_sessions_on_every_node_within_5_s(
    three: Cluster, redis: RedisServer, bus: str
) -> None:
    account, token = await person(three)
    held = await devices(three, token)
    await healthy(three)
    if bus == "without the bus":
        redis.freeze()
    try:
        ended = [asyncio.create_task(device.closed(7)) for device in held]
        await command("revoke", "--sub", account, environment=three.nodes[0].environment)
        done, late = await asyncio.wait(ended, timeout=5)
        assert not late
        assert {one.result() for one in done} == {4410}
    finally:
        redis.thaw()
    with pytest.raises(ConnectionClosed) as refused:
        await Device.join(three.nodes[1].address, token, "d0")
    assert refused.value.rcvd is not None
    assert refused.value.rcvd.code == 4410


async def healthy(three: Cluster) -> None:
    """Every bus is up again after what the test before did to it."""
    async with asyncio.timeout(15):
        for node in three.nodes:
            while "vestnik_bus_healthy 1.0" not in await node.metrics(three.http):
                await asyncio.sleep(0.1)


async def test_a_session_is_taken_over_without_the_bus_too(three: Cluster, redis: RedisServer) -> None:
    _, token = await person(three)
    await healthy(three)
    older = await Device.join(three.nodes[0].address, token, "d")
    redis.freeze()
    try:
        newer = await Device.join(three.nodes[1].address, token, "d")
        assert await older.closed(8) == 4409
    finally:
        redis.thaw()
    await healthy(three)
    await leave(newer)


async def test_a_node_that_was_stopped_for_longer_than_its_lease_gives_up_what_others_took(three: Cluster) -> None:
    account, token = await person(three)
    taken, stays = [await Device.join(three.nodes[0].address, token, name) for name in ("d1", "d2")]
    with Stopped(three.nodes[0]):
        newer = await Device.join(three.nodes[1].address, token, "d1")
        await three.shows(2, token, {"d1": True, "d2": False}, patience_s=8)
        await three.post(1, account, f"{account}-x")
        assert await newer.events(1) == [f"{account}-x"]
    assert await taken.closed(5) == 4409
    assert await stays.events(1) == [f"{account}-x"]
    await three.shows(2, token, {"d1": True, "d2": True})
    await leave(newer, stays)


async def test_a_node_that_is_killed_leaves_nothing_behind(three: Cluster) -> None:
    account, token = await person(three)
    held = await devices(three, token)
    await three.nodes[2].kill()
    assert await held[2].closed(2) is None
    await three.post(0, account, f"{account}-x")
    back = await Device.join(three.nodes[1].address, token, "d2")
    for device in (held[0], held[1], back):
        assert await device.events(1) == [f"{account}-x"]
    await leave(back)
    await three.nodes[2].start()
    await three.shows(2, token, {"d0": True, "d1": True, "d2": False})
    await leave(*held)


async def test_a_store_that_lost_its_roster_gets_it_back(three: Cluster, database: str) -> None:
    """As PostgreSQL does in a crash. Nobody is closed for it."""
    account, token = await person(three)
    held = await devices(three, token)
    postgresql_server.shared().sql("TRUNCATE vestnik.presences, vestnik.leases", database)
    assert await three.connected(1, token) == {"d0": False, "d1": True, "d2": False}, "what it knows by itself"
    await three.shows(1, token, {"d0": True, "d1": True, "d2": True}, patience_s=8)
    await three.post(2, account, f"{account}-x")
    for device in held:
        assert await device.events(1) == [f"{account}-x"]
    await leave(*held)
