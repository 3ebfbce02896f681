"""What every store decides alike when a device joins. Pure; contract, section 3, "Where a feed starts"."""

from collections.abc import Iterable

from gateway.protocol.delivery import Beginning, start
from gateway.store.base import Join


def own_feed(account: str) -> str:
    return f"account:{account}"


def begin(
    join: Join, feed: str, *, epoch: str, oldest: int, head: int, acked: int, cursor: tuple[str, int] | None
) -> Beginning:
    """Where this feed starts for this join. `acked` is the highest offset that any device of the account
    acknowledged."""
    return start(
        epoch=epoch,
        oldest=oldest,
        head=head,
        # "`fresh: true`: the device keeps nothing, treat it as new"
        resume=None if join.fresh else join.resume.get(feed),
        cursor=None if join.fresh else cursor,
        otherwise=acked if feed == own_feed(join.account) else head,
    )


def is_new(join: Join, began: Beginning, cursor: tuple[str, int] | None) -> bool:
    """Must the device load the snapshot? `began` and `cursor` are those of the account's own feed."""
    usable = not join.fresh and own_feed(join.account) in join.resume and began.reason is None
    return (join.fresh or cursor is None) and not usable


def longest_away(devices: Iterable[tuple[str, float]], staying: frozenset[str] | set[str]) -> str | None:
    """Who must go of (device, last seen) when the account has too many; None when all are staying."""
    away = [(last_seen, device) for device, last_seen in devices if device not in staying]
    return min(away)[1] if away else None
