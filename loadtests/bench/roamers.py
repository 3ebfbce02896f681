"""Devices that come back by themselves, and the judgement over what they got."""

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import orjson

from loadtests.bench.agency import Agency
from loadtests.bench.phones import CLOSE, PING, Phone, Swarm, masked
from loadtests.bench.processes import Failed

ATTEMPTS = 60


class Roamer(Phone):
    """A device whose connection may end at any time, and which then goes to another node: at once after `drain`'s
    random moment, else after full jitter of 1 s that doubles (contract, 3.11). `got` are the new events of its own
    feed: (offset, id, monotonic time)."""

    __slots__ = ("_back", "_nodes", "_way", "got", "live_at", "node")

    def __init__(self, nodes: Sequence[Swarm], node: int, account: str, token: str, feeds: Sequence[str] = ()):
        super().__init__(nodes[node], account, token, feeds)
        self._nodes, self.node = nodes, node
        self._way: asyncio.Task[None] | None = None
        self._back: asyncio.TimerHandle | None = None
        self.live_at = 0.0  # since when it is caught up, on this connection; 0 while it is not
        self.got: list[tuple[int, str, float]] = []

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self._transport = None
            self._go(random.uniform(0, 1))

    def leave(self) -> None:
        if self._back is not None:
            self._back.cancel()
        if self._way is not None:
            self._way.cancel()
        super().leave()

    def refused(self, head: bytes) -> None:
        self.move(random.uniform(0, 2))

    def frame(self, first: int, payload: bytes) -> None:
        if first == CLOSE:
            if payload[:1] == b"\x11" and int.from_bytes(payload[:2], "big") < 4500:
                return self.swarm.fail(f"closed with {int.from_bytes(payload[:2], 'big')}")
            self.move(random.uniform(0, 1))
        elif first == PING:
            self.write(masked(payload, 0x8A))
        else:
            self.message(orjson.loads(payload))
        return None

    def message(self, message: dict[str, Any]) -> None:
        match message["t"]:
            case "event":
                self._take(message["feed"], message["offset"], message["event"])
            case "batch":
                for offset, event in message["events"]:
                    self._take(message["feed"], offset, event)
            case "drain":
                loop = asyncio.get_running_loop()
                self._back = loop.call_later(random.uniform(0, message["after"]), self.move)
            case _:
                super().message(message)
                if self._live == len(self.feeds) and not self.live_at:
                    self.live_at = time.monotonic()

    def _take(self, feed: str, offset: int, event: dict[str, Any]) -> None:
        last = self.feeds[feed]
        if offset <= last:
            self.swarm.repeats += 1
        elif offset > last + 1:
            self.swarm.fail(f"a hole: {offset} after {last}")
        else:
            self.feeds[feed] = self._dirty[feed] = offset
            self.swarm.count += 1
            if feed.startswith("account:"):
                self.got.append((offset, event["id"], time.monotonic()))

    def move(self, wait_s: float = 0.0) -> None:
        """Drop the connection and come back on another node."""
        super().leave()
        self._go(wait_s)

    def _go(self, wait_s: float) -> None:
        self.live_at = 0.0
        if self._back is not None:
            self._back.cancel()
        self._way = asyncio.get_running_loop().create_task(self._come(wait_s))

    async def _come(self, wait_s: float) -> None:
        loop = asyncio.get_running_loop()
        for attempt in range(ATTEMPTS):
            await asyncio.sleep(wait_s)
            self.node = (self.node + random.randrange(1, max(2, len(self._nodes)))) % len(self._nodes)
            self.swarm = self._nodes[self.node]
            try:
                await loop.create_connection(lambda: self, self.swarm.host, self.swarm.port)
                return
            except OSError:
                wait_s = random.uniform(0, min(60, 2**attempt))
        self.swarm.fail("no node takes it")


@dataclass(slots=True)
class Sent:
    """What the agency was answered, account by account: (offset, id, monotonic time of the answer)."""

    events: dict[str, list[tuple[int, str, float]]] = field(default_factory=dict)
    again: int = 0  # posts that had to be repeated, on another node
    refused: list[str] = field(default_factory=list)  # why events were taken by no node


async def post_steadily(
    agencies: Sequence[Agency], accounts: Sequence[str], rate: float, stop: asyncio.Event, sent: Sent
) -> None:
    """Single signed posts, to the nodes by turns, `rate` a second whatever the answers take; a post that fails goes to
    the next node until it is taken. Returns when all of them are answered."""
    loop = asyncio.get_running_loop()
    posts: set[asyncio.Task[None]] = set()
    begun, number = loop.time(), 0
    while not stop.is_set():
        due = int((loop.time() - begun) * rate)
        while number <= due:
            task = loop.create_task(_post(agencies, number, accounts[number % len(accounts)], sent))
            posts.add(task)
            task.add_done_callback(posts.discard)
            number += 1
        await asyncio.sleep(0.003)
    await asyncio.gather(*posts)


async def _post(agencies: Sequence[Agency], number: int, account: str, sent: Sent) -> None:
    event, why = agencies[0].personal(account), ""
    for attempt in range(ATTEMPTS):
        try:
            async with asyncio.timeout(10):
                result = (await agencies[(number + attempt) % len(agencies)].post([event]))[0]
            break
        except (OSError, EOFError, Failed, TimeoutError) as error:
            sent.again += 1
            why = str(error) or type(error).__name__
            await asyncio.sleep(0.1)
    else:
        sent.refused.append(why)
        return
    sent.events.setdefault(account, []).append((result["offset"], event["id"], time.monotonic()))


def judge(sent: Sequence[str], got: Sequence[str]) -> tuple[int, int, int]:
    """Lost, repeated, reordered: what came against what was sent, both in order."""
    lost = len(set(sent) - set(got))
    repeated = len(got) - len(set(got))
    place = {name: at for at, name in enumerate(sent)}
    places = [place[name] for name in dict.fromkeys(got) if name in place]
    reordered = sum(after < before for before, after in pairwise(places))
    return lost, repeated, reordered


def verdict(sent: Sent, phones: Sequence[Roamer]) -> tuple[int, int, int]:
    """`judge` over all devices. The order sent is that of the offsets."""
    sums = [0, 0, 0]
    for phone in phones:
        ids = [name for _, name, _ in sorted(sent.events.get(phone.account, []))]
        for at, value in enumerate(judge(ids, [name for _, name, _ in phone.got])):
            sums[at] += value
    return sums[0], sums[1], sums[2]


def missing(sent: Sent, phones: Sequence[Roamer]) -> bool:
    """Is any device not yet level with what was answered?"""
    return any(
        max((offset for offset, _, _ in sent.events.get(phone.account, [])), default=0)
        > phone.feeds[f"account:{phone.account}"]
        for phone in phones
    )


def delays(answered: Mapping[str, float], got: Mapping[str, float]) -> list[tuple[float, float]]:
    """(when received, seconds after the answer) of each event in both."""
    return [(got[name], got[name] - at) for name, at in answered.items() if name in got]


def level_s(late: Sequence[tuple[float, float]], back: float, usual_s: float) -> float:
    """Seconds from `back` to the last event that came later than is usual: from then on all are level."""
    return max((received - back for received, delay in late if delay > usual_s), default=0.0)
