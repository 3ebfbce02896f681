"""What devices say is checked field by field; what the gateway says is what the AsyncAPI document says."""

from typing import Any

import pytest

from gateway.errors import Refused
from gateway.protocol import messages
from gateway.protocol.messages import (
    Ack,
    Hello,
    Message,
    Mode,
    Ping,
    Refresh,
    Seen,
    Subscribe,
    Token,
    Unsubscribe,
    parse,
    parse_ack,
    ref_of,
)
from gateway.protocol.schema import Mismatch, check, names

MAX = 2**53 - 1
GOOD: list[tuple[dict[str, Any], Message]] = [
    ({"t": "hello", "token": "a.b.c", "device": "phone-1"}, Hello("a.b.c", "phone-1")),
    (
        {
            "t": "hello",
            "token": "a",
            "device": "d" * 64,
            "resume": {"account:42": {"epoch": "e", "offset": 0}, "agency:mvd": {"epoch": "e", "offset": MAX}},
            "feeds": ["agency:mvd", "agency:fns", "agency:mvd"],
            "mode": "saver",
            "fresh": True,
            "agent": "android/1.0",
            "ref": 1,
        },
        Hello(
            "a",
            "d" * 64,
            {"account:42": ("e", 0), "agency:mvd": ("e", MAX)},
            ("agency:mvd", "agency:fns"),
            "saver",
            True,
            "android/1.0",
            1,
        ),
    ),
    ({"t": "ack", "feed": "account:42", "offset": 7}, Ack("account:42", 7)),
    ({"t": "ack", "feed": "agency:mvd", "offset": MAX, "ref": ""}, Ack("agency:mvd", MAX, "")),
    ({"t": "seen", "feed": "account:a.b_c-D", "offsets": [1]}, Seen("account:a.b_c-D", (1,))),
    ({"t": "seen", "feed": "account:1", "offsets": [1] * 256}, Seen("account:1", (1,) * 256)),
    ({"t": "subscribe", "feed": "agency:mvd"}, Subscribe("agency:mvd")),
    (
        {"t": "subscribe", "feed": "agency:mvd", "resume": {"epoch": "e", "offset": 3, "more": 1}},
        Subscribe("agency:mvd", ("e", 3)),
    ),
    ({"t": "subscribe", "feed": "region:77/a"}, Subscribe("region:77/a")),
    ({"t": "unsubscribe", "feed": "agency:mvd", "resume": "ignored", "ref": -MAX}, Unsubscribe("agency:mvd", -MAX)),
    ({"t": "mode", "mode": "full"}, Mode("full")),
    ({"t": "refresh", "source": "/agencies/mvd", "ref": "r" * 64}, Refresh("/agencies/mvd", "r" * 64)),
    ({"t": "token", "token": "x" * 8192}, Token("x" * 8192)),
    ({"t": "ping"}, Ping()),
    ({"t": "ping", "ref": 0, "unknown": {"a": []}}, Ping(0)),
]
HELLO = {"t": "hello", "token": "a", "device": "d"}
ACK = {"t": "ack", "feed": "account:42", "offset": 7}
SEEN = {"t": "seen", "feed": "account:42", "offsets": [1]}
SUBSCRIBE = {"t": "subscribe", "feed": "agency:mvd"}
WRONG: list[tuple[dict[str, Any], str, list[Any]]] = [
    (HELLO, "token", [None, "", 1, "x" * 8193]),
    (HELLO, "device", [None, "", "a b", "я", "d" * 65, "a\n", 5]),
    (HELLO, "resume", [None, [], {"nofeed": {"epoch": "e", "offset": 1}}, {"account:1": None}, {"account:1": {}}]),
    (HELLO, "resume", [{"account:1": {"epoch": "", "offset": 1}}, {"account:1": {"epoch": "e", "offset": True}}]),
    (HELLO, "resume", [{"account:1": {"epoch": "e", "offset": -1}}, {"account:1": {"epoch": "e" * 65, "offset": 1}}]),
    (HELLO, "feeds", [None, "agency:mvd", [1], ["mvd"], {}]),
    (HELLO, "mode", [None, "", "FULL", 1, []]),
    (HELLO, "fresh", [None, 1, "true"]),
    (HELLO, "agent", [None, "", "x" * 257, 1]),
    (HELLO, "ref", [None, 1.5, True, [], MAX + 1]),
    (ACK, "feed", [None, "", "account:", "account:a b", "agency:MVD", f"agency:{'a' * 33}", "x", 1, ":a", "A:b"]),
    (ACK, "offset", [None, -1, MAX + 1, True, 1.0, 1.5, "7", []]),
    (ACK, "ref", [None, {}]),
    (SEEN, "offsets", [None, [], 1, [True], [-1], ["1"], [1] * 257]),
    (SUBSCRIBE, "resume", [None, [], {"epoch": "e"}, {"offset": 1}]),
    ({"t": "mode"}, "mode", [None, "slow"]),
    ({"t": "refresh"}, "source", [None, "", "s" * 129, 1]),
    ({"t": "token"}, "token", [None, ""]),
    ({"t": "ping"}, "ref", [None, False]),
]


@pytest.mark.parametrize(("said", "meant"), GOOD)
def test_a_good_message_is_understood_and_documented(said: dict[str, Any], meant: Message) -> None:
    assert parse(said) == meant
    if said["t"] != "unsubscribe":  # its `resume` is ignored, as an unknown key is
        check("device", said)


@pytest.mark.parametrize(
    ("message", "name", "value"), [(message, name, value) for message, name, values in WRONG for value in values]
)
def test_a_wrong_field_is_refused_and_named(message: dict[str, Any], name: str, value: Any) -> None:
    said = {**message, name: value}
    with pytest.raises(Refused) as caught:
        parse(said)
    assert caught.value.code == "invalid"
    assert caught.value.detail.startswith(name)
    assert caught.value.feed == (message.get("feed") if name != "feed" else None)
    if value != 1.0 or isinstance(
        value, bool
    ):  # JSON Schema counts 1.0 as an integer; the gateway wants it written as 1
        with pytest.raises(Mismatch):
            check("device", said)


@pytest.mark.parametrize(
    ("message", "name"),
    [(HELLO, "token"), (HELLO, "device"), (ACK, "feed"), (ACK, "offset"), (SEEN, "offsets"), (SUBSCRIBE, "feed")],
)
def test_a_missing_field_is_refused_and_named(message: dict[str, Any], name: str) -> None:
    said = {key: value for key, value in message.items() if key != name}
    with pytest.raises(Refused, match=f"invalid: {name}"):
        parse(said)
    with pytest.raises(Mismatch):
        check("device", said)


@pytest.mark.parametrize("t", ["", "Hello", "event", "welcome", "x" * 1000])
def test_an_unknown_message_is_unknown_type(t: str) -> None:
    with pytest.raises(Refused) as caught:
        parse({"t": t})
    assert caught.value.code == "unknown_type"
    assert len(caught.value.detail) < 120


@pytest.mark.parametrize("said", [{}, {"t": None}, {"t": 1}, {"t": ["ack"]}, {"t": {}}])
def test_without_a_name_it_is_invalid(said: dict[str, Any]) -> None:
    with pytest.raises(Refused, match="invalid: t"):
        parse(said)


def test_an_ack_is_parsed_by_itself() -> None:
    assert parse_ack(ACK) == Ack("account:42", 7)
    refused = parse_ack({**ACK, "offset": -1})
    assert isinstance(refused, Refused)
    assert (refused.code, refused.feed) == ("invalid", "account:42")


def test_ref_is_found_even_where_the_message_is_wrong() -> None:
    assert ref_of({"t": "nonsense", "ref": "r"}) == "r"
    assert ref_of({"ref": MAX}) == MAX
    wrong: list[Any] = [True, 1.0, None, [], MAX + 1]
    assert [ref_of({"ref": ref}) for ref in wrong] == [None] * len(wrong)
    assert ref_of({}) is None


def test_messages_are_frozen() -> None:
    with pytest.raises(AttributeError):
        parse(ACK).offset = 8  # type: ignore[union-attr, misc]


TIME = "2026-03-01T09:30:00.125Z"
START = {"feed": "account:42", "epoch": "e", "head": 9, "from": 7}
SAID: list[dict[str, Any]] = [
    messages.welcome(
        session="n-1",
        account="42",
        new=False,
        time=TIME,
        expires=TIME,
        window=256,
        limits={"feeds": 32, "message": 16384, "rate": 120, "backoff": 60.0},
        feeds=[START],
        ref="r",
    ),
    messages.live("account:42"),
    messages.resync("account:42", "e", 9, "retention"),
    messages.seen("account:42", (1, 2)),
    messages.beat({"account:42": 9, "agency:mvd": 0}, 25.0),
    messages.subscribed(feed="agency:mvd", epoch="e", head=9, from_=9, ref=1),
    messages.unsubscribed("agency:mvd", "r"),
    messages.refresh("mvd", "accepted", ref="r"),
    messages.refresh("mvd", "cooldown", reason="asked lately", retry_after_s=30, updated=TIME),
    messages.mode("saver", "r"),
    messages.expiring(60),
    messages.renewed(TIME, "r"),
    messages.drain(30.0),
    messages.error("unknown_feed", "there is no such feed", feed="agency:xxx", ref="r"),
    messages.error("invalid", "offset: must be"),
    messages.pong("r"),
    messages.pong(),
]


@pytest.mark.parametrize("message", SAID, ids=lambda message: str(message["t"]))
def test_what_the_gateway_says_is_documented(message: dict[str, Any]) -> None:
    check("gateway", message)
    assert message.get("ref") in (None, "r", 1)


def test_the_items_of_welcome_and_subscribed_are_the_same() -> None:
    assert messages.subscribed(feed="account:42", epoch="e", head=9, from_=7) == {"t": "subscribed", **START}


def test_every_message_of_the_document_has_a_builder() -> None:
    assert {message["t"] for message in SAID} | {"event", "batch"} == set(names("gateway"))
    assert {said["t"] for said, _ in GOOD} == set(names("device"))
