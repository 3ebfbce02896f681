"""`make run` as a newcomer meets it: a real gateway, real commands, a terminal."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEADLINE_S = 60


class Running:
    """The demo as a child, and what it has printed so far."""

    def __init__(self, process: asyncio.subprocess.Process):
        self.process = process
        self.printed = ""

    async def until(self, pattern: str) -> re.Match[str]:
        assert self.process.stdout is not None
        async with asyncio.timeout(DEADLINE_S):
            while (match := re.search(pattern, self.printed)) is None:
                more = await self.process.stdout.read(65536)
                assert more, f"it ended without {pattern!r}:\n{self.printed}"
                self.printed += more.decode()
        return match

    async def stop(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        async with asyncio.timeout(8):
            rest, _ = await self.process.communicate()
        self.printed += rest.decode()
        assert self.process.returncode is not None
        return self.process.returncode


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Callable[..., "asyncio.Future[Running]"]]:
    started: list[asyncio.subprocess.Process] = []

    async def begin(*arguments: str) -> Running:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "client_sim.demo", "--port", "0", "--data", str(tmp_path / "data"), "--rate", "20", *arguments),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "COLUMNS": "200", "PYTHONUNBUFFERED": "1"},
            process_group=0,
        )
        started.append(process)
        return Running(process)

    yield begin  # type: ignore[misc]
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def test_a_newcomers_first_minutes(start, tmp_path: Path):
    demo = await start()
    address = (await demo.until(r"Vestnik listens on (\S+)"))[1]
    assert (await demo.until(r"new WebSocket\(\"(\S+)/v1/socket\""))[1] == address.replace("http", "ws")
    publish = (await demo.until(r"(?s)\n(echo .*?--secret-file \S+)\n"))[1]
    await demo.until(r"connected as anna")
    await demo.until(r"#\d+ +\d+/\d+ ms")

    # What it says can be pasted; the hand-made event arrives, once.
    for expected in ("Привет", None):
        done = await asyncio.create_subprocess_shell(publish, cwd=ROOT, stdout=subprocess.PIPE)
        out, _ = await done.communicate()
        assert done.returncode == 0, out
        if expected:
            await demo.until(expected)
    assert (tmp_path / "data" / "secrets" / "gibdd").stat().st_mode & 0o077 == 0
    assert (tmp_path / "data").stat().st_mode & 0o077 == 0, "what it keeps is its owner's alone"

    assert await demo.stop(signal.SIGINT) == 0
    assert demo.printed.count("Это событие отправлено вручную") == 2  # in the line to paste, and on the phone
    port = int(address.rpartition(":")[2])
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0, "the gateway is still there"

    # The second start goes on with the same data: no agency is added, the phone resumes where it was.
    again = await start()
    last = max(int(offset) for offset in re.findall(r"#(\d+) ", demo.printed))
    assert int((await again.until(r"account:anna after (\d+)"))[1]) >= last - 1
    assert "adding" not in again.printed
    assert "snapshot" not in again.printed
    assert await again.stop(signal.SIGTERM) == 0


async def test_a_busy_port_is_one_sentence(start):
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        demo = await start("--port", str(busy.getsockname()[1]))
        out, _ = await demo.process.communicate()
    assert demo.process.returncode == 3
    assert len(out.decode().strip().splitlines()) == 1
    assert "VESTNIK_PORT" in out.decode()


async def test_what_keeps_the_gateway_from_starting_is_one_sentence(start, tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "vestnik.db").write_bytes(b"something else" * 100)
    demo = await start()
    out, _ = await demo.process.communicate()
    assert demo.process.returncode == 3
    lines = out.decode().strip().splitlines()
    assert len(lines) == 2, lines
    assert lines[1].startswith("vestnik: ")
