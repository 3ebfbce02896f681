"""What an agency under load posts: its events, when they are due, its own signatures. No socket, no clock.

An event's `time` is when it was due, not when its post went out: an agency that waits for an answer does not make the
gateway look faster.
"""

import base64
import hashlib
import hmac
import itertools
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from loadtests.scenario import Posts

Event = dict[str, Any]
GATHER_S: Final = 0.05  # how long a batch waits for more


class Schedule:
    """The share of one of `agencies` in a stream: every `agencies`-th event of its curve."""

    def __init__(self, posts: Posts, number: int, agencies: int):
        self.posts, self._number, self._agencies = posts, number, agencies
        self._due: list[float] = []
        self._at = self._level = 0.0

    def due(self, now: float) -> int:
        """How many events wait at `now` (seconds of the scenario). Those of one interval lie evenly in it."""
        ahead = self._agencies - self._number - 1
        level = max(self._level, (self.posts.rate.area(now) + ahead) / self._agencies)
        for whole in range(int(self._level) + 1, int(level) + 1):
            share = (whole - self._level) / (level - self._level)
            self._due.append(self._at + share * (now - self._at))
        self._at, self._level = now, level
        return len(self._due)

    def take(self, now: float, until: float = math.inf) -> list[float]:
        """The moments of the events that should be posted now: a whole batch, or what has waited long enough. After
        `until` nothing more is due."""
        if not self.due(min(now, until)):
            return []
        if len(self._due) < self.posts.batch and now - self._due[0] < GATHER_S:
            return []
        taken, self._due = self._due[: self.posts.batch], self._due[self.posts.batch :]
        return taken


class Maker:
    """Events of one agency with ids of their own. `run` keeps them apart from those of other runs."""

    def __init__(self, code: str, run: str):
        self._code, self._run, self._numbers = code, run, itertools.count(1)

    def event(self, kind: str, at: float, account: str | None) -> Event:
        """`at`: Unix seconds. `account` for a personal type."""
        number = next(self._numbers)
        made: Event = {
            "specversion": "1.0",
            "id": f"{self._run}-{number}",
            "source": f"/agencies/{self._code}",
            "type": kind,
            "time": rfc3339(at),
        }
        if account is not None:
            made["account"] = account
        if kind == "gov.status.changed":
            made["subject"] = f"application/{self._run}-{number}"
            made["sequence"] = "1"
        return made | {"data": data(kind, f"{self._run}-{number}", at)}


def data(kind: str, number: str, at: float) -> dict[str, Any]:
    match kind:
        case "gov.code.sent":
            return {"code": f"{hash(number) % 1_000_000:06}", "purpose": "Вход", "until": rfc3339(at + 300)}
        case "gov.status.changed":
            words = {"service": "Налоговый вычет", "title": "Заявление принято"}
            return {"application": number, "status": "processing", **words}
        case "gov.payout.changed":
            return {"kind": "pension", "status": "paid", "amount": 2_153_000, "title": "Страховая пенсия"}
        case "gov.emergency.published":
            return {
                "title": "Штормовое предупреждение",
                "text": "Ожидается ветер до 23 м/с",
                "until": rfc3339(at + 7200),
            }
        case _:
            return {"title": "Плановые работы", "text": f"Ночью возможны перерывы в показе сведений ({number})"}


def rfc3339(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def signed(secret: str, name: str, now: int, body: bytes) -> dict[str, str]:
    """Standard Webhooks' headers, HMAC-SHA256 or ed25519 by the kind of the secret."""
    kind, _, encoded = secret.partition("_")
    material, text = base64.b64decode(encoded), b"%b.%d.%b" % (name.encode(), now, body)
    if kind == "whsec":
        signature = "v1," + base64.b64encode(hmac.digest(material, text, hashlib.sha256)).decode()
    else:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        signature = "v1a," + base64.b64encode(Ed25519PrivateKey.from_private_bytes(material).sign(text)).decode()
    return {"webhook-id": name, "webhook-timestamp": str(now), "webhook-signature": signature}


def body(events: Sequence[Mapping[str, Any]]) -> tuple[str, bytes]:
    """(media type, body) of one request."""
    if len(events) == 1:
        return "application/cloudevents+json", orjson.dumps(events[0])
    return "application/cloudevents-batch+json", orjson.dumps(events)
