"""The disk under a running gateway is full, or cannot sync: agencies are told 503, nothing is lost or half stored, and
when the fault is over it goes on by itself."""

import asyncio
import contextlib
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from client_sim.faults import Disk, FileLimit, NotHere, Tmpfs
from tests.faults.harness import Trial, trial

ACCOUNTS = [f"citizen-{number}" for number in range(12)]
DEVICES = 2  # of each account


async def judge(one: Trial) -> None:
    """Everybody catches up; the journals say that nothing was lost."""
    await one.quiet()
    verdict = await one.verdict()
    print(verdict)
    assert verdict.ok, str(verdict)
    assert verdict.counts["devices"] == len(one.phones)
    assert one.gateway.starts == 1, "it was one life"
    assert one.exit_codes == [0]
    assert one.integrity() == "ok"


def check_refusals(refusals: list[httpx.Response]) -> None:
    """Contract, section 2: "429, 503 … for the whole request, with `Retry-After`"."""
    assert refusals
    for response in refusals:
        assert response.status_code == 503, response.text
        assert int(response.headers["retry-after"]) >= 1
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["type"].endswith("unavailable")


def posts(one: Trial) -> list[httpx.Response]:
    return [response for response in one.refusals if response.request.method == "POST"]


@contextlib.contextmanager
def small(one_folder: Path) -> Iterator[Callable[[Trial], Disk]]:
    """A file system of its own where that may be mounted, with the real ENOSPC."""
    with contextlib.ExitStack() as stack:
        try:
            disk = stack.enter_context(Tmpfs(one_folder / "data"))
        except NotHere:
            yield lambda one: FileLimit(one.gateway)
        else:
            yield lambda one: disk


@contextlib.contextmanager
def limited(one_folder: Path) -> Iterator[Callable[[Trial], Disk]]:
    """No file may grow: writes fail with EFBIG, which SQLite takes for an I/O error."""
    yield lambda one: FileLimit(one.gateway)


@pytest.mark.parametrize("kind", [small, limited])
async def test_a_full_disk(
    tmp_path: Path, kind: Callable[[Path], contextlib.AbstractContextManager[Callable[[Trial], Disk]]]
) -> None:
    seed = int(os.environ.get("VESTNIK_TEST_SEED") or random.randrange(1 << 32))
    with kind(tmp_path) as make:
        async with asyncio.timeout(300), trial(tmp_path, seed) as one:
            disk = make(one)
            await one.open_offices(["fns", "sfr", "mchs"], ACCOUNTS)
            await one.gateway.start()
            await one.hand_out(ACCOUNTS, DEVICES)
            one.publish()
            await asyncio.sleep(1)
            assert not one.refusals

            disk.fill()

            async def refused() -> bool:
                return len(posts(one)) >= 5

            await one.until(refused)
            for _ in range(10):
                answer = await one.ready()
                assert answer.status_code == 503
                assert answer.json()["parts"] == {"store": False, "bus": True, "keys": True, "accepting": True}
                assert (await one.http.get(f"{one.gateway.address}/health/live")).status_code == 200
                await asyncio.sleep(0.2)
            before = one.heads()
            await asyncio.sleep(0.5)
            assert one.heads() == before, "nothing is stored while nothing can be"

            disk.free()

            async def ready() -> bool:
                return (await one.ready()).status_code == 200

            await one.until(ready, 5)
            check_refusals(posts(one))
            await asyncio.sleep(1)
            assert sum(one.heads().values()) > sum(before.values()), "it goes on"
            await judge(one)


async def test_a_disk_that_fails_to_sync(tmp_path: Path) -> None:
    """The 30th fsync of each writer's life fails: the commit is unknown, the file is opened and read anew."""
    seed = int(os.environ.get("VESTNIK_TEST_SEED") or random.randrange(1 << 32))
    calls = "fsync,fdatasync"
    under = ["strace", "-D", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-e", f"trace={calls}"]
    async with (
        asyncio.timeout(300),
        trial(tmp_path, seed, under=[*under, "-e", f"inject={calls}:error=EIO:when=30"]) as one,
    ):
        await one.open_offices(["fns", "sfr", "mchs"], ACCOUNTS)
        await one.gateway.start()
        await one.hand_out(ACCOUNTS, DEVICES)
        one.publish()

        async def failed() -> bool:
            return one.gateway.log.read_bytes().count(b"store_failed") >= 3

        await one.until(failed, 30)
        check_refusals(posts(one))
        await judge(one)
