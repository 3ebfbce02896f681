"""What a store promises. The memory store is the executable specification; `tests/contracts/test_store.py` holds all to it.

The store is the truth. A feed is an append-only log of events with offsets 1, 2, 3, … without holes; the epoch names the
life of the log and is one for the whole store. Every method takes many items at once, because a trip to a store costs more
than the work it does there, and is one transaction: all of it happened or none of it did. A method that returns has its
writes on disk (fsync); one that raises `StoreUnavailable` says that nothing of the call is known to be stored.

Cancelling a call is safe for the store, but tells the caller nothing about the outcome.
Times are Unix seconds (float). `None` in place of an event's bytes is an erased event, sent to devices as `null`.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol


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

    feed: str
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
    """A higher `sequence` of the same feed, source and subject is stored. Nothing was written."""

    highest: int


Outcome = Stored | Conflict | Stale


@dataclass(frozen=True, slots=True)
class Range:
    """Events of a feed after an offset, at most `limit` of them; and at most `max_bytes`, but always one."""

    feed: str
    after: int
    limit: int = 100
    max_bytes: int = 65536


@dataclass(frozen=True, slots=True)
class Page:
    """An unbroken run of events. `oldest` is the lowest offset kept (head + 1 when none is), `head` the highest committed.
    When `after` + 1 < `oldest` the rows start at `oldest`: the reader sees the gap and must say so."""

    feed: str
    oldest: int
    head: int
    rows: list[Row]


@dataclass(frozen=True, slots=True)
class Head:
    oldest: int
    head: int


@dataclass(frozen=True, slots=True)
class Join:
    """A `hello`: this device of this account starts a session (contract, section 3, "Where a feed starts")."""

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
    """Where a feed starts: events follow after `offset`. With `reason` set, continuity is broken and `offset` is the head."""

    feed: str
    head: int
    offset: int
    reason: Literal["retention", "epoch"] | None = None


@dataclass(frozen=True, slots=True)
class Joined:
    epoch: str
    new: bool
    starts: list[Start]
    forgotten: tuple[str, ...] = ()  # devices that had to go because the account had too many


@dataclass(frozen=True, slots=True)
class TooManyDevices:
    """The account has as many devices as it may and all of them are connected."""


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
    """Which events of a feed a reader of the history wants. Times are the event's own `time`: from inclusive, to exclusive."""

    types: Collection[str] = ()
    statuses: Collection[str] = ()
    start: float | None = None
    end: float | None = None


class Store(Protocol):
    epoch: str  # known after open()

    async def open(self) -> None:
        """Make it ready: create or migrate the schema, learn the epoch. Raises ConfigError when it never will be."""

    async def close(self) -> None: ...

    async def ready(self) -> bool:
        """Can it read and commit now? Tried for real, cheaply."""

    # Events

    async def append(self, drafts: Sequence[Draft], now: float) -> list[Outcome]:
        """Commit drafts in order, in one transaction; outcomes in the same order, drafts that repeat each other included.

        Duplicates are recognised before staleness. Offsets of a feed go on from its head without holes. `recordedtime` (RFC 3339
        of `now`, milliseconds, Z) is added to each event as its last member. Originals are kept once for each request. Each
        stored event counts as unpublished until `published` names its `seq`.
        """

    async def read(self, ranges: Sequence[Range]) -> list[Page]:
        """One page for each range, in order. A feed without events has oldest 1 and head 0."""

    async def heads(self, feeds: Collection[str]) -> dict[str, Head]:
        """For every feed asked, (1, 0) for those without events."""

    async def history(
        self, feed: str, *, after: int | None, before: int | None, limit: int, filter: Filter, max_scan: int = 5000
    ) -> tuple[Page, int | None]:
        """A page of matching events: oldest first when `after` is given, newest first otherwise; bounds are exclusive. Erased
        events match only an empty filter. The second value is where to go on (the next `after` or `before`), None at the end. At most
        `max_scan` rows are looked at: a page may be short, or empty, and still have a next."""

    async def published(self, seqs: Collection[int]) -> None:
        """These commits were given to the bus."""

    async def unpublished(self, before: float, limit: int) -> list[Stored]:
        """Committed before that time and never published, in the order of commit."""

    # Devices and cursors

    async def join(self, joins: Sequence[Join]) -> list[Joined | TooManyDevices]:
        """Find or make the device, decide where each feed starts (`gateway.protocol.delivery.start`), store the start positions
        (durably, before this returns; a `resync` moves no cursor), touch `last_seen`, keep `agent`. Over 10 devices, the one longest away that is
        not connected is forgotten with its cursors."""

    async def follow(self, account: str, device: str, feed: str, resume: tuple[str, int] | None, now: float) -> Start:
        """The same for one more agency feed of a device that has joined."""

    async def unfollow(self, account: str, device: str, feed: str) -> None:
        """Forget the cursor of this feed."""

    async def save(self, cursors: Sequence[CursorSave]) -> None:
        """Acknowledged positions: the maximum wins within an epoch, a newer epoch replaces. Unknown devices are ignored: saving
        never brings a forgotten device back. The account's own highest acknowledged offset (for new devices and receipts) rises too and the
        time of each rise is kept as the first delivery of what it covers."""

    async def touch(self, devices: Sequence[tuple[str, str, float]]) -> None:
        """(account, device, last seen)."""

    async def seen(self, marks: Sequence[tuple[str, Sequence[int], float]]) -> None:
        """(feed, offsets, when): the person was shown these. The first time is kept; offsets past the head are ignored."""

    async def seen_offsets(self, feed: str) -> set[int]: ...

    async def receipts(self, keys: Sequence[bytes]) -> list[Receipt | None]:
        """For each event key (see Draft.key); None when unknown, or the event is not in an `account:` feed."""

    async def devices(self, account: str) -> list[Device]: ...

    async def forget(self, account: str, device: str) -> bool:
        """Forget the device and its cursors. False when there was none."""

    # Erasure, retention, proof

    async def erase(
        self, feed: str, offset: int | None, make: Callable[[Sequence[tuple[int, int]]], Draft], now: float
    ) -> Stored | None:
        """Erase one event, or all that the feed has, in one transaction: bytes, digest of the content, original body of the request and
        `seen` marks go, offsets and keys stay (a repeat is still recognised, whatever its content). `make(ranges)` gives the
        `gov.erased` event to append. None when there was nothing left to erase."""

    async def retain(self, before: float, limit: int = 10_000) -> int:
        """Delete events recorded before that time, from the old end of each feed, with what hangs on them; at most `limit`. Returns how many."""

    async def kept(self, key: bytes) -> Kept | None:
        """What is kept of the request that brought this event."""

    # Control: small tables that every process polls

    async def revision(self) -> int:
        """Grows with every change of agencies or revocations, by whichever process."""

    async def agencies(self) -> list[Agency]: ...

    async def add_agency_key(self, code: str, key: AgencyKey, types: Sequence[str] | None, now: float) -> None:
        """Make the agency if it is new, and give it one more key."""

    async def retire_agency_key(self, code: str, key_id: str, now: float) -> bool: ...

    async def revoke(self, revocation: Revocation) -> None: ...

    async def revocations(self) -> list[Revocation]: ...

    async def backup(self, path: str, progress: Callable[[int, int], None] | None = None) -> None:
        """Copy the running store to one file. `progress(done, total)`, pages."""
