"""Whole runs: plan in, journals, outcome and verdict out, whatever happens on the way."""

import asyncio
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from client_sim.agencies import AGENCIES as SAMPLES
from client_sim.faults import IN_TURN, Fault
from client_sim.fleet import Roster
from client_sim.identity import LocalKey
from client_sim.journal import read
from client_sim.local import Gateway
from client_sim.report import summary
from client_sim.run import AGENCIES, DEVICES, FAULTS_FILE, Outcome, Plan, Stage, judge, play
from tests.client_sim.conftest import SETTINGS, Running, add_agencies


def silent(phase: str, sample: Mapping[str, Any], outcome: Outcome) -> None: ...


async def test_a_gateway_that_is_broken_in_every_way_loses_nothing(tmp_path: Path):
    """Its store is judged, too. Only what was accepted after a backup may go with the store that it replaced."""
    settings = {name.lower(): value for name, value in SETTINGS.items()}
    names = ["restore", "freeze", "full_disk", "storm"]  # to be restored it is killed, too
    faults = [*(Fault(1 + number / 10, name, 0.4) for number, name in enumerate(names[:3])), Fault(2.8, "storm")]
    roster = Roster(40, 20, {"steady": 3, "commuter": 1}, {"perfect": 3, "lte": 1}, 8, 3.0, pace=20)
    phases = []
    async with Gateway(tmp_path / "data", settings) as gateway:
        await gateway.start()
        secrets = await asyncio.to_thread(add_agencies, gateway.data, SAMPLES[:2])
        identity = LocalKey(gateway.data / "token-key.pem")
        stage = Stage(gateway.host, gateway.port, identity, secrets, gateway, store=gateway.store)
        began = time.monotonic()
        outcome = await play(
            Plan(roster, "steady", 40, faults, settle_s=40),
            stage,
            tmp_path / "out",
            lambda phase, sample, so_far: phases.append((phase, sample)),
        )
        assert time.monotonic() - began < 60
        assert gateway.starts == 2
    assert outcome.complete, outcome.ended
    assert outcome.verdict is not None
    assert outcome.verdict.ok, str(outcome.verdict)
    assert (outcome.behind, outcome.waiting) == (0, 0)
    assert outcome.settled_s is not None
    assert outcome.tally.counts["opened"] > 60
    assert outcome.tally.counts["resyncs"] >= 30, "nearly all were there before the backup"
    assert outcome.verdict.counts["rows"] > 20
    assert sorted(fault["name"] for fault in outcome.faults) == sorted(names)
    assert all("to" in fault and "not" not in fault for fault in outcome.faults)
    in_turn = [fault for fault in outcome.faults if fault["name"] in IN_TURN]
    assert all(before["to"] <= after["from"] for before, after in pairwise(in_turn)), "one after the other"
    assert len(list(read(tmp_path / "out" / FAULTS_FILE))) == 9
    assert {phase for phase, _ in phases} == {"running", "quiet"}
    assert any("gateway_mb" in sample for _, sample in phases)
    assert summary(outcome, "x")["ok"] is True


async def test_an_interrupted_run_has_its_journals_and_its_verdict(running: Running, tmp_path: Path):
    stop = asyncio.Event()

    def progress(phase: str, sample: Mapping[str, Any], so_far: Outcome) -> None:
        if so_far.tally.counts["delivered"] > 20:
            stop.set()

    roster = Roster(20, 10, {"steady": 1}, {"perfect": 1}, 9, 600.0, pace=25, prefix="stop-")
    outcome = await play(Plan(roster, rate=50), running.stage(), tmp_path, progress, stop)
    assert outcome.ended == "Interrupted."
    assert outcome.seconds < 60
    assert outcome.verdict is not None
    assert outcome.verdict.ok, str(outcome.verdict)
    assert judge(tmp_path).ok
    assert sum(1 for note in read(tmp_path / DEVICES) if note["t"] == "event") > 10
    assert summary(outcome, "x")["ok"] is True


async def test_a_gateway_that_does_not_come_back_ends_the_run_with_a_sentence(tmp_path: Path):
    """The port is taken meanwhile: everything until then is told, though the store has gone, too."""

    class Broken(Gateway):
        async def start(self) -> None:
            self.starts += 1
            if self.starts > 1:
                from client_sim.local import Cannot

                raise Cannot("The port is taken.")
            self.starts -= 1
            await super().start()

    import client_sim.faults

    async with Broken(tmp_path / "data", {"drain_s": "0"}) as gateway:
        await gateway.start()
        secrets = await asyncio.to_thread(add_agencies, gateway.data, SAMPLES[:1])
        stage = Stage(gateway.host, gateway.port, LocalKey(gateway.data / "token-key.pem"), secrets, gateway)
        stage.store = "postgresql://nobody@127.0.0.1:1/none"
        roster = Roster(5, 5, {"steady": 1}, {"perfect": 1}, 1, 60.0, pace=20)
        client_sim.faults.RESTARTS_S, before = 0.5, client_sim.faults.RESTARTS_S  # type: ignore[misc]
        try:
            outcome = await play(Plan(roster, rate=5, faults=(Fault(1, "kill"),)), stage, tmp_path / "out", silent)
        finally:
            client_sim.faults.RESTARTS_S = before  # type: ignore[misc]
    assert outcome.ended == "The port is taken."
    assert (tmp_path / "out" / AGENCIES).exists()
    assert outcome.verdict is not None
