"""What concerns all suites: the published documents are held against what the black-box suite saw on the wire.

The conformance tests import nothing of ours, so they only write down what they saw; the judgement is here.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.protocol import schema
from tests import openapi


@pytest.fixture(scope="session", autouse=True)
def documents_hold(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Every message and every HTTP answer that the gateway gave to the conformance tests is as documented."""
    journal = tmp_path_factory.mktemp("witness") / "wire.jsonl"
    os.environ["VESTNIK_WITNESS"] = str(journal)
    yield
    del os.environ["VESTNIK_WITNESS"]
    faults = sorted({fault for line in _lines(journal) if (fault := _fault(json.loads(line))) is not None})
    assert not faults, f"{len(faults)} kinds of faults, the first: " + "\n".join(faults[:5])


def _lines(journal: Path) -> Iterator[str]:
    if journal.exists():
        with journal.open(encoding="utf-8") as lines:
            yield from lines


def _fault(seen: dict[str, Any]) -> str | None:
    try:
        if "message" in seen:
            schema.check("gateway", seen["message"])
        else:
            openapi.check(*_exchange(seen))
    except (schema.Mismatch, openapi.Undocumented) as fault:
        return str(fault)
    return None


def _exchange(seen: dict[str, Any]) -> tuple[httpx.Request, httpx.Response]:
    given = seen["request"]
    request = httpx.Request(
        given["method"],
        "http://gateway" + given["path"],
        headers=[(name, value.encode()) for name, value in given["headers"]],
        content=given["body"].encode("latin-1"),
    )
    headers = {name: value for name, value in seen["headers"].items() if name != "transfer-encoding"}
    return request, httpx.Response(seen["status"], headers=headers, content=seen["body"].encode(), request=request)
