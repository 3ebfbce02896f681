import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.delivery import Beginning, PastTold, Track, start


def begin(**given: object) -> Beginning:
    defaults = {"epoch": "e", "oldest": 1, "head": 10, "resume": None, "cursor": None, "otherwise": 4}
    return start(**(defaults | given))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "beginning"),
    [
        # Contract, "Where a feed starts". With `resume`: after that position, and it counts as an ack.
        ({"resume": ("e", 7)}, Beginning(7, 7)),
        ({"resume": ("e", 0)}, Beginning(0, 0)),
        ({"resume": ("e", 10)}, Beginning(10, 10)),
        # It outranks the stored cursor, whichever is higher.
        ({"resume": ("e", 2), "cursor": ("e", 7)}, Beginning(2, 2)),
        ({"resume": ("e", 7), "cursor": ("e", 2)}, Beginning(7, 7)),
        ({"resume": ("e", 7), "cursor": ("old", 9)}, Beginning(7, 7)),
        # Another epoch or past the head: resync; the head, and no cursor moves.
        ({"resume": ("old", 7)}, Beginning(10, None, "epoch")),
        ({"resume": ("old", 7), "cursor": ("e", 7)}, Beginning(10, None, "epoch")),
        ({"resume": ("e", 11)}, Beginning(10, None, "epoch")),
        ({"cursor": ("old", 7)}, Beginning(10, None, "epoch")),
        ({"cursor": ("e", 11)}, Beginning(10, None, "epoch")),
        # Older than what is kept: resync too, never what is left of it.
        ({"resume": ("e", 3), "oldest": 5}, Beginning(10, None, "retention")),
        ({"cursor": ("e", 3), "oldest": 5}, Beginning(10, None, "retention")),
        ({"resume": ("e", 4), "oldest": 5}, Beginning(4, 4)),
        ({"resume": ("e", 10), "oldest": 11}, Beginning(10, 10)),
        ({"resume": ("e", 9), "oldest": 11}, Beginning(10, None, "retention")),
        # Else after the stored cursor.
        ({"cursor": ("e", 7)}, Beginning(7, 7)),
        # Never seen: after what any device of the account acknowledged.
        ({}, Beginning(4, 4)),
        ({"otherwise": 0}, Beginning(0, 0)),
        ({"otherwise": 99}, Beginning(10, 10)),
        ({"otherwise": 2, "oldest": 6}, Beginning(5, 5)),
        # An empty feed.
        ({"head": 0, "otherwise": 0}, Beginning(0, 0)),
        ({"head": 0, "resume": ("e", 0)}, Beginning(0, 0)),
        ({"head": 0, "resume": ("e", 1)}, Beginning(0, None, "epoch")),
    ],
)
def test_where_a_feed_starts(given: dict[str, object], beginning: Beginning) -> None:
    assert begin(**given) == beginning


positions = st.none() | st.tuples(st.sampled_from(["e", "old"]), st.integers(0, 30))


@given(st.integers(1, 20), st.integers(0, 20), positions, positions, st.integers(0, 30))
def test_a_start_is_whole_or_says_so(
    oldest: int, more: int, resume: tuple[str, int] | None, cursor: tuple[str, int] | None, otherwise: int
) -> None:
    head = oldest - 1 + more
    began = start(epoch="e", oldest=oldest, head=head, resume=resume, cursor=cursor, otherwise=otherwise)
    assert oldest - 1 <= began.offset <= head, "everything after it can be read"
    if began.reason is not None:
        assert (began.offset, began.store) == (head, None)
    else:
        assert began.store == began.offset
        position = resume or cursor
        assert position is None or position == ("e", began.offset), "nothing is skipped in silence"


def test_window_and_acks() -> None:
    track = Track(5)
    assert track.room(4) == 4
    track.advance(6, 8)
    track.advance(9, 9)
    assert track.room(4) == 0
    assert track.ack(7)
    assert track.room(4) == 2
    assert not track.ack(7)
    assert not track.ack(3)
    assert (track.acked, track.sent) == (7, 9)


def test_an_ack_past_what_was_told_moves_nothing() -> None:
    track = Track(5)
    track.advance(6, 6)
    with pytest.raises(PastTold, match="told up to 6, acknowledged 7"):
        track.ack(7)
    assert (track.acked, track.sent) == (5, 6)


@pytest.mark.parametrize(("first", "last"), [(5, 6), (7, 7), (6, 5)])
def test_only_the_next_events_may_be_written(first: int, last: int) -> None:
    track = Track(5)
    with pytest.raises(AssertionError, match="after 5"):
        track.advance(first, last)
    assert track.sent == 5


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 12)), max_size=60))
def test_neither_position_ever_goes_back(steps: list[tuple[bool, int]]) -> None:
    track, window = Track(0), 5
    for write, number in steps:
        acked, sent = track.acked, track.sent
        if write:
            count = min(number, track.room(window))
            if count:
                track.advance(sent + 1, sent + count)
        else:
            try:
                assert track.ack(number) == (number > acked)
            except PastTold:
                assert number > sent
        assert acked <= track.acked <= track.sent
        assert sent <= track.sent <= track.acked + window
