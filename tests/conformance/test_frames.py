"""The socket as bytes: RFC 6455 and RFC 7692 over plain TCP.

Where the RFC says *fail the connection* (7.1.7) the close code is 1002 (1007 for text that is not UTF-8, 1009 for a
message too big); section 3 of the contract says 4400 for what is "not decodable or over 16 KiB". Both are taken where
both speak, and only there: an ambiguity of the contract, since 4400 tells the device to stop and 1002 to come back.
"""

import base64
import json
import struct
import time
import zlib
from typing import Any

import pytest

from .conftest import Gateway
from .rawsocket import BINARY, CLOSE, CONT, PING, PONG, TEXT, Frame, RawSocket, build

PROTOCOL_ERROR = {1002, 4400}
NOT_UTF8 = {1007, 1002, 4400}


def ping(ref: str, padding: int = 0) -> bytes:
    """A contract `ping` as JSON, longer by an unknown key if asked."""
    message: dict[str, Any] = {"t": "ping", "ref": ref}
    if padding:
        message["pad"] = ""
        message["pad"] = "x" * (padding - len(json.dumps(message)))
    return json.dumps(message).encode()


def pong(sock: RawSocket, ref: str) -> None:
    """The gateway's answer to it: the session lives."""
    assert sock.until(TEXT, t="pong").json["ref"] == ref


@pytest.fixture
def sock(gateway: Gateway, account: str) -> Any:
    """A session after its `live`."""
    with RawSocket(gateway.port) as raw:
        raw.open()
        raw.say({"t": "hello", "token": gateway.token(account), "device": "raw"})
        raw.until(TEXT, t="live")
        yield raw


class TestHandshake:
    """RFC 6455, 4.2."""

    def test_good(self, gateway: Gateway) -> None:
        with RawSocket(gateway.port) as raw:
            raw.open()
            assert raw.headers["sec-websocket-protocol"] == "vestnik.v1.json"
            assert "sec-websocket-extensions" not in raw.headers, "nothing that was not offered"

    def test_names_and_tokens_ignore_case(self, gateway: Gateway) -> None:
        with RawSocket(gateway.port) as raw:
            assert raw.request({"Upgrade": "WebSocket", "Connection": "keep-alive, UPGRADE"}) == 101

    @pytest.mark.parametrize(
        ("headers", "statuses"),
        [
            ({"Sec-WebSocket-Key": None}, {400}),
            ({"Sec-WebSocket-Key": ""}, {400}),
            ({"Sec-WebSocket-Key": "dGhlIHNhbXBsZQ=="}, {400}),  # 10 bytes, not 16
            ({"Sec-WebSocket-Key": "*" * 24}, {400}),
            ({"Sec-WebSocket-Version": "12"}, {426, 400}),
            ({"Sec-WebSocket-Version": None}, {426, 400}),
            ({"Sec-WebSocket-Version": "thirteen"}, {426, 400}),
            # Without a whole request to upgrade this is an ordinary GET on a path that only upgrades.
            ({"Upgrade": None}, {400, 404, 405, 426}),
            ({"Upgrade": "h2c"}, {400, 404, 405, 426}),
            ({"Connection": "keep-alive"}, {400, 404, 405, 426}),
        ],
    )
    def test_faults(self, gateway: Gateway, headers: dict[str, str | None], statuses: set[int]) -> None:
        with RawSocket(gateway.port) as raw:
            assert raw.request(headers) in statuses
            if raw.status == 426 and "Sec-WebSocket-Version" in headers:
                assert "13" in raw.headers["sec-websocket-version"]  # 4.4: the versions that the server takes

    def test_only_get(self, gateway: Gateway) -> None:
        with RawSocket(gateway.port) as raw:
            assert raw.request(line="POST /v1/socket HTTP/1.1") in {400, 403, 404, 405, 426}

    def test_only_http_1_1(self, gateway: Gateway) -> None:
        with RawSocket(gateway.port) as raw:
            assert raw.request(line="GET /v1/socket HTTP/1.0") != 101

    def test_another_path(self, gateway: Gateway) -> None:
        with RawSocket(gateway.port) as raw:
            assert raw.request(line="GET /v1/sockets HTTP/1.1") in {400, 403, 404}

    def test_unknown_extension_is_not_answered(self, gateway: Gateway) -> None:
        with RawSocket(gateway.port) as raw:
            raw.open(Sec_WebSocket_Extensions="x-unheard-of; level=9")
            assert "x-unheard-of" not in raw.headers.get("sec-websocket-extensions", "")

    def test_extra_headers(self, gateway: Gateway) -> None:
        with RawSocket(gateway.port) as raw:
            raw.open(Cookie="a=b", User_Agent="Приложение/1.0", X_Long="y" * 3000)


class TestFrames:
    """RFC 6455, 5."""

    def test_hello_byte_by_byte(self, gateway: Gateway, account: str) -> None:
        with RawSocket(gateway.port) as raw:
            raw.open()
            hello = {"t": "hello", "token": gateway.token(account), "device": "slow-typist"}
            for byte in build(TEXT, json.dumps(hello).encode()):
                raw.send(bytes([byte]))
            assert raw.until(TEXT).json["t"] == "welcome"

    def test_many_frames_in_one_segment(self, sock: RawSocket) -> None:
        sock.send(b"".join(build(TEXT, ping(str(number))) for number in range(20)))
        for number in range(20):
            pong(sock, str(number))

    def test_hello_and_more_in_one_segment(self, gateway: Gateway, account: str) -> None:
        """What follows the hello waits for its welcome and is not lost."""
        with RawSocket(gateway.port) as raw:
            raw.open()
            hello = {"t": "hello", "token": gateway.token(account), "device": "hasty"}
            raw.send(build(TEXT, json.dumps(hello).encode()) + build(TEXT, ping("a")) + build(PING, b"b"))
            assert raw.until(TEXT).json["t"] == "welcome"
            pong(raw, "a")

    def test_frame_cut_anywhere(self, sock: RawSocket) -> None:
        frame = build(TEXT, ping("long", 300))
        for cut in (1, 2, 3, 4, 7, 8, 9, 200, len(frame) - 1):
            sock.send(frame[:cut])
            time.sleep(0.002)
            sock.send(frame[cut:])
            pong(sock, "long")

    def test_zero_mask(self, sock: RawSocket) -> None:
        sock.send(build(TEXT, ping("zero"), mask=b"\0\0\0\0"))
        pong(sock, "zero")

    @pytest.mark.parametrize("opcode", [TEXT, PING, CLOSE])
    def test_unmasked(self, sock: RawSocket, opcode: int) -> None:
        """5.1: The server MUST close the connection upon receiving a frame that is not masked."""
        sock.send(build(opcode, ping("bare") if opcode == TEXT else b"", mask=None))
        assert sock.closing() in PROTOCOL_ERROR

    @pytest.mark.parametrize("rsv", [1, 2, 4, 7])
    def test_reserved_bits(self, sock: RawSocket, rsv: int) -> None:
        """5.2: MUST be 0 unless an extension is negotiated that defines meanings for non-zero values."""
        sock.send(build(TEXT, ping("bits"), rsv=rsv))
        assert sock.closing() in PROTOCOL_ERROR

    @pytest.mark.parametrize("opcode", [3, 4, 5, 6, 7, 11, 12, 13, 14, 15])
    def test_reserved_opcodes(self, sock: RawSocket, opcode: int) -> None:
        """5.2: If an unknown opcode is received, the receiving endpoint MUST fail the connection."""
        sock.send(build(opcode, b""))
        assert sock.closing() in PROTOCOL_ERROR

    @pytest.mark.parametrize(("form", "payload"), [(16, b"short"), (64, b"short"), (64, b"x" * 200)])
    def test_length_in_a_longer_form(self, sock: RawSocket, form: int, payload: bytes) -> None:
        """5.2: the minimal number of bytes MUST be used. The RFC does not say what a receiver does: understood is as
        good as refused."""
        sock.send(build(PING, payload, form=form) if len(payload) < 126 else build(TEXT, ping("long", 200), form=form))
        frame = sock.frame()
        assert frame is not None
        if frame.opcode == CLOSE:
            assert frame.code in PROTOCOL_ERROR
        else:
            assert frame.opcode == PONG or frame.json["ref"] == "long"

    def test_length_with_the_highest_bit(self, sock: RawSocket) -> None:
        """5.2: the most significant bit MUST be 0."""
        sock.send(build(TEXT, b"", length=2**63 + 1, form=64))
        assert sock.closing() in {1002, 1009, 4400}

    @pytest.mark.parametrize("kind", [TEXT, BINARY])
    def test_other_kind_of_data(self, gateway: Gateway, kind: int) -> None:
        """The contract: JSON is text frames, msgpack is binary ones. 1003 is the RFC's word for it."""
        with RawSocket(gateway.port) as raw:
            raw.open("vestnik.v1.msgpack" if kind == TEXT else "vestnik.v1.json")
            raw.send(build(kind, ping("other")))
            assert raw.closing() in {1003, 4400}


class TestFragments:
    """RFC 6455, 5.4."""

    def test_three_fragments(self, sock: RawSocket) -> None:
        data = ping("три", 400)
        sock.send(build(TEXT, data[:100], fin=False))
        sock.send(build(CONT, data[100:101], fin=False))
        sock.send(build(CONT, data[101:]))
        pong(sock, "три")

    def test_empty_fragments(self, sock: RawSocket) -> None:
        data = ping("empty")
        sock.send(build(TEXT, b"", fin=False))
        sock.send(build(CONT, data[:5], fin=False) + build(CONT, b"", fin=False) + build(CONT, data[5:], fin=False))
        sock.send(build(CONT, b""))
        pong(sock, "empty")

    def test_character_cut_in_two(self, sock: RawSocket) -> None:
        """5.6: a particular text frame might include a partial UTF-8 sequence; however, the whole message MUST be
        valid."""
        data = json.dumps({"t": "ping", "ref": "Ж"}, ensure_ascii=False).encode()
        cut = data.index("Ж".encode()) + 1
        sock.send(build(TEXT, data[:cut], fin=False) + build(CONT, data[cut:]))
        pong(sock, "Ж")

    def test_one_byte_each(self, sock: RawSocket) -> None:
        data = ping("bytes")
        frames = [build(CONT if at else TEXT, data[at : at + 1], fin=at == len(data) - 1) for at in range(len(data))]
        sock.send(b"".join(frames))
        pong(sock, "bytes")

    def test_control_frames_between(self, sock: RawSocket) -> None:
        """5.4: Control frames MAY be injected in the middle of a fragmented message."""
        data = ping("between")
        sock.send(build(TEXT, data[:5], fin=False) + build(PING, b"inside"))
        assert sock.until(PONG).payload == b"inside", "answered before the message is whole"
        sock.send(build(PONG, b"unasked") + build(CONT, data[5:]))
        pong(sock, "between")

    def test_close_between(self, sock: RawSocket) -> None:
        sock.send(build(TEXT, b'{"t":', fin=False) + build(CLOSE, struct.pack("!H", 1000)))
        # Control frames may come between; a library at least (`websockets`) takes the cut message for a protocol error.
        assert sock.closing() in {1000, 1002}
        assert sock.ended()

    def test_continuation_of_nothing(self, sock: RawSocket) -> None:
        sock.send(build(CONT, ping("nothing")))
        assert sock.closing() in PROTOCOL_ERROR

    def test_continuation_after_the_end(self, sock: RawSocket) -> None:
        data = ping("end")
        sock.send(build(TEXT, data[:5], fin=False) + build(CONT, data[5:]))
        pong(sock, "end")
        sock.send(build(CONT, b"x"))
        assert sock.closing() in PROTOCOL_ERROR

    def test_new_message_inside(self, sock: RawSocket) -> None:
        sock.send(build(TEXT, b'{"t"', fin=False) + build(TEXT, ping("inside")))
        assert sock.closing() in PROTOCOL_ERROR

    def test_reserved_bits_in_a_fragment(self, sock: RawSocket) -> None:
        sock.send(build(TEXT, b'{"t"', fin=False) + build(CONT, b"}", rsv=2))
        assert sock.closing() in PROTOCOL_ERROR

    def test_endless_empty_fragments_do_not_hang(self, sock: RawSocket) -> None:
        """Nothing grows, and nobody waits: either it is cut, or the message is still whole in the end."""
        data = ping("endless")
        sock.send(build(TEXT, data[:3], fin=False) + build(CONT, b"", fin=False) * 2000)
        sock.send(build(CONT, data[3:]))
        frame = sock.frame()
        assert frame is not None
        assert frame.opcode == CLOSE or frame.json["ref"] == "endless"


class TestControl:
    """RFC 6455, 5.5."""

    @pytest.mark.parametrize("payload", [b"", b"\0\xff\x80", b"p" * 125])
    def test_ping_is_echoed(self, sock: RawSocket, payload: bytes) -> None:
        sock.send(build(PING, payload))
        assert sock.until(PONG).payload == payload

    def test_ping_before_hello(self, gateway: Gateway) -> None:
        with RawSocket(gateway.port) as raw:
            raw.open()
            raw.send(build(PING, b"early"))
            assert raw.until(PONG).payload == b"early"

    def test_pings_at_once(self, sock: RawSocket) -> None:
        """5.5.3: the endpoint MAY elect to send a Pong frame for only the most recently processed Ping frame."""
        sock.send(b"".join(build(PING, str(number).encode()) for number in range(10)))
        answered = [sock.until(PONG).payload]
        while answered[-1] != b"9":
            answered.append(sock.until(PONG).payload)
        assert answered == sorted(answered)

    def test_unsolicited_pong(self, sock: RawSocket) -> None:
        """5.5.3: A response to an unsolicited Pong frame is not expected."""
        sock.send(build(PONG, b"hello?") + build(TEXT, ping("after")))
        pong(sock, "after")

    @pytest.mark.parametrize("opcode", [PING, PONG, CLOSE])
    def test_control_frame_too_long(self, sock: RawSocket, opcode: int) -> None:
        sock.send(build(opcode, struct.pack("!H", 1000) + b"x" * 124))
        assert sock.closing() in PROTOCOL_ERROR

    @pytest.mark.parametrize("opcode", [PING, PONG, CLOSE])
    def test_control_frame_in_pieces(self, sock: RawSocket, opcode: int) -> None:
        sock.send(build(opcode, b"", fin=False))
        assert sock.closing() in PROTOCOL_ERROR


class TestText:
    """RFC 6455, 8.1, and the contract: "What is not a map, not decodable or over 16 KiB … closes with 4400"."""

    @pytest.mark.parametrize(
        "payload",
        [
            b"\xff",
            b'{"t":"ping","ref":"\xc3\x28"}',
            b'{"t":"ping","ref":"\xed\xa0\x80"}',
            b'{"t":"ping","ref":"\xe2\x82',
        ],
    )
    def test_not_utf8(self, sock: RawSocket, payload: bytes) -> None:
        sock.send(build(TEXT, payload))
        assert sock.closing() in NOT_UTF8

    def test_not_utf8_over_two_fragments(self, sock: RawSocket) -> None:
        sock.send(build(TEXT, b'{"t":"ping","ref":"\xe2\x82', fin=False) + build(CONT, b'\x28"}'))
        assert sock.closing() in NOT_UTF8

    @pytest.mark.parametrize("payload", [b"", b"[]", b'"t"', b"null", b"1", b"{", b'{"t":"ping"} x', b"{'t':'ping'}"])
    def test_not_a_map(self, sock: RawSocket, payload: bytes) -> None:
        sock.send(build(TEXT, payload))
        assert sock.closing() == 4400

    def test_at_the_limit(self, sock: RawSocket) -> None:
        sock.send(build(TEXT, ping("limit", 16384)))
        pong(sock, "limit")

    def test_over_the_limit(self, sock: RawSocket) -> None:
        sock.send(build(TEXT, ping("limit", 16385)))
        assert sock.closing() == 4400

    def test_over_the_limit_is_known_from_the_head(self, sock: RawSocket) -> None:
        """Nothing that large is waited for: the head says enough."""
        sock.send(build(TEXT, b"", length=2**40, form=64))
        assert sock.closing() == 4400

    def test_over_the_limit_in_fragments(self, sock: RawSocket) -> None:
        data = ping("limit", 20000)
        sock.send(build(TEXT, data[:10000], fin=False) + build(CONT, data[10000:], fin=False))
        assert sock.closing() == 4400

    def test_at_the_limit_in_fragments(self, sock: RawSocket) -> None:
        data = ping("limit", 16384)
        sock.send(build(TEXT, data[:8000], fin=False) + build(CONT, data[8000:]))
        pong(sock, "limit")


class TestClose:
    """RFC 6455, 5.5.1 and 7."""

    @pytest.mark.parametrize("code", [1000, 1001, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999])
    def test_echo(self, sock: RawSocket, code: int) -> None:
        """5.5.1: the endpoint typically echos the status code it received. 7.1.1: the server closes TCP first."""
        sock.send(build(CLOSE, struct.pack("!H", code) + "до свидания".encode()))
        assert sock.closing() in {code, 1000}
        assert sock.ended()

    def test_without_body(self, sock: RawSocket) -> None:
        sock.send(build(CLOSE))
        assert sock.closing() in {None, 1000}
        assert sock.ended()

    def test_before_hello(self, gateway: Gateway) -> None:
        with RawSocket(gateway.port) as raw:
            raw.open()
            raw.send(build(CLOSE, struct.pack("!H", 1001)))
            assert raw.closing() == 1001
            assert raw.ended()

    def test_longest_reason(self, sock: RawSocket) -> None:
        sock.send(build(CLOSE, struct.pack("!H", 1000) + b"r" * 123))
        assert sock.closing() == 1000

    def test_body_of_one_byte(self, sock: RawSocket) -> None:
        """5.5.1: If there is a body, the first two bytes of the body MUST be a 2-byte unsigned integer."""
        sock.send(build(CLOSE, b"\x03"))
        assert sock.closing() in PROTOCOL_ERROR

    @pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 2000, 2999, 5000, 65535])
    def test_code_that_no_one_may_send(self, sock: RawSocket, code: int) -> None:
        """7.4.1, 7.4.2: reserved, MUST NOT be set in a close frame, or not defined."""
        sock.send(build(CLOSE, struct.pack("!H", code)))
        assert sock.closing() in PROTOCOL_ERROR

    def test_reason_not_utf8(self, sock: RawSocket) -> None:
        sock.send(build(CLOSE, struct.pack("!H", 1000) + b"\xff\xfe"))
        assert sock.closing() in NOT_UTF8

    def test_nothing_after_a_close(self, sock: RawSocket) -> None:
        """5.5.1: after sending a close the application MUST NOT send more; what it does send is not obeyed."""
        sock.send(build(CLOSE, struct.pack("!H", 1000)) + build(TEXT, ping("ghost")) + build(PING, b"ghost"))
        frames: list[Frame] = []
        while (frame := sock.frame()) is not None:
            frames.append(frame)
        assert [frame.opcode for frame in frames] == [CLOSE]

    def test_reads_on_and_discards(self, sock: RawSocket) -> None:
        """ "After sending a close the gateway reads on and discards until the peer answers": so no RST eats the close
        frame."""
        sock.send(build(TEXT, b"[]"))
        assert sock.closing() == 4400
        sock.send(build(TEXT, ping("late")) * 50 + build(BINARY, b"x" * 60000))
        sock.send(build(CLOSE, struct.pack("!H", 4400)))
        assert sock.frame() is None

    def test_waits_a_bounded_time_for_the_answer(self, quick: Gateway) -> None:
        """ "… 5 s at most", here 1 s by its setting."""
        with RawSocket(quick.port) as raw:
            raw.open()
            raw.say([])
            assert raw.closing() == 4400
            assert raw.ended(4)


class TestBrokenConnections:
    """What ends in the middle leaves the gateway as it was."""

    def test_cut_frames(self, gateway: Gateway, account: str) -> None:
        frame = build(TEXT, ping("cut", 1000))
        token = gateway.token(account)
        for number, (cut, reset) in enumerate(
            [(1, False), (2, True), (5, False), (8, True), (500, False), (999, True)]
        ):
            raw = RawSocket(gateway.port).open()
            raw.say({"t": "hello", "token": token, "device": f"cut-{number}"})
            raw.until(TEXT, t="welcome")
            raw.send(frame[:cut])
            raw.close(reset=reset)
        with RawSocket(gateway.port) as raw:
            raw.open()
            raw.say({"t": "hello", "token": token, "device": "whole"})
            raw.until(TEXT, t="welcome")
            raw.send(frame)
            pong(raw, "cut")

    def test_half_closed(self, sock: RawSocket) -> None:
        """A device that shuts down its sending side will say nothing more: the gateway ends it too."""
        sock.sock.shutdown(1)
        assert sock.ended()

    def test_not_http(self, gateway: Gateway) -> None:
        with RawSocket(gateway.port) as raw:
            raw.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 not http at all\r\n\r\n")
            assert raw.read_head() in {0, 400}

    def test_half_a_head_ends(self, quick: Gateway) -> None:
        """The request head has a deadline (10 s, here 1 s): half-open requests do not stay for ever."""
        with RawSocket(quick.port) as raw:
            raw.send(b"GET /v1/socket HTTP/1.1\r\nHost: x\r\nUpgrade: webso")
            assert raw.ended(5)


class TestDeflate:
    """RFC 7692. "Only these batches are compressed (permessage-deflate, no context takeover), and inbound inflation
    stops at
    the message limit." A server may decline an offer; then nothing compressed may come in, and these pass by that."""

    OFFER = "permessage-deflate; client_max_window_bits"

    def open(self, gateway: Gateway, account: str, offer: str = OFFER) -> tuple[RawSocket, str]:
        raw = RawSocket(gateway.port)
        try:
            raw.open(Sec_WebSocket_Extensions=offer)
            raw.say({"t": "hello", "token": gateway.token(account), "device": "deflated"})
            raw.until(TEXT, t="live")
        except BaseException:
            raw.close()
            raise
        return raw, raw.headers.get("sec-websocket-extensions", "")

    @staticmethod
    def deflate(data: bytes) -> bytes:
        squeezer = zlib.compressobj(9, wbits=-15)
        return (squeezer.compress(data) + squeezer.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\0\0\xff\xff")

    def test_taken_without_context(self, gateway: Gateway, account: str) -> None:
        raw, agreed = self.open(gateway, account)
        with raw:
            assert agreed.startswith("permessage-deflate"), "batches can only be compressed when the offer is taken"
            parameters = {part.strip().partition("=")[0] for part in agreed.split(";")[1:]}
            assert "server_no_context_takeover" in parameters
            assert parameters <= {f"{end}_no_context_takeover" for end in ("server", "client")} | {
                f"{end}_max_window_bits" for end in ("server", "client")
            }

    @pytest.mark.parametrize(
        "offer",
        [
            "permessage-deflate",
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
            "permessage-deflate; server_max_window_bits=10",
            "permessage-deflate; client_max_window_bits=12; server_max_window_bits=15",
            "x-webkit-deflate-frame, permessage-deflate",
        ],
    )
    def test_offers(self, gateway: Gateway, account: str, offer: str) -> None:
        """7.1: an answer may only agree to what was offered."""
        raw, agreed = self.open(gateway, account, offer)
        with raw:
            if "client_max_window_bits" in agreed:
                assert "client_max_window_bits" in offer
            if "server_max_window_bits=10" in offer and agreed:
                assert "server_max_window_bits" in agreed
                assert int(agreed.partition("server_max_window_bits=")[2].partition(";")[0]) <= 10
            raw.send(build(TEXT, ping("plain")))
            pong(raw, "plain")

    @pytest.mark.parametrize(
        "offer",
        ["permessage-deflate; server_max_window_bits=99", "permessage-deflate; what=ever", "permessage-deflate; ;"],
    )
    def test_offer_that_is_wrong_is_declined(self, gateway: Gateway, offer: str) -> None:
        """7.1: a server MUST decline an offer with an unknown or invalid parameter."""
        with RawSocket(gateway.port) as raw:
            status = raw.request({"Sec-WebSocket-Protocol": "vestnik.v1.json", "Sec-WebSocket-Extensions": offer})
            assert status in {101, 400}
            assert "permessage-deflate" not in raw.headers.get("sec-websocket-extensions", "") or offer.endswith("; ;")

    def test_compressed_message(self, gateway: Gateway, account: str) -> None:
        raw, agreed = self.open(gateway, account)
        with raw:
            raw.send(build(TEXT, self.deflate(ping("small", 9000)), rsv=4))
            if agreed:
                answer = raw.until(TEXT, t="pong")
                assert answer.json["ref"] == "small"
                assert not answer.rsv1, "only batches are compressed"
                # RFC 7692, 6.1: RSV1 stands on the first fragment alone.
                data = self.deflate(ping("pieces", 9000))
                raw.send(build(TEXT, data[:7], rsv=4, fin=False) + build(CONT, data[7:]))
                pong(raw, "pieces")
                raw.send(build(TEXT, ping("bare")))
                pong(raw, "bare")
            else:
                assert raw.closing() in PROTOCOL_ERROR

    def test_bomb(self, gateway: Gateway, account: str) -> None:
        raw, agreed = self.open(gateway, account)
        with raw:
            bomb = self.deflate(b" " * 10_000_000 + b"{}")
            assert len(bomb) < 16384
            raw.send(build(TEXT, bomb, rsv=4))
            assert raw.closing() == 4400 if agreed else raw.closing() in PROTOCOL_ERROR

    def test_just_over_the_limit_inflated(self, gateway: Gateway, account: str) -> None:
        raw, agreed = self.open(gateway, account)
        with raw:
            if agreed:
                raw.send(build(TEXT, self.deflate(ping("limit", 16384)), rsv=4))
                pong(raw, "limit")
                raw.send(build(TEXT, self.deflate(ping("limit", 16385)), rsv=4))
                assert raw.closing() == 4400

    def test_not_deflate(self, gateway: Gateway, account: str) -> None:
        raw, _ = self.open(gateway, account)
        with raw:
            raw.send(build(TEXT, b"\xff\xff\xff\xff not deflate", rsv=4))
            assert raw.closing() in {1002, 1007, 4400}

    def test_compressed_control_frame(self, gateway: Gateway, account: str) -> None:
        raw, _ = self.open(gateway, account)
        with raw:
            raw.send(build(PING, self.deflate(b"x"), rsv=4))
            assert raw.closing() in PROTOCOL_ERROR

    def test_compressed_continuation(self, gateway: Gateway, account: str) -> None:
        raw, _ = self.open(gateway, account)
        with raw:
            raw.send(build(TEXT, b'{"t"', fin=False) + build(CONT, b"}", rsv=4))
            assert raw.closing() in PROTOCOL_ERROR


def test_own_vector() -> None:
    """The helpers themselves: RFC 6455, 1.3 and 5.7."""
    from .rawsocket import accept_for

    assert accept_for("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    assert build(TEXT, b"Hello") == bytes.fromhex("818537fa213d7f9f4d5158")
    assert build(TEXT, b"Hello", mask=None) == bytes.fromhex("810548656c6c6f")
    assert len(base64.b64decode("dGhlIHNhbXBsZSBub25jZQ==")) == 16
