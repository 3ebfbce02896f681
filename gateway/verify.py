"""Who signed this? Standard Webhooks, both kinds (contract, section 2, "Signing"). Pure.

The signed content is `<webhook-id>.<webhook-timestamp>.<raw body>`. `v1,` is HMAC-SHA256 with a secret that both sides
hold (`whsec_`), `v1a,` is ed25519: the agency signs with `whsk_`, we only ever hold the public `whpk_`. Nothing of the
body is parsed before this. Whatever the headers hold, the answer is a `Verified` or a 401.
"""

import base64
import hmac
import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Literal, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from gateway.errors import ConfigError, Problem
from gateway.rfc3339 import format_time
from gateway.store.base import AgencyKey, Original

TOLERANCE_S = 300  # how far a timestamp may be off: bounds the replay of an old request
MAX_SIGNATURES = 5  # bounds the work that a stranger can ask for with one header

Kind = Literal["hmac", "ed25519"]

_HEADERS = (b"webhook-id", b"webhook-timestamp", b"webhook-signature")
_ID = re.compile(rb"[!-~]{1,256}")
_TIMESTAMP = re.compile(rb"0|[1-9][0-9]{0,11}")  # one spelling only: the kept number must give the signed text again
_SIGNATURE = re.compile(rb"v[0-9]+[a-z]*,[!-~]+")
_KINDS: dict[str, Kind] = {"v1": "hmac", "v1a": "ed25519"}


class Verified(NamedTuple):
    """The request was signed by the holder of `key`. `signature` is the one that matched, with its version."""

    key: AgencyKey
    signature: str
    webhook_id: str
    timestamp: int


def verify(headers: Iterable[tuple[bytes, bytes]], body: bytes, keys: Sequence[AgencyKey], now: float) -> Verified:
    """Find the key that signed this request.

    `headers` are the raw pairs of the request, names in any case; `keys` all of the agency that `<code>` names, none
    when there is no such agency; retired ones verify nothing new. `now` is in Unix seconds. Versions of signatures that
    we do not know are passed over, so that an agency can send a newer one beside.

    Raises Problem 401 `unsigned`, and nothing else; with `time` when the timestamp is too far off.
    """
    webhook_id, timestamp, signatures = _read(headers)
    if abs(now - int(timestamp)) > TOLERANCE_S:
        raise _unsigned(f"the timestamp is more than {TOLERANCE_S} s off", {"time": format_time(now)})
    content = b"%b.%b.%b" % (webhook_id, timestamp, body)
    active = [key for key in keys if key.retired is None]
    for version, signature in signatures:
        raw = _decode(signature)
        if not raw:
            raise _unsigned("a signature is not base64")
        for key in active:
            if key.kind == _KINDS[version] and _matches(key, content, raw):
                return Verified(key, f"{version},{signature}", webhook_id.decode(), int(timestamp))
    raise _unsigned("no signature is by a key of this agency")


def check_kept(original: Original, key: AgencyKey) -> bool:
    """Does the kept signature still prove that `key` signed the kept body? A retired key proves its past."""
    version, _, signature = original.signature.partition(",")
    raw = _decode(signature)
    if raw is None or _KINDS.get(version) != key.kind:
        return False
    return _matches(key, b"%b.%d.%b" % (original.webhook_id.encode(), original.timestamp, original.body), raw)


def new_secret(kind: Kind, now: float, random: Callable[[int], bytes] = secrets.token_bytes) -> tuple[str, AgencyKey]:
    """A new key: what the agency gets, printable (`whsec_…` or `whsk_…`), and what we keep. `now` in Unix seconds."""
    secret = ("whsec_" if kind == "hmac" else "whsk_") + base64.b64encode(random(32)).decode()
    return secret, parse_key(secret, now)


def parse_key(text: str, created: float = 0.0) -> AgencyKey:
    """What verifies the signatures made with `whsec_…` or `whsk_…`, or those that `whpk_…` verifies.

    The private half of an ed25519 key is not kept. Raises ConfigError with a sentence that never repeats the key.
    """
    prefix, _, encoded = text.partition("_")
    if prefix not in ("whsec", "whsk", "whpk"):
        raise ConfigError("A key must begin with whsec_ (shared secret), whsk_ (ed25519 seed) or whpk_ (public key).")
    raw = _decode(encoded)
    if raw is None:
        raise ConfigError(f"The key after {prefix}_ is not base64.")
    if prefix == "whsec":
        if not 24 <= len(raw) <= 64:  # Standard Webhooks, "Signature scheme": between 24 bytes and 64 bytes
            raise ConfigError(f"A whsec_ secret must hold 24 to 64 bytes; this one holds {len(raw)}.")
        return _key("hmac", raw, created)
    if len(raw) != 32:
        raise ConfigError(f"A {prefix}_ key must hold 32 bytes; this one holds {len(raw)}.")
    return _key("ed25519", _public(raw) if prefix == "whsk" else raw, created)


def _key(kind: Kind, material: bytes, created: float) -> AgencyKey:
    # The id follows from the key: the same key added twice is seen to be the same. A digest hides 24 random bytes.
    return AgencyKey(sha256(kind.encode() + material).hexdigest()[:16], kind, material, created)


def _public(seed: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def _read(headers: Iterable[tuple[bytes, bytes]]) -> tuple[bytes, bytes, list[tuple[str, str]]]:
    """The three headers, each there once and well formed; signatures as (version, base64), of known versions."""
    found: dict[bytes, bytes] = {}
    for raw_name, value in headers:
        name = raw_name.lower()
        if name in _HEADERS:
            if name in found:
                raise _unsigned(f"{name.decode()} is there twice")
            found[name] = value
    for name in _HEADERS:
        if name not in found:
            raise _unsigned(f"{name.decode()} is missing")
    webhook_id, timestamp, signature = (found[name] for name in _HEADERS)
    if not _ID.fullmatch(webhook_id):
        raise _unsigned("webhook-id must be 1 to 256 visible ASCII characters")
    if not _TIMESTAMP.fullmatch(timestamp):
        raise _unsigned("webhook-timestamp must be Unix seconds")
    parts = signature.split(b" ")
    if len(parts) > MAX_SIGNATURES or not all(map(_SIGNATURE.fullmatch, parts)):
        raise _unsigned(f"webhook-signature must be 1 to {MAX_SIGNATURES} of <version>,<base64> with a space between")
    pairs = [tuple(part.decode().split(",", 1)) for part in parts]
    return webhook_id, timestamp, [(version, text) for version, text in pairs if version in _KINDS]


def _matches(key: AgencyKey, content: bytes, signature: bytes) -> bool:
    """In constant time for what the signature holds."""
    if key.kind == "hmac":
        return hmac.compare_digest(hmac.digest(key.material, content, "sha256"), signature)
    try:
        _verifier(key.material).verify(signature, content)
    except (InvalidSignature, ValueError):
        return False
    return True


@lru_cache(maxsize=1024)  # a few keys an agency
def _verifier(public: bytes) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(public)


def _decode(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return None


def _unsigned(detail: str, extra: dict[str, str] | None = None) -> Problem:
    return Problem(401, "unsigned", "Not signed by this agency", detail, extra=extra)
