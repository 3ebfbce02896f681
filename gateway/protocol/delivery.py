"""The delivery core: where a feed starts, what may be sent now, what an acknowledgement means. Pure.

A `Track` is one feed of one session and owns three integers: `acked` <= `sent` <= what the store has. Resuming,
catching up and
live are the same loop: whoever holds the track asks `room()`, writes the next events in offset order, calls
`advance()`.
Contract, section 3: "Where a feed starts", "Flow control".
"""

from dataclasses import dataclass
from typing import Literal

Reason = Literal["retention", "epoch"]


@dataclass(frozen=True, slots=True)
class Beginning:
    """Events follow after `offset`. `store` is the cursor to keep (None: leave the stored one alone)."""

    offset: int
    store: int | None
    reason: Reason | None = None


def start(
    *,
    epoch: str,
    oldest: int,
    head: int,
    resume: tuple[str, int] | None,
    cursor: tuple[str, int] | None,
    otherwise: int,
) -> Beginning:
    """Decide where a feed starts.

    `resume` is what the device itself keeps and outranks the stored `cursor`; both are (epoch, offset). `otherwise` is
    where
    one starts who has neither: the highest offset that any device of the account acknowledged, or an agency feed's
    head.
    Continuity is broken when the position is of another life of the log, past the head, or older than what is kept:
    then the feed goes on after the head, and no stored cursor moves until the device acknowledges (never a partial
    recovery).
    """
    position = resume if resume is not None else cursor
    if position is None:
        offset = min(otherwise, head)
        if offset + 1 < oldest:
            # Nobody of the account received what retention removed; a first login loads the snapshot anyway.
            return Beginning(oldest - 1, oldest - 1)
        return Beginning(offset, offset)
    its_epoch, offset = position
    if its_epoch != epoch or offset > head:
        return Beginning(head, None, "epoch")
    if offset + 1 < oldest:
        return Beginning(head, None, "retention")
    # A resume counts as an ack; saving is a maximum, so a device that went back moves no stored cursor back.
    return Beginning(offset, offset)


class PastTold(ValueError):
    """An acknowledgement past what the session was told: refused, moves nothing (invariant 7)."""


class Track:
    """One feed of one session: how far it was told (`sent`) and how far the device keeps it (`acked`).

    Always `acked` <= `sent`, neither ever goes back, and `sent` moves by what was written in offset order and nothing
    else:
    call `advance` after each write, with the offset of the last event of an unbroken run that began at `sent` + 1.
    """

    __slots__ = ("acked", "sent")

    def __init__(self, offset: int):
        self.acked = self.sent = offset

    def room(self, window: int) -> int:
        """How many more events may be written now. Contract: "at most `window` events beyond the last ack of this
        session".
        """
        return self.acked + window - self.sent

    def advance(self, first: int, last: int) -> None:
        """Events `first` to `last` were written. Anything but the next ones is a fault of the caller."""
        if first != self.sent + 1 or last < first:
            raise AssertionError(f"wrote {first} to {last} after {self.sent}")
        self.sent = last

    def ack(self, offset: int) -> bool:
        """The device keeps all up to `offset`. True when that frees window space; a repeat changes nothing."""
        if offset > self.sent:
            raise PastTold(f"told up to {self.sent}, acknowledged {offset}")
        if offset <= self.acked:
            return False
        self.acked = offset
        return True
