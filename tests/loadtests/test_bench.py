"""The measuring instrument: its phones must notice what is wrong, and its arithmetic must be right."""

import asyncio
import contextlib

import pytest

from gateway.protocol import frames
from gateway.protocol.codec import by_subprotocol
from loadtests.bench.__main__ import document, number, table
from loadtests.bench.agency import Http
from loadtests.bench.cases import Row, chunks, p99
from loadtests.bench.phones import Broken, Counter, Phone, Swarm, masked
from loadtests.bench.processes import Failed, reference

EVENT = b'{"id":"1","data":{"text":"\xd0\x94\xd0\xb0"},"recordedtime":"2026-11-22T14:00:00.123Z"}'
JSON = by_subprotocol["vestnik.v1.json"]


def phone() -> Phone:
    one = Phone(Swarm("test", 1, "/"), "a", "token", ["agency:b"])
    one.feeds["account:a"] = 0
    return one


def event(offset: int, text: bytes = EVENT) -> bytes:
    return JSON.event_frame("account:a", offset, text)


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_frames_come_in_any_pieces(step: int) -> None:
    one = phone()
    one.swarm.latencies = []
    stream = b"".join(event(offset) for offset in range(1, 6)) + event(6, b'"' + b"x" * 70_000 + b'"')[:20_000]
    for start in range(0, len(stream), step):
        one.data_received(stream[start : start + step])
    assert (one.swarm.count, one.feeds["account:a"], one.swarm.broken) == (5, 5, None)
    assert len(one.swarm.latencies) == 5


def test_repeats_are_counted_and_holes_break() -> None:
    one = phone()
    one.data_received(event(1) + event(2) + event(1) + event(2) + event(3))
    assert (one.swarm.count, one.swarm.repeats) == (3, 2)
    one.data_received(event(5))
    with pytest.raises(Broken, match="a hole: 5 after 3"):
        one.swarm.check()


def test_batches_count_like_events() -> None:
    one = phone()
    for data in JSON.batch_frames("account:a", [(1, EVENT), (2, None), (3, EVENT)]):
        one.data_received(data)
    assert one.swarm.count == 3


def test_a_close_breaks() -> None:
    one = phone()
    one.data_received(frames.frame(frames.CLOSE, (4508).to_bytes(2, "big") + b"too slow"))
    with pytest.raises(Broken, match="4508 too slow"):
        one.swarm.check()


@pytest.mark.parametrize("size", [0, 125, 126, 5000])
def test_masked_frames_are_frames(size: int) -> None:
    payload = b"x" * size
    assert frames.Parser(16_384, False).feed(masked(payload)) == [(frames.TEXT, payload)]


def test_p99_and_chunks() -> None:
    assert p99([1.0]) == 1.0
    assert p99([float(value) for value in range(1, 101)]) == 99.0
    assert chunks([1, 2, 3], 2) == [[1, 2], [3]]


def test_rows_are_judged() -> None:
    rows = [
        Row("a", 1.0, "s", 2.0),
        Row("b", 3.0, "s", 2.0),
        Row("c", 3.0, "1/s", 2.0, at_least=True),
        Row("d", 1, "s"),
    ]
    assert [row.ok for row in rows] == [True, False, True, None]
    assert table({"case": rows}).row_count == 4
    assert document({"case": rows}, {})["rows"][1]["ok"] is False
    assert [number(value) for value in (0.123456, 1.0, 12.345, 3308.4)] == ["0.123", "1", "12.3", "3,308"]


async def test_the_bare_reference_sends_to_all() -> None:
    async with reference("bare") as server, Http(server.port) as http:
        swarm = Swarm("bare", server.port, "/")
        await swarm.connect([Counter(swarm, "", "") for _ in range(20)], 20)
        for _ in range(3):
            target = swarm.count + 20
            await http.request("GET", "/blast?size=300")
            await swarm.until(lambda target=target: swarm.count >= target, 5)  # type: ignore[misc]
        assert server.cpu_s >= 0
        assert server.rss_bytes > 1_000_000
        await swarm.close()
    await asyncio.sleep(0)


async def test_a_phone_comes_again_when_it_is_told_to() -> None:
    answers = [b"503 Service Unavailable\r\nretry-after: 0", b"101 Switching Protocols"]

    async def door(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 " + answers.pop(0) + b"\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            await reader.read()
        writer.close()

    async with await asyncio.start_server(door, "127.0.0.1", 0) as server:
        swarm = Swarm("test", server.sockets[0].getsockname()[1], "/")
        await swarm.connect([Counter(swarm, "", "")], 1, patience_s=10)
        assert (swarm.ready, swarm.refusals) == (1, 1)
        await swarm.close()


async def test_a_server_that_ends_is_said() -> None:
    with pytest.raises(Failed, match="did not start"):
        async with reference("no-such-thing"):
            raise AssertionError
