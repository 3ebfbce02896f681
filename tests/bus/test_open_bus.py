import ssl

import pytest

from gateway.bus import open_bus
from gateway.bus.memory import MemoryBus
from gateway.bus.redis import RedisBus
from gateway.bus.resp import parse
from gateway.errors import ConfigError


def test_the_scheme_chooses() -> None:
    assert isinstance(open_bus("memory://"), MemoryBus)


async def test_redis_does_not_connect_yet() -> None:
    assert isinstance(open_bus("redis://127.0.0.1:1"), RedisBus)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "redis",
        "memory://x",
        "kafka://localhost",
        "redis+sentinel://:hidden@one:26379/main",
        "redis+cluster://:hidden@one:7000",
        "redis://:hidden@one:port",
        "redis://:hidden@one:99999",
        "redis://:hidden@one?ssl_ca_certs=x",
        "rediss://:hidden@one?colour=red",
        "rediss://:hidden@one?ssl_ca_certs=/does/not/exist",
        "rediss://:hidden@one?ssl_cert_reqs=maybe",
    ],
)
def test_a_wrong_url_is_one_sentence_without_the_password(url: str) -> None:
    with pytest.raises(ConfigError, match=r"^VESTNIK_BUS[^\n]*\.$") as caught:
        open_bus(url)
    assert "hidden" not in str(caught.value)


def test_what_a_url_says() -> None:
    address = parse("redis://us%40er:p%3Ass@host:7000/3")
    assert (address.host, address.port, address.tls) == ("host", 7000, None)
    assert address.sign_in == [("AUTH", "us@er", "p:ss")]
    assert "p:ss" not in repr(address)
    assert parse("redis://").sign_in == []
    assert parse("redis://:secret@host").sign_in == [("AUTH", "secret")]
    assert str(parse("redis://host")) == "host:6379"


def test_tls_is_checked_unless_told_otherwise() -> None:
    strict, lax = parse("rediss://host").tls, parse("rediss://host?ssl_cert_reqs=none").tls
    assert strict is not None
    assert lax is not None
    assert strict.verify_mode is ssl.CERT_REQUIRED
    assert strict.check_hostname
    assert lax.verify_mode is ssl.CERT_NONE
