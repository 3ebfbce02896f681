"""The phone in the terminal: what the person sees, in both languages, and what the keys do."""

import asyncio
import io
import random
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from client_sim.agencies import BY_CODE, Desk, Publisher
from client_sim.handset import Cabinet, Handset, draw, show
from tests.client_sim.conftest import Running

NOW = 1_780_000_000.0


def seen(cabinet: Cabinet) -> str:
    paper = io.StringIO()
    Console(file=paper, width=120, height=34).print(draw(cabinet, NOW, 34))
    return paper.getvalue()


def status(number: int, word: str, reason: str = "") -> dict[str, object]:
    data = {"application": f"2026-{number}", "service": "Замена паспорта", "status": word}
    if reason:
        data["reason"] = {"code": "x", "text": reason}
    times = {"time": "2026-05-28T20:26:39Z", "recordedtime": "2026-05-28T20:26:39.950Z"}
    return {"type": "gov.status.changed", "source": "/agencies/mvd", "data": data, **times}


def test_it_shows_applications_with_their_status_in_both_languages():
    cabinet = Cabinet("42", device="phone-1")
    cabinet.add(status(1, "processing"), NOW)
    cabinet.add(status(1, "action_required", "Нет подписи"), NOW)
    cabinet.add(status(2, "approved"), NOW)
    text = seen(cabinet)
    assert "Требуется действие" in text
    assert "Одобрено" in text
    assert "Нет подписи" in text
    assert "Заявления" in text
    cabinet.language = "en"
    text = seen(cabinet)
    assert "Action required" in text
    assert "Applications" in text
    assert [one.status for one in cabinet.applications.values()] == ["action_required", "approved"]


def test_it_shows_when_each_agency_was_heard_of_and_the_latency():
    cabinet = Cabinet("42")
    cabinet.add(status(1, "done"), NOW)
    text = seen(cabinet)
    assert "МВД" in text
    assert "обновлено 0 s" in text
    assert "ещё не было" in text
    assert "задержка 50 ms" in text


def test_a_snapshot_is_the_state():
    cabinet = Cabinet("42")
    cabinet.add(status(9, "done"), NOW)
    item = {"application": "2026-5", "service": "Пенсия", "status": "checking", "updated": "2026-05-28T20:26:30Z"}
    cabinet.load({"applications": [item], "agencies": [{"code": "sfr", "updated": "2026-05-28T20:20:00Z"}]}, NOW)
    assert list(cabinet.applications) == ["2026-5"]
    text = seen(cabinet)
    assert "На проверке" in text
    assert "6 min" in text


@pytest.mark.parametrize("language", ["ru", "en"])
def test_everything_that_is_told_has_words(language):
    cabinet = Cabinet("42", language)
    for t, message in {
        "welcome": {},
        "lost": {"reason": "", "code": 4503, "wait": 3},
        "mode": {"mode": "saver"},
        "resync": {},
        "drain": {"after": 3},
        "seen": {},
        "error": {"code": "limit", "detail": "slow down"},
        "something-new": {},
    }.items():
        cabinet.told(t, {"t": t, **message}, NOW)
    for word in ("accepted", "done", "failed", "cooldown"):
        cabinet.told("refresh", {"t": "refresh", "source": "/agencies/fns", "status": word}, NOW)
    for event in Desk(BY_CODE["mchs"], ["anna"], random.Random(1)).next(NOW), None:
        cabinet.add(event, NOW)
    for state in ("online", "connecting", "again", "stopped"):
        cabinet.state, cabinet.tunnel, cabinet.lost = state, True, True
        assert "{" not in seen(cabinet)


class Hand:
    """A handset on the real gateway, and an agency that can reach it."""

    def __init__(self, running: Running, directory: Path):
        self.running = running
        stage = running.stage()
        self.handset = Handset(
            running.address, "hand", lambda: stage.identity.token("hand"), directory, language="en", network="lte"
        )
        self.rng = random.Random(4)

    async def happen(self, number: int = 1) -> None:
        async with httpx.AsyncClient(timeout=10, trust_env=False) as http:
            publisher = Publisher(self.running.address, "mvd", self.running.secrets["mvd"], http, self.rng)
            desk = Desk(BY_CODE["mvd"], ["hand"], self.rng)
            await publisher.send([desk.next(NOW) for _ in range(number)])

    async def until(self, what: Callable[[Cabinet], object]) -> None:
        async with asyncio.timeout(30):
            while not what(self.handset.cabinet):
                await asyncio.sleep(0.02)


async def test_the_keys_on_a_real_gateway(running: Running, tmp_path: Path):
    hand = Hand(running, tmp_path / "phone")
    cabinet, press = hand.handset.cabinet, hand.handset.press
    living = asyncio.create_task(hand.handset.run())
    try:
        # What is in the snapshot is not received: it must be there before anything happens.
        await hand.until(lambda cabinet: any("snapshot" in text for _, _, text, _ in cabinet.lines))
        device = cabinet.device
        await hand.happen(2)
        await hand.until(lambda cabinet: cabinet.received == 2)
        press("t")  # in a tunnel nothing comes
        await hand.happen()
        await asyncio.sleep(0.3)
        assert cabinet.received == 2
        press("t")
        await hand.until(lambda cabinet: cabinet.received == 3)
        press("n")  # without a network it knows, and comes back when there is one
        await hand.until(lambda cabinet: cabinet.state == "again")
        await hand.happen()
        press("r")  # asked for now, answered later
        await hand.until(lambda cabinet: len(hand.handset.client.outbox))
        press("c")
        await hand.until(lambda cabinet: cabinet.received == 4)
        await hand.until(lambda cabinet: not len(hand.handset.client.outbox))
        press("b")
        await hand.until(lambda cabinet: hand.handset.client.mode == "saver")
        press("c")
        await hand.until(lambda cabinet: hand.handset.client.mode == "full")
        press("i")
        await hand.until(lambda cabinet: cabinet.state == "online" and cabinet.device != device)
        await hand.until(lambda cabinet: any("installed again" in text for _, _, text, _ in cabinet.lines))
        press("l")
        assert cabinet.language == "ru"
        press("?")
        press("q")
        async with asyncio.timeout(5):
            await living
    finally:
        living.cancel()
        await asyncio.gather(living, return_exceptions=True)


async def test_started_again_it_is_the_same_phone_and_shows_what_there_was(running: Running, tmp_path: Path):
    names = []
    for _ in range(2):
        hand = Hand(running, tmp_path / "phone")
        living = asyncio.create_task(hand.handset.run())
        await hand.until(lambda cabinet: cabinet.state == "online" and cabinet.lines)
        names.append(hand.handset.cabinet.device)
        await hand.until(lambda cabinet: any("snapshot" in text for _, _, text, _ in cabinet.lines))
        hand.handset.press("q")
        await living
    assert names[0] == names[1]


async def test_without_a_terminal_its_lines_are_printed(running: Running, tmp_path: Path, monkeypatch):
    paper, stop = io.StringIO(), asyncio.Event()
    hand = Hand(running, tmp_path / "phone")
    with (tmp_path / "no-keys").open("wb"), (tmp_path / "no-keys").open("rb") as keys:
        monkeypatch.setattr("sys.stdin", keys)
        showing = asyncio.create_task(show(hand.handset, Console(file=paper, width=100), stop))
        await hand.until(lambda cabinet: cabinet.state == "online")
        await asyncio.sleep(0.6)
        stop.set()
        async with asyncio.timeout(5):
            await showing
    assert "online again" in paper.getvalue()
