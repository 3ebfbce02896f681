"""Where a channel lives in a Redis Cluster: one of 16,384 slots. Pure. (Redis Cluster specification, "Key distribution
model" and "Hash tags".)"""

from binascii import crc_hqx
from collections.abc import Container

SLOTS = 16_384

Range = tuple[int, int, str, int]  # first slot, last slot, host and port of their primary


def slot_of(channel: bytes) -> int:
    """The slot of a channel: of what stands between its first `{` and the next `}`, if that is not empty, else of the
    whole name. `crc_hqx` is the CRC16 of the specification (XMODEM)."""
    start = channel.find(b"{")
    if start >= 0:
        end = channel.find(b"}", start + 1)
        if end > start + 1:
            channel = channel[start + 1 : end]
    return crc_hqx(channel, 0) % SLOTS


def channel_in(slots: Container[int], prefix: bytes) -> bytes | None:
    """A channel that begins with `prefix` (which holds no brace) and lives in one of the slots; None when they are
    empty. One slot among all takes some 20 ms to hit, a usual shard a microsecond."""
    for number in range(20 * SLOTS):
        channel = b"%b{%d}" % (prefix, number)
        if slot_of(channel) in slots:
            return channel
    return None


def moved(error: str) -> tuple[int, str, int] | None:
    """Slot, host and port of `MOVED 1234 host:port`; None for every other error. An empty host means the host that
    was asked."""
    word, _, rest = error.partition(" ")
    slot, _, where = rest.partition(" ")
    host, _, port = where.partition(" ")[0].rpartition(":")
    if word != "MOVED" or not (slot.isdecimal() and port.isdecimal()) or int(slot) >= SLOTS:
        return None
    return int(slot), host.strip("[]"), int(port)


def ranges(reply: object, asked: str) -> list[Range]:
    """What `CLUSTER SLOTS` says of the primaries. `asked` is the host that answered: a node that does not know its
    own address leaves it out. Raises ValueError for anything else."""
    found: list[Range] = []
    try:
        for first, last, (host, port, *_), *_ in reply:  # type: ignore[attr-defined]
            name = host.decode() if host else asked
            if name != "?" and 0 <= first <= last < SLOTS:
                found.append((first, last, name, port))
    except (TypeError, ValueError, AttributeError):
        raise ValueError("not an answer to CLUSTER SLOTS") from None
    return found


def replicas(reply: object) -> list[tuple[str, int]]:
    """Host and port of the replicas, which know the map too, in an answer to `CLUSTER SLOTS` that `ranges` could
    read."""
    found: dict[tuple[str, int], None] = {}
    for _, _, _, *others in reply:  # type: ignore[attr-defined]
        for host, port, *_ in others:
            if host and host != b"?":
                found[host.decode(), port] = None
    return list(found)
