"""Tokens, keys and revocations. PyJWT is the oracle: what it signs is taken, what it takes of ours is the same."""

import asyncio
import base64
import contextlib
import json
import multiprocessing
import os
import stat
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jwt
import orjson
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import Close, ConfigError, Problem
from gateway.metrics import Counts
from gateway.settings import load
from gateway.store.base import Revocation
from gateway.tokens import (
    MAX_TOKEN_CHARS,
    Claims,
    KeySet,
    KeyWatch,
    LocalKey,
    Revocations,
    Verifier,
    bearer,
    parse_jwks,
    problem,
)

NOW = 1_800_000_000.0
PRIVATE = {
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
    "RS256": rsa.generate_private_key(65537, 2048),
}
GOOD = {"sub": "acc-1", "aud": "vestnik", "iat": NOW - 10, "exp": NOW + 600}


def jwk(alg, kid, /, **more):
    document = json.loads(jwt.algorithms.get_default_algorithms()[alg].to_jwk(PRIVATE[alg].public_key()))
    return document | ({"kid": kid} if kid is not None else {}) | more


def jwks(*items):
    return orjson.dumps({"keys": list(items)})


ALL = jwks(*(jwk(alg, f"k-{alg}") for alg in PRIVATE))


def sign(payload, alg="ES256", kid="default", **headers):
    kid = f"k-{alg}" if kid == "default" else kid
    if kid is not None:
        headers["kid"] = kid
    return jwt.encode(payload, PRIVATE[alg], algorithm=alg, headers=headers)


def raw(header, payload, signature=b"x" * 64):
    def part(value):
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        return base64.urlsafe_b64encode(content).rstrip(b"=").decode()

    return f"{part(header)}.{part(payload)}.{part(signature)}"


@pytest.fixture
def verifier():
    return Verifier(parse_jwks(ALL))


def code(verifier, token, now=NOW, device=None):
    with pytest.raises(Close) as raised:
        verifier.verify(token, now, device)
    assert len(raised.value.reason.encode()) <= 123
    return raised.value.code


TOO_LONG = ["x" * (MAX_TOKEN_CHARS + 1), "W1tb" * 2000 + ".a.a"]

# The check


@pytest.mark.parametrize("alg", PRIVATE)
def test_a_good_token_of_each_algorithm(verifier, alg):
    token = sign(GOOD | {"device": "phone", "sid": "s1", "scope": "read write"}, alg)
    claims = Claims("acc-1", "phone", "s1", frozenset({"read", "write"}), NOW - 10, NOW + 600)
    assert verifier.verify(token, NOW) == claims
    assert verifier.verify(token, NOW, "phone") is verifier.verify(token, NOW)


def test_optional_claims_may_be_missing_and_the_audience_a_list(verifier):
    claims = verifier.verify(sign(GOOD | {"aud": ["other", "vestnik"], "email": "x"}), NOW)
    assert (claims.device, claims.sid, claims.scopes) == (None, None, frozenset())


@pytest.mark.parametrize(
    "change",
    [
        {"sub": None},
        {"sub": ""},
        {"sub": "a b"},
        {"sub": "a" * 65},
        {"sub": "a\n"},
        {"sub": "я"},
        {"sub": 5},
        {"aud": None},
        {"aud": "other"},
        {"aud": []},
        {"aud": ["other"]},
        {"aud": {"vestnik": 1}},
        {"iat": None},
        {"iat": "1"},
        {"iat": True},
        {"iat": NOW + 6},
        {"iat": -1},
        {"exp": None},
        {"exp": "2030-01-01"},
        {"exp": 1e300},
        {"exp": NOW},
        {"exp": NOW - 1},
        {"nbf": NOW + 6},
        {"nbf": "later"},
        {"device": 5},
        {"device": "a/b"},
        {"device": ""},
        {"sid": ""},
        {"sid": ["s"]},
        {"scope": ["read"]},
    ],
)
def test_a_wrong_claim_is_4401_though_the_signature_is_good(verifier, change):
    payload = {name: value for name, value in (GOOD | change).items() if value is not None}
    header = {"alg": "ES256", "kid": "k-ES256"}
    token = raw(header, payload, b"")
    content = token.rpartition(".")[0]
    signature = jwt.algorithms.ECAlgorithm(jwt.algorithms.ECAlgorithm.SHA256, ec.SECP256R1).sign(
        content.encode(), PRIVATE["ES256"]
    )
    token = f"{content}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"
    assert code(verifier, token) == 4401


def test_a_provider_whose_clock_is_a_little_ahead(verifier):
    assert verifier.verify(sign(GOOD | {"iat": NOW + 5, "nbf": NOW + 5}), NOW).iat == NOW + 5


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "none", "kid": "k-ES256"},
        {"alg": "None", "kid": "k-ES256"},
        {"kid": "k-ES256"},
        {"alg": "HS256", "kid": "k-RS256"},
        {"alg": "ES384", "kid": "k-ES256"},
        {"alg": "RS256", "kid": "k-ES256"},
        {"alg": "ES256", "kid": "k-RS256"},
        {"alg": ["ES256"], "kid": "k-ES256"},
        {"alg": "ES256", "kid": 5},
        {"alg": "ES256", "kid": ["k-ES256"]},
        {"alg": "ES256", "kid": "nobody"},
        {"alg": "ES256"},
        {"alg": "ES256", "kid": "k-ES256", "crit": ["b64"], "b64": False},
        {"alg": "ES256", "kid": "k-ES256"},
        [],
        "text",
    ],
)
def test_a_wrong_header_or_signature_is_4401(verifier, header):
    assert code(verifier, raw(header, GOOD)) == 4401


@pytest.mark.parametrize("length", [0, 1, 63, 65, 72, 256])
@pytest.mark.parametrize("alg", PRIVATE)
def test_a_signature_of_any_length_is_refused(verifier, alg, length):
    assert code(verifier, raw({"alg": alg, "kid": f"k-{alg}"}, GOOD, os.urandom(length))) == 4401


def test_a_public_key_is_no_shared_secret(verifier):
    """RFC 8725, section 2.1: an RSA key's text used as an HMAC secret."""
    pem = (
        PRIVATE["RS256"]
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    import hashlib
    import hmac

    content = raw({"alg": "HS256", "kid": "k-RS256"}, GOOD).rpartition(".")[0]
    proof = base64.urlsafe_b64encode(hmac.digest(pem, content.encode(), hashlib.sha256)).rstrip(b"=").decode()
    assert code(verifier, f"{content}.{proof}") == 4401


def test_each_changed_character_is_noticed(verifier):
    token = sign(GOOD)
    for place in range(0, len(token) - 1, 7):  # the last one carries unused bits
        other = "A" if token[place] != "A" else "B"
        assert code(verifier, token[:place] + other + token[place + 1 :]) == 4401


@pytest.mark.parametrize(
    "token",
    [None, 5, b"a.b.c", [], {}, "", ".", "..", "a.b", "a.b.c.d", "a.b.c", "é.b.c", "\ud800", "a.b.c\n", *TOO_LONG],
)
def test_what_is_no_token(verifier, token):
    assert code(verifier, token) == 4401


def test_padding_and_the_other_alphabet_are_refused(verifier):
    token = sign(GOOD)
    for wrong in (token + "=", token + "==", token.replace(".", "=.", 1), token[:-2] + "+/"):
        assert code(verifier, wrong) == 4401


def test_deep_json_is_refused(verifier):
    assert code(verifier, raw(b"[" * 3000, GOOD)) == 4401
    assert code(verifier, raw({"alg": "ES256", "kid": "k-ES256"}, b'{"a":' * 900)) == 4401


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_names = st.sampled_from(["alg", "kid", "crit", "sub", "aud", "iat", "exp", "nbf", "device", "sid", "scope"])
_VERIFIER = Verifier(parse_jwks(ALL))


@given(st.one_of(st.text(), st.binary(), st.from_regex(r"[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*"), _json))
def test_garbage_raises_close_only(token):
    with pytest.raises(Close):
        _VERIFIER.verify(token, NOW)


@given(
    st.dictionaries(_names, _json),
    st.dictionaries(_names, st.one_of(_json, st.sampled_from([NOW, NOW + 5, "vestnik", "a"]))),
)
def test_signed_garbage_raises_close_only(header, payload):
    """A provider with a bug, or our own reading of it: whatever is under a good signature is Claims or Close."""
    header = {**{name: value for name, value in header.items() if name == "sid"}, "alg": "EdDSA", "kid": "k-EdDSA"}
    content = raw(header, json.dumps(payload).encode("utf-8", "replace"), b"").rpartition(".")[0]
    proof = base64.urlsafe_b64encode(PRIVATE["EdDSA"].sign(content.encode())).rstrip(b"=").decode()
    with contextlib.suppress(Close):
        assert isinstance(_VERIFIER.verify(f"{content}.{proof}", NOW), Claims)


# What is remembered


def test_end_device_and_revocation_are_checked_at_each_use(verifier):
    token = sign(GOOD | {"device": "phone"})
    verifier.verify(token, NOW, "phone")
    assert code(verifier, token, NOW, "tablet") == 4403
    assert code(verifier, token, NOW + 600) == 4401
    verifier.revocations.replace([Revocation("sub", "acc-1", NOW - 10)])
    assert code(verifier, token, NOW, "phone") == 4410
    verifier.revocations.replace([Revocation("sub", "acc-1", NOW - 11)])
    verifier.verify(token, NOW, "phone")


def test_a_token_of_a_withdrawn_key_is_refused_though_it_was_good(verifier):
    token = sign(GOOD)
    verifier.verify(token, NOW)
    verifier.use(parse_jwks(jwks(jwk("EdDSA", "k-EdDSA"), jwk("RS256", "k-RS256"))))
    assert code(verifier, token) == 4401


def test_a_key_that_takes_the_kid_of_another_takes_no_old_tokens(verifier):
    token = sign(GOOD)
    verifier.verify(token, NOW)
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    item = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(other)) | {"kid": "k-ES256"}
    verifier.use(parse_jwks(jwks(item)))
    assert code(verifier, token) == 4401


def test_counts_and_the_bound_of_memory():
    counts = Counts()
    verifier = Verifier(parse_jwks(ALL), counts=counts, remember=2)
    one, two, three = (sign(GOOD | {"sub": name}) for name in ("a", "b", "c"))
    for token in (one, two, one, three, one, two):  # two, the longest unused, was forgotten for three
        verifier.verify(token, NOW)
    assert (counts.tokens_verified, counts.tokens_cached) == (4, 2)
    assert code(verifier, "x") == 4401
    assert counts.tokens_refused == {4401: 1}


def test_headers_of_strangers_do_not_pile_up(verifier):
    for number in range(200):
        verifier.verify(sign(GOOD, n=number), NOW)
        code(verifier, raw({"alg": "ES256", "kid": f"stranger-{number}"}, GOOD))
    assert len(verifier._heads) <= 64


# Key sets


def test_a_single_key_may_go_without_kid_several_may_not(verifier):
    single = Verifier(parse_jwks(jwks(jwk("ES256", None))))
    assert single.verify(sign(GOOD, kid=None), NOW).account == "acc-1"
    assert code(single, sign(GOOD, "EdDSA", kid=None)) == 4401
    assert Verifier(parse_jwks(jwks(jwk("ES256", "named")))).verify(sign(GOOD, kid=None), NOW)
    assert code(verifier, sign(GOOD, kid=None)) == 4401


@pytest.mark.parametrize(
    "useless",
    [
        {"kty": "oct", "k": "c2VjcmV0", "kid": "h"},
        jwk("ES256", "enc", use="enc"),
        jwk("ES256", "ops", key_ops=["encrypt"]),
        jwk("ES256", "alg", alg="ES384"),
        jwk("RS256", "pss", alg="PS256"),
        jwk("ES256", 5),
        jwk("ES256", "curve", crv="P-384"),
        jwk("ES256", "off", x="AAAA"),
        jwk("ES256", "text", x=5),
        jwk("EdDSA", "short", x="AAAA"),
        jwk("EdDSA", "x448", crv="X25519"),
        json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(rsa.generate_private_key(65537, 1024).public_key())),
        {"kty": "RSA", "n": "AQAB"},
        {"kty": []},
        {},
        None,
        "key",
    ],
)
def test_useless_keys_are_ignored(useless):
    assert len(parse_jwks(jwks(useless, jwk("ES256", "good")))) == 1
    with pytest.raises(ValueError, match="no usable key"):
        parse_jwks(jwks(useless))


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"keys":{}}', b'{"keys":[]}', b"\xff", b" " * 2_000_000]
)
def test_what_is_no_key_set(content):
    with pytest.raises(ValueError, match=r".+"):
        parse_jwks(content)


@given(_json)
def test_a_key_set_of_garbage_raises_value_error_only(value):
    with pytest.raises(ValueError, match=r".+"):
        parse_jwks(json.dumps({"keys": value}).encode("utf-8", "replace"))


def test_without_any_key_it_is_ours_to_come_back():
    assert code(Verifier(), sign(GOOD)) == 4503
    assert not Verifier().ready


# Revocations


def test_what_a_revocation_refuses():
    claims = Claims("acc", "phone", "s1", frozenset(), 100.0, 200.0)
    other = Claims("other", None, None, frozenset(), 100.0, 200.0)

    def refused(kind, value, before=100.0, claims=claims, device=None):
        return Revocations([Revocation(kind, value, before)]).refuses(claims, device)

    assert refused("sub", "acc")
    assert not refused("sub", "acc", 99.9)
    assert not refused("sub", "phone")
    assert not refused("sub", "acc", claims=other)
    assert refused("sid", "s1")
    assert not refused("sid", "acc")
    assert not refused("sid", "s1", claims=other)
    assert refused("device", "acc/phone")
    assert refused("device", "phone")
    assert not refused("device", "other/phone")
    assert not refused("device", "phone", claims=other)
    assert refused("device", "phone", claims=other, device="phone"), "the device of the hello counts"
    assert refused("device", "other/phone", claims=other, device="phone")
    assert not Revocations().refuses(claims, "phone")


def test_of_several_revocations_the_latest_counts():
    claims = Claims("acc", None, None, frozenset(), 100.0, 200.0)
    assert Revocations([Revocation("sub", "acc", 150.0), Revocation("sub", "acc", 50.0)]).refuses(claims)


# HTTP


def test_refusals_over_http():
    answers = {code: problem(Close(code, "why")) for code in (4401, 4403, 4410, 4503)}
    assert {code: (answer.status, answer.word) for code, answer in answers.items()} == {
        4401: (401, "unauthorized"),
        4403: (403, "forbidden"),
        4410: (401, "revoked"),
        4503: (503, "unavailable"),
    }
    assert answers[4401].headers == {"WWW-Authenticate": 'Bearer error="invalid_token"'}
    assert answers[4503].headers == {"Retry-After": "2"}


def test_the_authorization_header():
    assert bearer("Bearer abc") == bearer("bearer  abc ") == "abc"
    for wrong in (None, "", "Bearer", "Bearer ", "Basic abc", "abc"):
        with pytest.raises(Problem) as raised:
            bearer(wrong)
        assert (raised.value.status, raised.value.headers) == (401, {"WWW-Authenticate": "Bearer"})


# The local key


def test_the_local_key_is_made_once_and_for_its_owner_only(tmp_path):
    first, again = LocalKey.open(tmp_path / "data"), LocalKey.open(tmp_path / "data")
    assert first.keys().same(again.keys())
    path = tmp_path / "data" / "token-key.pem"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [entry.name for entry in path.parent.iterdir()] == ["token-key.pem"]


def test_what_the_local_key_signs_is_good_here_and_for_pyjwt(tmp_path):
    key = LocalKey.open(tmp_path)
    token = key.issue("acc", device="phone", ttl=60, scope="read", sid="s", now=NOW + 0.1239)
    claims = Verifier(key.keys()).verify(token, NOW + 1, "phone")
    assert claims == Claims("acc", "phone", "s", frozenset({"read"}), NOW + 0.123, NOW + 60)
    read = jwt.decode(
        token,
        key.key.public,
        algorithms=["ES256"],
        audience="vestnik",
        options={"verify_exp": False, "verify_iat": False},
    )
    assert read["sub"] == "acc"
    assert jwt.get_unverified_header(token)["kid"] == key.key.kid


def test_a_token_issued_right_after_a_revocation_is_good(tmp_path):
    key, verifier = LocalKey.open(tmp_path), Verifier()
    verifier.use(key.keys())
    old, new = key.issue("acc", now=NOW), key.issue("acc", now=NOW + 0.01)
    verifier.revocations.replace([Revocation("sub", "acc", NOW + 0.005)])
    assert code(verifier, old) == 4410
    assert verifier.verify(new, NOW + 1).account == "acc"


@pytest.mark.parametrize("account", ["", "a b", "a" * 65, "a\n"])
def test_no_token_for_what_is_no_account(tmp_path, account):
    with pytest.raises(ValueError, match="account must be"):
        LocalKey.open(tmp_path).issue(account)


@pytest.mark.parametrize("content", [b"", b"garbage"])
def test_an_unusable_local_key_is_one_sentence(tmp_path, content):
    (tmp_path / "token-key.pem").write_bytes(content)
    with pytest.raises(ConfigError, match=r"^VESTNIK_DATA has an unusable key in .*token-key\.pem"):
        LocalKey.open(tmp_path)


def test_a_data_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"^VESTNIK_DATA must be a directory that this user can write"):
        LocalKey.open(tmp_path / "file" / "data")


def _open(path, start, answers):
    start.wait()
    answers.put(LocalKey.open(path).key.kid)


def test_processes_that_start_at_once_get_the_same_key(tmp_path):
    context = multiprocessing.get_context("fork")
    start, answers = context.Event(), context.Queue()
    processes = [context.Process(target=_open, args=(tmp_path / "data", start, answers)) for _ in range(6)]
    for process in processes:
        process.start()
    start.set()
    kids = {answers.get(timeout=20) for _ in processes}
    for process in processes:
        process.join()
    assert len(kids) == 1


# Keeping keys current


def settings(tmp_path, **flags):
    return load(env_file=None, data=tmp_path / "data", **flags)


async def test_without_a_provider_the_local_key(tmp_path):
    verifier = Verifier()
    await KeyWatch(verifier, settings(tmp_path)).load()
    token = LocalKey.open(tmp_path / "data").issue("acc", now=NOW)
    assert verifier.verify(token, NOW).account == "acc"


async def test_a_file_is_read_again_when_it_changes_and_stays_when_it_breaks(tmp_path):
    path, counts, verifier = tmp_path / "keys.json", Counts(), Verifier()
    path.write_bytes(jwks(jwk("ES256", "one")))
    watch = KeyWatch(verifier, settings(tmp_path, jwks=str(path)), counts)
    await watch.load()
    assert not watch.look()
    old, new = sign(GOOD, kid="one"), sign(GOOD, "EdDSA", kid="two")
    assert code(verifier, new) == 4401
    path.write_bytes(jwks(jwk("ES256", "one"), jwk("EdDSA", "two")))
    assert watch.look()
    verifier.verify(new, NOW)
    path.write_bytes(b"{")
    assert not watch.look()
    assert counts.keys_failures == 1
    path.unlink()
    assert not watch.look()
    verifier.verify(old, NOW)
    verifier.verify(new, NOW)
    path.write_bytes(jwks(jwk("EdDSA", "two")))
    assert watch.look()
    assert code(verifier, old) == 4401


@pytest.mark.parametrize("content", [None, b"{", b'{"keys":[]}'])
async def test_a_file_that_is_no_key_set_stops_the_start(tmp_path, content):
    path = tmp_path / "keys.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"^VESTNIK_JWKS must be a JWK set, but .*keys\.json is not: .*\.$"):
        await KeyWatch(Verifier(), settings(tmp_path, jwks=str(path))).load()


class Provider(ThreadingHTTPServer):
    """An identity provider's key page that can fail."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Page)
        self.answer, self.asked, self.location = (200, ALL), 0, None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/keys"


class _Page(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked += 1
        status, content = self.server.answer
        self.send_response(status)
        if self.server.location:
            self.send_header("Location", self.server.location)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def provider():
    with Provider() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


async def test_keys_by_url(tmp_path, provider):
    verifier = Verifier()
    await KeyWatch(verifier, settings(tmp_path, jwks=provider.url)).load()
    assert verifier.verify(sign(GOOD), NOW).account == "acc-1"


@pytest.mark.parametrize(
    "answer", [(500, b"no"), (200, b"{"), (200, b'{"keys":[]}'), (302, b""), (200, b" " * 1_200_000)]
)
async def test_the_last_good_keys_stay_when_a_fetch_fails(tmp_path, provider, answer):
    verifier, counts = Verifier(), Counts()
    watch = KeyWatch(verifier, settings(tmp_path, jwks=provider.url), counts)
    await watch.load()
    provider.answer, provider.location = answer, "/elsewhere" if answer[0] == 302 else None
    assert not await watch.fetch()
    assert (counts.keys_failures, len(verifier.keys)) == (1, 3)
    verifier.verify(sign(GOOD), NOW)


async def test_a_provider_that_is_away_at_start(tmp_path, provider):
    verifier, clock = Verifier(), Clock()
    provider.answer = (503, b"")
    watch = KeyWatch(verifier, settings(tmp_path, jwks=provider.url), clock=clock)
    await watch.load()
    assert not verifier.ready
    assert code(verifier, sign(GOOD)) == 4503
    provider.answer = (200, ALL)
    assert await watch.fetch()
    verifier.verify(sign(GOOD), NOW)


async def test_a_restart_does_not_need_the_provider(tmp_path, provider):
    await KeyWatch(Verifier(), settings(tmp_path, jwks=provider.url)).load()
    provider.answer = (503, b"")
    verifier, stranger = Verifier(), Verifier()
    await KeyWatch(verifier, settings(tmp_path, jwks=provider.url)).load()
    verifier.verify(sign(GOOD), NOW)
    await KeyWatch(stranger, settings(tmp_path, jwks=provider.url + "/other")).load()
    assert not stranger.ready, "kept keys are those of one URL"


async def test_an_unknown_key_is_asked_for_at_most_every_30_seconds(tmp_path, provider):
    verifier, clock = Verifier(), Clock()
    provider.answer = (200, jwks(jwk("ES256", "k-ES256")))
    watch = KeyWatch(verifier, settings(tmp_path, jwks=provider.url), clock=clock)
    await watch.load()
    new = sign(GOOD, "EdDSA")
    assert code(verifier, new) == 4401, "the keys are fresh: nothing is asked"
    provider.answer = (200, ALL)
    task = asyncio.create_task(watch.run())
    clock.now += 31
    assert code(verifier, new) == 4503, "come back: the key may be on its way"
    async with asyncio.timeout(10):
        while provider.asked < 2 or len(verifier.keys) < 3:
            await asyncio.sleep(0.005)
    verifier.verify(new, NOW)
    for _ in range(5):
        assert code(verifier, sign(GOOD, kid="garbage")) == 4401
    await asyncio.sleep(0)
    assert provider.asked == 2
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_same_keys_are_the_same():
    assert parse_jwks(ALL).same(parse_jwks(ALL))
    assert not parse_jwks(ALL).same(KeySet())
