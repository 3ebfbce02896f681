import ssl

import pytest

from gateway.bus import Bus, open_bus
from gateway.bus.address import parse, parse_cluster, parse_sentinel
from gateway.bus.cluster import ClusterBus
from gateway.bus.memory import MemoryBus
from gateway.bus.redis import RedisBus, SentinelBus
from gateway.errors import ConfigError


def test_the_scheme_chooses() -> None:
    assert isinstance(open_bus("memory://"), MemoryBus)


@pytest.mark.parametrize(
    ("url", "form"),
    [
        ("redis://127.0.0.1:1", RedisBus),
        ("redis+sentinel://127.0.0.1:1/service", SentinelBus),
        ("redis+cluster://127.0.0.1:1,127.0.0.1:2", ClusterBus),
        ("rediss://127.0.0.1:1", RedisBus),
        ("rediss+sentinel://127.0.0.1:1/service", SentinelBus),
        ("rediss+cluster://127.0.0.1:1", ClusterBus),
    ],
)
async def test_redis_does_not_connect_yet(url: str, form: type[Bus]) -> None:
    assert type(open_bus(url)) is form


@pytest.mark.parametrize(
    "url",
    [
        "",
        "redis",
        "memory://x",
        "kafka://localhost",
        "redis://:hidden@one:1,two:2",
        "redis+sentinel://:hidden@one:26379",
        "redis+sentinel://:hidden@one:26379/main/2",
        "redis+sentinel://:hidden@one:port/main",
        "redis+sentinel://one/main?sentinel_username=hidden",
        "redis+sentinel://:hidden@one/main?ssl_ca_certs=x",
        "redis+cluster://:hidden@one:7000/main",
        "redis+cluster://:hidden@one:0",
        "redis+cluster://:hidden@one:7000?sentinel_password=hidden",
        "redis+other://:hidden@one:7000",
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


def test_what_the_url_of_a_cluster_says() -> None:
    nodes = parse_cluster("redis+cluster://us%40er:p%2Css@one:7000,[::1]:7001,three")
    assert [(node.host, node.port) for node in nodes] == [("one", 7000), ("::1", 7001), ("three", 6379)]
    assert {node.password for node in nodes} == {"p,ss"}


def test_what_the_url_of_sentinels_says() -> None:
    sentinels, service, server = parse_sentinel(
        "redis+sentinel://user:secret@one:5000,two/main%20one?sentinel_password=other"
    )
    assert [(one.host, one.port, one.sign_in) for one in sentinels] == [
        ("one", 5000, [("AUTH", "other")]),
        ("two", 26379, [("AUTH", "other")]),
    ]
    assert service == "main one"
    assert server.at("db", 1).sign_in == [("AUTH", "user", "secret")]
    sentinels, _, _ = parse_sentinel("redis+sentinel://user:secret@one/main")
    assert sentinels[0].sign_in == []
