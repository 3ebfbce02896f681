"""What goes wrong in a run, as data, and how it is done to a gateway of our own, its network and its agencies.

A fault begins at a moment, lasts for a while, and is over: whoever broke something mends it. What could not be done on
this machine (no libfaketime, no right to mount) is said, not passed over.
"""

import asyncio
import contextlib
import glob
import os
import resource
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final, Protocol

from client_sim.fleet import Fleet
from client_sim.journal import Record
from client_sim.local import Cannot, Gateway, command
from client_sim.networks import How
from client_sim.offices import Offices
from client_sim.servers import Postgresql, Server

RESTORED: Final = "restored"  # a line of the faults' journal: `since` the backup was begun, `at` it was brought back
RESTARTS_S: Final = 20.0  # how long a gateway is tried to be started again before the run is given up


@dataclass(frozen=True, slots=True)
class Fault:
    """`arg`: seconds for `clock`, a share for `cut`, `silent` and `reset`, an agency's code for `outage`."""

    at: float  # seconds since the start
    name: str
    for_s: float = 0.0
    arg: str = ""

    def __str__(self) -> str:
        return " ".join(word for word in (self.name, self.arg, f"for {self.for_s:.1f} s" if self.for_s else "") if word)


class NotHere(Exception):
    """This fault cannot be made on this machine or in this run. One sentence."""


class Scene(Protocol):
    """Whom faults are done to."""

    gateway: Gateway | None
    fleet: Fleet
    offices: Offices
    disk: "Disk | None"
    servers: Mapping[str, Server]  # by the name of the fault's first part: `redis`, `postgresql`

    def note(self, record: Record) -> None:
        """A line of the faults' journal."""


Make = Callable[[Scene, Fault], Awaitable[None]]


def _own(scene: Scene) -> Gateway:
    if scene.gateway is None:
        raise NotHere("This is done only to a gateway that the run started itself.")
    return scene.gateway


async def _again(gateway: Gateway) -> None:
    """Start it, more than once if need be: a full disk or a wrong clock may still be there."""
    ends = asyncio.get_running_loop().time() + RESTARTS_S
    while True:
        try:
            return await gateway.start()
        except Cannot:
            if asyncio.get_running_loop().time() > ends:
                raise
            await gateway.kill()
            await asyncio.sleep(0.5)


async def _kill(scene: Scene, fault: Fault) -> None:
    gateway = _own(scene)
    await gateway.kill()
    await asyncio.sleep(fault.for_s)
    await _again(gateway)


async def _restart(scene: Scene, fault: Fault) -> None:
    gateway = _own(scene)
    await gateway.stop()
    await asyncio.sleep(fault.for_s)
    await _again(gateway)


async def _restore(scene: Scene, fault: Fault) -> None:
    """The store is lost, and what it was some seconds ago is brought back: what came since is gone, and only that."""
    gateway = _own(scene)
    file = gateway.data / "backup"
    server = scene.servers.get("postgresql")
    since = time.time()
    if isinstance(server, Postgresql):
        await server.back_up(file)
    else:
        await command("backup", str(file), environment=gateway.environment)
    try:
        await asyncio.sleep(fault.for_s)
        await gateway.kill()
        if isinstance(server, Postgresql):
            await server.bring_back(file)
        else:
            await command("restore", str(file), "--yes", environment=gateway.environment)
    finally:
        scene.offices.restored()
        scene.fleet.restored()
        scene.note({"t": RESTORED, "since": round(since, 3)})
        file.unlink(missing_ok=True)
    await _again(gateway)


async def _freeze(scene: Scene, fault: Fault) -> None:
    gateway = _own(scene)
    gateway.signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(fault.for_s)
    finally:
        gateway.signal(signal.SIGCONT)


async def _full_disk(scene: Scene, fault: Fault) -> None:
    gateway = _own(scene)
    disk = scene.disk or FileLimit(gateway)
    disk.fill()
    try:
        await asyncio.sleep(fault.for_s)
    finally:
        disk.free()
    if gateway.pid is None:  # it may end itself rather than go on with a store whose state it does not know
        await _again(gateway)


async def _clock(scene: Scene, fault: Fault) -> None:
    gateway = _own(scene)
    clock = gateway.data / CLOCK_FILE
    if not clock.exists():
        raise NotHere("The gateway's clock cannot be moved: libfaketime is not installed.")
    clock.write_text(f"{float(fault.arg):+.0f}s\n", "ascii")
    try:
        await asyncio.sleep(fault.for_s)
    finally:
        clock.write_text("+0s\n", "ascii")


def _cutting(how: How) -> Make:
    async def cut(scene: Scene, fault: Fault) -> None:
        if not scene.fleet.proxies:
            raise NotHere("There is no network to cut: every device is on `perfect`.")
        for proxy in scene.fleet.proxies.values():
            proxy.cut(how, float(fault.arg or 1))

    return cut


async def _stall(scene: Scene, fault: Fault) -> None:
    proxies = list(scene.fleet.proxies.values())
    if not proxies:
        raise NotHere("There is no network to stall: every device is on `perfect`.")
    for proxy in proxies:
        proxy.stall(True)
    try:
        await asyncio.sleep(fault.for_s)
    finally:
        for proxy in proxies:
            proxy.stall(False)


async def _outage(scene: Scene, fault: Fault) -> None:
    codes = [fault.arg] if fault.arg else list(scene.offices.offices)
    for code in codes:
        scene.offices.close(code, True)
    try:
        await asyncio.sleep(fault.for_s)
    finally:
        for code in codes:
            scene.offices.close(code, False)


def _server(scene: Scene, fault: Fault) -> Server:
    server = scene.servers.get(fault.name.partition("_")[0])
    if server is None:
        raise NotHere("This is done only to a server that the run started itself.")
    return server


async def _server_kill(scene: Scene, fault: Fault) -> None:
    server = _server(scene, fault)
    await server.kill()
    await asyncio.sleep(fault.for_s)
    await server.start()


async def _server_freeze(scene: Scene, fault: Fault) -> None:
    server = _server(scene, fault)
    server.freeze(True)
    try:
        await asyncio.sleep(fault.for_s)
    finally:
        server.freeze(False)


async def _storm(scene: Scene, fault: Fault) -> None:
    """Everybody's connection is reset at once."""
    for device in scene.fleet.devices:
        device.cut()


FAULTS: Final[Mapping[str, tuple[str, Make]]] = {
    "kill": ("SIGKILL to the gateway; started again after a while", _kill),
    "restart": ("SIGTERM, drain, and started again", _restart),
    "freeze": ("SIGSTOP, SIGCONT after a while", _freeze),
    "restore": ("the store is lost, and a backup from a while ago is brought back", _restore),
    "full_disk": ("not one byte more fits on the gateway's disk", _full_disk),
    "clock": ("the gateway's wall clock jumps, and back", _clock),
    "close": ("a share of the proxied connections is closed", _cutting("close")),
    "reset": ("a share of the proxied connections is reset", _cutting("reset")),
    "silent": ("a share of the proxied connections dies and nobody is told", _cutting("silent")),
    "stall": ("nothing comes through the networks for a while", _stall),
    "outage": ("an agency, or all, cannot send; what happens there comes afterwards", _outage),
    "storm": ("all devices lose their connection at once", _storm),
    "redis_kill": ("SIGKILL to Redis; started again after a while, empty", _server_kill),
    "redis_freeze": ("SIGSTOP to Redis for a while", _server_freeze),
    "postgresql_kill": ("SIGKILL to PostgreSQL and all its processes; started again after a while", _server_kill),
    "postgresql_freeze": ("SIGSTOP to PostgreSQL for a while", _server_freeze),
}
SERVERS: Final = tuple(name for name in FAULTS if name.startswith(("redis_", "postgresql_")))
# Those that stop or start a process wait until the one before is mended: what they break is running then.
IN_TURN: Final = frozenset(("kill", "restart", "freeze", "restore", "full_disk", *SERVERS))


def chaos(rng: Random, seconds: float, names: Sequence[str], pause_s: tuple[float, float] = (6, 25)) -> list[Fault]:
    """Faults one after the other, chosen by chance, all of them over before `seconds`. Pure."""
    faults: list[Fault] = []
    at = rng.uniform(*pause_s)
    while True:
        name = rng.choice(list(names))
        lasting = {"kill": (0, 4), "restart": (0, 2), "freeze": (1, 12), "full_disk": (1, 8), "clock": (4, 15)}
        lasting["restore"] = (1, 15)
        for_s = rng.uniform(*lasting.get(name.rpartition("_")[2] if name in SERVERS else name, (1, 6)))
        arg = ""
        if name == "clock":
            arg = f"{rng.choice((-3600, -240, -20, 20, 240, 3600, 86400)):+d}"
        elif name in ("close", "reset", "silent"):
            arg, for_s = f"{rng.uniform(0.2, 1):.2f}", 0.0
        elif name == "storm":
            for_s = 0.0
        if at + for_s >= seconds:
            return faults
        faults.append(Fault(round(at, 2), name, round(for_s, 2), arg))
        at += for_s + rng.uniform(*pause_s)


# Disks

WALL: Final = 4096  # bytes that a file may have on a disk that is full


class Disk(Protocol):
    """A disk that can be filled, and freed again."""

    def fill(self) -> None: ...

    def free(self) -> None: ...


class FileLimit:
    """No mount needed: the kernel refuses every write past 4 KiB of any file of the process (EFBIG)."""

    def __init__(self, gateway: Gateway):
        self._gateway = gateway
        self._pid: int | None = None

    def fill(self) -> None:
        self._pid = self._gateway.pid
        self._set(WALL)

    def free(self) -> None:
        self._set(resource.RLIM_INFINITY)

    def _set(self, size: int) -> None:
        if self._pid is not None:
            with contextlib.suppress(ProcessLookupError):
                _, hard = resource.prlimit(self._pid, resource.RLIMIT_FSIZE)
                resource.prlimit(self._pid, resource.RLIMIT_FSIZE, (size if hard < 0 else min(size, hard), hard))


class Tmpfs:
    """A small file system of the run's own, in memory: the real ENOSPC. Needs the right to mount.

    Gone, with everything on it, at the end of the block. Raises NotHere.
    """

    def __init__(self, where: Path, size: str = "2g"):
        self.where, self.size = where, size

    def fill(self) -> None:
        """As large as what is on it, and no byte more."""
        stat = os.statvfs(self.where)
        used = (stat.f_blocks - stat.f_bfree) * stat.f_frsize
        self._mount(f"remount,size={max(used, stat.f_frsize)}")

    def free(self) -> None:
        self._mount(f"remount,size={self.size}")

    def __enter__(self) -> "Tmpfs":
        self.where.mkdir(parents=True, exist_ok=True)
        self._mount(f"size={self.size}")
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "--lazy", self.where], check=False, capture_output=True)  # noqa: S603, S607

    def _mount(self, options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", options, "vestnik-sim", str(self.where)]
        try:
            subprocess.run(command, check=True, capture_output=True)  # noqa: S603
        except (OSError, subprocess.CalledProcessError):
            raise NotHere("A file system of its own cannot be mounted here.") from None


# Clocks

CLOCK_FILE: Final = "clock.txt"
FAKETIME: Final = ("/usr/lib/*/faketime", "/usr/lib/faketime", "/usr/lib64/faketime", "/usr/local/lib/faketime")


def fake_clock(data: Path) -> dict[str, str]:
    """The environment with which a gateway's wall clock follows `CLOCK_FILE`; its monotonic clock stays the real one.

    Raises NotHere without libfaketime.
    """
    found = [path for place in FAKETIME for path in glob.glob(f"{place}/libfaketimeMT.so.1")]
    if not found:
        raise NotHere("The gateway's clock cannot be moved: libfaketime is not installed.")
    data.mkdir(parents=True, exist_ok=True)
    (data / CLOCK_FILE).write_text("+0s\n", "ascii")
    return {
        "LD_PRELOAD": found[0],
        "FAKETIME_TIMESTAMP_FILE": str(data / CLOCK_FILE),
        "FAKETIME_CACHE_DURATION": "1",  # seconds: a file is not read at every look at the clock
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        # Waiting for a moment of that clock is left alone, too: else threads that wait for each other spin.
        "FAKETIME_FORCE_MONOTONIC_FIX": "0",
        "DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_DONT_RESET": "1",
    }
