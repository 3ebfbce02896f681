"""The fault proxy between two real sockets: what is done to a connection is what its ends see."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from random import Random
from typing import cast

import pytest

from client_sim.networks import NETWORKS, Network
from client_sim.proxy import Proxy

PATIENCE_S = 5
WRITERS: list[asyncio.StreamWriter] = []


class Echo(asyncio.Protocol):
    """The far end of one connection: sends back what comes, and says how it ended."""

    def __init__(self, far: "Far"):
        self.far = far

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.far.open.add(self)
        self.far.begun += 1

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.far.open.discard(self)
        self.far.ended.append("reset" if exc else "end")


class Far:
    def __init__(self) -> None:
        self.open: set[Echo] = set()
        self.ended: list[str] = []
        self.begun = 0
        self.port = 0

    async def until(self, number: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while len(self.ended) < number:
                await asyncio.sleep(0.01)


@pytest.fixture
async def echo() -> AsyncIterator[Far]:
    far = Far()
    server = await asyncio.get_running_loop().create_server(lambda: Echo(far), "127.0.0.1", 0)
    far.port = server.sockets[0].getsockname()[1]
    yield far
    server.close()
    for one in list(far.open):
        one.transport.abort()
    for writer in WRITERS:
        writer.transport.abort()
    WRITERS.clear()
    await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def through(echo: Far, network: Network) -> AsyncIterator[Proxy]:
    async with Proxy("127.0.0.1", echo.port, network, Random(1)) as proxy:
        yield proxy


async def knock(proxy: Proxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    WRITERS.append(writer)
    return reader, writer


async def near(proxy: Proxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await knock(proxy)
    writer.write(b"hello")
    async with asyncio.timeout(PATIENCE_S):
        assert await reader.readexactly(5) == b"hello"
    return reader, writer


@pytest.mark.parametrize("name", NETWORKS)
async def test_every_network_carries_what_is_sent(echo, name):
    async with through(echo, NETWORKS[name]) as proxy:
        reader, writer = await knock(proxy)
        data = Random(2).randbytes(1500)
        writer.write(data)
        async with asyncio.timeout(PATIENCE_S):
            assert await reader.readexactly(len(data)) == data
        writer.close()
        await echo.until(1)


async def test_latency_is_paid_both_ways(echo):
    async with through(echo, Network("far", "", latency_s=0.05)) as proxy:
        began = time.monotonic()
        await near(proxy)
        assert 0.095 < time.monotonic() - began < 1


async def test_bandwidth_bounds_what_comes(echo):
    async with through(echo, Network("thin", "", down_bps=100_000)) as proxy:
        reader, writer = await near(proxy)
        began = time.monotonic()
        writer.write(b"x" * 30_000)
        async with asyncio.timeout(PATIENCE_S):
            await reader.readexactly(30_000)
        assert 0.25 < time.monotonic() - began < 2


async def test_a_device_that_does_not_read_stops_the_gateway(echo):
    """Back-pressure goes through: what is on its way is bounded."""
    async with through(echo, Network("plain", "", buffer_bytes=65536)) as proxy:
        _, writer = await near(proxy)
        writer.transport.pause_reading()
        [link] = proxy.links
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                while True:
                    writer.write(b"x" * 65536)
                    await writer.drain()
        assert link.near.queued + link.far.queued <= 2 * (65536 + 262144)  # and what one read takes


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_both_ends_hear_of_a_cut(echo, how):
    async with through(echo, NETWORKS["lte"]) as proxy:
        reader, _ = await near(proxy)
        assert proxy.cut(how) == 1
        async with asyncio.timeout(PATIENCE_S):
            if how == "reset":
                with pytest.raises(ConnectionResetError):
                    await reader.read(1)
            else:
                assert await reader.read(1) == b""
        await echo.until(1)
        assert echo.ended == ["reset" if how == "reset" else "end"]


async def test_nobody_hears_of_a_silent_cut(echo):
    async with through(echo, NETWORKS["lte"]) as proxy:
        reader, writer = await near(proxy)
        proxy.cut("silent")
        writer.write(b"anybody?")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await reader.read(1)
        assert echo.ended == []
        await near(proxy)  # a new connection works


async def test_a_share_is_cut(echo):
    async with through(echo, NETWORKS["lte"]) as proxy:
        await asyncio.gather(*(near(proxy) for _ in range(40)))
        assert 8 < proxy.cut("reset", 0.5) < 32


async def test_what_is_idle_is_cut(echo):
    async with through(echo, Network("office", "", idle_s=0.2, cut="close")) as proxy:
        reader, _ = await near(proxy)
        async with asyncio.timeout(PATIENCE_S):
            assert await reader.read(1) == b""
        assert proxy.cuts == 1


async def test_in_the_calm_nothing_is_cut(echo):
    async with through(echo, Network("office", "", idle_s=0.2, cut="close")) as proxy:
        proxy.calm = True
        reader, _ = await near(proxy)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.9):
                await reader.read(1)


async def test_a_stall_loses_nothing(echo):
    async with through(echo, NETWORKS["lte"]) as proxy:
        reader, writer = await near(proxy)
        proxy.stall(True)
        writer.write(b"still here")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await reader.read(1)
        proxy.stall(False)
        async with asyncio.timeout(PATIENCE_S):
            assert await reader.readexactly(10) == b"still here"


async def test_while_it_is_down_nobody_comes_through(echo):
    async with through(echo, NETWORKS["lte"]) as proxy:
        proxy.down = True
        reader, _ = await knock(proxy)
        async with asyncio.timeout(PATIENCE_S):
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read(1) == b""
        assert echo.begun == 0


async def test_a_gateway_that_is_not_there_is_a_reset(echo):
    async with Proxy("127.0.0.1", 1, NETWORKS["lte"], Random(1)) as proxy:
        reader, _ = await knock(proxy)
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(ConnectionResetError):
                await reader.read(1)
