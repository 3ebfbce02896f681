"""The fold of a feed into its current state."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.rfc3339 import parse_time
from gateway.snapshot import Snapshot
from gateway.store.base import Row

NOW = parse_time("2026-03-01T12:00:00Z")


def row(offset: int, type: str, data: dict[str, Any], agency: str = "fns", **attributes: Any) -> Row:
    event = {
        "specversion": "1.0",
        "id": f"e-{offset}",
        "source": f"/agencies/{agency}",
        "type": type,
        "time": "2026-03-01T09:00:00Z",
        "account": "ivan",
        **attributes,
        "data": data,
    }
    return Row(offset, json.dumps(event).encode(), 2, NOW - 1000 + offset)


def status(offset: int, status: str, application: str = "A-1", **attributes: Any) -> Row:
    more = attributes.pop("data", {})
    data = {"application": application, "service": "passport", "status": status} | more
    return row(offset, "gov.status.changed", data, **attributes)


def record(offset: int, change: str, key: str = "77-0042", fields: Any = None, **attributes: Any) -> Row:
    data = {"registry": "vehicle", "key": key, "change": change, "fields": fields or {}, "as_of": "2026-02-28"}
    return row(offset, "gov.record.changed", data, **attributes)


def notice(offset: int, title: str = "т", **attributes: Any) -> Row:
    return row(offset, "gov.notice.sent", {"title": title, "text": "т"} | attributes.pop("data", {}), **attributes)


def erased(offset: int, *ranges: list[int]) -> Row:
    return row(offset, "gov.erased", {"ranges": list(ranges)}, source="/gateway")


def fold(*rows: Row, seen: set[int] | None = None, now: float = NOW) -> dict[str, Any]:
    snapshot = Snapshot()
    for each in rows:
        snapshot.add(each)
    document = snapshot.document({"account:ivan": ("ep", len(rows))}, seen or set(), now)
    json.dumps(document)
    return document


def shown(document: dict[str, Any], section: str) -> list[int]:
    return [item["offset"] for item in document[section]]


def test_an_empty_feed() -> None:
    assert fold() == {
        "positions": {"account:ivan": {"epoch": "ep", "offset": 0}},
        "applications": [],
        "records": [],
        "notices": [],
        "agencies": [],
    }


def test_an_application_shows_its_latest_status_alone() -> None:
    reason = {"code": "docs", "text": "Нет скана"}
    first = status(1, "action_required", data={"reason": reason, "deadline": "2026-04-01"}, subject="application/A-1")
    last = status(2, "approved", data={"title": "Паспорт", "previous": "action_required"}, subject="application/A-1")
    assert fold(first, seen={1})["applications"] == [
        {
            "offset": 1,
            "id": "e-1",
            "type": "gov.status.changed",
            "agency": "fns",
            "subject": "application/A-1",
            "application": "A-1",
            "service": "passport",
            "status": "action_required",
            "reason": reason,
            "deadline": "2026-04-01",
            "time": "2026-03-01T09:00:00Z",
            "updated": "2026-03-01T11:43:21.000Z",
            "seen": True,
        }
    ]
    (item,) = fold(first, last, seen={1})["applications"]
    assert (item["status"], item["title"], item["offset"], item["seen"]) == ("approved", "Паспорт", 2, False)
    assert not {"reason", "deadline"} & item.keys()


def test_applications_of_two_agencies_are_two() -> None:
    assert shown(
        fold(status(1, "done"), status(2, "done", agency="mvd"), status(3, "done", "A-2")), "applications"
    ) == [1, 2, 3]


def test_a_lower_sequence_is_never_shown_over_a_higher() -> None:
    one = {"subject": "s"}
    assert shown(
        fold(status(1, "done", sequence="10", **one), status(2, "checking", sequence="9", **one)), "applications"
    ) == [1]
    assert shown(
        fold(status(1, "done", sequence="9", **one), status(2, "checking", sequence="10", **one)), "applications"
    ) == [2]
    assert shown(
        fold(status(1, "done", sequence="9", **one), status(2, "checking", sequence="9", **one)), "applications"
    ) == [2]
    assert shown(fold(status(1, "done", sequence="9", **one), status(2, "checking", **one)), "applications") == [2]
    # Sequences of other subjects say nothing about this one.
    assert shown(fold(status(1, "done", sequence="9", **one), status(2, "checking", sequence="1")), "applications") == [
        2
    ]
    assert shown(fold(record(1, "updated", sequence="2"), record(2, "removed", sequence="1")), "records") == [1]


def test_records() -> None:
    (item,) = fold(record(1, "created", fields={"a": 1}), record(2, "updated", fields={"b": 2}))["records"]
    assert (item["registry"], item["key"], item["change"]) == ("vehicle", "77-0042", "updated")
    assert (item["fields"], item["as_of"], item["updated"]) == ({"b": 2}, "2026-02-28", "2026-03-01T11:43:22.000Z")
    assert fold(record(1, "created"), record(2, "removed"))["records"] == []
    assert shown(fold(record(1, "created"), record(2, "removed"), record(3, "created")), "records") == [3]
    assert shown(fold(record(1, "created"), record(2, "created", "other")), "records") == [1, 2]


def test_notices_stand_each_for_itself() -> None:
    document = fold(notice(1, "a", subject="s"), notice(2, "b", subject="s", data={"url": "https://x.org"}), seen={2})
    assert [(item["title"], item["text"], item["seen"]) for item in document["notices"]] == [
        ("a", "т", False),
        ("b", "т", True),
    ]
    assert [item.get("url") for item in document["notices"]] == [None, "https://x.org"]


@pytest.mark.parametrize(
    ("attributes", "kept"),
    [
        ({"expirytime": "2026-03-01T12:00:00Z"}, False),
        ({"expirytime": "2026-03-01T12:00:01Z"}, True),
        ({"expirytime": None}, True),
        ({"data": {"until": "2026-03-01T14:59:59+03:00"}}, False),
        ({"data": {"until": "2026-03-01T15:00:01+03:00"}}, True),
        ({"data": {"until": "2026-02-28"}}, False),
        ({"data": {"until": "2026-03-01"}}, True),  # the day is not over
        ({"data": {"until": "when it is done"}}, True),
        ({"data": {"until": 5}}, True),
        ({"data": {"until": "2026-04-01"}, "expirytime": "2026-02-01T00:00:00Z"}, False),
    ],
)
def test_notices_expire(attributes: dict[str, Any], kept: bool) -> None:
    assert bool(fold(notice(1, **attributes))["notices"]) == kept


def test_other_types_are_notices_and_the_latest_of_a_subject_shows() -> None:
    fine = {"number": "188", "status": "issued", "amount": 50000}
    document = fold(
        row(1, "gov.fine.changed", fine, subject="fine/188"),
        row(2, "gov.fine.changed", fine | {"status": "paid"}, subject="fine/188"),
        row(3, "gov.fine.changed", fine | {"number": "189"}, subject="fine/189"),
        row(4, "gov.payout.changed", {"kind": "pension", "status": "paid", "amount": 1}, subject="fine/188"),
        row(5, "gov.fine.changed", fine),
        row(6, "gov.gone.type", {"a": 1}),
    )
    assert shown(document, "notices") == [2, 3, 4, 5, 6]
    first = document["notices"][0]
    assert (first["title"], first["type"], first["subject"]) == ("Штраф", "gov.fine.changed", "fine/188")
    assert first["data"] == fine | {"status": "paid"}
    assert document["notices"][4]["title"] == "gov.gone.type"


def test_agencies_with_their_last_update() -> None:
    document = fold(notice(1), status(2, "done", agency="mvd"), notice(3), erased(4, [9, 9]))
    assert document["agencies"] == [
        {"code": "fns", "updated": "2026-03-01T11:43:23.000Z", "next": None},
        {"code": "mvd", "updated": "2026-03-01T11:43:22.000Z", "next": None},
    ]


def test_what_was_erased_was_never_sent() -> None:
    rows = [status(1, "checking"), status(2, "approved"), record(3, "created"), notice(4, agency="mvd"), notice(5)]
    gone = [rows[0], Row(2, None, 1, NOW), Row(3, None, 1, NOW), Row(4, None, 1, NOW), rows[4], erased(6, [2, 4])]
    expected = fold(*gone)
    assert (shown(expected, "applications"), shown(expected, "records"), shown(expected, "notices")) == ([1], [], [5])
    assert [agency["code"] for agency in expected["agencies"]] == ["fns"]
    # The same when the pages were read while it happened.
    assert fold(*rows, erased(6, [2, 4])) == expected
    assert fold(*rows[:3], *gone[3:]) == expected


events = st.one_of(
    st.builds(lambda s, a: lambda n: status(n, s, a), st.sampled_from(["checking", "done"]), st.sampled_from("AB")),
    st.builds(
        lambda c, k, s: lambda n: record(n, c, k, subject=k, sequence=str(s)),
        st.sampled_from(["created", "updated", "removed"]),
        st.sampled_from("AB"),
        st.integers(0, 3),
    ),
    st.just(lambda n: notice(n)),
)


@settings(deadline=None)
@given(st.lists(events, max_size=12), st.sets(st.integers(1, 12)), st.integers(0, 12))
def test_the_time_of_reading_does_not_matter(made: list[Any], gone: set[int], read_before: int) -> None:
    rows = [make(offset) for offset, make in enumerate(made, 1)]
    after = [Row(each.offset, None, 2, NOW) if each.offset in gone else each for each in rows]
    last = erased(len(rows) + 1, *([offset, offset] for offset in sorted(gone)))
    assert fold(*rows[:read_before], *after[read_before:], last) == fold(*after, last)
