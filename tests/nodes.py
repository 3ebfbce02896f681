"""Several gateways on one store and one bus, each a process of its own, and devices that choose where they go."""

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from client_sim.agencies import sign
from client_sim.local import Gateway, command

Map = dict[str, Any]
FNS = "/v1/agencies/fns/events"


class Node(Gateway):
    """One of several on the same `data`, which holds the key of the tokens."""

    def __init__(self, number: int, data: Path, store: str, bus: str, processes: int = 1, **settings: str):
        super().__init__(data, settings)
        self.processes = str(processes)
        self.number, self._store, self._bus = number, store, bus
        self.log = data / f"node-{number}.log"

    @property
    def environment(self) -> dict[str, str]:
        own = {"VESTNIK_STORE": self._store, "VESTNIK_BUS": self._bus, "VESTNIK_PROCESSES": self.processes}
        return {**super().environment, **own}

    def signal(self, number: signal.Signals) -> None:
        """To the process that was started; what it does with those that it started itself is what is tried."""
        if self.pid is not None:
            os.kill(self.pid, number)

    async def post(self, http: httpx.AsyncClient, secret: str, *events: Map) -> list[Map]:
        """Signed and accepted here."""
        answer = await self.send(http, secret, *events)
        assert answer.status_code == 202, answer.text
        results: list[Map] = answer.json()["results"]
        return results

    async def send(self, http: httpx.AsyncClient, secret: str, *events: Map) -> httpx.Response:
        body = json.dumps(events).encode()
        name, at = f"msg-{time.monotonic_ns()}", int(time.time())
        signed = {"webhook-id": name, "webhook-timestamp": str(at), "webhook-signature": sign(secret, name, at, body)}
        headers = {"content-type": "application/cloudevents-batch+json", **signed}
        return await http.post(f"{self.address}{FNS}", content=body, headers=headers)

    async def metrics(self, http: httpx.AsyncClient) -> str:
        return (await http.get(f"{self.address}/metrics")).text


class Device:
    """A socket of the contract and nothing else: it does not come back, and acknowledges when it is told to."""

    def __init__(self, socket: ClientConnection, welcome: Map):
        self.socket, self.welcome = socket, welcome

    @classmethod
    async def join(
        cls,
        address: str,
        token: str,
        device: str,
        *,
        ssl: Any = None,
        headers: Mapping[str, str] | None = None,
        **hello: Any,
    ) -> Self:
        """Raises ConnectionClosed when it is refused."""
        url = address.replace("http", "ws", 1) + "/v1/socket"
        socket = await connect(
            url,
            subprotocols=[Subprotocol("vestnik.v1.json")],
            compression=None,
            open_timeout=10,
            proxy=None,
            ssl=ssl,
            additional_headers=headers,
        )
        await socket.send(json.dumps({"t": "hello", "token": token, "device": device, **hello}))
        async with asyncio.timeout(10):
            welcome = json.loads(await socket.recv())
        assert welcome["t"] == "welcome", welcome
        return cls(socket, welcome)

    async def read(self, t: str, patience_s: float = 10) -> Map:
        """The next message of this kind; others are dropped."""
        async with asyncio.timeout(patience_s):
            while (message := json.loads(await self.socket.recv()))["t"] != t:
                continue
        found: Map = message
        return found

    async def events(self, count: int, patience_s: float = 10) -> list[str]:
        """The ids of the next events."""
        ids: list[str] = []
        async with asyncio.timeout(patience_s):
            while len(ids) < count:
                message = json.loads(await self.socket.recv())
                if message["t"] == "event":
                    ids.append(message["event"]["id"])
                elif message["t"] == "batch":
                    ids += [event["id"] for _, event in message["events"]]
        return ids

    async def say(self, t: str, **fields: Any) -> None:
        await self.socket.send(json.dumps({"t": t, **fields}))

    async def closed(self, patience_s: float = 10) -> int | None:
        """The code that the gateway closes with."""
        async with asyncio.timeout(patience_s):
            try:
                while True:
                    await self.socket.recv()
            except ConnectionClosed as error:
                return error.rcvd.code if error.rcvd else None

    async def leave(self) -> None:
        await self.socket.close()


def notice(account: str, name: str) -> Map:
    required = {"specversion": "1.0", "id": name, "source": "/agencies/fns", "type": "gov.notice.sent"}
    return required | {"time": "2026-03-01T12:30:00+03:00", "account": account, "data": {"title": "Т", "text": name}}


class Cluster:
    """Nodes that run, an agency, and tokens."""

    def __init__(self, nodes: Sequence[Node], http: httpx.AsyncClient, secret: str):
        self.nodes, self.http, self.secret = nodes, http, secret

    async def tokens(self, *accounts: str) -> list[str]:
        return (await command("token", *accounts, environment=self.nodes[0].environment)).split()

    async def post(self, node: int, account: str, *names: str) -> None:
        await self.nodes[node].post(self.http, self.secret, *(notice(account, name) for name in names))

    async def connected(self, node: int, token: str) -> dict[str, bool]:
        """What a node tells an account of its devices."""
        answer = await self.http.get(
            f"{self.nodes[node].address}/v1/devices", headers={"authorization": f"Bearer {token}"}
        )
        return {item["device"]: item["connected"] for item in answer.json()}

    async def shows(self, node: int, token: str, expected: Mapping[str, bool], patience_s: float = 5) -> None:
        """Sooner or later that is what the node tells."""
        seen = None
        try:
            async with asyncio.timeout(patience_s):
                while (seen := await self.connected(node, token)) != expected:
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"{seen} instead of {dict(expected)}") from None


@contextlib.asynccontextmanager
async def cluster(count: int, data: Path, store: str, bus: str, **settings: str) -> AsyncIterator[Cluster]:
    """So many nodes, ready; an agency `fns` that they know."""
    settings = {"drain_s": "1", "log_level": "info", "lease_s": "3", **settings}
    nodes = [Node(number, data, store, bus, **settings) for number in range(count)]
    async with contextlib.AsyncExitStack() as stack:
        for node in nodes:
            await stack.enter_async_context(node)
        await nodes[0].start()  # makes the key of the tokens
        secret, *_ = await asyncio.gather(
            command("agency", "add", "fns", environment=nodes[0].environment), *(node.start() for node in nodes[1:])
        )
        http = await stack.enter_async_context(httpx.AsyncClient(timeout=10, trust_env=False))
        made = Cluster(nodes, http, secret.strip())
        for node in nodes:
            await known(node, made)
        yield made
        await asyncio.gather(*(node.stop() for node in nodes))


async def known(node: Node, made: Cluster) -> None:
    """Contract: "a running gateway takes a new agency within 2 s"."""
    async with asyncio.timeout(5):
        while (await node.send(made.http, made.secret)).status_code == 401:
            await asyncio.sleep(0.1)


class Stopped:
    """SIGSTOP within the block."""

    def __init__(self, node: Node):
        self.node = node

    def __enter__(self) -> None:
        self.node.signal(signal.SIGSTOP)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.node.signal(signal.SIGCONT)
