"""How a message travels: one msgpack array, the feed being the name of its channel.

    [version, epoch, offset, event or nil, priority, recorded]

A gateway of another version drops what it does not understand; the sweep over the store finds it.
"""

import msgpack

from gateway.bus.base import Message

VERSION = 1


def pack(message: Message) -> bytes:
    """The bytes of a message, without its feed."""
    packed: bytes = msgpack.packb(
        (VERSION, message.epoch, message.offset, message.event, message.priority, message.recorded)
    )
    return packed


def unpack(feed: str, data: bytes) -> Message:
    """The message that `pack` made. Raises ValueError for anything else, whatever the bytes are."""
    try:
        version, epoch, offset, event, priority, recorded = msgpack.unpackb(data)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise ValueError(f"not a message of the bus: {type(error).__name__}") from None
    if (
        version != VERSION
        or type(epoch) is not str
        or type(offset) is not int
        or type(priority) is not int
        or type(recorded) is not float
        or not (event is None or type(event) is bytes)
    ):
        raise ValueError(f"not a message of version {VERSION} of the bus")
    return Message(feed, epoch, offset, event, priority, recorded)
