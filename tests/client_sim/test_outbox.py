"""What is asked for is sent until it is answered, always as the same."""

from pathlib import Path

import pytest

from client_sim.outbox import MOST, SEEN_AT_ONCE, Full, Outbox


def test_a_command_is_due_once_a_session_with_the_same_ref():
    box = Outbox()
    asked = box.put("refresh", source="/agencies/mvd")
    assert [command.messages() for command in box.due()] == [
        [{"t": "refresh", "ref": asked.ref, "source": "/agencies/mvd"}]
    ]
    assert box.due() == []
    box.session_ended()
    assert [command.ref for command in box.due()] == [asked.ref]


@pytest.mark.parametrize(
    ("t", "fields", "answer", "settled"),
    [
        ("refresh", {"source": "s"}, {"t": "refresh", "source": "s", "status": "accepted"}, False),
        ("refresh", {"source": "s"}, {"t": "refresh", "source": "s", "status": "done"}, True),
        ("refresh", {"source": "s"}, {"t": "refresh", "source": "s", "status": "cooldown"}, True),
        ("subscribe", {"feed": "f"}, {"t": "subscribed", "feed": "f"}, True),
        ("unsubscribe", {"feed": "f"}, {"t": "unsubscribed", "feed": "f"}, True),
        ("mode", {"mode": "saver"}, {"t": "mode", "mode": "saver"}, True),
        ("seen", {"feed": "f", "offsets": [1]}, {"t": "pong"}, True),
        ("seen", {"feed": "f", "offsets": [1]}, {"t": "error", "code": "invalid"}, True),
        ("refresh", {"source": "s"}, {"t": "error", "code": "unavailable"}, False),
        ("refresh", {"source": "s"}, {"t": "pong"}, False),
    ],
)
def test_what_settles_a_command(t, fields, answer, settled):
    box = Outbox()
    asked = box.put(t, **fields)
    assert box.answered(answer) is None  # of somebody else
    assert (box.answered({**answer, "ref": asked.ref}) is asked) == settled
    assert len(box) == (0 if settled else 1)


def test_seen_has_a_ping_behind_it_and_gathers_until_it_goes():
    box = Outbox()
    first = box.put("seen", feed="f", offsets=[3, 1])
    assert box.put("seen", feed="f", offsets=[2, 3]) is first
    assert box.put("seen", feed="g", offsets=[9]) is not first
    [command, _] = box.due()
    assert command.messages() == [
        {"t": "seen", "ref": first.ref, "feed": "f", "offsets": [1, 2, 3]},
        {"t": "ping", "ref": first.ref},
    ]
    assert box.put("seen", feed="f", offsets=[4]) is not first
    many = box.put("seen", feed="h", offsets=list(range(SEEN_AT_ONCE)))
    assert box.put("seen", feed="h", offsets=[SEEN_AT_ONCE]) is not many


def test_the_last_mode_counts():
    box = Outbox()
    box.put("mode", mode="saver")
    last = box.put("mode", mode="full")
    assert box.due() == [last]


def test_it_survives_a_restart_of_the_app(tmp_path: Path):
    path = tmp_path / "outbox.json"
    asked = Outbox(path).put("subscribe", feed="agency:fns")
    again = Outbox(path)
    [command] = again.due()
    assert (command.ref, command.t, command.fields) == (asked.ref, "subscribe", {"feed": "agency:fns"})
    again.answered({"t": "subscribed", "feed": "agency:fns", "ref": asked.ref})
    assert not len(Outbox(path))


def test_it_is_bounded():
    box = Outbox()
    box.put("seen", feed="f", offsets=[1])
    for number in range(MOST - 1):
        box.put("refresh", source=f"/agencies/a{number}")
    box.put("refresh", source="/agencies/last")  # in place of the `seen`
    with pytest.raises(Full):
        box.put("refresh", source="/agencies/more")
    assert len(box) == MOST
