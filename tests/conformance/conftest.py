"""Gateways under test, started through their commands as processes of their own, and the people around them."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from .agent import Agency, Answer, call, get
from .device import JSON, Device
from .identity import Identity

VESTNIK = Path(sys.executable).parent / "vestnik"
ORIGIN = "https://lk.example.ru"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    assert isinstance(port, int)
    return port


Done = subprocess.CompletedProcess[bytes]


class Gateway:
    """One `vestnik serve` on a free port with its own data. Settings are given by their names without `VESTNIK_`."""

    def __init__(self, home: Path, identity: Identity | None = None, **settings: Any):
        home.mkdir(parents=True, exist_ok=True)
        self.home, self.identity, self.port = home, identity, free_port()
        self.log_path = home / "gateway.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.agencies: dict[str, Agency] = {}
        values: dict[str, Any] = {
            "data": home / "data", "host": "127.0.0.1", "port": self.port, "log_format": "json", "control_s": 0.5,
            **settings,
        }  # fmt: skip
        if identity is not None:
            values["jwks"] = identity.jwks(home / "jwks.json")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("VESTNIK_")}
        self.environment = inherited | {f"VESTNIK_{name.upper()}": str(value) for name, value in values.items()}

    # Commands

    def command(
        self, *arguments: str, stdin: bytes = b"", expect: int | None = 0, timeout: float = 30, **environment: str
    ) -> Done:
        """Run `vestnik …` on this gateway's settings. `expect` is the exit code, None takes any."""
        done = subprocess.run(
            [str(VESTNIK), *arguments], input=stdin, capture_output=True, timeout=timeout, check=False, cwd=self.home,
            env=self.environment | environment,
        )  # fmt: skip
        said = (arguments, done.returncode, done.stdout, done.stderr.decode())
        assert expect is None or done.returncode == expect, said
        return done

    def add_agency(self, code: str, *kinds: str) -> Agency:
        """`vestnik agency add`, once for each kind of key (`hmac`, `ed25519`)."""
        secrets = []
        for kind in kinds or ("hmac",):
            flags = ["--ed25519"] if kind == "ed25519" else []
            secrets.append(self.command("agency", "add", code, *flags).stdout.decode().strip())
        self.agencies[code] = Agency(self.port, code, *secrets)
        return self.agencies[code]

    def add_agencies(self, codes: dict[str, tuple[str, ...]]) -> None:
        """The first makes the store; then two at a time."""
        first, *others = codes.items()
        self.add_agency(first[0], *first[1])
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda item: self.add_agency(item[0], *item[1]), others))

    # The process

    def start(self, *flags: str) -> "Gateway":
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [str(VESTNIK), "serve", *flags], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.home,
                env=self.environment,
            )  # fmt: skip
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"serve ended with {self.process.returncode}\n{self.log(60)}"
            try:
                if get(self.port, "/health/ready").status == 200:
                    return self
            except OSError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"not ready within 20 s\n{self.log(60)}")

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, timeout: float = 15) -> int:
        assert self.process is not None
        return self.process.wait(timeout)

    def stop(self, timeout: float = 15) -> int:
        """SIGTERM, and SIGKILL when that does not end it."""
        if self.process is None:
            return 0
        if self.alive:
            self.signal(signal.SIGTERM)
        try:
            return self.wait(timeout)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        if self.alive:
            self.signal(signal.SIGKILL)
        return self.wait()

    def log(self, lines: int = 40) -> str:
        try:
            return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return "(no log)"

    # People

    def token(self, account: str, **options: Any) -> str:
        assert self.identity is not None
        return self.identity.token(account, **options)

    def device(self, account: str, *, device: str | None = None, protocol: str | None = JSON, **claims: Any) -> Device:
        return Device(self.port, account, self.token(account, **claims), device=device, protocol=protocol)

    def get(self, path: str, account: str | None = None, **headers: str) -> Answer:
        return get(self.port, path, None if account is None else self.token(account), **headers)

    def call(self, method: str, path: str, account: str | None = None, **headers: str) -> Answer:
        return call(self.port, method, path, None if account is None else self.token(account), **headers)

    def offsets(self, account: str) -> list[int]:
        """What is stored in the account's feed, by the history."""
        answer = self.get(f"/v1/feeds/account:{account}/events?after=0&limit=500", account)
        assert answer.status == 200, (answer.status, answer.body)
        return [at for at, _ in answer.json["events"]]


@pytest.fixture(scope="session")
def identity() -> Identity:
    return Identity()


@pytest.fixture(scope="session")
def make_gateway(tmp_path_factory: pytest.TempPathFactory, identity: Identity) -> Iterator[Callable[..., Gateway]]:
    """Makes gateways that are stopped at the end, whatever happens; `identity=None` for the local key."""
    made: list[Gateway] = []

    def make(**settings: Any) -> Gateway:
        given = settings.pop("identity", identity)
        gateway = Gateway(tmp_path_factory.mktemp("gateway"), given, **settings)
        made.append(gateway)
        return gateway

    yield make
    for gateway in made:
        if gateway.alive:
            gateway.kill()


@pytest.fixture(scope="session")
def gateway(make_gateway: Callable[..., Gateway]) -> Iterator[Gateway]:
    """The one that most tests share, with the defaults of the contract. Accounts are their own for each test."""
    gateway = make_gateway(origins=ORIGIN, drain_s=0)
    gateway.add_agencies(
        {"tax": ("hmac",), "court": ("ed25519",), "vehicle": ("hmac", "hmac", "ed25519"), "city": ("hmac",)}
    )
    gateway.start()
    yield gateway
    finish(gateway)


@pytest.fixture(scope="session")
def quick(make_gateway: Callable[..., Gateway]) -> Iterator[Gateway]:
    """One with short deadlines, for what the contract does after 5 to 60 seconds."""
    gateway = make_gateway(
        beat_s=1, saver_beat_s=1.5, saver_wait_s=1.2, hello_deadline_s=1, head_deadline_s=1, write_deadline_s=1.5,
        close_deadline_s=1, sweep_s=1, max_sessions=12, agency_rate=0.01, agency_burst=1000, drain_s=0, ops_s=1,
    )  # fmt: skip
    gateway.add_agencies({"tax": ("hmac",), "city": ("hmac",)})
    gateway.start()
    yield gateway
    finish(gateway)


def finish(gateway: Gateway) -> None:
    """It lived through everything, ends well, and nothing that it met was unforeseen."""
    assert gateway.alive, f"the gateway died\n{gateway.log(60)}"
    gateway.stop()
    assert "Traceback (most recent call last)" not in gateway.log(10**6), "an unforeseen exception is in the log"


@pytest.fixture(autouse=True)
def _lives(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    for name in ("gateway", "quick"):
        if name in request.fixturenames:
            gateway = request.getfixturevalue(name)
            assert gateway.alive, f"the gateway died in this test\n{gateway.log(60)}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Show the end of the gateway's log with a failed test."""
    report = yield
    if report.failed:
        for name, value in getattr(item, "funcargs", {}).items():
            if isinstance(value, Gateway):
                report.sections.append((f"log of {name}", value.log(25)))
    return report


@pytest.fixture
def account() -> str:
    """An account that no other test knows."""
    return f"acc-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def tax(gateway: Gateway) -> Agency:
    """HMAC, one key."""
    return gateway.agencies["tax"]


@pytest.fixture
def city(gateway: Gateway) -> Agency:
    """HMAC; publishes to everybody."""
    return gateway.agencies["city"]


async def together(*parts: Awaitable[Any]) -> None:
    """Wait for several slow things at once; every failure is told."""
    results = await asyncio.gather(*parts, return_exceptions=True)
    failures = [result for result in results if isinstance(result, BaseException)]
    if failures:
        raise BaseExceptionGroup(f"{len(failures)} of {len(results)} failed", failures)
