"""Which channels are wanted, which were asked for and which the server confirmed. Pure: no socket, no clock.

`Channels` is the whole of a bus. A `Lane` is what travels about them over one connection; each channel has one lane at
a time. The server confirms each channel of each SUBSCRIBE and UNSUBSCRIBE, in order. A channel is live when everything
that was sent about it is confirmed and it is still wanted; so a channel that was dropped and wanted again is live only
after its last command.
"""

from collections.abc import Callable, Iterable

from gateway.bus.slots import slot_of

BATCH = 1_000  # channels in one command: one turn of the server's loop stays near a millisecond
IN_FLIGHT = 4_000  # channels asked for and not yet confirmed: bounds what the server must buffer for us


class Waiter:
    """Calls `done` once, when all its channels are live or no longer wanted."""

    __slots__ = ("done", "left")

    def __init__(self, left: int, done: Callable[[], None]):
        self.left, self.done = left, done


class Channels:
    def __init__(self) -> None:
        self.wanted: dict[bytes, str] = {}  # channel -> feed; in the order of asking
        self._live: set[bytes] = set()
        self._waiting: dict[bytes, list[Waiter]] = {}

    def want(self, channel: bytes, feed: str) -> bool:
        """True when it was not wanted before; then queue it in its lane."""
        if channel in self.wanted:
            return False
        self.wanted[channel] = feed
        return True

    def drop(self, channel: bytes) -> bool:
        """No longer wanted; who waited for it waits no more. True when it was wanted; then queue it in its lane."""
        if self.wanted.pop(channel, None) is None:
            return False
        self._live.discard(channel)
        self._release(channel)
        return True

    def confirmed(self, channel: bytes) -> None:
        """The server holds the subscription."""
        self._live.add(channel)
        self._release(channel)

    def lost(self, channel: bytes) -> None:
        """The server holds the subscription no more."""
        self._live.discard(channel)

    def wait(self, channels: Iterable[bytes], done: Callable[[], None]) -> Waiter | None:
        """Call `done` when all these are live; None (and no call) when they are already."""
        missing = [channel for channel in channels if channel not in self._live]
        if not missing:
            return None
        waiter = Waiter(len(missing), done)
        for channel in missing:
            self._waiting.setdefault(channel, []).append(waiter)
        return waiter

    def forget(self, channels: Iterable[bytes], waiter: Waiter) -> None:
        """The one who waited gave up."""
        for channel in channels:
            if waiters := self._waiting.get(channel):
                waiters[:] = [one for one in waiters if one is not waiter]
                if not waiters:
                    del self._waiting[channel]

    def _release(self, channel: bytes) -> None:
        for waiter in self._waiting.pop(channel, ()):
            waiter.left -= 1
            if not waiter.left:
                waiter.done()


class Lane:
    """With `sharded` the channels of one command share a slot, as a cluster demands (SSUBSCRIBE)."""

    def __init__(self, channels: Channels, *, sharded: bool = False):
        self._channels, self._sharded = channels, sharded
        self._queued: dict[bytes, None] = {}
        self._asked: dict[bytes, int] = {}  # commands sent and not confirmed

    def queue(self, channel: bytes) -> None:
        """It was wanted or dropped: tell the server with the next commands."""
        self._queued[channel] = None

    def reset(self, channels: Iterable[bytes]) -> None:
        """The connection is new and the server knows nothing: these, all wanted, are asked for anew."""
        self._asked.clear()
        self._queued = dict.fromkeys(channels)
        for channel in self._queued:
            self._channels.lost(channel)

    def commands(self) -> list[tuple[bytes, ...]]:
        """What to send now. Empty when nothing is queued or enough is under way; ask again after confirmations."""
        room = IN_FLIGHT - len(self._asked)
        subscribe: list[bytes] = []
        unsubscribe: list[bytes] = []
        while self._queued and room > 0:
            channel = next(iter(self._queued))
            del self._queued[channel]
            self._asked[channel] = self._asked.get(channel, 0) + 1
            (subscribe if channel in self._channels.wanted else unsubscribe).append(channel)
            room -= 1
        words = (b"SSUBSCRIBE", b"SUNSUBSCRIBE") if self._sharded else (b"SUBSCRIBE", b"UNSUBSCRIBE")
        return [
            (word, *group[start : start + BATCH])
            for word, channels in zip(words, (subscribe, unsubscribe), strict=True)
            for group in (_by_slot(channels) if self._sharded else [channels])
            for start in range(0, len(group), BATCH)
        ]

    def confirmed(self, channel: bytes) -> bool:
        """The server answered one command about this channel; False when none was under way."""
        asked = self._asked.pop(channel, 0)
        if asked > 1:
            self._asked[channel] = asked - 1
        elif asked and channel in self._channels.wanted and channel not in self._queued:
            self._channels.confirmed(channel)
        return asked > 0

    def leave(self, channel: bytes) -> None:
        """It belongs to another lane, or to none: answers about it count no more."""
        self._asked.pop(channel, None)
        self._queued.pop(channel, None)

    def leave_slot(self, slot: int) -> list[bytes]:
        """`leave` with everything in this slot that is queued or under way; these channels."""
        found = [channel for channel in {**self._asked, **self._queued} if slot_of(channel) == slot]
        for channel in found:
            self.leave(channel)
        return found

    @property
    def settled(self) -> bool:
        """Everything wanted is live and nothing else is subscribed."""
        return not self._queued and not self._asked


def _by_slot(channels: Iterable[bytes]) -> list[list[bytes]]:
    groups: dict[int, list[bytes]] = {}
    for channel in channels:
        groups.setdefault(slot_of(channel), []).append(channel)
    return list(groups.values())
