"""Close codes: the same as the contract's table, and the range decides."""

import re
from pathlib import Path

import pytest

from gateway.protocol import codes

CONTRACT = Path(codes.__file__).parent / "PROTOCOL.md"


def test_they_are_the_contracts() -> None:
    rows = re.findall(r"^\| (4\d{3}) \| (.+?) \| (.*?) ?\|$", CONTRACT.read_text(), re.MULTILINE)
    assert [(str(code.code), code.name, code.change) for code in codes.by_code.values()] == rows


def test_every_constant_is_in_the_table() -> None:
    constants = {value for name, value in vars(codes).items() if name.isupper() and isinstance(value, int)}
    assert constants == set(codes.by_code)


@pytest.mark.parametrize(
    "code", [None, 1000, 1001, 1006, 1011, 1012, 1013, 1015, 3000, 4000, 4500, 4503, 4512, 4529, 4599]
)
def test_these_reconnect(code: int | None) -> None:
    assert codes.reconnect(code)


@pytest.mark.parametrize("code", [4400, 4401, 4403, 4409, 4410, 4426, 4499])
def test_these_stop(code: int) -> None:
    assert not codes.reconnect(code)


def test_a_code_knows_by_itself() -> None:
    assert {code.code for code in codes.by_code.values() if code.reconnect} == {4503, 4508, 4512, 4529}
