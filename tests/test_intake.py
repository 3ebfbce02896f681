"""Intake in this process: every status and every sentence of the contract's section 2. Each answer is held against the
OpenAPI document by the client's transport."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from gateway import events, intake
from gateway.bus.base import Message
from gateway.store.base import CursorSave, Join, Range
from gateway.types import registry
from tests.openapi import PROBLEM, faults
from tests.running import BATCH, SINGLE, Running, event, here, notice, public, running, status
from tests.test_types import GOOD

__all__ = ["here"]

MIB = 1_048_576
Map = dict[str, Any]


def result(answer: httpx.Response) -> Map:
    """The only result of a 202."""
    assert answer.status_code == 202, answer.text
    (one,) = answer.json()["results"]
    return dict(one)


def problem(answer: httpx.Response, code: int, word: str) -> Map:
    assert answer.status_code == code, answer.text
    assert answer.headers["content-type"] == PROBLEM
    document = dict(answer.json())
    assert document["status"] == code
    assert document["type"].endswith(f"/{word}")
    return document


def pointers(document: Map) -> set[str]:
    return {error["pointer"] for error in document["errors"]}


async def stored(here: Running, feed: str = "account:ivan") -> list[str]:
    """The ids that are in a feed, in order."""
    (page,) = await here.store.read([Range(feed, 0)])
    return [orjson.loads(row.event or b"null")["id"] for row in page.rows]


# 202


async def test_a_single_event(here: Running) -> None:
    sent = status()
    assert result(await here.post(sent)) == {
        "status": 202,
        "id": sent["id"],
        "feed": "account:ivan",
        "epoch": here.store.epoch,
        "offset": 1,
        "duplicate": False,
    }
    ((offset, kept),) = (await here.history()).json()["events"]
    assert offset == 1
    assert kept == sent | {"recordedtime": kept["recordedtime"]}, "nothing is invented, one attribute is added"
    assert list(kept)[-1] == "recordedtime"


@pytest.mark.parametrize("name", [name for name, kind in registry().items() if kind.senders == "agencies"])
async def test_every_type_and_its_feed(here: Running, name: str) -> None:
    personal = registry()[name].audience == "personal"
    answer = result(await here.post(event(name, GOOD[name], "ivan" if personal else None)))
    assert answer["feed"] == ("account:ivan" if personal else "agency:fns")


async def test_a_batch_over_many_feeds_is_one_commit(here: Running) -> None:
    sent = [status(), notice(account="maria"), public(), notice(), notice(account="maria")]
    answer = await here.batch(sent)
    assert answer.status_code == 202
    found = [(item["id"], item["feed"], item["offset"]) for item in answer.json()["results"]]
    feeds = [("account:ivan", 1), ("account:maria", 1), ("agency:fns", 1), ("account:ivan", 2), ("account:maria", 2)]
    assert found == [(one["id"], *place) for one, place in zip(sent, feeds, strict=True)]
    assert here.store.commits == [5]


async def test_a_full_batch(here: Running) -> None:
    """1,000 events, read on a thread."""
    sent = [notice("т" * 100) for _ in range(events.MAX_BATCH_EVENTS)]
    assert len(json.dumps(sent)) > intake.INLINE_BYTES
    answer = await here.batch(sent)
    assert answer.status_code == 202
    results = answer.json()["results"]
    assert [item["id"] for item in results] == [one["id"] for one in sent]
    assert [item["offset"] for item in results] == list(range(1, 1001))
    assert here.store.commits == [1000]


async def test_an_empty_batch_is_nothing(here: Running) -> None:
    answer = await here.batch([])
    assert (answer.status_code, answer.json()) == (202, {"results": []})
    assert here.store.commits == []


async def test_the_original_is_kept(here: Running) -> None:
    sent = status()
    body = json.dumps(sent, indent=3).encode()
    assert (await here.send(body)).status_code == 202
    kept = await here.store.kept(events.key_of("/agencies/fns", sent["id"]))
    assert kept is not None
    assert kept.original is not None
    assert kept.original.body == body
    assert kept.original.key_id == here.gateway.gate.agencies["fns"].keys[0].id


@pytest.mark.parametrize(
    "media",
    [
        "application/cloudevents+json; charset=utf-8",
        "application/cloudevents+json;charset=UTF-8",
        'Application/CloudEvents+JSON; charset="utf-8"',
    ],
)
async def test_media_types(here: Running, media: str) -> None:
    assert (await here.send(json.dumps(status()).encode(), media)).status_code == 202


# Duplicates, conflicts, order


async def test_a_repeat_is_answered_with_the_first_offset(here: Running) -> None:
    first, second = status(), status("done")
    await here.batch([first, second])
    shuffled = dict(reversed(first.items()))
    assert result(await here.post(shuffled)) | {"epoch": ""} == {
        "status": 202,
        "id": first["id"],
        "feed": "account:ivan",
        "epoch": "",
        "offset": 1,
        "duplicate": True,
    }
    answer = await here.batch([second, status(), second])
    assert [(item["offset"], item["duplicate"]) for item in answer.json()["results"]] == [
        (2, True),
        (3, False),
        (2, True),
    ]


async def test_a_repeat_inside_a_batch(here: Running) -> None:
    one = status()
    answer = await here.batch([one, one | {"data": one["data"] | {"status": "done"}}, one])
    assert answer.status_code == 207
    assert [item["status"] for item in answer.json()["results"]] == [202, 409, 202]
    assert [item.get("duplicate") for item in answer.json()["results"]] == [False, None, True]


async def test_conflict(here: Running) -> None:
    one = status()
    await here.post(one)
    found = problem(await here.post(one | {"data": one["data"] | {"status": "done"}}), 409, "conflict")
    assert found["id"] == one["id"]
    assert await stored(here) == [one["id"]]


async def test_the_same_id_of_another_agency(here: Running) -> None:
    assert not result(await here.post(status(id="x")))["duplicate"]
    assert not result(await here.post(status(id="x", source="/agencies/mvd"), "mvd"))["duplicate"]


async def test_stale(here: Running) -> None:
    subject = "application/2026-000123"
    old = status(subject=subject, sequence="4")
    await here.post(old)
    await here.post(status(subject=subject, sequence="5"))
    late = status(subject=subject, sequence="4")
    found = problem(await here.post(late), 409, "stale")
    assert found["id"] == late["id"]
    assert "5" in found["detail"]
    assert result(await here.post(status(subject=subject, sequence="5")))["offset"] == 3, "equal is accepted"
    assert result(await here.post(old))["duplicate"], "duplicates are recognised before staleness"
    assert result(await here.post(status(subject="application/2", sequence="1")))["offset"] == 4
    assert result(await here.post(status(account="maria", subject=subject, sequence="1")))["offset"] == 1


async def test_many_identical_posts_are_one_event(here: Running) -> None:
    """Invariant 13."""
    one = status()
    body = json.dumps(one).encode()
    answers = await asyncio.gather(*(here.send(body) for _ in range(30)))
    results = [result(answer) for answer in answers]
    assert {found["offset"] for found in results} == {1}
    assert [found["duplicate"] for found in results].count(False) == 1
    assert await stored(here) == [one["id"]]


# 207


async def test_a_partly_bad_batch(here: Running) -> None:
    good = [status(), status(), status()]
    personal = status()
    del personal["account"]
    items = [
        good[0],
        status("lost"),
        status(source="/agencies/mvd"),
        good[1],
        personal,
        7,
        event("gov.erased", {"ranges": [[1, 1]]}),
        notice("x" * 66_000),
        good[2],
    ]
    answer = await here.batch(items)
    assert answer.status_code == 207
    results = answer.json()["results"]
    assert [item["status"] for item in results] == [202, 422, 403, 202, 422, 422, 403, 413, 202]
    assert [item["offset"] for item in results if item["status"] == 202] == [1, 2, 3]
    assert await stored(here) == [one["id"] for one in good], "the valid items commit in order"
    assert pointers(results[1]) == {"/data/status"}
    assert pointers(results[4]) == {"/account"}
    assert here.store.commits == [3], "together"


async def test_an_all_bad_batch_stores_nothing(here: Running) -> None:
    answer = await here.batch([status("lost"), {}, []])
    assert answer.status_code == 207
    assert [item["status"] for item in answer.json()["results"]] == [422, 422, 422]
    assert here.store.commits == []


async def test_conflict_and_staleness_in_a_batch(here: Running) -> None:
    first = status(subject="s", sequence="5")
    other = first | {"time": "2026-03-02T00:00:00Z"}
    answer = await here.batch([first, other, status(subject="s", sequence="4"), status(subject="s", sequence="6")])
    assert [item["status"] for item in answer.json()["results"]] == [202, 409, 409, 202]
    words = [item["type"].rpartition("/")[2] for item in answer.json()["results"] if item["status"] == 409]
    assert words == ["conflict", "stale"]


# 400, 413, 415, 422


NO_JSON = [b"", b"{", b"nonsense", b"\xff\xfe", b"\xef\xbb\xbf{}", b"[" * 100_000, b"{} {}", b'["a",]']
NO_GOOD_JSON = [
    b'{"id":"a","id":"a"}',
    b'{"data":{"a":[{"b":1,"b":2}]}}',
    b'{"a":NaN}',
    b'{"a":-Infinity}',
    b'{"a":1e999}',
    rb'{"a":"\ud800"}',
    b'{"a":' * 33 + b"1" + b"}" * 33,
]


@pytest.mark.parametrize(
    ("body", "media"),
    [(body, media) for body in NO_JSON for media in (SINGLE, BATCH)] + [(b, SINGLE) for b in NO_GOOD_JSON],
)
async def test_malformed(here: Running, body: bytes, media: str) -> None:
    problem(await here.send(body, media), 400, "malformed")
    assert here.store.commits == []


@pytest.mark.parametrize("item", NO_GOOD_JSON)
async def test_a_malformed_item_leaves_the_others_alone(here: Running, item: bytes) -> None:
    good = json.dumps(status()).encode()
    answer = await here.send(b"[%b,%b,%b]" % (good, item, json.dumps(status()).encode()), BATCH)
    assert [item["status"] for item in answer.json()["results"]] == [202, 400, 202]


async def test_malformed_names_the_place(here: Running) -> None:
    found = problem(await here.send(b'{"data":{"a":[0,{"b":1,"b":2}],"c":NaN}}'), 400, "malformed")
    assert pointers(found) == {"/data/a/1", "/data/c"}


async def test_too_large(here: Running) -> None:
    at_most = json.dumps(notice("т")).encode()
    assert (await here.send(at_most + b" " * (MIB - len(at_most)))).status_code == 202
    problem(await here.send(at_most + b" " * (MIB - len(at_most) + 1)), 413, "too-large")
    problem(await here.batch([notice("т") for _ in range(1001)]), 413, "too-large")
    large = notice("x" * 66_000)
    problem(await here.post(large), 413, "too-large")
    assert here.store.commits == [1]


@pytest.mark.parametrize("length", [str(MIB + 1), "9" * 30, "9" * 5000])
async def test_too_large_is_said_before_the_body_is_read(here: Running, length: str) -> None:
    async def body() -> AsyncIterator[bytes]:
        raise AssertionError("nobody reads this")
        yield b""

    headers = {"content-length": length, "content-type": SINGLE}
    request = here.client.build_request("POST", "/v1/agencies/fns/events", content=body(), headers=headers)
    problem(await here.client.send(request), 413, "too-large")


async def test_too_large_in_pieces(here: Running) -> None:
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(100):
            read += 65_536
            yield b" " * 65_536

    answer = await here.client.post("/v1/agencies/fns/events", content=body(), headers={"content-type": SINGLE})
    problem(answer, 413, "too-large")
    assert read == MIB + 65_536, "no more is read than shows it"


@pytest.mark.parametrize(
    "media", [None, "", "application/json", "text/plain", "application/cloudevents", f"{SINGLE}; charset=cp1251"]
)
async def test_media_type(here: Running, media: str | None) -> None:
    problem(await here.send(json.dumps(status()).encode(), media), 415, "media-type")


async def test_binary_mode_says_why(here: Running) -> None:
    attributes = {f"ce-{name}": str(value) for name, value in status().items() if name != "data"}
    found = problem(await here.send(b"{}", "application/json", **attributes), 415, "media-type")
    assert "headers, which the signature does not cover" in found["detail"]


WRONG: list[tuple[str, Any, str]] = [
    ("specversion", "0.3", "/specversion"),
    ("specversion", None, "/specversion"),
    ("id", "", "/id"),
    ("id", 5, "/id"),
    ("source", None, "/source"),
    ("type", "gov.unknown", "/type"),
    ("type", None, "/type"),
    ("time", "yesterday", "/time"),
    ("time", "2026-03-01", "/time"),
    ("account", None, "/account"),
    ("account", "a b", "/account"),
    ("account", "x" * 65, "/account"),
    ("subject", "", "/subject"),
    ("sequence", 5, "/sequence"),
    ("sequence", "five", "/sequence"),
    ("expirytime", "soon", "/expirytime"),
    ("dataschema", "no uri", "/dataschema"),
    ("datacontenttype", "text/xml", "/datacontenttype"),
    ("data", None, "/data"),
    ("data", [], "/data"),
    ("data_base64", "AAAA", "/data_base64"),
    ("recordedtime", "2026-03-01T00:00:00Z", "/recordedtime"),
    ("Zone", "x", "/Zone"),
    ("zone", 1.5, "/zone"),
    ("zone", {}, "/zone"),
]


@pytest.mark.parametrize(("name", "value", "pointer"), WRONG)
async def test_invalid(here: Running, name: str, value: Any, pointer: str) -> None:
    """What the gateway refuses is no event to the document either."""
    wrong = status() | {name: value}
    assert pointers(problem(await here.post(wrong), 422, "invalid")) == {pointer}
    assert faults({"$ref": "#/components/schemas/Event"}, wrong)
    assert here.store.commits == []


async def test_invalid_integers(here: Running) -> None:
    found = problem(await here.post(status(zone=2**53) | {"sequence": str(2**53)}), 422, "invalid")
    assert pointers(found) == {"/zone", "/sequence"}
    assert result(await here.post(status(zone=2**53 - 1, sequence=str(2**53 - 1))))["offset"] == 1


async def test_all_faults_at_once(here: Running) -> None:
    wrong = status("lost", time="x", sequence="y", expirytime="z")
    del wrong["account"], wrong["data"]["service"]
    found = problem(await here.post(wrong), 422, "invalid")
    assert pointers(found) == {"/time", "/sequence", "/expirytime", "/account", "/data/status", "/data/service"}


async def test_audience(here: Running) -> None:
    assert pointers(problem(await here.post(public() | {"account": "ivan"}), 422, "invalid")) == {"/account"}


async def test_a_batch_is_an_array_and_a_single_event_is_none(here: Running) -> None:
    problem(await here.send(json.dumps(status()).encode(), BATCH), 422, "invalid")
    problem(await here.send(json.dumps([status()]).encode(), SINGLE), 422, "invalid")


# 401, 403


async def test_ed25519(here: Running) -> None:
    assert result(await here.post(status(source="/agencies/mvd"), "mvd"))["feed"] == "account:ivan"


async def test_rotation(here: Running) -> None:
    """Several keys may be valid at once; a retired one signs nothing new."""
    old = here.secrets["fns"]
    await here.add_key("fns", "ed25519")
    body = json.dumps(status()).encode()
    for secret in (old, here.secrets["fns"]):
        headers = here.signed(body, secret=secret) | {"content-type": SINGLE}
        assert (await here.client.post("/v1/agencies/fns/events", content=body, headers=headers)).status_code == 202
    await here.store.retire_agency_key("fns", here.gateway.gate.agencies["fns"].keys[0].id, time.time())
    await here.gateway.control.look()
    headers = here.signed(body, secret=old) | {"content-type": SINGLE}
    answer = await here.client.post("/v1/agencies/fns/events", content=body, headers=headers)
    problem(answer, 401, "unsigned")


async def test_one_of_up_to_five_signatures(here: Running) -> None:
    body = json.dumps(status()).encode()
    headers = here.signed(body)
    good, bad = headers["webhook-signature"], "v1,AAAA"
    for signatures in ([good], [bad, good], [bad, bad, "v2,x", bad, good]):
        answer = await here.send(body, **headers | {"webhook-signature": " ".join(signatures)})
        assert answer.status_code == 202
    answer = await here.send(body, **headers | {"webhook-signature": " ".join([good, *[bad] * 5])})
    problem(answer, 401, "unsigned")


@pytest.mark.parametrize(
    "changed",
    [
        {"webhook-signature": "v1,AAAA"},
        {"webhook-signature": "nonsense"},
        {"webhook-signature": ""},
        {"webhook-id": "other"},
        {"webhook-id": ""},
        {"webhook-timestamp": "1"},
        {"webhook-timestamp": "now"},
    ],
)
async def test_unsigned(here: Running, changed: dict[str, str]) -> None:
    problem(await here.post(status(), **changed), 401, "unsigned")
    assert here.store.commits == []


@pytest.mark.parametrize("missing", ["webhook-id", "webhook-timestamp", "webhook-signature"])
async def test_a_header_is_missing(here: Running, missing: str) -> None:
    body = json.dumps(status()).encode()
    headers = {name: value for name, value in here.signed(body).items() if name != missing} | {"content-type": SINGLE}
    answer = await here.client.post("/v1/agencies/fns/events", content=body, headers=headers)
    assert missing in problem(answer, 401, "unsigned")["detail"]


async def test_a_timestamp_that_is_off(here: Running) -> None:
    body = json.dumps(status()).encode()
    for off in (-310, 310):
        headers = here.signed(body, at=time.time() + off)
        found = problem(await here.send(body, **headers), 401, "unsigned")
        assert found["time"]
    for off in (-290, 290):
        assert (await here.send(body, **here.signed(body, at=time.time() + off))).status_code == 202


async def test_an_unknown_agency(here: Running) -> None:
    here.secrets["nobody"] = here.secrets["fns"]
    problem(await here.post(status(), "nobody"), 401, "unsigned")


async def test_the_signature_comes_before_the_body(here: Running) -> None:
    problem(await here.send(b"{", **{"webhook-signature": "v1,AAAA"}), 401, "unsigned")
    problem(await here.send(b"{", "text/plain", **{"webhook-signature": "v1,AAAA"}), 401, "unsigned")


async def test_forbidden(here: Running) -> None:
    found = problem(await here.post(status(source="/agencies/mvd")), 403, "forbidden")
    assert pointers(found) == {"/source"}
    found = problem(await here.post(event("gov.erased", {"ranges": [[1, 1]]})), 403, "forbidden")
    assert pointers(found) == {"/type"}


async def test_an_agency_held_to_few_types(here: Running) -> None:
    await here.add_key("city", "hmac", types=["gov.notice.published"])
    source = "/agencies/city"
    found = problem(await here.post(notice(source=source), "city"), 403, "forbidden")
    assert pointers(found) == {"/type"}
    assert (await here.post(public(source=source), "city")).status_code == 202


# 408, 429, 503 and hanging up


async def test_a_slow_body(here: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "BODY_DEADLINE_S", 0.02)

    async def body() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    answer = await here.client.post("/v1/agencies/fns/events", content=body(), headers={"content-type": SINGLE})
    problem(answer, 408, "timeout")
    assert answer.headers["connection"] == "close"
    problem(await here.client.post("/v1/agencies/fns/receipts", content=body()), 408, "timeout")


async def test_bodies_on_their_way_are_bounded(here: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that has been coming for longest makes room."""
    monkeypatch.setattr(intake, "READING_BYTES", 1000)
    bodies = here.gateway.intake.bodies
    goes_on = asyncio.Event()

    async def body(size: int) -> AsyncIterator[bytes]:
        yield b"{" * size
        await goes_on.wait()

    def sent(size: int) -> asyncio.Task[Any]:
        headers = {"content-type": SINGLE}
        return asyncio.create_task(here.client.post("/v1/agencies/fns/events", content=body(size), headers=headers))

    slow, second = sent(600), sent(300)
    await until(lambda: bodies.bytes == 900)
    third = sent(200)
    problem(await slow, 408, "timeout")
    assert bodies.bytes == 500
    assert (await here.post(notice())).status_code == 202
    goes_on.set()
    for other in (second, third):
        problem(await other, 401, "unsigned")
    assert (bodies.bytes, bodies._sizes) == (0, {})


async def test_the_sender_hangs_up_in_the_middle(here: Running) -> None:
    """Nobody hears the answer; nothing is stored and nothing breaks."""
    messages = [
        {"type": "http.request", "body": json.dumps(status()).encode()[:50], "more_body": True},
        {"type": "http.disconnect"},
    ]
    said: list[Map] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        said.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/agencies/fns/events",
        "raw_path": b"/v1/agencies/fns/events",
        "query_string": b"",
        "headers": [(b"content-type", SINGLE.encode())],
    }
    await here.gateway.asgi(scope, receive, send)
    assert said[0]["status"] == 400
    assert here.store.commits == []
    assert here.gateway.counts.requests[400] == 1


async def test_hanging_up_during_the_commit_takes_nothing_back(here: Running) -> None:
    here.store.gate.clear()
    gone, other = status(), status()
    leaving = asyncio.create_task(here.post(gone))
    staying = asyncio.create_task(here.post(other))
    await until(lambda: here.store.commits == [2])
    leaving.cancel()
    await asyncio.wait([leaving])
    assert leaving.cancelled()
    here.store.gate.set()
    assert result(await staying)["offset"] == 2
    assert await stored(here) == [gone["id"], other["id"]]
    assert here.gateway.intake.waiting_bytes == 0


async def until(true: Any) -> None:
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0.001)


async def test_over_the_quota(tmp_path: Path) -> None:
    """For the whole request; another agency is not touched."""
    async with running(tmp_path, agency_rate=0.5, agency_burst=1000) as here:
        assert (await here.batch([notice("т") for _ in range(999)])).status_code == 202
        answer = await here.batch([notice("т"), notice("т"), notice("т")])
        problem(answer, 429, "quota")
        assert int(answer.headers["retry-after"]) >= 3  # two events at one in two seconds
        assert here.store.commits == [999]
        assert (await here.post(notice())).status_code == 202, "one is left"
        problem(await here.post(notice()), 429, "quota")
        assert (await here.post(status(source="/agencies/mvd"), "mvd")).status_code == 202


async def test_the_store_is_away(here: Running) -> None:
    sent = status()
    here.store.away = True
    answer = await here.post(sent)
    found = problem(answer, 503, "unavailable")
    assert answer.headers["retry-after"] == "3"
    assert "away" not in found["detail"]
    problem(await here.batch([sent, status("lost")]), 503, "unavailable")
    assert here.gateway.counts.append_failures == 2
    here.store.away = False
    assert not result(await here.post(sent))["duplicate"], "send it again with the same id"


async def test_what_waits_for_the_disk_is_bounded(here: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "WAITING_BYTES", 1000)
    here.store.gate.clear()
    waiting = asyncio.create_task(here.post(notice("x" * 300)))
    await until(lambda: here.store.commits)
    assert 500 < here.gateway.intake.waiting_bytes < 1000
    answer = await here.post(notice("x" * 300))
    problem(answer, 503, "unavailable")
    assert int(answer.headers["retry-after"]) > 0
    here.store.gate.set()
    assert (await waiting).status_code == 202
    assert here.gateway.intake.waiting_bytes == 0
    assert (await here.post(notice("x" * 300))).status_code == 202


# Commit and publish


async def test_posts_that_come_together_are_committed_together(tmp_path: Path) -> None:
    async with running(tmp_path, group_wait_s=0.2) as here:
        sent = [status() for _ in range(25)]
        answers = await asyncio.gather(*(here.post(one) for one in sent))
        assert here.store.commits == [25]
        assert sorted(result(answer)["offset"] for answer in answers) == list(range(1, 26))
        assert [result(answer)["id"] for answer in answers] == [one["id"] for one in sent]


async def test_202_comes_after_the_commit(here: Running) -> None:
    here.store.gate.clear()
    posting = asyncio.create_task(here.post(status()))
    await until(lambda: here.store.commits)
    done, _ = await asyncio.wait([posting], timeout=0.05)
    assert not done
    here.store.gate.set()
    assert (await posting).status_code == 202


async def test_what_is_new_is_published_once(here: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Message] = []
    monkeypatch.setattr(here.gateway.hub, "received", heard.append)
    await here.gateway.bus.subscribe(["account:ivan"])
    one, two = status(), status()
    await here.batch([one, two, one, status("lost")])
    await here.post(one)
    await here.batch([two, status()])
    await until(lambda: len(heard) >= 3)
    await asyncio.sleep(0)
    assert [message.offset for message in heard] == [1, 2, 3]
    assert {message.epoch for message in heard} == {here.store.epoch}


async def test_what_happened_is_counted(here: Running) -> None:
    one = status()
    await here.batch([one, one, status("lost")])
    await here.post(status("lost"))
    counts = here.gateway.counts
    assert counts.requests == {207: 1, 422: 1}
    assert counts.events == {"stored": 1, "duplicate": 1, "invalid": 2}


# Large bodies


async def test_large_bodies_are_read_off_the_loop(here: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """One made to hurt holds nobody: the loop turns while it is read, and another agency's passes it by."""
    loop = asyncio.get_running_loop()
    hurting = asyncio.Event()
    let_go: asyncio.Future[None] = loop.create_future()
    parse = events.parse

    def slow(body: bytes, *rest: Any, **more: Any) -> Any:
        if rest[1].code == "fns":
            loop.call_soon_threadsafe(hurting.set)
            asyncio.run_coroutine_threadsafe(_wait(let_go), loop).result()
        return parse(body, *rest, **more)

    monkeypatch.setattr(events, "parse", slow)
    padding = b" " * intake.INLINE_BYTES
    posts = [asyncio.create_task(here.send(json.dumps(status()).encode() + padding)) for _ in range(3)]
    await asyncio.wait_for(hurting.wait(), 5)
    other = json.dumps(status(source="/agencies/mvd")).encode()
    assert (await here.send(other + padding, code="mvd")).status_code == 202
    assert (await here.send(other, code="mvd")).status_code == 202
    let_go.set_result(None)
    assert [answer.status_code for answer in await asyncio.gather(*posts)] == [202] * 3


async def _wait(future: asyncio.Future[None]) -> None:
    await future


# Receipts


async def test_receipts(here: Running) -> None:
    sent = [notice(), notice(), notice(), public()]
    await here.batch(sent)
    await here.store.join([Join("ivan", "phone", ("account:ivan",), now=1.0)])
    await here.store.save([CursorSave("ivan", "phone", "account:ivan", here.store.epoch, 2, 1_772_357_400.5)])
    await here.store.seen([("account:ivan", [1], 1_772_357_460.0)])
    answer = await here.receipts({"ids": [one["id"] for one in sent] + ["unknown"]})
    assert answer.status_code == 200
    delivered = {"delivered": "2026-03-01T09:30:00.500Z"}
    assert answer.json()["results"] == [
        {"id": sent[0]["id"], "status": "seen"} | delivered | {"seen": "2026-03-01T09:31:00.000Z"},
        {"id": sent[1]["id"], "status": "delivered"} | delivered,
        {"id": sent[2]["id"], "status": "pending"},
        {"id": sent[3]["id"], "status": "unknown"},
        {"id": "unknown", "status": "unknown"},
    ]


async def test_receipts_of_another_agency_are_none(here: Running) -> None:
    one = notice()
    await here.post(one)
    answer = await here.receipts({"ids": [one["id"]]}, "mvd")
    assert answer.json()["results"] == [{"id": one["id"], "status": "unknown"}]


@pytest.mark.parametrize("count", [0, 1, 100])
async def test_up_to_100_receipts(here: Running, count: int) -> None:
    answer = await here.receipts({"ids": [f"x{n}" for n in range(count)]})
    assert len(answer.json()["results"]) == count


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({}, {"/ids"}),
        ([], {"/ids"}),
        ({"ids": "x"}, {"/ids"}),
        ({"ids": None}, {"/ids"}),
        ({"ids": ["x"] * 101}, {"/ids"}),
        ({"ids": ["", "x", 5, None]}, {"/ids/0", "/ids/2", "/ids/3"}),
        ({"ids": [], "more": 2**53}, {"/more"}),
    ],
)
async def test_invalid_receipts(here: Running, body: object, where: set[str]) -> None:
    assert pointers(problem(await here.receipts(body), 422, "invalid")) == where


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"ids":["a"],"ids":["b"]}',
        b'{"ids":[NaN]}',
        rb'{"ids":["\ud800"]}',
        b"\xff",
        b'{"ids":' + b"[" * 40,
    ],
)
async def test_malformed_receipts(here: Running, body: bytes) -> None:
    problem(await here.receipts(body), 400, "malformed")


async def test_receipts_are_signed_the_same_way(here: Running) -> None:
    body = b'{"ids":[]}'
    headers = here.signed(body, "mvd") | {"content-type": "application/json"}
    answer = await here.client.post("/v1/agencies/fns/receipts", content=body, headers=headers)
    problem(answer, 401, "unsigned")
    problem(await here.client.post("/v1/agencies/fns/receipts", content=body), 401, "unsigned")
    problem(await here.receipts(b" " * (MIB + 1)), 413, "too-large")
    here.store.away = True
    problem(await here.receipts({"ids": ["x"]}), 503, "unavailable")
