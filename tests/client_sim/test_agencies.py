"""The sample agencies: what they make is legal, what they sign is signed, what they send is sent until answered."""

import json
import random
from collections.abc import Callable
from itertools import pairwise

import httpx
import pytest

from client_sim.agencies import AGENCIES, APPLICATION, BY_CODE, LABELS, Desk, Publisher, Unsent, sign
from gateway import events
from gateway.store.base import Agency as Known
from gateway.types import registry
from gateway.verify import new_secret, verify

NOW = 1_780_000_000.0


def desk(code: str, seed: int = 1, accounts: tuple[str, ...] = ("anna", "boris")) -> Desk:
    return Desk(BY_CODE[code], accounts, random.Random(seed))


@pytest.mark.parametrize("agency", AGENCIES, ids=lambda agency: agency.code)
def test_the_gateway_takes_every_event(agency):
    made = [desk(agency.code).next(NOW + n) for n in range(200)]
    parsed = events.parse(json.dumps(made).encode(), "batch", Known(agency.code, ()))
    assert [item for item in parsed if not isinstance(item, events.Parsed)] == []


def test_every_type_for_agencies_but_codes_and_news_is_sent():
    made = {desk(agency.code, seed).next(NOW)["type"] for agency in AGENCIES for seed in range(50)}
    open_to_agencies = {name for name, kind in registry().items() if kind.senders == "agencies"}
    assert open_to_agencies - made == {"gov.code.sent", "gov.news.published"}


def test_statuses_move_along_a_legal_path_and_sequences_rise():
    one = desk("mvd", accounts=("anna",))
    made = [one.next(NOW) for _ in range(500)]
    moves = [event for event in made if event["type"] == "gov.status.changed"]
    by_application: dict[str, list[str]] = {}
    for event in moves:
        path = by_application.setdefault(event["subject"], [])
        assert event["data"].get("previous") == (path[-1] if path else None)
        assert event["data"]["status"] in APPLICATION[path[-1] if path else None]
        path.append(event["data"]["status"])
    assert {status for path in by_application.values() for status in path} == set(LABELS)
    sequences = [int(event["sequence"]) for event in made if "sequence" in event]
    assert all(low < high for low, high in pairwise(sequences))


def test_the_same_seed_makes_the_same_events():
    one, other, third = desk("fns", 7), desk("fns", 7), desk("fns", 8)
    made = [one.next(NOW + n) for n in range(50)]
    assert made == [other.next(NOW + n) for n in range(50)]
    assert made[0]["id"] != third.next(NOW)["id"]


def test_an_example_of_standard_webhooks():
    """The one that the specification's own libraries test against."""
    body = b'{"test": 2432232314}'
    signature = sign("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("kind", ["hmac", "ed25519"])
def test_the_gateway_verifies_what_they_sign(kind):
    secret, key = new_secret(kind, NOW)
    signature = sign(secret, "msg_1", int(NOW), b"body")
    headers = [
        (b"webhook-id", b"msg_1"),
        (b"webhook-timestamp", b"%d" % NOW),
        (b"webhook-signature", signature.encode()),
    ]
    assert verify(headers, b"body", [key], NOW).signature == signature


def test_a_word_that_is_no_secret_is_refused():
    with pytest.raises(ValueError, match="whsec_"):
        sign("whpk_AAAA", "msg_1", 1, b"")


def publisher(answer: Callable[[httpx.Request], httpx.Response]) -> Publisher:
    secret, _ = new_secret("hmac", NOW)
    http = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    return Publisher("http://gateway", "gibdd", secret, http, random.Random(1), tries=4, pause_s=0.001)


async def test_what_was_not_answered_is_sent_again_with_the_same_ids():
    seen = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append((request.headers["webhook-id"], request.content))
        match len(seen):
            case 1:
                raise httpx.ReadTimeout("lost")
            case 2:
                return httpx.Response(503, headers={"retry-after": "0"})
            case _:
                return httpx.Response(202, json={"results": [{"status": 202, "offset": 1, "duplicate": True}]})

    event = desk("gibdd").next(NOW)
    assert await publisher(answer).send([event]) == [{"status": 202, "offset": 1, "duplicate": True}]
    assert len(seen) == 3
    assert len(set(seen)) == 1
    assert json.loads(seen[0][1]) == event


async def test_a_batch_is_one_request_with_a_result_for_each():
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.headers["content-type"] == "application/cloudevents-batch+json"
        results = [{"status": 202, "offset": n + 1} for n, _ in enumerate(json.loads(request.content))]
        return httpx.Response(207, json={"results": results})

    made = [desk("gibdd").next(NOW + n) for n in range(3)]
    assert [result["offset"] for result in await publisher(answer).send(made)] == [1, 2, 3]


async def test_what_was_refused_is_not_sent_again():
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(401, text="unsigned")

    with pytest.raises(Unsent) as caught:
        await publisher(answer).send([desk("gibdd").next(NOW)])
    assert caught.value.status == 401


async def test_it_gives_up_and_says_that_the_outcome_is_unknown():
    with pytest.raises(Unsent, match="outcome is unknown"):
        await publisher(lambda request: httpx.Response(503)).send([desk("gibdd").next(NOW)])
