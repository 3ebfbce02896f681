"""The same generator against any server: what a driver must know of one. Ours, and four that others use.

    python -m loadtests.bench.others                                       those that can be started here
    python -m loadtests.bench.others ours centrifugo=ws://127.0.0.1:8000   the second runs already

A driver says how to open a socket, what a device says first, what its frames mean, and how to make the server send. The
devices are those of `phones`: one lean protocol object each. Only ours verifies tokens and signatures, keeps every
event on disk and takes acknowledgements; the others send from memory, and that is what they are measured at.
"""

import asyncio
import itertools
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from secrets import token_hex
from typing import Any, Final
from urllib.parse import quote, urlsplit

import orjson

from client_sim.identity import LocalKey
from loadtests.bench.agency import Agency, Connections
from loadtests.bench.phones import PING, Phone, Swarm, masked
from loadtests.bench.processes import Failed, Gateway, Server, reference
from loadtests.machine import commit

TEXT_OR_BINARY: Final = (0x81, 0x82)
NODE: Final = Path(".cache") / "ws"  # where the `ws` package is installed for the benchmark
SIZE: Final = 283  # bytes of a notice; ours of that text has about as many


class Driver(ABC):
    """One server under measurement, `server` when it was started here. A URL is `ws://host[:port][/path]`."""

    name: str
    path = "/"
    subprotocol: str | None = None

    def __init__(self, url: str | None = None, data: Path = Path("data")):
        self.url, self.data = url, data
        self.server: Server | None = None
        self.version = ""  # what is measured, known once devices are connected
        parts = urlsplit(url or "ws://127.0.0.1:0")
        if parts.scheme != "ws" or not parts.hostname:
            raise Failed(f"{url} is no URL of a server: ws://host:port")
        self.host, self.port = parts.hostname, 80 if parts.port is None else parts.port
        if parts.path not in ("", "/"):
            self.path = parts.path + (f"?{parts.query}" if parts.query else "")

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

    def keeps(self) -> bool:
        """Do events come after the reconnect that were missed while away? Known once devices are connected."""
        return False

    async def again(self, devices: Sequence[Phone]) -> None:  # noqa: B027 - most need nothing
        """Get them ready to connect once more."""

    async def _run(self, server: Server) -> None:
        self.server = server
        await server.__aenter__()
        self.host, self.port = "127.0.0.1", server.port


class Ours(Driver):
    """Vestnik: tokens, signatures, SQLite with fsync, acks."""

    name, path, subprotocol = "ours", "/v1/socket", "vestnik.v1.json"

    async def stop(self) -> None:
        self._agency.close()
        await super().stop()

    def keeps(self) -> bool:
        return True

    async def start(self) -> None:
        self.version = commit() if self.url is None else ""
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
        self._agency = Agency(self.port, code, secret, host=self.host)
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
    """A device of a server without positions: what comes is counted."""

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
    """A server that sends on `GET /blast?size=` and `GET /to?size=&ids=`: our own small programs around a library. What
    is missed while away is gone."""

    kind = ""
    packages: Sequence[str] = ()
    phone: type[Phone] = Plain

    async def start(self) -> None:
        if self.url is None:
            await self._run(reference(self.kind))
            self.version = ", ".join(f"{name} {version(name)}" for name in self.packages)
        self._http = Connections(self.port, self.host)

    async def stop(self) -> None:
        self._http.close()
        await super().stop()

    async def devices(self, swarm: Swarm, count: int) -> list[Phone]:
        return [self.phone(swarm, f"a{number:05d}", "") for number in range(count)]

    async def to_all(self) -> None:
        await self._http.request("GET", f"/blast?size={SIZE}")

    async def to_each(self, devices: Sequence[Phone]) -> None:
        await self._http.request("GET", f"/to?size={SIZE}&ids={quote(','.join(one.account for one in devices))}")


class StarletteLoop(Remote):
    """Starlette on uvicorn as installed: `for ws: await ws.send_bytes()`."""

    name = kind = "stock"
    packages = ("uvicorn", "starlette", "uvloop", "httptools", "websockets")


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
    packages = ("python-socketio", "python-engineio", "uvicorn")
    path = "/socket.io/?EIO=4&transport=websocket"
    phone = SocketIoPhone


class NodeWs(Remote):
    """The `ws` package on Node: `for client of clients: client.send()`."""

    name = kind = "ws"

    async def start(self) -> None:
        if self.url is None:
            program = Path(__file__).with_name("ws_server.js")
            installed = NODE / "node_modules" / "ws" / "package.json"
            if not installed.exists():
                NODE.mkdir(parents=True, exist_ok=True)
                _said("npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(NODE), "ws@8")
            node = _said("node", "--version")
            modules = {"NODE_PATH": str(installed.parents[1].absolute())}
            await self._run(Server("ws", ["node", str(program), "{port}"], more=modules))
            self.version = f"ws {orjson.loads(installed.read_bytes())['version']}, Node {node.removeprefix('v')}"
        self._http = Connections(self.port, self.host)


def _said(*command: str) -> str:
    """What a command printed. Raises Failed."""
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)  # noqa: S603
    except (OSError, subprocess.SubprocessError) as error:
        raise Failed(f"`{' '.join(command[:2])}` failed: {error}") from None
    return done.stdout.strip()


class CentrifugoPhone(Listener):
    """Centrifugo's bidirectional JSON protocol: commands with ids, lines of a frame, `{}` for ping and pong.

    `feeds` are the offsets of its channels. Where the server keeps history it is asked for what was missed, and offsets
    must rise by one; elsewhere they stay 0.
    """

    __slots__ = ("_driver", "_epochs")

    def __init__(self, driver: "Centrifugo", swarm: Swarm, account: str):
        super().__init__(swarm, account, "")
        self.feeds = {"bench": 0, f"bench:{account}": 0}
        self._driver = driver
        self._epochs: dict[str, str] = {}

    def opened(self) -> None:
        self.write(masked(b'{"id":1,"connect":{}}'))

    def heard(self, payload: bytes) -> None:
        for line in payload.split(b"\n"):
            if line == b"{}":
                self.write(masked(b"{}"))
            elif line:
                self._message(orjson.loads(line), len(line))

    def _message(self, message: dict[str, Any], size: int) -> None:
        if "push" in message:
            if "pub" in message["push"]:
                self.swarm.size = size
                self._came(message["push"]["channel"], [message["push"]["pub"]])
            elif "disconnect" in message["push"] or "unsubscribe" in message["push"]:
                self.swarm.fail(f"centrifugo said {message['push']}")
        elif "error" in message:
            self.swarm.fail(f"centrifugo answered {message['error']}")
        elif "connect" in message:
            self._driver.version = f"Centrifugo {message['connect'].get('version', '')}".strip()
            self._subscribe()
        elif "subscribe" in message:
            self._subscribed(list(self.feeds)[message["id"] - 2], message["subscribe"])

    def _subscribe(self) -> None:
        commands = []
        for number, (channel, offset) in enumerate(self.feeds.items(), 2):
            wanted: dict[str, Any] = {"channel": channel}
            if channel in self._epochs:
                wanted |= {"recover": True, "epoch": self._epochs[channel], "offset": offset}
            commands.append(orjson.dumps({"id": number, "subscribe": wanted}))
        self._live = 0
        self.write(masked(b"\n".join(commands)))

    def _subscribed(self, channel: str, result: dict[str, Any]) -> None:
        known = channel in self._epochs
        if known and not result.get("recovered"):
            self.swarm.fail(f"centrifugo could not recover {channel}")
        if result.get("recoverable"):
            self._driver.recovers = True
            self._epochs[channel] = result["epoch"]
            if known:
                self._came(channel, result.get("publications", ()))
            else:
                self.feeds[channel] = result.get("offset", 0)
        self._live += 1
        if self._live == len(self.feeds):
            self.swarm.ready += 1

    def _came(self, channel: str, publications: Sequence[dict[str, Any]]) -> None:
        for one in publications:
            last, offset = self.feeds[channel], one.get("offset", 0)
            if channel in self._epochs and offset != last + 1:
                self.swarm.fail(f"a hole: {offset} after {last}")
            self.feeds[channel] = offset
            self.swarm.count += 1


class Centrifugo(Driver):
    """A Centrifugo 5 or 6 that runs somewhere, by its URL.

    Clients must be allowed to connect without a token and to subscribe to `bench` and `bench:…`
    (`client.allow_anonymous_connect_without_token`; `allow_subscribe_for_client` and `allow_subscribe_for_anonymous` of
    `channel.without_namespace` and of a namespace `bench`); `key` is its `http_api.key`. With `history_size`,
    `history_ttl` and `force_recovery` on both, what was missed while away is asked for and counted.
    """

    name, path = "centrifugo", "/connection/websocket"

    def __init__(self, url: str | None = None, data: Path = Path("data"), key: str = ""):
        if url is None:
            raise Failed("centrifugo is not started here: give centrifugo=ws://… and --key of one that runs")
        super().__init__(url, data)
        self.recovers = False
        self._headers = {"Content-Type": "application/json", "X-API-Key": key}
        self._numbers = itertools.count(1)

    async def start(self) -> None:
        self._http = Connections(self.port, self.host)

    async def stop(self) -> None:
        self._http.close()

    def keeps(self) -> bool:
        return self.recovers

    async def devices(self, swarm: Swarm, count: int) -> list[Phone]:
        run = token_hex(3)  # channels that have no history yet
        return [CentrifugoPhone(self, swarm, f"a{run}-{number:05d}") for number in range(count)]

    async def to_all(self) -> None:
        await self._call("publish", {"channel": "bench", "data": self._data()})

    async def to_each(self, devices: Sequence[Phone]) -> None:
        channels = [f"bench:{one.account}" for one in devices]
        await self._call("broadcast", {"channels": channels, "data": self._data()})

    def _data(self) -> dict[str, str]:
        return {"id": str(next(self._numbers)), "text": "x" * (SIZE - 80)}

    async def _call(self, method: str, body: dict[str, Any]) -> None:
        answer = orjson.loads(await self._http.request("POST", f"/api/{method}", self._headers, orjson.dumps(body)))
        results = answer.get("result", {}).get("responses", [answer])
        wrong = next((one["error"] for one in results if "error" in one), None)
        if wrong:
            raise Failed(f"centrifugo answered {method} with {wrong}")


DRIVERS: Final[dict[str, type[Driver]]] = {
    "ours": Ours,
    "stock": StarletteLoop,
    "socketio": SocketIo,
    "ws": NodeWs,
    "centrifugo": Centrifugo,
}
