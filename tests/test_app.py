"""The parts put together: what operators ask, what happens at the limits, and how it starts and stops."""

import asyncio
import socket
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

import gateway.app
from gateway import verify
from gateway.app import Gateway, create_app
from gateway.errors import ConfigError
from gateway.settings import load
from gateway.store.base import Draft
from gateway.tokens import KeySet
from tests.openapi import check
from tests.running import Running, here, notice, running, status

__all__ = ["here"]


# Operations


async def test_live(here: Running) -> None:
    assert (await here.client.get("/health/live")).json() == {"status": "ok"}


async def test_ready(here: Running) -> None:
    answer = await here.client.get("/health/ready")
    assert answer.status_code == 200
    assert set(answer.json()["parts"].values()) == {True}
    assert here.gateway.counts.store_ready == 1


@pytest.mark.parametrize("part", ["store", "bus", "keys", "accepting"])
async def test_not_ready(here: Running, part: str) -> None:
    """Each part says for itself; alive it is all the same."""
    match part:
        case "store":
            await here.store.close()
        case "bus":
            await here.gateway.bus.close()
        case "keys":
            here.gateway.verifier.use(KeySet())
        case "accepting":
            here.gateway.hub.draining = True
    answer = await here.client.get("/health/ready")
    assert answer.status_code == 503
    assert answer.json()["status"] == "unavailable"
    assert [name for name, good in answer.json()["parts"].items() if not good] == [part]
    assert (await here.client.get("/health/live")).status_code == 200


async def test_metrics(here: Running) -> None:
    await here.post(notice())
    await here.phone("ivan", "phone")
    answer = await here.client.get("/metrics")
    assert answer.status_code == 200
    for line in answer.text.splitlines():
        assert line.startswith("#") or float(line.rpartition(" ")[2]) >= 0
    assert "ivan" not in answer.text
    assert "phone" not in answer.text


async def test_metrics_may_be_hidden(tmp_path: Path) -> None:
    async with running(tmp_path, metrics=False) as here:
        assert (await here.client.get("/metrics")).status_code == 404


# Limits


async def test_pages_of_the_named_origins_may_ask(tmp_path: Path) -> None:
    async with running(tmp_path, origins=("https://lk.example.ru",)) as here:
        transport = httpx.ASGITransport(here.gateway.asgi)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
            asks = {"access-control-request-method": "GET", "access-control-request-headers": "authorization"}
            named, other = {"origin": "https://lk.example.ru"}, {"origin": "https://example.org"}
            answer = await http.options("/v1/snapshot", headers=asks | named)
            assert answer.status_code == 200
            assert answer.headers["access-control-allow-origin"] == "https://lk.example.ru"
            assert "Authorization" in answer.headers["access-control-allow-headers"]
            assert "access-control-allow-credentials" not in answer.headers
            assert (await http.options("/v1/snapshot", headers=asks | other)).status_code == 400
            answer = await http.get("/v1/snapshot", headers=named | here.bearer())
            assert answer.headers["access-control-allow-origin"] == "https://lk.example.ru"
            assert answer.headers["access-control-expose-headers"] == "Retry-After"
            answer = await http.get("/v1/snapshot", headers=named)
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (401, named["origin"])
            answer = await http.get("/v1/snapshot", headers=other | here.bearer())
            assert "access-control-allow-origin" not in answer.headers


async def test_requests_in_work_are_bounded(tmp_path: Path) -> None:
    """The next is refused without being read; operators are answered all the same."""
    async with running(tmp_path, max_requests=2, busy_retry_s=7) as here:
        here.store.gate.clear()
        working = [asyncio.create_task(here.post(status())) for _ in range(2)]
        async with asyncio.timeout(5):
            while not here.store.commits:
                await asyncio.sleep(0.001)
        for answer in (await here.post(status()), await here.get("/v1/snapshot"), await here.get("/v1/devices")):
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "7"
            assert answer.json()["type"].endswith("/unavailable")
        for path in ("/health/live", "/health/ready", "/metrics"):
            assert (await here.client.get(path)).status_code == 200
        here.store.gate.set()
        assert [answer.status_code for answer in await asyncio.gather(*working)] == [202, 202]
        assert (await here.post(status())).status_code == 202


async def test_a_request_that_fails_gives_its_place_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path, max_requests=1) as here:

        async def broken(account: str) -> None:
            raise RuntimeError("broken")

        monkeypatch.setattr(here.store, "devices", broken)
        assert (await here.get("/v1/devices")).status_code == 500
        assert (await here.get("/v1/snapshot")).status_code == 200


# The handshake, as far as HTTP goes


async def handshake(here: Running, subprotocols: list[str] | None = None, **headers: str) -> httpx.Response | None:
    """The refusal of a handshake, held against the document; None when it was accepted."""
    said: list[dict[str, Any]] = []
    told = [{"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1000}]

    async def receive() -> Any:
        return told.pop(0) if told else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        said.append(dict(message))

    scope = {
        "type": "websocket",
        "path": "/v1/socket",
        "raw_path": b"/v1/socket",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "subprotocols": subprotocols or [],
        "extensions": {"websocket.http.response": {}},
    }
    await here.gateway.asgi(scope, receive, send)
    if said[0]["type"] == "websocket.accept":
        return None
    start, body = said
    response = httpx.Response(start["status"], headers=start["headers"], content=body["body"])
    check(httpx.Request("GET", "http://gateway/v1/socket", headers=headers), response)
    return response


async def test_a_handshake(here: Running) -> None:
    assert await handshake(here) is None
    assert await handshake(here, ["unknown", "vestnik.v1.msgpack"]) is None
    refused = await handshake(here, ["unknown"])
    assert refused is not None
    assert refused.status_code == 400
    refused = await handshake(here, origin="https://evil.example")
    assert refused is not None
    assert refused.status_code == 403
    here.gateway.hub.draining = True
    refused = await handshake(here)
    assert refused is not None
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")


async def test_the_socket_without_an_upgrade(here: Running) -> None:
    assert (await here.client.get("/v1/socket")).status_code == 404


# Life


async def test_as_an_application_for_any_server(tmp_path: Path) -> None:
    """Starts and stops with its lifespan, on the embedded store, with the workers inside."""
    settings = load(env_file=None, data=tmp_path)
    for expected in (1, 2):  # the second life goes on where the first ended
        made = Gateway(settings)
        app = made.asgi
        assert type(create_app(settings)) is type(app)
        async with app.router.lifespan_context(app):
            client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway")
            assert (await client.get("/health/ready")).status_code == 200
            assert "workers" in {task.get_name() for task in asyncio.all_tasks()}
            assert await commit(made.store) == expected
        names = {task.get_name() for task in asyncio.all_tasks()}
        assert not names & {"workers", "control", "keys", "deadlines", "loop lag"}


async def commit(store: Any) -> int:
    """One more event; its offset."""
    name = time.time_ns().to_bytes(16, "big")
    drafted = Draft("account:ivan", name, name * 2, b'{"id":"e"}', "t", None, 0.0, 2)
    (outcome,) = await store.append([drafted], time.time())
    return int(outcome.offset)


@pytest.mark.parametrize("inside", [True, False])
async def test_a_bus_that_does_not_answer_keeps_nothing_from_starting(tmp_path: Path, inside: bool) -> None:
    """The workers run inside, whatever the bus, unless they are said to run elsewhere."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        port = taken.getsockname()[1]
        here = Running(tmp_path, bus=f"redis://127.0.0.1:{port}/0", workers=inside)
        await here.start()
        try:
            assert ("workers" in {task.get_name() for task in here.gateway._tasks}) == inside
            answer = await here.client.get("/health/ready")
            assert [name for name, good in answer.json()["parts"].items() if not good] == ["bus"]
            assert (await here.post(status())).status_code == 202, "only speed is lost"
        finally:
            await here.stop()


async def test_a_new_agency_is_taken_at_the_next_look(tmp_path: Path) -> None:
    """Nobody tells; and a look is never more than 2 s away."""
    assert load(env_file=None, data=tmp_path).control_s <= 1
    async with running(tmp_path, control_s=0.05) as here:
        secret, key = verify.new_secret("hmac", time.time())
        await here.store.add_agency_key("city", key, None, time.time())
        here.secrets["city"] = secret
        begun = time.monotonic()
        while (answer := await here.post(status(source="/agencies/city"), "city")).status_code == 401:
            assert time.monotonic() - begun < 2
            await asyncio.sleep(0.02)
        assert answer.status_code == 202


async def test_draining_closes_sessions_with_4512(tmp_path: Path) -> None:
    async with running(tmp_path) as here:
        phone = await here.phone()
        phone.read()
        draining = asyncio.create_task(here.gateway.drain(0.3))
        await asyncio.sleep(0.02)
        assert {"t": "drain", "after": 0.3} in [
            {"t": message["t"], "after": message.get("after")} for message in phone.read()
        ]
        assert phone.closed is None, "delivery goes on until then"
        assert (await here.client.get("/health/ready")).status_code == 503
        await draining
        assert phone.closed is not None
        assert phone.closed[0] == 4512


async def test_draining_ends_early_when_everybody_left_or_is_cut(here: Running) -> None:
    begun = time.monotonic()
    await here.gateway.drain(30)
    assert time.monotonic() - begun < 5
    await here.phone()
    cut = asyncio.Event()
    cut.set()
    await here.gateway.drain(30, cut)
    assert time.monotonic() - begun < 5


async def test_stopping_finishes_the_commits_under_way(tmp_path: Path) -> None:
    here = Running(tmp_path)
    await here.start()
    here.store.gate.clear()
    posting = asyncio.create_task(here.post(status()))
    async with asyncio.timeout(5):
        while not here.store.commits:
            await asyncio.sleep(0.001)
    stopping = asyncio.create_task(here.stop())
    assert (await posting).status_code == 202
    await stopping


# What stops the start


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match=r"VESTNIK_PORT: cannot listen on 127\.0\.0\.1"):
            gateway.app.listen(load(env_file=None, data=tmp_path, port=taken.getsockname()[1]))


async def test_a_port_that_another_took_meanwhile(tmp_path: Path) -> None:
    """Two that start at once can both bind it; who listens second ends, and is not left running and deaf."""
    settings = load(env_file=None, data=tmp_path, store="memory://", port=0)
    ours = gateway.app.listen(settings)
    with ours, socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(ours.getsockname())
        taken.listen()
        with pytest.raises(ConfigError, match=r"VESTNIK_PORT: cannot listen on 127\.0\.0\.1"):
            async with asyncio.timeout(10):
                await gateway.app._serve(settings, ours, None)


def test_a_host_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="VESTNIK_HOST"):
        gateway.app.listen(load(env_file=None, data=tmp_path, host="no-such-host.invalid"))


async def test_a_jwks_file_that_is_none(tmp_path: Path) -> None:
    made = Gateway(load(env_file=None, data=tmp_path, store="memory://", jwks=str(tmp_path / "none.json")))
    with pytest.raises(ConfigError, match="VESTNIK_JWKS"):
        await made.start()
    await made.stop()


async def test_two_gateways_on_one_file_need_a_bus_between_them(tmp_path: Path) -> None:
    first, second = (Gateway(load(env_file=None, data=tmp_path)) for _ in range(2))
    await first.start()
    with pytest.raises(ConfigError, match="VESTNIK_BUS must reach all gateways"):
        await second.start()
    await first.stop()
    third = Gateway(load(env_file=None, data=tmp_path))
    await third.start()
    await third.stop()


async def test_a_store_that_does_not_answer_ends_the_start_with_3(tmp_path: Path) -> None:
    """Contract, section 6: `serve` exits 3 when it cannot start, with one sentence that names the setting."""
    command = [str(Path(sys.executable).with_name("vestnik")), "serve", "--port", "0", "--data", str(tmp_path)]
    nobody = "postgresql://nobody@127.0.0.1:1/nothing"
    process = await asyncio.create_subprocess_exec(
        *command, "--store", nobody, stderr=asyncio.subprocess.PIPE, cwd=tmp_path
    )
    _, said = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 3
    assert said.decode().splitlines()[-1].startswith("VESTNIK_STORE")
