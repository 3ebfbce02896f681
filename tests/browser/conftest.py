"""What runs for these tests: a gateway as a process of its own, a connection to it that can be cut, and Node with the
packages of `gateway/web/client/package-lock.json`, installed once into `.cache/web`."""

import asyncio
import itertools
import json
import random
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from client_sim.agencies import BY_CODE, Publisher, rfc3339
from client_sim.local import Gateway, secrets_of
from client_sim.networks import NETWORKS
from client_sim.proxy import Proxy
from gateway.tokens import LocalKey
from tests.browser.chromium import Chromium

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "gateway" / "web" / "client"
CACHE = ROOT / ".cache" / "web"
QUICK = {"backoff_s": "1", "drain_s": "1", "hellos": "1000", "saver_wait_s": "1", "ops_s": "1", "log_level": "warning"}

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def modules() -> Path:
    """Where `node_modules` are, installed from exactly this lock."""
    assert shutil.which("node"), "Node is needed: `make packages` installs it"
    lock, done = CLIENT / "package-lock.json", CACHE / "installed.json"
    if not done.exists() or done.read_bytes() != lock.read_bytes():
        CACHE.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(CLIENT / name, CACHE / name)
        subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=CACHE, check=True, timeout=120)
        shutil.copy(lock, done)
    return CACHE


class World:
    """A gateway, its agencies, and a way to it that can be cut (`proxy`)."""

    def __init__(self, gateway: Gateway, proxy: Proxy, http: httpx.AsyncClient):
        self.gateway, self.proxy, self.http = gateway, proxy, http
        self.direct, self.address = gateway.address, f"http://127.0.0.1:{proxy.port}"
        self.publishers: dict[str, Publisher] = {}
        self.key = LocalKey.open(gateway.data)

    def person(self) -> str:
        """An account that nobody used before."""
        return f"person-{next(_numbers)}"

    def token(self, account: str, **claims: Any) -> str:
        return self.key.issue(account, **claims)

    def event(self, kind: str, data: dict[str, Any], account: str | None, code: str = "fns", **more: Any) -> Any:
        made = {"specversion": "1.0", "id": f"e-{next(_numbers)}", "source": f"/agencies/{code}", "type": kind}
        personal = {"account": account} if account is not None else {}
        return made | {"time": rfc3339(time.time()), "data": data} | personal | more

    def status(self, account: str, word: str = "checking", application: str = "2026-000123", **more: Any) -> Any:
        data = {"application": application, "service": "Налоговый вычет", "status": word, **more}
        return self.event("gov.status.changed", data, account, subject=f"application/{application}")

    def notice(self, account: str, title: str = "Уведомление") -> Any:
        return self.event("gov.notice.sent", {"title": title, "text": "Платёж поступил"}, account)

    async def publish(self, *events: Any, code: str = "fns") -> list[int]:
        """The offsets."""
        return [result["offset"] for result in await self.publishers[code].send(events)]

    async def drop(self) -> None:
        """The network is gone."""
        self.proxy.down = True
        self.proxy.cut("reset")

    def back(self) -> None:
        self.proxy.down = False


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    data = tmp_path_factory.mktemp("gateway")
    gateway = Gateway(data)
    async with Proxy(gateway.host, gateway.port, NETWORKS["perfect"], random.Random(1)) as proxy:
        settings = QUICK | {"demo": "anna,boris", "origins": f"http://127.0.0.1:{proxy.port}"}
        gateway._settings.update({f"VESTNIK_{name.upper()}": value for name, value in settings.items()})
        async with gateway, httpx.AsyncClient(timeout=10, trust_env=False) as http:
            secrets = await secrets_of([BY_CODE["fns"], BY_CODE["mchs"]], data, gateway.environment)
            await gateway.start()
            made = World(gateway, proxy, http)
            for code, secret in secrets.items():
                made.publishers[code] = Publisher(gateway.address, code, secret, http)
            yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chromium(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Chromium]:
    async with Chromium(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="module")
async def browser(chromium: Chromium) -> AsyncIterator[Chromium]:
    """A profile that was never used; no page may have caused a fault in it."""
    await chromium.fresh()
    yield chromium
    assert chromium.faults == []


class Node:
    """A device on Node (`device.mjs`). What it says is read with `next`; all that was said is in `said`."""

    def __init__(self, modules: Path, **options: Any):
        self.arguments = (str(modules), str(CLIENT / "vestnik-client.js"), json.dumps(options))
        self.said: list[tuple[str, Any]] = []
        self._read: dict[str, int] = {}  # how far each kind was looked through

    async def __aenter__(self) -> "Node":
        self.process = await asyncio.create_subprocess_exec(
            "node",
            str(Path(__file__).with_name("device.mjs")),
            *self.arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=1 << 24,
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            async with asyncio.timeout(5):
                await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()

    async def tell(self, name: str, what: Any = None) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([name, what]).encode() + b"\n")
        await self.process.stdin.drain()

    async def until(self, kind: str, wanted: Any = lambda what: True, seconds: float = 10) -> Any:
        """The next of this kind that is wanted, after those of its kind that were waited for before."""
        assert self.process.stdout is not None
        try:
            async with asyncio.timeout(seconds):
                while True:
                    while (place := self._read.get(kind, 0)) < len(self.said):
                        said, what = self.said[place]
                        self._read[kind] = place + 1
                        if said == kind and wanted(what):
                            return what
                    text = await self.process.stdout.readline()
                    assert text, f"it ended: {self.said[-5:]}"
                    line = json.loads(text)
                    self.said.append((line["kind"], line["what"]))
        except TimeoutError:
            raise AssertionError(f"no such {kind} in {seconds} s; last: {self.said[-12:]}") from None

    async def live(self) -> None:
        await self.until("state", lambda state: state["name"] == "live")

    def kept(self) -> list[int]:
        """The offsets of all events of the account's feed that were kept, in order."""
        return [what["offset"] for kind, what in self.said if kind == "kept" and what["feed"].startswith("account:")]

    def sent(self, t: str) -> Iterator[Any]:
        return (what for kind, what in self.said if kind == ">" and what["t"] == t)

    def got(self, t: str) -> Iterator[Any]:
        return (what for kind, what in self.said if kind == "<" and what["t"] == t)
