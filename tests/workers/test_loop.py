import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.errors import BusUnavailable, ConfigError
from gateway.settings import load
from workers.loop import LONGEST_RETRY_S, keep, main, pause_s, run
from workers.roles import ROLES


def shortest(low: float, high: float) -> float:
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
        await keep(role, stop, shortest)
    assert role.done == 6


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


def test_pauses() -> None:
    ceiling: Callable[[float, float], float] = lambda low, high: high  # noqa: E731
    assert pause_s(8.0, 0, ceiling) == 10.0
    assert pause_s(8.0, 0, lambda low, high: low) == 6.0
    assert [pause_s(8.0, failures, ceiling) for failures in (1, 2, 3)] == [1.0, 2.0, 4.0]
    assert pause_s(8.0, 10_000, ceiling) == LONGEST_RETRY_S
    assert pause_s(8.0, 3, lambda low, high: low) == 0.0


def test_settings_that_cannot_work_are_refused(tmp_path: Path) -> None:
    settings = load(env_file=None, data=tmp_path)
    with pytest.raises(ConfigError, match="VESTNIK_BUS"):
        main(settings, ["relay"])
    with pytest.raises(ConfigError, match="VESTNIK_STORE"):
        main(load(env_file=None, data=tmp_path, store="memory://"), ["retention"])


def test_an_unknown_role_is_named(tmp_path: Path) -> None:
    settings = load(env_file=None, data=tmp_path)
    with pytest.raises(ConfigError, match="'plumber'"):
        main(settings, ["plumber"])
    assert set(ROLES) == {"relay", "retention"}
