"""Redis and PostgreSQL of our own for a trial: started on free ports, killed, frozen and brought back at will.

    async with Postgresql(directory / "postgresql") as store, Redis(directory / "redis") as bus:
        …  # store.url, bus.url

What is on PostgreSQL's disk survives its death; Redis keeps nothing, as the bus needs nothing kept.
"""

import asyncio
import contextlib
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from client_sim.local import Cannot, family, free_port

START_S: Final = 30.0
TOOL_S: Final = 60.0  # for a dump, or the way back
USER: Final = "vestnik"
REDIS, POSTGRESQL = 7, 15  # the oldest that will do


class Server:
    """A process and its children; gone at the end of the block, whatever was done to it."""

    name = ""

    def __init__(self, directory: Path):
        self.directory = directory.absolute()
        self.port = free_port()
        # Not asyncio's: uvloop starts nothing as another user.
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        raise NotImplementedError

    async def prepare(self) -> None:
        """What is done once, before the first start. Raises Cannot."""

    def command(self) -> Sequence[str]:
        raise NotImplementedError

    async def answers(self) -> bool:
        """Does it take connections?"""
        raise NotImplementedError

    def identity(self) -> dict[str, Any]:
        return {}

    async def start(self) -> None:
        """Returns when it answers. Raises Cannot."""
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: ASYNC220, S603 - a fork takes no time; our own command
                self.command(),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self.identity(),
            )
        ends = time.monotonic() + START_S
        while time.monotonic() < ends and self._process.poll() is None:
            if await self.answers():
                return
            await asyncio.sleep(0.05)
        await self.kill()
        raise Cannot(f"{self.name} did not start; its log is {self.directory / 'log'}.")

    async def kill(self) -> None:
        """SIGKILL to all of it, as when the power goes."""
        if self._process is None:
            return
        family = self._family()
        self._send(family, signal.SIGKILL)
        await asyncio.to_thread(self._process.wait)
        self._process = None
        ends = time.monotonic() + 10  # a child that still holds shared memory would stop the next start
        while any(map(_lives, family)) and time.monotonic() < ends:  # noqa: ASYNC110 - the kernel has no event for it
            await asyncio.sleep(0.02)

    async def restart(self) -> None:
        await self.kill()
        await self.start()

    def freeze(self, frozen: bool) -> None:
        """SIGSTOP, SIGCONT: the kernel takes connections, and nobody answers."""
        self._send(self._family(), signal.SIGSTOP if frozen else signal.SIGCONT)

    def _family(self) -> list[int]:
        return family(self._process.pid) if self._process is not None else []

    @staticmethod
    def _send(family: Sequence[int], number: signal.Signals) -> None:
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    async def __aenter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        try:
            await self.prepare()
            await self.start()
        except BaseException:
            await self.kill()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.kill()


class Redis(Server):
    name = "Redis"

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def prepare(self) -> None:
        self._program = shutil.which("redis-server") or ""
        if not self._program or await _version(self._program) < REDIS:
            raise Cannot(f"Redis {REDIS} or newer is needed: install it, like `apt-get install redis-server`.")

    def command(self) -> Sequence[str]:
        keep = ("--save", "", "--appendonly", "no", "--dir", str(self.directory))
        return (self._program, "--bind", "127.0.0.1", "--port", str(self.port), *keep)

    async def answers(self) -> bool:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(1):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                try:
                    writer.write(b"PING\r\n")
                    return (await reader.readline()).startswith(b"+PONG")
                finally:
                    writer.close()
        return False


class Postgresql(Server):
    """With `fsync` on and a password. For root its data lies in a temporary place that another user can get to."""

    name = "PostgreSQL"

    def __init__(self, directory: Path):
        super().__init__(Path(tempfile.mkdtemp(prefix="vestnik-sim-")) if os.getuid() == 0 else directory)
        self._temporary = os.getuid() == 0
        self._password = secrets.token_hex(16)
        self._programs = Path()

    @property
    def url(self) -> str:
        return f"postgresql://{USER}:{self._password}@127.0.0.1:{self.port}/postgres"

    async def prepare(self) -> None:
        for place in _places():
            if (place / "initdb").exists() and await _version(str(place / "postgres")) >= POSTGRESQL:
                self._programs = place
                break
        else:
            raise Cannot(f"PostgreSQL {POSTGRESQL} or newer is needed: install it, like `apt-get install postgresql`.")
        secret = self.directory / "password"
        secret.write_text(self._password, "ascii")
        if user := self.identity().get("user"):
            for path in (self.directory, secret):
                os.chown(path, user, -1)
        options = ("--auth-host=scram-sha-256", "--auth-local=reject", "--encoding=UTF8", "--locale=C", "--no-sync")
        command = [self._programs / "initdb", "--pgdata", self.directory / "data", "--username", USER]
        making = [*map(str, command), "--pwfile", str(secret), *options]
        where = {"cwd": self.directory, "stdin": subprocess.DEVNULL, **self.identity()}
        made = await asyncio.to_thread(lambda: subprocess.run(making, capture_output=True, check=False, **where))  # noqa: S603
        if made.returncode:
            said = made.stderr.decode(errors="replace").strip().splitlines()
            raise Cannot(f"PostgreSQL's initdb failed: {said[-1] if said else made.returncode}")

    def command(self) -> Sequence[str]:
        where = ("-c", f"unix_socket_directories={self.directory}", "-c", "listen_addresses=127.0.0.1")
        return (str(self._programs / "postgres"), "-D", str(self.directory / "data"), "-p", str(self.port), *where)

    async def back_up(self, file: Path) -> None:
        """A dump of what is committed now. Raises Cannot."""
        await self._tool("pg_dump", "--format=custom", "--schema=vestnik", f"--file={file}")

    async def bring_back(self, file: Path) -> None:
        """What was dumped, in place of what is there; nobody else uses it meanwhile. Raises Cannot."""
        await self._tool("psql", "--quiet", "--command=DROP SCHEMA vestnik CASCADE")
        await self._tool("pg_restore", "--exit-on-error", str(file))

    async def _tool(self, name: str, *words: str) -> None:
        where = f"--dbname=postgresql://{USER}@127.0.0.1:{self.port}/postgres"
        command = [str(self._programs / name), where, *words]
        secret = {**os.environ, "PGPASSWORD": self._password}
        done = await asyncio.to_thread(
            lambda: subprocess.run(command, env=secret, capture_output=True, check=False, timeout=TOOL_S)  # noqa: S603
        )
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise Cannot(f"PostgreSQL's {name} failed: {said[-1] if said else done.returncode}")

    async def answers(self) -> bool:
        # The status file says `ready` when connections are taken; a port alone may still answer "starting up".
        try:
            lines = (self.directory / "data" / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        assert self._process is not None
        return len(lines) > 7 and lines[0] == str(self._process.pid) and lines[7].strip() == "ready"

    def identity(self) -> dict[str, Any]:
        """PostgreSQL refuses to run as root."""
        if os.getuid() != 0:
            return {}
        for name in ("postgres", "nobody"):
            with contextlib.suppress(KeyError):
                user = pwd.getpwnam(name)
                return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        raise Cannot("PostgreSQL refuses to run as root, and there is no user `postgres` or `nobody` here.")

    async def __aexit__(self, *about: Any) -> None:
        await super().__aexit__(*about)
        if self._temporary:
            shutil.rmtree(self.directory, ignore_errors=True)


def _places() -> list[Path]:
    """Where PostgreSQL's programs may be, the newest first."""
    packaged = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name, reverse=True)
    on_path = shutil.which("postgres")
    return [*packaged, *([Path(on_path).resolve().parent] if on_path else [])]


def _lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def _version(program: str) -> int:
    process = await asyncio.create_subprocess_exec(program, "--version", stdout=asyncio.subprocess.PIPE)
    said, _ = await process.communicate()
    found = re.search(r"(?:v=|\s)(\d+)[.\s]", said.decode(errors="replace") + " ")
    return int(found[1]) if found else 0
