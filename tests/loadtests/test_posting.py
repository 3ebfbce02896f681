"""What is due is posted, no more and no less, with signatures that the gateway's own verification takes."""

import base64

import orjson
import pytest

from client_sim.agencies import sign
from client_sim.journal import digest as slow_digest
from loadtests.device import digest
from loadtests.posting import Maker, Schedule, body, rfc3339, signed
from loadtests.scenario import PERSONAL, PUBLIC, Curve, Posts

WHSEC = "whsec_" + base64.b64encode(b"k" * 32).decode()
WHSK = "whsk_" + base64.b64encode(b"s" * 32).decode()


@pytest.mark.parametrize("agencies", [1, 2, 3, 7])
def test_agencies_share_a_stream_without_rest(agencies: int) -> None:
    posts = Posts("gov.code.sent", Curve([(1, 0), (2, 10), (5, 10)]))
    schedules = [Schedule(posts, number, agencies) for number in range(agencies)]
    for now in [*range(0, 501, 7), 505]:
        due = sum(schedule.due(now / 100) for schedule in schedules)
        assert abs(due - posts.rate.area(now / 100)) < 1 + 1e-9
    assert due == 35


def test_what_is_due_has_its_own_time() -> None:
    schedule = Schedule(Posts("gov.code.sent", Curve([(0, 10)]), batch=100), 0, 1)
    assert schedule.take(0.1) == [], "it is gathered first"
    taken = schedule.take(1.0)  # the agency was busy meanwhile
    assert taken == [pytest.approx((number + 1) / 10) for number in range(10)]
    assert schedule.take(1.0) == []


def test_the_last_batch_is_not_kept_back() -> None:
    schedule = Schedule(Posts("gov.code.sent", Curve([(0, 10)]), batch=100), 0, 1)
    assert schedule.take(1.0, 1.02) == [pytest.approx((number + 1) / 10) for number in range(10)]
    late = Schedule(Posts("gov.code.sent", Curve([(0, 1), (1, 1)]), batch=100), 0, 1)
    assert late.take(1.0, 1.0) == []
    assert late.take(1.1, 1.0) == [pytest.approx(1.0)]


def test_no_more_than_a_batch() -> None:
    schedule = Schedule(Posts("gov.code.sent", Curve([(0, 10)]), batch=4), 0, 1)
    assert [len(schedule.take(1.05)) for _ in range(4)] == [4, 4, 2, 0]


@pytest.mark.parametrize("kind", [*PERSONAL, *PUBLIC])
def test_digests_are_those_of_the_journal(kind: str) -> None:
    event = Maker("a", "r").event(kind, 1.7e9, "anna" if kind in PERSONAL else None)
    assert digest({**event, "recordedtime": rfc3339(1.8e9)}) == slow_digest(event)


@pytest.mark.parametrize("secret", [WHSEC, WHSK])
def test_signatures_are_those_of_the_simulator(secret: str) -> None:
    _, raw = body([{"id": "1"}, {"id": "2"}])
    assert orjson.loads(raw) == [{"id": "1"}, {"id": "2"}]
    headers = signed(secret, "msg_1", 1_700_000_000, raw)
    assert headers["webhook-signature"] == sign(secret, "msg_1", 1_700_000_000, raw)


def test_ids_are_of_this_run() -> None:
    one, other = Maker("a", "r1"), Maker("a", "r2")
    ids = {maker.event("gov.code.sent", 0.0, "x")["id"] for maker in (one, one, other, other)}
    assert len(ids) == 4
