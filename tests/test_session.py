"""One session from its hello to its close: what it answers, what it refuses, and what it does when time passes."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.errors import StoreUnavailable
from gateway.protocol import frames
from gateway.protocol.codec import JSON, MSGPACK
from gateway.protocol.connection import State
from gateway.store.base import Revocation
from gateway.tokens import KeySet
from tests.kit import URGENT, Bench, Clock, Phone, offsets, token, use_clock

FNS, MVD, A, FIGURES = "agency:fns", "agency:mvd", "account:a", "ops:figures"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return use_clock(monkeypatch)


@pytest.fixture
async def bench(clock: Clock) -> AsyncIterator[Bench]:
    made = Bench(clock)
    yield made
    await made.stop()


async def ready(bench: Bench, account: str = "a", device: str = "d1", **fields: Any) -> Phone:
    """A session that is welcomed, its inbox read."""
    phone = await bench.connect(account, device, **fields)
    assert phone.session.open
    phone.read()
    return phone


async def answer(bench: Bench, phone: Phone, t: str, **fields: Any) -> dict[str, Any]:
    phone.say(t, **fields)
    await bench.settle()
    (message,) = phone.read()
    return message


# Hello


@pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=["json", "msgpack"])
async def test_the_welcome(bench: Bench, clock: Clock, codec: Any) -> None:
    await bench.publish(A, 2)
    phone = bench.phone(codec)
    await bench.connect("a", phone=phone, feeds=[FNS], ref=7)
    welcome, *rest = phone.read()
    assert next(iter(welcome)) == "t"
    assert welcome.pop("session") == phone.session.id
    assert welcome == {
        "t": "welcome",
        "account": "a",
        "new": True,
        "time": "2027-01-15T08:16:40.000Z",
        "expires": "2027-05-11T02:03:20.000Z",
        "window": 256,
        "limits": {"feeds": 32, "message": 16384, "rate": 120, "backoff": 60},
        "feeds": [
            {"feed": A, "epoch": "e1", "head": 2, "from": 0},
            {"feed": FNS, "epoch": "e1", "head": 0, "from": 0},
        ],
        "ref": 7,
    }
    assert sorted((message["t"], message["feed"]) for message in rest) == [("batch", A), ("live", A), ("live", FNS)]


async def test_the_order_at_the_start(bench: Bench) -> None:
    await bench.publish(A, 2)
    await bench.publish(FNS)
    phone = await bench.connect(
        "a", feeds=[FNS], resume={A: {"epoch": "old", "offset": 1}, FNS: {"epoch": "e1", "offset": 0}}
    )
    messages = phone.read()
    assert [message["t"] for message in messages[:2]] == ["welcome", "resync"]
    assert messages[0]["feeds"][0]["from"] == 2
    assert messages[1] == {"t": "resync", "feed": A, "epoch": "e1", "offset": 2, "reason": "epoch"}
    assert [message["t"] for message in messages if message.get("feed") == FNS] == ["event", "live"]
    assert [message["t"] for message in messages if message.get("feed") == A] == ["resync", "live"]
    assert bench.counts.resyncs["epoch"] == 1


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"device": "no spaces"}, 4400),
        ({"token": 7}, 4400),
        ({"resume": {A: {"epoch": "e1"}}}, 4400),
        ({"feeds": "agency:fns"}, 4400),
        ({"mode": "loud"}, 4400),
        ({"token": "x.y.z"}, 4401),
    ],
)
async def test_a_bad_hello_closes(bench: Bench, fields: dict[str, Any], code: int) -> None:
    phone = bench.phone()
    bench.hello("a", fields.pop("device", "d1"), phone=phone, **fields)
    assert phone.closed
    assert phone.closed[0] == code
    assert bench.hub.opening == 0


@pytest.mark.parametrize(
    ("first", "code"),
    [(b'{"t":"ping"}', 4400), (b"[]", 4400), (b"not json", 4400), (b'{"t":"hello","t":"hello"}', 4400)],
)
async def test_anything_but_a_hello_at_first_closes(bench: Bench, first: bytes, code: int) -> None:
    phone = bench.phone()
    phone.session.received(frames.TEXT, first)
    assert phone.closed
    assert phone.closed[0] == code
    assert phone.session.state is State.CLOSING


async def test_the_wrong_kind_of_message_for_the_subprotocol(bench: Bench) -> None:
    phone = await ready(bench)
    phone.session.received(frames.BINARY, b'{"t":"ping"}')
    assert phone.closed
    assert phone.closed[0] == 4400


async def test_a_token_that_has_ended(bench: Bench, clock: Clock) -> None:
    phone = await bench.connect("a", token=token("a", clock, ttl=-1))
    assert phone.closed
    assert phone.closed[0] == 4401


async def test_a_token_of_another_device(bench: Bench, clock: Clock) -> None:
    phone = await bench.connect("a", "d1", token=token("a", clock, device="d2"))
    assert phone.closed
    assert phone.closed[0] == 4403


async def test_no_keys_to_check_with_is_our_fault(bench: Bench) -> None:
    bench.verifier.use(KeySet())
    phone = await bench.connect("a")
    assert phone.closed
    assert phone.closed[0] == 4503


@pytest.mark.parametrize(
    ("agent", "code"),
    [
        ("gosapp-android/2.9.9", 4426),
        ("gosapp-android", 4426),
        ("gosapp-android/2.10.0 (Android 15)", None),
        ("gosapp-android/3", None),
        ("gosapp-ios/1.0", None),
        (None, None),
    ],
)
async def test_a_program_that_is_too_old(clock: Clock, agent: str | None, code: int | None) -> None:
    bench = Bench(clock, oldest_agents="gosapp-android/2.10")
    phone = await bench.connect("a", **({"agent": agent} if agent else {}))
    assert (phone.closed and phone.closed[0]) == code
    await bench.stop()


async def test_no_hello_in_time(bench: Bench) -> None:
    silent, quick = bench.phone(), bench.phone()
    bench.tick(5)
    bench.hello("a", phone=quick)
    await bench.settle()
    bench.tick(4.5)
    assert silent.closed is None
    bench.tick(1)
    assert silent.closed == (4508, "no hello in time")
    assert quick.closed is None


async def test_thirty_hellos_a_minute_of_a_device(bench: Bench, clock: Clock) -> None:
    for _ in range(30):
        (await ready(bench)).session.lost(1006)
    refused = await bench.connect()
    assert refused.closed
    assert refused.closed[0] == 4529
    assert (await bench.connect("a", "d2")).session.open, "another device has its own"
    bench.tick(2)
    assert (await bench.connect()).session.open


async def test_a_second_hello_is_an_error(bench: Bench, clock: Clock) -> None:
    phone = await ready(bench)
    message = await answer(bench, phone, "hello", token=token("a", clock), device="d1", ref=3)
    assert (message["t"], message["code"], message["ref"]) == ("error", "invalid", 3)


async def test_feeds_of_the_hello_that_cannot_be_followed(bench: Bench) -> None:
    phone = await bench.connect("a", feeds=["account:b", "agency:nobody", FNS, "city:x", A])
    messages = phone.read()
    assert [item["feed"] for item in messages[0]["feeds"]] == [A, FNS]
    errors = [(message["code"], message["feed"]) for message in messages if message["t"] == "error"]
    assert errors == [("forbidden", "account:b"), ("unknown_feed", "agency:nobody"), ("unknown_feed", "city:x")]


async def test_thirty_two_agencies_beside_the_accounts_own_feed(bench: Bench) -> None:
    phone = await bench.connect("a", feeds=[f"agency:a{n}" for n in range(33)])
    messages = phone.read()
    assert len(messages[0]["feeds"]) == 33
    (error,) = [message for message in messages if message["t"] == "error"]
    assert (error["code"], error["feed"]) == ("limit", "agency:a32")
    assert (await answer(bench, phone, "subscribe", feed="agency:a33"))["code"] == "limit"


# Messages between hello and welcome


async def test_what_comes_before_the_welcome_is_done_after_it(bench: Bench) -> None:
    await bench.publish(A, 3)
    bench.store.slow = True
    phone = bench.hello("a", resume={A: {"epoch": "e1", "offset": 3}})
    phone.say("ping", ref=1)
    phone.ack(A, 3)
    phone.ack(A, 4)
    phone.say("subscribe", feed=FNS, ref=2)
    assert not phone.inbox
    await bench.settle()
    bench.store.slow = False
    bench.store.answer()
    await bench.settle()
    messages = phone.read()
    assert [message["t"] for message in messages] == ["welcome", "live", "pong", "error", "subscribed", "live"]
    assert messages[3]["detail"] == "told up to 3, acknowledged 4"


async def test_too_many_messages_before_the_welcome(bench: Bench) -> None:
    bench.store.slow = True
    phone = bench.hello("a")
    for _ in range(60):
        phone.say("ping")
    assert phone.closed
    assert phone.closed[0] == 4529
    bench.store.answer()
    await bench.settle()
    assert not phone.inbox


# One session a device


async def test_the_newest_session_of_a_device_wins(bench: Bench) -> None:
    old, other = await ready(bench), await ready(bench, device="d2")
    new = await ready(bench)
    assert old.closed == (4409, "a newer session of this device")
    assert (other.closed, new.closed) == (None, None)
    await bench.publish(A)
    assert (offsets(old.read()), offsets(new.read())) == ([], [1])
    assert bench.hub.connected("a") == {"d1", "d2"}


async def test_of_two_hellos_in_one_trip_the_later_wins(bench: Bench) -> None:
    first, second = bench.hello(), bench.hello()
    await bench.settle()
    assert first.closed == (4409, "a newer session of this device")
    assert second.session.open
    assert bench.hub.sessions == 1


# Acknowledgements


async def test_an_ack_past_what_was_told(bench: Bench) -> None:
    phone = await ready(bench)
    await bench.publish(A, 2)
    phone.read()
    message = await answer(bench, phone, "ack", feed=A, offset=3, ref="x")
    assert message == {
        "t": "error",
        "code": "invalid",
        "detail": "told up to 2, acknowledged 3",
        "feed": A,
        "ref": "x",
    }
    await bench.hub._flush()
    assert bench.store._accounts["a"]["d1"].cursors[A] == ("e1", 0)


async def test_an_ack_for_a_feed_that_is_not_followed_is_ignored(bench: Bench) -> None:
    phone = await ready(bench)
    phone.ack(FNS, 99)
    phone.ack("account:b", 1)
    assert phone.read() == []


@pytest.mark.parametrize("offset", [-1, 1.5, True, "1", None, 2**53])
async def test_a_wrong_ack(bench: Bench, offset: Any) -> None:
    phone = await ready(bench)
    if offset == 2**53:
        phone.ack(A, offset)
        assert phone.closed, "what no JSON reader keeps exact is no message"
        return
    message = await answer(bench, phone, "ack", feed=A, offset=offset)
    assert (message["code"], message["feed"]) == ("invalid", A)


async def test_the_position_of_a_resync_is_kept_when_it_is_acknowledged(bench: Bench) -> None:
    await bench.publish(A, 3)
    first = await ready(bench, resume={A: {"epoch": "old", "offset": 9}})
    await bench.hub._flush()
    assert A not in bench.store._accounts["a"]["d1"].cursors, "the snapshot is not kept yet"
    first.ack(A, 3)
    await bench.hub._flush()
    assert bench.store._accounts["a"]["d1"].cursors[A] == ("e1", 3)
    again = await bench.connect()
    assert again.kinds() == ["welcome", "live"], "no second resync"


async def test_until_then_the_device_is_told_again(bench: Bench) -> None:
    await bench.publish(A, 3)
    (await ready(bench, resume={A: {"epoch": "old", "offset": 9}})).session.lost(1006)
    again = await bench.connect()
    assert again.read()[0]["new"] is True


# Seen


async def test_seen_of_what_was_not_told(bench: Bench) -> None:
    phone = await ready(bench)
    await bench.publish(A)
    phone.read()
    assert (await answer(bench, phone, "seen", feed=A, offsets=[1, 2]))["code"] == "invalid"
    assert (await answer(bench, phone, "seen", feed=FNS, offsets=[1]))["code"] == "unknown_feed"
    phone.say("seen", feed=A, offsets=[0])
    phone.say("seen", feed=A, offsets=[1])
    await bench.settle()
    assert phone.read() == []
    await bench.hub._flush()
    assert await bench.store.seen_offsets(A) == {1}


# Subscribe and unsubscribe


async def test_subscribe_begins_at_the_head_and_goes_on_after_the_cursor(bench: Bench) -> None:
    await bench.publish(FNS, 2)
    phone = await ready(bench)
    phone.say("subscribe", feed=FNS, ref=1)
    await bench.settle()
    assert phone.read() == [
        {"t": "subscribed", "feed": FNS, "epoch": "e1", "head": 2, "from": 2, "ref": 1},
        {"t": "live", "feed": FNS},
    ]
    await bench.publish(FNS, 2)
    assert offsets(phone.read()) == [3, 4]
    phone.ack(FNS, 3)
    phone.session.lost(1006)
    again = await ready(bench)
    again.say("subscribe", feed=FNS)
    await bench.settle()
    assert offsets(again.read()) == [4]


async def test_subscribe_with_resume(bench: Bench) -> None:
    await bench.publish(FNS, 3)
    phone = await ready(bench)
    phone.say("subscribe", feed=FNS, resume={"epoch": "e1", "offset": 1})
    phone.say("subscribe", feed=MVD, resume={"epoch": "old", "offset": 1})
    await bench.settle()
    messages = phone.read()
    assert offsets(messages, FNS) == [2, 3]
    assert [message["t"] for message in messages if message["feed"] == MVD] == ["subscribed", "resync", "live"]


async def test_subscribed_twice_is_followed_once(bench: Bench) -> None:
    phone = await ready(bench)
    phone.say("subscribe", feed=FNS, ref=1)
    phone.say("subscribe", feed=FNS, ref=2)
    await bench.settle()
    messages = phone.read()
    assert [message["t"] for message in messages] == ["subscribed", "live"] * 2
    assert [message["ref"] for message in messages if "ref" in message] == [1, 2]
    await bench.publish(FNS)
    assert offsets(phone.read()) == [1]


@pytest.mark.parametrize("slow", [False, True])
async def test_the_last_word_counts(bench: Bench, slow: bool) -> None:
    """Subscribe, unsubscribe and subscribe again, faster than the store answers."""
    phone = await ready(bench)
    bench.store.slow = slow
    for t in ("subscribe", "unsubscribe", "subscribe", "unsubscribe"):
        phone.say(t, feed=FNS)
    for _ in range(6):
        await bench.settle()
        bench.store.answer()
    assert [message["t"] for message in phone.read() if message["t"] != "live"] == ["subscribed", "unsubscribed"] * 2
    bench.store.slow = False
    await bench.publish(FNS)
    await bench.settle()
    assert phone.read() == []
    assert FNS not in bench.store._accounts["a"]["d1"].cursors
    assert phone.session.changing is None


async def test_an_event_between_the_stores_answer_and_subscribed(bench: Bench) -> None:
    phone = await ready(bench)
    bench.store.slow = True
    phone.say("subscribe", feed=FNS)
    await bench.settle()
    await bench.publish(FNS)
    bench.store.answer()
    await bench.settle()
    assert [message["t"] for message in phone.read()] == ["subscribed", "event", "live"]


async def test_operators_feeds_need_the_scope(bench: Bench, clock: Clock) -> None:
    await bench.publish(FIGURES, 3)
    op = await bench.connect("op", token=token("op", clock, scope="read ops"), feeds=[FIGURES, "ops:nothing"])
    welcome, *rest = op.read()
    assert welcome["feeds"][1] == {"feed": FIGURES, "epoch": "e1", "head": 3, "from": 3}
    assert [(m["code"], m["feed"]) for m in rest if m["t"] == "error"] == [("unknown_feed", "ops:nothing")]
    await bench.publish(FIGURES)
    assert offsets(op.read(), FIGURES) == [4]
    assert (await answer(bench, op, "unsubscribe", feed=FIGURES))["t"] == "unsubscribed"

    for scope in (None, "opsy", "op s"):
        phone = await bench.connect("a", token=token("a", clock, scope=scope), feeds=[FIGURES, "ops:nothing"])
        welcome, *rest = phone.read()
        assert [item["feed"] for item in welcome["feeds"]] == [A]
        assert [(m["code"], m["feed"]) for m in rest if m["t"] == "error"] == [
            ("forbidden", FIGURES),
            ("forbidden", "ops:nothing"),
        ]
        assert (await answer(bench, phone, "subscribe", feed=FIGURES))["code"] == "forbidden"


async def test_a_token_without_the_scope_takes_no_operators_place(bench: Bench, clock: Clock) -> None:
    op = await ready(bench, "op", token=token("op", clock, scope="ops"), feeds=[FIGURES])
    assert (await answer(bench, op, "token", token=token("op", clock)))["code"] == "forbidden"
    assert (await answer(bench, op, "token", token=token("op", clock, scope="ops")))["t"] == "renewed"
    await answer(bench, op, "unsubscribe", feed=FIGURES)
    assert (await answer(bench, op, "token", token=token("op", clock)))["t"] == "renewed"
    assert (await answer(bench, op, "subscribe", feed=FIGURES))["code"] == "forbidden"


async def test_the_scope_is_lost_while_the_store_looks_for_the_feed(bench: Bench, clock: Clock) -> None:
    op = await ready(bench, "op", token=token("op", clock, scope="ops"))
    op.say("subscribe", feed=FIGURES)
    op.say("token", token=token("op", clock))
    await bench.settle()
    assert {message["t"]: message.get("code") for message in op.read()} == {"renewed": None, "error": "forbidden"}


async def test_unsubscribe_stops_and_forgets(bench: Bench) -> None:
    phone = await ready(bench, feeds=[FNS])
    await bench.publish(FNS, 2)
    phone.ack(FNS, 2)
    phone.read()
    assert await answer(bench, phone, "unsubscribe", feed=FNS, ref=5) == {"t": "unsubscribed", "feed": FNS, "ref": 5}
    await bench.publish(FNS)
    await bench.hub._flush()
    assert phone.read() == []
    assert FNS not in bench.store._accounts["a"]["d1"].cursors
    assert (await answer(bench, phone, "unsubscribe", feed=FNS))["t"] == "unsubscribed", "asked twice is no fault"


async def test_what_cannot_be_subscribed_or_left(bench: Bench) -> None:
    phone = await ready(bench)
    assert (await answer(bench, phone, "subscribe", feed="account:b"))["code"] == "forbidden"
    assert (await answer(bench, phone, "subscribe", feed="agency:nobody"))["code"] == "unknown_feed"
    assert (await answer(bench, phone, "unsubscribe", feed=A))["code"] == "forbidden"


async def test_the_store_does_not_answer_a_subscription(bench: Bench) -> None:
    phone = await ready(bench)
    bench.store.away = True
    assert (await answer(bench, phone, "subscribe", feed=FNS, ref=1))["code"] == "unavailable"
    assert (await answer(bench, phone, "unsubscribe", feed=FNS))["code"] == "unavailable"
    bench.store.away = False
    phone.say("subscribe", feed=FNS)
    await bench.settle()
    assert phone.kinds() == ["subscribed", "live"]


async def test_a_session_that_ended_while_it_subscribed(bench: Bench) -> None:
    phone = await ready(bench)
    bench.store.slow = True
    phone.say("subscribe", feed=FNS)
    phone.say("subscribe", feed=MVD)
    await bench.settle()
    phone.session.lost(1006)
    bench.store.slow = False
    bench.store.answer()
    await bench.settle()
    assert all(not feed.follows and not feed.pins for feed in bench.hub.feeds.values())
    await bench.hub._drop_empty()
    assert bench.hub.feeds == {}


# The other requests


async def test_each_request_has_its_answer(bench: Bench) -> None:
    phone = await ready(bench)
    assert await answer(bench, phone, "ping", ref=1) == {"t": "pong", "ref": 1}
    assert await answer(bench, phone, "mode", mode="saver", ref=2) == {"t": "mode", "mode": "saver", "ref": 2}
    message = await answer(bench, phone, "refresh", source="fns", ref=3)
    assert (message["t"], message["status"], message["ref"]) == ("refresh", "failed", 3)
    assert message["reason"]


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ({"t": "dance"}, "unknown_type"),
        ({"t": "mode", "mode": "loud"}, "invalid"),
        ({"t": "subscribe"}, "invalid"),
        ({"t": "seen", "feed": A, "offsets": []}, "invalid"),
        ({"t": "token"}, "invalid"),
        ({"t": "ack", "feed": 7, "offset": 1}, "invalid"),
        ({"no": "type"}, "invalid"),
    ],
)
async def test_a_wrong_message_is_an_error_and_the_session_lives(
    bench: Bench, message: dict[str, Any], code: str
) -> None:
    phone = await ready(bench)
    phone.session.received(frames.TEXT, JSON.encode({**message, "ref": "r"}))
    (error,) = phone.read()
    assert (error["t"], error["code"], error["ref"]) == ("error", code, "r")
    assert phone.session.open
    assert bench.counts.errors[code] == 1


@pytest.mark.parametrize("content", [b"[]", b"{", b'{"t":NaN}', b"\xff", b'{"t":"ping","t":"ping"}'])
async def test_what_is_no_message_closes(bench: Bench, content: bytes) -> None:
    phone = await ready(bench)
    phone.session.received(frames.TEXT, content)
    assert phone.closed
    assert phone.closed[0] == 4400
    assert bench.hub.sessions == 0


# Rate


async def test_a_burst_of_sixty_then_two_a_second(bench: Bench) -> None:
    phone = await ready(bench)
    for _ in range(59):
        phone.say("ping")
    assert phone.session.open, "the hello was the first of sixty"
    bench.tick(1)
    phone.say("ping")
    phone.say("ping")
    assert phone.session.open
    phone.say("ping")
    assert phone.closed
    assert phone.closed[0] == 4529


async def test_pings_and_pongs_of_the_protocol_count(bench: Bench) -> None:
    phone = await ready(bench)
    for _ in range(30):
        phone.session.received(frames.PING, b"")
        phone.session.received(frames.PONG, b"")
    assert phone.closed
    assert phone.closed[0] == 4529


async def test_acks_that_free_window_space_do_not_count_others_do(bench: Bench) -> None:
    phone = await ready(bench)
    for _ in range(4):
        stored = await bench.publish(A, 50)
        for one in stored:
            phone.ack(A, one.offset)
    assert phone.session.open
    for _ in range(60):
        phone.ack(A, 200)
    assert phone.closed
    assert phone.closed[0] == 4529


# Window and socket


async def test_a_full_window_is_cut_after_its_time_and_loses_nothing(bench: Bench) -> None:
    bench.hub.window = 4
    phone = await ready(bench)
    await bench.publish(A, 5)
    for _ in range(5):
        bench.tick(10)
        phone.session.received(frames.PONG, b"")
    assert phone.session.open
    bench.tick(10.5)
    assert phone.closed == (4508, "the window or the socket stayed full")
    again = await bench.connect()
    assert offsets(again.read()) == [1, 2, 3, 4]


async def test_an_ack_starts_the_time_anew(bench: Bench) -> None:
    bench.hub.window = 4
    phone = await ready(bench)
    await bench.publish(A, 20)
    for offset in range(1, 9):
        bench.tick(40)
        phone.session.received(frames.PONG, b"")
        phone.ack(A, offset)
        await bench.settle()
    assert phone.session.open
    assert bench.counts.window_stalls == 9


async def test_a_full_socket_is_cut_after_its_time(bench: Bench) -> None:
    phone = await ready(bench)
    phone.session.paused()
    for _ in range(5):
        bench.tick(10)
        phone.session.received(frames.PONG, b"")
    assert phone.session.open
    assert phone.read() == [], "not even a beat is written to a full socket"
    bench.tick(10.5)
    assert phone.closed
    assert phone.closed[0] == 4508
    assert bench.counts.socket_stalls == 1


async def test_a_socket_that_recovers_is_not_cut(bench: Bench) -> None:
    phone = await ready(bench)
    for _ in range(4):
        phone.session.paused()
        bench.tick(40)
        phone.session.received(frames.PONG, b"")
        phone.session.resumed()
        bench.tick(1)
    assert phone.session.open


async def test_leaving_the_feed_that_is_full_ends_the_stall(bench: Bench) -> None:
    bench.hub.window = 2
    phone = await ready(bench, feeds=[FNS])
    await bench.publish(FNS, 3)
    phone.say("unsubscribe", feed=FNS)
    await bench.settle()
    for _ in range(10):
        bench.tick(10)
        phone.session.received(frames.PONG, b"")
    assert phone.session.open


# Beats and silence


async def test_beats(bench: Bench) -> None:
    phone = await ready(bench, feeds=[FNS])
    await bench.publish(A, 2)
    await bench.publish(FNS)
    await bench.sweep()
    phone.read()
    phone.writes.clear()
    for _ in range(25):
        bench.tick(1)
    (beat,) = phone.read()
    assert beat == {"t": "beat", "heads": {A: 2, FNS: 1}, "next": 25}
    (write,) = phone.writes
    assert [opcode for opcode, _ in frames.split(write)] == [frames.TEXT, frames.PING], "in one write with a ping"
    bench.tick(24)
    phone.session.received(frames.PONG, b"")
    bench.tick(2)
    assert phone.kinds() == ["beat"]


async def test_beats_tell_what_the_store_showed_not_what_the_bus_said(bench: Bench) -> None:
    phone = await ready(bench)
    await bench.publish(A, 2)
    phone.read()
    bench.tick(26)
    (beat,) = phone.read()
    assert beat["heads"] == {A: 0}


async def test_first_beats_are_spread_over_the_period(bench: Bench, clock: Clock) -> None:
    begun = clock.now
    phones = [await ready(bench, f"x{n}") for n in range(200)]
    firsts = sorted(phone.session.beat_at - begun for phone in phones)
    assert 0 <= firsts[0] < 3
    assert 22 < firsts[-1] <= 25
    assert sum(first < 12.5 for first in firsts) in range(60, 141)


async def test_a_saver_beats_once_a_minute(bench: Bench) -> None:
    phone = await ready(bench, mode="saver")
    beats = []
    for _ in range(240):
        bench.tick(1)
        phone.session.heard = bench.hub.now
        beats += [message["next"] for message in phone.read()]
    assert beats == [60] * 4
    phone.say("mode", mode="full")
    for _ in range(26):
        bench.tick(1)
        phone.session.heard = bench.hub.now
    told = [message["next"] for message in phone.read() if message["t"] == "beat"]
    assert told in ([25], [25, 25])  # where the first falls is chance


async def test_nothing_heard_for_two_beats(bench: Bench) -> None:
    silent, alive = await ready(bench, "a"), await ready(bench, "b")
    for _ in range(50):
        bench.tick(1)
        alive.session.received(frames.PONG, b"") if alive.inbox else None
        alive.read()
    assert silent.session.open
    bench.tick(2)
    bench.tick(1)
    assert silent.closed == (4508, "nothing was heard for two beats")
    assert alive.session.open


# Tokens


async def test_a_token_that_ends(bench: Bench, clock: Clock) -> None:
    phone = await ready(bench, token=token("a", clock, ttl=100))
    bench.tick(39)
    assert not any(message["t"] == "expiring" for message in phone.read())
    bench.tick(1.5)
    (expiring,) = [message for message in phone.read() if message["t"] == "expiring"]
    assert 59 <= expiring["in"] <= 60
    phone.session.received(frames.PONG, b"")
    bench.tick(40)
    phone.session.received(frames.PONG, b"")
    assert phone.session.open
    bench.tick(19.75)
    assert phone.closed == (4401, "the token ended")
    assert not any(message["t"] == "expiring" for message in phone.read()), "said once"


async def test_a_token_that_is_renewed(bench: Bench, clock: Clock) -> None:
    phone = await ready(bench, token=token("a", clock, ttl=100))
    bench.tick(50)
    phone.read()
    message = await answer(bench, phone, "token", token=token("a", clock, ttl=100), ref=9)
    assert (message["t"], message["ref"]) == ("renewed", 9)
    assert message["expires"] == "2027-01-15T08:19:10.000Z"
    seen = []
    for _ in range(9):
        bench.tick(10)
        phone.session.received(frames.PONG, b"")
        seen += phone.kinds()
    assert phone.session.open
    assert seen.count("expiring") == 1
    bench.tick(11)
    assert phone.closed
    assert phone.closed[0] == 4401


@pytest.mark.parametrize("case", ["another account", "ended", "no token", "another device", "no keys"])
async def test_a_refused_token_leaves_the_old_one(bench: Bench, clock: Clock, case: str) -> None:
    phone = await ready(bench)
    claims = phone.session.claims
    given = {
        "another account": token("b", clock),
        "ended": token("a", clock, ttl=-1),
        "no token": "x",
        "another device": token("a", clock, device="d2"),
        "no keys": token("a", clock, sid="s"),
    }[case]
    if case == "no keys":
        bench.verifier.use(KeySet())
    message = await answer(bench, phone, "token", token=given, ref=1)
    assert (message["t"], message["code"]) == ("error", "unavailable" if case == "no keys" else "forbidden")
    assert phone.session.claims is claims
    assert phone.session.open


async def test_a_token_that_has_less_than_a_minute_left_at_the_hello(bench: Bench, clock: Clock) -> None:
    phone = await ready(bench, token=token("a", clock, ttl=30))
    bench.tick(0.5)
    assert [message["in"] for message in phone.read() if message["t"] == "expiring"] == [30]


# Drain and the end


async def test_drain_is_said_once_and_delivery_goes_on(bench: Bench) -> None:
    phone = await ready(bench)
    bench.hub.draining = True
    for session in bench.hub.all_sessions():
        session.drain(30)
        session.drain(30)
    assert phone.read() == [{"t": "drain", "after": 30}]
    await bench.publish(A)
    assert offsets(phone.read()) == [1]
    late = await bench.connect("b")
    assert late.kinds() == ["welcome", "drain", "live"]
    bench.hub.close_all(4512, "node going away")
    assert [phone.closed, late.closed] == [(4512, "node going away")] * 2


async def test_closing_twice_is_harmless_and_counted_once(bench: Bench) -> None:
    phone = await ready(bench)
    phone.session.close(4410, "revoked")
    phone.session.close(4508, "slow")
    phone.session.lost(1006)
    assert phone.closed == (4410, "revoked")
    assert bench.counts.closed == {4410: 1}
    assert bench.hub.sessions == 0


@pytest.mark.parametrize("code", [1000, 1006])
async def test_the_peer_ends_it(bench: Bench, code: int) -> None:
    phone = await ready(bench, feeds=[FNS])
    phone.session.lost(code)
    assert phone.closed is None
    assert bench.counts.closed == {code: 1}
    assert not bench.hub.sessions_of("a")
    assert phone.session.state in (State.CLOSED, State.ENDING)
    phone.session.check(bench.clock.now + 1000)
    assert phone.read() == []


async def test_when_it_was_last_here_is_kept(bench: Bench, clock: Clock) -> None:
    phone = await ready(bench)
    clock.now += 50
    phone.session.lost(1006)
    await bench.hub._flush()
    (device,) = await bench.store.devices("a")
    assert device.last_seen == clock.time()


async def test_nothing_of_it_stays_in_the_wheel_for_long(bench: Bench) -> None:
    phone = await ready(bench)
    phone.session.lost(1006)
    for _ in range(80):
        bench.tick(1)
    assert not any(phone.session in sessions for sessions in bench.hub._wheel.values())
    assert not bench.hub._wheel


async def test_revoked_while_it_joined(bench: Bench, clock: Clock) -> None:
    bench.store.slow = True
    phone = bench.hello("a")
    await bench.settle()
    clock.now += 1
    await bench.store.revoke(Revocation("sub", "a", clock.time()))
    await bench.control.look()
    bench.store.answer()
    await bench.settle()
    assert phone.closed == (4410, "revoked")
    assert not phone.inbox


async def test_everything_at_once(bench: Bench) -> None:
    """Two codecs, one account, one urgent event: the same event for both."""
    json, packed = bench.phone(JSON), bench.phone(MSGPACK)
    await bench.connect("a", "d1", phone=json)
    await bench.connect("a", "d2", phone=packed)
    await bench.publish(A, priority=URGENT)
    one, two = json.read()[-1], packed.read()[-1]
    assert one == two


async def test_an_answer_of_a_store_that_came_back_too_late(bench: Bench) -> None:
    bench.store.slow = True
    phone = bench.hello("a")
    await bench.settle()
    bench.store.answer(StoreUnavailable("just now"))
    await bench.settle()
    assert phone.closed == (4503, "the store does not answer")
    await asyncio.sleep(0)
    assert bench.hub.opening == 0


async def test_a_feed_that_could_not_be_left_is_followed_on(bench: Bench) -> None:
    phone = await ready(bench, feeds=[FNS])
    await bench.publish(FNS)
    phone.ack(FNS, 1)
    bench.store.away = True
    phone.read()
    assert (await answer(bench, phone, "unsubscribe", feed=FNS))["code"] == "unavailable"
    bench.store.away = False
    await bench.publish(FNS)
    assert offsets(phone.read()) == [2]
    await bench.hub._flush()
    assert bench.store._accounts["a"]["d1"].cursors[FNS] == ("e1", 1)
