"""A phone under load keeps the contract, and its journal says so."""

from collections.abc import Mapping
from typing import Any

import orjson
import pytest

from client_sim.framing import Reader
from client_sim.ledger import reconcile
from gateway.protocol.codec import by_subprotocol
from gateway.protocol.frames import CLOSE, PING, PONG, TEXT, Parser, frame
from loadtests.device import Device, Ended, Facts
from loadtests.posting import Maker, rfc3339

JSON = by_subprotocol["vestnik.v1.json"]
FEED, EPOCH, NOW = "account:a", "e1", 1_700_000_000.0
MAKER = Maker("g", "r")
EVENTS = [{**MAKER.event("gov.code.sent", NOW, "a"), "recordedtime": rfc3339(NOW + 0.1)} for _ in range(9)]


class Bench:
    def __init__(self, snapshot: int = 0, slow: bool = False):
        self.lines: list[Mapping[str, Any]] = []
        self.rows: list[tuple[str, float, int]] = []
        self.head = snapshot
        self.device = Device(
            "a",
            [],
            lambda line: self.lines.append({"at": NOW, **line}),
            lambda *row: self.rows.append(row),
            lambda: {"positions": {FEED: {"epoch": EPOCH, "offset": self.head}}},
            Facts(),
            slow,
        )

    def say(self, *messages: dict[str, Any] | bytes, now: float = NOW + 0.3) -> list[dict[str, Any]]:
        data = b"".join(m if isinstance(m, bytes) else frame(TEXT, orjson.dumps(m)) for m in messages)
        reader = Reader()
        reader.opened = True
        out = self.device.frames(list(reader.frames(data)), now)
        return [orjson.loads(payload) for kind, payload in Parser(16384, False).feed(out) if kind == TEXT]

    def connect(self, start: int, new: bool = False) -> dict[str, Any]:
        [(_, hello)] = Parser(16384, False).feed(self.device.hello("token", NOW, NOW))
        feeds = [{"feed": FEED, "epoch": EPOCH, "head": start, "from": start}]
        self.say({"t": "welcome", "new": new, "window": 256, "feeds": feeds})
        return orjson.loads(hello)

    def of(self, t: str) -> list[Mapping[str, Any]]:
        return [line for line in self.lines if line["t"] == t]


def event(offset: int) -> bytes:
    return JSON.event_frame(FEED, offset, orjson.dumps(EVENTS[offset]))


def test_a_life_that_the_ledger_accepts() -> None:
    one = Bench(snapshot=2)
    assert "resume" not in one.connect(0, new=True)
    acks = one.say(event(1), event(2), event(3))
    assert acks == [{"t": "ack", "feed": FEED, "offset": 3}]
    one.say({"t": "live", "feed": FEED})
    one.device.lost(0)
    assert one.connect(3)["resume"] == {FEED: {"epoch": EPOCH, "offset": 3}}
    one.say({"t": "live", "feed": FEED}, now=NOW + 0.05)
    one.say(event(4), event(5))
    names = [{"source": e["source"], "id": e["id"], "digest": MAKER_DIGEST(e)} for e in EVENTS]
    posts = [{"t": "post", "at": NOW, "feed": FEED, "subject": None, "sequence": None, **names[n]} for n in range(1, 6)]
    answers = [
        {
            "t": "answer",
            "at": NOW,
            "status": 202,
            "feed": FEED,
            "epoch": EPOCH,
            "offset": n,
            "duplicate": False,
            **names[n],
        }
        for n in range(1, 6)
    ]
    verdict = reconcile([*posts, *answers], one.lines)
    assert verdict.ok, str(verdict)
    assert [line["how"] for line in one.of("event")] == ["behind"] * 3 + ["live"] * 2
    assert [(line["first"], line["offset"]) for line in one.of("keep")] == [(3, 3), (4, 5)]
    rows = {name for name, _, _ in one.rows}
    assert rows == {
        "hello to welcome",
        "replay to live",
        "reconnect and catch up",
        "deliver from the act",
        "deliver from the commit",
    }


def MAKER_DIGEST(event: dict[str, Any]) -> str:
    from client_sim.journal import digest

    return digest(event)


def test_latency_is_from_both_clocks() -> None:
    one = Bench()
    one.connect(0, new=True)
    one.say({"t": "live", "feed": FEED}, now=NOW)
    one.say(event(1), now=NOW + 0.3)
    assert [line["how"] for line in one.of("event")] == ["live"]
    assert (one.of("event")[0]["act"], one.of("event")[0]["commit"]) == (pytest.approx(0.3), pytest.approx(0.2))


def test_who_does_not_read_is_not_late() -> None:
    one = Bench(slow=True)
    one.connect(0, new=True)
    one.say({"t": "live", "feed": FEED}, now=NOW)
    one.say(event(1))
    assert [line["how"] for line in one.of("event")] == ["slow"]


def test_cut_off_before_its_snapshot_it_is_fresh() -> None:
    one = Bench()
    one.device.hello("token", NOW, NOW)
    one.device.sessions = 1  # welcomed, and the snapshot never came
    [(_, hello)] = Parser(16384, False).feed(one.device.hello("token", NOW, NOW))
    assert orjson.loads(hello)["fresh"] is True


def test_a_snapshot_that_never_covers_the_start_ends_the_session() -> None:
    one = Bench(snapshot=1)
    with pytest.raises(Ended, match="no snapshot"):
        one.connect(5, new=True)


def test_a_resync_loads_again() -> None:
    one = Bench(snapshot=7)
    one.connect(0)
    one.say({"t": "resync", "feed": FEED, "epoch": EPOCH, "offset": 7, "reason": "retention"})
    assert one.device.positions[FEED] == (EPOCH, 7)
    assert one.say(event(8)) == [{"t": "ack", "feed": FEED, "offset": 8}]


def test_erased_events_and_batches_count() -> None:
    one = Bench()
    one.connect(0)
    assert one.say({"t": "batch", "feed": FEED, "events": [[1, None], [2, EVENTS[2]]]})[0]["offset"] == 2
    assert [line["id"] for line in one.of("event")] == [None, EVENTS[2]["id"]]


def test_pings_are_answered_and_closes_end() -> None:
    one = Bench()
    one.connect(0)
    [(kind, payload)] = Parser(16384, False).feed(one.device.frames([(PING, b"x")], NOW))
    assert (kind, payload) == (PONG, b"x")
    with pytest.raises(Ended, match="4508 too slow") as ended:
        one.device.frames([(CLOSE, (4508).to_bytes(2, "big") + b"too slow")], NOW)
    assert ended.value.code == 4508


def test_a_refresh_is_told_when_it_is_answered() -> None:
    one = Bench()
    one.connect(0)
    [(_, asked)] = Parser(16384, False).feed(one.device.refresh("fns", NOW))
    one.say({"t": "refresh", "ref": orjson.loads(asked)["ref"], "status": "failed"}, now=NOW + 2)
    assert one.rows[-1] == ("refresh", 2.0, 0)
