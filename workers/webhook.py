"""The outgoing webhook: every alert is posted to an address of the operators, in order, at least once.

A post is the event as it is stored, a CloudEvent in structured mode, signed by Standard Webhooks: the receiver checks
it as we check an agency's. How far it came is a cursor in the store, that of a device that no account can have, so
whoever takes over goes on there.
"""

import asyncio
import base64
import hmac
import random
import ssl
import time
from collections.abc import Callable, Iterator
from functools import cache

import orjson

from gateway.errors import VestnikError
from gateway.logs import get_logger
from gateway.metrics import Counts
from gateway.opsfeeds import ALERTS
from gateway.protocol.backoff import full_jitter
from gateway.store.base import CursorSave, Join, Joined, Range, Row, Store
from gateway.verify import parse_key
from workers.claims import Claim

log = get_logger("webhook")

ACCOUNT, DEVICE = "ops:webhook", "webhook"
"""A colon stands in no account: this one is nobody's."""

ANSWER_S = 10.0  # from connecting to the answer's head; its body is not read
FIRST_RETRY_S, LONGEST_RETRY_S = 1.0, 60.0

_random = random.SystemRandom()


class NotTaken(VestnikError):
    """The receiver did not answer 2xx in time."""


def headers(id: str, body: bytes, secret: bytes, now: float) -> dict[str, str]:
    """Standard Webhooks, "Signature scheme": HMAC-SHA256 over `<id>.<timestamp>.<body>`."""
    timestamp = str(int(now))
    digest = hmac.digest(secret, b".".join((id.encode(), timestamp.encode(), body)), "sha256")
    return {
        "content-type": "application/cloudevents+json; charset=utf-8",
        "user-agent": "vestnik",
        "webhook-id": id,
        "webhook-timestamp": timestamp,
        "webhook-signature": "v1," + base64.b64encode(digest).decode(),
    }


class Webhook:
    """One post a step. Of several processes the one with the claim posts, and keeps the claim while it waits for the
    next try; it claims only when something waits."""

    name = "webhook"

    def __init__(
        self,
        store: Store,
        claim: Claim,
        url: str | None,
        secret: str | None,
        counts: Counts | None = None,
        *,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
        rng: random.Random = _random,
    ):
        """Without a `url` it does nothing. `secret` is `whsec_…`. Raises ConfigError for one that is not."""
        self.every_s = 1.0 if url else 3600.0
        self._store, self._claim, self._url, self._clock, self._ticks = store, claim, url, clock, ticks
        self._secret = parse_key(secret).material if secret else b""
        self._counts = Counts() if counts is None else counts
        self._rng = rng
        self._done: int | None = None  # up to this offset the receiver has all; None: not known here
        self._failures = 0
        self._delays: Iterator[float] = iter(())
        self._not_before = 0.0

    async def step(self) -> bool:
        if self._url is None:
            return False
        head = (await self._store.heads([ALERTS]))[ALERTS].head
        if head == self._done or not await self._claim.take():
            self._counts.alerts_waiting = 0
            return False
        if self._ticks() < self._not_before:
            return False
        position = self._done = await self._position()
        self._counts.alerts_waiting = max(0, head - position)
        [page] = await self._store.read([Range(ALERTS, position, 1)])
        for row in page.rows:
            if row.event is not None and not await self._try(self._url, row):
                return False
            await self._save(row.offset)
        if self._done < head:
            return True
        self._counts.alerts_waiting = 0
        await self._claim.release()
        return False

    async def _position(self) -> int:
        """The offset up to which the receiver has all. One who is new begins after what there is: nobody wants the
        alerts of last month."""
        [joined] = await self._store.join([Join(ACCOUNT, DEVICE, (ALERTS,), now=self._clock())])
        assert isinstance(joined, Joined), "its only device"
        [start] = joined.starts
        if start.reason is not None:
            log.warning("alerts_not_posted", reason=start.reason, goes_on_after=start.offset)
            await self._save(start.offset)
        return start.offset

    async def _save(self, offset: int) -> None:
        await self._store.save([CursorSave(ACCOUNT, DEVICE, ALERTS, self._store.epoch, offset, self._clock())])
        self._done = offset

    async def _try(self, url: str, row: Row) -> bool:
        """Was it taken? If not, the next try has its time."""
        import httpx  # 80 ms of start that a process without alerts to post does not need

        assert row.event is not None
        try:
            await self._post(url, row.event)
        except (NotTaken, httpx.HTTPError, httpx.InvalidURL, OSError, TimeoutError) as error:
            if not self._failures:
                self._delays = full_jitter(self._rng, FIRST_RETRY_S, LONGEST_RETRY_S)
            self._failures += 1
            self._counts.alert_posts["failed"] += 1
            self._not_before = self._ticks() + next(self._delays)
            log.warning("alert_not_taken", offset=row.offset, failures=self._failures, error=_words(error))
            return False
        self._counts.alert_posts["taken"] += 1
        self._failures = 0
        return True

    async def _post(self, url: str, body: bytes) -> None:
        """Redirects are not followed, and no proxy of the environment is used: alerts go where was said."""
        import httpx

        tls = await asyncio.to_thread(_tls)
        signed = headers(orjson.loads(body)["id"], body, self._secret, self._clock())
        async with (
            asyncio.timeout(ANSWER_S),
            httpx.AsyncClient(verify=tls, timeout=ANSWER_S, follow_redirects=False, trust_env=False) as client,
            client.stream("POST", url, content=body, headers=signed) as answer,
        ):
            if not answer.is_success:
                raise NotTaken(f"status {answer.status_code}")


@cache
def _tls() -> ssl.SSLContext:
    """Reads all certificates, which takes 50 ms: once, and not on the loop."""
    import httpx

    return httpx.create_ssl_context()


def _words(error: Exception) -> str:
    """An address may hold a password: what httpx says about one is not repeated."""
    return str(error) if isinstance(error, NotTaken | OSError) and str(error) else type(error).__name__
