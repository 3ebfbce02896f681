"""What a process tells operators about itself."""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway import figures, logs
from gateway.events import MAX_EVENT_BYTES
from gateway.figures import Reading, fitting, happened, look, sparse
from gateway.metrics import Counts, Histogram, Sender
from gateway.opsfeeds import FIGURES
from gateway.rfc3339 import format_time
from gateway.store.base import Range
from gateway.types import registry
from tests.kit import URGENT, Bench, use_clock
from tests.running import Running, here, notice, public, running, status

__all__ = ["here"]

A, FNS = "account:a", "agency:fns"


@pytest.fixture
async def bench(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    made = Bench(use_clock(monkeypatch), window=2)
    yield made
    await made.stop()


async def told(here: Running) -> list[dict[str, Any]]:
    """The data of all figures so far, each good by its schema."""
    (page,) = await here.store.read([Range(FIGURES, 0, 500, 1 << 24)])
    found = [json.loads(row.event)["data"] for row in page.rows if row.event is not None]
    assert [registry()["gov.vestnik.figures"].faults(data) for data in found] == [[]] * len(found)
    return found


# The pure part


def test_only_what_came_between_and_only_buckets_with_any() -> None:
    histogram = Histogram((0.1, 0.2, 0.5))
    histogram.observe(0.05, 3)
    before = histogram.copy()
    histogram.observe(0.2, 2)
    histogram.observe(9)
    assert sparse(before, histogram) == [[0.2, 2], [None, 1]]
    assert sparse(histogram, histogram) == []


def test_counts_are_of_the_interval() -> None:
    counts, fns = Counts(), Sender()
    counts.opened, counts.acks = 7, 9
    counts.closed[1006] = 5
    counts.events["stored"] = 3
    fns.accepted = 3
    before = Reading(100.0, counts.copy(), {"fns": fns.copy()}, 1.0)
    counts.opened += 2
    counts.closed[1006] += 1
    counts.closed[4401] += 2
    counts.events.update({"stored": 4, "duplicate": 1, "invalid": 2})
    counts.delivered[0] += 6
    counts.to_socket[0].observe(0.004, 6)
    fns.accepted += 4
    fns.rejected["invalid"] += 2
    fns.last = 1772357400.5
    fns.delay.observe(3)
    data = happened(before, Reading(105.25, counts.copy(), {"fns": fns.copy()}, 1.5), ["mvd", "fns"])
    assert data["seconds"] == 5.25
    assert (data["opened"], data["acks"], data["cpu"]) == (2, 0, 0.5)
    assert data["closed"] == {"1006": 1, "4401": 2}
    assert (data["accepted"], data["duplicates"], data["rejected"]) == (4, 1, {"invalid": 2})
    assert (data["delivered"], data["to_socket"], data["to_ack"]) == ({"urgent": 6}, {"urgent": [[0.005, 6]]}, {})
    assert data["agencies"] == {
        "fns": {
            "accepted": 4,
            "rejected": {"invalid": 2},
            "last": "2026-03-01T09:30:00.500Z",
            "delay": [[5.0, 1]],
        },
        "mvd": {"accepted": 0, "rejected": {}, "last": None, "delay": []},
    }


def test_intervals_add_up() -> None:
    counts = Counts()
    readings = [Reading(0.0, counts.copy(), {}, 0.0)]
    for n in range(1, 4):
        counts.hellos += n
        counts.hello.observe(0.003, n)
        readings.append(Reading(float(n), counts.copy(), {}, 0.0))
    parts = [happened(old, new, []) for old, new in pairwise(readings)]
    whole = happened(readings[0], readings[-1], [])
    assert sum(part["hellos"] for part in parts) == whole["hellos"] == 6
    assert sum(part["hello"][0][1] for part in parts) == whole["hello"][0][1] == 6


def test_a_copy_changes_no_more() -> None:
    counts = Counts()
    copy = counts.copy()
    counts.acks += 1
    counts.closed[1000] += 1
    counts.delivered[2] += 1
    counts.to_ack[1].observe(1)
    counts.append.observe(1)
    assert (copy.acks, copy.closed, copy.delivered[2]) == (0, {}, 0)
    assert sum(copy.to_ack[1].counts) == sum(copy.append.counts) == 0


def busy(agencies: int) -> dict[str, Any]:
    """Figures of a busy node: each histogram has all of its buckets, each agency every reason."""
    counts, senders = Counts(), {f"agency-with-a-long-code-{n:08}": Sender() for n in range(agencies)}
    before = Reading(0.0, counts.copy(), {}, 0.0)
    reasons = "malformed unsigned forbidden conflict stale too-large media-type invalid quota".split()  # noqa: SIM905
    counts.events.update(dict.fromkeys(["stored", *reasons], 100_000))
    for histogram in (counts.hello, counts.append, counts.loop_lag, *counts.to_socket, *counts.to_ack):
        histogram.counts = [100_000] * len(histogram.counts)
    for n, sender in enumerate(senders.values()):
        sender.accepted, sender.last = 1_000_000 + n, 1772357400.5
        sender.rejected.update(dict.fromkeys(reasons, 100_000))
        sender.delay.counts = [100_000] * len(sender.delay.counts)
    return happened(before, Reading(5.0, counts, senders, 1.0), senders)


def test_fifty_busy_agencies_fit() -> None:
    data = busy(50)
    assert fitting(data) is data
    assert len(orjson.dumps(data)) < figures.MAX_BYTES - 6_000, "the rest of the data, 20 slow sessions among it"


def test_of_too_many_agencies_the_quietest_are_left_out() -> None:
    data = busy(300)
    fitted = fitting(data)
    assert len(orjson.dumps(fitted)) <= figures.MAX_BYTES < MAX_EVENT_BYTES
    kept = len(fitted["agencies"])
    assert kept > 50
    assert fitted["agencies_omitted"] == 300 - kept
    assert min(agency["accepted"] for agency in fitted["agencies"].values()) == 1_000_300 - kept


# The sessions


async def test_a_session_whose_window_is_full_is_slow_and_behind(bench: Bench) -> None:
    stuck = await bench.connect("a", feeds=[FNS], agent="vestnik/1.0")
    await bench.connect("b")
    assert await look(bench.hub) == ([], 0)
    await bench.publish(A, 5)
    bench.tick(3)
    assert await look(bench.hub) == ([stuck.session], 1)
    assert figures._slow(stuck.session, bench.clock.monotonic()) == {
        "session": stuck.session.id,
        "who": logs.who("a"),
        "device_agent": "vestnik/1.0",
        "seconds": 3.0,
        "behind": 3,
        "why": "window",
    }
    stuck.ack(A, 2)
    stuck.ack(A, 4)
    stuck.ack(A, 5)
    assert await look(bench.hub) == ([], 0)


async def test_a_session_whose_socket_is_full(bench: Bench) -> None:
    first = await bench.connect("a")
    second = await bench.connect("b", agent="п" * 100)
    first.session.paused()
    bench.tick(2)
    second.session.paused()
    assert await look(bench.hub) == ([first.session, second.session], 0), "longest first"
    assert figures._slow(first.session, bench.clock.monotonic())["why"] == "socket"
    assert figures._slow(second.session, bench.clock.monotonic())["device_agent"] == "п" * 64
    await bench.publish("account:b")
    assert (await look(bench.hub))[1] == 1
    second.session.close(4508, "too slow")
    assert await look(bench.hub) == ([first.session], 0)


async def test_what_waits_in_saver_mode_is_not_behind(bench: Bench) -> None:
    phone = await bench.connect("a", mode="saver")
    await bench.publish(A)
    assert await look(bench.hub) == ([], 0)
    await bench.publish(A, priority=URGENT)
    phone.read()


async def test_others_get_their_turn(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "SLICE", 2)
    await bench.connect_many(5)
    looking = asyncio.ensure_future(look(bench.hub))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not looking.done()
    assert await looking == ([], 0)


# A gateway that tells


async def test_the_figures_of_a_gateway(here: Running) -> None:
    phone = await here.phone()
    await here.batch([status(), notice(), public()])
    await here.client.post("/v1/agencies/nobody/events", content=b"{}")
    await here.post(status() | {"type": "gov.nothing"})
    await here.store.lease("role:relay", "5e6f", time.time() + 4, time.time())
    await here.gateway.figures.tell()
    (data,) = await told(here)
    assert data["node"] == here.gateway.hub.roster.node
    assert (data["sessions"], data["opened"], data["hellos"]) == (1, 1, 1)
    assert (data["accepted"], data["rejected"]) == (3, {"unsigned": 1, "invalid": 1})
    assert data["agencies"].keys() == {"fns", "mvd"}
    assert data["store"] == {"ready": True, "failures": 0, "disk_free": None, "disk_size": None}
    assert data["bus"] == {"healthy": True, "failures": 0, "gaps": 0, "holes": 0}
    assert data["memory"] > 1_000_000
    assert 0 < data["open_files"] < data["max_open_files"]
    assert "alerts" in {lease["name"] for lease in data["leases"]}, "a worker of its own has it"
    [relay] = [lease for lease in data["leases"] if lease["name"] == "relay"]
    assert relay["owner"] == "5e6f"
    assert 3 < relay["left"] <= 4
    fns = data["agencies"]["fns"]
    assert (fns["accepted"], fns["rejected"]) == (3, {"invalid": 1})
    assert fns["last"] <= format_time(time.time())
    assert fns["delay"] == [[None, 3]], "they are of the first of March"
    assert here.gateway.counts.agency_late == {"fns": 3}
    assert data["agencies"]["mvd"] == {"accepted": 0, "rejected": {}, "last": None, "delay": []}
    phone.session.close(1000, "")
    await here.gateway.figures.tell()
    second = (await told(here))[1]
    assert (second["accepted"], second["sessions"], second["closed"]) == (0, 0, {"1000": 1})
    assert second["agencies"]["fns"]["last"] == fns["last"]


async def test_what_could_not_be_stored_is_part_of_the_next(here: Running) -> None:
    await here.post(status())
    here.store.away = True
    await here.gateway.figures.tell()
    here.store.away = False
    await here.post(status())
    await here.gateway.figures.tell()
    await here.gateway.figures.tell()
    first, second = await told(here)
    assert (first["accepted"], first["store"]["ready"], first["store"]["failures"]) == (2, False, 1)
    assert (second["accepted"], second["store"]["ready"], second["store"]["failures"]) == (0, True, 0)


async def test_the_disk_of_the_stores_file(tmp_path: Path) -> None:
    async with running(tmp_path) as here:
        here.gateway.figures.disk = tmp_path
        await here.gateway.figures.tell()
        (data,) = await told(here)
        room = os.statvfs(tmp_path)
        assert data["store"]["disk_size"] == room.f_blocks * room.f_frsize
        assert 0 <= data["store"]["disk_free"] <= data["store"]["disk_size"]
        counts = here.gateway.counts
        assert (counts.disk_free, counts.disk_size) == (data["store"]["disk_free"], data["store"]["disk_size"])


async def test_they_come_every_few_seconds_to_operators(tmp_path: Path) -> None:
    async with running(tmp_path, ops_s=0.02) as here:
        phone = await here.phone("op", scope="ops")
        phone.say("subscribe", feed=FIGURES)
        events: list[dict[str, Any]] = []
        async with asyncio.timeout(5):
            while len(events) < 2:
                await asyncio.sleep(0.01)
                events += [message for message in phone.read() if message["t"] == "event"]
        assert events[1]["offset"] == events[0]["offset"] + 1
        assert events[0]["event"]["type"] == "gov.vestnik.figures"


async def test_the_last_word_of_one_that_drains(tmp_path: Path) -> None:
    async with running(tmp_path, ops_s=60) as here:
        await asyncio.sleep(0)  # it begins
        await here.gateway.drain(0)
        await here.gateway.stop()
        await here.store.open()
        (data,) = await told(here)
        assert data["draining"]
        assert await here.store.unpublished(time.time() + 1, 10) == [], "the bus has it"


async def test_none_when_nobody_wants_them(here: Running) -> None:
    assert here.settings.ops_s == 0
    assert "figures" not in {task.get_name() for task in asyncio.all_tasks()}
