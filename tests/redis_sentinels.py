"""One Redis primary, replicas, and sentinels that watch them, on free ports."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from redis import Redis
from redis.exceptions import ConnectionError, TimeoutError

from tests.redis_server import RedisServer

SERVICE = "vestnik"
DOWN_AFTER_MS = 400  # without an answer before a sentinel thinks a server dead


class Sentinel(RedisServer):
    """`redis-server --sentinel` needs a file that it may write."""

    def __init__(self, directory: Path, primary: int, quorum: int, *, password: str = "", server_password: str = ""):
        super().__init__(directory)
        lines = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f"dir {directory}",
            f"sentinel monitor {SERVICE} 127.0.0.1 {primary} {quorum}",
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}",
            f"sentinel failover-timeout {SERVICE} 2000",
        ]
        if password:
            lines += [f"requirepass {password}", f"sentinel sentinel-pass {password}"]
        if server_password:
            lines.append(f"sentinel auth-pass {SERVICE} {server_password}")
        self._file = directory / f"sentinel-{self.port}.conf"
        self._file.write_text("\n".join(lines) + "\n")

    def _arguments(self) -> Sequence[str]:
        return [str(self._file), "--sentinel"]


class RedisSentinels:
    """Alive and of one mind within the `with` block. `servers[0]` is the primary at first."""

    def __init__(self, directory: Path, *, replicas: int = 2, sentinels: int = 3, **passwords: str):
        self._stack = ExitStack()
        self.password, self.server_password = passwords.get("password", ""), passwords.get("server_password", "")
        options = {"repl_diskless_sync_delay": "0"}
        if self.server_password:
            options |= {"requirepass": self.server_password, "masterauth": self.server_password}
        first = RedisServer(directory, **options)
        self.servers = [first] + [
            RedisServer(directory, **options, replicaof=f"127.0.0.1 {first.port}") for _ in range(replicas)
        ]
        self.sentinels = [Sentinel(directory, first.port, sentinels // 2 + 1, **passwords) for _ in range(sentinels)]

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{one.port}" for one in self.sentinels)
        user = f":{self.server_password}@" if self.server_password else ""
        options = f"?sentinel_password={self.password}" if self.password else ""
        return f"redis+sentinel://{user}{hosts}/{SERVICE}{options}"

    def admin(self, server: RedisServer) -> "Redis[Any]":
        return Redis(port=server.port, password=self.server_password or None, socket_timeout=1)

    def primary(self) -> RedisServer:
        """The server that most sentinels name."""
        named = [port for port in map(self._named, self.sentinels) if port]
        port = max(set(named), key=named.count)
        return next(one for one in self.servers if one.port == port)

    def failover(self) -> None:
        """A planned one, by the first sentinel."""
        with Redis(port=self.sentinels[0].port, password=self.password or None) as redis:
            redis.execute_command("SENTINEL", "FAILOVER", SERVICE)

    def settle(self, patience_s: float = 20.0) -> None:
        """Wait until every sentinel knows the others and every living replica, and each of those has its primary."""
        until = time.monotonic() + patience_s
        while not all(self._settled(one) for one in self.sentinels if one.alive):
            assert time.monotonic() < until, "the sentinels did not settle"
            time.sleep(0.05)

    def _ask(self, sentinel: RedisServer, *words: str) -> Any:
        with Redis(port=sentinel.port, password=self.password or None, decode_responses=True) as redis:
            return redis.execute_command("SENTINEL", *words)

    def _named(self, sentinel: RedisServer) -> int:
        try:
            return int(self._ask(sentinel, "GET-MASTER-ADDR-BY-NAME", SERVICE)[1])
        except (ConnectionError, TimeoutError):
            return 0

    def _settled(self, sentinel: RedisServer) -> bool:
        about = self._ask(sentinel, "MASTER", SERVICE)
        living = [
            one
            for one in self._ask(sentinel, "REPLICAS", SERVICE)
            if one["master-link-status"] == "ok" and one["flags"] == "slave"
        ]
        alive = sum(1 for one in self.servers if one.alive)
        return (
            about["flags"] == "master"
            and int(about["num-other-sentinels"]) == len(self.sentinels) - 1
            and len(living) == alive - 1
        )

    def _replicate(self) -> None:
        until = time.monotonic() + 10
        for server in self.servers[1:]:
            with self.admin(server) as redis:
                while redis.execute_command("ROLE")[3] != b"connected":
                    assert time.monotonic() < until, "the replicas did not find their primary"
                    time.sleep(0.02)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for server in self.servers:
                stack.enter_context(server)
            self._replicate()  # before a sentinel looks, because its next look is 10 s later
            for sentinel in self.sentinels:
                stack.enter_context(sentinel)
            self.settle()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
