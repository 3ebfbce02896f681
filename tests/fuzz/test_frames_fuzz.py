"""The frame parser against any bytes in any slices.

Invariants: only FrameError comes out, with 1002, 1007 or 4400; any slicing of the same bytes gives the same messages
and the same fault as feeding them at once; what the `websockets` library writes is read back; `single` never disagrees
with the parser; memory stays within one message, one frame and one read.
"""

import os
import zlib

from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.exceptions import PayloadTooBig, ProtocolError
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Close, Frame, Opcode
from websockets.streams import StreamReader
from websockets.utils import apply_mask

from gateway.protocol import frames
from gateway.protocol.frames import CLOSE, CONT, PING, PONG, TEXT, FrameError, Parser

LIMIT = 200
RUNS = int(os.environ.get("FUZZ_RUNS", "200"))  # of each test; 10,000 take minutes
Story = list[tuple[str, int, bytes]]


def header(first: int, masked: bool, form: int, length: int) -> bytes:
    second = (0x80 if masked else 0) | (min(length, 125) if form == 0 else form)
    extended = b"" if form == 0 else length.to_bytes(2 if form == 126 else 8, "big")
    return bytes([first, second]) + extended


@st.composite
def wire_frames(draw: st.DrawFn) -> bytes:
    """A frame that is nearly right: each rule is broken now and then."""
    opcode = draw(st.sampled_from([CONT, TEXT, 2, CLOSE, PING, PONG, CONT, TEXT, 2, 3, 11]))
    payload = draw(
        st.binary(max_size=20)
        | st.text(max_size=8).map(str.encode)
        | st.binary(min_size=120, max_size=LIMIT + 100)
        | st.integers(995, 5005).map(lambda code: code.to_bytes(2, "big") + b"why")
        | st.binary(max_size=300).map(lambda data: zlib.compress(data, wbits=-12))
    )
    fin = draw(st.sampled_from([0x80, 0x80, 0x80, 0]))
    rsv = draw(st.sampled_from([0, 0, 0, 0, 0x40, 0x40, 0x20, 0x10]))
    form = 0 if len(payload) < 126 else 126
    form = draw(st.sampled_from([form] * 8 + [126, 127]))
    masked = draw(st.sampled_from([True] * 15 + [False]))
    key = draw(st.binary(min_size=4, max_size=4))
    body = key + apply_mask(payload, key) if masked else payload
    return header(fin | rsv | opcode, masked, form, len(payload)) + body


stream = st.lists(wire_frames(), max_size=8).map(b"".join) | st.binary(max_size=200)
cuts = st.lists(st.integers(1, 40), min_size=1, max_size=20)


def slices(data: bytes, steps: list[int]) -> list[bytes]:
    out, pos, i = [], 0, 0
    while pos < len(data):
        out.append(data[pos : pos + steps[i % len(steps)]])
        pos += steps[i % len(steps)]
        i += 1
    return out


def tell(parts: list[bytes], deflate: bool) -> Story:
    """All that a parser says about these bytes, in order."""
    parser = Parser(max_message=LIMIT, deflate=deflate)
    story: Story = []
    for part in parts:
        try:
            found = parser.feed(part)
        except FrameError as fault:
            story += [("message", *message) for message in fault.before]
            story.append(("fault", fault.code, b""))
            found = parser.feed(b"")
        story += [("message", *message) for message in found]
        assert all(code in (1002, 1007, 4400) for kind, code, _ in story if kind == "fault")
        assert len(parser._buffer) + len(parser._message) <= 2 * LIMIT + 200
        assert parser._buffer or parser._opcode or parser._skip or parser._discarding or parser._dead or parser.idle
    return story


@settings(max_examples=RUNS)
@given(data=stream, steps=cuts, deflate=st.booleans())
def test_any_slicing_tells_the_same_story(data: bytes, steps: list[int], deflate: bool) -> None:
    whole = tell([data], deflate)
    assert tell(slices(data, steps), deflate) == whole
    assert tell(slices(data, [1]), deflate) == whole


@settings(max_examples=RUNS)
@given(data=stream, deflate=st.booleans())
def test_a_story_has_one_fault_and_ends_with_a_close(data: bytes, deflate: bool) -> None:
    story = tell([data], deflate)
    faults = [i for i, (kind, _, _) in enumerate(story) if kind == "fault"]
    closes = [i for i, (kind, opcode, _) in enumerate(story) if kind == "message" and opcode == CLOSE]
    assert len(faults) <= 1
    assert closes in ([], [len(story) - 1])
    if faults:  # after it nothing but the peer's close
        assert all(opcode == CLOSE for _, opcode, _ in story[faults[0] + 1 :])
    for kind, opcode, payload in story:
        if kind == "message" and opcode == TEXT:
            payload.decode()
        if kind == "message":
            assert len(payload) <= LIMIT


@settings(max_examples=RUNS)
@given(data=wire_frames() | st.binary(max_size=140))
def test_the_fast_way_never_disagrees_with_the_parser(data: bytes) -> None:
    message = frames.single(data)
    if message is not None:
        parser = Parser()
        assert parser.feed(data) == [message]
        assert parser.idle or message[0] == CLOSE


payloads = st.binary(max_size=LIMIT)


@st.composite
def conversations(draw: st.DrawFn) -> tuple[bytes, list[tuple[int, bytes]], bool]:
    """Right frames as the library writes them, fragmented, with control frames between, and what they mean."""
    deflate = draw(st.booleans())
    out, meant = b"", []
    for _ in range(draw(st.integers(0, 5))):
        opcode = draw(st.sampled_from([Opcode.TEXT, Opcode.BINARY]))
        text = st.text(st.characters(codec="utf-8"), max_size=LIMIT // 4).map(str.encode)
        payload = draw(text if opcode is Opcode.TEXT else payloads)
        extensions = [PerMessageDeflate(True, True, 15, 15)] if deflate and draw(st.booleans()) else []
        borders = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=3)))
        parts = [payload[a:b] for a, b in zip([0, *borders], [*borders, len(payload)], strict=True)]
        for i, part in enumerate(parts):
            last = i == len(parts) - 1
            kind = Opcode.CONT if i else opcode
            out += Frame(kind, part, fin=last).serialize(mask=True, extensions=extensions)
            if last:
                meant.append((int(opcode), payload))
            if draw(st.booleans()):
                control = draw(st.sampled_from([Opcode.PING, Opcode.PONG]))
                note = draw(st.binary(max_size=125))
                out += Frame(control, note).serialize(mask=True)
                meant.append((int(control), note))
    return out, meant, deflate


@settings(max_examples=RUNS)
@given(said=conversations(), steps=cuts)
def test_what_the_library_writes_is_read_back(
    said: tuple[bytes, list[tuple[int, bytes]], bool], steps: list[int]
) -> None:
    data, meant, deflate = said
    parser = Parser(max_message=LIMIT, deflate=deflate)
    assert [message for part in slices(data, steps) for message in parser.feed(part)] == meant
    assert parser.idle


def oracle(data: bytes) -> tuple[int, bytes] | int:
    """What the library makes of one whole frame: (opcode, payload), or the close code of its fault."""
    reader = StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    try:
        parse = Frame.parse(reader.read_exact, mask=True, max_size=LIMIT)
        try:
            next(parse)
        except StopIteration as done:
            frame = done.value
        else:
            raise AssertionError("a whole frame needs no more bytes")
        if frame.opcode is Opcode.CLOSE:
            Close.parse(frame.data)
        if frame.opcode is Opcode.TEXT and frame.fin:
            frame.data.decode()
    except PayloadTooBig:
        return 4400
    except ProtocolError:
        return 1002
    except UnicodeDecodeError:
        return 1007
    return int(frame.opcode), bytes(frame.data)


@settings(max_examples=RUNS)
@given(data=wire_frames())
def test_one_frame_means_to_us_what_it_means_to_the_library(data: bytes) -> None:
    form, length = data[1] & 0x7F, 0
    if form > 125:
        length = int.from_bytes(data[2 : 4 if form == 126 else 10], "big")
    if (
        not data[1] & 0x80
        or not data[0] & 0x80
        or data[0] & 0x0F == CONT
        or (form > 125 and length < 126)
        or form == 127
    ):
        return  # fragments are judged over several frames, and the library allows long forms of short lengths
    theirs = oracle(data)
    ours: tuple[int, bytes] | int
    try:
        (ours,) = Parser(max_message=LIMIT).feed(data)
    except FrameError as fault:
        ours = fault.code
    # What is wrong in two ways is told by whichever is looked at first.
    assert ours == theirs or (type(ours) is int and type(theirs) is int and {ours, theirs} != {1007, 4400})
