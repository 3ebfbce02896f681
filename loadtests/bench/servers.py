"""PostgreSQL and Redis of the benchmark's own, each on a free port with an empty directory."""

import asyncio
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import asyncpg

from loadtests.bench.processes import Failed, free_port, tree_s

START_S = 20.0


class _Engine:
    """A server process; `tree_s` is the CPU of all that it is made of."""

    def __init__(self, prefix: str):
        self.port = free_port()
        self.directory = Path(tempfile.mkdtemp(prefix=f"vestnik-bench-{prefix}-"))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def tree_s(self) -> float:
        return tree_s(self._process.pid) if self._process else 0.0

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _identity(self) -> dict[str, Any]:
        return {}

    async def start(self) -> None:
        """Returns when it accepts connections."""
        self._begin()
        end = time.monotonic() + START_S
        while not await self._answers():
            if self._process is None or self._process.poll() is not None or time.monotonic() > end:
                said = (self.directory / "log").read_text(errors="replace")[-1000:]
                raise Failed(f"{type(self).__name__} did not start: {said}")
            await asyncio.sleep(0.02)

    def _begin(self) -> None:
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own commands
                self._command(),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **self._identity(),
            )

    async def _answers(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        return True

    async def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            try:
                await asyncio.to_thread(process.wait, 10)
            except subprocess.TimeoutExpired:
                process.kill()
                await asyncio.to_thread(process.wait)

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


class Redis(_Engine):
    """Standalone, nothing on disk."""

    def __init__(self) -> None:
        super().__init__("redis")

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def _command(self) -> list[str]:
        binary = os.environ.get("VESTNIK_REDIS_SERVER") or shutil.which("redis-server")
        if binary is None:
            raise Failed("redis-server is not installed")
        return [binary, *("--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--appendonly", "no")]


class Postgresql(_Engine):
    """With its defaults (fsync on) but for the number of connections."""

    def __init__(self) -> None:
        super().__init__("postgresql")
        packaged = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
        found = shutil.which("postgres")
        given = os.environ.get("VESTNIK_POSTGRESQL_BIN") or (packaged[-1] if packaged else found and Path(found).parent)
        if not given:
            raise Failed("PostgreSQL is not installed")
        self._programs = Path(given)

    @property
    def url(self) -> str:
        return f"postgresql://vestnik@127.0.0.1:{self.port}/postgres"

    def _identity(self) -> dict[str, Any]:
        if os.getuid() != 0:
            return {}
        user = pwd.getpwnam("postgres")  # it refuses to run as root
        return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}

    def _command(self) -> list[str]:
        data = str(self.directory / "data")
        options = {"port": self.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": self.directory}
        flags = [f"--{name}={value}" for name, value in (options | {"max_connections": 100}).items()]
        return [str(self._programs / "postgres"), "-D", data, *flags]

    async def start(self) -> None:
        identity = self._identity()
        if identity:
            os.chown(self.directory, identity["user"], identity["group"])
        words = ["initdb", "-D", str(self.directory / "data"), "-U", "vestnik", "--no-sync"]
        words += ["--auth=trust", "--encoding=UTF8", "--locale=C"]
        words[0] = str(self._programs / "initdb")
        done = await asyncio.to_thread(
            lambda: subprocess.run(  # noqa: S603 - our own command; uvloop's own cannot change the user
                words, check=False, cwd=self.directory, capture_output=True, text=True, **identity
            )
        )
        if done.returncode:
            raise Failed(f"initdb ended with {done.returncode}: {done.stderr[-500:]}")
        await super().start()

    async def one(self, query: str) -> int:
        """The number that a query finds."""
        connection = await asyncpg.connect(self.url)
        try:
            return int(await connection.fetchval(query))
        finally:
            await connection.close()

    async def _answers(self) -> bool:
        """Its status file says so only when connections are taken; a port alone may still answer "starting up"."""
        try:
            lines = (self.directory / "data" / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) > 7 and lines[7].strip() == "ready"

    async def kill(self, number: signal.Signals = signal.SIGINT) -> None:
        await super().kill(number)
