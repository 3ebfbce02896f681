import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.bus.base import Message
from gateway.bus.wire import pack, unpack


@given(
    st.text(st.characters(codec="utf-8")),
    st.integers(1, 2**53 - 1),
    st.none() | st.binary(),
    st.integers(0, 3),
    st.floats(0, 1e11),
)
def test_what_is_packed_comes_back(epoch: str, offset: int, event: bytes | None, priority: int, at: float) -> None:
    message = Message("account:a", epoch, offset, event, priority, at)
    assert unpack("account:a", pack(message)) == message


@given(st.binary())
def test_anything_else_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a message"):
        unpack("account:a", data)


@pytest.mark.parametrize(
    "array",
    [
        [2, "e", 1, b"{}", 2, 1.0],
        [1, b"e", 1, b"{}", 2, 1.0],
        [1, "e", "1", b"{}", 2, 1.0],
        [1, "e", True, b"{}", 2, 1.0],
        [1, "e", 1, "{}", 2, 1.0],
        [1, "e", 1, b"{}", 2, 1],
        [1, "e", 1, b"{}", 2],
    ],
)
def test_another_version_or_shape_is_refused(array: list[object]) -> None:
    with pytest.raises(ValueError, match="not a message"):
        unpack("account:a", msgpack.packb(array))
