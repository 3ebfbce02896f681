"""Servers as processes, and what the kernel says about them."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

LISTEN = "0A"  # in /proc/net/tcp
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
BIN = Path(sys.executable).parent


class Failed(Exception):
    """A process did not do what the benchmark needs."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far, all its threads, user and system."""
    return time.clock_gettime(~pid << 3 | 2)  # the process's own clock, in ns: clock_getcpuclockid(3)


def rss_bytes(pid: int) -> int:
    """Resident memory of a process."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise Failed("/proc/<pid>/smaps_rollup has no Rss")


def _environ() -> dict[str, str]:
    """Ours without settings: what is measured are the defaults."""
    return {name: value for name, value in os.environ.items() if not name.startswith("VESTNIK_")}


def machine_s() -> tuple[float, float]:
    """CPU seconds of the whole machine so far: used, and in all."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) * TICK_S, sum(ticks) * TICK_S


def family_s() -> float:
    """CPU seconds of this process and of its children so far, those that ended included."""
    return tree_s(os.getpid())


def tree_s(pid: int) -> float:
    """CPU seconds of a process and of all that it ever started, as far as somebody waited for what has ended. 0 for one
    that is gone."""
    try:
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[13:15]  # of those that ended
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        own = cpu_s(pid)
    except OSError:
        return 0.0
    return own + sum(map(int, ticks)) * TICK_S + sum(tree_s(int(child)) for child in children)


async def settled(pid: int, patience_s: float) -> None:
    """Wait until a process has nothing left to do: two tenths of a second with at most one tick of CPU."""
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        before = cpu_s(pid)
        await asyncio.sleep(0.2)
        if cpu_s(pid) - before <= TICK_S:
            return


def listener(host: str, port: int) -> int | None:
    """The process of this machine that listens there, as far as the kernel tells this user; for a loopback address
    only."""
    if not host.startswith(("127.", "localhost")):
        return None
    inodes = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == LISTEN and int(words[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{words[9]}]")
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(link) in inodes:
                return int(link.parts[2])
    return None


def of_tree() -> dict[str, str]:
    """`BENCH_TREE` names another checkout: the gateway of that is measured, by the generator of this."""
    tree = os.environ.get("BENCH_TREE")
    return {"PYTHONPATH": tree} if tree else {}


class Server:
    """A server process on a free port, with its own empty directory; gone at the end of the `with` block."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        settings: Mapping[str, str] | None = None,
        more: Mapping[str, str] | None = None,
    ):
        self.name = name
        self.port = free_port()
        self.directory = Path(tempfile.mkdtemp(prefix="vestnik-bench-"))
        self._log = (self.directory / "log").open("wb")
        text = {"{port}": str(self.port), "{dir}": str(self.directory)}
        self._command = [text.get(word, word) for word in command]
        self._environ = _environ() | {f"VESTNIK_{key.upper()}": value for key, value in (settings or {}).items()}
        self._environ.update(more or {})
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - our own commands
            self._command,
            cwd=self.directory,  # no `.env` of ours
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env=self._environ,
        )
        self.pid = self._process.pid

    async def terminate(self, patience_s: float) -> int:
        """SIGTERM, and its exit code."""
        self._process.send_signal(signal.SIGTERM)
        try:
            return await asyncio.to_thread(self._process.wait, patience_s)
        except subprocess.TimeoutExpired:
            raise Failed(f"{self.name} did not end within {patience_s:.0f} s of SIGTERM: {self.tail()}") from None

    async def start_again(self) -> None:
        """Another life on the same directory and port, after `terminate`."""
        self._start()
        await self.started()

    async def kill_and_start(self) -> None:
        """SIGKILL, and another life on the same directory and port."""
        self._process.kill()
        await asyncio.to_thread(self._process.wait)
        self._start()
        await self.started()

    @property
    def code(self) -> int | None:
        """Its exit code when it has ended, else None."""
        return self._process.poll()

    async def started(self, patience_s: float = 20.0) -> None:
        """Returns when the port accepts connections."""
        end = time.monotonic() + patience_s
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                if self._process.poll() is not None or time.monotonic() > end:
                    raise Failed(f"{self.name} did not start: {self.tail()}") from None
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return

    def tail(self) -> str:
        """The end of what it logged."""
        self._log.flush()
        return (self.directory / "log").read_text(errors="replace")[-2000:]

    @property
    def cpu_s(self) -> float:
        return cpu_s(self.pid)

    @property
    def rss_bytes(self) -> int:
        return rss_bytes(self.pid)

    async def calm(self, patience_s: float = 5.0) -> None:
        """Wait until it has nothing left to do."""
        await settled(self.pid, patience_s)

    async def __aenter__(self) -> Self:
        try:
            await self.started()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.send_signal(signal.SIGKILL)
        await asyncio.to_thread(self._process.wait)
        self._log.close()
        shutil.rmtree(self.directory, ignore_errors=True)


def reference(kind: str) -> Server:
    """One of `loadtests.bench.references`."""
    return Server(kind, [sys.executable, "-m", "loadtests.bench.references", kind, "{port}"])


class Gateway(Server):
    """`vestnik serve` with its defaults, and the commands that go with it; its data is in a fresh directory, or in one
    that it shares with other nodes."""

    def __init__(self, settings: Mapping[str, str] | None = None, data: Path | None = None) -> None:
        folder = str(data) if data else "{dir}"
        command = [str(BIN / "vestnik"), "serve", "--host", "127.0.0.1", "--port", "{port}", "--data", folder]
        super().__init__("the gateway", command, settings, of_tree())
        self._data = data or self.directory
        self._minted = 0

    async def command(self, *words: str) -> str:
        """Run a `vestnik` command on the same data; what it printed."""
        process = await asyncio.create_subprocess_exec(
            str(BIN / "vestnik"),
            *words,
            cwd=self.directory,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self._environ | {"VESTNIK_DATA": str(self._data)},
        )
        out, err = await process.communicate()
        if process.returncode:
            raise Failed(f"`vestnik {words[0]}` ended with {process.returncode}: {err.decode()[-500:]}")
        return out.decode()

    async def tokens(self, accounts: Sequence[str]) -> list[str]:
        """A new token for each, unlike any before: a gateway that remembers tokens must verify these."""
        self._minted += 1
        lines = (await self.command("token", "--ttl", str(3600 + self._minted), *accounts)).split()
        if len(lines) != len(accounts):
            raise Failed(f"`vestnik token` printed {len(lines)} tokens for {len(accounts)} accounts")
        return lines

    async def agency(self, code: str) -> str:
        """A new agency's secret, `whsec_…`."""
        return (await self.command("agency", "add", code)).strip()
