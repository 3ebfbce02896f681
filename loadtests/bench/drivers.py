"""The same generator against any server: what a driver must know of one. Ours, and four that others use.

    python -m loadtests.bench.others                                        those that can be started here
    python -m loadtests.bench.others --url ws://127.0.0.1:8000 centrifugo   a server that runs already

A driver says how to open a socket, what a device says first, what its frames mean, and how to make the server send. The
devices are those of `phones`: one lean protocol object each. Only ours verifies tokens and signatures, keeps every
event on disk and takes acknowledgements; the others send from memory and forget, and that is what they are measured at.
"""

import asyncio
import itertools
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from secrets import token_hex
from typing import Any, Final
from urllib.parse import quote, urlsplit

import orjson

from client_sim.identity import LocalKey
from loadtests.bench.agency import Agency, Http
from loadtests.bench.phones import PING, Phone, Swarm, masked
from loadtests.bench.processes import Failed, Gateway, Server, reference

TEXT_OR_BINARY: Final = (0x81, 0x82)
NODE: Final = Path(".cache") / "ws"  # where the `ws` package is installed for the benchmark
SIZE: Final = 283  # bytes of a notice; ours of that text has about as many


class Driver(ABC):
    """One server under measurement. `server` is ours to measure when it was started here, else None."""

    name: str
    path = "/"
    subprotocol: str | None = None
    durable = False  # events missed while away come after the reconnect

    def __init__(self, url: str | None = None, data: Path = Path("data")):
        self.url, self.data = url, data
        self.server: Server | None = None
        parts = urlsplit(url or "ws://127.0.0.1:0")
        self.host, self.port = parts.hostname or "127.0.0.1", parts.port or 80
        if url and parts.path not in ("", "/"):
            self.path = parts.path

    def swarm(self) -> Swarm:
        return Swarm(self.name, self.port, self.path, self.subprotocol, self.host)

    async def start(self) -> None:  # noqa: B027 - one that runs already needs nothing
        """Start the server here, unless a URL was given."""

    async def stop(self) -> None:
        if self.server is not None:
            await self.server.__aexit__(None, None, None)

    @abstractmethod
    async def devices(self, swarm: Swarm, count: int) -> list[Phone]:
        """That many devices of as many people. Not connected."""

    @abstractmethod
    async def to_all(self) -> None:
        """One event to everybody; returns when the server took it."""

    @abstractmethod
    async def to_each(self, devices: Sequence[Phone]) -> None:
        """One event to each of these, up to 100; returns when the server took them."""

    async def again(self, devices: Sequence[Phone]) -> None:  # noqa: B027 - most need nothing
        """Get them ready to connect once more."""

    async def _run(self, server: Server) -> None:
        self.server = server
        await server.__aenter__()
        self.host, self.port = "127.0.0.1", server.port


class Ours(Driver):
    """Vestnik: tokens, signatures, SQLite with fsync, acks."""

    name, path, subprotocol, durable = "ours", "/v1/socket", "vestnik.v1.json", True

    async def start(self) -> None:
        if self.url is None:
            gateway = Gateway()
            await self._run(gateway)
            code, secret = "bench", await gateway.agency("bench")
            self._tokens = gateway.tokens
        else:
            key = LocalKey(self.data / "token-key.pem", ttl_s=86_400)

            async def tokens(accounts: Sequence[str]) -> list[str]:
                return [key.token(account) for account in accounts]

            self._tokens = tokens
            secrets = {path.name: path.read_text("ascii").strip() for path in (self.data / "secrets").glob("*")}
            code, secret = next((one for one in sorted(secrets.items()) if one[1].startswith("whsec_")), ("", ""))
            if not code:
                raise Failed(f"there is no agency's whsec_ secret in {self.data / 'secrets'}")
        self._agency = Agency(self.port, code, secret)
        for _ in range(50):  # "a running gateway takes a new agency within 2 s"
            try:
                await self._agency.receipts(["none"])
                break
            except Failed:
                await asyncio.sleep(0.1)

    async def devices(self, swarm: Swarm, count: int) -> list[Phone]:
        swarm.acking = True
        run = token_hex(3)  # accounts that a gateway which runs already does not know
        accounts = [f"b{run}-{number:05d}" for number in range(count)]
        tokens = await self._tokens(accounts)
        return [
            Phone(swarm, name, token, [f"agency:{self._agency.code}"])
            for name, token in zip(accounts, tokens, strict=True)
        ]

    async def to_all(self) -> None:
        await self._agency.post([self._agency.public("Объявление")])

    async def to_each(self, devices: Sequence[Phone]) -> None:
        await self._agency.post([self._agency.personal(one.account) for one in devices])

    async def again(self, devices: Sequence[Phone]) -> None:
        tokens = await self._tokens([one.account for one in devices])
        for one, token in zip(devices, tokens, strict=True):
            one.again(token)


class Listener(Phone):
    """A device of a server without positions: what comes is counted, what is missed is gone."""

    __slots__ = ()

    def frame(self, first: int, payload: bytes) -> None:
        if first in TEXT_OR_BINARY:
            self.heard(payload)
        elif first == PING:
            self.write(masked(payload, 0x8A))
        else:
            self.swarm.fail("closed")

    def heard(self, payload: bytes) -> None:
        self.swarm.count += 1
        self.swarm.size = len(payload)


class Plain(Listener):
    """Says who it is in its first message, and is there."""

    __slots__ = ()

    def opened(self) -> None:
        self.write(masked(self.account.encode()))
        self.swarm.ready += 1


class Remote(Driver):
    """A server that sends on `GET /blast?size=` and `GET /to?size=&ids=`: our own small programs around a library."""

    kind = ""
    phone: type[Phone] = Plain

    async def start(self) -> None:
        if self.url is None:
            await self._run(reference(self.kind))

    async def devices(self, swarm: Swarm, count: int) -> list[Phone]:
        return [self.phone(swarm, f"a{number:05d}", "") for number in range(count)]

    async def to_all(self) -> None:
        async with Http(self.port, self.host) as http:
            await http.request("GET", f"/blast?size={SIZE}")

    async def to_each(self, devices: Sequence[Phone]) -> None:
        async with Http(self.port, self.host) as http:
            await http.request("GET", f"/to?size={SIZE}&ids={quote(','.join(one.account for one in devices))}")


class StarletteLoop(Remote):
    """Starlette on uvicorn as installed: `for ws: await ws.send_bytes()`."""

    name = kind = "stock"


class SocketIoPhone(Listener):
    """Engine.IO 4 over WebSocket: `0` open, `2` ping, `40` connect, `42` event."""

    __slots__ = ()

    def opened(self) -> None:
        pass

    def heard(self, payload: bytes) -> None:
        if payload.startswith(b"42"):
            self.swarm.count += 1
            self.swarm.size = len(payload)
        elif payload == b"2":
            self.write(masked(b"3"))
        elif payload.startswith(b"0{"):
            self.write(masked(b"40"))
        elif payload.startswith(b"40"):
            self.write(masked(b"42" + orjson.dumps(["join", self.account])))
            self.swarm.ready += 1


class SocketIo(Remote):
    """python-socketio on uvicorn: `emit` to all, and to the room of one person."""

    name = kind = "socketio"
    path = "/socket.io/?EIO=4&transport=websocket"
    phone = SocketIoPhone


class NodeWs(Remote):
    """The `ws` package on Node: `for client of clients: client.send()`."""

    name = kind = "ws"

    async def start(self) -> None:
        if self.url is not None:
            return
        program = Path(__file__).with_name("ws_server.js")
        if not (NODE / "node_modules" / "ws").exists():
            NODE.mkdir(parents=True, exist_ok=True)
            command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(NODE), "ws"]
            try:
                subprocess.run(command, check=True, capture_output=True, timeout=120)  # noqa: S603, ASYNC221
            except (OSError, subprocess.SubprocessError) as error:
                raise Failed(f"the ws package could not be installed with npm: {error}") from None
        modules = {"NODE_PATH": str((NODE / "node_modules").absolute())}
        await self._run(Server("ws", ["node", str(program), "{port}"], more=modules))


class CentrifugoPhone(Listener):
    """Centrifugo's bidirectional JSON protocol: commands with ids, lines of a frame, `{}` for ping and pong."""

    __slots__ = ()

    def opened(self) -> None:
        connect: dict[str, Any] = {"token": self._token} if self._token else {}
        self.write(masked(orjson.dumps({"id": 1, "connect": connect})))

    def heard(self, payload: bytes) -> None:
        for line in payload.split(b"\n"):
            if line == b"{}":
                self.write(masked(b"{}"))
            elif line.startswith(b'{"push"'):
                if b'"pub"' in line:
                    self.swarm.count += 1
                    self.swarm.size = len(line)
            elif line:
                self._reply(orjson.loads(line))

    def _reply(self, reply: dict[str, Any]) -> None:
        if "error" in reply:
            self.swarm.fail(f"centrifugo answered {reply['error']}")
        elif reply.get("id") == 1:
            channels = ("bench", f"bench:{self.account}")
            commands = [{"id": number, "subscribe": {"channel": channel}} for number, channel in enumerate(channels, 2)]
            self.write(masked(b"\n".join(orjson.dumps(command) for command in commands)))
        elif reply.get("id") == 3:
            self.swarm.ready += 1


class Centrifugo(Driver):
    """A Centrifugo 5 or 6 that runs somewhere, by its URL.

    Clients must be allowed to connect without a token and to subscribe to `bench` and `bench:…`
    (`client.allow_anonymous_connect_without_token`, `allow_subscribe_for_client` and `…_anonymous` in the namespaces);
    `key` is its HTTP API key.
    """

    name, path = "centrifugo", "/connection/websocket"

    def __init__(self, url: str | None = None, data: Path = Path("data"), key: str = ""):
        if url is None:
            raise Failed("centrifugo is not started here: give --url and --key of one that runs")
        super().__init__(url, data)
        self._key, self._numbers = key, itertools.count(1)

    async def devices(self, swarm: Swarm, count: int) -> list[Phone]:
        return [CentrifugoPhone(swarm, f"a{number:05d}", "") for number in range(count)]

    async def to_all(self) -> None:
        await self._call("publish", {"channel": "bench", "data": self._data()})

    async def to_each(self, devices: Sequence[Phone]) -> None:
        channels = [f"bench:{one.account}" for one in devices]
        await self._call("broadcast", {"channels": channels, "data": self._data()})

    def _data(self) -> dict[str, str]:
        return {"id": str(next(self._numbers)), "text": "x" * (SIZE - 60)}

    async def _call(self, method: str, body: dict[str, Any]) -> None:
        headers = {"Content-Type": "application/json", "X-API-Key": self._key}
        async with Http(self.port, self.host) as http:
            await http.request("POST", f"/api/{method}", headers, orjson.dumps(body))


DRIVERS: Final[dict[str, type[Driver]]] = {
    "ours": Ours,
    "stock": StarletteLoop,
    "socketio": SocketIo,
    "ws": NodeWs,
    "centrifugo": Centrifugo,
}
