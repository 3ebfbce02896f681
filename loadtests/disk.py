"""What the disk takes while something else is measured: on a machine with other users it moves a p99 more than most."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

EVERY_S = 0.1


@contextlib.contextmanager
def looking(path: Path, told: Callable[[float], object]) -> Iterator[None]:
    """Over the block a thread writes a page to this file, ten times a second, and tells the seconds until it was on
    disk. `told` is called in that thread."""
    stop = threading.Event()

    def look() -> None:
        with path.open("wb", 0) as file:
            while not stop.wait(EVERY_S):
                begun = time.perf_counter()
                os.pwrite(file.fileno(), bytes(4096), 0)
                os.fdatasync(file.fileno())
                told(time.perf_counter() - begun)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
