"""The users of Locust: phones, each with a habit, and agencies that post signed batches. All on gevent.

A phone is one greenlet that waits in `recv`; everything it hears is decided in `device`. Its rows in Locust's table are
of type WS: `connect` (TCP and 101), `hello to welcome`, `replay to live` (with the number of events), `deliver from the
act` (the agency's clock) and `from the commit` (`recordedtime`), `ack` (from a read to its acks written), `refresh`,
`reconnect and catch up` (from the connect to live in every feed). Those of an agency are POST.
"""

import contextlib
import time
from collections.abc import Iterator
from random import Random
from secrets import token_hex
from typing import Any, ClassVar

import gevent
import orjson
from gevent.pool import Group
from gevent.queue import Queue
from locust import User, constant, tag, task

from client_sim.framing import Reader, Strange, status_of, upgrade
from gateway.protocol.backoff import full_jitter
from loadtests.device import Device, Ended, digest
from loadtests.gsocket import Http, Where, connect
from loadtests.posting import Maker, Schedule, body, signed
from loadtests.run import Run
from loadtests.scenario import HABITS, Habit

SNAPSHOTS = 8  # connections for snapshots of one process
SMALL_BUFFER = 4096  # of a slow phone, so that what it does not read stays with the gateway
RETRY_S = 0.5
LIFE_S = 60.0  # contract, section 3: the backoff is "reset after 60 s of life"
POSTING_SHARE = 0.4  # of the quiet at the end: what is late may still be posted, the rest is for it to arrive
TICK_S = 0.01  # of an agency
LONG_S = 1e6
STRANGERS = 1000  # people who get events when there are agencies and no phones


class Vestnik(User):
    """What phones and agencies share. `run` is set by the locustfile before the first user is made."""

    abstract = True
    wait_time = constant(0)
    shared: ClassVar[Run]

    def told(self, kind: str, name: str, seconds: float, size: int, error: BaseException | None = None) -> None:
        self.environment.events.request.fire(
            request_type=kind,
            name=name,
            response_time=seconds * 1000,
            response_length=size,
            context={},
            exception=error,
        )


class Phone(Vestnik):
    """One device of one account."""

    abstract = True
    habit: ClassVar[Habit] = HABITS["steady"]
    _pool: ClassVar[Queue | None] = None

    def on_start(self) -> None:
        run = self.shared
        self.where = Where.of(self.host or "")
        self.rng = Random(run.rng.random())
        account = run.account()
        self.token = run.identity.token(account)
        slow = self.habit.sleeps[1] > 0
        self.device = Device(
            account, run.following(), run.devices.note, self._row, self._snapshot, run.facts, slow=slow
        )
        self.socket: Any = None
        self.wait_s = -1.0  # until the next session; negative: as the backoff says
        self.backoff: Iterator[float] | None = None
        run.phones[account] = self

    def _row(self, name: str, seconds: float, size: int) -> None:
        self.told("WS", name, seconds, size)

    @tag("phone")
    @task
    def live(self) -> None:
        """The phone's life: sessions, and pauses between them, until Locust ends it."""
        try:
            while True:
                begun = time.time()
                code = self._session()
                self.device.lost(code)
                if time.time() - begun >= LIFE_S or self.backoff is None:
                    self.backoff = full_jitter(self.rng, cap=self.device.backoff_s)
                wait, self.wait_s = self.wait_s, -1.0
                gevent.sleep(wait if wait >= 0 else next(self.backoff))
        finally:
            self._leave()

    def _leave(self) -> None:
        run = self.shared
        run.phones.pop(self.device.account, None)
        if run.now() < run.busy:
            self.device.away("the run is over" if run.busy == float("inf") else "ramped down")
        self._close()

    def cut(self, within_s: float) -> None:
        """A fault: the connection is gone, the phone is back within so many seconds."""
        self.wait_s = self.rng.uniform(0, within_s)
        self._close()

    def _close(self) -> None:
        made, self.socket = self.socket, None
        if made is not None:
            with contextlib.suppress(OSError):
                made.shutdown(2)
            with contextlib.suppress(OSError):
                made.close()

    def _session(self) -> int:
        """One connection from its beginning to its end; the close code, 0 when it was cut."""
        begun = time.time()
        reader = Reader()
        try:
            made = self.socket = connect(self.where, SMALL_BUFFER if self.habit.sleeps[1] else 0)
            made.sendall(upgrade(self.where.name, "vestnik.v1.json", self.rng))
            while (head := reader.head(_some(made))) is None:
                pass
            status, after = status_of(head)
            if status != 101:
                self.wait_s = (after or 1.0) + self.rng.random()
                raise Ended(0, f"the handshake was answered {status}")
            now = time.time()
            self.told("WS", "connect", now - begun, 0)
            made.sendall(self.device.hello(self.token, begun, now))
            self._listen(made, reader)
        except Ended as end:
            self.told("WS", "session", 0, 0, end)
            return end.code
        except (OSError, Strange) as error:
            if self.socket is not None:  # not cut by us
                self.told("WS", "session" if reader.opened else "connect", time.time() - begun, 0, error)
        finally:
            self._close()
        return 0

    def _listen(self, made: Any, reader: Reader) -> None:
        """Until the session ends or the habit ends it."""
        run, device, habit, rng = self.shared, self.device, self.habit, self.rng
        begun = time.time()
        never = begun + 1e9
        heard = begun
        drops, sleeps, asks = (
            begun + rng.uniform(*pair) if pair[1] else never for pair in (habit.online, habit.reads, habit.refresh)
        )
        data = b""
        while True:
            frames = list(reader.frames(data))
            if frames:
                heard = time.time()
                out = device.frames(frames, heard)
                if out:
                    made.sendall(out)
                    self.told("WS", "ack", time.time() - heard, len(out))
            now = time.time()
            if min(drops, sleeps, asks) <= now and run.now() < run.busy:
                if drops <= now:
                    self.wait_s = rng.uniform(*habit.away)
                    return
                if sleeps <= now:
                    gevent.sleep(rng.uniform(*habit.sleeps))
                    now = time.time()
                    heard, sleeps = now, now + rng.uniform(*habit.reads)
                if asks <= now:
                    made.sendall(device.refresh("fns", now))
                    self._snapshot()
                    asks = time.time() + rng.uniform(*habit.refresh)
            silent = heard + device.next_s + 10
            made.settimeout(max(0.001, min(drops, sleeps, asks, silent) - now) if run.now() < run.busy else 45)
            try:
                data = _some(made)
            except TimeoutError:
                data = b""
                if time.time() >= silent:
                    raise Ended(0, "silence") from None

    def _snapshot(self) -> dict[str, Any]:
        """GET /v1/snapshot over one of a few connections. Raises Ended."""
        pool = self._connections()
        http = pool.get()
        begun = time.time()
        try:
            answer = http.request("GET", "/v1/snapshot", {"Authorization": f"Bearer {self.token}"})
        except OSError as error:
            self.told("GET", "/v1/snapshot", time.time() - begun, 0, error)
            raise Ended(0, "no snapshot") from None
        finally:
            pool.put(http)
        good = answer.status == 200
        self.told("GET", "/v1/snapshot", time.time() - begun, len(answer.body), None if good else Ended(answer.status))
        if not good:
            raise Ended(0, f"the snapshot was answered {answer.status}")
        found: dict[str, Any] = orjson.loads(answer.body)
        return found

    def _connections(self) -> Queue:
        if Phone._pool is None:
            Phone._pool = Queue()
            for _ in range(SNAPSHOTS):
                Phone._pool.put(Http(self.where))
        return Phone._pool


def _some(made: Any) -> bytes:
    data: bytes = made.recv(65536)
    if not data:
        raise ConnectionResetError("the gateway ended the connection")
    return data


class SteadyPhone(Phone):
    """Connected and reading all the time."""


class FlakyPhone(Phone):
    """In the metro."""

    habit = HABITS["flaky"]


class SlowPhone(Phone):
    """Does not read for seconds."""

    habit = HABITS["slow"]


class AnxiousPhone(Phone):
    """Asks again and again."""

    habit = HABITS["anxious"]


class AgencyUser(Vestnik):
    """One agency: each of its streams has one request on its way, and what is due meanwhile waits for the next."""

    fixed_count = 2
    _made: ClassVar[int] = 0

    def on_start(self) -> None:
        run = self.shared
        self.number, AgencyUser._made = run.number(AgencyUser._made), AgencyUser._made + 1
        self.code, self.secret = run.secret(self.number)
        self.where = Where.of(self.host or "")
        self.maker = Maker(self.code, token_hex(6))  # no id twice, whatever the seed and the runs before
        if not run.accounts and not any(issubclass(kind, Phone) for kind in self.environment.user_classes):
            run.strangers(STRANGERS)
        self.turn = self.number
        self.streams = Group()

    def on_stop(self) -> None:
        self.streams.kill()

    @tag("agency")
    @task
    def post(self) -> None:
        """Every stream of the scenario, until Locust ends it."""
        try:
            for posts in self.shared.scenario.posts:
                agencies = max(1, self.fixed_count)
                self.streams.spawn(self._stream, Schedule(posts, self.number % agencies, agencies))
            self.streams.join()
            gevent.sleep(LONG_S)  # until Locust ends it
        finally:
            self.streams.kill()

    def _stream(self, schedule: Schedule) -> None:
        self.shared.streams += 1
        try:
            self._post(schedule)
        finally:
            self.shared.streams -= 1

    def _post(self, schedule: Schedule) -> None:
        run, http, posts = self.shared, Http(self.where), schedule.posts
        while run.now() < run.busy + run.scenario.settle * POSTING_SHARE:
            if run.now() > run.busy and not schedule.due(run.busy):
                break
            taken = schedule.take(run.now(), run.busy) if run.accounts or posts.public else []
            if not taken:
                gevent.sleep(TICK_S)
                continue
            kind = posts.type
            events = [
                self.maker.event(kind, run.started + at, None if posts.public else self._account()) for at in taken
            ]
            while not self._send(http, posts.priority, events):
                pass
        if due := schedule.due(run.busy):
            run.agencies.note({"t": "unposted", "events": due, "type": posts.type})

    def _account(self) -> str:
        accounts = self.shared.accounts
        self.turn += max(1, self.fixed_count)
        return accounts[self.turn % len(accounts)]

    def _send(self, http: Http, priority: str, events: list[dict[str, Any]]) -> bool:
        """One try; true when all outcomes are known. Waits before it says false."""
        run, note = self.shared, self.shared.agencies.note
        digests = [digest(event) for event in events]
        for event, content in zip(events, digests, strict=True):
            feed = f"account:{event['account']}" if "account" in event else f"agency:{self.code}"
            names = {name: event.get(name) for name in ("source", "id", "subject", "sequence")}
            note({"t": "post", "feed": feed, **names, "digest": content, "type": event["type"]})
        media, raw = body(events)
        name = f"POST {priority}, {len(events)}" if len(events) in (1, 100) else f"POST {priority}, batches"
        begun = time.time()
        headers = signed(self.secret, f"msg_{run.rng.getrandbits(96):024x}", int(begun), raw)
        try:
            answer = http.request("POST", f"/v1/agencies/{self.code}/events", {"Content-Type": media, **headers}, raw)
        except OSError as error:
            self.told("POST", name, time.time() - begun, 0, error)
            note({"t": "unanswered", "events": len(events)})
            gevent.sleep(RETRY_S)
            return False
        took = time.time() - begun
        if answer.status in (202, 207):
            results = orjson.loads(answer.body)["results"]
        else:
            self.told("POST", name, took, 0, Ended(answer.status, answer.body[:200].decode("utf-8", "replace")))
            results = [{"status": answer.status}] * len(events)
        for event, found, result in zip(events, digests, results, strict=True):
            where = {key: result[key] for key in ("feed", "epoch", "offset", "duplicate") if key in result}
            about = {"source": event["source"], "id": event["id"], "digest": found, "type": event["type"]}
            if "offset" in where:
                run.heads[where["feed"]] = max(where["offset"], run.heads.get(where["feed"], 0))
            note({"t": "answer", **about, "status": result["status"], "seconds": round(took, 4), **where})
        if answer.status in (202, 207):
            self.told("POST", name, took, len(raw))
            return True
        if answer.status == 429 or answer.status >= 500:
            after = answer.headers.get("retry-after", "")
            gevent.sleep(float(after) if after.isdecimal() else RETRY_S)
            return False
        return True
