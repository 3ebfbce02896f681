"""An agency that signs by itself and posts over plain keep-alive connections."""

import asyncio
import base64
import hashlib
import hmac
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import orjson

from loadtests.bench.processes import Failed

TIME = "2026-11-22T14:00:00Z"


class Http:
    """One connection, one request at a time."""

    def __init__(self, port: int, host: str = "127.0.0.1"):
        self._host, self._port = host, port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def request(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> bytes:
        """The body of a 200 or 202; anything else raises Failed."""
        if self._streams is not None and self._streams[0].at_eof():
            self.close()  # a server ends what was idle for some seconds
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._streams
        lines = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\nContent-Length: {len(body)}\r\n{lines}\r\n"
        )
        writer.write(head.encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        if "\r\ntransfer-encoding: chunked\r\n" in answer:
            content = await _chunks(reader)
        else:
            content = await reader.readexactly(int(answer.partition("content-length:")[2].partition("\r\n")[0]))
        if answer[9:12] not in ("200", "202"):
            raise Failed(f"{method} {path} was answered {answer[9:12]}: {content[:300].decode(errors='replace')}")
        return content

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    """A chunked body (RFC 9112, 7.1) without trailers."""
    whole = b""
    while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
        whole += (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)
    return whole


class Connections:
    """Keep-alive connections to one server; each request takes the next free one."""

    def __init__(self, port: int, host: str = "127.0.0.1", count: int = 16):
        self._idle: asyncio.Queue[Http] = asyncio.Queue()
        for _ in range(count):
            self._idle.put_nowait(Http(port, host))

    async def request(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> bytes:
        """As `Http.request`; after an error that connection is opened anew."""
        connection = await self._idle.get()
        try:
            return await connection.request(method, path, headers, body)
        except BaseException:
            connection.close()
            raise
        finally:
            self._idle.put_nowait(connection)

    def close(self) -> None:
        while not self._idle.empty():
            self._idle.get_nowait().close()


class Agency:
    """Posts events of one agency. Several of the same agency share `numbers`, or they would give a name twice."""

    def __init__(
        self, port: int, code: str, secret: str, numbers: Iterator[int] | None = None, host: str = "127.0.0.1"
    ):
        self.code = code
        self._key = base64.b64decode(secret.removeprefix("whsec_"))
        self.numbers = numbers or itertools.count(1)
        self._connections = Connections(port, host)

    def public(self, text: str) -> dict[str, Any]:
        """A notice to all who follow the agency."""
        return self._event("gov.notice.published", {"title": "Тест", "text": text})

    def personal(self, account: str) -> dict[str, Any]:
        """A change of an application's status; about 300 bytes."""
        number = f"2026-{next(self.numbers):08d}"
        data = {"application": number, "service": "passport", "status": "processing", "title": "Заявление принято"}
        return self._event("gov.status.changed", data) | {"account": account, "subject": f"application/{number}"}

    def _event(self, kind: str, data: dict[str, Any]) -> dict[str, Any]:
        return {
            "specversion": "1.0",
            "id": f"e{next(self.numbers):08d}",
            "source": f"/agencies/{self.code}",
            "type": kind,
            "time": TIME,
            "data": data,
        }

    async def post(self, events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Results of the events, all of them stored."""
        single = len(events) == 1
        body = orjson.dumps(events[0] if single else events)
        kind = "application/cloudevents+json" if single else "application/cloudevents-batch+json"
        results: list[dict[str, Any]] = (await self._signed("events", kind, body))["results"]
        return results

    async def receipts(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        answer = await self._signed("receipts", "application/json", orjson.dumps({"ids": ids}))
        return next(value for value in answer.values() if isinstance(value, list))

    async def _signed(self, what: str, kind: str, body: bytes) -> dict[str, Any]:
        name, now = f"msg_{next(self.numbers)}", str(int(time.time()))
        digest = hmac.digest(self._key, f"{name}.{now}.".encode() + body, hashlib.sha256)
        headers = {
            "Content-Type": kind,
            "webhook-id": name,
            "webhook-timestamp": now,
            "webhook-signature": "v1," + base64.b64encode(digest).decode(),
        }
        path = f"/v1/agencies/{self.code}/{what}"
        answer: dict[str, Any] = orjson.loads(await self._connections.request("POST", path, headers, body))
        return answer

    def close(self) -> None:
        self._connections.close()
