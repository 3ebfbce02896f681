"""HTTP GET for thousands of devices: a few kept connections to one address, a request at a time on each."""

import asyncio
from typing import Any
from urllib.parse import urlencode

import orjson

TIMEOUT_S = 20.0
_LARGEST = 64 << 20  # bytes of one answer: a snapshot of a long life


class Unanswered(Exception):
    """No answer, or one that is no HTTP with a length. Nothing is known."""


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Pool:
    """At most `connections` at once; further requests wait for their turn. Cancelling a `get` is safe."""

    def __init__(self, host: str, port: int, connections: int = 16):
        self.host, self.port = host, port
        self._turn = asyncio.Semaphore(connections)
        self._idle: list[Streams] = []

    async def get(self, path: str, token: str, query: dict[str, Any] | None = None) -> tuple[int, Any]:
        """(status, decoded JSON, None when it is none). Raises Unanswered."""
        target = f"{path}?{urlencode(query)}" if query else path
        request = (
            f"GET {target} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nAuthorization: Bearer {token}\r\n\r\n"
        ).encode()
        async with self._turn:
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    return await self._exchange(request)
            except (OSError, TimeoutError, EOFError, ValueError, IndexError, asyncio.LimitOverrunError) as error:
                raise Unanswered(f"no answer to GET {path}: {error!r}") from None

    async def close(self) -> None:
        while self._idle:
            self._idle.pop()[1].close()

    async def _exchange(self, request: bytes) -> tuple[int, Any]:
        while self._idle:
            streams = self._idle.pop()
            if streams[0].at_eof() or streams[1].is_closing():
                streams[1].close()
                continue
            try:
                return await self._ask(streams, request)
            except (OSError, EOFError):
                continue  # it was closed while it lay idle: a GET may be asked again
        return await self._ask(await asyncio.open_connection(self.host, self.port), request)

    async def _ask(self, streams: Streams, request: bytes) -> tuple[int, Any]:
        reader, writer = streams
        whole = False
        try:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            status, length = int(head.split(" ", 2)[1]), _length(head)
            body = await reader.readexactly(length)
            whole = "connection: close" not in head
        finally:
            if whole:
                self._idle.append(streams)
            else:
                writer.close()
        try:
            return status, orjson.loads(body)
        except orjson.JSONDecodeError:
            return status, None


def _length(head: str) -> int:
    length = int(head.partition("\r\ncontent-length:")[2].partition("\r\n")[0])
    if not 0 <= length <= _LARGEST:
        raise ValueError(f"an answer of {length} bytes")
    return length
