"""The registered types: those that ship, and what stops the start."""

import json
from pathlib import Path
from typing import Any

import pytest

import gateway.types
from gateway.errors import ConfigError
from gateway.types import PRIORITIES, STATUSES, load, registry

FOLDER = Path(gateway.types.__file__).parent

GOOD: dict[str, dict[str, Any]] = {
    "gov.status.changed": {"application": "2026-000123", "service": "passport", "status": "checking"},
    "gov.record.changed": {
        "registry": "vehicle",
        "key": "77-0042",
        "change": "updated",
        "fields": {},
        "as_of": "2026-03-01",
    },
    "gov.notice.sent": {"title": "т", "text": "т"},
    "gov.notice.published": {"title": "т", "text": "т", "until": "2026-03-01T00:00:00Z"},
    "gov.erased": {"ranges": [[1, 3], [7, 7]]},
    "gov.court.decided": {"court": "к", "case": "2-1/2026", "title": "т", "text": "т", "decided": "2026-03-01"},
    "gov.emergency.published": {"title": "т", "text": "т", "regions": ["77"]},
    "gov.code.sent": {"code": "123456", "purpose": "вход", "until": "2026-03-01T00:05:00Z"},
    "gov.fine.changed": {"number": "188101", "status": "issued", "amount": 50000, "deadline": "2026-05-01"},
    "gov.payout.changed": {"kind": "pension", "status": "scheduled", "amount": 2300000, "date": "2026-03-10"},
    "gov.news.published": {"title": "т", "text": "т", "url": "https://example.org/новости"},
    "gov.vestnik.figures": {
        "node": "1f2e3d4c",
        "version": "1.0",
        "started": "2026-03-01T00:00:00Z",
        "seconds": 5.0,
        **dict.fromkeys(("sessions", "opening", "feeds", "stalled", "behind", "opened", "hellos", "accepted"), 1),
        **dict.fromkeys(("duplicates", "replayed", "acks", "sweeps", "sweep_behind", "relayed"), 1),
        **dict.fromkeys(("memory", "open_files", "max_open_files"), 1),
        "draining": False,
        "closed": {"1006": 1},
        "handshake_rejects": {"origin": 1},
        "hello": [[0.005, 1], [None, 2]],
        "rejected": {"unsigned": 1},
        "delivered": {"urgent": 1, "bulk": 2},
        "resyncs": {"retention": 1},
        "to_socket": {"urgent": [[0.001, 3]]},
        "to_ack": {},
        "append": [],
        "loop_lag": [],
        "store": {"ready": True, "failures": 0, "disk_free": None, "disk_size": 1 << 40},
        "bus": {"healthy": True, "failures": 0, "gaps": 0, "holes": 0},
        "cpu": 0.5,
        "slow": [
            {"session": "1f-1", "who": "a1", "device_agent": None, "seconds": 3.5, "behind": 9, "why": "window"},
        ],
        "agencies": {"fns": {"accepted": 1, "rejected": {"invalid": 1}, "last": None, "delay": [[0.5, 1]]}},
        "leases": [{"name": "relay", "owner": "5e6f", "left": 4.5}],
    },
    "gov.vestnik.rejected": {
        "node": "1f2e3d4c",
        "agency": "fns",
        "reason": "invalid",
        "status": 422,
        "id": "e-1",
        "type": "gov.notice.sent",
        "detail": "see `errors`",
        "errors": [{"pointer": "/data/text", "detail": "is required"}],
        "bytes": 210,
        "omitted": 0,
    },
    "gov.vestnik.alert": {
        "rule": "latency",
        "subject": "urgent",
        "state": "firing",
        "severity": "critical",
        "since": "2026-03-01T00:00:00Z",
        "value": 2.5,
        "bound": 1.0,
        "unit": "s",
        "title": {"ru": "т", "en": "t"},
        "text": {"ru": "т", "en": "t"},
    },
    "gov.vestnik.audited": {
        "operator": "op",
        "action": "event",
        "account": "ivan",
        "offset": 1,
        "client": "127.0.0.1",
    },
}


def pointers(name: str, data: object) -> list[str]:
    return sorted(error["pointer"] for error in registry()[name].faults(data))


def test_each_type_has_an_example_and_takes_it() -> None:
    assert registry().keys() == GOOD.keys()
    for name, data in GOOD.items():
        assert registry()[name].faults(data) == []
        assert registry()[name].faults(data | {"more": [1, {"of": "it"}]}) == []


@pytest.mark.parametrize(
    ("name", "member"), [(name, member) for name in GOOD for member in registry()[name].schema["required"]]
)
def test_each_required_member_is_missed(name: str, member: str) -> None:
    data = {key: value for key, value in GOOD[name].items() if key != member}
    assert registry()[name].faults(data) == [{"pointer": f"/data/{member}", "detail": "is required"}]


@pytest.mark.parametrize(
    ("name", "member"),
    [
        (name, member)
        for name in GOOD
        for member, schema in registry()[name].schema["properties"].items()
        if "null" not in schema.get("type", ())
    ],
)
def test_each_member_has_a_type(name: str, member: str) -> None:
    assert pointers(name, GOOD[name] | {member: None}) == [f"/data/{member}"]


def test_the_contract_table() -> None:
    table = {name: (kind.audience, PRIORITIES[kind.priority], kind.senders) for name, kind in registry().items()}
    assert table == {
        "gov.status.changed": ("personal", "high", "agencies"),
        "gov.record.changed": ("personal", "normal", "agencies"),
        "gov.notice.sent": ("personal", "normal", "agencies"),
        "gov.notice.published": ("public", "normal", "agencies"),
        "gov.erased": ("personal", "high", "gateway"),
        "gov.court.decided": ("personal", "urgent", "agencies"),
        "gov.emergency.published": ("public", "urgent", "agencies"),
        "gov.code.sent": ("personal", "urgent", "agencies"),
        "gov.fine.changed": ("personal", "high", "agencies"),
        "gov.payout.changed": ("personal", "normal", "agencies"),
        "gov.news.published": ("public", "bulk", "agencies"),
        "gov.vestnik.figures": ("ops", "bulk", "gateway"),
        "gov.vestnik.rejected": ("ops", "normal", "gateway"),
        "gov.vestnik.alert": ("ops", "high", "gateway"),
        "gov.vestnik.audited": ("ops", "normal", "gateway"),
    }


def test_statuses_are_those_of_the_schema() -> None:
    properties = registry()["gov.status.changed"].schema["properties"]
    assert properties["status"]["enum"] == properties["previous"]["enum"] == list(STATUSES)
    assert STATUSES["action_required"] == "Требуется действие"


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"status": "unknown"}, "/data/status"),
        ({"previous": "Одобрено"}, "/data/previous"),
        ({"reason": {"code": "x"}}, "/data/reason/text"),
        ({"reason": {"code": 1, "text": "x"}}, "/data/reason/code"),
        ({"deadline": "2026-02-30"}, "/data/deadline"),
        ({"deadline": "2026-03-01T25:00:00Z"}, "/data/deadline"),
        ({"deadline": "завтра"}, "/data/deadline"),
        ({"application": ""}, "/data/application"),
    ],
)
def test_status_changes_that_are_wrong(change: dict[str, Any], pointer: str) -> None:
    assert pointers("gov.status.changed", GOOD["gov.status.changed"] | change) == [pointer]


@pytest.mark.parametrize("deadline", ["2026-03-01", "2026-03-01T10:00:00+03:00", "2016-12-31T23:59:60Z"])
def test_deadlines_are_dates_or_moments(deadline: str) -> None:
    assert pointers("gov.status.changed", GOOD["gov.status.changed"] | {"deadline": deadline}) == []


@pytest.mark.parametrize(
    ("url", "good"),
    [
        ("https://example.org", True),
        ("http://пример.рф/путь?a=1#b", True),
        ("https://", False),
        ("https:///x", False),
        ("javascript:alert(1)", False),
        ("ftp://example.org", False),
        ("/relative", False),
        ("https://example.org/a b", False),
        ("https://example.org\n", False),
    ],
)
def test_urls(url: str, good: bool) -> None:
    assert (pointers("gov.notice.sent", GOOD["gov.notice.sent"] | {"url": url}) == []) == good


def test_details_say_what_is_wanted_and_never_repeat_what_was_sent() -> None:
    secret = "secret-4071"
    data = {"application": [secret], "service": {"s": secret}, "status": secret, "deadline": secret, "reason": secret}
    details = {error["pointer"]: error["detail"] for error in registry()["gov.status.changed"].faults(data)}
    assert details["/data/deadline"] == "must be an RFC 3339 date-time or full-date"
    assert details["/data/status"].startswith("must be one of processing, checking,")
    assert len(details) == 5
    assert secret not in json.dumps(details)


def test_faults_are_bounded() -> None:
    assert len(registry()["gov.erased"].faults({"ranges": [[0, 0]] * 5000})) == 100


def good_file() -> dict[str, Any]:
    return dict(json.loads((FOLDER / "gov.notice.sent.json").read_text()), name="gov.new.sent")


def test_a_new_type_is_a_new_file(tmp_path: Path) -> None:
    (tmp_path / "gov.new.sent.json").write_text(json.dumps(good_file()))
    types = load(tmp_path)
    assert types["gov.new.sent"].faults({"title": "a"}) == [{"pointer": "/data/text", "detail": "is required"}]


@pytest.mark.parametrize(
    "change",
    [
        {"name": "gov.other.sent"},
        {"name": "Gov"},
        {"audience": "all"},
        {"priority": 1},
        {"senders": "anyone"},
        {"titles": {"en": "only"}},
        {"data": {"type": "array"}},
        {"data": {"type": "object", "properties": {"a": {"type": "strin"}}}},
        {"data": {"type": "object", "properties": {"a": {"format": "moment"}}}},
        {"data": {"type": "object", "$ref": "http://127.0.0.1:9/schema.json"}},
        {"extra": 1},
    ],
)
def test_a_wrong_file_stops_the_start(tmp_path: Path, change: dict[str, Any]) -> None:
    (tmp_path / "gov.new.sent.json").write_text(json.dumps(good_file() | change))
    with pytest.raises(ConfigError, match=r"gov\.new\.sent\.json") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_a_file_that_is_no_type_at_all(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "gov.new.sent.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"gov\.new\.sent\.json"):
        load(tmp_path)
