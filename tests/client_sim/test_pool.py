"""GETs over kept connections, whatever the other side does with them."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from client_sim.pool import Pool, Unanswered

OK = b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"a":"b"}'


class Server:
    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self.answers: Callable[[int], bytes] = lambda number: OK
        self.hang_up = False
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                self.requests.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(self.answers(len(self.requests)))
                await writer.drain()
                if self.hang_up:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    it = Server()
    listening = await asyncio.start_server(it.serve, "127.0.0.1", 0)
    it.port = listening.sockets[0].getsockname()[1]
    yield it
    listening.close()


@pytest.fixture
async def pool(server: Server) -> AsyncIterator[Pool]:
    it = Pool("127.0.0.1", server.port, connections=2)
    yield it
    await it.close()


async def test_a_connection_is_kept(server, pool):
    for _ in range(3):
        assert await pool.get("/v1/snapshot", "secret", {"after": 3}) == (200, {"a": "b"})
    assert server.connections == 1
    assert server.requests[0].startswith(b"GET /v1/snapshot?after=3 HTTP/1.1\r\n")
    assert b"Authorization: Bearer secret\r\n" in server.requests[0]


async def test_there_are_never_more_connections_than_it_may_have(server, pool):
    await asyncio.gather(*(pool.get("/x", "t") for _ in range(20)))
    assert server.connections <= 2


async def test_a_connection_that_was_closed_meanwhile_is_replaced(server, pool):
    server.hang_up = True
    for _ in range(3):
        assert (await pool.get("/x", "t"))[0] == 200
    assert server.connections == 3


async def test_what_is_no_json_is_none(server, pool):
    server.answers = lambda number: b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy"
    assert await pool.get("/x", "t") == (503, None)


@pytest.mark.parametrize(
    "answer", [b"SSH-2.0\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nshort"]
)
async def test_what_is_no_answer_is_told(server, pool, answer):
    server.answers = lambda number: answer
    server.hang_up = True
    with pytest.raises(Unanswered, match="GET /x"):
        await pool.get("/x", "t")


async def test_nobody_there():
    pool = Pool("127.0.0.1", 1)
    with pytest.raises(Unanswered):
        await pool.get("/x", "t")
