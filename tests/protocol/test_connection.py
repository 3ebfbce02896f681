"""The table of a connection: every move, every move that is not, and the picture of it."""

from pathlib import Path

import pytest

from gateway.protocol import connection
from gateway.protocol.connection import TABLE, Event, IllegalMove, State, diagram, step


def walk(*events: Event, state: State = State.OPENING) -> State:
    for event in events:
        state = step(state, event)
    return state


OPEN = (Event.ACCEPTED, Event.HELLO, Event.JOINED)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_what_the_table_has_not_is_refused(state: State, event: Event) -> None:
    if event in TABLE[state]:
        assert step(state, event) is TABLE[state][event]
        return
    with pytest.raises(IllegalMove) as caught:
        step(state, event)
    assert (caught.value.state, caught.value.event) == (state, event)


def test_a_whole_life() -> None:
    assert walk(*OPEN, Event.MESSAGE) is State.LIVE
    assert walk(*OPEN, Event.DRAIN, Event.MESSAGE, Event.CLOSE_RECEIVED, Event.LOST) is State.CLOSED
    assert walk(*OPEN, Event.CLOSE_SENT, Event.MESSAGE, Event.CLOSE_RECEIVED, Event.LOST) is State.CLOSED


def test_the_first_message_is_hello() -> None:
    with pytest.raises(IllegalMove):
        walk(Event.ACCEPTED, Event.MESSAGE)


def test_hello_comes_once() -> None:
    with pytest.raises(IllegalMove):
        walk(*OPEN, Event.HELLO)


def test_a_close_is_sent_once() -> None:
    with pytest.raises(IllegalMove):
        walk(*OPEN, Event.CLOSE_SENT, Event.CLOSE_SENT)


def test_the_peers_answer_is_not_awaited_for_ever() -> None:
    assert walk(*OPEN, Event.CLOSE_SENT, Event.DEADLINE, Event.LOST) is State.CLOSED


@pytest.mark.parametrize("state", [state for state in State if state is not State.CLOSED])
def test_every_state_survives_the_loss_of_the_transport_and_is_reachable(state: State) -> None:
    assert step(state, Event.LOST) is State.CLOSED
    reached = {State.OPENING}
    for _ in State:
        reached |= {after for each in reached for after in TABLE[each].values()}
    assert state in reached


def test_the_picture_in_the_readme_is_the_table() -> None:
    readme = (Path(connection.__file__).parent / "README.md").read_text()
    assert f"```mermaid\n{diagram()}\n```" in readme
