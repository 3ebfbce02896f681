"""Sockets on gevent, as little as possible of them: what a user of Locust costs is mostly what stands here."""

import contextlib
import ssl
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, Self
from urllib.parse import urlsplit

from gevent import socket as gsocket
from gevent import ssl as gssl

PATIENCE_S: Final = 20.0


class Where(NamedTuple):
    host: str
    port: int
    tls: bool

    @classmethod
    def of(cls, url: str) -> Self:
        """Of `http://host:port`, `https`, `ws` or `wss`."""
        parts = urlsplit(url if "://" in url else f"http://{url}")
        tls = parts.scheme in ("https", "wss")
        return cls(parts.hostname or "127.0.0.1", parts.port or (443 if tls else 80), tls)

    @property
    def name(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def connect(where: Where, receive_bytes: int = 0) -> Any:
    """A socket; with a receive buffer of so many bytes. Raises OSError."""
    family, kind, proto, _, address = gsocket.getaddrinfo(where.host, where.port, type=gsocket.SOCK_STREAM)[0]
    made = gsocket.socket(family, kind, proto)
    try:
        if receive_bytes:
            made.setsockopt(gsocket.SOL_SOCKET, gsocket.SO_RCVBUF, receive_bytes)
        made.setsockopt(gsocket.IPPROTO_TCP, gsocket.TCP_NODELAY, 1)
        made.settimeout(PATIENCE_S)
        made.connect(address)
        if where.tls:
            context = gssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.load_default_certs()
            made = context.wrap_socket(made, server_hostname=where.host)
    except BaseException:
        made.close()
        raise
    return made


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


class Http:
    """One keep-alive connection, one request at a time. An error closes it; the next request opens another."""

    def __init__(self, where: Where):
        self._where = where
        self._socket: Any = None

    def request(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> Answer:
        """Raises OSError when no whole answer came: the outcome is unknown."""
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"{method} {path} HTTP/1.1\r\nHost: {self._where.name}\r\nContent-Length: {len(body)}\r\n{lines}\r\n"
        if self._socket is None:
            self._socket = connect(self._where)
        try:
            self._socket.sendall(head.encode() + body)
            return self._answer()
        except BaseException:
            self.close()
            raise

    def _answer(self) -> Answer:
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._more()
        head, _, body = data.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        if "chunked" in headers.get("transfer-encoding", ""):
            body = self._chunks(body)
        else:
            while len(body) < int(headers.get("content-length", 0)):
                body += self._more()
        answer = Answer(int(lines[0].split(" ")[1]), headers, body)
        if headers.get("connection", "").lower() == "close":
            self.close()
        return answer

    def _chunks(self, data: bytes) -> bytes:
        whole = b""
        while True:
            while b"\r\n" not in data:
                data += self._more()
            size, _, data = data.partition(b"\r\n")
            length = int(size.split(b";")[0], 16)
            while len(data) < length + 2:
                data += self._more()
            whole, data = whole + data[:length], data[length + 2 :]
            if not length:
                return whole

    def _more(self) -> bytes:
        assert self._socket is not None
        data: bytes = self._socket.recv(65536)
        if not data:
            raise ConnectionResetError("the connection ended before the answer")
        return data

    def close(self) -> None:
        made, self._socket = self._socket, None
        if made is not None:
            with contextlib.suppress(OSError):
                made.close()
