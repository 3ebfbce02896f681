"""An agency from outside: builds CloudEvents, signs them by Standard Webhooks with nothing but the standard library and
`cryptography`, and posts them through `http.client`."""

import base64
import datetime
import hashlib
import hmac
import http.client
import itertools
import json
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SINGLE = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
PROBLEM = "application/problem+json"

Event = dict[str, Any]
Headers = list[tuple[str, str]]


def witness(seen: Mapping[str, Any]) -> None:
    """Write down what was seen on the wire, where somebody asks for it (`VESTNIK_WITNESS` names a file): the published
    OpenAPI and AsyncAPI documents are held against it by those who know them."""
    if path := os.environ.get("VESTNIK_WITNESS"):
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(seen) + "\n")


@dataclass(frozen=True)
class Answer:
    """An HTTP answer. Header names are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def media_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def results(self) -> list[dict[str, Any]]:
        results = self.json["results"]
        assert isinstance(results, list)
        return results

    @property
    def result(self) -> dict[str, Any]:
        """The only result of a request that was wholly accepted."""
        assert self.status == 202, (self.status, self.body)
        [result] = self.results
        assert isinstance(result, dict)
        return result

    @property
    def pointers(self) -> set[str]:
        return {error["pointer"] for error in self.json.get("errors", [])}

    def problem(self, status: int, *words: str) -> dict[str, Any]:
        """Assert that this is that problem document (RFC 9457) and give it back. Several words: any of them."""
        assert self.status == status, (self.status, self.body)
        assert self.media_type == PROBLEM, self.headers
        document = self.json
        check_problem(document, status, *words)
        assert isinstance(document, dict)
        return document


def check_problem(document: Any, status: int, *words: str) -> None:
    """The members that section 2 names, for a whole answer as for an item of 207."""
    assert document["status"] == status, document
    assert isinstance(document["title"], str)
    assert document["title"]
    assert isinstance(document.get("detail", ""), str)
    assert not words or any(document["type"].endswith(word) for word in words), document
    for error in document.get("errors", []):
        assert error["pointer"] == "" or error["pointer"].startswith("/"), error
        assert isinstance(error["detail"], str)
        assert error["detail"]


def request(
    port: int,
    method: str,
    path: str,
    *,
    body: bytes | None = None,
    headers: Iterable[tuple[str, str]] = (),
    chunk: int = 0,
) -> Answer:
    """One HTTP request on its own connection. `chunk` > 0 sends the body in chunks of that many bytes, without a
    length.

    An answer that comes before the body was taken (413) is read as well: a broken pipe while sending is not the end.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in headers:
            connection.putheader(name, value.encode())
        if chunk:
            connection.putheader("Transfer-Encoding", "chunked")
        elif body is not None:
            connection.putheader("Content-Length", str(len(body)))
        try:
            if chunk and body is not None:
                pieces: Iterator[bytes] = (body[at : at + chunk] for at in range(0, len(body), chunk))
                connection.endheaders(pieces, encode_chunked=True)
            else:
                connection.endheaders(body)
        except (BrokenPipeError, ConnectionResetError):
            pass
        response = connection.getresponse()
        answer = Answer(
            response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
        )
    finally:
        connection.close()
    given = {"method": method, "path": path, "headers": list(headers), "body": (body or b"").decode("latin-1")}
    witness({"request": given, "status": answer.status, "headers": dict(answer.headers), "body": answer.body.decode()})
    return answer


def get(port: int, path: str, token: str | None = None, **headers: str) -> Answer:
    return call(port, "GET", path, token, **headers)


def call(port: int, method: str, path: str, token: str | None = None, **headers: str) -> Answer:
    """A request of an account. Underscores in header names stand for hyphens."""
    pairs = [(name.replace("_", "-"), value) for name, value in headers.items()]
    if token is not None:
        pairs.append(("Authorization", f"Bearer {token}"))
    return request(port, method, path, headers=pairs)


class Signer:
    """One secret as `vestnik agency add` prints it: `whsec_…` (HMAC-SHA256, `v1`) or `whsk_…` (ed25519 seed, `v1a`)."""

    def __init__(self, secret: str):
        prefix, _, text = secret.partition("_")
        self.material = base64.b64decode(text, validate=True)
        if prefix == "whsk":
            assert len(self.material) == 32, "whsk_ carries the 32-byte seed"
            self.ed = Ed25519PrivateKey.from_private_bytes(self.material)
        else:
            assert prefix == "whsec", prefix
        self.prefix = prefix

    def sign(self, webhook_id: str, timestamp: str, body: bytes) -> str:
        signed = f"{webhook_id}.{timestamp}.".encode() + body
        if self.prefix == "whsk":
            return "v1a," + base64.b64encode(self.ed.sign(signed)).decode()
        return "v1," + base64.b64encode(hmac.digest(self.material, signed, hashlib.sha256)).decode()


def rfc3339(unix: float | None = None) -> str:
    moment = datetime.datetime.fromtimestamp(time.time() if unix is None else unix, datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def encode(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


class Agency:
    """An agency at one gateway. `secrets` are what the command printed; the first one signs unless told otherwise."""

    def __init__(self, port: int, code: str, *secrets: str):
        self.port, self.code = port, code
        self.signers = [Signer(secret) for secret in secrets]
        self.counter = itertools.count(1)

    @property
    def source(self) -> str:
        return f"/agencies/{self.code}"

    @property
    def feed(self) -> str:
        return f"agency:{self.code}"

    # Events

    def event(self, type_: str, data: Any, **attributes: Any) -> Event:
        """A CloudEvent with a fresh id. An attribute given as `...` is left out."""
        event = {
            "specversion": "1.0", "id": uuid.uuid4().hex, "source": self.source, "type": type_, "time": rfc3339(),
            **attributes, "data": data,
        }  # fmt: skip
        return {name: value for name, value in event.items() if value is not ...}

    def status(
        self, account: str, status: str = "processing", *, data: Mapping[str, Any] | None = None, **more: Any
    ) -> Event:
        number = next(self.counter)
        fields = {"application": f"2026-{number:06}", "service": "passport-renewal", "status": status, **(data or {})}
        return self.event("gov.status.changed", fields, account=account, **more)

    def record(self, account: str, key: str, fields: Mapping[str, Any], change: str = "updated", **more: Any) -> Event:
        data = {"registry": "vehicle", "key": key, "change": change, "fields": dict(fields), "as_of": rfc3339()}
        return self.event("gov.record.changed", data, account=account, **more)

    def notice(self, account: str, text: str = "Здравствуйте", **more: Any) -> Event:
        return self.event("gov.notice.sent", {"title": "Извещение", "text": text}, account=account, **more)

    def public(self, text: str = "Отделение закрыто", **more: Any) -> Event:
        return self.event("gov.notice.published", {"title": "Объявление", "text": text}, **more)

    # Signed requests

    def headers(
        self, body: bytes, *, id_: str | None = None, at: float | str | None = None, signer: Signer | None = None
    ) -> dict[str, str]:
        webhook_id = id_ if id_ is not None else f"msg_{uuid.uuid4().hex}"
        timestamp = at if isinstance(at, str) else str(int(time.time() if at is None else at))
        signature = (signer or self.signers[0]).sign(webhook_id, timestamp, body)
        return {"webhook-id": webhook_id, "webhook-timestamp": timestamp, "webhook-signature": signature}

    def raw(
        self,
        body: bytes,
        *,
        media_type: str | None = SINGLE,
        path: str | None = None,
        replace: Mapping[str, str | None] | None = None,
        chunk: int = 0,
        extra: Iterable[tuple[str, str]] = (),
        **signing: Any,
    ) -> Answer:
        """Post these very bytes, signed. `replace` changes headers after signing, None removes one."""
        headers: dict[str, str | None] = {
            **self.headers(body, **signing),
            "content-type": media_type,
            **(replace or {}),
        }
        pairs = [(name, value) for name, value in headers.items() if value is not None]
        return request(
            self.port,
            "POST",
            path or f"/v1/agencies/{self.code}/events",
            body=body,
            headers=[*pairs, *extra],
            chunk=chunk,
        )

    def post(self, event: Any, **options: Any) -> Answer:
        return self.raw(encode(event), **options)

    def batch(self, events: list[Any], **options: Any) -> Answer:
        return self.raw(encode(events), media_type=BATCH, **options)

    def send(self, *events: Event) -> list[int]:
        """Post events that must all be accepted, in batches of 200. Returns their offsets."""
        offsets: list[int] = []
        for at in range(0, len(events), 200):
            answer = self.batch(list(events[at : at + 200]))
            assert answer.status == 202, (answer.status, answer.body[:2000])
            offsets += [result["offset"] for result in answer.results]
        return offsets

    def receipts(self, ids: Any, **options: Any) -> Answer:
        return self.raw(
            encode({"ids": ids}), media_type="application/json", path=f"/v1/agencies/{self.code}/receipts", **options
        )
