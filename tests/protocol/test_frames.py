"""Frames against RFC 6455 and RFC 7692, with the `websockets` library's writer as the peer."""

import time
import zlib

import pytest
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory, PerMessageDeflate
from websockets.frames import Frame, Opcode

from gateway.protocol import frames
from gateway.protocol.frames import BINARY, CLOSE, CONT, PING, PONG, TEXT, FrameError, Parser

MASK = b"\x11\x22\x33\x44"


def masked(
    opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, mask: bool = True, form: int | None = None
) -> bytes:
    """A frame as a device sends it; `form` forces the 7 (0), 16 (126) or 64 (127) bit length."""
    size = len(payload)
    form = form if form is not None else (0 if size < 126 else 126 if size < 65536 else 127)
    head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode, (0x80 if mask else 0) | (form or size)])
    if form:
        head += size.to_bytes(2 if form == 126 else 8, "big")
    if not mask:
        return head + payload
    return head + MASK + bytes(byte ^ MASK[i % 4] for i, byte in enumerate(payload))


def fault(data: bytes, **options: object) -> FrameError:
    with pytest.raises(FrameError) as caught:
        Parser(**options).feed(data)  # type: ignore[arg-type]
    return caught.value


# Writing


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 70000])
def test_a_frame_is_what_the_library_writes(size: int) -> None:
    payload = b"x" * size
    built = frames.frame(TEXT, payload)
    assert built == Frame(Opcode.TEXT, payload).serialize(mask=False)
    assert bytes(frames.payload_of(built)) == payload


def test_frames_that_were_joined_are_taken_apart() -> None:
    built = [(TEXT, b""), (BINARY, b"x" * 125), (TEXT, b"y" * 126), (PING, b""), (TEXT, b"z" * 65536), (PONG, b"p")]
    data = b"".join(frames.frame(opcode, payload) for opcode, payload in built)
    assert [(opcode, bytes(payload)) for opcode, payload in frames.split(data)] == built
    assert list(frames.split(b"")) == []


def test_rsv1_marks_a_compressed_frame() -> None:
    assert frames.frame(BINARY, b"x", rsv1=True)[0] == 0xC2


def test_a_close_reason_is_cut_at_the_border_of_a_character() -> None:
    built = frames.close_frame(4400, "ж" * 100)
    assert len(built) == 2 + 2 + 122
    assert frames.close_of(built[2:]) == (4400, "ж" * 61)
    assert frames.close_of(frames.close_frame(1000)[2:]) == (1000, "")
    assert frames.close_of(b"") == (1005, "")


# The fast way


@pytest.mark.parametrize("opcode", [TEXT, BINARY, PING, PONG])
@pytest.mark.parametrize("size", [0, 1, 125])
def test_single_reads_a_small_whole_frame(opcode: int, size: int) -> None:
    assert frames.single(masked(opcode, b"a" * size)) == (opcode, b"a" * size)


def test_single_reads_a_good_close_and_text() -> None:
    assert frames.single(masked(CLOSE, b"\x03\xe8bye")) == (CLOSE, b"\x03\xe8bye")
    assert frames.single(masked(CLOSE)) == (CLOSE, b"")
    assert frames.single(masked(TEXT, "жук".encode())) == (TEXT, "жук".encode())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x81",
        masked(TEXT, b"abc")[:-1],
        masked(TEXT, b"abc") + b"\x81",
        masked(TEXT, b"abc", fin=False),
        masked(CONT, b"abc"),
        masked(TEXT, b"abc", rsv=4),
        masked(TEXT, b"abcdefgh", mask=False),
        masked(3, b"abc"),
        masked(BINARY, b"a" * 1025),
        masked(BINARY, b"a" * 200)[:-1],
        masked(BINARY, b"a" * 200) + b"\x81",
        masked(BINARY, b"a" * 100, form=127),
        masked(PING, b"a" * 126),
        masked(TEXT, b"\xff" * 200),
        masked(BINARY, b"a" * 124, form=126),  # 132 bytes in all: as many as a length of 126 would promise
        masked(TEXT, b"\xff"),
        masked(CLOSE, b"\x03"),
        masked(CLOSE, b"\x03\xed"),
    ],
)
def test_single_leaves_everything_else_to_the_parser(data: bytes) -> None:
    assert frames.single(data) is None


# The parser


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 16384])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_message_of_any_size_is_read_whole_or_byte_by_byte(opcode: int, size: int) -> None:
    data = Frame(Opcode(opcode), b"m" * size).serialize(mask=True)
    parser = Parser()
    assert parser.feed(data) == [(opcode, b"m" * size)]
    assert parser.idle
    got = [message for i in range(len(data)) for message in parser.feed(data[i : i + 1])]
    assert got == [(opcode, b"m" * size)]
    assert parser.idle


def test_the_longest_form_is_read_where_the_limit_allows() -> None:
    assert Parser(max_message=100_000).feed(masked(BINARY, b"m" * 70_000)) == [(BINARY, b"m" * 70_000)]


def test_it_is_not_idle_while_something_is_partial() -> None:
    parser = Parser()
    assert parser.idle
    assert parser.feed(masked(TEXT, b"ab", fin=False)) == []
    assert not parser.idle
    assert parser.feed(masked(CONT, b"cd")[:3]) == []
    assert not parser.idle
    assert parser.feed(masked(CONT, b"cd")[3:]) == [(TEXT, b"abcd")]
    assert parser.idle


def test_control_frames_come_inside_a_fragmented_message() -> None:
    data = (
        masked(TEXT, b"a", fin=False)
        + masked(PING, b"p")
        + masked(CONT, b"", fin=False)
        + masked(PONG)
        + masked(CONT, b"b")
    )
    assert Parser().feed(data) == [(PING, b"p"), (PONG, b""), (TEXT, b"ab")]


def test_many_frames_in_one_read() -> None:
    assert Parser().feed(masked(TEXT, b"x") * 1000) == [(TEXT, b"x")] * 1000


def test_nothing_comes_after_a_close() -> None:
    parser = Parser()
    assert parser.feed(masked(CLOSE) + masked(TEXT, b"x") + b"\xff\xff") == [(CLOSE, b"")]
    assert parser.feed(masked(TEXT, b"x")) == []
    assert not parser.idle


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (masked(TEXT, b"x", mask=False), "not masked"),
        (masked(TEXT, b"x", rsv=4), "reserved bits"),
        (masked(TEXT, b"x", rsv=2), "reserved bits"),
        (masked(PING, b"x", rsv=1), "reserved bits"),
        (masked(3), "opcode"),
        (masked(7), "opcode"),
        (masked(11), "opcode"),
        (masked(15), "opcode"),
        (masked(PING, b"x" * 126), "over 125"),
        (masked(CLOSE, b"\x03\xe8" + b"x" * 124), "over 125"),
        (masked(PING, b"x", form=126), "over 125"),
        (masked(PING, fin=False), "fragmented control"),
        (masked(CONT, b"x"), "continuation"),
        (masked(TEXT, b"x", fin=False) + masked(TEXT, b"y"), "inside a message"),
        (masked(TEXT, b"x" * 125, form=126), "shortest"),
        (masked(TEXT, b"x" * 125, form=127), "shortest"),
        (masked(TEXT, b"x" * 65535, form=127), "shortest"),
        (b"\x81\xff" + b"\x80" + b"\x00" * 7 + MASK, "63 bits"),
        (masked(CLOSE, b"\x03"), "one byte"),
        *((masked(CLOSE, code.to_bytes(2, "big")), f"{code}") for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999)),
        (masked(CLOSE, (5000).to_bytes(2, "big")), "5000"),
    ],
)
def test_broken_framing_is_1002(data: bytes, words: str) -> None:
    caught = fault(data)
    assert caught.code == 1002
    assert words in caught.reason


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1011, 1014, 3000, 3999, 4000, 4400, 4999])
def test_codes_that_may_be_sent(code: int) -> None:
    payload = code.to_bytes(2, "big") + "пока".encode()
    assert Parser().feed(masked(CLOSE, payload)) == [(CLOSE, payload)]


@pytest.mark.parametrize(
    "data",
    [
        masked(TEXT, b"\xc0\xaf"),
        masked(TEXT, "ж".encode()[:1]),
        masked(TEXT, b"\xed\xa0\x80"),  # a surrogate
        masked(TEXT, b"a\xff", fin=False),  # said at once, not at the end of the message
        masked(TEXT, "ж".encode()[:1], fin=False) + masked(CONT, b"a", fin=False),
        masked(TEXT, "ж".encode()[:1], fin=False) + masked(CONT, b""),
        masked(CLOSE, b"\x03\xe8\xff"),
    ],
)
def test_text_that_is_not_utf8_is_1007(data: bytes) -> None:
    assert fault(data).code == 1007


def test_a_character_may_be_cut_between_fragments() -> None:
    one, two = "ж".encode()[:1], "ж".encode()[1:]
    assert Parser().feed(masked(TEXT, one, fin=False) + masked(CONT, two)) == [(TEXT, "ж".encode())]


def test_binary_may_hold_anything() -> None:
    assert Parser().feed(masked(BINARY, b"\xff")) == [(BINARY, b"\xff")]


def test_a_message_over_the_limit_is_4400_when_it_is_announced() -> None:
    head = masked(TEXT, b"x" * 16385)[:4]
    assert fault(head).code == 4400
    assert fault(b"\x82\xff" + (1 << 62).to_bytes(8, "big")).code == 4400


def test_the_limit_holds_across_fragments() -> None:
    parser = Parser(max_message=10)
    assert parser.feed(masked(TEXT, b"x" * 6, fin=False) + masked(CONT, b"x" * 4)) == [(TEXT, b"x" * 10)]
    caught = fault(masked(TEXT, b"x" * 6, fin=False) + masked(CONT, b"x" * 5, fin=False), max_message=10)
    assert caught.code == 4400


def test_what_was_complete_before_a_fault_is_told() -> None:
    caught = fault(masked(TEXT, b"a") + masked(PING, b"b") + masked(3))
    assert caught.before == [(TEXT, b"a"), (PING, b"b")]


# After a fault, and after our own close


def test_after_a_message_over_the_limit_the_answer_of_the_peer_is_still_found() -> None:
    parser = Parser()
    data = masked(TEXT, b"x" * 100_000) + masked(PING) + masked(CLOSE, b"\x11\x30") + masked(TEXT)
    got, faults = [], 0
    for i in range(0, len(data), 1000):
        try:
            got += parser.feed(data[i : i + 1000])
        except FrameError:
            faults += 1
    assert got == [(CLOSE, b"\x11\x30")]
    assert faults == 1


@pytest.mark.parametrize("bad", [masked(TEXT, b"\xff"), masked(TEXT, b"x" * 20_000)])
def test_an_answer_in_the_same_read_as_the_fault_is_found(bad: bytes) -> None:
    parser = Parser()
    with pytest.raises(FrameError):
        parser.feed(bad + masked(CLOSE))
    assert parser.feed(b"") == [(CLOSE, b"")]


def test_after_broken_framing_nothing_means_anything() -> None:
    parser = Parser()
    with pytest.raises(FrameError):
        parser.feed(masked(3) + masked(CLOSE))
    assert parser.feed(b"") == []
    assert parser.feed(masked(CLOSE)) == []


def test_discard_throws_all_away_but_the_answer() -> None:
    parser = Parser()
    parser.feed(masked(TEXT, b"half", fin=False) + masked(CONT)[:3])
    parser.discard()
    assert parser.feed(masked(CONT)[3:] + masked(CONT, b"x" * 50_000) + masked(PING)) == []
    assert not parser.idle
    assert parser.feed(masked(CLOSE, b"\x00")) == [(CLOSE, b"\x00")]


def test_discard_keeps_no_bytes_and_raises_no_faults() -> None:
    parser = Parser()
    parser.discard()
    assert parser.feed(masked(BINARY, b"x" * 1_000_000)[:-1]) == []
    assert len(parser._buffer) == 0
    assert parser.feed(b"x" + masked(3) + masked(CLOSE)) == []


def test_many_tiny_slices_cost_linear_time() -> None:
    data = masked(BINARY, b"x" * 1_000_000)
    parser = Parser(max_message=2_000_000)
    started = time.perf_counter()
    got = [message for i in range(0, len(data), 4) for message in parser.feed(data[i : i + 4])]
    assert len(got) == 1
    # 250,000 slices; copying the buffer at each would move 125 GB.
    assert time.perf_counter() - started < 5


# Compression


def squeeze(payload: bytes, *, bits: int = 15, level: int = 6) -> bytes:
    compressor = zlib.compressobj(level, zlib.DEFLATED, -bits)
    return (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


@pytest.mark.parametrize("payload", [b"", b"x", b"hello " * 500, bytes(range(256)) * 64])
def test_our_compression_is_read_by_the_library(payload: bytes) -> None:
    built = frames.frame(BINARY, frames.deflate(payload), rsv1=True)
    peer = PerMessageDeflate(True, True, frames.WINDOW_BITS, 15)
    decoded = peer.decode(Frame(Opcode.BINARY, bytes(frames.payload_of(built)), rsv1=True))
    assert decoded.data == payload


@pytest.mark.parametrize("payload", [b"", b"x", b"hello " * 500, bytes(range(256)) * 64])
def test_compressed_messages_are_inflated(payload: bytes) -> None:
    peer = PerMessageDeflate(True, True, 15, 15)
    data = Frame(Opcode.BINARY, payload).serialize(mask=True, extensions=[peer])
    assert Parser(deflate=True).feed(data * 2) == [(BINARY, payload)] * 2


def test_a_compressed_message_may_be_fragmented() -> None:
    body = squeeze("привет ".encode() * 100)
    data = masked(TEXT, body[:5], fin=False, rsv=4) + masked(PING) + masked(CONT, body[5:])
    assert Parser(deflate=True).feed(data) == [(PING, b""), (TEXT, "привет ".encode() * 100)]


def test_final_blocks_inside_a_message_are_read() -> None:
    # RFC 7692, 7.2.3.4 and 7.2.3.5: the RFC's own bytes of "Hello".
    assert Parser(deflate=True).feed(masked(TEXT, bytes.fromhex("f348cdc9c9070000"), rsv=4)) == [(TEXT, b"Hello")]
    two = bytes.fromhex("f248050000 00ffffcac9c90700".replace(" ", ""))
    assert Parser(deflate=True).feed(masked(TEXT, two, rsv=4)) == [(TEXT, b"Hello")]


def test_without_negotiation_or_on_another_frame_rsv1_is_1002() -> None:
    assert fault(masked(TEXT, squeeze(b"x"), rsv=4)).code == 1002
    assert fault(masked(PING, b"", rsv=4), deflate=True).code == 1002
    assert fault(masked(TEXT, b"", fin=False) + masked(CONT, b"", rsv=4), deflate=True).code == 1002
    assert fault(masked(TEXT, b"", rsv=6), deflate=True).code == 1002


def test_inflation_stops_at_the_limit() -> None:
    bomb = squeeze(b"\0" * 10_000_000)
    assert len(bomb) < 16384
    assert fault(masked(BINARY, bomb, rsv=4), deflate=True).code == 4400
    assert Parser(deflate=True).feed(masked(BINARY, squeeze(b"\0" * 16384), rsv=4)) == [(BINARY, b"\0" * 16384)]
    assert fault(masked(BINARY, squeeze(b"\0" * 16385), rsv=4), deflate=True).code == 4400


def test_a_flood_of_final_blocks_ends() -> None:
    assert fault(masked(BINARY, b"\x03\x00" * 8000, rsv=4), deflate=True).code == 1007


@pytest.mark.parametrize("body", [b"\xff" * 20, b"\x07"])
def test_what_does_not_inflate_is_1007(body: bytes) -> None:
    assert fault(masked(BINARY, body, rsv=4), deflate=True).code == 1007


def test_inflated_text_must_be_utf8() -> None:
    assert fault(masked(TEXT, squeeze(b"\xff"), rsv=4), deflate=True).code == 1007


def test_what_does_not_compress_may_be_a_little_longer_than_the_limit() -> None:
    payload = bytes((i * i * 7919) >> 5 & 0xFF for i in range(16384))
    body = squeeze(payload, level=0)
    assert len(body) > 16384
    assert Parser(deflate=True).feed(masked(BINARY, body, rsv=4)) == [(BINARY, payload)]


PLAIN = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"


@pytest.mark.parametrize(
    ("offer", "answer"),
    [
        ("permessage-deflate", PLAIN),
        ("permessage-deflate; client_max_window_bits", PLAIN),
        ("permessage-deflate;client_max_window_bits=9;server_no_context_takeover", PLAIN),
        ('permessage-deflate; client_max_window_bits="15"', PLAIN),
        ("permessage-deflate; server_max_window_bits=15", PLAIN + "; server_max_window_bits=12"),
        ("permessage-deflate; server_max_window_bits=12", PLAIN + "; server_max_window_bits=12"),
        ("permessage-deflate; server_max_window_bits=9, permessage-deflate", PLAIN),
        ("x-webkit-deflate-frame , , permessage-deflate", PLAIN),
        ("permessage-deflate; server_max_window_bits=9", None),
        ("permessage-deflate; server_max_window_bits", None),
        ("permessage-deflate; server_max_window_bits=16", None),
        ("permessage-deflate; client_max_window_bits=7", None),
        ("permessage-deflate; client_max_window_bits=08", None),
        ("permessage-deflate; client_max_window_bits; client_max_window_bits", None),
        ("permessage-deflate; server_no_context_takeover=1", None),
        ("permessage-deflate; server_no_context_takeover=true, x", None),
        ("permessage-deflate; other", None),
        ("permessage-bzip2", None),
        ("permessage-deflate, =", None),
        ("permessage-deflate;", None),
        ('permessage-deflate; client_max_window_bits="15', None),
        ("", None),
        (" , ,", None),
    ],
)
def test_negotiation(offer: str, answer: str | None) -> None:
    assert frames.negotiate(offer) == answer


def test_the_library_accepts_our_answer_to_its_own_offer() -> None:
    factory = ClientPerMessageDeflateFactory(server_max_window_bits=12, client_max_window_bits=12)
    parameters = "; ".join(name if value is None else f"{name}={value}" for name, value in factory.get_request_params())
    answer = frames.negotiate(f"permessage-deflate; {parameters}")
    assert answer is not None
    pairs = [tuple([*part.split("="), None][:2]) for part in answer.split("; ")[1:]]
    extension = factory.process_response_params(pairs, [])  # type: ignore[arg-type]
    assert extension.remote_no_context_takeover
    assert extension.local_no_context_takeover
