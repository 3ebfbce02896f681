"""What breaks is told: real gateways, a bus that dies, an operator on a socket, a receiver that checks and fails."""

import asyncio
import contextlib
import itertools
import json
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from client_sim.local import Gateway, command
from tests.nodes import Device, Node, cluster, notice
from tests.receiver import SECRET, Receiver
from tests.redis_server import RedisServer

VESTNIK = Path(sys.executable).with_name("vestnik")
Map = dict[str, Any]
ALERTS = "ops:alerts"
PATIENCE_S = 45

QUICK = """
[bus]
hold_s = 0
clear_s = 0
[node]
bound = 2
hold_s = 1
[silence.agency.fns]
bound = 3
[rejects]
hold_s = 0
clear_s = 0
window_s = 15
"""


@pytest.fixture
def rules(tmp_path: Path) -> str:
    """No patience: what a test breaks fires at once."""
    file = tmp_path / "alerts.toml"
    file.write_text(QUICK)
    return str(file)


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


class Operator:
    """Follows the alerts on a socket."""

    def __init__(self, device: Device):
        self.device, self.seen = device, dict[int, Map]()
        self.waiting: deque[Map] = deque()

    @classmethod
    async def join(cls, node: Gateway, before: "Operator | None" = None) -> "Operator":
        """Goes on after what the one before has seen."""
        token = await command("token", "duty", "--scope", "ops", environment=node.environment)
        resume = {} if before is None else {"resume": {ALERTS: before.position}}
        made = cls(await Device.join(node.address, token.strip(), "desk", feeds=[ALERTS], **resume))
        made.seen = {} if before is None else before.seen
        return made

    @property
    def position(self) -> Map:
        return {"epoch": self.device.welcome["feeds"][0]["epoch"], "offset": max(self.seen)}

    async def until(self, rule: str, subject: str, state: str) -> Map:
        """The next such alert; others that come before it are only noted."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                while self.waiting:
                    data = self.waiting.popleft()
                    if (data["rule"], data["state"]) == (rule, state) and data["subject"].startswith(subject):
                        return data
                await self._receive()

    async def _receive(self) -> None:
        message = json.loads(await self.device.socket.recv())
        if message["t"] not in ("event", "batch"):
            return
        events = message["events"] if message["t"] == "batch" else [(message["offset"], message["event"])]
        for offset, event in events:
            assert offset not in self.seen, "each comes once"
            self.seen[offset] = event["data"]
            self.waiting.append(event["data"])
        await self.device.say("ack", feed=ALERTS, offset=events[-1][0])


def told(receiver: Receiver) -> list[tuple[str, str, str]]:
    """Each alert that was taken, once."""
    events = {post.id: post.event["data"] for post in receiver.taken}
    return [(data["rule"], data["subject"], data["state"]) for data in events.values()]


@contextlib.asynccontextmanager
async def sending(node: Node, http: httpx.AsyncClient, secret: str) -> AsyncIterator[None]:
    """The agency sends again, all the time; with a wrong secret all of it is refused."""

    async def send() -> None:
        for number in itertools.count():
            await node.send(http, secret, notice("ivan", f"e-{number}"))
            await asyncio.sleep(0.2)

    task = asyncio.create_task(send())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_an_agency_falls_silent_and_the_gateway_dies(tmp_path: Path, rules: str) -> None:
    async with Receiver() as receiver, httpx.AsyncClient(timeout=10, trust_env=False) as http:
        told_to = {"alert_url": receiver.url, "alert_secret": SECRET, "alerts": rules, "ops_s": "0.3", "drain_s": "0"}
        data = tmp_path / "data"
        node = Node(0, data, f"sqlite:///{data}/vestnik.db", "memory://", **told_to)
        async with node:
            await node.start()
            operator = await Operator.join(node)
            receiver.script.extend([500, "drop", 301])
            secret = (await command("agency", "add", "fns", environment=node.environment)).strip()
            fired = await operator.until("silence", "agency fns", "firing")
            assert (fired["severity"], fired["bound"], fired["unit"]) == ("warning", 3, "s")
            assert fired["title"]["ru"] == "Ведомство молчит: ведомство fns"
            await receiver.until(1)
            assert [post.answer for post in receiver.posts] == [500, "drop", 301, 204]
            assert len({post.id for post in receiver.posts}) == 1
            # While the receiver is away the gateway dies; the next one goes on where it was.
            receiver.script.extend([503] * 3)
            async with sending(node, http, secret):
                resolved = await operator.until("silence", "agency fns", "resolved")
            assert resolved["since"] == fired["since"]
            await node.kill()
            await node.start()
            await receiver.until(2)
            operator = await Operator.join(node, operator)
            # Until then: who was killed held the role, and its claim ends by time alone.
            async with sending(node, http, "whsec_" + "A" * 32):
                refused = await operator.until("rejects", "agency fns unsigned", "firing")
            assert refused["value"] > 5
            await receiver.until(3)
        assert [one for one in told(receiver) if one[0] != "rejects"][:2] == [
            ("silence", "agency fns", "firing"),
            ("silence", "agency fns", "resolved"),
        ]
        assert ("rejects", "agency fns unsigned", "firing") in told(receiver)


@contextlib.asynccontextmanager
async def worker(node: Gateway, data: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    log = (data / "worker.log").open("wb")
    process = await asyncio.create_subprocess_exec(
        *(VESTNIK, "worker", "relay", "alerts", "webhook"), env=node.environment, cwd=data, stderr=log
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        log.close()


async def test_the_bus_dies_and_then_a_node(tmp_path: Path, rules: str, redis: RedisServer) -> None:
    data = tmp_path / "data"
    async with Receiver() as receiver:
        settings = {
            "alert_url": receiver.url,
            "alert_secret": SECRET,
            "alerts": rules,
            "ops_s": "0.3",
            "workers": "false",
        }
        async with cluster(2, data, f"sqlite:///{data}/vestnik.db", redis.url, **settings) as two:
            operator = await Operator.join(two.nodes[0])
            async with worker(two.nodes[0], data):
                redis.kill()
                dead = [await operator.until("bus", "node", "firing") for _ in range(2)]
                assert {alert["severity"] for alert in dead} == {"critical"}
                redis.start()
                alive = [await operator.until("bus", "node", "resolved") for _ in range(2)]
                assert {alert["subject"] for alert in dead} == {alert["subject"] for alert in alive}
                await two.nodes[1].kill()
                gone = await operator.until("node", "node", "firing")
                assert gone["severity"] == "critical"
                await two.nodes[1].start()  # under a new name: it takes the other's place
                back = await operator.until("node", "node", "resolved")
                assert back["subject"] == gone["subject"]
                await receiver.until(len(operator.seen))
            assert set(told(receiver)) == {
                (one["rule"], one["subject"], one["state"]) for one in operator.seen.values()
            }


async def test_a_wrong_file_stops_the_start_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "alerts.toml").write_text("[latency]\nbonud = 3\n")
    node = Gateway(tmp_path / "data", {"alerts": str(tmp_path / "alerts.toml")})
    node.data.mkdir()
    for words in (["serve"], ["worker", "alerts", "relay"]):
        extra = {} if words == ["serve"] else {"VESTNIK_BUS": "redis://127.0.0.1:1"}
        done = await asyncio.to_thread(
            subprocess.run,
            [VESTNIK, *words],
            env=node.environment | extra,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 3, done.stderr
        said = [line for line in done.stderr.splitlines() if "VESTNIK_ALERTS" in line]
        assert len(said) == 1
        assert "[latency] has no 'bonud'; did you mean bound?" in said[0]
        assert "Traceback" not in done.stderr
