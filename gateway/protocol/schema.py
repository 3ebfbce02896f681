"""Holds messages against `asyncapi.json`: for every test suite and for tools. The gateway itself never needs it.

A message of the gateway may carry nothing that the document does not name; one of a device may, because the gateway
ignores what it does not know.
"""

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from jsonschema_rs import Draft7Validator

Direction = Literal["device", "gateway"]  # who says it


class Mismatch(AssertionError):
    """The message is not what the document says. The text names every fault with its JSON pointer."""


@cache
def document() -> dict[str, Any]:
    """The AsyncAPI document, read once. Not to be changed."""
    parsed: dict[str, Any] = json.loads(files(__package__).joinpath("asyncapi.json").read_bytes())
    return parsed


def names(direction: Direction) -> dict[str, str]:
    """The `t` of every message that this side may say, with the name of its schema."""
    return {
        message["name"]: name
        for name, message in document()["components"]["messages"].items()
        if name.startswith(direction.capitalize())
    }


def check(direction: Direction, message: Mapping[str, Any]) -> None:
    """Raises Mismatch with all faults at once when `message`, decoded, is not as documented."""
    if not isinstance(message, dict) or not message:
        raise Mismatch(f"{direction}: not a map: {message!r}")
    if direction == "gateway" and next(iter(message)) != "t":
        raise Mismatch(f"{direction}: `t` is not first: {message!r}")
    name = names(direction).get(str(message.get("t")))
    if name is None:
        raise Mismatch(f"{direction}: no message is called {message.get('t')!r}")
    errors = _validator(name).iter_errors(message)
    faults = [f"/{'/'.join(map(str, error.instance_path))}: {error.message}" for error in errors]
    if direction == "gateway":
        known = document()["components"]["schemas"][name]["properties"]
        faults += [f"/{key}: not in the document" for key in message if key not in known]
    if faults:
        raise Mismatch(f"{name}: {'; '.join(faults)} in {message!r}")


@cache
def _validator(name: str) -> Draft7Validator:
    """AsyncAPI's own schemas are draft 7; a `$ref` beside other keywords would hide them, hence `allOf`."""
    schema = {"allOf": [{"$ref": f"#/components/schemas/{name}"}], "components": document()["components"]}
    return Draft7Validator(schema, validate_formats=True)
