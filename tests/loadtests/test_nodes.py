"""The cases of several nodes: a judge that sees what was planted, and devices that come back."""

import asyncio

import pytest

from loadtests.bench.__main__ import ALL
from loadtests.bench.agency import Agency
from loadtests.bench.aside import draft
from loadtests.bench.cases import CASES
from loadtests.bench.phones import Broken, Swarm
from loadtests.bench.roamers import Roamer, Sent, delays, judge, level_s, missing, verdict


def roamer(nodes: int = 3) -> Roamer:
    one = Roamer([Swarm(f"node {number}", 1, "/") for number in range(nodes)], 0, "a", "token", ["agency:b"])
    one.feeds["account:a"] = 0
    return one


def event(offset: int, name: str) -> bytes:
    payload = b'{"t":"event","feed":"account:a","offset":%d,"event":{"id":"%b"}}' % (offset, name.encode())
    return bytes((0x81, len(payload))) + payload


@pytest.mark.parametrize(
    ("got", "found"),
    [
        ("abcd", (0, 0, 0)),
        ("abd", (1, 0, 0)),
        ("", (4, 0, 0)),
        ("abbcd", (0, 1, 0)),
        ("acbd", (0, 0, 1)),
        ("dcba", (0, 0, 3)),
        ("dab", (1, 0, 1)),
        ("abcda", (0, 1, 0)),
    ],
)
def test_the_judge_tells_what_is_wrong(got: str, found: tuple[int, int, int]) -> None:
    assert judge("abcd", got) == found


def test_the_order_sent_is_that_of_the_offsets() -> None:
    one = roamer()
    one.got = [(1, "x", 0.0), (2, "y", 0.0)]
    sent = Sent({"a": [(2, "y", 0.1), (1, "x", 0.2)], "nobody": [(1, "z", 0.0)]})
    assert verdict(sent, [one]) == (0, 0, 0)


def test_a_device_is_level_when_it_has_the_highest_answered_offset() -> None:
    one, sent = roamer(), Sent({"a": [(2, "y", 0.1), (1, "x", 0.2)]})
    assert missing(sent, [one])
    one.data_received(event(1, "x") + event(2, "y"))
    assert not missing(sent, [one])
    assert not missing(Sent(), [one])


def test_level_is_when_the_last_late_event_came() -> None:
    late = delays({"a": 10.0, "b": 11.0, "c": 12.0, "never": 13.0}, {"a": 10.1, "b": 15.0, "c": 14.0})
    assert late == [(10.1, pytest.approx(0.1)), (15.0, 4.0), (14.0, 2.0)]
    assert level_s(late, 13.0, 1.0) == 2.0
    assert level_s(late, 13.0, 5.0) == 0.0


def test_repeats_on_the_wire_are_dropped_and_holes_break() -> None:
    one = roamer()
    one.data_received(event(1, "x") + event(1, "x") + event(2, "y"))
    assert [name for _, name, _ in one.got] == ["x", "y"]
    assert one.swarm.repeats == 1
    one.data_received(event(4, "z"))
    with pytest.raises(Broken, match="a hole: 4 after 2"):
        one.swarm.check()


def test_batches_are_events() -> None:
    one = roamer()
    one.message({"t": "batch", "feed": "account:a", "events": [[1, {"id": "x"}], [2, {"id": "y"}]]})
    assert [(offset, name) for offset, name, _ in one.got] == [(1, "x"), (2, "y")]


async def test_a_device_goes_to_another_node_when_told_to() -> None:
    one = roamer()
    welcomed = asyncio.get_running_loop().create_future()

    class Door(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            if not welcomed.done():
                welcomed.set_result(data)

    server = await asyncio.get_running_loop().create_server(Door, "127.0.0.1", 0)
    async with server:
        for swarm in one._nodes:
            swarm.port = server.sockets[0].getsockname()[1]
        one.message({"t": "drain", "after": 0})
        async with asyncio.timeout(5):
            assert (await welcomed).startswith(b"GET / HTTP/1.1\r\n")
        assert one.node in (1, 2)
        assert one.swarm is one._nodes[one.node]
        one.leave()


def test_agencies_of_one_name_share_numbers() -> None:
    first = Agency(1, "b", "whsec_AAAA")
    second = Agency(2, "b", "whsec_AAAA", numbers=first.numbers)
    assert len({maker.personal("a")["id"] for maker in (first, second) * 3}) == 6


def test_drafts_differ_by_name_alone() -> None:
    assert draft("a-1", "x").key != draft("a-2", "x").key
    assert draft("a-1", "x") == draft("a-1", "x")


def test_cases_of_several_nodes_run_only_when_named() -> None:
    assert {name for name in ALL if name.startswith("nodes-")} == set(ALL) - set(CASES)
    assert len(ALL) == len(CASES) + 5
