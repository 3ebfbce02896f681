"""The tail: recent events of the feeds that have someone here, ready as wire frames, under one byte budget for the
process.

A session that is a little behind reads on from here; one that is further behind asks the store. So what leaves the
tail is never lost, only slower, and a slow phone holds no memory of its own.
"""

from collections import deque

from gateway.bus.base import Message
from gateway.protocol.codec import Codec

ENTRY_OVERHEAD_BYTES = 400  # objects around the bytes of one entry, measured with tracemalloc on CPython 3.11


class Entry:
    """One event, with its frame for each subprotocol made when the first session needs it: the same bytes for all."""

    __slots__ = ("_frames", "event", "offset", "priority", "recorded", "written")

    def __init__(self, message: Message):
        self.offset = message.offset
        self.event = message.event
        self.priority = message.priority
        self.recorded = message.recorded
        self.written = 0.0  # when it was first written to a socket here; 0.0 while it was not
        self._frames: dict[str, bytes] | None = None

    def frame(self, codec: Codec, feed: str) -> bytes:
        """The complete WebSocket frame of this event."""
        frames = self._frames
        if frames is None:
            frames = self._frames = {}
        ready = frames.get(codec.subprotocol)
        if ready is None:
            ready = frames[codec.subprotocol] = codec.event_frame(feed, self.offset, self.event)
        return ready

    @property
    def size(self) -> int:
        """Bytes that this entry may come to hold: the event, and a frame in each of two subprotocols."""
        return ENTRY_OVERHEAD_BYTES + 3 * len(self.event or b"")


Entries = dict[int, Entry]


class Tail:
    """The budget over the entries of all feeds; what came first goes first, and nothing stays longer than `keep_s`."""

    __slots__ = ("_budget", "_keep_s", "_order", "evicted", "used")

    def __init__(self, budget_bytes: int, keep_s: float = 60.0):
        self._budget = budget_bytes
        self._keep_s = keep_s
        self._order: deque[tuple[float, Entries, Entry]] = deque()
        self.used = 0
        self.evicted = 0  # entries that had to go for the budget

    def __len__(self) -> int:
        return len(self._order)

    def put(self, entries: Entries, entry: Entry, now: float) -> None:
        """Add an entry to its feed's entries; drop the oldest of all feeds while over the budget or the age."""
        if entries.setdefault(entry.offset, entry) is not entry:
            return
        self.used += entry.size
        self._order.append((now, entries, entry))
        self.trim(now)

    def trim(self, now: float) -> None:
        """Drop what is too old or over the budget. `now` is monotonic, seconds."""
        order, oldest = self._order, now - self._keep_s
        while order and (self.used > self._budget or order[0][0] < oldest):
            _, entries, entry = order.popleft()
            self.used -= entry.size
            if entries.get(entry.offset) is entry:
                del entries[entry.offset]

    def drop(self, entries: Entries) -> None:
        """Nothing of this feed is found any more: nobody is here for it, or one of its events was erased. The memory is
        given back, and counted as used, until its turn comes."""
        entries.clear()
