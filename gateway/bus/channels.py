"""Which channels are wanted, which were asked for and which the server confirmed. Pure: no socket, no clock.

The server confirms each channel of each SUBSCRIBE and UNSUBSCRIBE, in order. A channel is live when everything that
was sent about it is confirmed and it is still wanted; so a channel that was dropped and wanted again is live only
after its last command.
"""

from collections.abc import Callable, Iterable

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
        self._queued: dict[bytes, None] = {}
        self._asked: dict[bytes, int] = {}  # commands sent and not confirmed
        self._waiting: dict[bytes, list[Waiter]] = {}

    def want(self, channel: bytes, feed: str) -> None:
        if channel not in self.wanted:
            self.wanted[channel] = feed
            self._queued[channel] = None

    def drop(self, channel: bytes) -> None:
        """No longer wanted; who waited for it waits no more."""
        if self.wanted.pop(channel, None) is not None:
            self._live.discard(channel)
            self._queued[channel] = None
            self._release(channel)

    def reset(self) -> None:
        """The connection is new: the server knows nothing."""
        self._live.clear()
        self._asked.clear()
        self._queued = dict.fromkeys(self.wanted)

    def commands(self) -> list[tuple[bytes, ...]]:
        """What to send now. Empty when nothing is queued or enough is under way; ask again after confirmations."""
        room = IN_FLIGHT - len(self._asked)
        subscribe: list[bytes] = []
        unsubscribe: list[bytes] = []
        while self._queued and room > 0:
            channel = next(iter(self._queued))
            del self._queued[channel]
            self._asked[channel] = self._asked.get(channel, 0) + 1
            (subscribe if channel in self.wanted else unsubscribe).append(channel)
            room -= 1
        return [
            (word, *channels[start : start + BATCH])
            for word, channels in ((b"SUBSCRIBE", subscribe), (b"UNSUBSCRIBE", unsubscribe))
            for start in range(0, len(channels), BATCH)
        ]

    def confirmed(self, channel: bytes) -> None:
        """The server answered one command about this channel."""
        left = self._asked.pop(channel, 0) - 1
        if left > 0:
            self._asked[channel] = left
        elif left == 0 and channel in self.wanted and channel not in self._queued:
            self._live.add(channel)
            self._release(channel)

    @property
    def settled(self) -> bool:
        """Everything wanted is live and nothing else is subscribed."""
        return not self._queued and not self._asked

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
