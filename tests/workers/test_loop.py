import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.errors import BusUnavailable, ConfigError, EpochChanged
from gateway.settings import load
from workers.loop import keep, main, run
from workers.roles import ROLES


class Shortest(random.Random):
    def uniform(self, a: float, b: float) -> float:
        return 0.0


class Steps:
    """A role that plays a script: each entry is an answer, or an exception to raise; then it stops the loop."""

    name = "steps"
    every_s = 0.0

    def __init__(self, stop: asyncio.Event, *script: bool | Exception):
        self.stop, self.script, self.done = stop, list(script), 0

    async def step(self) -> bool:
        if not self.script:
            self.stop.set()
            return False
        entry = self.script.pop(0)
        self.done += 1
        if isinstance(entry, Exception):
            raise entry
        return entry


async def test_failures_end_no_role() -> None:
    stop = asyncio.Event()
    role = Steps(stop, True, BusUnavailable("away"), RuntimeError("a bug"), KeyError("x"), False, True)
    async with asyncio.timeout(5):
        await keep(role, stop, Shortest())
    assert role.done == 6


async def test_another_epoch_ends_all_of_them() -> None:
    stop = asyncio.Event()
    other = Steps(stop, *[True] * 1_000_000)
    with pytest.raises(EpochChanged):
        async with asyncio.timeout(5):
            await run([Steps(stop, True, EpochChanged("another one")), other], stop)
    assert not stop.is_set()


async def test_one_role_failing_leaves_the_others_alone() -> None:
    stop = asyncio.Event()

    class Broken:
        name = "broken"
        every_s = 0.0
        tries = 0

        async def step(self) -> bool:
            self.tries += 1
            raise RuntimeError("always")

    broken, good = Broken(), Steps(stop, *[True] * 50)
    async with asyncio.timeout(5):
        await run([broken, good], stop)
    assert good.done == 50
    assert broken.tries >= 1


async def test_stop_cuts_a_rest_short() -> None:
    stop = asyncio.Event()

    class Lazy:
        name = "lazy"
        every_s = 3600.0

        async def step(self) -> bool:
            asyncio.get_running_loop().call_soon(stop.set)
            return False

    async with asyncio.timeout(5):
        await run([Lazy()], stop)


def test_settings_that_cannot_work_are_refused(tmp_path: Path) -> None:
    settings = load(env_file=None, data=tmp_path)
    for name in ("relay", "alerts"):
        with pytest.raises(ConfigError, match=f"The role {name} needs a VESTNIK_BUS"):
            main(settings, [name])
    with pytest.raises(ConfigError, match="VESTNIK_STORE"):
        main(load(env_file=None, data=tmp_path, store="memory://"), ["retention"])


def test_an_unknown_role_is_named(tmp_path: Path) -> None:
    settings = load(env_file=None, data=tmp_path)
    with pytest.raises(ConfigError, match="'plumber'"):
        main(settings, ["plumber"])
    assert set(ROLES) == {"relay", "retention", "tidy", "alerts", "webhook"}


async def test_what_it_logs_is_json_on_standard_error(tmp_path: Path) -> None:
    settingless = {name: value for name, value in os.environ.items() if not name.startswith("VESTNIK_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway.cli", "worker", "retention"),
        env={**settingless, "VESTNIK_DATA": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    async with asyncio.timeout(30):
        started = json.loads(await process.stderr.readline())
        process.send_signal(signal.SIGTERM)
        out, rest = await process.communicate()
    assert (started["message"], started["logger"], started["roles"]) == ("workers_started", "worker", ["retention"])
    assert [json.loads(line)["message"] for line in rest.splitlines()] == ["workers_stopped"]
    assert (out, process.returncode) == (b"", 0)
