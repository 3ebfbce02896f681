"""A Redis Cluster on free ports: three primaries share the slots, each with as many replicas as a test needs."""

import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from redis import Redis

from tests.redis_server import RedisServer, free_port

SLOTS = 16_384
NODE_TIMEOUT_MS = 800  # without an answer before a node is thought dead


class Node(RedisServer):
    """`bus` is the port on which nodes gossip."""

    def __init__(self, directory: Path):
        self.bus = free_port()
        super().__init__(
            directory,
            cluster_enabled="yes",
            cluster_port=str(self.bus),
            cluster_node_timeout=str(NODE_TIMEOUT_MS),
            cluster_config_file=f"nodes-{self.bus}.conf",
            cluster_require_full_coverage="no",  # as operators of caches have it: the other shards go on
            cluster_replica_validity_factor="0",
            repl_diskless_sync_delay="0",
        )

    def command(self, *words: object) -> Any:
        with Redis(port=self.port, decode_responses=True, socket_timeout=2) as redis:
            return redis.execute_command(*words)  # type: ignore[no-untyped-call]

    def many(self, commands: Iterable[Sequence[object]]) -> None:
        """In one trip."""
        with Redis(port=self.port, socket_timeout=10) as redis:
            pipeline = redis.pipeline(transaction=False)
            for words in commands:
                pipeline.execute_command(*words)  # type: ignore[no-untyped-call]
            pipeline.execute()

    @property
    def id(self) -> str:
        return str(self.command("CLUSTER", "MYID"))

    def says(self) -> dict[str, str]:
        """CLUSTER INFO."""
        return dict(line.split(":", 1) for line in str(self.command("CLUSTER", "INFO")).split())

    def knows(self) -> set[str]:
        """Ids of the nodes that it takes for alive."""
        lines = [line.split() for line in str(self.command("CLUSTER", "NODES")).splitlines()]
        return {line[0] for line in lines if not {"fail", "fail?", "handshake", "noaddr"} & set(line[2].split(","))}


class RedisCluster:
    """Alive and whole within the `with` block. `nodes` are the primaries at first, then their replicas in order."""

    def __init__(self, directory: Path, *, primaries: int = 3, replicas: int = 0):
        self._stack = ExitStack()
        self._primaries = primaries
        self.nodes = [Node(directory) for _ in range(primaries * (1 + replicas))]

    @property
    def url(self) -> str:
        """Names the first two nodes only; the others are to be found."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{one.port}" for one in self.nodes[:2])

    def owner(self, slot: int) -> Node:
        """The primary of a slot, by a living node."""
        for first, last, (_, port, *_), *_ in self.living[-1].command("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(one for one in self.nodes if one.port == port)
        raise AssertionError(f"nobody has slot {slot}")

    @property
    def living(self) -> list[Node]:
        return [one for one in self.nodes if one.alive]

    def move(self, slot: int, target: Node) -> None:
        """Resharding, as the documentation of CLUSTER SETSLOT has it; there are no keys, nor replicas."""
        source = self.owner(slot)
        if source is target:
            return
        target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
        for node in (target, source, *(one for one in self.living if one not in (target, source))):
            node.command("CLUSTER", "SETSLOT", slot, "NODE", target.id)

    def settle(self, patience_s: float = 30.0) -> None:
        """Wait until every living node sees a whole cluster and every other living node, and replicas have their
        primary."""
        until = time.monotonic() + patience_s
        while not self._settled():
            assert time.monotonic() < until, "the cluster did not settle"
            time.sleep(0.05)

    def _settled(self) -> bool:
        for node in self.living:
            said = node.says()
            if said["cluster_state"] != "ok" or said["cluster_slots_ok"] != str(SLOTS):
                return False
            if len(node.knows()) != len(self.living):
                return False
            role = node.command("ROLE")
            if role[0] == "slave" and role[3] != "connected":
                return False
        return True

    def _form(self) -> None:
        first, primaries = self.nodes[0], self.nodes[: self._primaries]
        for number, node in enumerate(self.nodes):
            node.command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for number, node in enumerate(primaries):
            start, end = (SLOTS * one // len(primaries) for one in (number, number + 1))
            node.command("CLUSTER", "ADDSLOTSRANGE", start, end - 1)
        for node in self.nodes[1:]:
            first.command("CLUSTER", "MEET", "127.0.0.1", node.port, node.bus)
        until = time.monotonic() + 20
        for number, node in enumerate(self.nodes[self._primaries :]):
            primary = primaries[number % len(primaries)].id
            while primary not in node.knows():
                assert time.monotonic() < until, "the nodes did not meet"
                time.sleep(0.02)
            node.command("CLUSTER", "REPLICATE", primary)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for one in self.nodes:
                stack.enter_context(one)
            self._form()
            self.settle()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
