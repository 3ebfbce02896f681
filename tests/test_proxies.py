import pytest

from gateway.proxies import Proxies

OURS = Proxies(("10.0.0.0/8", "::1/128"))


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("10.0.0.1", ["203.0.113.7"], "203.0.113.7"),
        ("10.0.0.1", ["198.51.100.1, 203.0.113.7"], "203.0.113.7"),  # the first was written by the client
        ("10.0.0.1", ["203.0.113.7, 10.0.0.2"], "203.0.113.7"),  # two proxies of ours
        ("10.0.0.1", ["203.0.113.7", "10.0.0.2"], "203.0.113.7"),
        ("::1", ["2001:DB8::1"], "2001:db8::1"),
        ("203.0.113.9", ["203.0.113.7"], "203.0.113.9"),  # not a proxy of ours
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["unknown"], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.7, evil, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),  # a client inside
        ("no address", ["203.0.113.7"], "no address"),
        ("10.0.0.1", ["203.0.113.7" + ", 10.0.0.2" * 100_000], "10.0.0.2"),  # bounded
    ],
)
def test_the_client_is_the_last_address_that_is_no_proxy(peer: str, forwarded: list[str], client: str) -> None:
    headers = [(b"host", b"x"), *((b"x-forwarded-for", value.encode()) for value in forwarded)]
    assert OURS.client(peer, headers) == client


def test_without_networks_nobody_is_believed() -> None:
    assert Proxies(()).client("127.0.0.1", [(b"x-forwarded-for", b"203.0.113.7")]) == "127.0.0.1"
