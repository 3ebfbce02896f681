import pytest

from gateway.bus.slots import SLOTS, channel_in, moved, ranges, replicas, slot_of


@pytest.mark.parametrize(
    ("name", "slot"),
    [
        (b"123456789", 0x31C3),  # the check value of the specification
        (b"", 0),
        (b"foo", 12182),
        (b"{foo}bar", 12182),
        (b"foo{foo}{bar}", 12182),
        (b"{}foo", slot_of(b"x{}foo"[1:])),
    ],
)
def test_slots_of_the_specification(name: bytes, slot: int) -> None:
    assert slot_of(name) == slot


def test_hash_tags_as_the_specification_tells_them() -> None:
    assert slot_of(b"foo{{bar}}zap") == slot_of(b"{bar")
    assert slot_of(b"foo{}{bar}") != slot_of(b"bar")
    assert slot_of(b"foo{bar") != slot_of(b"bar")


@pytest.mark.parametrize("owned", [{0}, {SLOTS - 1}, set(range(5461, 10923))])
def test_every_slot_has_a_channel(owned: set[int]) -> None:
    channel = channel_in(owned, b"vestnik.probe.1.")
    assert channel is not None
    assert channel.startswith(b"vestnik.probe.1.")
    assert slot_of(channel) in owned


def test_no_slot_has_none() -> None:
    assert channel_in(set(), b"x") is None


@pytest.mark.parametrize(
    ("error", "found"),
    [
        ("MOVED 3999 127.0.0.1:6381", (3999, "127.0.0.1", 6381)),
        ("MOVED 3999 :6381", (3999, "", 6381)),
        ("MOVED 3999 [::1]:6381", (3999, "::1", 6381)),
        ("MOVED 3999 redis-2.example:6381", (3999, "redis-2.example", 6381)),
        ("ASK 3999 127.0.0.1:6381", None),
        ("MOVED 16384 127.0.0.1:6381", None),
        ("MOVED", None),
        ("MOVED x y", None),
        ("CLUSTERDOWN Hash slot not served", None),
    ],
)
def test_where_a_slot_has_moved(error: str, found: tuple[int, str, int] | None) -> None:
    assert moved(error) == found


def test_a_map() -> None:
    reply = [
        [0, 5460, [b"10.0.0.1", 7000, b"id1", []], [b"10.0.0.4", 7003, b"id4", []]],
        [5461, 16383, [None, 7001, b"id2"], [b"10.0.0.5", 7004, b"id5"], [b"?", 7005, b"id6"]],
        [100, 100, [b"?", 7002, b"id3"]],
    ]
    assert ranges(reply, "asked") == [(0, 5460, "10.0.0.1", 7000), (5461, 16383, "asked", 7001)]
    assert replicas(reply) == [("10.0.0.4", 7003), ("10.0.0.5", 7004)]


@pytest.mark.parametrize("reply", [b"junk", None, [1], [[1, 2]], [[1, 2, 3]], [[b"1", 2, [b"h", 1]]]])
def test_what_is_no_map(reply: object) -> None:
    with pytest.raises(ValueError, match="CLUSTER SLOTS"):
        ranges(reply, "asked")
