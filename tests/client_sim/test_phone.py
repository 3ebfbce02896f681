"""What the phone prints."""

import asyncio
import io
import random

import pytest
from rich.console import Console

from client_sim import client as module
from client_sim.agencies import AGENCIES, LABELS, Desk
from client_sim.client import Client, Position
from client_sim.phone import Phone, Screen, describe, latency_ms

NOW = 1_780_000_000.0


def screen() -> tuple[Screen, io.StringIO]:
    paper = io.StringIO()
    return Screen(Console(file=paper, width=120)), paper


@pytest.mark.parametrize("agency", AGENCIES, ids=lambda agency: agency.code)
def test_every_event_has_words(agency):
    desk = Desk(agency, ["anna"], random.Random(1))
    for _ in range(200):
        line = describe(desk.next(NOW))
        assert line.agency == agency.name
        assert line.label
        assert line.text


def test_statuses_read_as_the_contract_says():
    for status, label in LABELS.items():
        data = {"application": "2026-1", "service": "Паспорт", "status": status}
        assert describe({"source": "/agencies/mvd", "type": "gov.status.changed", "data": data}).label == label


def test_what_is_not_known_yet_still_reads():
    line = describe({"source": "/agencies/new-one", "type": "gov.new.thing"})
    assert (line.agency, line.label) == ("new-one", "gov.new.thing")
    assert describe(None).label == "Удалено"


def test_sums_are_in_roubles():
    data = {"number": "1", "status": "issued", "amount": 123450, "title": "Скорость"}
    event = {"source": "/agencies/gibdd", "type": "gov.fine.changed", "data": data}
    assert describe(event).text == "Скорость, 1\u00a0234,50\u00a0₽"


def test_latency_is_from_a_time_attribute():
    event = {"recordedtime": "2026-05-28T20:26:39.990Z", "time": "yesterday"}
    assert latency_ms(event, NOW) == pytest.approx(10, abs=0.01)
    assert latency_ms(event, NOW - 1) == 0  # clocks differ
    assert latency_ms(event, NOW, "time") is None
    assert latency_ms({}, NOW) is None


def test_it_prints_what_it_keeps():
    one, paper = screen()
    phone = Phone(one)
    event = Desk(AGENCIES[2], ["anna"], random.Random(3)).next(NOW)
    phone.keep("account:anna", Position("e1", 7), [(6, None), (7, event)])
    first, second = paper.getvalue().splitlines()
    assert "Удалено" in first
    assert "#6" in first
    assert "ГИБДД" in second
    assert "#7" in second


def test_it_says_what_concerns_the_person():
    one, paper = screen()
    one.told("welcome", {"account": "anna", "feeds": [{"feed": "account:anna", "from": 4}]}, NOW)
    one.told("lost", {"code": None, "reason": "connection lost", "wait": 0.51}, NOW)
    one.told("resync", {"feed": "account:anna", "reason": "retention"}, NOW)
    one.told("drain", {"after": 30}, NOW)
    one.told("error", {"code": "invalid", "detail": "no"}, NOW)
    one.told("beat", {}, NOW)
    assert [line[14:] for line in paper.getvalue().splitlines()] == [
        "connected as anna: account:anna after 4",
        "lost (no code: connection lost), again in 0.5 s",
        "account:anna: continuity is broken (retention), loading the snapshot",
        "this node goes away, moving on within 30 s",
        "error invalid: no",
    ]


async def test_what_was_shown_is_reported_in_portions_and_again_after_a_break(monkeypatch):
    monkeypatch.setattr("client_sim.phone.SEEN_EVERY_S", 0.0)
    one, _ = screen()
    phone = Phone(one)
    phone.keep("account:anna", Position("e1", 300), [(offset, None) for offset in range(1, 301)])
    sent = []

    class Line(Client):
        async def send(self, t: str, **fields: object) -> None:
            sent.append(fields["offsets"])
            if len(sent) == 1:
                raise module.NotConnected
            if len(sent) == 3:
                raise asyncio.CancelledError

    async def token() -> str:
        return ""

    with pytest.raises(asyncio.CancelledError):
        await phone.report(Line("http://127.0.0.1", device="d", token=token, keeper=phone))
    assert sent == [list(range(1, 257)), list(range(1, 257)), list(range(257, 301))]
