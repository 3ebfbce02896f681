"""A whole gateway in this process, its store in memory; whatever it is asked over HTTP is held against the document."""

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

import gateway.app
from client_sim.agencies import sign
from gateway import verify
from gateway.app import Gateway
from gateway.errors import StoreUnavailable
from gateway.protocol.codec import JSON
from gateway.session import Session
from gateway.settings import load
from gateway.store.base import Draft, Outcome, Store
from gateway.store.memory import MemoryStore
from gateway.tokens import LocalKey
from tests.kit import Phone
from tests.openapi import Documented

SINGLE = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"

Map = dict[str, Any]


class Watched(MemoryStore):
    """Counts commits; `away` raises StoreUnavailable; while `gate` is closed a commit waits, as for a slow disk."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.commits: list[int] = []  # drafts of each

    def _check(self) -> None:
        super()._check()
        if self.away:
            raise StoreUnavailable("the store is away", retry_after_s=3)

    async def append(self, drafts: Sequence[Draft], now: float) -> list[Outcome]:
        self.commits.append(len(drafts))
        await self.gate.wait()
        return await super().append(drafts, now)


class Running:
    """`client` speaks to it; `fns` and `mvd` are its agencies, the first with a shared secret, the other with
    ed25519."""

    def __init__(self, data: Path, store: Any = None, **settings: Any):
        # `control_s` long: what is seen at once was not seen by a poll. `ops_s`: commits are those of the test.
        given = {"control_s": 2, "ops_s": 0, **settings}
        self.settings = load(env_file=None, data=data, store="memory://", **given)
        self.store: Watched = store or Watched()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gateway.app, "open_store", lambda url, folder: self.store)
            self.gateway = Gateway(self.settings)
        self.documented = Documented(httpx.ASGITransport(self.gateway.asgi, raise_app_exceptions=False))
        self.client = httpx.AsyncClient(transport=self.documented, base_url="http://gateway")
        self.secrets: dict[str, str] = {}
        self.tokens = LocalKey.open(data)

    async def start(self) -> None:
        await self.gateway.start()
        await self.add_key("fns", "hmac")
        await self.add_key("mvd", "ed25519")

    async def stop(self) -> None:
        if isinstance(self.store, Watched):
            self.store.gate.set()
            self.store.away = False
        await self.client.aclose()
        await self.gateway.drain(0)
        await self.gateway.stop()

    async def add_key(self, code: str, kind: verify.Kind, types: Sequence[str] | None = None) -> str:
        secret, key = verify.new_secret(kind, time.time())
        await self.store.add_agency_key(code, key, types, time.time())
        await self.gateway.control.look()
        self.secrets[code] = secret
        return secret

    # An agency

    def signed(self, body: bytes, code: str = "fns", at: float | None = None, secret: str | None = None) -> Map:
        """The three headers."""
        name, timestamp = uuid.uuid4().hex, int(time.time() if at is None else at)
        signature = sign(secret or self.secrets[code], name, timestamp, body)
        return {"webhook-id": name, "webhook-timestamp": str(timestamp), "webhook-signature": signature}

    async def send(self, body: bytes, media: str | None = SINGLE, code: str = "fns", **headers: str) -> httpx.Response:
        """Sign and post these bytes."""
        given = self.signed(body, code) | ({"content-type": media} if media else {}) | headers
        return await self.client.post(f"/v1/agencies/{code}/events", content=body, headers=given)

    async def post(self, event: object, code: str = "fns", **headers: str) -> httpx.Response:
        return await self.send(json.dumps(event).encode(), SINGLE, code, **headers)

    async def batch(self, items: Iterable[object], code: str = "fns", **headers: str) -> httpx.Response:
        return await self.send(json.dumps(list(items)).encode(), BATCH, code, **headers)

    async def receipts(self, body: object, code: str = "fns") -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = self.signed(content, code) | {"content-type": "application/json"}
        return await self.client.post(f"/v1/agencies/{code}/receipts", content=content, headers=headers)

    # A person

    def token(self, account: str = "ivan", **claims: Any) -> str:
        return self.tokens.issue(account, **claims)

    def bearer(self, account: str = "ivan", **claims: Any) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token(account, **claims)}"}

    async def get(self, path: str, account: str = "ivan", **headers: str) -> httpx.Response:
        return await self.client.get(path, headers=self.bearer(account) | headers)

    async def history(self, query: str = "", account: str = "ivan", feed: str | None = None, **headers: str) -> Any:
        return await self.get(f"/v1/feeds/{feed or f'account:{account}'}/events{query}", account, **headers)

    async def phone(self, account: str = "ivan", device: str = "phone", **claims: Any) -> Phone:
        """A device whose session is open."""
        phone = Phone()
        phone.session = Session(self.gateway.gate, JSON, phone, phone)
        phone.say("hello", device=device, token=self.token(account, **claims))
        async with asyncio.timeout(5):
            while not phone.session.open:
                await asyncio.sleep(0.001)
        return phone


_number = iter(range(1, 1_000_000))


def event(kind: str, data: Map, account: str | None = "ivan", code: str = "fns", **attributes: Any) -> Map:
    required = {"specversion": "1.0", "id": f"e-{next(_number)}", "source": f"/agencies/{code}", "type": kind}
    personal = {} if account is None else {"account": account}
    return required | {"time": "2026-03-01T12:30:00+03:00"} | personal | {"data": data} | attributes


def status(word: str = "checking", account: str = "ivan", **attributes: Any) -> Map:
    data = {"application": "2026-000123", "service": "passport", "status": word}
    return event("gov.status.changed", data, account, **attributes)


def notice(text: str = "Паспорт готов", account: str = "ivan", **attributes: Any) -> Map:
    return event("gov.notice.sent", {"title": "Уведомление", "text": text}, account, **attributes)


def public(text: str = "8 марта не работаем", **attributes: Any) -> Map:
    return event("gov.notice.published", {"title": "Объявление", "text": text}, None, **attributes)


@contextlib.asynccontextmanager
async def running(data: Path, store: Store | None = None, **settings: Any) -> AsyncIterator[Running]:
    here = Running(data, store, **settings)
    await here.start()
    try:
        yield here
    finally:
        await here.stop()


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path) as found:
        yield found
