"""The operators' journal of what was refused."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import opsfeeds, rejects
from gateway.bus.memory import MemoryBus
from gateway.errors import Problem
from gateway.opsfeeds import REJECTED
from gateway.publisher import Publisher
from gateway.rejects import Rejects, record
from gateway.store.base import Range
from gateway.store.memory import MemoryStore
from gateway.types import registry
from tests.running import Running, Watched, event, here, notice, status

__all__ = ["here"]

INVALID = Problem(422, "invalid", "Not a valid event", "see `errors`")


async def journal(store: MemoryStore) -> list[dict[str, Any]]:
    """The data of all records so far, each good by its schema."""
    (page,) = await store.read([Range(REJECTED, 0, 5000, 1 << 24)])
    found = [json.loads(row.event)["data"] for row in page.rows if row.event is not None]
    assert [registry()["gov.vestnik.rejected"].faults(data) for data in found] == [[]] * len(found)
    return found


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    time = monotonic


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(rejects, "time", made)
    return made


@pytest.fixture
async def store(clock: Clock) -> Watched:
    made = Watched()
    await made.open()
    return made


@pytest.fixture
async def made(store: Watched) -> AsyncIterator[Rejects]:
    publisher = Publisher(store, MemoryBus())
    yield Rejects("1f2e3d4c", publisher, {"fns", "mvd"})
    await publisher.close()


# One record


def test_what_a_record_says() -> None:
    errors = [{"pointer": f"/data/{n}", "detail": "is required"} for n in range(9)]
    problem = Problem(422, "invalid", "Not a valid event", "see `errors`", errors=errors)
    problem.about = "e-1", "gov.notice.sent"
    assert record("1f2e3d4c", "fns", problem, 210, 3) == {
        "node": "1f2e3d4c",
        "agency": "fns",
        "reason": "invalid",
        "status": 422,
        "id": "e-1",
        "type": "gov.notice.sent",
        "detail": "see `errors`",
        "errors": errors[:5],
        "bytes": 210,
        "omitted": 3,
    }


def test_what_the_sender_chose_is_cut_and_can_be_written() -> None:
    errors = [{"pointer": "/" + "п" * 1000, "detail": "\ud800"}]
    problem = Problem(400, "malformed", "Not well-formed JSON", errors=errors)
    problem.about = "x" * 1000 + "\x00", "a\u202eb\nc\ud800"
    data = record("n", "Ы" * 100, problem, 0, 0)
    assert (data["agency"], data["id"], data["type"]) == ("Ы" * 32, "x" * 128, "a?b?c?")
    assert data["errors"] == [{"pointer": "/" + "п" * 127, "detail": "?"}]
    assert data["detail"] == "Not well-formed JSON"
    json.dumps(data).encode()


_anything = st.text(st.characters(codec=None, categories=None), max_size=600)


@given(code=_anything, id=st.none() | _anything, type=st.none() | _anything, pointer=_anything)
def test_whatever_was_sent_makes_a_good_event(code: str, id: str | None, type: str | None, pointer: str) -> None:
    problem = Problem(422, "invalid", "t", errors=[{"pointer": pointer, "detail": pointer}] * 9)
    problem.about = id, type
    data = record("n", code, problem, 1, 0)
    made = opsfeeds.draft(REJECTED, "gov.vestnik.rejected", data, id="x", now=1.0)
    assert json.loads(made.event)["data"] == data
    assert registry()["gov.vestnik.rejected"].faults(data) == []
    assert len(made.event) < 20_000


# The rates


async def test_what_comes_faster_than_its_rate_is_counted(made: Rejects, store: Watched, clock: Clock) -> None:
    for _ in range(25):
        made.put("fns", INVALID, 1, signed=True)
    made.put("mvd", INVALID, 1, signed=True)
    clock.now += 0.1
    made.put("fns", INVALID, 1, signed=True)
    await made.close()
    found = [(data["agency"], data["omitted"]) for data in await journal(store)]
    assert found == [("fns", 0)] * 10 + [("mvd", 0), ("fns", 15)]


async def test_all_who_have_no_key_share_one_small_rate(made: Rejects, store: Watched, clock: Clock) -> None:
    for n in range(100):
        made.put(f"x{n}", INVALID, 1, signed=False)
        made.put("fns", INVALID, 1, signed=False)
    made.put("fns", INVALID, 1, signed=True)
    clock.now += 0.5
    made.put("y", INVALID, 1, signed=False)
    clock.now += 0.5
    made.put("z", INVALID, 1, signed=False)
    await made.close()
    found = [(data["agency"], data["omitted"]) for data in await journal(store)]
    assert found[10:] == [("fns", 0), ("z", 191)]
    assert len(made._omitted) == 0


async def test_what_waits_is_bounded(made: Rejects, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejects, "WAITING", 15)
    for _ in range(3):
        for _ in range(10):
            made.put("fns", INVALID, 1, signed=True)
        clock.now += 60
    assert (len(made._waiting), made._omitted) == (15, {"fns": 15})


async def test_records_are_written_together_and_survive_an_outage(
    made: Rejects, store: Watched, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rejects, "GATHER_S", 0.0)
    monkeypatch.setattr(rejects, "RETRY_S", 0.0)
    monkeypatch.setattr(rejects, "GROUP", 8)
    made.start()
    store.away = True
    for _ in range(10):
        made.put("fns", INVALID, 1, signed=True)
    for _ in range(20):
        await asyncio.sleep(0)
    store.away = False
    async with asyncio.timeout(5):
        while made._waiting:
            await asyncio.sleep(0)
    assert store.commits[-2:] == [8, 2]
    assert len(await journal(store)) == 10
    await made.close()


async def test_nothing_waits_for_them_at_the_end(made: Rejects, store: Watched) -> None:
    made.put("fns", INVALID, 1, signed=True)
    store.away = True
    await made.close()
    assert len(made._waiting) == 1


async def test_a_commit_that_was_cut_off_is_not_written_twice(
    made: Rejects, store: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is done, and nobody was there to hear it."""
    monkeypatch.setattr(rejects, "GATHER_S", 0.0)
    made.start()
    made.put("fns", INVALID, 1, signed=True)
    tell, told = made.publisher.tell, asyncio.Event()

    async def hang(*given: Any) -> None:
        await tell(*given)
        told.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(made.publisher, "tell", hang)
    async with asyncio.timeout(5):
        await told.wait()
    monkeypatch.setattr(made.publisher, "tell", tell)
    await made.close()
    assert len(await journal(store)) == 1


# What the intake tells


async def test_the_intake_tells_each_refusal(here: Running) -> None:
    good = status()
    await here.batch([good, notice() | {"data": {"title": "т"}}, status() | {"source": "/agencies/mvd"}, 7])
    await here.post(good | {"data": good["data"] | {"status": "done"}})
    old = status(subject="s", sequence="5")
    await here.post(old)
    await here.post(status(subject="s", sequence="4"))
    await here.post(event("gov.erased", {"ranges": [[1, 2]]}))
    await here.send(b"{", code="mvd")
    await here.send(b"{}", "text/plain")
    await here.client.post("/v1/agencies/nobody/events", content=b"{}")
    await here.client.post("/v1/agencies/fns/events", content=b"x" * 1_048_577)
    await here.gateway.rejects.close()
    found = await journal(here.store)
    assert [(data["agency"], data["status"], data["reason"], data["type"]) for data in found] == [
        ("fns", 422, "invalid", "gov.notice.sent"),
        ("fns", 403, "forbidden", "gov.status.changed"),
        ("fns", 422, "invalid", None),
        ("fns", 409, "conflict", "gov.status.changed"),
        ("fns", 409, "stale", "gov.status.changed"),
        ("fns", 403, "forbidden", "gov.erased"),
        ("mvd", 400, "malformed", None),
        ("fns", 415, "media-type", None),
        ("nobody", 401, "unsigned", None),
        ("fns", 413, "too-large", None),
    ]
    assert found[3]["id"] == good["id"]
    assert found[0]["errors"] == [{"pointer": "/data/text", "detail": "is required"}]
    assert [data["bytes"] for data in found[-2:]] == [2, 1_048_577]
    assert {data["node"] for data in found} == {here.gateway.hub.roster.node}
    written = json.dumps(found, ensure_ascii=False)
    assert not any(word in written for word in ("ivan", "2026-000123", "Уведомление"))


async def test_what_is_accepted_is_not_told(here: Running) -> None:
    await here.post(status())
    assert here.gateway.rejects._waiting == []
