"""A WebSocket client of nothing but TCP: sends whatever bytes a test wants and reads frames by RFC 6455, section 5.

Every frame of the gateway is held to the RFC as it is read: no mask, no reserved bits, known opcodes, the shortest
length, control frames short and whole.
"""

import base64
import contextlib
import hashlib
import json
import os
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


@dataclass(frozen=True)
class Frame:
    fin: bool
    opcode: int
    payload: bytes
    rsv1: bool = False

    @property
    def code(self) -> int | None:
        """Of a close frame; None when it has no body."""
        assert self.opcode == CLOSE
        return struct.unpack("!H", self.payload[:2])[0] if self.payload else None

    @property
    def json(self) -> Any:
        return json.loads(self.payload)


def build(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    mask: bytes | None = b"\x37\xfa\x21\x3d",
    length: int | None = None,
    form: int | None = None,
) -> bytes:
    """A frame of a client (RFC 6455, 5.2). `mask=None` leaves it unmasked, `length` lies about the length, `form` (7,
    16 or
    64) writes it in that form whether or not it is the shortest."""
    size = len(payload) if length is None else length
    form = form or (7 if size < 126 else 16 if size < 65536 else 64)
    bit = 0x80 if mask is not None else 0
    head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    if form == 7:
        head += bytes([bit | size])
    elif form == 16:
        head += bytes([bit | 126]) + struct.pack("!H", size)
    else:
        head += bytes([bit | 127]) + struct.pack("!Q", size)
    if mask is None:
        return head + payload
    repeated = mask * (len(payload) // 4 + 1)
    size = len(payload)
    masked = int.from_bytes(payload, "big") ^ int.from_bytes(repeated[:size], "big")
    return head + mask + masked.to_bytes(size, "big")


def accept_for(key: str) -> str:
    return base64.b64encode(hashlib.sha1(key.encode() + GUID.encode()).digest()).decode()


class RawSocket:
    """One TCP connection. `timeout` seconds for every read."""

    def __init__(self, port: int, *, timeout: float = 5, receive_buffer: int | None = None):
        self.sock = socket.socket()
        if receive_buffer is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.settimeout(timeout)
        self.sock.connect(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.port, self.buffer, self.status = port, b"", 0
        self.headers: dict[str, str] = {}

    # The handshake (RFC 6455, section 4)

    def request(
        self,
        replace: Mapping[str, str | None] | None = None,
        *,
        line: str = "GET /v1/socket HTTP/1.1",
        then: bytes = b"",
    ) -> int:
        """Send the opening handshake with these headers replaced (None removes one) and read the head of the answer."""
        headers: dict[str, str | None] = {
            "Host": f"127.0.0.1:{self.port}",
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
            "Sec-WebSocket-Version": "13",
            **(replace or {}),
        }
        self.key = headers.get("Sec-WebSocket-Key") or ""
        lines = [line, *(f"{name}: {value}" for name, value in headers.items() if value is not None), "", ""]
        self.sock.sendall("\r\n".join(lines).encode() + then)
        return self.read_head()

    def read_head(self) -> int:
        while b"\r\n\r\n" not in self.buffer:
            if not self._more():
                self.status = 0
                return 0
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        self.status = int(first.split()[1])
        self.headers = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
        }
        return self.status

    def open(self, protocol: str | None = "vestnik.v1.json", **replace: str | None) -> Self:
        """The handshake, which must succeed. Underscores in header names stand for hyphens."""
        headers: dict[str, str | None] = {"Sec-WebSocket-Protocol": protocol}
        headers |= {name.replace("_", "-"): value for name, value in replace.items()}
        assert self.request(headers) == 101, (self.status, self.headers)
        assert self.headers["sec-websocket-accept"] == accept_for(self.key)
        assert self.headers["upgrade"].lower() == "websocket"
        assert "upgrade" in self.headers["connection"].lower()
        return self

    # Frames

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def say(self, message: Any, **options: Any) -> None:
        """A text frame with this as JSON."""
        self.send(build(TEXT, json.dumps(message, ensure_ascii=False).encode(), **options))

    def _more(self) -> bool:
        try:
            data = self.sock.recv(65536)
        except (ConnectionResetError, BrokenPipeError):
            return False
        self.buffer += data
        return bool(data)

    def _take(self, size: int) -> bytes | None:
        while len(self.buffer) < size:
            if not self._more():
                return None
        data, self.buffer = self.buffer[:size], self.buffer[size:]
        return data

    def frame(self) -> Frame | None:
        """The next frame, held to the RFC. None when the gateway ended the TCP connection."""
        head = self._take(2)
        if head is None:
            return None
        opcode, size = head[0] & 15, head[1] & 127
        assert not head[0] & 0x30, "reserved bits 2 and 3"
        assert not head[1] & 0x80, "5.1: A server MUST NOT mask any frames that it sends to the client"
        assert opcode in (CONT, TEXT, BINARY, CLOSE, PING, PONG), opcode
        if size == 126:
            size = struct.unpack("!H", self._take(2) or b"\0\0")[0]
            assert size >= 126, "5.2: the minimal number of bytes MUST be used to encode the length"
        elif size == 127:
            size = struct.unpack("!Q", self._take(8) or b"\0" * 8)[0]
            assert size >= 65536, "5.2: the minimal number of bytes MUST be used to encode the length"
        fin = bool(head[0] & 0x80)
        if opcode >= 8:
            assert fin, "5.5: control frames MUST NOT be fragmented"
            assert size <= 125, "5.5: control frames MUST have a payload length of 125 bytes or less"
            assert not head[0] & 0x40, "control frames are never compressed"
        payload = self._take(size)
        if payload is None:
            return None
        if opcode == CLOSE and payload:
            assert len(payload) >= 2
            payload[2:].decode()
        return Frame(fin, opcode, payload, bool(head[0] & 0x40))

    def until(self, opcode: int, *, t: str | None = None, timeout: float = 5) -> Frame:
        """The next frame of this kind (and, for a text frame, this `t`); others are dropped. An early close fails
        with its code."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            frame = self.frame()
            assert frame is not None, "the gateway ended the connection"
            if frame.opcode == opcode and (t is None or frame.json["t"] == t):
                return frame
            assert frame.opcode != CLOSE, f"closed with {frame.code} {frame.payload[2:].decode()!r}"
        raise TimeoutError

    def closing(self) -> int | None:
        """Read on to the close frame; its code (None: without body). An end without any close frame is -1."""
        while True:
            frame = self.frame()
            if frame is None:
                return -1
            if frame.opcode == CLOSE:
                return frame.code

    def ended(self, timeout: float = 5) -> bool:
        """Whether the gateway ends the TCP connection within so many seconds; frames before the end are dropped."""
        deadline = time.monotonic() + timeout
        with contextlib.suppress(TimeoutError):
            while (left := deadline - time.monotonic()) > 0:
                self.sock.settimeout(left)
                self.buffer = b""
                if not self._more():
                    return True
        return False

    def close(self, *, reset: bool = False) -> None:
        """End the TCP connection; `reset` with RST instead of FIN."""
        if reset:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
