"""Several processes on one port, how they end, and workers as processes: all of it with real ones."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import InvalidStatus

from client_sim.local import command
from gateway.bus import Message, open_bus
from gateway.store.base import Stored
from gateway.store.sqlite import SqliteStore
from tests.nodes import Cluster, Device, Node, known
from tests.redis_server import RedisServer
from tests.workers.test_relay import draft

VESTNIK = Path(sys.executable).with_name("vestnik")


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@contextlib.asynccontextmanager
async def serving(
    data: Path, redis: RedisServer | None = None, processes: int = 1, **settings: str
) -> AsyncIterator[Cluster]:
    """One `vestnik serve`, with an agency and whatever it takes to post and to connect."""
    bus = redis.url if redis else "memory://"
    node = Node(0, data, f"sqlite:///{data}/vestnik.db", bus, processes, **{"drain_s": "2", **settings})
    async with node, httpx.AsyncClient(timeout=10, trust_env=False) as http:
        await node.start()
        secret = await command("agency", "add", "fns", environment=node.environment)
        made = Cluster([node], http, secret.strip())
        for _ in range(2 * processes):  # whichever of them answers
            await known(node, made)
        yield made


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def processes(node: Node) -> list[int]:
    assert node.pid is not None
    return children(node.pid)


async def sessions(made: Cluster) -> dict[str, int]:
    """How many each process holds."""
    text = await made.nodes[0].metrics(made.http)
    found = re.findall(r'^vestnik_sessions\{process="(\d)"\} (\d+)', text, re.MULTILINE)
    return {process: int(count) for process, count in found}


async def ended(node: Node, patience_s: float = 15) -> int:
    assert node.process is not None
    async with asyncio.timeout(patience_s):
        return await node.process.wait()


def refused(node: Node) -> bool:
    """Does nobody listen there?"""
    try:
        socket.create_connection((node.host, node.port), timeout=2).close()
    except ConnectionRefusedError:
        return True
    return False


# Several processes


async def test_processes_share_a_port_and_one_that_dies_is_started_again(tmp_path: Path, redis: RedisServer) -> None:
    async with serving(tmp_path, redis, processes=3) as made:
        node = made.nodes[0]
        accounts = [f"p{number}" for number in range(60)]
        tokens = await made.tokens(*accounts)
        held = await asyncio.gather(*(Device.join(node.address, token, "d") for token in tokens))

        # Connections are spread, and metrics tell of all processes, whichever is asked.
        spread = await sessions(made)
        assert sum(spread.values()) == 60
        assert len([count for count in spread.values() if count >= 5]) == 3, spread  # 20 each, give or take 4

        # What one process takes reaches the devices of all.
        for account in accounts[:20]:
            await made.post(0, account, f"{account}-x")
        for account, device in zip(accounts[:20], held, strict=False):
            assert await device.events(1) == [f"{account}-x"]

        # One dies: its devices lose their connection, the others do not notice, and it is back.
        dying = processes(node)[1]
        os.kill(dying, signal.SIGKILL)
        lost = [asyncio.create_task(device.closed(30)) for device in held]
        done, stays = await asyncio.wait(lost, timeout=1)
        assert {one.result() for one in done} == {None}
        assert len(stays) + len(done) == 60
        async with asyncio.timeout(15):
            while len(await sessions(made)) < 3 or len(processes(node)) < 3:
                await asyncio.sleep(0.1)
        assert dying not in processes(node)
        assert sum((await sessions(made)).values()) == len(stays)

        # The whole drains and ends.
        node.signal(signal.SIGTERM)
        assert await ended(node) == 0
        assert {await one for one in stays} == {4512}
        assert refused(node)


async def processes_whose_supervisor_died_drain_by_themselves(tmp_path: Path, redis: RedisServer) -> None:
    async with serving(tmp_path, redis, processes=2, drain_s="1") as made:
        node = made.nodes[0]
        [token] = await made.tokens("ann")
        device = await Device.join(node.address, token, "d")
        left = processes(node)
        await node.kill()
        assert (await device.read("drain"))["after"] == 1
        assert await device.closed() == 4512
        async with asyncio.timeout(10):
            while any(Path(f"/proc/{pid}").exists() for pid in left):
                await asyncio.sleep(0.05)
        assert refused(node)


async def a_process_that_hangs_is_replaced(tmp_path: Path, redis: RedisServer) -> None:
    """Until then it holds up its share of the new connections, and the metrics say so."""
    async with serving(tmp_path, redis, processes=2) as made:
        node = made.nodes[0]
        hanging = processes(node)[0]
        os.kill(hanging, signal.SIGSTOP)
        up = re.compile(r'process_up\{process="(\d)"\} (\d)')
        async with asyncio.timeout(10):
            found = None
            while found != {"0": "0", "1": "1"}:
                with contextlib.suppress(httpx.TimeoutException):
                    answer = await made.http.get(f"{node.address}/metrics", timeout=3, headers={"connection": "close"})
                    found = dict(up.findall(answer.text))
        async with asyncio.timeout(25):
            while hanging in processes(node) or len(processes(node)) < 2:
                await asyncio.sleep(0.1)
            while len(await sessions(made)) < 2:
                await asyncio.sleep(0.1)
        tokens = await made.tokens(*(f"p{number}" for number in range(8)))
        held = await asyncio.gather(*(Device.join(node.address, token, "d") for token in tokens))
        await asyncio.gather(*(device.leave() for device in held))


async def two_gateways_on_one_port_are_refused(tmp_path: Path, redis: RedisServer) -> None:
    async with serving(tmp_path, redis, processes=2) as made:
        other = Node(1, tmp_path, made.nodes[0]._store, redis.url, processes=2)
        other.port = made.nodes[0].port
        environment, flags = other.environment, {"capture_output": True, "text": True, "timeout": 30}
        done = await asyncio.to_thread(subprocess.run, [VESTNIK, "serve"], env=environment, cwd=tmp_path, **flags)
        assert done.returncode == 3
        assert "VESTNIK_PORT" in done.stderr


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"bus": "memory://"}, "VESTNIK_BUS must reach all 3 processes"),
        ({"bus": "redis://127.0.0.1:1", "store": "memory://"}, "VESTNIK_STORE must be shared by all 3 processes"),
        ({"bus": "redis://127.0.0.1:1", "store": "sqlite:////proc/no/such.db"}, "VESTNIK_STORE: /proc/no/such.db"),
        ({"bus": "redis://127.0.0.1:1", "jwks": "/no/such/jwks.json"}, "/no/such/jwks.json"),
    ],
)
def test_what_cannot_start_ends_with_3_and_one_sentence(
    tmp_path: Path, settings: dict[str, str], sentence: str
) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VESTNIK_")}
    environment |= {"VESTNIK_DATA": str(tmp_path), "VESTNIK_PORT": "0"}
    environment |= {f"VESTNIK_{name.upper()}": value for name, value in settings.items()}
    done = subprocess.run(
        [VESTNIK, "serve", "--processes", "3"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 3
    told = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert len(told) == 1, done.stderr
    assert sentence in told[0]
    assert done.stdout == ""


# Draining


async def a_drain_takes_no_longer_than_announced(tmp_path: Path) -> None:
    """A device that does not go is closed when the time is over; what comes until then is delivered."""
    async with serving(tmp_path, drain_s="2") as made:
        node = made.nodes[0]
        [token] = await made.tokens("ann")
        stays, goes = [await Device.join(node.address, token, name) for name in ("stays", "goes")]
        node.signal(signal.SIGTERM)
        began = time.monotonic()
        for device in (stays, goes):
            assert (await device.read("drain"))["after"] == 2
        assert refused(node)
        await goes.leave()
        assert await stays.closed() == 4512
        assert 1.5 < time.monotonic() - began < 5
        assert await ended(node, 5) == 0


async def a_drain_ends_when_everybody_has_left(tmp_path: Path) -> None:
    async with serving(tmp_path, drain_s="60") as made:
        node = made.nodes[0]
        [token] = await made.tokens("ann")
        device = await Device.join(node.address, token, "d")
        node.signal(signal.SIGTERM)
        await device.read("drain")
        await device.leave()
        assert await ended(node, 5) == 0


async def a_second_signal_cuts_the_drain_short(tmp_path: Path, redis: RedisServer, several: int) -> None:
    async with serving(tmp_path, redis, several, drain_s="60") as made:
        node = made.nodes[0]
        [token] = await made.tokens("ann")
        device = await Device.join(node.address, token, "d")
        node.signal(signal.SIGTERM)
        await device.read("drain")
        await asyncio.sleep(0.3)
        assert node.pid is not None, "it drains"
        node.signal(signal.SIGTERM)
        assert await device.closed() == 4512
        assert await ended(node, 8) == 0


async def too_many_handshakes_at_once_are_told_to_come_later(tmp_path: Path) -> None:
    async with serving(tmp_path, accept_rate="1", accept_burst="3", busy_retry_s="7") as made:
        node = made.nodes[0]
        tokens = await made.tokens(*(f"p{number}" for number in range(6)))
        tried = await asyncio.gather(
            *(Device.join(node.address, token, "d") for token in tokens), return_exceptions=True
        )
        late = [error for error in tried if isinstance(error, InvalidStatus)]
        assert len(late) >= 2
        assert {(error.response.status_code, error.response.headers["Retry-After"]) for error in late} == {(503, "7")}
        assert f'handshake_rejects_total{{reason="rate"}} {len(late)}' in await node.metrics(made.http)
        await asyncio.sleep(1.1)
        later = await Device.join(node.address, tokens[0], "other")
        await asyncio.gather(later.leave(), *(device.leave() for device in tried if isinstance(device, Device)))


# All of these wait most of the time, so they wait side by side.


async def test_how_gateways_end(tmp_path: Path, redis: RedisServer) -> None:
    await asyncio.gather(
        a_drain_takes_no_longer_than_announced(tmp_path / "announced"),
        a_drain_ends_when_everybody_has_left(tmp_path / "left"),
        a_second_signal_cuts_the_drain_short(tmp_path / "cut", redis, 1),
        a_second_signal_cuts_the_drain_short(tmp_path / "cut both", redis, 2),
        too_many_handshakes_at_once_are_told_to_come_later(tmp_path / "many"),
    )


async def test_what_becomes_of_processes_that_fail(tmp_path: Path, redis: RedisServer) -> None:
    await asyncio.gather(
        a_process_that_hangs_is_replaced(tmp_path / "hangs", redis),
        processes_whose_supervisor_died_drain_by_themselves(tmp_path / "orphans", redis),
        two_gateways_on_one_port_are_refused(tmp_path / "two", redis),
    )


# Workers


class Ear:
    def __init__(self) -> None:
        self.heard: Counter[tuple[str, int]] = Counter()

    def received(self, message: Message) -> None:
        self.heard[message.feed, message.offset] += 1

    def control(self, payload: bytes) -> None: ...

    def gap(self) -> None: ...


async def test_work_of_workers_is_done_once_and_taken_over_when_its_owner_dies(
    tmp_path: Path, redis: RedisServer
) -> None:
    store = SqliteStore(tmp_path / "vestnik.db")
    await store.open()
    ear, bus = Ear(), open_bus(redis.url)
    await bus.open(ear)
    await bus.subscribe(["account:a"])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VESTNIK_")}
    environment |= {"VESTNIK_DATA": str(tmp_path), "VESTNIK_STORE": f"sqlite:///{store.path}", "VESTNIK_BUS": redis.url}
    environment |= {"VESTNIK_RELAY_AFTER_S": "0.5"}
    workers = [
        await asyncio.create_subprocess_exec(
            *(VESTNIK, "worker", "relay"), env=environment, cwd=tmp_path, stderr=asyncio.subprocess.DEVNULL
        )
        for _ in range(3)
    ]

    async def heard(events: range, patience_s: float) -> None:
        stored = await store.append([draft(number) for number in events], time.time())
        assert all(isinstance(one, Stored) for one in stored)
        async with asyncio.timeout(patience_s):
            while len(ear.heard) < events.stop:
                await asyncio.sleep(0.05)

    try:
        await heard(range(40), 20)
        await heard(range(40, 60), 20)
        await asyncio.sleep(2)  # the others have looked too
        assert set(ear.heard.values()) == {1}, "one of three published"
        for dying, events in ((workers[0], range(60, 80)), (workers[1], range(80, 100))):
            dying.kill()
            await heard(events, 12)
        assert set(ear.heard.values()) == {1}
        workers[2].terminate()
        assert await workers[2].wait() == 0
    finally:
        for worker in workers:
            with contextlib.suppress(ProcessLookupError):
                worker.kill()
            await worker.wait()
        await bus.close()
        await store.close()
