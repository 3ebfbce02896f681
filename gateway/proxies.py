"""Who a request comes from when proxies stand in front. For logs only: nothing is decided by it. Pure."""

from collections.abc import Sequence
from ipaddress import ip_address, ip_network

MOST = 32  # addresses of one request that are looked at: a proxy's own chain is shorter


class Proxies:
    """The proxies that are believed. Each of them adds the address that it sees at the end of X-Forwarded-For, so the
    last address that is not one of ours is the client; whatever stands before it was written by anybody."""

    def __init__(self, networks: Sequence[str]):
        self._networks = tuple(ip_network(network) for network in networks)

    def believed(self, address: str) -> bool:
        try:
            found = ip_address(address)
        except ValueError:
            return False
        return any(found in network for network in self._networks)

    def client(self, peer: str, headers: Sequence[tuple[bytes, bytes]]) -> str:
        """The address of the client of a request that came from `peer`; names in `headers` are in lower case."""
        if not self.believed(peer):
            return peer
        values = [value.decode("latin-1") for name, value in headers if name == b"x-forwarded-for"]
        chain = [part.strip() for part in ",".join(values).split(",")]
        for address in chain[: -MOST - 1 : -1]:
            try:
                peer = str(ip_address(address))
            except ValueError:
                break  # it did not come from a proxy of ours
            if not self.believed(peer):
                break
        return peer
