"""Signatures, checked with vectors that are made here with the primitives themselves."""

import base64
import hashlib
import hmac
import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway.errors import ConfigError, Problem
from gateway.store.base import AgencyKey, Original
from gateway.verify import Verified, check_kept, new_secret, parse_key, verify

NOW = 1772357400
BODY = b'{"specversion":"1.0"}'
SECRET = bytes(range(32))
SEED = bytes(range(32, 64))
SHARED = AgencyKey("shared", "hmac", SECRET, 0.0)
PUBLIC = AgencyKey("public", "ed25519", Ed25519PrivateKey.from_private_bytes(SEED).public_key().public_bytes_raw(), 0.0)


def v1(body: bytes = BODY, secret: bytes = SECRET, webhook_id: str = "msg_1", at: int | str = NOW) -> str:
    content = f"{webhook_id}.{at}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(secret, content, hashlib.sha256).digest()).decode()


def v1a(body: bytes = BODY, seed: bytes = SEED, webhook_id: str = "msg_1", at: int | str = NOW) -> str:
    content = f"{webhook_id}.{at}.".encode() + body
    return "v1a," + base64.b64encode(Ed25519PrivateKey.from_private_bytes(seed).sign(content)).decode()


def headers(signature: str, webhook_id: str = "msg_1", at: int | str = NOW) -> list[tuple[bytes, bytes]]:
    return [
        (b"content-type", b"application/cloudevents+json"),
        (b"webhook-id", webhook_id.encode("latin-1")),
        (b"webhook-timestamp", str(at).encode()),
        (b"webhook-signature", signature.encode("latin-1")),
    ]


def check(
    given: list[tuple[bytes, bytes]], keys: Sequence[AgencyKey] = (SHARED, PUBLIC), body: bytes = BODY, now: float = NOW
) -> Verified:
    return verify(given, body, keys, now)


def refused(*args: object, **kwargs: object) -> Problem:
    with pytest.raises(Problem) as caught:
        check(*args, **kwargs)  # type: ignore[arg-type]
    assert (caught.value.status, caught.value.word) == (401, "unsigned")
    json.dumps(caught.value.document()).encode()
    return caught.value


def test_the_published_example() -> None:
    key = parse_key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signature = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    at = 1614265330
    given = headers(signature, "msg_p5jXN8AQM9LWM0D4loKWxJek", at)
    verified = check(given, [key], b'{"test": 2432232314}', at)
    assert verified == Verified(key, signature, "msg_p5jXN8AQM9LWM0D4loKWxJek", at)


def test_both_kinds() -> None:
    assert check(headers(v1())) == Verified(SHARED, v1(), "msg_1", NOW)
    assert check(headers(v1a())) == Verified(PUBLIC, v1a(), "msg_1", NOW)


def test_header_names_in_any_case_and_order() -> None:
    given = [(name.title(), value) for name, value in reversed(headers(v1()))]
    assert check(given).key is SHARED


def test_rotation_any_signature_by_any_valid_key() -> None:
    old, new = AgencyKey("old", "hmac", b"o" * 32, 0.0), AgencyKey("new", "hmac", b"n" * 32, 1.0)
    for secret, key in ((b"o" * 32, old), (b"n" * 32, new)):
        assert check(headers(v1(secret=secret)), [old, new]).key is key
    several = " ".join([v1(secret=b"x" * 32), "v2,AAAA", v1a(seed=b"y" * 32), v1(secret=b"n" * 32)])
    verified = check(headers(several), [old, new])
    assert (verified.key, verified.signature) == (new, v1(secret=b"n" * 32))


def test_a_retired_key_verifies_nothing_new() -> None:
    refused(headers(v1()), [replace(SHARED, retired=NOW - 1.0)])
    refused(headers(v1()), [replace(SHARED, retired=NOW + 1000.0)])
    assert check(headers(v1()), [replace(SHARED, retired=5.0), replace(SHARED, id="again")]).key.id == "again"


def test_signatures_do_not_cross() -> None:
    refused(headers(v1(body=b"other")))
    refused(headers(v1(), webhook_id="msg_2"))
    refused(headers(v1(), at=NOW + 1))
    refused(headers(v1()), [PUBLIC])
    refused(headers(v1a()), [SHARED])
    refused(headers(v1()), [])  # an unknown agency
    # A public key must never serve as a shared secret, nor one version's signature as the other's.
    refused(headers(v1(secret=PUBLIC.material)))
    refused(headers(v1().replace("v1,", "v1a,")))
    refused(headers(v1a().replace("v1a,", "v1,")))


@pytest.mark.parametrize("off", [-300, -299.5, 0, 300])
def test_timestamps_within_five_minutes(off: float) -> None:
    check(headers(v1()), now=NOW + off)


@pytest.mark.parametrize("off", [-300.5, 301, 1e9, -1e9])
def test_timestamps_too_far_off_are_told_the_time(off: float) -> None:
    problem = refused(headers(v1()), now=NOW + off)
    assert set(problem.document()) >= {"time"}
    assert refused(headers(v1(at=0), at=0), now=NOW).extra == {"time": "2026-03-01T09:30:00.000Z"}


@pytest.mark.parametrize(
    "at", ["", "x", "1.5", "-1", "+1", " 1", f"0{NOW}", f"{NOW}.0", "1e9", "9" * 13, "9" * 5000, "١", "0x10", "1_0"]
)
def test_timestamps_that_are_none(at: str) -> None:
    given = headers(v1(at=at))
    given[2] = (b"webhook-timestamp", at.encode())
    refused(given)


@pytest.mark.parametrize("webhook_id", ["", " ", "a b", "a\x00", "é", "a" * 257])
def test_ids_that_are_none(webhook_id: str) -> None:
    refused(headers(v1(webhook_id=webhook_id), webhook_id=webhook_id))


@pytest.mark.parametrize(
    "signature",
    [
        "",
        " ",
        ",",
        "v1",
        "v1,",
        "v1, ",
        "x,AAAA",
        "v1,AAA",
        "v1,!!!!",
        "v1,====",
        "v1,é",
        "v1a,AAAA",
        "v1a," + base64.b64encode(b"x" * 63).decode(),
        "v1a," + base64.b64encode(bytes(64)).decode(),
        v1()[3:],
        v1() + ",",
        v1() + "  " + v1(),
        v1() + " ",
        "\t" + v1(),
        v1() + "," + v1(),
        v1().rstrip("="),
        v1().replace("v1", "V1"),
        "v2," + v1()[3:],
        " ".join(["v1,AAAA"] * 5 + [v1()]),
    ],
)
def test_signatures_that_are_none(signature: str) -> None:
    refused(headers(signature))


def test_five_signatures_are_tried() -> None:
    check(headers(" ".join(["v1,AAAA"] * 4 + [v1()])))


@pytest.mark.parametrize("index", [1, 2, 3])
def test_each_header_is_there_exactly_once(index: int) -> None:
    given = headers(v1())
    refused(given[:index] + given[index + 1 :])
    refused([*given, given[index]])
    refused([*given, (given[index][0].upper(), b"other")])


def test_answers_do_not_tell_which_agencies_exist() -> None:
    assert refused(headers(v1()), []).document() == refused(headers(v1(body=b"x"))).document()


# Keys


@pytest.mark.parametrize("kind", ["hmac", "ed25519"])
def test_a_new_secret_signs_what_its_key_verifies(kind: str) -> None:
    secret, key = new_secret(kind, 5.0)  # type: ignore[arg-type]
    prefix, encoded = secret.split("_")
    raw = base64.b64decode(encoded)
    assert (prefix, len(raw)) == ("whsec" if kind == "hmac" else "whsk", 32)
    assert (key.kind, key.created, key.retired) == (kind, 5.0, None)
    signature = v1(secret=raw) if kind == "hmac" else v1a(seed=raw)
    assert check(headers(signature), [key]).key is key
    assert parse_key(secret, 5.0) == key
    assert new_secret(kind, 5.0)[1].id != key.id  # type: ignore[arg-type]
    if kind == "ed25519":
        assert raw not in key.material  # the private half is the agency's alone
        assert parse_key("whpk_" + base64.b64encode(key.material).decode(), 5.0) == key


def test_randomness_is_an_argument() -> None:
    assert new_secret("hmac", 0.0, bytes)[0] == "whsec_" + "A" * 43 + "="


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "begin with"),
        ("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "begin with"),
        ("WHSEC_AAAA", "begin with"),
        ("whsec_", "24 to 64"),
        ("whsec_" + base64.b64encode(bytes(23)).decode(), "24 to 64"),
        ("whsec_" + base64.b64encode(bytes(65)).decode(), "24 to 64"),
        ("whsec_!secret!", "base64"),
        ("whsec_секрет", "base64"),
        ("whsk_" + base64.b64encode(bytes(31)).decode(), "32 bytes"),
        ("whsk_" + base64.b64encode(bytes(64)).decode(), "32 bytes"),
        ("whpk_" + base64.b64encode(bytes(33)).decode(), "32 bytes"),
        ("whpk_" + base64.b64encode(bytes(32)).decode() + "\n", "base64"),
    ],
)
def test_keys_that_are_wrong_are_told_why_and_not_repeated(text: str, word: str) -> None:
    with pytest.raises(ConfigError, match=word) as caught:
        parse_key(text)
    _, _, encoded = text.partition("_")
    assert not encoded or encoded not in str(caught.value)


# What was kept


def kept(signature: str) -> Original:
    return Original("fns", "k", "msg_1", NOW, signature, BODY, NOW + 1.0)


def test_what_is_kept_proves_itself_again() -> None:
    for signature, key in ((v1(), SHARED), (v1a(), PUBLIC)):
        verified = check(headers(signature))
        original = kept(verified.signature)
        assert check_kept(original, key)
        assert check_kept(original, replace(key, retired=1.0))
        for other in (
            replace(original, body=BODY + b" "),
            replace(original, timestamp=NOW + 1),
            replace(original, webhook_id="msg_2"),
            replace(original, signature=signature[:-6] + "AAAAA="),
            replace(original, signature=""),
            replace(original, signature="v1,é"),
            replace(original, signature="v9" + signature[2:]),
        ):
            assert not check_kept(other, key)
    assert not check_kept(kept(v1()), PUBLIC)
    assert not check_kept(kept(v1a()), SHARED)
    assert not check_kept(kept(v1()), replace(SHARED, material=bytes(32)))
