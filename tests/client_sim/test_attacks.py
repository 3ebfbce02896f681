"""What attacks send breaks just the rule that they name: checked against the gateway's own readers."""

import re
from random import Random

import orjson
import pytest

from client_sim.attacks import ATTACKS
from gateway.errors import Close, Refused
from gateway.protocol import messages
from gateway.protocol.codec import JSON
from gateway.protocol.frames import FrameError, Parser

HELLO = {"t": "hello", "token": "a" * 200, "device": "d1"}
FEED = "account:anna"


def _ends(data: bytes) -> str:
    """What a gateway makes of the bytes after a hello: how it would answer, as far as it can tell by reading."""
    try:
        for _, payload in Parser().feed(data):
            try:
                message = JSON.decode(payload)
                messages.parse(message)
            except Refused as refused:
                return f"error {refused.code}"
    except (FrameError, Close) as close:
        return f"closed {close.code}"
    return "read"


FRAMED = [attack for attack in ATTACKS.values() if attack.moment != "connected"]


@pytest.mark.parametrize("attack", FRAMED, ids=lambda one: one.name)
def test_the_gateways_readers_find_the_fault(attack):
    for seed in range(20):
        outcome = _ends(attack.make(Random(seed), HELLO, FEED))
        # What can be read is wrong by its meaning or its number: sessions and the clock decide.
        assert outcome in attack.allowed or outcome == "read", attack.name


def test_outcomes_are_words_of_the_devices():
    for attack in ATTACKS.values():
        assert all(re.fullmatch(r"closed( \d{4})?|error \w+|refused \d{3}|nothing", word) for word in attack.allowed)
        assert attack.allowed
        assert attack.rule


def test_a_forged_token_differs_from_the_good_one():
    for seed in range(50):
        frame = ATTACKS["wrong_token"].make(Random(seed), HELLO, FEED)
        [(_, payload)] = Parser().feed(frame)
        assert orjson.loads(payload)["token"] != HELLO["token"]
