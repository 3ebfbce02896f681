"""The pages' files over HTTP: their headers, and who is offered a sample account."""

import gzip
from pathlib import Path

import httpx
import pytest

from gateway import web
from gateway.errors import ConfigError
from gateway.settings import load
from tests.running import Running, here, running

__all__ = ["here"]


def browser(here: Running) -> httpx.AsyncClient:
    """Asks as browsers do; what it asks for is no part of the OpenAPI document."""
    transport = httpx.ASGITransport(here.gateway.asgi, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://gateway")


@pytest.mark.parametrize(
    "path", ["/", "/ops", "/static/app.js", "/static/ops.js", "/static/style.css", "/static/icon.svg", "/favicon.ico"]
)
async def test_a_file_comes_with_its_policy_and_only_once(here: Running, path: str):
    async with browser(here) as http:
        answer = await http.get(path)
        assert answer.status_code == 200
        assert answer.headers["content-security-policy"] == web.POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-encoding"] == "gzip"
        again = await http.get(path, headers={"if-none-match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        plain = await http.get(path, headers={"accept-encoding": "identity"})
        assert "content-encoding" not in plain.headers
        assert plain.content == answer.content
        assert plain.headers["etag"] != answer.headers["etag"]
        assert plain.headers["vary"] == "Accept-Encoding"


async def test_there_is_nothing_but_the_files(here: Running):
    async with browser(here) as http:
        for path in ("/static/nothing.js", "/static/..%2f__init__.py", "/static/", "/index.html"):
            answer = await http.get(path)
            assert answer.status_code == 404
            assert answer.headers["content-type"] == "application/problem+json"


async def test_files_are_packed_alike_everywhere():
    """Else two gateways behind one address would not agree about an `ETag`."""
    place = Path(web.__file__).with_name("static") / "app.js"
    file = web.File.read(place)
    assert gzip.decompress(file.packed) == file.content
    assert file == web.File.read(place)


async def test_nobody_is_offered_a_sample_account_unless_it_is_set(here: Running):
    async with browser(here) as http:
        assert (await http.get("/demo")).json() == {"accounts": [], "operator": None}


async def test_a_sample_account_comes_with_a_token_that_is_good(tmp_path: Path):
    async with running(tmp_path, demo=("anna", "boris")) as here, browser(here) as http:
        answer = await http.get("/demo")
        assert answer.headers["cache-control"] == "no-store"
        accounts = {one["account"]: one["token"] for one in answer.json()["accounts"]}
        assert list(accounts) == ["anna", "boris"]
        headers = {"authorization": f"Bearer {accounts['anna']}"}
        assert (await http.get("/v1/snapshot", headers=headers)).status_code == 200
        assert (await http.get("/v1/feeds/ops:figures/events", headers=headers)).status_code == 404
        headers = {"authorization": f"Bearer {answer.json()['operator']['token']}"}
        assert (await http.get("/v1/feeds/ops:figures/events", headers=headers)).status_code == 200


def test_sample_accounts_and_an_identity_provider_exclude_each_other(tmp_path: Path):
    with pytest.raises(ConfigError, match="VESTNIK_DEMO"):
        load(env_file=None, data=tmp_path, demo="anna", jwks=str(tmp_path / "keys.json"))
    with pytest.raises(ConfigError, match="VESTNIK_DEMO"):
        load(env_file=None, data=tmp_path, demo="an na")
