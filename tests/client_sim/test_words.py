"""Both languages say the same things."""

import string

from client_sim.agencies import LABELS
from client_sim.words import EN, RU


def fields(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def test_every_word_is_in_both_languages_with_the_same_fields():
    assert set(RU) == set(EN)
    assert {word: fields(RU[word]) for word in RU} == {word: fields(EN[word]) for word in EN}


def test_every_status_has_a_word():
    assert set(LABELS) <= set(EN)
