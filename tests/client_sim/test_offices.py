"""Agencies that keep at it: in order, each event until it is answered, every try noted."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from client_sim.agencies import BY_CODE
from client_sim.arrivals import PATTERNS
from client_sim.measure import Tally
from client_sim.offices import Offices, WrongFile, read_events

SECRETS = {False: "whsec_" + "a" * 43 + "=", True: "whsk_" + "b" * 43 + "="}  # by `ed25519`


class Door:
    """An intake: numbers what comes, or answers what a test says."""

    def __init__(self) -> None:
        self.feeds: dict[str, list[str]] = {}
        self.posts: list[list[dict[str, Any]]] = []
        self.answers: list[httpx.Response | Exception] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        events = body if isinstance(body, list) else [body]
        self.posts.append(events)
        if self.answers:
            answer = self.answers.pop(0)
            if isinstance(answer, Exception):
                self._take(events)
                raise answer
            return answer
        return httpx.Response(202, json={"results": self._take(events)})

    def _take(self, events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        results = []
        for event in events:
            feed = (
                f"account:{event['account']}"
                if "account" in event
                else event["source"].replace("/agencies/", "agency:")
            )
            log = self.feeds.setdefault(feed, [])
            duplicate = event["id"] in log
            if not duplicate:
                log.append(event["id"])
            offset = log.index(event["id"]) + 1
            result = {"status": 202, "id": event["id"], "feed": feed, "epoch": "e", "offset": offset}
            results.append({**result, "duplicate": duplicate})
        return results


@pytest.fixture
def door() -> Door:
    return Door()


@pytest.fixture
async def http(door: Door) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.MockTransport(door)) as client:
        yield client


def offices(http: httpx.AsyncClient, *codes: str, seed: int = 1) -> tuple[Offices, list[dict[str, Any]]]:
    notes: list[dict[str, Any]] = []
    secrets = {code: SECRETS[BY_CODE[code].ed25519] for code in codes}
    return Offices("http://gateway", secrets, ["anna", "boris"], http, notes.append, Tally(), seed), notes


async def test_everything_is_answered_and_noted(http, door):
    one, notes = offices(http, "fns", "sfr", "mchs")
    await one.run(PATTERNS["steady"], 200, 0.5)
    assert await one.finish(5)
    stored = sum(len(log) for log in door.feeds.values())
    assert 50 < stored < 160
    assert one.tally.counts["published"] == stored
    assert one.heads == {feed: len(log) for feed, log in door.feeds.items()}
    posts, answers = ([note for note in notes if note["t"] == t] for t in ("post", "answer"))
    assert len(posts) == len(answers) == stored + one.tally.counts["duplicates"]
    assert all(note["status"] == 202 for note in answers)


async def test_what_has_no_answer_is_sent_again_as_it_was(http, door):
    one, notes = offices(http, "fns")
    door.answers = [
        httpx.ReadTimeout("lost"),
        httpx.Response(503, headers={"retry-after": "0"}),
        httpx.Response(429, headers={"retry-after": "0"}),
    ]
    await one.run(PATTERNS["steady"], 30, 0.3)
    assert await one.finish(10)
    assert door.posts[0] == door.posts[1] == door.posts[2] == door.posts[3]
    statuses = [note["status"] for note in notes if note["t"] == "answer"]
    assert list(dict.fromkeys(statuses)) == [503, 429, 202]
    assert one.tally.counts["unanswered"] == 3
    assert one.tally.counts["duplicates"] >= len(door.posts[0])
    ids = [note["id"] for note in notes if note["t"] == "answer" and note["status"] == 202]
    assert set(ids) == {id for log in door.feeds.values() for id in log}


async def test_one_post_is_on_its_way_at_a_time(http, door):
    """So that what an agency says of one thing arrives in the order in which it happened."""
    one, _ = offices(http, "gibdd")
    await one.run(PATTERNS["steady"], 300, 0.5)
    await one.finish(5)
    first = {event["id"]: event for events in reversed(door.posts) for event in reversed(events)}
    things: dict[str, list[int]] = {}
    for event in reversed(first.values()):
        if "subject" in event:
            things.setdefault(event["subject"], []).append(int(event["sequence"]))
    assert things
    for sequences in things.values():
        assert sequences == sorted(sequences)


async def test_an_agency_without_network_sends_everything_afterwards(http, door):
    one, _ = offices(http, "sfr")
    one.close("sfr", True)
    await one.run(PATTERNS["steady"], 100, 0.3)
    assert door.posts == []
    waiting = one.waiting
    assert waiting > 5
    assert not await one.finish(0.1)
    one.close("sfr", False)
    assert await one.finish(5)
    assert sum(len(log) for log in door.feeds.values()) == waiting


async def test_a_wave_reaches_every_account(http, door):
    one, _ = offices(http, "sfr", "fns")
    await one.run(PATTERNS["monthly"], 100, 0.6)
    await one.finish(5)
    await one.run(PATTERNS["steady"], 50, 0.2)  # what the wave began goes on
    await one.run(PATTERNS["monthly"], 100, 0.3)
    await one.finish(5)
    payouts = [event for events in door.posts for event in events if event["type"] == "gov.payout.changed"]
    assert len(payouts) > 40
    assert {event["account"] for event in payouts} == {"anna", "boris"}


async def test_the_same_seed_sends_the_same(http, door):
    made = []
    for _ in range(2):
        door.posts.clear()
        one, _ = offices(http, "mvd", seed=5)
        one.close("mvd", True)
        await one.run(PATTERNS["steady"], 100, 0.2)
        one.close("mvd", False)
        await one.finish(5)
        made.append([event["id"] for event in door.posts[0]])
    assert made[0] == made[1]


async def test_events_of_a_file_are_sent_as_they_are(http, door, tmp_path: Path):
    file = tmp_path / "events.jsonl"
    whole = {"specversion": "1.0", "id": "1", "source": "/agencies/fns", "type": "t", "time": "now", "data": {"a": 1}}
    file.write_text(json.dumps(whole) + '\n\n{"type":"gov.notice.sent","account":"anna","data":{}}\n')
    one, _ = offices(http, "mvd", "fns")
    await one.send(read_events(file, ["mvd", "fns"], 1_780_000_000, Random(1)), 0)
    sent = [event for events in door.posts for event in events]
    assert whole in sent
    [other] = [event for event in sent if event["id"] != "1"]
    assert (other["source"], other["account"], other["specversion"]) == ("/agencies/mvd", "anna", "1.0")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "Line 1 of .* is no JSON"),
        ('{"type":"t","data":{}}\n[]', "Line 2 of .* must be an object with `type` and `data`"),
        ('{"type":"t"}', "must be an object"),
        ('{"type":"t","data":{},"source":"/agencies/x"}', "secrets for mvd"),
    ],
)
def test_a_wrong_line_is_one_sentence(tmp_path: Path, text, words):
    file = tmp_path / "events.jsonl"
    file.write_text(text)
    with pytest.raises(WrongFile, match=words):
        list(read_events(file, ["mvd"], 0, Random(1)))
    with pytest.raises(WrongFile, match="cannot be read"):
        list(read_events(tmp_path / "none", ["mvd"], 0, Random(1)))


async def test_cancelling_leaves_what_was_not_answered(http, door):
    one, notes = offices(http, "fns")
    running = asyncio.create_task(one.run(PATTERNS["steady"], 200, 60))
    await asyncio.sleep(0.2)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert await one.finish(5)
    assert {note["id"] for note in notes} == {id for log in door.feeds.values() for id in log}
