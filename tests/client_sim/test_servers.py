"""Redis and PostgreSQL of a trial: there, dead, frozen, and back with what they promised to keep."""

import asyncio
from pathlib import Path

import asyncpg
import pytest

from client_sim.servers import Postgresql, Redis


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


async def test_postgresql_keeps_what_was_committed(tmp_path: Path):
    async with Postgresql(tmp_path) as server:
        connection = await asyncpg.connect(server.url)
        await connection.execute("CREATE TABLE t (n int)")
        await connection.execute("INSERT INTO t VALUES (7)")
        await server.kill()
        connection.terminate()
        await server.start()
        connection = await asyncpg.connect(server.url)
        assert await connection.fetchval("SELECT n FROM t") == 7
        server.freeze(True)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await connection.fetchval("SELECT n FROM t")
        server.freeze(False)
        connection.terminate()
