"""A gateway of our own: started, killed, stopped, and gone at the end."""

import asyncio
import json
import os
import subprocess
import time
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from client_sim.agencies import BY_CODE
from client_sim.faults import FAULTS, Fault, fake_clock
from client_sim.local import Cannot, Gateway, command, family, secrets_of


async def test_its_whole_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VESTNIK_DATA", "/nowhere")  # of the caller, not of this gateway
    async with Gateway(tmp_path / "data", {"drain_s": "0"}) as gateway:
        assert gateway.pid is None
        await gateway.start()
        first = gateway.pid
        agencies = [BY_CODE["fns"], BY_CODE["sfr"]]
        secrets = await secrets_of(agencies, gateway.data, gateway.environment)
        assert secrets["fns"].startswith("whsk_")
        assert secrets["sfr"].startswith("whsec_")
        assert await secrets_of(agencies, gateway.data, gateway.environment) == secrets
        assert (gateway.data / "secrets" / "fns").stat().st_mode & 0o777 == 0o600
        listed = await command("agency", "list", "--json", environment=gateway.environment)
        assert {json.loads(line)["code"] for line in listed.splitlines()} == {"fns", "sfr"}
        await gateway.kill()
        assert gateway.pid is None
        gateway.extra = fake_clock(gateway.data)
        await gateway.start()
        assert gateway.pid not in (None, first)
        assert gateway.starts == 2
        await _its_clock_jumps_and_comes_back(gateway)
    assert gateway.pid is None


async def _its_clock_jumps_and_comes_back(gateway: Gateway) -> None:
    async def off(low: float, high: float) -> None:
        """Wait until the gateway's clock, as its answers are dated, is so many seconds off ours."""
        async with httpx.AsyncClient(trust_env=False) as http, asyncio.timeout(20):
            while True:
                answer = await http.get(f"{gateway.address}/health/live")
                assert answer.status_code == 200
                if low < parsedate_to_datetime(answer.headers["date"]).timestamp() - time.time() < high:
                    return
                await asyncio.sleep(0.02)

    scene: Any = SimpleNamespace(gateway=gateway)
    jumping = asyncio.create_task(FAULTS["clock"][1](scene, Fault(0, "clock", 60, "+86400")))
    await off(80_000, 90_000)
    jumping.cancel()
    await off(-20, 20)


def test_all_its_processes_are_meant():
    with subprocess.Popen(["sleep", "60"]) as child:
        assert {os.getpid(), child.pid} <= set(family(os.getpid()))
        child.kill()
    assert child.pid not in family(os.getpid())


async def test_one_that_cannot_start_says_why(tmp_path: Path):
    async with Gateway(tmp_path, {"beat_s": "often"}) as gateway:
        with pytest.raises(Cannot, match="VESTNIK_BEAT_S"):
            await gateway.start()


async def test_a_command_that_fails_says_why(tmp_path: Path):
    async with Gateway(tmp_path) as gateway:
        with pytest.raises(Cannot, match="UPPER"):
            await command("agency", "add", "UPPER", environment=gateway.environment)
