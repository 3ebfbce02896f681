"""What a store promises. The memory store is the specification that runs; `tests/contracts/test_store.py` holds all.

The store is the truth. A feed is an append-only log of events with offsets 1, 2, 3, … without holes; the epoch names
the life of the log, is one for the whole store, and changes only by a restore. Every method takes many items at once,
because a trip to a store costs more than the work it does there, and is one transaction: all of it happened or none of
it did. A method that returns has its writes on disk (fsync), except `published` and `touch`, which a power cut may
undo: then an event is published once more, or a device looks a little longer away. One that raises `StoreUnavailable`
says that nothing of the call is known to be stored; a later look may find it all the same, never a part of it.

Several processes may write to one store at once, so nothing that another may change is remembered between calls.
Cancelling a call is safe for the store, but tells the caller nothing about the outcome.
Times are Unix seconds (float), kept to the microsecond. `None` in place of an event's bytes is an erased event, sent to
devices as `null`. An offset or position "past the head" never came from this log.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

MAX_DEVICES: Final = 10
"""Devices of one account (contract, section 3): bounds what an account can make us keep."""

HISTORY_BYTES: Final = 1 << 20
"""Events of one page of the history, in bytes: bounds what one reader can make us hold, 500 events may be 32 MiB."""

ERASED_TYPE: Final = "gov.erased"
"""The type that is never erased itself: it holds nothing personal, and devices need it to forget what it names."""


@dataclass(frozen=True, slots=True)
class Original:
    """A request as the agency signed it: kept so that the signature can be verified again (`vestnik verify`)."""

    agency: str
    key_id: str
    webhook_id: str
    timestamp: int
    signature: str  # the one that matched, with its version: `v1,…` or `v1a,…`
    body: bytes
    verified: float


@dataclass(frozen=True, slots=True)
class Draft:
    """A checked event on its way into the log."""

    feed: str  # `account:<id>`, `agency:<code>`
    key: bytes  # 16 bytes: digest of (source, id); the name under which repeats are recognised
    digest: bytes  # 32 bytes: digest of the content as a JSON value; equal content, equal digest
    event: bytes  # compact JSON object, UTF-8, without `recordedtime`
    type: str
    status: str | None  # `data.status`, for filters of the history
    time: float  # the event's own `time`
    priority: int  # 0 urgent, 1 high, 2 normal, 3 bulk
    thing: bytes | None = None  # 16 bytes: digest of (feed, source, subject) when the event has a `sequence`
    sequence: int | None = None
    original: Original | None = None  # the same object for all drafts of one request
    item: int = 0  # which item of the request's body this is


@dataclass(frozen=True, slots=True)
class Row:
    """A stored event."""

    offset: int
    event: bytes | None  # compact JSON with `recordedtime`; None when erased
    priority: int
    recorded: float


@dataclass(frozen=True, slots=True)
class Stored:
    """The draft is in the log, now or from before (`duplicate`). `seq` numbers commits of the whole store."""

    feed: str
    epoch: str
    offset: int
    seq: int
    duplicate: bool
    row: Row


@dataclass(frozen=True, slots=True)
class Conflict:
    """The same (source, id) is stored with other content. Nothing was written."""

    offset: int


@dataclass(frozen=True, slots=True)
class Stale:
    """A higher `sequence` of the same feed, source and subject is stored (`Draft.thing`). Nothing was written.

    An erased event still counts as stored, one that retention removed does not.
    """

    highest: int


Outcome = Stored | Conflict | Stale


@dataclass(frozen=True, slots=True)
class Range:
    """Events of a feed after an offset (0: from the beginning), at most `limit` of them, and at most `max_bytes` of
    them as stored (an erased one counts 4), but always one."""

    feed: str
    after: int
    limit: int = 100
    max_bytes: int = 65536


@dataclass(frozen=True, slots=True)
class Page:
    """An unbroken run of events, and the bounds of its feed at the same moment. `oldest` is the lowest offset kept
    (head + 1 when none is), `head` the highest ever committed. When `after` + 1 < `oldest` the rows start at `oldest`:
    the reader sees the gap and must say so. In a page of the history offsets may be missing (filters) or fall (newest
    first)."""

    feed: str
    oldest: int
    head: int
    rows: list[Row]


@dataclass(frozen=True, slots=True)
class Head:
    """The bounds of a feed, as in `Page`."""

    oldest: int
    head: int


@dataclass(frozen=True, slots=True)
class Join:
    """A `hello`: this device of this account starts a session (contract, section 3, "Where a feed starts").

    `resume` is {feed: (epoch, offset)}, looked at only for `feeds`.
    """

    account: str
    device: str
    feeds: tuple[str, ...]  # all that the session follows, `account:<id>` first
    resume: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    fresh: bool = False
    agent: str | None = None
    connected: frozenset[str] = frozenset()  # devices of the account that are connected now: not to be forgotten
    now: float = 0.0


@dataclass(frozen=True, slots=True)
class Start:
    """Where a feed starts: events follow after `offset`. With `reason` set, continuity is broken and `offset` is the
    head."""

    feed: str
    head: int
    offset: int
    reason: Literal["retention", "epoch"] | None = None


@dataclass(frozen=True, slots=True)
class Joined:
    """The device is known now and its start positions are stored; `starts` follow the order of `Join.feeds`.

    `new`: the device is `fresh` or has no stored position in its account's feed (never seen, forgotten, or still owing
    the first acknowledgement after a `resync`), and brought no usable `resume` for it: it must load the snapshot."""

    epoch: str
    new: bool
    starts: list[Start]
    forgotten: tuple[str, ...] = ()  # devices that had to go because the account had too many


@dataclass(frozen=True, slots=True)
class TooManyDevices:
    """The account has as many devices as it may and all of them are connected. Nothing was written."""


@dataclass(frozen=True, slots=True)
class CursorSave:
    account: str
    device: str
    feed: str
    epoch: str
    offset: int
    now: float


@dataclass(frozen=True, slots=True)
class Device:
    device: str
    agent: str | None
    created: float
    last_seen: float


@dataclass(frozen=True, slots=True)
class Presence:
    """This session stands for its device; of several the one with the highest `since` does. `node` is the process that
    has it. Empty names say that the device was signed out."""

    account: str
    device: str
    node: str
    session: str
    since: float = 0.0  # given by `enter`


@dataclass(frozen=True, slots=True)
class Entered:
    since: float
    before: str | None  # the other session that stood for the device until now
    others: frozenset[str]  # the account's other devices that are connected


@dataclass(frozen=True, slots=True)
class Trace:
    """The times of one event's way, for operators. `signed` is the time in the signature; it and `verified` are None
    when the event came without a request, `signed` too once an event of the request was erased."""

    offset: int
    signed: float | None
    verified: float | None
    published: bool  # it was noted that the bus took it
    delivered: float | None  # first time for the account as a whole, and so is `seen`
    seen: float | None


@dataclass(frozen=True, slots=True)
class Lease:
    name: str
    owner: str
    until: float


@dataclass(frozen=True, slots=True)
class AgencyKey:
    id: str
    kind: Literal["hmac", "ed25519"]
    material: bytes  # HMAC secret, or the 32-byte public key
    created: float
    retired: float | None = None  # still verifies what it signed before; signs nothing new


@dataclass(frozen=True, slots=True)
class Agency:
    code: str
    keys: tuple[AgencyKey, ...]
    types: tuple[str, ...] = ()  # event types it may send; empty means every type open to agencies
    created: float = 0.0


@dataclass(frozen=True, slots=True)
class Revocation:
    """Refuses the tokens of `value` that were issued up to `before`. `kind` is the claim that it looks at."""

    kind: Literal["sub", "sid", "device"]
    value: str  # for `device`: `<account>/<device>`, or `<device>` for every account
    before: float


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of a personal event, for the account as a whole, with the first time of each.

    What was seen was delivered, at that time at the latest, also when its acknowledgement is not saved yet.
    """

    status: Literal["pending", "delivered", "seen"]
    delivered: float | None
    seen: float | None


@dataclass(frozen=True, slots=True)
class Kept:
    """What is left of the request that brought an event. `original` is None after an event of the request was erased;
    `digest` is SHA-256 of the signed body either way."""

    feed: str
    offset: int
    item: int
    erased: bool
    key_id: str
    agency: str
    verified: float
    digest: bytes
    original: Original | None


@dataclass(frozen=True, slots=True)
class Filter:
    """Which events of a feed a reader of the history wants; empty wants all. Times are the event's own `time`: `start`
    inclusive, `end` exclusive."""

    types: Collection[str] = ()
    statuses: Collection[str] = ()
    start: float | None = None
    end: float | None = None


def size(event: bytes | None) -> int:
    """What an event counts in the byte limits of a page: an erased one is sent as `null`."""
    return 4 if event is None else len(event)


def spans(offsets: Iterable[int]) -> list[tuple[int, int]]:
    """Rising offsets as runs, both ends inclusive: 1, 2, 3, 7 are (1, 3), (7, 7)."""
    runs: list[tuple[int, int]] = []
    for offset in offsets:
        if runs and runs[-1][1] + 1 == offset:
            runs[-1] = (runs[-1][0], offset)
        else:
            runs.append((offset, offset))
    return runs


def receipt(delivered: float | None, seen: float | None) -> Receipt:
    """What was seen was delivered, at that time at the latest."""
    if seen is not None:
        return Receipt("seen", seen if delivered is None else min(delivered, seen), seen)
    return Receipt("pending" if delivered is None else "delivered", delivered, None)


class Store(Protocol):
    @property
    def epoch(self) -> str:
        """Known after open(), the same until close(). A store that finds another one there (a standby was promoted, a
        copy brought back) does nothing more but raise EpochChanged."""

    async def open(self) -> None:
        """Make it ready: create or migrate the schema, learn the epoch. Raises ConfigError when it never will be."""

    async def close(self) -> None:
        """What was called before is done first. Later calls raise StoreUnavailable."""

    async def ready(self) -> bool:
        """Can it read and commit now? Tried for real, cheaply, within 2 seconds. Never raises StoreUnavailable."""

    # Events

    async def append(self, drafts: Sequence[Draft], now: float) -> list[Outcome]:
        """Commit drafts in order, in one transaction; outcomes in the same order, drafts that repeat each other
        included.

        Duplicates are recognised before staleness; an equal `sequence` is not stale. An erased event is repeated by any
        content. Offsets of a feed go on from its head without holes, also when several processes append. `recordedtime`
        (RFC 3339 of `now`, milliseconds, Z) is added to each event as its last member. Originals are kept once for each
        request, and not at all when nothing of the request was new. Each stored event counts as unpublished until
        `published` names its `seq`.
        """

    async def read(self, ranges: Sequence[Range]) -> list[Page]:
        """One page for each range, in order; everything committed before the call is in them. A feed without events has
        oldest 1 and head 0."""

    async def heads(self, feeds: Collection[str]) -> dict[str, Head]:
        """For every feed asked, (1, 0) for those without events."""

    async def history(
        self, feed: str, *, after: int | None, before: int | None, limit: int, filter: Filter, max_scan: int = 5000
    ) -> tuple[Page, int | None]:
        """A page of matching events: oldest first when `after` is given, newest first otherwise; bounds are exclusive.

        Erased events match only an empty filter. The second value is where to go on (the next `after` or `before`),
        None at the end. At most `max_scan` offsets are looked at and at most HISTORY_BYTES given: a page may be short,
        or empty, and still have a next."""

    async def published(self, seqs: Collection[int]) -> None:
        """These commits were given to the bus. Unknown and repeated ones are ignored."""

    async def unpublished(self, before: float, limit: int) -> list[Stored]:
        """Recorded before that time and never published, in the order of commit; what was erased meanwhile is among
        them, without its bytes."""

    # Devices and cursors

    async def join(self, joins: Sequence[Join]) -> list[Joined | TooManyDevices]:
        """Find or make the device, decide where each feed starts (`gateway.store.joining`), store the start positions
        (durably, before this returns; a `resync` moves no cursor), touch `last_seen`, keep `agent`. In order: a later
        join sees what an earlier one did.

        A usable `resume` counts as an acknowledgement. `fresh` ignores it and forgets the device's other cursors:
        agency feeds start at their heads, the account's own after the highest offset that any device of it
        acknowledged; that one's stored cursor never goes back within an epoch. Over MAX_DEVICES devices, the one
        longest away that is neither `connected` nor joining in the same call is forgotten with its cursors."""

    async def follow(self, account: str, device: str, feed: str, resume: tuple[str, int] | None, now: float) -> Start:
        """The same for one more agency feed of a device that has joined. For an unknown device nothing is stored."""

    async def unfollow(self, account: str, device: str, feed: str) -> None:
        """Forget the cursor of this feed. Harmless when there is none."""

    async def save(self, cursors: Sequence[CursorSave]) -> None:
        """Acknowledged positions: the maximum wins within an epoch, this epoch replaces an older one, a save of any
        other epoch is ignored, and past the head counts as the head. Unknown devices are ignored: saving never brings
        a forgotten device back. On `account:<id>` of its own the account's highest acknowledged offset (for new
        devices and receipts) rises too, and the time of each rise is kept as the first delivery of what it covers."""

    async def touch(self, devices: Sequence[tuple[str, str, float]]) -> None:
        """(account, device, last seen); the latest time wins, unknown devices are ignored."""

    async def seen(self, marks: Sequence[tuple[str, Sequence[int], float]]) -> None:
        """(feed, offsets, when): the person was shown these. The first time is kept; offsets past the head, no longer
        kept, or erased are ignored."""

    async def seen_offsets(self, feed: str) -> set[int]:
        """All offsets of the feed that were shown and are kept."""

    async def receipts(self, keys: Sequence[bytes]) -> list[Receipt | None]:
        """For each event key (see Draft.key); None when unknown, or the event is not in an `account:` feed."""

    async def traces(self, feed: str, offsets: Collection[int]) -> list[Trace]:
        """By offset; those that are not kept are left out."""

    async def cursors(self, account: str) -> dict[str, dict[str, tuple[str, int]]]:
        """What each device of the account acknowledged, as far as it is saved: device -> feed -> (epoch, offset).
        Devices without any are left out."""

    async def devices(self, account: str) -> list[Device]:
        """In the order in which they came."""

    async def forget(self, account: str, device: str) -> bool:
        """Forget the device and its cursors. False when there was none."""

    # Presence and leases: who is connected where, and who does what. All of it may be lost at any time, by a crash of
    # the store too: then it is made again, and no event depends on it. Clocks of the nodes should agree to a second.

    async def enter(self, presences: Sequence[Presence], now: float) -> list[Entered]:
        """From now on these sessions stand for their devices, in order, whoever did before: the newest wins. `since` is
        `now`, or a microsecond after what it follows where that is later, whatever the clocks of the nodes say."""

    async def keep(self, presences: Sequence[Presence], now: float) -> list[Presence]:
        """What stands instead of those that stand for their device no more, in any order. One that nothing is known
        of, or only something older, stands again."""

    async def leave(self, presences: Sequence[Presence]) -> None:
        """These sessions are over. Those that stand for their device no more change nothing."""

    async def present(self, account: str, now: float) -> frozenset[str]:
        """The account's devices that a session stands for, on a node that holds the lease `node:<its name>`."""

    async def lease(self, name: str, owner: str, until: float, now: float) -> bool:
        """Hold `name` until then, new or for longer. False, and nothing changes, while another owner holds it."""

    async def release(self, name: str, owner: str) -> None:
        """Let it go, if it is the owner's."""

    async def leases(self, prefix: str, now: float) -> list[Lease]:
        """Those held now whose names begin so, by name."""

    async def expire(self, before: float, limit: int = 10_000) -> int:
        """Forget leases that ended before that time, and presences from before it whose node has no lease: at most
        `limit` of each, how many they were. Only tidies up: what has ended counts for nothing anyway."""

    # Erasure, retention, proof

    async def erase(
        self, feed: str, offset: int | None, make: Callable[[Sequence[tuple[int, int]]], Draft], now: float
    ) -> Stored | None:
        """Erase one event, or (None) all that the feed has, in one transaction.

        Bytes, type, status, time, digest of the content, `seen` marks, and the original body and signature of the
        request go; offset, key, `sequence` and times of commit and delivery stay: a repeat is still recognised,
        whatever its content. `make(ranges)` gives the `gov.erased` event to append; the ranges are the offsets erased
        now, both ends inclusive, rising and apart. It is called inside the transaction, maybe on another thread: it
        only computes. ERASED_TYPE events are never erased. None when there was nothing left to erase, and `make` was
        not called."""

    async def retain(self, before: float, limit: int = 10_000, feed: str | None = None) -> int:
        """Delete events recorded before that time, from the old end of each feed, or of this one, with what hangs on
        them (key, marks, deliveries, `sequence` when it was the thing's last event, original when it was the request's
        last event); at most `limit`. Returns how many. The head stays. Works in transactions of its own, small enough
        to let others between."""

    async def kept(self, key: bytes) -> Kept | None:
        """What is kept of the request that brought this event. None when it is unknown or came without one."""

    # Control: small tables that every process polls

    async def revision(self) -> int:
        """Grows with every change of agencies or revocations, by whichever process."""

    async def agencies(self) -> list[Agency]:
        """By code; keys in the order in which they were added, retired ones included."""

    async def add_agency_key(self, code: str, key: AgencyKey, types: Sequence[str] | None, now: float) -> None:
        """Make the agency if it is new, and give it one more key. `types` replaces what it may send, None leaves that.
        A key id that the agency already has raises ValueError."""

    async def retire_agency_key(self, code: str, key_id: str, now: float) -> bool:
        """False when there is no such key, or it was retired before."""

    async def revoke(self, revocation: Revocation) -> None:
        """The latest `before` of the same kind and value wins."""

    async def revocations(self) -> list[Revocation]: ...

    async def backup(self, path: str, progress: Callable[[int, int], None] | None = None) -> None:
        """Copy the running store, as it is at one moment, to one file, which is there whole or not at all.
        `progress(done, total)`, pages, may be called on another thread. Raises ConfigError when the file cannot be
        written, or the store has no such thing."""
