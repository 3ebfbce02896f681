"""Event types: one JSON file each in this folder (contract, section 2, "More types are added by registering").

`README.md` beside this file says how to add one.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import jsonschema_rs

from gateway import rfc3339
from gateway.errors import ConfigError
from gateway.strict import MAX_FAULTS, pointer

PRIORITIES = ("urgent", "high", "normal", "bulk")  # the index is `Draft.priority` and `Row.priority`

STATUSES: Mapping[str, str] = MappingProxyType(
    {
        "processing": "В обработке",
        "checking": "На проверке",
        "awaiting_confirmation": "Ожидание подтверждения",
        "action_required": "Требуется действие",
        "approved": "Одобрено",
        "rejected": "Отклонено",
        "done": "Готово",
        "cancelled": "Отменено",
    }
)
"""`data.status` of `gov.status.changed`, with the words that people read."""

_FILE_SCHEMA = {
    "type": "object",
    "required": ["name", "audience", "priority", "senders", "titles", "data"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z0-9]+(\\.[a-z0-9]+)+$"},
        "audience": {"enum": ["personal", "public", "ops"]},
        "priority": {"enum": list(PRIORITIES)},
        "senders": {"enum": ["agencies", "gateway"]},
        "titles": {
            "type": "object",
            "required": ["ru", "en"],
            "additionalProperties": {"type": "string", "minLength": 1},
        },
        "data": {"type": "object", "required": ["type"], "properties": {"type": {"const": "object"}}},
    },
}


@dataclass(frozen=True, slots=True)
class EventType:
    """A registered type: who it is for, how urgent it is, who may send it, and the JSON Schema of its `data`."""

    name: str
    audience: Literal["personal", "public", "ops"]
    priority: int  # index in PRIORITIES
    senders: Literal["agencies", "gateway"]
    titles: Mapping[str, str]  # by language: `ru`, `en`
    schema: Mapping[str, Any]
    validator: jsonschema_rs.Validator

    def faults(self, data: object) -> list[dict[str, str]]:
        """All faults of `data` as `{"pointer", "detail"}` from the event's root, at most `MAX_FAULTS`.

        The details never repeat what the sender wrote.
        """
        if self.validator.is_valid(data):
            return []
        return [error for error, _ in zip(self._errors(data), range(MAX_FAULTS), strict=False)]

    def _errors(self, data: object) -> Iterator[dict[str, str]]:
        for error in self.validator.iter_errors(data):
            path: list[str | int] = ["data", *error.instance_path]
            kind = error.kind
            if isinstance(kind, jsonschema_rs.ValidationErrorKind.Required):
                yield {"pointer": pointer(*path, kind.property), "detail": "is required"}
            elif isinstance(kind, jsonschema_rs.ValidationErrorKind.Enum):
                yield {"pointer": pointer(*path), "detail": f"must be one of {', '.join(map(str, kind.options))}"}
            else:
                yield {"pointer": pointer(*path), "detail": self._wanted(error.schema_path) or error.message}

    def _wanted(self, schema_path: list[str | int]) -> str:
        """What the failing part of the schema says about itself in `description`."""
        part: Any = self.schema
        try:
            for step in schema_path[:-1]:
                part = part[step]
        except (KeyError, IndexError, TypeError):  # the path went through a $ref
            return ""
        description = part.get("description") if isinstance(part, dict) else None
        return f"must be {description}" if description else ""


@cache
def registry() -> Mapping[str, EventType]:
    """The types of this folder by name. Raises ConfigError like `load`."""
    return load(Path(__file__).parent)


def load(folder: Path) -> Mapping[str, EventType]:
    """Every `*.json` of a folder as a type. Raises ConfigError, naming the file, when one is not right."""
    found = [_load_file(path) for path in sorted(folder.glob("*.json"))]
    return MappingProxyType({kind.name: kind for kind in found})


def _load_file(path: Path) -> EventType:
    try:
        content = json.loads(path.read_text("utf-8"))
        jsonschema_rs.validate(_FILE_SCHEMA, content)
        validator = jsonschema_rs.validator_for(
            content["data"],
            # Ours instead of the library's: what is accepted here must be readable as a time everywhere else.
            formats={"date-time": rfc3339.is_time, "date": rfc3339.is_date},
            validate_formats=True,
            ignore_unknown_formats=False,
            mask="the value",
            offline=True,
        )
    except (OSError, ValueError) as error:  # not readable, not JSON, not a type file, not a JSON Schema
        reason = str(error).splitlines()[0]
        raise ConfigError(f"The event type file {path.name} is wrong: {reason}.") from error
    if path.stem != content["name"]:
        raise ConfigError(f"The event type file {path.name} must be called {content['name']}.json.")
    return EventType(
        name=content["name"],
        audience=content["audience"],
        priority=PRIORITIES.index(content["priority"]),
        senders=content["senders"],
        titles=content["titles"],
        schema=content["data"],
        validator=validator,
    )
