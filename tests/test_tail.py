from gateway.bus.base import Message
from gateway.protocol.codec import JSON, MSGPACK
from gateway.tail import ENTRY_OVERHEAD_BYTES, Entries, Entry, Tail


def entry(offset: int, size: int = 100, feed: str = "agency:fns") -> Entry:
    event = b'"' + b"x" * (size - 2) + b'"'
    return Entry(Message(feed, "e", offset, event, 2, 0.0))


SIZE = ENTRY_OVERHEAD_BYTES + 300


def test_the_same_frame_for_all_and_one_for_each_subprotocol() -> None:
    one = entry(1)
    assert one.frame(JSON, "agency:fns") is one.frame(JSON, "agency:fns")
    assert one.frame(MSGPACK, "agency:fns") is one.frame(MSGPACK, "agency:fns")
    assert one.frame(JSON, "agency:fns") == JSON.event_frame("agency:fns", 1, one.event)
    assert one.frame(MSGPACK, "agency:fns") == MSGPACK.event_frame("agency:fns", 1, one.event)


def test_an_entry_counts_for_all_that_it_comes_to_hold() -> None:
    one = entry(1, 1000)
    held = len(one.event or b"") + len(one.frame(JSON, "agency:fns")) + len(one.frame(MSGPACK, "agency:fns"))
    assert held <= one.size <= held + ENTRY_OVERHEAD_BYTES
    assert Entry(Message("agency:fns", "e", 1, None, 2, 0.0)).size == ENTRY_OVERHEAD_BYTES


def test_over_the_budget_the_oldest_of_all_feeds_go() -> None:
    tail = Tail(3 * SIZE)
    a: Entries = {}
    b: Entries = {}
    tail.put(a, entry(1), 0)
    tail.put(b, entry(7), 1)
    tail.put(a, entry(2), 2)
    assert tail.used == 3 * SIZE
    tail.put(a, entry(3), 3)
    assert (sorted(a), sorted(b), tail.used, len(tail)) == ([2, 3], [7], 3 * SIZE, 3)
    tail.put(a, entry(4), 4)
    assert (sorted(a), sorted(b)) == ([2, 3, 4], [])


def test_one_that_is_over_the_budget_alone_does_not_stay() -> None:
    tail, feed = Tail(SIZE), {}  # type: ignore[var-annotated]
    tail.put(feed, entry(1, 5000), 0)
    assert (feed, tail.used, len(tail)) == ({}, 0, 0)


def test_nothing_stays_longer_than_its_time() -> None:
    tail, feed = Tail(100 * SIZE, keep_s=60), {}  # type: ignore[var-annotated]
    tail.put(feed, entry(1), 0)
    tail.put(feed, entry(2), 30)
    tail.trim(60)
    assert sorted(feed) == [1, 2]
    tail.trim(60.1)
    assert sorted(feed) == [2]
    tail.put(feed, entry(3), 91)
    assert sorted(feed) == [3]
    assert tail.used == SIZE


def test_the_first_of_one_offset_stays() -> None:
    tail, feed, first = Tail(100 * SIZE), {}, entry(1)  # type: ignore[var-annotated]
    tail.put(feed, first, 0)
    tail.put(feed, entry(1), 0)
    assert feed == {1: first}
    assert (tail.used, len(tail)) == (SIZE, 1)


def test_a_dropped_feed_is_gone_at_once_and_counted_until_its_memory_is() -> None:
    tail = Tail(3 * SIZE)
    a: Entries = {}
    tail.put(a, entry(1), 0)
    tail.put(a, entry(2), 0)
    tail.drop(a)
    assert a == {}
    assert tail.used == 2 * SIZE, "the queue still holds them"
    tail.put(a, entry(3), 1)
    tail.put(a, entry(4), 1)
    assert (sorted(a), tail.used, len(tail)) == ([3, 4], 3 * SIZE, 3)
    tail.trim(60.5)
    assert (sorted(a), tail.used, len(tail)) == ([3, 4], 2 * SIZE, 2)
    tail.trim(1000)
    assert (a, tail.used, len(tail)) == ({}, 0, 0)


def test_an_offset_that_came_back_after_a_drop_is_not_taken_with_the_old_one() -> None:
    tail = Tail(100 * SIZE, keep_s=60)
    a: Entries = {}
    tail.put(a, entry(1), 0)
    tail.drop(a)
    tail.put(a, entry(1), 50)
    tail.trim(70)
    assert (sorted(a), tail.used) == ([1], SIZE)
