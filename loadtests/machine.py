"""What a number means nothing without: the machine and the commit."""

import hashlib
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """What a number means nothing without."""
    cpu = next(
        (
            line.partition(": ")[2]
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "at": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "commit": commit(),
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "machine": fingerprint(cpu),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def fingerprint(cpu: str) -> str:
    """The same for all runs on one machine, and nobody's name."""
    name = Path("/etc/machine-id")
    own = name.read_text() if name.exists() else platform.node()
    return hashlib.sha256(f"{own}{cpu}{len(os.sched_getaffinity(0))}".encode()).hexdigest()[:8]


def commit() -> str:
    """The short hash, with a plus when files differ from it; `unknown` outside a checkout."""
    try:
        name, changed = (
            subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603, S607
            for words in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name + ("+" if changed else "")
