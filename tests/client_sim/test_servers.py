"""Redis and PostgreSQL of a trial: there, dead, frozen, and back with what they promised to keep."""

import asyncio
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import asyncpg
import orjson
import pytest

from client_sim.journal import digest, dump_postgresql, read
from client_sim.servers import Postgresql, Redis
from gateway.store import open_store
from gateway.store.base import Draft


async def test_redis_is_killed_frozen_and_back(tmp_path: Path):
    async with Redis(tmp_path) as server:
        assert await server.answers()
        await server.kill()
        assert not await server.answers()
        await server.start()
        server.freeze(True)
        assert not await server.answers()
        server.freeze(False)
        assert await server.answers()
    assert not await server.answers()


async def test_postgresql_keeps_what_was_committed_is_dumped_and_brought_back(tmp_path: Path):
    events = [
        {"specversion": "1.0", "id": f"e{number}", "source": "/agencies/fns", "data": number} for number in (1, 2, 3)
    ]
    async with Postgresql(tmp_path) as server:
        epoch = await _append(server, tmp_path, events[:2])
        await server.kill()
        await server.start()
        await server.back_up(tmp_path / "backup")
        assert await _append(server, tmp_path, events[2:]) == epoch
        await server.bring_back(tmp_path / "backup")
        assert await _append(server, tmp_path, []) != epoch, "a restored log is another life"
        await dump_postgresql(server.url, tmp_path / "store.jsonl")
        connection = await asyncpg.connect(server.url)
        server.freeze(True)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await connection.fetchval("SELECT 1")
        server.freeze(False)
        connection.terminate()
    feed, *rows = read(tmp_path / "store.jsonl")
    assert (feed["feed"], feed["oldest"], feed["head"]) == ("account:anna", 1, 2)
    assert [(row["offset"], row["id"], row["erased"]) for row in rows] == [(1, "e1", False), (2, "e2", False)]
    assert [row["digest"] for row in rows] == [digest(event) for event in events[:2]]
    assert {row["epoch"] for row in rows} == {feed["epoch"]}


async def _append(server: Postgresql, directory: Path, events: Sequence[dict[str, Any]]) -> str:
    """The epoch in which these were stored."""
    store = open_store(server.url, directory)
    await store.open()
    try:
        await store.append([_draft(event) for event in events], 1_800_000_000.0)
        return store.epoch
    finally:
        await store.close()


def _draft(event: dict[str, Any]) -> Draft:
    name = hashlib.sha256(event["id"].encode()).digest()
    return Draft("account:anna", name[:16], name, orjson.dumps(event), "gov.notice.sent", None, 0.0, 2)
