"""The AsyncAPI document names every message, field, error and close code of PROTOCOL.md, and nothing else."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from gateway.protocol import codec, messages, schema
from gateway.protocol.schema import Mismatch, check, document, names

CONTRACT = (Path(schema.__file__).parent / "PROTOCOL.md").read_text()
EVENT = {
    "specversion": "1.0",
    "id": "a-1",
    "source": "/agencies/mvd",
    "type": "gov.notice.sent",
    "time": "2026-03-01T09:30:00Z",
    "account": "42",
    "data": {"title": "Готово", "text": "…"},
    "recordedtime": "2026-03-01T09:30:00.125Z",
}


def table(heading: str) -> list[list[str]]:
    """The cells of the first table under a heading of the contract, without its head."""
    section = re.split(r"^#+ ", CONTRACT, flags=re.MULTILINE)
    text = next(part for part in section if part.split("\n")[0].endswith(heading))
    rows = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]


def fields(cell: str) -> dict[str, bool]:
    """Field name -> required, from a cell such as `feed`, `resume?` (what stands in brackets are values)."""
    cell = re.sub(r"\([^)]*\)", "", cell)
    found: dict[str, bool] = {}
    for name in re.findall(r"`([a-z_]+\??)[:`]", cell):
        found[name.rstrip("?")] = not name.endswith("?")
    return found


def contracts(heading: str) -> dict[str, dict[str, bool]]:
    out: dict[str, dict[str, bool]] = {}
    for row in table(heading):
        kinds = re.findall(r"`([a-z]+)`", row[0])
        halves = row[1].split(" / ") if len(kinds) > 1 and " / " in row[1] else [row[1]] * len(kinds)
        for kind, half in zip(kinds, halves, strict=True):
            out[kind] = fields(half)
    return out


def documented(direction: schema.Direction) -> dict[str, dict[str, bool]]:
    out = {}
    for t, name in names(direction).items():
        made = document()["components"]["schemas"][name]
        assert made["properties"]["t"] == {"const": t}
        assert made["required"][0] == "t"
        out[t] = {key: key in made["required"] for key in made["properties"] if key not in ("t", "ref")}
    return out


def test_what_devices_say_is_the_contracts_table() -> None:
    expected = contracts("From the device")
    # `resume?` stands in the row that the two share and means `subscribe`.
    del expected["unsubscribe"]["resume"]
    assert documented("device") == expected


def test_what_the_gateway_says_is_the_contracts_table() -> None:
    expected = contracts("From the gateway")
    # "as an item of `welcome.feeds`"
    expected["subscribed"] = dict.fromkeys(("feed", "epoch", "head", "from"), True)
    assert documented("gateway") == expected


def test_every_close_code_is_there() -> None:
    rows = {row[0]: row[1] for row in table("Close codes") if row[0].isdigit()}
    written = document()["channels"]["socket"]["x-close-codes"]
    assert {code: entry["name"] for code, entry in written.items()} == rows
    assert {code: entry["reconnect"] for code, entry in written.items()} == {code: code[1] == "5" for code in rows}


def test_the_values_of_the_contract_are_the_documents() -> None:
    schemas = document()["components"]["schemas"]

    def values(heading: str, t: str, name: str) -> list[str]:
        cell = next(row for row in table(heading) if f"`{t}`" in row[0])
        listed = re.search(rf"`{name}` \(([^)]*)\)", cell[1])
        return re.findall(r"`([a-z_]+)`", listed[1] if listed else cell[2])

    assert schemas["Mode"]["enum"] == values("From the device", "mode", "mode")
    assert schemas["GatewayResync"]["properties"]["reason"]["enum"] == values("From the gateway", "resync", "reason")
    assert schemas["GatewayRefresh"]["properties"]["status"]["enum"] == values("From the gateway", "refresh", "status")
    assert schemas["GatewayError"]["properties"]["code"]["enum"] == values("From the gateway", "error", "code")


def test_subprotocols_and_limits_are_those_of_the_code() -> None:
    assert set(document()["channels"]["socket"]["x-subprotocols"]) == set(codec.by_subprotocol)
    schemas = document()["components"]["schemas"]
    assert schemas["Offset"]["maximum"] == codec.MAX_INTEGER
    assert schemas["Offsets"]["maxItems"] == messages.MAX_SEEN
    assert schemas["Token"]["maxLength"] == messages.MAX_TOKEN
    assert schemas["Epoch"]["maxLength"] == messages.MAX_EPOCH
    assert schemas["Source"]["maxLength"] == messages.MAX_SOURCE
    assert schemas["DeviceHello"]["properties"]["agent"]["maxLength"] == messages.MAX_AGENT
    assert schemas["GatewayBatch"]["properties"]["events"]["maxItems"] == codec.BATCH_EVENTS


def test_every_reference_leads_somewhere_and_hides_nothing() -> None:
    def walk(value: Any) -> None:
        if isinstance(value, dict):
            if "$ref" in value:
                assert set(value) == {"$ref"}  # draft 7 ignores whatever stands beside it
                target: Any = document()
                for part in value["$ref"].removeprefix("#/").split("/"):
                    target = target[part]
            for member in value.values():
                walk(member)
        elif isinstance(value, list):
            for member in value:
                walk(member)

    walk(document())


def test_every_message_belongs_to_an_operation() -> None:
    doc = document()
    used = {
        ref["$ref"].rpartition("/")[2]
        for operation in doc["operations"].values()
        for ref in operation["messages"] + operation.get("reply", {}).get("messages", [])
    }
    assert used == set(doc["components"]["messages"]) == set(doc["channels"]["socket"]["messages"])


@pytest.mark.parametrize("kind", [codec.JSON, codec.MSGPACK], ids=lambda kind: kind.subprotocol)
@pytest.mark.parametrize("event", [EVENT, None])
def test_events_and_batches_are_documented(kind: codec.Codec, event: dict[str, Any] | None) -> None:
    raw = None if event is None else json.dumps(event, ensure_ascii=False).encode()
    frames = [kind.event_frame("account:42", 7, raw), *kind.batch_frames("account:42", [(7, raw), (8, None)] * 80)]
    assert len(frames) == 3
    for frame in frames:
        head = 2 if frame[1] < 126 else 4 if frame[1] == 126 else 10
        check("gateway", kind.read(frame[head:]))


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ([], "not a map"),
        ({}, "not a map"),
        ({"feed": "account:42", "t": "live"}, "not first"),
        ({"t": "hello"}, "no message is called 'hello'"),
        ({"t": "live", "feed": "x"}, "/feed"),
        ({"t": "live", "feed": "account:42", "offset": 1}, "/offset: not in the document"),
        ({"t": "renewed", "expires": "tomorrow"}, "/expires"),
        ({"t": "event", "feed": "account:42", "offset": 1, "event": {**EVENT, "recordedtime": 5}}, "/event"),
        ({"t": "batch", "feed": "account:42", "events": [[1]]}, "/events/0"),
        ({"t": "batch", "feed": "account:42", "events": [[1, None, 2]]}, "/events/0"),
        ({"t": "beat", "heads": {"x": 1}, "next": 25}, "/heads"),
    ],
)
def test_what_is_wrong_is_named(message: Any, words: str) -> None:
    with pytest.raises(Mismatch, match=re.escape(words)):
        check("gateway", message)
