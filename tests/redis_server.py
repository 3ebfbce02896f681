"""A real Redis server for tests: started on a free port, frozen, killed and started again at will."""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

MINIMUM = 7


class RedisMissing(AssertionError):
    """There is no Redis server to test with. Tests fail on it: a suite that skips its servers proves nothing."""


def find_binary() -> str:
    """The path of a redis-server of version 7 or newer; `VESTNIK_REDIS_SERVER` outranks the PATH."""
    path = os.environ.get("VESTNIK_REDIS_SERVER") or shutil.which("redis-server")
    if path is None:
        raise RedisMissing("redis-server is not installed; install it (`apt-get install redis-server`) and run again.")
    text = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"v=(\d+)", text)
    if version is None or int(version[1]) < MINIMUM:
        raise RedisMissing(f"{path} is too old ({text.strip()}); Redis {MINIMUM} or newer is needed.")
    return path


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class RedisServer:
    """One server without persistence, alive within the `with` block. `options` are those of redis.conf."""

    def __init__(self, directory: Path, **options: str):
        self.port = free_port()
        self._binary = find_binary()
        self._directory = directory
        self._options = {"port": str(self.port), **options}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Returns when it accepts connections."""
        self._process = subprocess.Popen(
            [self._binary, *self._arguments()], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        port = int(self._options.get("tls_port", self.port))
        for _ in range(500):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return
            except OSError:
                if self._process.poll() is not None:
                    raise RedisMissing(f"redis-server ended at once with {self._process.returncode}.") from None
                time.sleep(0.01)
        raise RedisMissing("redis-server did not accept a connection within 5 s.")

    def _arguments(self) -> Sequence[str]:
        flags = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(self._directory)]
        for name, value in self._options.items():
            flags += [f"--{name.replace('_', '-')}", *value.split(" ")]
        return flags

    def kill(self) -> None:
        """SIGKILL. `start` brings it back on the same port."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def alive(self) -> bool:
        return self._process is not None

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
