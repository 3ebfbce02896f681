"""What the disk takes is told while it is looked at, and not afterwards."""

import threading
from pathlib import Path

from loadtests.disk import looking


def test_it_tells_seconds_over_the_block(tmp_path: Path) -> None:
    took: list[float] = []
    second = threading.Event()

    def told(seconds: float) -> None:
        took.append(seconds)
        if len(took) == 2:
            second.set()

    with looking(tmp_path / "disk", told):
        assert second.wait(20)
    count = len(took)
    assert all(0 <= seconds < 20 for seconds in took)
    assert (tmp_path / "disk").stat().st_size == 4096
    assert not any(thread.name.endswith("(look)") for thread in threading.enumerate())
    assert len(took) == count
