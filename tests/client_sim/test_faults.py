"""Faults as data, and each done to something that feels it."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest

from client_sim.faults import CLOCK_FILE, FAULTS, Fault, FileLimit, NotHere, Tmpfs, chaos, fake_clock

KINDS = [name for name in FAULTS if name != "outage"]


@dataclass
class Stage:
    """As much of a run as faults touch; a gateway is a process that waits."""

    data: Path
    done: list[str] = field(default_factory=list)
    pid: int | None = None
    proxies: dict[str, Any] = field(default_factory=dict)
    devices: list[Any] = field(default_factory=list)
    offices_: dict[str, Any] = field(default_factory=dict)

    gateway = property(lambda self: self)
    fleet = property(lambda self: self)
    offices = property(lambda self: self)
    disk = None
    servers: dict[str, Any] = field(default_factory=dict)

    async def start(self) -> None:
        self.done.append("start")

    async def stop(self) -> None:
        self.done.append("stop")

    async def kill(self) -> None:
        self.done.append("kill")

    def signal(self, number: signal.Signals) -> None:
        self.done.append(number.name)

    def close(self, code: str, closed: bool) -> None:
        self.done.append(f"{code} {'closed' if closed else 'open'}")

    def cut(self, how: str = "", share: float = 1.0) -> None:
        self.done.append(f"cut {how} {share:g}")

    def stall(self, stalled: bool) -> None:
        self.done.append(f"stall {stalled}")

    def freeze(self, frozen: bool) -> None:
        self.done.append(f"freeze {frozen}")


@pytest.mark.parametrize(
    ("fault", "done"),
    [
        (Fault(0, "kill", 0.01), ["kill", "start"]),
        (Fault(0, "restart", 0.01), ["stop", "start"]),
        (Fault(0, "freeze", 0.01), ["SIGSTOP", "SIGCONT"]),
        (Fault(0, "outage", 0.01, "sfr"), ["sfr closed", "sfr open"]),
        (Fault(0, "reset", 0, "0.5"), ["cut reset 0.5"]),
        (Fault(0, "silent"), ["cut silent 1"]),
        (Fault(0, "stall", 0.01), ["stall True", "stall False"]),
        (Fault(0, "storm"), ["cut  1"]),
        (Fault(0, "redis_kill", 0.01), ["kill", "start"]),
        (Fault(0, "postgresql_freeze", 0.01), ["freeze True", "freeze False"]),
    ],
    ids=str,
)
async def test_a_fault_is_done_and_mended(tmp_path, fault, done):
    stage = Stage(tmp_path)
    stage.proxies, stage.devices = {"lte": stage}, [stage]
    stage.servers = {"redis": stage, "postgresql": stage}
    await FAULTS[fault.name][1](stage, fault)
    assert stage.done == done


@pytest.mark.parametrize(("name", "why"), [("close", "no network"), ("stall", "no network"), ("redis_kill", "itself")])
async def test_what_is_not_there_cannot_be_broken(tmp_path, name, why):
    with pytest.raises(NotHere, match=why):
        await FAULTS[name][1](Stage(tmp_path), Fault(0, name))


async def test_a_freeze_is_mended_though_the_run_is_cancelled(tmp_path):
    stage = Stage(tmp_path)
    freezing = asyncio.create_task(FAULTS["freeze"][1](stage, Fault(0, "freeze", 60)))
    await asyncio.sleep(0)
    freezing.cancel()
    await asyncio.gather(freezing, return_exceptions=True)
    assert stage.done == ["SIGSTOP", "SIGCONT"]


def test_chaos_is_a_seed():
    one, other = chaos(Random(1), 600, KINDS), chaos(Random(1), 600, KINDS)
    assert one == other
    assert one != chaos(Random(2), 600, KINDS)
    assert {fault.name for seed in range(20) for fault in chaos(Random(seed), 600, KINDS)} == set(KINDS)
    for fault, following in pairwise(one):
        assert fault.at + fault.for_s < following.at
    assert one[-1].at + one[-1].for_s < 600
    assert chaos(Random(1), 3, KINDS) == []


WRITER = """
import sys, time
while True:
    try:
        with open(sys.argv[1], "wb") as file:
            file.write(b"x" * 65536)
        print("ok", flush=True)
    except OSError as error:
        print(error.errno, flush=True)
    time.sleep(0.01)
"""


def _until(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    ends = time.monotonic() + 10
    while process.stdout.readline().strip() != word:
        assert time.monotonic() < ends, f"never {word}"


def test_a_full_disk_without_a_mount_refuses_to_write_and_recovers(tmp_path: Path):
    command = [sys.executable, "-c", WRITER, str(tmp_path / "file")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            stage = Stage(tmp_path, pid=process.pid)
            limit = FileLimit(stage)  # type: ignore[arg-type]
            _until(process, "ok")
            limit.fill()
            _until(process, "27")  # EFBIG
            limit.free()
            _until(process, "ok")
        finally:
            process.kill()


def test_a_full_file_system_is_enospc(tmp_path: Path):
    with contextlib.suppress(NotHere), Tmpfs(tmp_path / "disk", "8m") as disk:  # not everybody may mount
        file = tmp_path / "disk" / "file"
        file.write_bytes(b"x" * 100_000)
        disk.fill()
        with pytest.raises(OSError, match="No space left"):
            (tmp_path / "disk" / "more").write_bytes(b"x" * 100_000)
        disk.free()
        (tmp_path / "disk" / "more").write_bytes(b"x" * 100_000)
    assert not os.path.ismount(tmp_path / "disk")


TWO_THREADS = """
import queue, threading, time
there, back = queue.SimpleQueue(), queue.SimpleQueue()
threading.Thread(target=lambda: [back.put(there.get()) for _ in range(500)]).start()
for turn in range(500):
    there.put(sum(range(200)))
    back.get()
print(time.time(), time.monotonic(), time.process_time())
"""


def test_a_clock_that_jumps(tmp_path: Path):
    """The process' wall clock moves, its monotonic clock does not."""
    environment = fake_clock(tmp_path)
    (tmp_path / CLOCK_FILE).write_text("+86400s\n")
    shown = subprocess.run(
        [sys.executable, "-c", TWO_THREADS], env={**os.environ, **environment}, capture_output=True, check=True
    )
    wall, monotonic, cpu_s = map(float, shown.stdout.split())
    assert 86_300 < wall - time.time() < 86_500
    assert abs(monotonic - time.monotonic()) < 60
    assert cpu_s < 1, "threads that wait for each other do not spin"
