"""What happens to one Redis server in a bad year: the bus notices within seconds, says the truth, is whole
afterwards. What can happen to every form is in `test_bus_forms.py`."""

import asyncio
import contextlib
import datetime
import ipaddress
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from redis import Redis

from gateway.bus import open_bus
from gateway.bus.redis import RedisBus
from gateway.errors import BusUnavailable
from tests.contracts.test_bus import Ear, healthy, message
from tests.faults.buses import FEEDS, QUICK, opened, subscribed, unhealthy, whole_again
from tests.redis_server import RedisServer, free_port


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as server:
        yield server


@pytest.fixture
def ear() -> Ear:
    return Ear()


@pytest.fixture
async def bus(server: RedisServer, ear: Ear) -> AsyncIterator[RedisBus]:
    bus = RedisBus(server.url, **QUICK)
    await bus.open(ear)
    await healthy(bus)
    yield bus
    await bus.close()


def admin(server: RedisServer) -> contextlib.closing[Redis]:
    return contextlib.closing(Redis(port=server.port))


async def test_killed_and_started_again(server: RedisServer, bus: RedisBus, ear: Ear) -> None:
    await subscribed(bus, FEEDS)
    server.kill()
    await unhealthy(bus)
    with pytest.raises(BusUnavailable):
        await bus.publish([message("account:1", 1)])
    started = time.monotonic()
    with pytest.raises(BusUnavailable):
        await bus.subscribe(["account:late"])
    assert time.monotonic() - started < 0.1, "a hello waits for a server that is known to be away"
    await ear.until(lambda: ear.gaps >= 1)
    gaps = ear.gaps
    server.start()
    await whole_again(bus, ear, gaps)
    await bus.publish([message("account:late", 7)])
    await ear.until(lambda: ear.messages[-1].offset == 7)


async def test_frozen_server_is_noticed_and_thawed(server: RedisServer, bus: RedisBus, ear: Ear) -> None:
    await subscribed(bus, FEEDS)
    server.freeze()
    try:
        started = time.monotonic()
        with pytest.raises(BusUnavailable):
            await bus.publish([message("account:1", 1)])
        await unhealthy(bus)
        assert time.monotonic() - started < 2.0
        gaps = ear.gaps
        await asyncio.sleep(1.0)  # several attempts against a port that accepts and never answers
        assert not bus.healthy
    finally:
        server.thaw()
    await whole_again(bus, ear, gaps)


async def test_killed_publishing_connection_costs_nothing(server: RedisServer, bus: RedisBus, ear: Ear) -> None:
    await subscribed(bus, FEEDS)
    with admin(server) as redis:
        for client in redis.client_list():
            if client["name"].startswith("vestnik-pub"):
                redis.client_kill(client["addr"])
    await asyncio.sleep(0.05)
    await bus.publish([message("account:1", 1)])
    await ear.until(lambda: len(ear.messages) == 1)
    assert ear.gaps == 0


async def test_dead_subscription_on_a_live_connection(server: RedisServer, bus: RedisBus, ear: Ear) -> None:
    """The case that a TCP check never sees: both connections live, the server holds no subscription."""
    await subscribed(bus, FEEDS)
    assert bus._only._connection is not None
    bus._only._connection.send((b"UNSUBSCRIBE",))
    await unhealthy(bus)
    await whole_again(bus, ear, 0)


async def test_server_absent_at_start(tmp_path: Path) -> None:
    server, ear = RedisServer(tmp_path), Ear()
    bus = RedisBus(server.url, **QUICK)
    await bus.open(ear)
    try:
        with pytest.raises(BusUnavailable):
            await bus.subscribe(FEEDS)
        assert not bus.healthy
        with server:
            await whole_again(bus, ear, 0)
    finally:
        await bus.close()


async def test_wrong_messages_are_dropped(server: RedisServer, bus: RedisBus, ear: Ear) -> None:
    await bus.subscribe(["account:1"])
    with admin(server) as redis:
        for junk in (b"", b"\xc1", b"\x01", b"\x92\x01\x02", b"{}", b"\x96\x01\x01\x01\x01\x01\x01"):
            redis.publish("vestnik:account:1", junk)
    await bus.publish([message("account:1", 1)])
    await ear.until(lambda: bool(ear.messages))
    assert ear.messages == [message("account:1", 1)]


async def test_wrong_password_is_said_and_never_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with RedisServer(tmp_path, requirepass="right") as server:
        wrong = open_bus(f"redis://:secretword@127.0.0.1:{server.port}")
        await wrong.open(Ear())
        with pytest.raises(BusUnavailable, match="WRONGPASS"):
            await wrong.publish([message("account:1", 1)])
        await wrong.close()
        right, ear = open_bus(f"redis://default:right@127.0.0.1:{server.port}"), Ear()
        await right.open(ear)
        await healthy(right)
        await right.close()
    assert "secretword" not in "".join(capfd.readouterr())


RIGHTS = "resetchannels &vestnik* -@all +auth +client|setname"
FORMS = [
    ("redis", {}, "+publish +subscribe +unsubscribe"),
    ("redis+cluster", {"cluster_enabled": "yes"}, "+spublish +ssubscribe +sunsubscribe +cluster|info +cluster|slots"),
]


@pytest.mark.parametrize(("scheme", "options", "commands"), FORMS)
async def test_the_rights_that_the_readme_names_are_enough(
    tmp_path: Path, ear: Ear, scheme: str, options: dict[str, str], commands: str
) -> None:
    options |= {"cluster_port": str(free_port())} if options else {}
    with RedisServer(tmp_path, **options) as server:
        with admin(server) as redis:
            redis.execute_command("ACL", "SETUSER", "vestnik", "on", ">word", *RIGHTS.split(), *commands.split())
            if options:
                redis.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        async with opened(f"{scheme}://vestnik:word@127.0.0.1:{server.port}", ear) as bus:
            await subscribed(bus, FEEDS)
            await bus.unsubscribe(["account:1"])
            await bus.subscribe(["account:1"])
            await whole_again(bus, ear, ear.gaps - 1)


async def test_a_port_that_is_not_redis(ear: Ear) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    listener = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    bus = RedisBus(f"redis://127.0.0.1:{port}", timeout_s=0.4, backoff_cap_s=0.1)
    await bus.open(ear)
    with pytest.raises(BusUnavailable):
        await bus.publish([message("account:1", 1)])
    assert not bus.healthy
    await bus.close()
    listener.close()
    await listener.wait_closed()


async def test_waiting_ends_when_the_bus_closes(ear: Ear) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        bus = RedisBus(f"redis://127.0.0.1:{silent.getsockname()[1]}", timeout_s=30)
        await bus.open(ear)
        waiting = asyncio.create_task(bus.subscribe(FEEDS))
        await asyncio.sleep(0.05)
        await bus.close()
        with pytest.raises(BusUnavailable, match="closed"):
            await waiting


async def test_tls(tmp_path: Path, ear: Ear) -> None:
    certificate, key = make_certificate(tmp_path)
    port = free_port()
    options = {"tls_port": str(port), "tls_cert_file": certificate, "tls_key_file": key, "tls_auth_clients": "no"}
    with RedisServer(tmp_path, **options):
        bus = open_bus(f"rediss://127.0.0.1:{port}?ssl_ca_certs={certificate}")
        await bus.open(ear)
        await healthy(bus)
        await bus.subscribe(["account:1"])
        await bus.publish([message("account:1", 1)])
        await ear.until(lambda: len(ear.messages) == 1)
        await bus.close()
        untrusting = open_bus(f"rediss://127.0.0.1:{port}")
        await untrusting.open(Ear())
        with pytest.raises(BusUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
            await untrusting.announce(b"")
        await untrusting.close()


async def test_tls_of_a_cluster(tmp_path: Path, ear: Ear) -> None:
    """One node with all slots; it does not know its own address, so the one that was asked is taken."""
    certificate, key = make_certificate(tmp_path)
    port = free_port()
    options = {"tls_port": str(port), "tls_cert_file": certificate, "tls_key_file": key, "tls_auth_clients": "no"}
    options |= {
        "cluster_enabled": "yes",
        "cluster_port": str(free_port()),
        "tls_cluster": "yes",
        "tls_ca_cert_file": certificate,
    }
    with RedisServer(tmp_path, **options) as server:
        with admin(server) as redis:
            redis.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        async with opened(f"rediss+cluster://127.0.0.1:{port}?ssl_ca_certs={certificate}", ear) as bus:
            await subscribed(bus, FEEDS)
            await whole_again(bus, ear, ear.gaps - 1)


def make_certificate(directory: Path) -> tuple[str, str]:
    """A certificate for 127.0.0.1 that signs itself; paths of it and of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = str(directory / "tls.crt"), str(directory / "tls.key")
    Path(paths[0]).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    Path(paths[1]).write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths
