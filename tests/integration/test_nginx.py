"""The nginx that is shipped, in front of real gateways: what a person and an agency see through it, and what they do
not see when gateways die, hang, or are restarted one after another."""

import asyncio
import json
import re
import signal
import time
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import connect

from client_sim.agencies import sign
from client_sim.local import Gateway
from tests.faults.harness import QUICK, Trial
from tests.nginx_server import Nginx
from tests.nodes import FNS, Cluster, Device, Node, cluster, notice
from tests.redis_server import RedisServer


def behind(directory: Path, *nodes: Node) -> Nginx:
    return Nginx(directory, [f"{node.host}:{node.port}" for node in nodes])


async def post(http: httpx.AsyncClient, address: str, made: Cluster, account: str, name: str) -> int:
    body = json.dumps(notice(account, name)).encode()
    at = int(time.time())
    signed = {"webhook-id": name, "webhook-timestamp": str(at), "webhook-signature": sign(made.secret, name, at, body)}
    headers = {"content-type": "application/cloudevents+json", **signed}
    return (await http.post(f"{address}{FNS}", content=body, headers=headers)).status_code


async def test_two_gateways_behind_nginx(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (tmp_path / "redis").mkdir()
    with RedisServer(tmp_path / "redis") as redis:
        async with cluster(2, data, f"sqlite:///{data}/vestnik.db", redis.url, proxies="127.0.0.1") as made:
            with behind(tmp_path / "nginx", *made.nodes) as nginx:
                async with httpx.AsyncClient(verify=nginx.trust, timeout=10, trust_env=False) as http:
                    await through_nginx(nginx, made, http)


async def through_nginx(nginx: Nginx, made: Cluster, http: httpx.AsyncClient) -> None:
    address, trust = nginx.address, nginx.trust
    tokens = await made.tokens(*(f"p{number}" for number in range(6)), "ann")
    held = await asyncio.gather(*(Device.join(address, token, "d", ssl=trust) for token in tokens[:6]))
    spread = [
        int(re.findall(r"^vestnik_sessions (\d+)", await node.metrics(made.http), re.M)[0]) for node in made.nodes
    ]
    assert spread == [3, 3], "the least sessions: they are even"

    # Whatever the way in, it reaches everybody.
    for number, device in enumerate(held):
        assert await post(http, address, made, f"p{number}", f"e{number}") == 202
        assert await device.events(1) == [f"e{number}"]

    # What is not for the public is not there.
    for path in ("/metrics", "/health/live", "/health/ready"):
        assert (await http.get(f"{address}{path}")).status_code == 404
    moved = await http.get(f"http://127.0.0.1:{nginx.redirect_port}/v1/devices")
    assert (moved.status_code, moved.headers["location"]) == (308, "https://127.0.0.1/v1/devices")

    # The client's own address, and not what it says of itself, is in the gateway's log.
    url = address.replace("http", "ws") + "/v1/socket"
    lie = {"X-Forwarded-For": "203.0.113.7"}
    async with connect(url, ssl=trust, proxy=None, local_addr=("127.0.0.9", 0), additional_headers=lie) as socket:
        await socket.send("nonsense")
        await socket.wait_closed()
        assert socket.close_code == 4400
    lines = [json.loads(line) for node in made.nodes for line in node.log.read_text().splitlines()]
    assert [line["client"] for line in lines if line["message"] == "session_closed"] == ["127.0.0.9"]

    # A gateway that drains is passed by, one that was killed too, for sockets and for posts.
    gone = made.nodes[0]
    leaving = asyncio.create_task(gone.stop())
    for number in range(10):
        assert await post(http, address, made, "ann", f"while-draining-{number}") == 202
    new = await Device.join(address, tokens[6], "d", ssl=trust)
    await leaving
    assert gone.process is not None
    assert gone.process.returncode == 0
    assert {await device.closed() for device in held[:6] if device.socket.close_code} <= {4512}
    await gone.start()
    await made.nodes[1].kill()
    back = await Device.join(address, tokens[6], "d", ssl=trust)
    for number in range(10):
        assert await post(http, address, made, "ann", f"after-a-kill-{number}") == 202
    expected = [f"{word}-{number}" for word in ("while-draining", "after-a-kill") for number in range(10)]
    assert await back.events(20) == expected, "nothing was acknowledged, so all of it comes"
    await asyncio.gather(new.leave(), back.leave(), *(device.leave() for device in held))


# Under load


class Front(Gateway):
    """Three nodes and the nginx before them, as one gateway."""

    def __init__(self, data: Path, redis: RedisServer):
        super().__init__(data, QUICK)
        settings = {**QUICK, "drain_s": "2", "lease_s": "3", "sweep_s": "4", "proxies": "127.0.0.1"}
        store = f"sqlite:///{self.store}"
        self.nodes = [Node(number, data, store, redis.url, **settings) for number in range(3)]
        self.nginx = behind(data.parent / "nginx", *self.nodes)

    @property
    def address(self) -> str:
        return self.nginx.plain

    async def start(self) -> None:
        self.data.mkdir(parents=True, exist_ok=True)
        await self.nodes[0].start()
        await asyncio.gather(*(node.start() for node in self.nodes[1:]))
        self.nginx.start()

    async def stop(self) -> None:
        await asyncio.gather(*(node.stop() for node in self.nodes))
        self.process = self.nodes[0].process
        self.nginx.stop()


class Fleet(Trial):
    def __init__(self, folder: Path, seed: int, redis: RedisServer):
        super().__init__(folder, seed)
        self.gateway = self.front = Front(folder / "data", redis)

    async def sessions(self) -> int:
        texts = await asyncio.gather(*(self._metrics(node) for node in self.front.nodes))
        return sum(int(count) for text in texts for count in re.findall(r"^vestnik_sessions (\d+)", text, re.M))

    async def _metrics(self, node: Node) -> str:
        try:
            return await node.metrics(self.http)
        except httpx.HTTPError:
            return ""

    async def everybody_back(self, patience_s: float) -> float:
        """How long it took until every phone had a session."""
        began = time.monotonic()

        async def back() -> bool:
            return await self.sessions() == len(self.phones)

        await self.until(back, patience_s)
        return time.monotonic() - began


@pytest.mark.parametrize("seed", [7])
async def test_kills_stops_and_a_rolling_restart_lose_nothing(tmp_path: Path, seed: int) -> None:
    (tmp_path / "redis").mkdir()
    with RedisServer(tmp_path / "redis") as redis:
        async with Fleet(tmp_path / "fleet", seed, redis) as fleet:
            accounts = [f"p{number}" for number in range(12)]
            await fleet.open_offices(["fns", "mvd", "mchs"], accounts)
            await fleet.gateway.start()
            await fleet.hand_out(accounts, 4)
            fleet.publish(hands=2, pause_s=0.1, most=5)
            for node in fleet.front.nodes:
                node.signal(signal.SIGTERM)
                assert node.process is not None
                async with asyncio.timeout(10):
                    assert await node.process.wait() == 0
                await fleet.everybody_back(7)  # the announced 2 s plus 5
                await node.start()
            await fleet.front.nodes[1].kill()
            await fleet.everybody_back(15)
            await fleet.front.nodes[1].start()
            fleet.front.nodes[2].signal(signal.SIGSTOP)
            await asyncio.sleep(4)
            fleet.front.nodes[2].signal(signal.SIGCONT)
            await asyncio.sleep(1)
            await fleet.quiet(40)
            verdict = await fleet.verdict()
            print(verdict)
            assert verdict.ok, str(verdict)
            assert fleet.exit_codes == [0]
