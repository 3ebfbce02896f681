"""Frames of RFC 6455 as a server writes and reads them, and RFC 7692 without context takeover. Pure.

A server frame is built once and written to many sockets as the same bytes. Reading has two ways: `single` for what
nearly always arrives, one small whole frame in one read, without any state; and `Parser` for everything else, kept by a
connection only until it is `idle`, so that a silent connection costs no parser.

What a device sends is one of three faults (`FrameError`): 1002 breaks the framing, 1007 is text that is not UTF-8 or
data that does not inflate, 4400 is a message over the limit (contract, section 3).
"""

import codecs
import re
import struct
import zlib
from collections.abc import Iterator
from typing import Final

from gateway.errors import Close

try:
    from websockets.speedups import apply_mask
except ImportError:  # pragma: no cover - a platform without the compiled part
    from websockets.utils import apply_mask

CONT: Final = 0x0
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

MAX_MESSAGE: Final = 16384  # bytes of a device's message (contract, section 3)
MAX_CONTROL: Final = 125  # RFC 6455, 5.5
SMALL: Final = 1024  # bytes of a message that `single` takes: a hello fits, and no limit on messages is lower
WINDOW_BITS: Final = 12  # of what we compress: 4 KiB is enough for a batch and is what small clients ask for

_SHORT = struct.Struct("!BBH")
_LONG = struct.Struct("!BBQ")
_TAIL = b"\x00\x00\xff\xff"  # RFC 7692, 7.2.1: ends every flushed block, and is not sent
_MAX_FINAL_BLOCKS = 16  # a message may hold several final blocks (RFC 7692, 7.2.3.4); each costs us a new inflater
_WHOLE = frozenset(0x80 | opcode for opcode in (TEXT, BINARY, CLOSE, PING, PONG))
_OPCODES = frozenset((CONT, TEXT, BINARY, CLOSE, PING, PONG))
# RFC 6455, 7.4.1 and the IANA registry: what may stand in a close frame; 1004, 1005, 1006 and 1015 may not.
_CLOSE_CODES = frozenset((1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014))

Message = tuple[int, bytes]  # (opcode, payload)


class FrameError(Close):
    """The peer broke the protocol: send a close frame with `code` and `reason`, then end.

    `before` holds what was complete before the fault, in order: it arrived and counts.
    """

    def __init__(self, code: int, reason: str):
        super().__init__(code, reason)
        self.before: list[Message] = []


# Writing


def frame(opcode: int, payload: bytes, *, rsv1: bool = False) -> bytes:
    """One final, unmasked frame. `rsv1` says that `payload` came from `deflate`."""
    first = 0xC0 | opcode if rsv1 else 0x80 | opcode
    size = len(payload)
    if size < 126:
        return bytes((first, size)) + payload
    if size < 65536:
        return _SHORT.pack(first, 126, size) + payload
    return _LONG.pack(first, 127, size) + payload


def payload_of(frame: bytes) -> memoryview:
    """The payload of a frame that `frame` built, without copying it."""
    size = frame[1]
    return memoryview(frame)[2 if size < 126 else 4 if size == 126 else 10 :]


def split(data: bytes) -> Iterator[tuple[int, memoryview]]:
    """(opcode, payload) of each of our own frames that stand one behind the other in `data`, without copying."""
    view, pos = memoryview(data), 0
    while pos < len(view):
        size, start = view[pos + 1], pos + 2
        if size > MAX_CONTROL:
            start += 2 if size == 126 else 8
            size = int.from_bytes(view[pos + 2 : start], "big")
        yield view[pos] & 0x0F, view[start : start + size]
        pos = start + size


def close_frame(code: int, reason: str = "") -> bytes:
    """A close frame; the reason is cut to 123 bytes at the border of a character."""
    text = reason.encode()[: MAX_CONTROL - 2].decode(errors="ignore")
    return frame(CLOSE, code.to_bytes(2, "big") + text.encode())


def close_of(payload: bytes) -> tuple[int, str]:
    """Code and reason of a close payload that was checked; 1005 stands for none (RFC 6455, 7.1.5)."""
    if len(payload) < 2:
        return 1005, ""
    return int.from_bytes(payload[:2], "big"), payload[2:].decode(errors="replace")


def deflate(payload: bytes) -> bytes:
    """Compress one message by itself (RFC 7692, 7.2.1): any inflater with a window of 2^12 or more reads it."""
    compressor = zlib.compressobj(zlib.Z_DEFAULT_COMPRESSION, zlib.DEFLATED, -WINDOW_BITS)
    return (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH))[: -len(_TAIL)]


# Reading


def single(data: bytes) -> Message | None:
    """(opcode, payload) when `data` is exactly one whole, final, masked frame of up to 1 KiB with nothing wrong in it.

    Otherwise None, and `Parser` says what it is. Holds no state: only for a connection without anything partial.
    """
    size = len(data)
    if size < 6:
        return None
    length, opcode = data[1] - 128, data[0] - 128
    if data[0] not in _WHOLE:
        return None
    if length + 6 == size and length <= MAX_CONTROL:
        payload = apply_mask(data[6:], data[2:6])
    elif length == 126 and opcode < CLOSE and MAX_CONTROL < size - 8 == data[2] << 8 | data[3] <= SMALL:
        payload = apply_mask(data[8:], data[4:8])  # a hello
    else:
        return None
    if opcode == TEXT:
        if not payload.isascii() and not _is_utf8(payload):
            return None
    elif opcode == CLOSE and _close_fault(payload) is not None:
        return None
    return opcode, payload


class Parser:
    """Whole messages and control frames out of any slicing of the bytes of one connection.

    Feed it every byte once, in order. Drop it when `idle`. After a fault, or `discard()`, it goes on only to find the
    peer's close frame: everything else is thrown away without being kept, faults are not raised again.
    `max_message` bounds a message in bytes: announced, across fragments, and inflated. With `deflate` the peer may
    compress. Keeps at most one message, one frame and the last read; costs linear time however small the slices are.
    """

    __slots__ = (
        "_buffer",
        "_compressed",
        "_dead",
        "_decoder",
        "_deflate",
        "_discarding",
        "_max",
        "_message",
        "_need",
        "_opcode",
        "_skip",
    )

    def __init__(self, max_message: int = MAX_MESSAGE, deflate: bool = False):
        self._max = max_message
        self._deflate = deflate
        self._buffer = bytearray()
        self._need = 2  # bytes in the buffer with which something can happen
        self._opcode = CONT  # of the fragmented message that is under way, CONT when none is
        self._compressed = False
        self._message = bytearray()
        self._decoder: codecs.IncrementalDecoder | None = None
        self._skip = 0  # bytes of a thrown away payload that are still to come
        self._discarding = False
        self._dead = False  # the framing is lost: no byte means anything any more

    @property
    def idle(self) -> bool:
        """Nothing partial is kept, and nothing is being thrown away: the connection may forget this parser."""
        return not (self._buffer or self._opcode or self._skip or self._discarding or self._dead)

    def discard(self) -> None:
        """We sent a close: from now on only the peer's CLOSE comes out (contract, section 3, close codes)."""
        self._discarding = True
        self._forget()

    def feed(self, data: bytes) -> list[Message]:
        """What these bytes complete, in order: TEXT and BINARY as whole messages, PING, PONG, CLOSE; then nothing more.

        Raises FrameError at the first fault. Send its close, then `feed(b"")` to go on with what came in the same read.
        """
        out: list[Message] = []
        if self._dead:
            return out
        buffer = self._buffer
        buffer += data
        if len(buffer) < self._need:
            return out
        pos = 0
        try:
            while not self._dead and (after := self._frame(pos, out)) > pos:
                pos = after
        except FrameError as fault:
            self._dead = fault.code == 1002
            self._need = 1
            if not self._discarding:
                self.discard()
                fault.before = out
                raise
        finally:
            if self._dead:
                self._buffer = bytearray()
            else:
                del buffer[:pos]
        return out

    def _frame(self, pos: int, out: list[Message]) -> int:
        """Take a frame, or a part of what is to be skipped, at `pos`. Returns the position after it, `pos` to wait."""
        buffer = self._buffer
        have = len(buffer) - pos
        if self._skip:
            return pos + self._step_over(have)
        self._need = 2
        if have < 2:
            return pos
        first, second = buffer[pos], buffer[pos + 1]
        self._check_head(first, second)
        length, header = second & 0x7F, 6
        if length > MAX_CONTROL:
            header = 8 if length == 126 else 14
            if have < header - 4:
                self._need = header - 4
                return pos
            length = _extended(buffer, pos, length)
        opcode = first & 0x0F
        if opcode < CLOSE and (self._discarding or length > self._room(first)):
            # The length is known, so the frame can be stepped over without being kept.
            self._skip = header + length
            if not self._discarding:
                raise self._too_big()
            return pos + self._step_over(have)
        end = pos + header + length
        if len(buffer) < end:
            self._need = header + length
            return pos
        payload = apply_mask(bytes(buffer[pos + header : end]), bytes(buffer[pos + header - 4 : pos + header]))
        self._skip = end - pos  # should the payload be at fault
        if opcode < CLOSE:
            self._data(first, payload, out)
        else:
            self._control(opcode, payload, out)
        self._skip = 0
        return end

    def _step_over(self, have: int) -> int:
        step = min(self._skip, have)
        self._skip -= step
        self._need = 1 if self._skip else 2
        return step

    def _check_head(self, first: int, second: int) -> None:
        opcode = first & 0x0F
        if opcode not in _OPCODES:
            raise FrameError(1002, f"reserved opcode {opcode}")
        # 5.2: "MUST be 0 unless an extension is negotiated that defines meanings for non-zero values."
        # RFC 7692, 6: RSV1 stands on the first fragment of a data message only.
        if first & 0x70 and not (self._deflate and first & 0x70 == 0x40 and opcode in (TEXT, BINARY)):
            raise FrameError(1002, "reserved bits are set")
        # 5.1: "The server MUST close the connection upon receiving a frame that is not masked."
        if not second & 0x80:
            raise FrameError(1002, "frame is not masked")
        if opcode >= CLOSE:
            # 5.5: "All control frames MUST have a payload length of 125 bytes or less and MUST NOT be fragmented."
            if second & 0x7F > MAX_CONTROL:
                raise FrameError(1002, "control frame over 125 bytes")
            if not first & 0x80:
                raise FrameError(1002, "fragmented control frame")
        elif not self._discarding and (opcode == CONT) != (self._opcode != CONT):
            # 5.4: "The fragments of one message MUST NOT be interleaved between the fragments of another message."
            raise FrameError(1002, "continuation of nothing" if opcode == CONT else "message inside a message")

    def _room(self, first: int) -> int:
        """How many bytes of payload the next data frame may have."""
        if first & 0x40 or self._compressed:
            # What does not compress grows a little; what it inflates to is bounded where it is inflated.
            return self._max + self._max // 8 + 64 - len(self._message)
        return self._max - len(self._message)

    def _data(self, first: int, payload: bytes, out: list[Message]) -> None:
        final, opcode = first & 0x80, first & 0x0F
        if final and opcode != CONT:
            out.append((opcode, self._whole(opcode, payload, bool(first & 0x40))))
            return
        if opcode != CONT:
            self._opcode = opcode
            self._compressed = bool(first & 0x40)
            if opcode == TEXT and not self._compressed:
                self._decoder = codecs.getincrementaldecoder("utf-8")()
        if self._decoder is not None:
            try:
                self._decoder.decode(payload, bool(final))
            except UnicodeDecodeError:
                raise _not_utf8() from None
        self._message += payload
        if final:
            message = bytes(self._message)
            if self._decoder is None:
                message = self._whole(self._opcode, message, self._compressed)
            out.append((self._opcode, message))
            self._forget()

    def _whole(self, opcode: int, message: bytes, compressed: bool) -> bytes:
        if compressed:
            message = self._inflate(message)
        if opcode == TEXT and not _is_utf8(message):
            raise _not_utf8()
        return message

    def _inflate(self, data: bytes) -> bytes:
        """RFC 7692, 7.2.2. Stops one byte past the limit, so a bomb costs no more than an honest message."""
        data += _TAIL
        whole = b""
        for _ in range(_MAX_FINAL_BLOCKS):
            inflater = zlib.decompressobj(-zlib.MAX_WBITS, zdict=whole[-32768:])
            try:
                whole += inflater.decompress(data, self._max + 1 - len(whole))
            except zlib.error:
                break
            if len(whole) > self._max:
                raise self._too_big()
            if not inflater.eof:
                return whole
            data = inflater.unused_data
        raise FrameError(1007, "compressed data is broken")

    def _control(self, opcode: int, payload: bytes, out: list[Message]) -> None:
        if opcode == CLOSE:
            if not self._discarding and (fault := _close_fault(payload)) is not None:
                raise fault
            self._dead = True  # 5.5.1: nothing follows a close frame
        if opcode == CLOSE or not self._discarding:
            out.append((opcode, payload))

    def _forget(self) -> None:
        """No message is under way any more."""
        self._opcode = CONT
        self._compressed = False
        self._decoder = None
        self._message = bytearray()

    def _too_big(self) -> FrameError:
        return FrameError(4400, f"message over {self._max} bytes")


def _extended(buffer: bytearray, pos: int, marker: int) -> int:
    """5.2: the length in 16 or 64 bits, written in the fewest bytes possible, the highest bit clear."""
    size = 2 if marker == 126 else 8
    length = int.from_bytes(buffer[pos + 2 : pos + 2 + size], "big")
    if length < (126 if marker == 126 else 65536):
        raise FrameError(1002, "length is not in its shortest form")
    if length >> 63:
        raise FrameError(1002, "length over 63 bits")
    return length


def _close_fault(payload: bytes) -> FrameError | None:
    """5.5.1 and 7.4: empty, or a code that may be sent and a reason in UTF-8."""
    if not payload:
        return None
    if len(payload) == 1:
        return FrameError(1002, "close payload of one byte")
    code = int.from_bytes(payload[:2], "big")
    if code not in _CLOSE_CODES and not 3000 <= code < 5000:
        return FrameError(1002, f"close code {code} may not be sent")
    if not _is_utf8(payload[2:]):
        return FrameError(1007, "close reason is not UTF-8")
    return None


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _not_utf8() -> FrameError:
    return FrameError(1007, "text is not UTF-8")


# The extension

_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAMETER = rf'[ \t]*;[ \t]*({_WORD})(?:[ \t]*=[ \t]*(?:({_WORD})|"({_WORD})"))?'
_OFFER = re.compile(rf"[ \t]*({_WORD})((?:{_PARAMETER})*)[ \t]*(?:,|$)")
_PARAMETERS = re.compile(_PARAMETER)
_EMPTY = re.compile(r"[ \t]*(?:,|$)")
_BITS = re.compile(r"[89]|1[0-5]")


def negotiate(header: str) -> str | None:
    """The `Sec-WebSocket-Extensions` to answer, or None for no extension (RFC 6455, 9.1; RFC 7692, 5 and 7.1).

    `header` is the request's, several joined with commas. The first offer that can be met is taken; one with unknown,
    repeated or wrong parameters is passed over, as the RFC demands; a header that breaks the grammar is no offer.
    Neither side keeps a context: one compressed frame then serves every connection, none costs memory between messages.
    """
    taken: str | None = None
    pos = 0
    while pos < len(header):
        if empty := _EMPTY.match(header, pos):
            pos = empty.end()
            continue
        offer = _OFFER.match(header, pos)
        if offer is None:
            return None
        if taken is None and offer[1] == "permessage-deflate":
            taken = _answer([(m[1], m[2] or m[3]) for m in _PARAMETERS.finditer(offer[2])])
        pos = offer.end()
    return taken


def _answer(parameters: list[tuple[str, str | None]]) -> str | None:
    offered = dict(parameters)
    if len(offered) < len(parameters):
        return None
    answer = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
    for name, value in parameters:
        match name:
            case "server_no_context_takeover" | "client_no_context_takeover":
                if value is not None:
                    return None
            case "client_max_window_bits":
                # 7.1.2.2: a hint that the client can limit its window; we inflate any window, so it is not asked to.
                if value is not None and not _BITS.fullmatch(value):
                    return None
            case "server_max_window_bits":
                # 7.1.2.1: answered with the same or a smaller value, or declined.
                if value is None or not _BITS.fullmatch(value) or int(value) < WINDOW_BITS:
                    return None
                answer += f"; server_max_window_bits={WINDOW_BITS}"
            case _:
                return None
    return answer
