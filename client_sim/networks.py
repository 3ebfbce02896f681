"""Networks as data, and when bytes that go into one come out of it. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Final, Literal

How = Literal["close", "reset", "silent"]
"""How a connection ends: properly, with a reset, or so that neither side hears of it."""


@dataclass(frozen=True, slots=True)
class Network:
    """One way, unless said otherwise. 0 is no limit, no loss, no end."""

    name: str
    says: str
    latency_s: float = 0.0
    jitter_s: float = 0.0  # up to this is added to the latency, anew for each piece; order is kept
    down_bps: float = 0.0  # bytes a second to the device, of one connection
    up_bps: float = 0.0
    loss: float = 0.0  # share of pieces that were lost and sent again
    again_s: float = 0.25  # what sending again costs, doubled each time
    slice_bytes: int = 0  # pieces are cut into this size
    idle_s: float = 0.0  # a connection without bytes for so long is cut
    life_s: float = 0.0  # mean life of a connection until it is cut
    cut: How = "reset"
    buffer_bytes: int = 131072  # on its way at once; then the sender has to wait


NETWORKS: Final[Mapping[str, Network]] = {
    network.name: network
    for network in (
        Network("perfect", "no proxy between: this machine's loopback"),
        Network("lte", "25 ms, 2.5 MB/s", 0.025, 0.010, 2_500_000, 1_000_000, 0.002),
        Network("3g", "90 ms, 180 kB/s, some loss", 0.090, 0.040, 180_000, 48_000, 0.01),
        Network("edge", "350 ms, 15 kB/s, lossy", 0.350, 0.150, 15_000, 7_500, 0.02, 0.6, slice_bytes=512),
        Network(
            "office_proxy", "8 ms; cuts what is idle for 30 s, without a word", 0.008, 0.002, 1_250_000, 1_250_000,
            slice_bytes=1400, idle_s=30, cut="silent",
        ),
        Network(
            "lossy_wifi", "6 ms; every 20th piece is lost, connections break", 0.006, 0.008, 600_000, 600_000, 0.05,
            life_s=120, cut="silent",
        ),
    )
}  # fmt: skip

EVERYDAY: Final = "perfect=40,lte=35,3g=8,edge=2,office_proxy=8,lossy_wifi=7"


class Stretch:
    """One direction of one connection. Bytes come out in the order in which they went in."""

    __slots__ = ("_bps", "_free_at", "_last", "_network", "_rng")

    def __init__(self, network: Network, bps: float, rng: Random):
        self._network, self._bps, self._rng = network, bps, rng
        self._free_at = self._last = 0.0

    def due(self, now: float, size: int) -> float:
        """When `size` bytes that go in at `now` come out, on the clock of `now`; never before what went in earlier."""
        network, rng = self._network, self._rng
        start = max(now, self._free_at)
        self._free_at = start + (size / self._bps if self._bps else 0.0)
        at = self._free_at + network.latency_s
        if network.jitter_s:
            at += rng.random() * network.jitter_s
        if network.loss:
            pause = network.again_s
            while rng.random() < network.loss and pause < 8:
                at += pause
                pause *= 2
        self._last = max(self._last, at)
        return self._last

    def life_s(self) -> float:
        """How long this connection lives, by chance; infinite without `life_s`."""
        return self._rng.expovariate(1 / self._network.life_s) if self._network.life_s else float("inf")


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    """`data` in slices of `size`; whole when that is 0."""
    if not size or len(data) <= size:
        yield data
    else:
        yield from (data[start : start + size] for start in range(0, len(data), size))
