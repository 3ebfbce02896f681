"""A trial: a real gateway as a process of its own, agencies that keep posting, phones that keep coming back, and the
journals of all three for the ledger."""

import asyncio
import contextlib
import random
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import httpx

from client_sim.agencies import BY_CODE, Agency, Desk, Event, Publisher
from client_sim.client import Client, Notebook
from client_sim.journal import Diary, Journal, Note, dump, post, read
from client_sim.ledger import Verdict, reconcile
from client_sim.local import Gateway
from gateway.store.sqlite import SqliteStore
from gateway.tokens import LocalKey
from gateway.verify import new_secret

QUICK = {"backoff_s": "1", "drain_s": "1", "hellos": "1000", "saver_wait_s": "1", "log_level": "warning"}


class Phone:
    """A device with a diary, on from the moment it is made."""

    def __init__(self, address: str, account: str, name: str, token: str, note: Note, rng: random.Random):
        self.address, self.account, self.name, self.token, self.note, self.rng = (
            address,
            account,
            name,
            token,
            note,
            rng,
        )
        self.public = "agency:mchs"
        self.mode: Literal["full", "saver"] = "saver" if rng.random() < 0.1 else "full"
        self.subprotocol = rng.choice(("vestnik.v1.json", "vestnik.v1.msgpack"))
        self._install()

    def _install(self) -> None:
        self.book = Notebook()
        self.diary = Diary(self.account, self.name, self.book, self.note)
        client = Client(
            self.address,
            device=self.name,
            token=self._token,
            keeper=self.diary,
            feeds=[self.public],
            mode=self.mode,
            subprotocol=self.subprotocol,
            observe=self.diary.observe,
            tap=self.diary.tap,
            rng=self.rng,
        )
        client.backoff_s = 1.0  # as the gateway says once it is reached
        self.life = asyncio.create_task(client.run())

    async def _token(self) -> str:
        return self.token

    async def off(self) -> None:
        """Switched off. Raises what it died of before, if it did."""
        self.life.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.life
        self.diary.flush()

    async def reinstall(self) -> None:
        """The person installs the application anew: nothing is kept."""
        await self.off()
        self._install()

    def has(self, heads: Mapping[str, int]) -> bool:
        positions = self.book.positions()
        return all(
            feed in positions and positions[feed].offset >= heads.get(feed, 0)
            for feed in (f"account:{self.account}", self.public)
        )


class Office:
    """An agency with several hands: what one of them was not answered it sends again, until it is."""

    def __init__(self, agency: Agency, accounts: Sequence[str], publisher: Publisher, note: Note, rng: random.Random):
        self.desk, self.publisher, self.note, self.rng = Desk(agency, accounts, rng), publisher, note, rng
        self.old: list[Event] = []  # of events that were answered
        self.closing = False

    async def work(self, pause_s: float, most: int) -> None:
        """One hand: post up to `most` events, pause, and so on until `closing`."""
        rng = self.rng
        while not self.closing:
            events = [self.desk.next(time.time()) for _ in range(rng.randint(1, most))]
            dice = rng.random()
            if dice < 0.1 and self.old:
                events.append(rng.choice(self.old))
            elif dice < 0.15 and self.old:
                events.append({**rng.choice(self.old), "time": "2026-01-01T00:00:00Z"})  # same id, other content
            # Invariant 13: identical posts at once are one event.
            twins = 3 if rng.random() < 0.05 else 1
            await asyncio.gather(*(self.settle(events) for _ in range(twins)))
            self.old = [*self.old[-200:], events[0]]
            await asyncio.sleep(rng.uniform(0, 2 * pause_s))

    async def settle(self, events: Sequence[Event]) -> None:
        """Post until all outcomes are known."""
        for _ in range(300):
            if await post(self.publisher, events, self.note):
                return
            await asyncio.sleep(self.rng.uniform(0.05, 0.3))
        raise AssertionError("no answer in 300 tries")


class Trial:
    """Everything that a test of crashes needs. `async with Trial(...)`: when it ends, so has every process."""

    def __init__(self, folder: Path, seed: int, under: Sequence[str] = ()):
        self.folder, self.rng = folder, random.Random(seed)
        self.gateway = Gateway(folder / "data", QUICK)
        self.gateway.under = list(under)
        self.phones: list[Phone] = []
        self.offices: list[Office] = []
        self.exit_codes: list[int | None] = []
        self.refusals: list[httpx.Response] = []  # answers 5xx to agencies and to us
        self._hands: list[asyncio.Task[None]] = []
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> "Trial":
        self.folder.mkdir(parents=True, exist_ok=True)
        self._agencies = self._stack.enter_context((self.folder / "agencies.jsonl").open("wb"))
        self._devices = self._stack.enter_context((self.folder / "devices.jsonl").open("wb"))
        await self._stack.enter_async_context(self.gateway)
        hooks = {"response": [self._answered]}
        http = httpx.AsyncClient(timeout=10, trust_env=False, event_hooks=hooks)
        self.http = await self._stack.enter_async_context(http)
        self._stack.push_async_callback(self._switch_off)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def _switch_off(self) -> None:
        for hand in self._hands:
            hand.cancel()
        await asyncio.gather(*self._hands, *(phone.off() for phone in self.phones), return_exceptions=True)

    async def _answered(self, response: httpx.Response) -> None:
        if response.status_code >= 500:
            await response.aread()
            self.refusals.append(response)

    # People

    async def open_offices(self, codes: Sequence[str], accounts: Sequence[str]) -> None:
        """These agencies get their keys; before the gateway starts."""
        note = Journal(self._agencies).note
        store = SqliteStore(self.gateway.store)
        await store.open()
        try:
            for agency in (BY_CODE[code] for code in codes):
                secret, key = new_secret("ed25519" if agency.ed25519 else "hmac", time.time())
                await store.add_agency_key(agency.code, key, None, time.time())
                rng = random.Random(self.rng.random())
                publisher = Publisher(self.gateway.address, agency.code, secret, self.http, rng, tries=1)
                self.offices.append(Office(agency, accounts, publisher, note, rng))
        finally:
            await store.close()

    def publish(self, *, hands: int = 3, pause_s: float = 0.15, most: int = 10) -> None:
        for office in self.offices:
            public = office.desk.agency.code == "mchs"  # reaches everybody: less often
            for _ in range(1 if public else hands):
                work = office.work(1.0, 2) if public else office.work(pause_s, most)
                self._hands.append(asyncio.create_task(work))

    async def hand_out(self, accounts: Sequence[str], devices: int) -> None:
        """So many phones to each account; returns when all are connected."""
        note, key = Journal(self._devices).note, LocalKey.open(self.gateway.data)
        for account in accounts:
            token = key.issue(account)
            for number in range(devices):
                rng = random.Random(self.rng.random())
                self.phones.append(Phone(self.gateway.address, account, f"p{number}", token, note, rng))
        await self.until(lambda: self._have({}), 30)

    # Faults

    async def kill(self) -> None:
        """SIGKILL now, and a new process on the same data and port."""
        await self.gateway.kill()
        await self.gateway.start()

    async def stop(self) -> None:
        """SIGTERM: drains and ends by itself."""
        await self.gateway.stop()
        assert self.gateway.process is not None
        self.exit_codes.append(self.gateway.process.returncode)

    # The end

    async def quiet(self, patience_s: float = 60) -> None:
        """The agencies finish what they are at; then every phone comes back and has everything. Who did not in time is
        for the ledger to name."""
        for office in self.offices:
            office.closing = True
        async with asyncio.timeout(patience_s):
            await asyncio.gather(*self._hands)
        heads = self.heads()
        with contextlib.suppress(TimeoutError):
            await self.until(lambda: self._have(heads), patience_s)

    async def _have(self, heads: Mapping[str, int]) -> bool:
        late = [phone for phone in self.phones if not phone.has(heads)]
        for phone in late:
            assert not phone.life.done(), f"{phone.account}/{phone.name} gave up: {phone.life}"
        return not late

    async def ready(self) -> httpx.Response:
        return await self.http.get(f"{self.gateway.address}/health/ready")

    async def until(self, done: Callable[[], Awaitable[bool]], patience_s: float = 15) -> None:
        async with asyncio.timeout(patience_s):
            while not await done():
                await asyncio.sleep(0.05)

    def heads(self) -> dict[str, int]:
        return {line["feed"]: line["head"] for line in dump(self.gateway.store) if line["t"] == "feed"}

    async def verdict(self) -> Verdict:
        """Everybody leaves, the gateway stops, the journals are judged."""
        await self._switch_off()
        await self.stop()
        self._agencies.flush()
        self._devices.flush()
        agencies, devices = read(self.folder / "agencies.jsonl"), read(self.folder / "devices.jsonl")
        return reconcile(agencies, devices, dump(self.gateway.store))

    def integrity(self) -> str:
        """What SQLite itself finds wrong with the file: "ok"."""
        with contextlib.closing(sqlite3.connect(self.gateway.store)) as conn:
            return str(conn.execute("PRAGMA integrity_check").fetchone()[0])


@contextlib.asynccontextmanager
async def trial(folder: Path, seed: int, under: Sequence[str] = ()) -> AsyncIterator[Trial]:
    """A trial whose seed is printed: a failed run says how to do it again. `under`: what the gateway runs under."""
    print(f"seed {seed}")
    async with Trial(folder, seed, under) as made:
        yield made
