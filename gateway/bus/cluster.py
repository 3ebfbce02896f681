"""The bus over a Redis Cluster (7 or newer) with sharded pub/sub: a message travels inside the shard of its feed's
channel only, so that shards share the load. Messages to every gateway travel in the shard of their one channel, to
which every gateway is subscribed.

For each primary there are a connection that publishes and, while it holds a channel that is wanted here, a watched one
that listens; both made on demand. Which primary has a slot is asked of several nodes every few seconds, and at once
when something does not fit: a connection is lost, a publish or a subscription is answered MOVED, or the server ends a
subscription by itself because the slot leaves. The bus is healthy when every primary that it listens to proved that it
carries, and every wanted channel has a primary.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Iterable
from typing import Any

import hiredis

from gateway.bus import resp, slots
from gateway.bus.address import Address, Command, parse_cluster
from gateway.bus.base import Listener
from gateway.bus.link import Link
from gateway.bus.pubsub import CONTROL, PROBE, PubSub
from gateway.bus.quorum import most
from gateway.bus.sender import Backoff, Sender, Timing
from gateway.bus.slots import SLOTS, Range, slot_of
from gateway.errors import BusUnavailable
from gateway.logs import get_logger

log = get_logger("bus")

ASKED = 5  # nodes that one look at the map asks: enough to outvote one that was cut off, few in a large cluster
LOOK_EVERY_S = 5.0  # a primary that was cut off and goes on taking messages is left within this
LOOK_PAUSE_S = 0.1  # between looks while slots move: each costs a pass over all channels
ROUNDS = 5  # in which a message follows its slot through MOVED


class ShardLink(Link):
    """The channels of one primary. `strays` lost their subscription and wait for the next look at the map."""

    sharded = True

    def __init__(self, bus: "ClusterBus", shard: "Shard", probe: bytes, timing: Timing):
        super().__init__(bus, shard.find, shard.sender, f"vestnik-sub-{bus.id}", probe, timing, primary=False)
        self._bus, self._shard = bus, shard
        self.strays: set[bytes] = set()

    def _mine(self) -> Iterable[bytes]:
        self.strays.clear()
        return {self.probe: None, **dict.fromkeys(self._bus.channels_of(self._shard))}

    def _unasked(self, kind: bytes, channel: bytes) -> None:
        if (
            kind == b"sunsubscribe"
            and channel in self._bus.channels.wanted
            and self._bus.shard_of(channel) is self._shard
        ):
            self._stray([channel])

    def _complete(self) -> bool:
        return not self.strays

    def _refused(self, error: str) -> bool:
        if (where := slots.moved(error)) is None:
            return False
        self._stray([channel for channel in self.lane.leave_slot(where[0]) if channel in self._bus.channels.wanted])
        self.flush_soon()
        return True

    def _stray(self, channels: list[bytes]) -> None:
        for channel in channels:
            self._bus.channels.lost(channel)
            self.strays.add(channel)
            self.owe_gap()
        self._bus.look_soon()


class Shard:
    """One primary. `wanted` counts the channels that are wanted here and live in its slots, the probe apart."""

    def __init__(self, address: Address, bus: "ClusterBus", timing: Timing):
        self.address = address
        self.sender = Sender(self.find, f"vestnik-pub-{bus.id}", timing)
        self.link: ShardLink | None = None
        self.wanted = 0

    async def find(self) -> Address:
        return self.address


class ClusterBus(PubSub):
    """`gateway.bus.base.Bus` over a Redis Cluster. See `Timing` for the arguments."""

    word = b"SPUBLISH"

    def __init__(self, url: str, *, timeout_s: float = 2.0, probe_every_s: float = 2.0, backoff_cap_s: float = 2.0):
        super().__init__(Timing(timeout_s, probe_every_s, backoff_cap_s))
        self.id = self._id
        self._seeds = parse_cluster(url)
        self._nodes: list[Address] = []  # of the last look, replicas included
        self._shards: dict[Address, Shard] = {}
        self._map: list[Shard | None] = [None] * SLOTS
        self._detours: dict[int, Shard] = {}  # for publishing, what MOVED said since the last look
        self._homeless: set[bytes] = {CONTROL}  # wanted, and no shard has their slot
        self._why: str | None = None  # no shard has them
        self._untold = False  # something was or may have been missed while homeless
        self._looking = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()

    async def open(self, listener: Listener) -> None:
        self._listener = listener
        self._task = asyncio.create_task(self._looks(), name="bus map")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._why = "the bus is closed"
        for shard in self._shards.values():
            self._leave(shard)
        self._shards, self._map, self._task = {}, [None] * SLOTS, None
        self._silence()
        await asyncio.gather(*self._closing)

    @property
    def healthy(self) -> bool:
        return (
            self._task is not None
            and not self._homeless
            and all(shard.link is not None and shard.link.healthy for shard in self._shards.values() if shard.wanted)
        )

    # Who has what

    def shard_of(self, channel: bytes) -> Shard | None:
        return self._map[slot_of(channel)]

    def channels_of(self, shard: Shard) -> Iterable[bytes]:
        """Everything wanted in its slots, in the order of asking."""
        map_ = self._map
        return (channel for channel in self.channels.wanted if map_[slot_of(channel)] is shard)

    def look_soon(self) -> None:
        self._looking.set()

    def lost(self, link: Link | None, why: str) -> None:
        super().lost(link, why)
        self.look_soon()

    def _link(self, channel: bytes) -> Link | None:
        shard = self.shard_of(channel)
        return shard.link if shard is not None else None

    def _owe_gap(self, link: Link | None) -> None:
        super()._owe_gap(link)
        self._untold |= link is None

    def _down(self, link: Link | None) -> str | None:
        return super()._down(link) if link is not None else self._why

    def _queue(self, channel: bytes) -> None:
        shard, wanted = self.shard_of(channel), channel in self.channels.wanted
        if shard is None:
            (self._homeless.add if wanted else self._homeless.discard)(channel)
            return
        shard.wanted += 1 if wanted else -1
        if (link := shard.link or (self._listen(shard) if wanted else None)) is not None:
            link.strays.discard(channel)
            link.lane.queue(channel)
            link.flush_soon()

    def _listen(self, shard: Shard) -> ShardLink | None:
        """Open the link of a shard; it will ask for all its channels. None when the shard has no slots."""
        probe = self._probe_of(shard)
        if probe is not None:
            shard.link = ShardLink(self, shard, probe, self._timing)
            shard.link.open()
        return shard.link

    def _probe_of(self, shard: Shard) -> bytes | None:
        here = {slot for slot, one in enumerate(self._map) if one is shard}
        return (
            slots.channel_in(here, PROBE + self._id.encode() + b"." + secrets.token_hex(2).encode()) if here else None
        )

    def _leave(self, shard: Shard) -> None:
        """Close what leads to a shard."""
        link, shard.link = shard.link, None
        self._stop(link)
        shard.sender.close()
        self._finish(shard.sender.closed())

    def _stop(self, link: ShardLink | None) -> None:
        if link is not None:
            link.close()
            self.channels.drop(link.probe)
            super().lost(link, "the shard moved")
            self._finish(link.closed())

    def _finish(self, ending: Any) -> None:
        task = asyncio.ensure_future(ending)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    # Publishing

    async def _send(self, commands: list[Command]) -> None:
        for _ in range(ROUNDS):
            if not (commands := await self._round(commands)):
                return
        raise BusUnavailable("the slots of the cluster keep moving")

    async def _round(self, commands: list[Command]) -> list[Command]:
        """Send each to its shard, all shards at once. Returns those whose slot has moved. Raises BusUnavailable when
        one was not taken, after the others were sent."""
        map_, detours = self._map, self._detours
        trips: dict[Shard, list[Command]] = {}
        failure: BaseException | None = None
        for command in commands:
            slot = slot_of(command[1])  # type: ignore[arg-type]
            shard = detours.get(slot) or map_[slot]
            if shard is not None:
                trips.setdefault(shard, []).append(command)
            else:
                failure = BusUnavailable(self._why or "the slots of the cluster are not known yet")
        moved: list[Command] = []
        for (shard, trip), answer in zip(trips.items(), await _all(trips), strict=True):
            if isinstance(answer, BaseException):
                failure = answer
                continue
            for command, one in zip(trip, answer, strict=True):
                if isinstance(one, hiredis.ReplyError):
                    if (where := slots.moved(str(one))) is None:
                        failure = BusUnavailable(f"Redis refused: {one}")
                    else:
                        self._detours[where[0]] = self._shard(where[1] or shard.address.host, where[2])
                        moved.append(command)
        if failure is not None or moved:
            self.look_soon()
        if failure is not None:
            raise failure
        return moved

    # The map

    def _shard(self, host: str, port: int) -> Shard:
        address = self._seeds[0].at(host, port)
        if address not in self._shards:
            self._shards[address] = Shard(address, self, self._timing)
        return self._shards[address]

    async def _looks(self) -> None:
        backoff, said = Backoff(self._timing.backoff_cap_s), False
        while True:
            self._looking.clear()
            pause_s = LOOK_EVERY_S
            try:
                self._apply(await self._look())
                backoff.reset()
                said = False
            except BusUnavailable as error:
                pause_s = max(backoff.next(), LOOK_PAUSE_S)
                if self._homeless:
                    self._why = str(error)
                    super().lost(None, self._why)
                if not said:
                    log.warning("bus_map_unknown", error=str(error))
                    said = True
            except Exception:
                log.exception("bus_failed")
            await asyncio.sleep(LOOK_PAUSE_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._looking.wait()

    async def _look(self) -> list[Range]:
        """The map of the node that knows of the latest election."""
        known = dict.fromkeys(
            [*(shard.address for shard in self._detours.values()), *_shuffled(self._nodes), *self._seeds]
        )
        answers = await most([self._ask(one) for one in list(known)[:ASKED]], self._timing.timeout_s)
        _, ranges, nodes = max(answers, key=lambda answer: answer[0])
        self._nodes = [self._seeds[0].at(host, port) for host, port in nodes]
        return ranges

    async def _ask(self, address: Address) -> tuple[tuple[bool, int], list[Range], list[tuple[str, int]]]:
        """How much its word counts (it sees the majority; its epoch), its map, and the nodes that it knows."""
        connection = resp.Connection()
        try:
            await resp.connect(connection, address, name=f"vestnik-map-{self._id}", timeout_s=self._timing.timeout_s)
            info, map_ = await connection.call(("CLUSTER", "INFO"), ("CLUSTER", "SLOTS"))
            said = dict(line.split(":", 1) for line in info.decode().split() if ":" in line)
            ranges = slots.ranges(map_, address.host)
            nodes = dict.fromkeys([*((host, port) for _, _, host, port in ranges), *slots.replicas(map_)])
            return (said["cluster_state"] == "ok", int(said["cluster_current_epoch"])), ranges, list(nodes)
        except (ValueError, KeyError, AttributeError):
            raise BusUnavailable(f"Redis at {address} does not say which slots its cluster has") from None
        finally:
            connection.abort("the look is over")

    def _apply(self, ranges: list[Range]) -> None:
        """Make this the map, and bring every channel to its shard."""
        old, new = self._map, list[Shard | None]([None] * SLOTS)
        for first, last, host, port in ranges:
            new[first : last + 1] = [self._shard(host, port)] * (last + 1 - first)
        self._map = new
        self._detours.clear()
        if new != old:
            self._rehome(old)
        self._why = "no shard of the cluster has the slot" if self._homeless else None
        if self._homeless:
            super().lost(None, str(self._why))
        self._tidy(set(new))
        for shard in self._shards.values():
            if shard.link is not None and shard.link.strays:
                self._gather(shard.link)

    def _rehome(self, old: list[Shard | None]) -> None:
        moved: list[tuple[bytes, Shard | None]] = []
        for shard in self._shards.values():
            shard.wanted = 0
        self._homeless.clear()
        for channel, feed in self.channels.wanted.items():
            if feed or channel == CONTROL:
                slot = slot_of(channel)
                now, before = self._map[slot], old[slot]
                if now is None:
                    self._homeless.add(channel)
                    self._untold = True
                else:
                    now.wanted += 1
                if now is not before:
                    moved.append((channel, before))
        for one in self._shards.values():
            self._move_probe(one)
        for channel, before in moved:
            self.channels.lost(channel)
            if before is not None and before.link is not None:
                before.link.lane.leave(channel)
                before.link.strays.discard(channel)
            now = self.shard_of(channel)
            if now is not None and (link := now.link or self._listen(now)) is not None:
                link.lane.queue(channel)
                if before is not None or self._untold:
                    link.owe_gap()
        self._untold = bool(self._homeless)
        for one in self._shards.values():
            if one.link is not None:
                one.link.flush_soon()
        if any(before is not None for _, before in moved):
            log.info("bus_moved", feeds=len(moved))
            # Others may publish to the old primaries until their own looks find it out.
            self.gap(after_s=LOOK_EVERY_S + self._timing.timeout_s)

    def _move_probe(self, shard: Shard) -> None:
        """The probe of a link must live where the link leads."""
        link = shard.link
        if link is not None and self.shard_of(link.probe) is not shard:
            probe = self._probe_of(shard)
            if probe is None:
                shard.link = None
                self._stop(link)
                return
            link.strays.discard(link.probe)
            link.use_probe(probe)

    def _tidy(self, used: set[Shard | None]) -> None:
        """Leave shards that have no slots, and links that have no channels."""
        for address, shard in list(self._shards.items()):
            if shard not in used:
                del self._shards[address]
                self._leave(shard)
            elif shard.link is not None and not shard.wanted:
                link, shard.link = shard.link, None
                self._stop(link)

    def _gather(self, link: ShardLink) -> None:
        """The map is known again: ask again for what was lost and has not moved. (What has moved is gone already.)"""
        strays, link.strays = link.strays, set()
        for channel in strays:
            link.lane.queue(channel)
        link.flush_soon()


async def _all(trips: dict[Shard, list[Command]]) -> list[list[Any] | BaseException]:
    """The answers, or why there are none, in the same order."""
    if len(trips) == 1:  # a third of the time of a single message
        [(shard, trip)] = trips.items()
        try:
            return [await shard.sender.ask(*trip)]
        except BusUnavailable as error:
            return [error]
    return await asyncio.gather(*(shard.sender.ask(*trip) for shard, trip in trips.items()), return_exceptions=True)


def _shuffled(nodes: list[Address]) -> list[Address]:
    return secrets.SystemRandom().sample(nodes, len(nodes))
