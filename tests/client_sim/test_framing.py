"""Frames of a device: read by the gateway's own parser, and cut into any slices."""

import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_sim.framing import BINARY, CLOSE, PING, TEXT, Reader, Strange, masked, status_of, upgrade
from gateway.protocol import frames
from gateway.protocol.frames import Parser


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536])
def test_the_gateway_reads_what_a_device_writes(size):
    payload = b"x" * size
    assert Parser(max_message=1 << 20).feed(masked(TEXT, payload)) == [(TEXT, payload)]


@given(st.lists(st.binary(max_size=300), max_size=6), st.data())
def test_a_device_reads_what_the_gateway_writes_in_any_slices(payloads, data):
    whole = b"".join(frames.frame(BINARY, payload) for payload in payloads)
    reader, found, at = Reader(), [], 0
    while at < len(whole):
        size = data.draw(st.integers(1, len(whole)))
        found += list(reader.frames(whole[at : at + size]))
        at += size
    assert found == [(BINARY, payload) for payload in payloads]


@pytest.mark.parametrize("size", [70_000, 1 << 20])
def test_long_frames_and_control_frames_between_them(size):
    whole = frames.frame(TEXT, b"a" * size) + frames.frame(PING, b"p") + frames.close_frame(4503, "bye")
    assert [opcode for opcode, _ in Reader().frames(whole)] == [TEXT, PING, CLOSE]


def test_what_is_compressed_comes_out_as_it_was():
    payload = b'{"t":"batch"}' * 500
    frame = frames.frame(TEXT, frames.deflate(payload), rsv1=True)
    assert list(Reader().frames(frame)) == [(TEXT, payload)]


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (masked(TEXT, b"hello"), "masked"),
        (bytes((0x01, 2)) + b"ab", "fragmented"),
        (bytes((0x81, 127)) + (1 << 40).to_bytes(8, "big"), "bytes"),
        (frames.frame(TEXT, b"no deflate", rsv1=True), "inflate"),
        (frames.frame(TEXT, zlib.compress(b"\0" * (3 << 20), wbits=-15), rsv1=True), "without end"),
    ],
)
def test_what_no_gateway_sends_is_strange(frame, words):
    with pytest.raises(Strange, match=words):
        list(Reader().frames(frame))


def test_the_handshake_is_read_in_pieces_and_what_follows_it_is_kept():
    reader = Reader()
    answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n" + frames.frame(TEXT, b"{}")
    assert reader.head(answer[:20]) is None
    head = reader.head(answer[20:])
    assert head is not None
    assert status_of(head) == (101, None)
    assert reader.opened
    assert list(reader.frames(b"")) == [(TEXT, b"{}")]


def test_a_handshake_that_never_ends_is_strange():
    with pytest.raises(Strange):
        Reader().head(b"x" * 20_000)


def test_a_refusal_says_when_to_come_back():
    assert status_of(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 7") == (503, 7.0)
    assert status_of(b"HTTP/1.1 403 Forbidden\r\nretry-after: soon") == (403, None)
    assert status_of(b"SSH-2.0-OpenSSH") == (0, None)


def test_the_request_opens_a_socket():
    request = upgrade("gateway:80", "vestnik.v1.msgpack", random.Random(1), deflate=True).decode()
    assert request.startswith("GET /v1/socket HTTP/1.1\r\nHost: gateway:80\r\n")
    assert "Sec-WebSocket-Protocol: vestnik.v1.msgpack\r\n" in request
    assert "permessage-deflate" in request
    assert "permessage-deflate" not in upgrade("gateway:80", "vestnik.v1.json", random.Random(1)).decode()
