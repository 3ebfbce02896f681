"""Events of agencies: what is let in, what is told to the sender, and what the store gets."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from gateway import events
from gateway.errors import Problem
from gateway.events import Parsed, parse, with_recordedtime
from gateway.store.base import Agency, Original

FNS = Agency("fns", ())

Event = dict[str, Any]


def personal(**changes: Any) -> Event:
    event = {
        "specversion": "1.0",
        "id": "e-1",
        "source": "/agencies/fns",
        "type": "gov.status.changed",
        "time": "2026-03-01T09:30:00Z",
        "account": "ivan",
        "subject": "application/2026-000123",
        "data": {"application": "2026-000123", "service": "passport", "status": "checking"},
    }
    return {name: value for name, value in (event | changes).items() if value is not ...}


def public(**changes: Any) -> Event:
    data = {"title": "Плановые работы", "text": "Сервис недоступен ночью"}
    return personal(**{"type": "gov.notice.published", "account": ..., "subject": ..., "data": data} | changes)


def one(event: Any, agency: Agency = FNS) -> Parsed | Problem:
    body = event if isinstance(event, bytes) else json.dumps(event).encode()
    (result,) = parse(body, "event", agency)
    return result


def good(event: Any, agency: Agency = FNS) -> Parsed:
    result = one(event, agency)
    assert isinstance(result, Parsed), result.document()
    return result


def refused(event: Any, agency: Agency = FNS) -> tuple[int, str, list[str]]:
    result = one(event, agency)
    assert isinstance(result, Problem)
    json.dumps(result.document()).encode()
    return result.status, result.word, sorted(error["pointer"] for error in result.errors)


# What the store gets


def test_a_personal_event() -> None:
    original = Original("fns", "k", "msg_1", 1772357400, "v1,x", b"body", 1772357401.0)
    (result,) = parse(json.dumps(personal(sequence="7")).encode(), "event", FNS, original=original)
    assert isinstance(result, Parsed)
    assert result.id == "e-1"
    draft = result.draft
    assert draft.feed == "account:ivan"
    assert draft.key == events.key_of("/agencies/fns", "e-1")
    assert (len(draft.key), len(draft.digest), len(draft.thing or b"")) == (16, 32, 16)
    assert (draft.type, draft.status, draft.time, draft.priority) == ("gov.status.changed", "checking", 1772357400.0, 1)
    assert (draft.sequence, draft.original, draft.item) == (7, original, 0)


def test_a_public_event_goes_to_the_agencys_feed() -> None:
    draft = good(public()).draft
    assert (draft.feed, draft.status, draft.priority, draft.thing, draft.sequence) == (
        "agency:fns",
        None,
        2,
        None,
        None,
    )
    assert good(public(account=None)).draft.feed == "agency:fns"  # null is absent


def test_the_bytes_keep_the_senders_order_and_nothing_is_invented() -> None:
    event = dict(reversed(personal(zone="\u00e9", data=personal()["data"] | {"note": "Ж\U0001f600"}).items()))
    written = good(json.dumps(event, indent=2).encode()).draft.event
    assert written == json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()


def test_recordedtime_is_spliced_in_as_the_last_member() -> None:
    written = good(personal()).draft.event
    recorded = json.loads(with_recordedtime(written, 1772357400.125))
    assert list(recorded)[-1] == "recordedtime"
    assert recorded == json.loads(written) | {"recordedtime": "2026-03-01T09:30:00.125Z"}


def test_equal_values_have_equal_digests() -> None:
    base = personal(number=1, data=personal()["data"] | {"amount": 1, "letter": "A"})
    text = json.dumps(base)
    same = [
        json.dumps(dict(reversed(base.items())), indent=4),
        text.replace('"amount": 1', '"amount": 1.0').replace('"number": 1', '"number": 1.0e0'),
        text.replace('"letter": "A"', r'"letter": "\u0041"'),
    ]
    digest = good(base).draft.digest
    assert [good(other.encode()).draft.digest for other in same] == [digest] * 3
    for other in (base | {"number": 2}, base | {"number": "1"}, base | {"number": True}, base | {"subject": None}):
        assert good(other).draft.digest != digest


def test_keys_and_things_tell_apart() -> None:
    def thing(agency: Agency = FNS, **changes: Any) -> bytes | None:
        return good(personal(sequence="1", source=f"/agencies/{agency.code}", **changes), agency).draft.thing

    things = [
        thing(),
        thing(account="petr"),
        thing(subject="application/2"),
        thing(subject=...),
        thing(Agency("mvd", ())),
    ]
    assert len(set(things)) == 5
    assert thing(id="other", time="2027-01-01T00:00:00Z") == things[0]
    assert events.key_of("/agencies/a", "b") != events.key_of("/agencies/ab", "")
    assert len(events.key_of("/agencies/a", "\ud800\0")) == 16  # what a receipt asks for may be anything


@pytest.mark.parametrize(
    ("text", "number"),
    [("0", 0), ("-5", -5), ("007", 7), ("9007199254740991", 2**53 - 1), ("00000000000000000042", 42)],
)
def test_sequences(text: str, number: int) -> None:
    assert good(personal(sequence=text)).draft.sequence == number


def test_the_clock_does_not_matter() -> None:
    for time in ("1970-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z"):
        good(personal(time=time))


# What the sender is told


@pytest.mark.parametrize("name", ["specversion", "id", "source", "type", "time", "account", "data"])
@pytest.mark.parametrize("absent", [..., None])
def test_required_attributes(name: str, absent: Any) -> None:
    assert refused(personal(**{name: absent})) == (422, "invalid", [f"/{name}"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("specversion", "0.3"),
        ("specversion", 1.0),
        ("id", ""),
        ("id", 5),
        ("id", "a\nb"),
        ("id", "a\x00"),
        ("source", ""),
        ("source", ["/agencies/fns"]),
        ("type", 5),
        ("type", ""),
        ("type", "gov.unknown"),
        ("time", "2026-03-01"),
        ("time", "2026-03-01T09:30:00"),
        ("time", 1772357400),
        ("account", ""),
        ("account", "a" * 65),
        ("account", "иван"),
        ("account", "a/b"),
        ("account", "ivan\n"),
        ("account", 7),
        ("subject", ""),
        ("subject", 1),
        ("subject", "a\u0085b"),
        ("subject", "a\ufdd0"),
        ("subject", "\U0010ffff"),
        ("sequence", 5),
        ("sequence", ""),
        ("sequence", "1.0"),
        ("sequence", "+1"),
        ("sequence", "٧"),
        ("sequence", " 1"),
        ("sequence", "9007199254740992"),
        ("sequence", "-9007199254740992"),
        ("sequence", "9" * 5000),
        ("expirytime", "tomorrow"),
        ("expirytime", ""),
        ("dataschema", ""),
        ("dataschema", "no-scheme"),
        ("dataschema", 1),
        ("datacontenttype", "text/xml"),
        ("datacontenttype", ""),
        ("datacontenttype", "application/jsonx"),
        ("data_base64", "AAAA"),
        ("recordedtime", "2026-03-01T09:30:00Z"),
        ("Zone", "x"),
        ("my_zone", "x"),
        ("зона", "x"),
        ("", "x"),
        ("zone", ["x"]),
        ("zone", {"a": "x"}),
        ("zone", 1.5),
        ("zone", "a\x07"),
        ("data", []),
        ("data", "text"),
        ("data", 5),
    ],
)
def test_attributes_that_are_wrong(name: str, value: Any) -> None:
    assert refused(personal(**{name: value})) == (422, "invalid", [f"/{name}"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("id", "\u00a0Ж/\U0001f600 "),
        ("account", "A-z.0_9" + "a" * 57),
        ("subject", None),
        ("expirytime", "2026-03-01T10:30:00+03:00"),
        ("dataschema", "https://example.org/schemas/1#x"),
        ("dataschema", "urn:x:y"),
        ("datacontenttype", "application/json"),
        ("datacontenttype", "Application/JSON; charset=utf-8"),
        ("datacontenttype", "application/vnd.gov+json"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("zone2", True),
        ("zone2", -5),
        ("zone2", ""),
        ("zone2", None),
    ],
)
def test_attributes_that_are_right(name: str, value: Any) -> None:
    good(personal(**{name: value}))


def test_audience_and_account_go_together() -> None:
    assert refused(public(account="ivan")) == (422, "invalid", ["/account"])
    assert refused(personal(account=...)) == (422, "invalid", ["/account"])


def test_all_faults_at_once() -> None:
    event = personal(
        specversion="2",
        id=...,
        time="yesterday",
        account=...,
        sequence=5,
        data_base64="AA==",
        recordedtime="x",
        huge=2**53,
        data={"application": 2**60, "status": "x", "a/b": [0, -(2**53)]},
    )
    assert refused(event) == (
        422,
        "invalid",
        sorted(
            f"/{name}"
            for name in (
                *("specversion", "id", "time", "account", "sequence", "data_base64", "recordedtime", "huge"),
                *("data/application", "data/application", "data/status", "data/service", "data/a~1b/1"),
            )
        ),
    )


@pytest.mark.parametrize(
    ("event", "agency", "pointer"),
    [
        (personal(source="/agencies/mvd"), FNS, "/source"),
        (personal(source="/agencies/fns/"), FNS, "/source"),
        (personal(source="/gateway"), FNS, "/source"),
        (personal(source="fns", type="gov.unknown"), FNS, "/source"),
        (personal(type="gov.erased", data={"ranges": [[1, 2]]}), FNS, "/type"),
        (personal(), Agency("fns", (), types=("gov.notice.sent",)), "/type"),
    ],
)
def test_forbidden(event: Event, agency: Agency, pointer: str) -> None:
    assert refused(event, agency) == (403, "forbidden", [pointer])


def test_an_agency_held_to_some_types_may_send_them() -> None:
    agency = Agency("fns", (), types=("gov.status.changed",))
    good(personal(), agency)
    assert refused(personal(type="gov.unknown"), agency) == (422, "invalid", ["/type"])


def test_size_is_counted_as_compact_utf8() -> None:
    room = events.MAX_EVENT_BYTES - len(good(personal(zone="")).draft.event)
    good(json.dumps(personal(zone="я" * (room // 2)), indent=8).encode())
    assert refused(personal(zone="x" * (room + 1)))[:2] == (413, "too-large")
    good(personal(zone="x" * room))


@pytest.mark.parametrize(
    ("break_", "pointer"),
    [
        (lambda text: text.replace('"data": {', '"data": {"status": "done", '), "/data"),
        (lambda text: text.replace('{"specversion"', '{"id": "e-2", "specversion"'), ""),
        (lambda text: text.replace('"checking"', "NaN"), "/data/status"),
        (lambda text: text.replace('"checking"', "-1e999"), "/data/status"),
        (lambda text: text.replace("checking", r"\udc00"), "/data/status"),
        (lambda text: text.replace('"checking"', "[" * 31 + "]" * 31), "/data/status" + "/0" * 30),
        (lambda text: text.replace('"checking"', "[" * 9000 + "]" * 9000), ""),
    ],
)
def test_malformed_items_spoil_only_themselves(break_: Callable[[str], str], pointer: str) -> None:
    text = json.dumps(personal())
    broken = break_(text)
    assert broken != text
    assert refused(broken.encode()) == (400, "malformed", [pointer])
    before, bad, after = parse(f"[{text},{broken},{text}]".encode(), "batch", FNS)
    assert isinstance(before, Parsed)
    assert isinstance(after, Parsed)
    assert isinstance(bad, Problem)
    assert (bad.status, [error["pointer"] for error in bad.errors]) == (400, [pointer])
    assert after.draft.item == 2


def test_the_deepest_that_is_let_in() -> None:
    data = json.dumps(personal()["data"])[:-1]
    deep = json.dumps(personal(data=...))[:-1] + f',"data":{data},"deep":' + "[" * 30 + "]" * 30 + "}}"
    good(deep.encode())


@pytest.mark.parametrize("body", [b"[]", b"5", b"null", b'"text"', b"true"])
def test_an_event_is_an_object(body: bytes) -> None:
    assert refused(body) == (422, "invalid", [""])


def test_batches() -> None:
    assert parse(b" [ ] ", "batch", FNS) == []
    items = [personal(id="a"), 5, personal(id="a"), personal(source="/agencies/mvd"), public(id="b")]
    results = parse(json.dumps(items).encode(), "batch", FNS)
    assert [result.status if isinstance(result, Problem) else result.id for result in results] == [
        "a",
        422,
        "a",
        403,
        "b",
    ]
    assert [result.draft.item for result in results if isinstance(result, Parsed)] == [0, 2, 4]
    first, _, repeat = results[:3]
    assert isinstance(first, Parsed)
    assert isinstance(repeat, Parsed)
    assert (first.draft.key, first.draft.digest) == (repeat.draft.key, repeat.draft.digest)


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        (b"{}", 422, "invalid"),
        (json.dumps(personal()).encode(), 422, "invalid"),
        (b"5", 422, "invalid"),
        (b"[{}", 400, "malformed"),
        (b"", 400, "malformed"),
        (b"[" + b"{}," * 1000 + b"{}]", 413, "too-large"),
        (b"[" + b"[]," * 1000 + b"[" * 2000 + b"]" * 2000 + b"]", 413, "too-large"),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, 400, "malformed"),
    ],
)
def test_faults_of_the_whole_batch(body: bytes, status: int, word: str) -> None:
    with pytest.raises(Problem) as caught:
        parse(body, "batch", FNS)
    assert (caught.value.status, caught.value.word) == (status, word)


def test_as_many_events_as_a_batch_may_have() -> None:
    assert len(parse(b"[" + b"{}," * 999 + b"{}]", "batch", FNS)) == events.MAX_BATCH_EVENTS


def test_what_is_no_json_is_a_fault_of_the_request() -> None:
    for body in (b"", b"{", b"\xef\xbb\xbf{}", b"\xff", b"<xml/>"):
        with pytest.raises(Problem) as caught:
            parse(body, "event", FNS)
        assert (caught.value.status, caught.value.word) == (400, "malformed")


# The gateway's own event


def test_the_erased_event_is_good_by_its_own_schema() -> None:
    draft = events.erased_event("ivan", [(1, 3), (9, 9)], 1772357400.5, "er-1")
    event = json.loads(draft.event)
    assert event == {
        "specversion": "1.0",
        "id": "er-1",
        "source": "/gateway",
        "type": "gov.erased",
        "time": "2026-03-01T09:30:00.500Z",
        "account": "ivan",
        "data": {"ranges": [[1, 3], [9, 9]]},
    }
    assert events.registry()["gov.erased"].faults(event["data"]) == []
    assert (draft.feed, draft.key, draft.type) == ("account:ivan", events.key_of("/gateway", "er-1"), "gov.erased")
    assert (draft.time, draft.original, draft.thing) == (1772357400.5, None, None)


def test_ids_of_section_one() -> None:
    assert events.is_account("A-z.0_9")
    assert not any(map(events.is_account, ["", "a" * 65, "a b", "a\n", "é"]))
    assert events.is_agency("fns-77")
    assert not any(map(events.is_agency, ["", "FNS", "a" * 33, "a_b", "a\n"]))
