"""A fleet on a real gateway: who it is by its seed, and that everybody has everything in the end."""

import asyncio
from pathlib import Path
from typing import Any

import httpx

from client_sim.arrivals import PATTERNS
from client_sim.behaviours import BEHAVIOURS
from client_sim.fleet import Fleet, Roster
from client_sim.journal import read
from client_sim.ledger import reconcile
from client_sim.measure import Tally
from client_sim.offices import Offices
from client_sim.run import AGENCIES, DEVICES, Lines
from tests.client_sim.conftest import Running

EVERY = dict.fromkeys(BEHAVIOURS, 1.0)
EVERY_NETWORK = {"perfect": 3.0, "lte": 1.0, "3g": 1.0, "office_proxy": 1.0, "lossy_wifi": 1.0, "edge": 0.5}


class Nobody:
    def token(self, account: str) -> str:
        return "token"


def fleet(roster: Roster) -> Fleet:
    return Fleet("127.0.0.1", 1, roster, Nobody(), lambda note: None, Tally())


def people(one: Fleet) -> list[tuple[Any, ...]]:
    return [(device.account, device.behaviour.name, device.network, device.feeds) for device in one.devices]


async def test_a_seed_is_the_same_people_and_the_same_day():
    one, other, third = (
        fleet(Roster(200, 80, EVERY, EVERY_NETWORK, seed=seed, follows=("agency:mchs",))) for seed in (3, 3, 4)
    )
    assert people(one) == people(other)
    assert (one.fingerprint, one.schedule) == (other.fingerprint, other.schedule)
    assert one.fingerprint != third.fingerprint
    assert [at for at, _, _ in one.schedule] == sorted(at for at, _, _ in one.schedule)


async def test_devices_are_dealt_to_all_accounts():
    one = fleet(Roster(10, 4, {"steady": 1}, {"perfect": 1}))
    accounts = [device.account for device in one.devices]
    assert sorted(accounts.count(name) for name in set(accounts)) == [2, 2, 3, 3]


async def test_ten_thousand_devices_are_made_in_a_moment():
    loop = asyncio.get_running_loop()
    began = loop.time()
    one = fleet(Roster(10_000, 5000, EVERY, {"perfect": 1}, seconds=60))
    assert len(one.devices) == 10_000
    assert loop.time() - began < 10


async def test_every_behaviour_on_every_network_ends_with_everything(running: Running, tmp_path: Path):
    """And the ledger finds nothing to complain of. The gateway runs on: its store holds more than this run."""
    roster = Roster(66, 30, EVERY, EVERY_NETWORK, 5, 4.5, pace=16, follows=("agency:mchs",), prefix="fleet-")
    tally = Tally()
    agencies, devices = Lines(tmp_path / AGENCIES), Lines(tmp_path / DEVICES)
    stage = running.stage()
    async with (
        httpx.AsyncClient(timeout=10, trust_env=False) as http,
        Fleet("127.0.0.1", running.port, roster, stage.identity, devices.note, tally) as one,
    ):
        offices = Offices(running.address, running.secrets, one.accounts, http, agencies.note, tally, 5)
        await asyncio.gather(one.live(), offices.run(PATTERNS["steady"], 80, 4.5))
        assert await offices.finish(20)
        settled = await one.settle(lambda: offices.heads, 30)
        assert settled is not None, one.behind(offices.heads)
        await asyncio.sleep(0.5)
        states = {state: number for state, number in tally.states.items() if number}
        hostile = sum(1 for device in one.devices if not device.behaviour.owed)
        assert states["live"] >= len(one.devices) - hostile - 3  # a few are between two connections
    for file in (agencies, devices):
        file.close()
    tally.sample(10)
    assert tally.counts["delivered"] > 300
    assert tally.counts["attacks"] > 3
    assert tally.counts["attacks_got_through"] == 0, dict(tally.attacks)
    assert tally.counts["faults"] == 0
    verdict = reconcile(read(tmp_path / AGENCIES), read(tmp_path / DEVICES), saved_after_s=4)
    assert verdict.ok, str(verdict)
    assert verdict.counts["deliveries"] > 300


async def test_leaving_early_owes_nobody_anything(running: Running, tmp_path: Path):
    devices = Lines(tmp_path / DEVICES)
    roster = Roster(10, 5, {"steady": 1}, {"perfect": 1}, 6, 60.0, pace=40, prefix="early-")
    tally = Tally()
    async with Fleet("127.0.0.1", running.port, roster, running.stage().identity, devices.note, tally) as one:
        living = asyncio.create_task(one.live())
        async with asyncio.timeout(30):
            while tally.counts["opened"] < 10:
                await asyncio.sleep(0.01)
        living.cancel()
        await asyncio.gather(living, return_exceptions=True)
    devices.close()
    last = {note["device"]: note["t"] for note in read(tmp_path / DEVICES)}
    assert len(last) == 10
    assert set(last.values()) == {"away"}
