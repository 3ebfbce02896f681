"""WebSocket frames as a device writes and reads them (RFC 6455, RFC 7692). Pure.

For thousands of devices in one process: a `Reader` keeps nothing but the bytes of an unfinished frame. It trusts the
gateway to send whole messages in single frames, as ours does, and raises `Strange` for everything else.
"""

import base64
import zlib
from collections.abc import Iterator
from random import Random
from typing import Final

from gateway.protocol.frames import BINARY, CLOSE, PING, PONG, TEXT

__all__ = ["BINARY", "CLOSE", "PING", "PONG", "TEXT", "Reader", "Strange", "masked", "status_of", "upgrade"]

LARGEST: Final = 1 << 20  # bytes; an event is 64 KiB, a batch 64 KiB or one event
LARGEST_HEAD: Final = 16384  # bytes of the answer to the handshake
_TAIL: Final = b"\x00\x00\xff\xff"  # RFC 7692, 7.2.2


class Strange(Exception):
    """The peer sent what no gateway sends. The connection cannot be read any further."""


def masked(opcode: int, payload: bytes) -> bytes:
    """One whole frame of a client. The mask is zero: a key like any other (RFC 6455, 5.3) that costs nothing here."""
    size = len(payload)
    if size < 126:
        return bytes((0x80 | opcode, 0x80 | size, 0, 0, 0, 0)) + payload
    if size < 65536:
        return bytes((0x80 | opcode, 0xFE)) + size.to_bytes(2, "big") + b"\0\0\0\0" + payload
    return bytes((0x80 | opcode, 0xFF)) + size.to_bytes(8, "big") + b"\0\0\0\0" + payload


def upgrade(host: str, subprotocol: str, rng: Random, *, deflate: bool = False) -> bytes:
    """The request that opens a socket. `deflate` offers permessage-deflate without context takeover."""
    offer = "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover\r\n" if deflate else ""
    return (
        f"GET /v1/socket HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {base64.b64encode(rng.randbytes(16)).decode()}\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Protocol: {subprotocol}\r\n{offer}\r\n"
    ).encode()


def status_of(head: bytes) -> tuple[int, float | None]:
    """Status and `Retry-After` in seconds of the answer to `upgrade`; (0, None) for what is no HTTP."""
    lines = head.decode("latin-1").split("\r\n")
    words = lines[0].split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/") or not words[1].isdecimal():
        return 0, None
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    after = headers.get("retry-after", "")
    return int(words[1]), float(after) if after.isdecimal() else None


class Reader:
    """The answer to the handshake, then whole frames, out of any slicing of the bytes of one connection."""

    __slots__ = ("_rest", "opened")

    def __init__(self) -> None:
        self._rest = b""
        self.opened = False

    def head(self, data: bytes) -> bytes | None:
        """The head of the answer once it is whole, else None. What comes after it stays for `frames`."""
        head, found, rest = (self._rest + data).partition(b"\r\n\r\n")
        if not found:
            if len(head) > LARGEST_HEAD:
                raise Strange("the answer to the handshake never ends")
            self._rest = head
            return None
        self.opened, self._rest = True, rest
        return head

    def frames(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """(opcode, payload) of each frame that these bytes complete, inflated. To be run to its end. Raises Strange."""
        if self._rest:
            data = self._rest + data
            self._rest = b""
        at, size = 0, len(data)
        while size - at >= 2:
            length, begin = data[at + 1], at + 2
            if length == 126:
                length, begin = int.from_bytes(data[at + 2 : at + 4], "big"), at + 4
            elif length == 127:
                length, begin = int.from_bytes(data[at + 2 : at + 10], "big"), at + 10
            elif length > 127:
                raise Strange("a masked frame from the gateway")
            if length > LARGEST:
                raise Strange(f"a frame of {length} bytes")
            if begin > size or begin + length > size:
                break
            first, payload = data[at], data[begin : begin + length]
            at = begin + length
            if not first & 0x80:
                raise Strange("a fragmented message")
            yield first & 0x0F, _inflated(payload) if first & 0x40 else payload
        self._rest = data[at:]


def _inflated(payload: bytes) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        whole = inflater.decompress(payload + _TAIL, LARGEST)
    except zlib.error as error:
        raise Strange(f"data that does not inflate: {error}") from None
    if inflater.unconsumed_tail:
        raise Strange("a message that inflates without end")
    return whole
