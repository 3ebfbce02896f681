"""A gateway of our own on this machine: a process with its data directory, and the commands that go with it.

    async with Gateway(data) as gateway:
        await gateway.start()
        secrets = await gateway.secrets(AGENCIES)

What is done to it while it runs (kill, stop, a full disk) is in `faults`.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from client_sim.agencies import Agency

START_S = 30.0
STOP_S = 10.0


class Cannot(Exception):
    """It cannot start or go on. One sentence for a person."""


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


async def command(*arguments: str, environment: Mapping[str, str]) -> str:
    """What a `vestnik` command prints in just this environment. Raises Cannot with what it says when it fails."""
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("vestnik"),
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    try:
        out, errors = await process.communicate()
    finally:
        await end(process)
    if process.returncode != 0:
        said = errors.decode("utf-8", "replace").strip().splitlines()
        raise Cannot(said[-1] if said else f"`vestnik {arguments[0]}` ended with exit code {process.returncode}.")
    return out.decode()


def family(pid: int) -> list[int]:
    """A process and its children."""
    with contextlib.suppress(OSError):
        return [pid, *(int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    return [pid]


async def end(process: asyncio.subprocess.Process) -> None:
    """SIGTERM, and SIGKILL to what is still there after a few seconds."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGCONT)
        process.terminate()
    try:
        async with asyncio.timeout(STOP_S):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def secrets_of(agencies: Sequence[Agency], data: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """The secrets of sample agencies on this data directory, by code; one that the store does not know is added.

    They are kept beside the data, in `secrets/`, readable for their owner only. Raises Cannot.
    """
    directory = data / "secrets"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    async def add(agency: Agency, file: Path) -> None:
        flags = ["--ed25519"] if agency.ed25519 else []
        secret = await command("agency", "add", agency.code, *flags, environment=environment)
        _write(file, secret)

    files = {agency.code: directory / agency.code for agency in agencies}
    kept = [agency for agency in agencies if files[agency.code].exists()]
    listed = await command("agency", "list", "--json", environment=environment) if kept else ""
    known = {json.loads(line)["code"] for line in listed.splitlines()}
    new = [agency for agency in agencies if agency not in kept or agency.code not in known]
    await asyncio.gather(*(add(agency, files[agency.code]) for agency in new))
    return {agency.code: (directory / agency.code).read_text("ascii").strip() for agency in agencies}


def _write(file: Path, secret: str) -> None:
    file.touch(mode=0o600)
    file.write_text(secret, "ascii")


class Gateway:
    """`vestnik serve` on SQLite in `data`, on one port over all its lives. Gone at the end of the block, whatever
    happened to it; its log is `gateway.log` there. `settings` are `VESTNIK_*` without the prefix, in any case; `disk`
    is a directory for the store alone."""

    def __init__(self, data: Path, settings: Mapping[str, str] | None = None, disk: Path | None = None):
        self.data, self.host, self.port = data.absolute(), "127.0.0.1", free_port()
        self.store = (disk or self.data) / "vestnik.db"
        self.log = self.data / "gateway.log"
        self.process: asyncio.subprocess.Process | None = None
        self.starts = 0
        self.extra: dict[str, str] = {}  # environment of the next start, such as a library to preload
        self.under: list[str] = []  # the command that the next start runs under, such as strace
        self._settings = {f"VESTNIK_{name.upper()}": value for name, value in (settings or {}).items()}

    @property
    def address(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """For every command about this gateway: our own settings and none of the caller's."""
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("VESTNIK_")},
            "VESTNIK_STORE": f"sqlite:///{self.store}",
            "VESTNIK_BUS": "memory://",
            "VESTNIK_PROCESSES": "1",
            **self._settings,
            "VESTNIK_DATA": str(self.data),
            "VESTNIK_HOST": self.host,
            "VESTNIK_PORT": str(self.port),
        }

    @property
    def pid(self) -> int | None:
        """Of the process that runs now."""
        return self.process.pid if self.process is not None and self.process.returncode is None else None

    async def start(self) -> None:
        """Returns when it is ready. Raises Cannot."""
        self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self.under,
                Path(sys.executable).with_name("vestnik"),
                "serve",
                cwd=self.data,  # no `.env` of the caller's
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**self.environment, **self.extra},
                start_new_session=True,  # Ctrl-C is for us: the gateway goes last
            )
        self.starts += 1
        await self._ready()

    async def _ready(self) -> None:
        ends = time.monotonic() + START_S
        async with httpx.AsyncClient(timeout=5, trust_env=False) as http:
            while time.monotonic() < ends:
                if self.pid is None:
                    raise Cannot(self._last_words())
                with contextlib.suppress(httpx.HTTPError):
                    if (await http.get(f"{self.address}/health/ready")).status_code == 200:
                        return
                await asyncio.sleep(0.05)
        raise Cannot(f"The gateway was not ready after {START_S:.0f} s; its log is {self.log}.")

    async def stop(self) -> None:
        """As an operator stops it: SIGTERM, and time to drain."""
        if self.process is not None:
            await end(self.process)

    async def kill(self) -> None:
        self.signal(signal.SIGKILL)
        if self.process is not None:
            await self.process.wait()

    def signal(self, number: signal.Signals) -> None:
        """To all its processes at once, as when the power goes."""
        if self.pid is not None:
            for pid in family(self.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    def _last_words(self) -> str:
        said = self.log.read_text("utf-8", "replace").strip().splitlines()
        return said[-1] if said else "The gateway ended at once and said nothing."

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
