"""The loop that brings sessions level with the store: live, behind, in slices, in saver mode, and when things fail."""

import asyncio
from collections.abc import AsyncIterator, Callable

import orjson
import pytest

from gateway.bus.base import Message
from gateway.errors import StoreUnavailable
from gateway.hub import SLICE
from gateway.store.base import ERASED_TYPE, Draft
from gateway.tail import Tail
from gateway.waiting import always
from tests.kit import BULK, HIGH, KEY, NORMAL, URGENT, Bench, Clock, Phone, draft, offsets, use_clock

FNS, MVD, A = "agency:fns", "agency:mvd", "account:a"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return use_clock(monkeypatch)


@pytest.fixture
async def bench(clock: Clock) -> AsyncIterator[Bench]:
    made = Bench(clock)
    yield made
    await made.stop()


# Live


async def test_one_frame_for_all_as_the_same_bytes(bench: Bench) -> None:
    phones = await bench.connect_many(3)
    for phone in phones:
        phone.writes.clear()
    await bench.publish(FNS)
    assert phones[0].writes[0] is phones[1].writes[0] is phones[2].writes[0]
    assert [phone.kinds() for phone in phones] == [["event"]] * 3
    assert bench.counts.delivered[NORMAL] == 3


async def test_a_repeat_and_a_late_one_are_dropped(bench: Bench) -> None:
    (phone,) = await bench.connect_many(1)
    first, second = await bench.publish(FNS, 2)
    bench.deliver(second, first, second)
    await bench.settle()
    assert offsets(phone.read()) == [1, 2]
    assert bench.counts.bus_repeats == 3


async def test_a_hole_sends_the_session_to_the_store(bench: Bench) -> None:
    (phone,) = await bench.connect_many(1)
    first, second, third = await bench.commit(FNS, 3)
    bench.deliver(third)
    assert phone.read() == []
    await bench.settle()
    assert offsets(phone.read()) == [1, 2, 3]
    bench.deliver(first, second)
    assert phone.read() == []
    assert bench.counts.bus_holes == 1


async def test_the_sweep_finds_what_the_bus_lost(bench: Bench) -> None:
    (phone,) = await bench.connect_many(1)
    await bench.commit(FNS, 2)
    await bench.sweep()
    assert offsets(phone.read()) == [1, 2]
    assert bench.hub.feeds[FNS].checked == 2
    assert bench.counts.sweep_behind == 1


async def test_a_message_of_another_epoch_ends_all_sessions(bench: Bench) -> None:
    phones = await bench.connect_many(2)
    waiting = bench.hello("late")
    bench.hub.received(Message(FNS, "another", 1, b"{}", NORMAL, 0.0))
    await bench.settle()
    assert [phone.closed and phone.closed[0] for phone in [*phones, waiting]] == [4503] * 3


async def test_a_feed_of_nobody_is_ignored(bench: Bench) -> None:
    await bench.publish(FNS)
    assert FNS not in bench.hub.feeds


# Broadcasts


async def test_personal_events_go_between_the_slices_of_a_broadcast(bench: Bench) -> None:
    phones = await bench.connect_many(2 * SLICE + 50)
    await bench.publish(FNS, priority=BULK)
    assert not any(phone.inbox for phone in phones), "a big broadcast never starts in the turn of its message"
    await asyncio.sleep(0)
    assert [bool(phone.inbox) for phone in phones] == [True] * SLICE + [False] * (SLICE + 50)
    await bench.publish("account:x" + str(len(phones) - 1), priority=URGENT)
    await bench.settle()
    last = phones[-1].read()
    assert [(message["feed"], message["offset"]) for message in last] == [("account:x561", 1), (FNS, 1)]
    assert all(offsets(phone.read()) == [1] for phone in phones[:-1])


async def test_a_second_event_in_the_middle_reaches_all_in_order(bench: Bench) -> None:
    phones = await bench.connect_many(3 * SLICE)
    await bench.publish(FNS)
    await asyncio.sleep(0)
    await bench.publish(FNS)
    await asyncio.sleep(0)
    await bench.publish(FNS, 2)
    await bench.settle()
    assert all(offsets(phone.read()) == [1, 2, 3, 4] for phone in phones)
    assert not bench.hub.feeds[FNS].waving
    await bench.publish(FNS)
    await bench.settle()
    assert all(offsets(phone.read()) == [5] for phone in phones)


async def test_an_urgent_broadcast_overtakes_a_bulk_one(bench: Bench) -> None:
    phones = [bench.hello(f"x{n}", feeds=[FNS, MVD]) for n in range(2 * SLICE)]
    while bench.hub.joining:
        await bench.settle()
    for phone in phones:
        phone.read()
    await bench.publish(FNS, priority=BULK)
    await asyncio.sleep(0)
    await bench.publish(MVD, priority=URGENT)
    await bench.settle()
    orders = [[message["feed"] for message in phone.read()] for phone in phones]
    assert orders == [[FNS, MVD]] * SLICE + [[MVD, FNS]] * SLICE


async def test_an_urgent_event_moves_the_waiting_broadcast_of_its_feed_up(bench: Bench) -> None:
    phones = [bench.hello(f"x{n}", feeds=[FNS, MVD]) for n in range(2 * SLICE)]
    while bench.hub.joining:
        await bench.settle()
    for phone in phones:
        phone.read()
    await bench.publish(MVD, priority=HIGH)
    await bench.publish(FNS, priority=BULK)
    await bench.publish(FNS, priority=URGENT)
    await bench.settle()
    first = [[message["feed"] for message in phone.read()] for phone in phones]
    assert all(feeds[0] == FNS for feeds in first)


async def test_leaving_in_the_middle_of_a_broadcast(bench: Bench) -> None:
    phones = await bench.connect_many(3 * SLICE)
    await bench.publish(FNS)
    await asyncio.sleep(0)
    gone = {0, 5, SLICE, SLICE + 1, 2 * SLICE, 3 * SLICE - 1}
    for number in gone:
        phones[number].session.lost(1006)
    await bench.settle()
    stayed = [phone for number, phone in enumerate(phones) if number not in gone]
    assert all(offsets(phone.read()) == [1] for phone in stayed)
    assert offsets(phones[SLICE].read()) == []
    follows = bench.hub.feeds[FNS].follows
    assert [follow.index for follow in follows] == list(range(len(stayed)))


async def test_urgent_does_not_wait_behind_normal_in_a_big_feed(bench: Bench) -> None:
    """A broadcast writes the head; the urgent event just below it must not wait with a saver's normal ones."""
    phones = [bench.hello(f"x{n}", feeds=[FNS], mode="saver") for n in range(2 * SLICE)]
    while bench.hub.joining:
        await bench.settle()
    await bench.publish(FNS, priority=NORMAL)
    await bench.settle()
    for phone in phones:
        assert offsets(phone.read()) == []
    await bench.publish(FNS, priority=URGENT)
    await asyncio.sleep(0)
    await bench.publish(FNS, priority=NORMAL)
    await bench.settle()
    assert all(offsets(phone.read())[:2] == [1, 2] for phone in phones)


async def test_one_broken_session_costs_only_itself(bench: Bench) -> None:
    phones = await bench.connect_many(2 * SLICE)

    def broken(data: bytes) -> None:
        raise RuntimeError("the handler is closed")

    phones[3].on_write = phones[SLICE + 3].on_write = broken
    await bench.publish(FNS)
    await bench.settle()
    assert [n for n, phone in enumerate(phones) if phone.closed] == [3, SLICE + 3]
    assert phones[3].closed == (4503, "the gateway failed")
    assert sum(offsets(phone.read()) == [1] for phone in phones) == 2 * SLICE - 2
    await bench.publish(FNS)
    await bench.settle()
    assert sum(offsets(phone.read()) == [2] for phone in phones) == 2 * SLICE - 2


async def test_a_broken_session_in_a_small_feed_too(bench: Bench) -> None:
    phones = await bench.connect_many(3)

    def broken(data: bytes) -> None:
        raise RuntimeError("the handler is closed")

    phones[0].on_write = broken
    await bench.publish(FNS)
    assert [bool(phone.closed) for phone in phones] == [True, False, False]
    assert [offsets(phone.read()) for phone in phones[1:]] == [[1], [1]]


# Behind


async def test_reads_of_many_sessions_share_a_trip(bench: Bench) -> None:
    await bench.publish(FNS, 3)
    phones = [bench.hello(f"x{n}", feeds=[FNS], resume={FNS: {"epoch": "e1", "offset": n % 3}}) for n in range(20)]
    bench.store.calls.clear()
    await bench.settle()
    reads = [given[0] for name, given in bench.store.calls if name == "read"]
    assert [sorted((r.feed, r.after) for r in ranges) for ranges in reads] == [[(FNS, 0), (FNS, 1), (FNS, 2)]]
    assert [offsets(phone.read(), FNS) for phone in phones[:3]] == [[1, 2, 3], [2, 3], [3]]
    assert bench.counts.store_reads == 1


async def test_a_long_backlog_goes_in_pages_and_lets_others_between(bench: Bench) -> None:
    await bench.publish(A, 250)
    behind, live = bench.hello("a"), bench.hello("b")
    while not live.inbox:
        await asyncio.sleep(0)
    bench.store.slow = True
    await bench.settle()
    await bench.publish("account:b")
    assert offsets(live.read()) == [1], "the backlog of one delays nobody else"
    bench.store.slow = False
    bench.store.answer()
    for _ in range(5):
        await bench.settle()
    messages = behind.read()
    assert offsets(messages) == list(range(1, 251))
    assert [len(message["events"]) for message in messages if message["t"] == "batch"] == [100, 100, 50]
    assert messages[-1] == {"t": "live", "feed": A}


async def test_the_head_rises_while_a_page_is_read(bench: Bench) -> None:
    """A page shows a higher head than the bus told; the next event then comes by the bus, in every order of answers."""
    phone = await bench.connect("a")
    bench.store.slow = bench.store.late = True
    one, two, three = await bench.commit(A, 3)
    bench.deliver(two)
    await bench.settle()
    bench.store.answer()
    await bench.settle()
    (four,) = await bench.commit(A)
    bench.deliver(four)
    await bench.settle()
    while bench.store.waiting:
        bench.store.answer()
        await bench.settle()
    bench.deliver(one, three)
    await bench.publish(A)
    assert offsets(phone.read()) == [1, 2, 3, 4, 5]


async def test_a_failed_read_is_tried_again(bench: Bench) -> None:
    (phone,) = await bench.connect_many(1)
    await bench.commit(FNS, 2)
    bench.store.slow = True
    bench.deliver(*(await bench.commit(FNS)))
    await bench.settle()
    bench.store.answer(StoreUnavailable("just now"))
    await bench.settle()
    bench.store.slow = False
    bench.store.answer()
    await bench.settle()
    assert offsets(phone.read()) == [1, 2, 3]


async def test_a_read_that_breaks_ends_its_sessions_and_not_the_loop(bench: Bench) -> None:
    phones = await bench.connect_many(2)
    bench.store.slow = True
    bench.deliver((await bench.commit(FNS, 2))[1])
    await bench.settle()
    bench.store.answer(ValueError("a fault of ours"))
    await bench.settle()
    assert [phone.closed for phone in phones] == [(4503, "the gateway failed")] * 2
    bench.store.slow = False
    again = await bench.connect("x0", feeds=[FNS], resume={FNS: {"epoch": "e1", "offset": 0}})
    assert offsets(again.read()) == [1, 2]


async def test_who_left_while_its_page_was_read(bench: Bench) -> None:
    phones = await bench.connect_many(2)
    bench.store.slow = True
    bench.deliver((await bench.commit(FNS, 2))[1])
    await bench.settle()
    phones[0].session.lost(1006)
    bench.store.answer()
    await bench.settle()
    assert [offsets(phone.read()) for phone in phones] == [[], [1, 2]]


async def test_who_became_full_while_its_page_was_read_goes_on_later(bench: Bench) -> None:
    (phone,) = await bench.connect_many(1)
    bench.store.slow = True
    bench.deliver((await bench.commit(FNS, 2))[1])
    await bench.settle()
    phone.session.paused()
    bench.store.slow = False
    bench.store.answer()
    await bench.settle()
    assert offsets(phone.read()) == []
    phone.session.resumed()
    await bench.settle()
    assert offsets(phone.read()) == [1, 2]


async def test_what_left_the_tail_comes_from_the_store(bench: Bench) -> None:
    bench.hub.tail = Tail(2000)
    (phone,) = await bench.connect_many(1)
    phone.session.paused()
    await bench.publish(FNS, 20)
    assert len(bench.hub.feeds[FNS].entries or ()) < 5
    phone.session.resumed()
    await bench.settle()
    assert offsets(phone.read()) == list(range(1, 21))
    assert bench.counts.replayed == 20


async def test_retention_that_overtakes_a_live_session(bench: Bench, clock: Clock) -> None:
    bench.hub.tail = Tail(0)
    phone = await bench.connect("a")
    phone.session.paused()
    await bench.publish(A, 5)
    await bench.store.retain(clock.time() + 1)
    phone.session.resumed()
    await bench.settle()
    assert phone.closed == (4503, "history ended before this session had it")
    assert offsets(phone.read()) == []
    again = await bench.connect("a", resume={A: {"epoch": "e1", "offset": 0}})
    assert again.kinds() == ["welcome", "resync", "live"]


async def test_a_head_that_the_store_does_not_have(bench: Bench) -> None:
    phone = await bench.connect("a")
    bench.hub.received(Message(A, "e1", 7, b"{}", NORMAL, 0.0))
    await bench.settle()
    assert phone.closed == (4503, "the store was restored")


# One session does not stop another


async def test_a_full_socket_stops_only_itself(bench: Bench) -> None:
    slow, quick = await bench.connect_many(2)
    slow.session.paused()
    await bench.publish(FNS, 3)
    assert (offsets(slow.read()), offsets(quick.read())) == ([], [1, 2, 3])
    slow.session.resumed()
    assert offsets(slow.read()) == [1, 2, 3]
    await bench.publish(FNS)
    assert (offsets(slow.read()), offsets(quick.read())) == ([4], [4])


async def test_a_full_window_stops_only_its_feed(bench: Bench) -> None:
    bench.hub.window = 4
    phone = await bench.connect("a", feeds=[FNS])
    phone.read()
    await bench.publish(FNS, 10)
    assert offsets(phone.read()) == [1, 2, 3, 4]
    await bench.publish(A)
    assert offsets(phone.read()) == [1]
    phone.ack(FNS, 3)
    assert offsets(phone.read()) == [5, 6, 7]
    phone.ack(FNS, 7)
    assert offsets(phone.read()) == [8, 9, 10]
    await bench.publish(FNS)
    assert offsets(phone.read()) == [11]


# Saver mode


async def saver(bench: Bench, *, deflate: bool = False) -> Phone:
    phone = bench.phone(deflate=deflate)
    await bench.connect("a", phone=phone, mode="saver")
    phone.read()
    phone.inbox.clear()
    return phone


async def test_normal_and_bulk_wait_and_come_as_one_batch(bench: Bench) -> None:
    phone = await saver(bench)
    await bench.publish(A, 2, priority=BULK)
    bench.tick(10)
    await bench.publish(A, priority=NORMAL)
    bench.tick(19.5)
    assert offsets(phone.read()) == []
    bench.tick(1)
    messages = [message for message in phone.read() if message["t"] != "beat"]
    assert [message["t"] for message in messages] == ["batch"]
    assert offsets(messages) == [1, 2, 3]


@pytest.mark.parametrize("priority", [URGENT, HIGH])
async def test_what_cannot_wait_takes_all_before_it_along(bench: Bench, priority: int) -> None:
    phone = await saver(bench)
    await bench.publish(A, 2)
    assert offsets(phone.read()) == []
    await bench.publish(A, priority=priority)
    assert offsets(phone.read()) == [1, 2, 3]
    await bench.publish(A)
    assert offsets(phone.read()) == [], "the next one waits again"
    bench.tick(31)
    assert offsets(phone.read()) == [4]


async def test_feeds_wait_apart(bench: Bench) -> None:
    phone = await bench.connect("a", feeds=[FNS], mode="saver")
    phone.read()
    await bench.publish(FNS)
    await bench.publish(A, priority=URGENT)
    assert [(m["feed"], m["offset"]) for m in phone.read()] == [(A, 1)]


async def test_only_batches_of_a_saver_that_can_inflate_are_compressed(bench: Bench) -> None:
    phone = await saver(bench, deflate=True)
    await bench.publish(A, 3, data="слово " * 50)
    await bench.publish(A, priority=URGENT)
    assert offsets(phone.read()) == [1, 2, 3, 4]
    assert phone.compressed == 1
    await bench.publish(A, priority=URGENT)
    assert offsets(phone.read()) == [5]
    assert phone.compressed == 1, "a single event is written as it is"
    phone.say("mode", mode="full")
    phone.session.paused()
    await bench.publish(A, 3)
    phone.session.resumed()
    assert offsets(phone.read()) == [6, 7, 8]
    assert phone.compressed == 1


async def test_leaving_saver_mode_lets_go(bench: Bench) -> None:
    phone = await saver(bench)
    await bench.publish(A, 2)
    phone.say("mode", mode="full")
    messages = phone.read()
    assert offsets(messages) == [1, 2]
    await bench.publish(A)
    assert offsets(phone.read()) == [3]


async def test_an_urgent_event_behind_a_full_window_goes_with_the_ack(bench: Bench) -> None:
    bench.hub.window = 2
    phone = await saver(bench)
    await bench.publish(A, 2)
    await bench.publish(A, priority=URGENT)
    assert offsets(phone.read()) == [1, 2]
    phone.ack(A, 2)
    assert offsets(phone.read()) == [3]


async def test_nothing_waits_behind_what_the_bus_lost(bench: Bench) -> None:
    """It may have been urgent."""
    phone = await saver(bench)
    await bench.publish(A)
    _lost, shown = await bench.commit(A, 2)
    bench.deliver(shown)
    await bench.settle()
    assert offsets(phone.read()) == [1, 2, 3]


# Joining


async def test_hellos_share_a_trip(bench: Bench) -> None:
    phones = [bench.hello(f"x{n}") for n in range(300)]
    bench.store.calls.clear()
    await bench.settle()
    assert [len(given[0]) for name, given in bench.store.calls if name == "join"] == [256, 44]
    assert all(phone.session.open for phone in phones)
    assert bench.hub.sessions == 300
    assert bench.hub.opening == 0
    assert not bench.hub.joining


async def test_an_event_between_the_stores_answer_and_the_welcome(bench: Bench) -> None:
    bench.store.slow = True
    phone = bench.hello("a", feeds=[FNS])
    await bench.settle()
    await bench.publish(A)
    await bench.publish(FNS, 2)
    assert not phone.inbox
    bench.store.slow = False
    bench.store.answer()
    await bench.settle()
    messages = phone.read()
    assert [(item["feed"], item["from"]) for item in messages[0]["feeds"]] == [(A, 0), (FNS, 0)]
    assert offsets(messages, A) == [1]
    assert offsets(messages, FNS) == [1, 2]


async def test_a_join_that_shows_a_higher_head_wakes_the_others(bench: Bench) -> None:
    """The message on the bus is late then, and dropped as a repeat: nobody else would wake them."""
    (first,) = await bench.connect_many(1)
    (event,) = await bench.commit(FNS)
    second = await bench.connect("b", feeds=[FNS], resume={FNS: {"epoch": "e1", "offset": 0}})
    assert offsets(second.read()) == [1]
    await bench.settle()
    assert offsets(first.read()) == [1]
    bench.deliver(event)
    assert offsets(first.read()) == []


@pytest.mark.parametrize("lost", [False, True])
async def test_a_join_that_is_level_leaves_the_others_to_the_bus(bench: Bench, lost: bool) -> None:
    """During a storm of joins the message is nearly always on its way, and costs no read."""
    (first,) = await bench.connect_many(1)
    (event,) = await bench.commit(FNS)
    second = await bench.connect("b", feeds=[FNS])
    assert second.read()[0]["feeds"][1]["from"] == 1
    if lost:
        await bench.sweep()
    else:
        bench.deliver(event)
    assert (offsets(first.read()), offsets(second.read())) == ([1], [])
    assert bench.counts.store_reads == int(lost)
    await bench.publish(FNS)
    assert (offsets(first.read()), offsets(second.read())) == ([2], [2])


async def test_a_subscription_that_fails_costs_only_speed(bench: Bench) -> None:
    bench.air.down = True
    phone = await bench.connect("a")
    assert phone.kinds() == ["welcome", "live"]
    await bench.commit(A)
    await bench.sweep()
    assert offsets(phone.read()) == [1]


async def test_the_store_does_not_answer_a_join(bench: Bench) -> None:
    bench.store.away = True
    phone = await bench.connect("a")
    assert phone.closed == (4503, "the store does not answer")
    assert (bench.hub.sessions, bench.hub.opening, len(bench.hub.joining)) == (0, 0, 0)
    bench.store.away = False
    assert (await bench.connect("a")).kinds() == ["welcome", "live"]


async def test_a_fault_in_a_join_is_not_the_end_of_all_joins(bench: Bench) -> None:
    bench.store.slow = True
    phone = bench.hello("a")
    await bench.settle()
    bench.store.answer(ValueError("a fault of ours"))
    await bench.settle()
    assert phone.closed == (4503, "the gateway failed")
    bench.store.slow = False
    assert (await bench.connect("a")).kinds() == ["welcome", "live"]
    assert all(feed.pins == 0 for feed in bench.hub.feeds.values())


async def test_too_many_devices_and_all_connected(bench: Bench) -> None:
    for n in range(10):
        await bench.connect("a", f"d{n}")
    phone = await bench.connect("a", "d10")
    assert phone.closed == (4403, "the account has too many devices and all are connected")
    assert bench.hub.sessions == 10


async def test_the_one_longest_away_is_forgotten(bench: Bench, clock: Clock) -> None:
    phones = []
    for n in range(10):
        phones.append(await bench.connect("a", f"d{n}"))
        clock.now += 1
    phones[4].session.lost(1006)
    assert (await bench.connect("a", "d10")).kinds() == ["welcome", "live"]
    assert [device.device for device in await bench.store.devices("a")] == [f"d{n}" for n in range(11) if n != 4]


async def test_who_left_before_its_welcome(bench: Bench) -> None:
    bench.store.slow = True
    phone = bench.hello("a", feeds=[FNS])
    await bench.settle()
    phone.session.lost(1006)
    bench.store.answer()
    await bench.settle()
    assert not phone.inbox
    assert (bench.hub.sessions, bench.hub.opening, len(bench.hub.joining)) == (0, 0, 0)
    await bench.hub._drop_empty()
    assert bench.hub.feeds == {}


# Leaving


async def test_a_feed_without_sessions_is_let_go_a_little_later(bench: Bench) -> None:
    first, second = await bench.connect_many(2)
    await bench.publish(FNS)
    first.session.lost(1006)
    await bench.hub._drop_empty()
    assert set(bench.hub.feeds) == {"account:x1", FNS}
    second.session.lost(1006)
    assert set(bench.hub.feeds) == {"account:x1", FNS}
    again = await bench.connect("x1", feeds=[FNS])
    await bench.hub._drop_empty()
    assert set(bench.hub.feeds) == {"account:x1", FNS}
    again.session.lost(1006)
    await bench.hub._drop_empty()
    assert bench.hub.feeds == {}
    assert bench.air.feeds == set()


async def test_a_feed_that_somebody_waits_for_is_not_let_go(bench: Bench) -> None:
    phone = await bench.connect("a")
    phone.session.lost(1006)
    await bench.hub._flush()
    bench.store.slow = True
    again = bench.hello("a")
    await bench.settle()
    await bench.hub._drop_empty()
    assert A in bench.air.feeds
    bench.store.answer()
    await bench.settle()
    bench.store.slow = False
    await bench.publish(A)
    assert offsets(again.read()) == [1]


# What is saved


async def test_acks_of_all_are_saved_in_one_call_with_their_latest_position(bench: Bench) -> None:
    one, two = await bench.connect("a"), await bench.connect("b")
    await bench.publish(A, 3)
    await bench.publish("account:b", 1)
    one.ack(A, 1)
    one.ack(A, 3)
    two.ack("account:b", 1)
    bench.store.calls.clear()
    await bench.hub._flush()
    saves = [given[0] for name, given in bench.store.calls if name == "save"]
    assert [[(save.account, save.feed, save.epoch, save.offset) for save in saved] for saved in saves] == [
        [("a", A, "e1", 3), ("b", "account:b", "e1", 1)]
    ]
    await bench.hub._flush()
    assert sum(name == "save" for name, _ in bench.store.calls) == 1, "nothing new, nothing saved"


async def test_a_save_that_fails_is_saved_later(bench: Bench) -> None:
    phone = await bench.connect("a")
    await bench.publish(A, 2)
    phone.ack(A, 2)
    phone.say("seen", feed=A, offsets=[1])
    phone.session.lost(1006)
    bench.store.away = True
    with pytest.raises(StoreUnavailable):
        await bench.hub._flush()
    bench.store.away = False
    await bench.hub._flush()
    assert bench.store._accounts["a"]["d1"].cursors[A] == ("e1", 2)
    assert await bench.store.seen_offsets(A) == {1}


async def test_a_save_that_was_cut_short_at_the_end_is_made_up_for(bench: Bench) -> None:
    phone = await bench.connect("a")
    await bench.publish(A, 2)
    phone.ack(A, 2)
    bench.store.slow = bench.store.late = True
    flush = asyncio.create_task(bench.hub._flush())
    await asyncio.sleep(0)
    flush.cancel()
    await asyncio.gather(flush, return_exceptions=True)
    bench.store.slow = False
    await bench.hub.stop()
    assert bench.store._accounts["a"]["d1"].cursors[A] == ("e1", 2)


async def test_a_feed_that_was_left_is_not_brought_back_by_a_late_save(bench: Bench) -> None:
    phone = await bench.connect("a", feeds=[FNS])
    await bench.publish(FNS, 2)
    phone.ack(FNS, 2)
    bench.store.slow = bench.store.late = True
    flush = asyncio.create_task(bench.hub._flush())
    await asyncio.sleep(0)
    bench.store.slow = False
    phone.say("unsubscribe", feed=FNS)
    await bench.settle()
    bench.store.answer(StoreUnavailable("just now"))
    with pytest.raises(StoreUnavailable):
        await flush
    await bench.hub._flush()
    assert FNS not in bench.store._accounts["a"]["d1"].cursors


async def test_what_waits_while_the_store_is_away_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.hub.MARKS", 3)
    bench.store.away = True
    for n in range(10):
        bench.hub.was_seen(A, [n])
        bench.hub._touched.append(("a", "d1", float(n)))
    with pytest.raises(StoreUnavailable):
        await bench.hub._flush()
    assert [marks[1] for marks in bench.hub._seen] == [[7], [8], [9]]
    assert [touch[2] for touch in bench.hub._touched] == [7, 8, 9]


async def test_a_device_that_flaps_goes_on_after_what_it_acknowledged_a_moment_ago(bench: Bench) -> None:
    phone = await bench.connect("a")
    await bench.publish(A, 3)
    phone.ack(A, 2)
    phone.session.lost(1006)
    again = await bench.connect("a")
    assert offsets(again.read()) == [3]


# Erasure


def erasing(feed: str) -> Draft:
    made = draft(feed, "the erasure")
    event = orjson.dumps({**orjson.loads(made.event), "type": ERASED_TYPE})
    return Draft(feed, made.key, made.digest, event, ERASED_TYPE, None, 0.0, HIGH)


@pytest.mark.parametrize("way", ["told", "lost, then a hole", "lost, then the sweep"])
async def test_what_was_erased_is_not_sent_from_memory(bench: Bench, clock: Clock, way: str) -> None:
    (phone,) = await bench.connect_many(1)
    phone.session.paused()
    await bench.publish(FNS, 2, data="a secret")
    erased = await bench.store.erase(FNS, 1, lambda ranges: erasing(FNS), clock.time())
    assert erased is not None
    match way:
        case "told":
            bench.deliver(erased)
        case "lost, then a hole":
            await bench.publish(FNS)
        case "lost, then the sweep":
            await bench.sweep()
    phone.session.resumed()
    await bench.settle()
    messages = phone.read()
    assert offsets(messages)[:3] == [1, 2, 3]
    assert messages[0]["events"][0] == [1, None]


# Between devices


async def test_seen_is_told_to_the_other_devices_that_follow(bench: Bench) -> None:
    one, two = await bench.connect("a", "d1", feeds=[FNS]), await bench.connect("a", "d2")
    other = await bench.connect("b", "d1", feeds=[FNS])
    await bench.publish(A, 2)
    await bench.publish(FNS)
    for phone in (one, two, other):
        phone.read()
    one.say("seen", feed=A, offsets=[1, 2])
    one.say("seen", feed=FNS, offsets=[1])
    await bench.settle()
    assert two.read() == [{"t": "seen", "feed": A, "offsets": [1, 2]}]
    assert one.read() == []
    assert other.read() == []
    await bench.hub._flush()
    assert await bench.store.seen_offsets(A) == {1, 2}


async def test_seen_reaches_those_here_when_the_bus_is_away(bench: Bench) -> None:
    one, two = await bench.connect("a", "d1"), await bench.connect("a", "d2")
    await bench.publish(A)
    two.read()
    bench.air.down = True
    one.say("seen", feed=A, offsets=[1])
    await bench.settle()
    assert two.read() == [{"t": "seen", "feed": A, "offsets": [1]}]


# The loops


async def test_work_that_fails_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.waiting.AGAIN_S", 0)
    tries: list[int] = []
    done = asyncio.Event()

    async def work() -> None:
        tries.append(1)
        if len(tries) < 3:
            raise ValueError("a fault of ours")
        done.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(always("work", work))
    await done.wait()
    assert len(tries) == 3
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_session_that_fails_at_its_time_does_not_stop_the_clock(bench: Bench) -> None:
    one, two = await bench.connect("a"), await bench.connect("b")

    def broken(data: bytes) -> None:
        raise RuntimeError("the handler is closed")

    one.on_write = broken
    two.read()
    bench.tick(26)
    assert one.closed == (4503, "the gateway failed")
    assert two.kinds() == ["beat"]


async def test_when_an_event_was_first_written_is_remembered(bench: Bench, clock: Clock) -> None:
    await bench.connect("a", "d1")
    await bench.publish(A)
    entries = bench.hub.feeds[A].entries
    assert entries is not None
    first = clock.time()
    assert entries[1].written == first
    clock.now += 5
    late = await bench.connect("a", "d2", resume={A: {"epoch": "e1", "offset": 0}})
    assert offsets(late.read(), A) == [1]
    assert entries[1].written == first, "the second write changes nothing"


async def test_what_a_session_takes_from_the_tail_was_written_then(bench: Bench, clock: Clock) -> None:
    phone = await bench.connect("a", mode="saver")
    await bench.publish(A)
    entries = bench.hub.feeds[A].entries
    assert entries is not None
    assert entries[1].written == 0
    clock.now += 3
    phone.say("mode", mode="full")
    assert entries[1].written == clock.time()


async def test_the_loops_do_their_work_in_their_own_time() -> None:
    """The one test here with the real clock."""
    bench = Bench(Clock(), save_s=0.01, sweep_s=0.05, beat_s=0.1)
    for task in bench.tasks:
        task.cancel()
    bench.tasks.clear()
    bench.hub.start()

    async def until(done: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not done():
                await asyncio.sleep(0.005)

    phone = bench.phone()
    bench.hello("a", phone=phone, token=KEY.issue("a"))
    await until(lambda: phone.session.open)
    await bench.publish(A)
    phone.ack(A, 1)
    await until(lambda: bench.store._accounts["a"]["d1"].cursors[A] == ("e1", 1))
    await bench.commit(A)
    await until(lambda: bench.hub.feeds[A].head == 2)
    seen: list[str] = []
    await until(lambda: seen.extend(phone.kinds()) or {"event", "beat"} <= set(seen))
    await bench.commit(A)
    bench.hub.gap()
    await until(lambda: bench.hub.feeds[A].head == 3)
    await bench.hub.stop()
