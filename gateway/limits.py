"""Token buckets by key: how often one sender, device or address may do something. Pure: the clock is an argument."""

from collections.abc import Hashable

PRUNE_AT = 4096  # keys kept before full buckets, which say nothing, are thrown out


class Buckets:
    """`rate` a second sustained and `burst` at once, for each key. Memory is bounded by the keys active within burst /
    rate seconds.
    """

    def __init__(self, rate: float, burst: float):
        self.rate, self.burst = rate, burst
        self._levels: dict[Hashable, tuple[float, float]] = {}
        self._prune_at = PRUNE_AT

    def take(self, key: Hashable, now: float, amount: float = 1.0) -> float:
        """0.0 when granted; else the seconds until it would be, and nothing is taken. More than `burst` is never
        granted.
        """
        level, at = self._levels.get(key, (self.burst, now))
        level = min(self.burst, level + (now - at) * self.rate)
        if level < amount:
            return (amount - level) / self.rate
        self._levels[key] = (level - amount, now)
        if len(self._levels) > self._prune_at:
            self.prune(now)
            self._prune_at = max(PRUNE_AT, 2 * len(self._levels))
        return 0.0

    def prune(self, now: float) -> None:
        """Forget the keys whose bucket is full again."""
        self._levels = {
            key: (level, at) for key, (level, at) in self._levels.items() if level + (now - at) * self.rate < self.burst
        }
