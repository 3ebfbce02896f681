from collections import deque

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.bus import channels as module
from gateway.bus.channels import Channels, Lane
from gateway.bus.slots import slot_of

NAMES = [b"a", b"b", b"c", b"d"]


def test_commands_are_batched_and_bounded() -> None:
    channels = Channels()
    lane = Lane(channels)
    names = [b"%d" % number for number in range(10_000)]
    for name in names:
        channels.want(name, name.decode())
        lane.queue(name)
    asked: list[bytes] = []
    while commands := lane.commands():
        assert all(command[0] == b"SUBSCRIBE" and len(command) <= module.BATCH + 1 for command in commands)
        sent = [name for command in commands for name in command[1:]]
        assert len(sent) <= module.IN_FLIGHT
        assert not lane.commands(), "nothing more before confirmations"
        for name in sent:
            assert lane.confirmed(name)
        asked += sent
    assert asked == names
    assert lane.settled


def test_a_confirmation_of_another_life_is_ignored() -> None:
    channels = Channels()
    lane = Lane(channels)
    channels.want(b"a", "a")
    lane.queue(b"a")
    lane.commands()
    lane.reset([b"a"])
    assert not lane.confirmed(b"a")
    assert channels.wait([b"a"], lambda: None) is not None


def test_a_sharded_command_stays_in_one_slot() -> None:
    channels = Channels()
    lane = Lane(channels, sharded=True)
    names = [b"{%d}%d" % (number % 7, number) for number in range(700)]
    for name in names:
        channels.want(name, "a")
        lane.queue(name)
    commands = lane.commands()
    assert len(commands) == 7
    assert all(command[0] == b"SSUBSCRIBE" and len(set(map(slot_of, command[1:]))) == 1 for command in commands)
    assert {name for command in commands for name in command[1:]} == set(names)


def test_a_slot_that_leaves_takes_its_channels_along() -> None:
    channels = Channels()
    lane = Lane(channels, sharded=True)
    for name in (b"{a}asked", b"{b}asked"):
        channels.want(name, "a")
        lane.queue(name)
    lane.commands()
    for name in (b"{a}queued", b"{b}queued"):
        channels.want(name, "a")
        lane.queue(name)
    assert set(lane.leave_slot(slot_of(b"a"))) == {b"{a}asked", b"{a}queued"}
    assert not lane.confirmed(b"{a}asked")
    assert lane.confirmed(b"{b}asked")
    assert lane.commands() == [(b"SSUBSCRIBE", b"{b}queued")]


class Server(RuleBasedStateMachine):
    """Wants, drops and moves at every moment, against two servers that confirm in order: a wait ends when the server
    holds the subscription (or it is no longer wanted), and what is live is always subscribed at the server of its
    lane."""

    def __init__(self) -> None:
        super().__init__()
        self.channels = Channels()
        self.lanes = [Lane(self.channels), Lane(self.channels)]
        self.wires: list[deque[tuple[bytes, bytes]]] = [deque(), deque()]
        self.holds: list[set[bytes]] = [set(), set()]
        self.home = dict.fromkeys(NAMES, 0)
        self.waits: list[tuple[bytes, list[bool]]] = []

    @rule(name=st.sampled_from(NAMES))
    def want(self, name: bytes) -> None:
        if self.channels.want(name, name.decode()):
            self.lanes[self.home[name]].queue(name)
        ended = [False]
        if self.channels.wait([name], lambda: ended.__setitem__(0, True)) is None:
            assert name in self.holds[self.home[name]]
        else:
            self.waits.append((name, ended))

    @rule(name=st.sampled_from(NAMES))
    def drop(self, name: bytes) -> None:
        if self.channels.drop(name):
            self.lanes[self.home[name]].queue(name)

    @rule(name=st.sampled_from(NAMES))
    def move(self, name: bytes) -> None:
        """The server ends the subscriptions of what leaves it and answers the commands under way with errors."""
        old = self.home[name]
        self.home[name] = 1 - old
        self.holds[old].discard(name)
        self.wires[old] = deque((word, one) for word, one in self.wires[old] if one != name)
        self.lanes[old].leave(name)
        if name in self.channels.wanted:
            self.channels.lost(name)
            self.lanes[1 - old].queue(name)

    @rule(number=st.sampled_from([0, 1]))
    def flush(self, number: int) -> None:
        for word, *names in self.lanes[number].commands():
            self.wires[number].extend((word, name) for name in names)

    @precondition(lambda self: any(self.wires))
    @rule(number=st.sampled_from([0, 1]))
    def confirm(self, number: int) -> None:
        if not self.wires[number]:
            number = 1 - number
        word, name = self.wires[number].popleft()
        if word == b"SUBSCRIBE":
            self.holds[number].add(name)
        else:
            self.holds[number].discard(name)
        assert self.lanes[number].confirmed(name)

    @rule(number=st.sampled_from([0, 1]))
    def reconnect(self, number: int) -> None:
        self.wires[number].clear()
        self.holds[number].clear()
        self.lanes[number].reset([name for name in self.channels.wanted if self.home[name] == number])

    @invariant()
    def live_is_true(self) -> None:
        for name in NAMES:
            if self.channels.wait([name], lambda: None) is None:
                assert name in self.holds[self.home[name]]
                assert name in self.channels.wanted

    @invariant()
    def waits_end_in_time(self) -> None:
        if all(lane.settled for lane in self.lanes):
            assert set.union(*self.holds) == set(self.channels.wanted)
            assert all(ended[0] for _, ended in self.waits)


TestServer = Server.TestCase
