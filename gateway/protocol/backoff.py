"""How long to wait before the next try: only numbers, the taker sleeps (contract, section 3.11). Pure."""

from collections.abc import Iterator
from random import Random


def full_jitter(rng: Random, base: float = 1.0, cap: float = 60.0) -> Iterator[float]:
    """Seconds to wait before each further try, without end: anything up to `base`, doubled each time, never over `cap`.

    The whole range is used, zero included, so that devices that were cut off together do not come back together.
    Take a new one after 60 s of life.
    """
    top = min(base, cap)
    while True:
        yield rng.uniform(0.0, top)
        top = min(top * 2, cap)
