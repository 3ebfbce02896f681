"""A fleet: thousands of devices in one loop, each living its own seeded day, all noted in one journal.

    plan = Roster(devices=5000, accounts=2000, behaviour={"steady": 1}, network={"perfect": 1}, seed=7, seconds=60)
    async with Fleet("127.0.0.1", 8080, plan, identity, note, tally) as fleet:
        await fleet.live()      # the schedule
        await fleet.settle(heads, patience_s=30)

Who lives where and does what when is decided by the seed alone (`fingerprint`); what happens then is the network's and
the gateway's part. One timer wakes for all devices: acks twice a second, silence once.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from random import Random
from types import TracebackType
from typing import Any, Self

from client_sim import behaviours
from client_sim.behaviours import BEHAVIOURS, Step, schedule, spread
from client_sim.device import Device
from client_sim.identity import Identity
from client_sim.journal import Note
from client_sim.measure import Tally
from client_sim.networks import NETWORKS
from client_sim.pool import Pool
from client_sim.proxy import Proxy

ACKS_EVERY_S = 0.4  # contract: "within 1 s of keeping"
CHECKS_EVERY_S = 1.0
MOST_HALF_OPEN = 2000  # connections left behind in tunnels; older ones are dropped
AT_ONCE = 200  # steps and acks before other work of the loop gets its turn
MOST_OF_ACCOUNT = 10  # contract, 3.4: devices of an account; further ones would make it forget others


@dataclass(frozen=True, slots=True)
class Roster:
    """Who takes part. Devices are dealt to the accounts in turn; a share of them, `following`, follows the agency feeds
    `follows`."""

    devices: int
    accounts: int
    behaviour: Mapping[str, float]
    network: Mapping[str, float]
    seed: int = 1
    seconds: float = 60.0
    pace: float = 1.0
    follows: Sequence[str] = ()
    following: float = 0.2
    msgpack: float = 0.3  # share of devices that speak MessagePack
    prefix: str = "citizen-"

    def names(self) -> list[str]:
        """The accounts."""
        return [f"{self.prefix}{number}" for number in range(min(self.accounts, self.devices))]


class Fleet:
    """The devices of a run. As a context it owns their connections, the proxies of their networks and all timers."""

    def __init__(
        self,
        host: str,
        port: int,
        roster: Roster,
        identity: Identity,
        note: Note,
        tally: Tally,
        accounts: Sequence[str] | None = None,
    ):
        self.host, self.port, self.roster, self.identity = host, port, roster, identity
        self.note, self.tally = note, tally
        self.now = time.time
        self.loop = asyncio.get_running_loop()
        self.dirty: set[Device] = set()
        self.proxies: dict[str, Proxy] = {}
        self.devices: list[Device] = []
        self.schedule: list[tuple[float, int, Step]] = []
        self.fingerprint = ""
        self.accounts = list(accounts or roster.names())
        self._tasks: set[asyncio.Task[None]] = set()
        self._pools: dict[str, Pool] = {}
        self._behind: dict[asyncio.Transport, asyncio.TimerHandle] = {}
        self._stack = AsyncExitStack()
        self._left: set[str] = set()  # epochs that the store has left
        self._settled = False  # the run came to its end: from here on each device is owed everything
        self._people()

    def _people(self) -> None:
        roster, rng = self.roster, Random(f"{self.roster.seed}/people")
        ways = spread(roster.behaviour, roster.devices, rng)
        nets = spread(roster.network, roster.devices, rng)
        lives = []
        for number, (way, net) in enumerate(zip(ways, nets, strict=True)):
            behaviour, own = BEHAVIOURS[way], Random(f"{roster.seed}/{number}")
            lives.append(schedule(behaviour, own, roster.seconds, roster.pace))
            subprotocol = "vestnik.v1.msgpack" if own.random() < roster.msgpack else "vestnik.v1.json"
            account = self.accounts[number % len(self.accounts)]
            follows = roster.follows if own.random() < roster.following else ()
            self.devices.append(
                Device(self, number, account, behaviour, net, own, follows=follows, subprotocol=subprotocol)
            )
        self.fingerprint = behaviours.fingerprint(lives)
        steps = ((step.at, number, step) for number, life in enumerate(lives) for step in life)
        self.schedule = sorted(steps, key=lambda item: (item[0], item[1]))

    # As a context

    async def __aenter__(self) -> Self:
        roamed = {step.arg for _, _, step in self.schedule if step.do == "roam"}
        for name in sorted({device.network for device in self.devices} | roamed):
            if name != "perfect" and self.roster.network != {"perfect": 1.0}:
                proxy = Proxy(self.host, self.port, NETWORKS[name], Random(f"{self.roster.seed}/{name}"))
                self.proxies[name] = await self._stack.enter_async_context(proxy)
        self.spawn(self._acks())
        self.spawn(self._checks())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for device in self.devices:
            device.leave(self._settled)
        await asyncio.sleep(0.05)  # the goodbyes go out
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for pool in self._pools.values():
            await pool.close()
        for transport, timer in self._behind.items():
            timer.cancel()
            transport.abort()
        await self._stack.aclose()

    # What it does

    async def live(self) -> None:
        """The schedule, from its first step to the last second. Cancelling stops between two steps."""
        began = self.loop.time()
        for done, (at, number, step) in enumerate(self.schedule):
            wait = began + at - self.loop.time()
            if wait > 0 or done % AT_ONCE == 0:
                await asyncio.sleep(max(0.0, wait))
            self.devices[number].perform(step)
        await asyncio.sleep(max(0.0, began + self.roster.seconds - self.loop.time()))

    async def settle(self, heads: Callable[[], Mapping[str, int]], patience_s: float) -> float | None:
        """Everybody becomes an ordinary, connected device; networks stay as slow as they are, but break no more.

        Returns the seconds until every device keeps everything up to `heads()`, or None when that took too long.
        """
        began = self.loop.time()
        self._settled = True
        for proxy in self.proxies.values():
            proxy.calm = True
        for done, device in enumerate(self.devices):
            device.settle()
            if done % AT_ONCE == 0:
                await asyncio.sleep(0.01)
        while self.loop.time() - began < patience_s:
            if not self.behind(heads()):
                return self.loop.time() - began
            await asyncio.sleep(0.1)
        return None

    def behind(self, heads: Mapping[str, int]) -> list[Device]:
        """The devices that the promise holds for and that do not keep everything up to `heads`, in the epoch of now."""
        return [device for device in self.devices if device.behaviour.owed and device.behind(heads, self._left)]

    def restored(self) -> None:
        """The store was brought back from a backup: whoever keeps a position of an epoch until now must resync."""
        self._left.update(position.epoch for device in self.devices for position in device.positions.values())

    # As the devices' World

    def token(self, account: str) -> str:
        return self.identity.token(account)

    def route(self, network: str) -> tuple[str, int]:
        proxy = self.proxies.get(network)
        return (self.host, self.port) if proxy is None else ("127.0.0.1", proxy.port)

    async def get(self, device: Device, path: str, query: dict[str, Any] | None = None) -> tuple[int, Any]:
        pool = self._pools.get(device.network)
        if pool is None:
            pool = self._pools[device.network] = Pool(*self.route(device.network))
        return await pool.get(path, self.token(device.account), query)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def half_open(self, transport: asyncio.Transport, seconds: float) -> None:
        transport.pause_reading()
        self._behind[transport] = self.loop.call_later(seconds, self._drop, transport)
        if len(self._behind) > MOST_HALF_OPEN:
            self._drop(next(iter(self._behind)))

    def _drop(self, transport: asyncio.Transport) -> None:
        self._behind.pop(transport).cancel()
        transport.abort()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error

    async def _acks(self) -> None:
        while True:
            await asyncio.sleep(ACKS_EVERY_S)
            dirty, self.dirty = self.dirty, set()
            for done, device in enumerate(dirty, 1):
                device.acknowledge()
                if done % AT_ONCE == 0:
                    await asyncio.sleep(0)

    async def _checks(self) -> None:
        while True:
            await asyncio.sleep(CHECKS_EVERY_S)
            now = self.now()
            for device in self.devices:
                device.check(now)
