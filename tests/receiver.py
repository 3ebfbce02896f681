"""Somebody's receiver of webhooks, on a free port: checks each post by Standard Webhooks, from its text and without our
code, and fails as told.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

Answer = int | Literal["drop", "hang"]
"""A status, or the connection is closed without an answer, or it stays open without one."""

SECRET = "whsec_" + base64.b64encode(b"the operators' own secret").decode()


@dataclass(frozen=True)
class Post:
    target: str
    headers: dict[str, str]  # names in lower case
    body: bytes
    answer: Answer

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def event(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


class Receiver:
    """Answers what `script` says, one entry a post, then 204. `posts` are all that came, `taken` those answered 2xx."""

    def __init__(self, secret: str = SECRET):
        self._key = base64.b64decode(secret.removeprefix("whsec_"))
        self.script: deque[Answer] = deque()
        self.posts: list[Post] = []
        self.faults: list[str] = []
        self._came = asyncio.Event()
        self._hanging = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hanging.set()
        self._server.close()
        await self._server.wait_closed()
        if kind is None:
            assert not self.faults, self.faults

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/alerts?to=duty"

    @property
    def taken(self) -> list[Post]:
        return [post for post in self.posts if isinstance(post.answer, int) and 200 <= post.answer < 300]

    async def until(self, count: int, patience_s: float = 20) -> list[Post]:
        """So many were taken."""
        async with asyncio.timeout(patience_s):
            while len(self.taken) < count:
                self._came.clear()
                await self._came.wait()
        return self.taken

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            pairs = [line.split(":", 1) for line in head[1:] if line]
            headers = {name.lower(): value.strip() for name, value in pairs}
            body = await reader.readexactly(int(headers["content-length"]))
            answer = self.script.popleft() if self.script else 204
            post = Post(head[0].split(" ")[1], headers, body, answer)
            self.faults += self._judge(head[0].split(" ")[0], post)
            self.posts.append(post)
            self._came.set()
            if answer == "hang":
                await self._hanging.wait()
            elif answer != "drop":
                place = f"Location: {self.url}/elsewhere\r\n" if 300 <= answer < 400 else ""
                writer.write(
                    f"HTTP/1.1 {answer} Said\r\n{place}Content-Length: 0\r\nConnection: close\r\n\r\n".encode()
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # it went away: its own affair
        finally:
            writer.close()

    def _judge(self, method: str, post: Post) -> list[str]:
        """Everything that is wrong with the post."""
        name, timestamp = post.headers.get("webhook-id", ""), post.headers.get("webhook-timestamp", "")
        content = f"{name}.{timestamp}.".encode() + post.body
        wanted = "v1," + base64.b64encode(hmac.new(self._key, content, hashlib.sha256).digest()).decode()
        rules = {
            "POST": method == "POST",
            "an address of ours": post.target == "/alerts?to=duty",
            "an id without a full stop": bool(name) and "." not in name,
            "a timestamp of now": timestamp.isdigit() and abs(time.time() - int(timestamp)) < 300,
            "a good signature": wanted in post.headers.get("webhook-signature", "").split(" "),
            "a structured CloudEvent": post.headers.get("content-type", "").startswith("application/cloudevents+json"),
            "the id of the event": post.event["id"] == name,
            "an alert": post.event["type"] == "gov.vestnik.alert" and post.event["specversion"] == "1.0",
        }
        return [f"{name}: not {rule}" for rule, kept in rules.items() if not kept]
