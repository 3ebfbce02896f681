from collections import deque

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.bus import channels as module
from gateway.bus.channels import Channels

NAMES = [b"a", b"b", b"c", b"d"]


def test_commands_are_batched_and_bounded() -> None:
    channels = Channels()
    names = [b"%d" % number for number in range(10_000)]
    for name in names:
        channels.want(name, name.decode())
    asked: list[bytes] = []
    while commands := channels.commands():
        assert all(command[0] == b"SUBSCRIBE" and len(command) <= module.BATCH + 1 for command in commands)
        sent = [name for command in commands for name in command[1:]]
        assert len(sent) <= module.IN_FLIGHT
        assert not channels.commands(), "nothing more before confirmations"
        for name in sent:
            channels.confirmed(name)
        asked += sent
    assert asked == names
    assert channels.settled


def test_a_confirmation_of_another_life_is_ignored() -> None:
    channels = Channels()
    channels.want(b"a", "a")
    channels.commands()
    channels.reset()
    channels.confirmed(b"a")
    assert channels.wait([b"a"], lambda: None) is not None


class Server(RuleBasedStateMachine):
    """Wants and drops at every moment, against a server that confirms in order: a wait ends when the server holds the
    subscription (or it is no longer wanted), and what is live is always subscribed there."""

    def __init__(self) -> None:
        super().__init__()
        self.channels = Channels()
        self.wire: deque[tuple[bytes, bytes]] = deque()
        self.holds: set[bytes] = set()
        self.waits: list[tuple[bytes, list[bool]]] = []

    @rule(name=st.sampled_from(NAMES))
    def want(self, name: bytes) -> None:
        self.channels.want(name, name.decode())
        ended = [False]
        if self.channels.wait([name], lambda: ended.__setitem__(0, True)) is None:
            assert name in self.holds
        else:
            self.waits.append((name, ended))

    @rule(name=st.sampled_from(NAMES))
    def drop(self, name: bytes) -> None:
        self.channels.drop(name)

    @rule()
    def flush(self) -> None:
        for word, *names in self.channels.commands():
            self.wire.extend((word, name) for name in names)

    @precondition(lambda self: self.wire)
    @rule()
    def confirm(self) -> None:
        word, name = self.wire.popleft()
        if word == b"SUBSCRIBE":
            self.holds.add(name)
        else:
            self.holds.discard(name)
        self.channels.confirmed(name)

    @rule()
    def reconnect(self) -> None:
        self.wire.clear()
        self.holds.clear()
        self.channels.reset()

    @invariant()
    def live_is_true(self) -> None:
        for name in NAMES:
            if self.channels.wait([name], lambda: None) is None:
                assert name in self.holds
                assert name in self.channels.wanted

    @invariant()
    def waits_end_in_time(self) -> None:
        if self.channels.settled and not self.wire:
            assert self.holds == set(self.channels.wanted)
            assert all(ended[0] for _, ended in self.waits)


TestServer = Server.TestCase
