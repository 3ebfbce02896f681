"""Who comes: tokens, the keys that sign them, and revocations. Contract, section 5.

A token that passes `Verifier.verify` was signed by a key that is known now, for this audience, has not ended and is not
revoked. Anything else raises `Close` with 4401 (missing, wrong or ended), 4403 (another device's), 4410 (revoked) or
4503 (no keys to check with: ours, passing); `problem()` is the same for HTTP. Nothing else is raised, whatever the
token is.

    KeySet      verified keys by (kid, algorithm); a new one replaces the old as a whole
    Verifier    token -> Claims, synchronous; remembers good tokens by digest
    KeyWatch    keeps the verifier's keys current: JWKS file, JWKS URL, or the local key
    LocalKey    the development key under VESTNIK_DATA; signs for `vestnik token`
    Revocations what `store.revocations()` says, indexed

The check is a few lines on `cryptography` because it is most of what a connect costs: ES256 takes 64 µs bare, 73
here and 122 with PyJWT (which the tests keep as an oracle). The local key is ES256 for the same reason: EdDSA takes
107 µs to verify.
"""

import asyncio
import base64
import binascii
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeGuard
from urllib.parse import urlsplit

import orjson
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from gateway.errors import Close, ConfigError, Problem
from gateway.keyfile import make_once
from gateway.logs import get_logger
from gateway.metrics import Counts
from gateway.settings import Settings
from gateway.store.base import Revocation
from gateway.waiting import woken

if TYPE_CHECKING:
    import httpx

Algorithm = Literal["ES256", "EdDSA", "RS256"]
PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey

MAX_TOKEN_CHARS = 8192  # a token travels in a message of at most 16 KiB
MAX_JWKS_BYTES = 1_048_576
EARLY_S = 5.0  # `iat` and `nbf` may lie so far ahead: the provider's clock is not ours. `exp` has no leeway
REFETCH_S = 30.0  # an unknown kid makes the keys be fetched again at most so often
FILE_POLL_S = 2.0
REMEMBERED = 16384  # good tokens; about 0.4 kB each

_TOKEN = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")  # contract, section 1
_MAX_TIME = float(2**53)

_SHA256 = hashes.SHA256()
_ECDSA = ec.ECDSA(_SHA256)
_PKCS1 = padding.PKCS1v15()

log = get_logger("tokens")


@dataclass(frozen=True, slots=True)
class Claims:
    """What a good token says. Times are Unix seconds; `iat` may have fractions."""

    account: str
    device: str | None
    sid: str | None
    scopes: frozenset[str]
    iat: float
    exp: float


# Keys


@dataclass(frozen=True, slots=True)
class Key:
    kid: str | None
    alg: Algorithm
    public: PublicKey

    def signed(self, signature: bytes, content: bytes) -> bool:
        """RFC 7518, section 3: ES256 is r and s, 32 bytes each; RS256 is PKCS #1 v1.5. RFC 8037: EdDSA is Ed25519
        here."""
        public = self.public
        try:
            if isinstance(public, ec.EllipticCurvePublicKey):
                if len(signature) != 64:
                    return False
                r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
                public.verify(encode_dss_signature(r, s), content, _ECDSA)
            elif isinstance(public, ed25519.Ed25519PublicKey):
                public.verify(signature, content)
            else:
                public.verify(signature, content, _PKCS1, _SHA256)
        except InvalidSignature:
            return False
        return True


class KeySet:
    """Keys by (kid, algorithm). A token without kid is taken only when there is a single key to mean."""

    __slots__ = ("_keys", "_only")

    def __init__(self, keys: Iterable[Key] = ()):
        self._keys = {(key.kid, key.alg): key for key in keys}
        self._only = next(iter(self._keys.values())) if len(self._keys) == 1 else None

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._keys.values())

    def same(self, other: "KeySet") -> bool:
        return self._names() == other._names()

    def _names(self) -> dict[tuple[str | None, Algorithm], bytes]:
        return {name: _spki(key.public) for name, key in self._keys.items()}

    def find(self, kid: str | None, alg: str) -> Key | None:
        """The algorithm is the key's, never the token's choice (RFC 8725, section 3.1)."""
        if kid is None:
            return self._only if self._only is not None and self._only.alg == alg else None
        return self._keys.get((kid, alg))  # type: ignore[arg-type]


def _spki(public: PublicKey) -> bytes:
    return public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def parse_jwks(content: bytes) -> KeySet:
    """The usable keys of a JWK set (RFC 7517, section 5); those of another type, use or algorithm are ignored.

    Raises ValueError when it is no JWK set or has no usable key.
    """
    if len(content) > MAX_JWKS_BYTES:
        raise ValueError("longer than 1 MiB")
    document = orjson.loads(content)
    items = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(items, list):
        raise ValueError("not a JWK set: no list `keys`")
    keys = KeySet(key for key in map(_jwk, items) if key is not None)
    if not keys:
        raise ValueError("no usable key: ES256 (P-256), EdDSA (Ed25519) or RS256 (2048 bits or more) is needed")
    return keys


def _jwk(item: Any) -> Key | None:
    if not isinstance(item, dict) or item.get("use", "sig") != "sig":
        return None
    if "key_ops" in item and not (isinstance(item["key_ops"], list) and "verify" in item["key_ops"]):
        return None
    kid = item.get("kid")
    try:
        match item.get("kty"), item.get("crv"):
            case "EC", "P-256":
                alg: Algorithm = "ES256"
                numbers = ec.EllipticCurvePublicNumbers(_integer(item, "x"), _integer(item, "y"), ec.SECP256R1())
                public: PublicKey = numbers.public_key()
            case "OKP", "Ed25519":
                alg = "EdDSA"
                public = ed25519.Ed25519PublicKey.from_public_bytes(_octets(item, "x"))
            case "RSA", _:
                alg = "RS256"
                public = rsa.RSAPublicNumbers(_integer(item, "e"), _integer(item, "n")).public_key()
                if public.key_size < 2048:
                    return None
            case _:
                return None
    except (ValueError, KeyError, TypeError, UnsupportedAlgorithm):
        return None
    if item.get("alg", alg) != alg or not isinstance(kid, str | None):
        return None
    return Key(kid, alg, public)


def _octets(item: Mapping[str, Any], name: str) -> bytes:
    return _decode(str(item[name]).rstrip("="))


def _integer(item: Mapping[str, Any], name: str) -> int:
    return int.from_bytes(_octets(item, name), "big")


def _decode(text: str) -> bytes:
    """Bytes of base64url without padding (RFC 7515, section 2), whose alphabet the caller has checked. Raises
    ValueError."""
    return binascii.a2b_base64(text.replace("-", "+").replace("_", "/") + "==")


def _encode(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


# Revocations


class Revocations:
    """The revocations in force, for a check at every use of a token."""

    __slots__ = ("_device", "_sid", "_sub")

    def __init__(self, rows: Iterable[Revocation] = ()):
        self.replace(rows)

    def replace(self, rows: Iterable[Revocation]) -> None:
        """Take all of them anew; of several for one value the latest counts."""
        found: dict[str, dict[str, float]] = {"sub": {}, "sid": {}, "device": {}}
        for row in rows:
            of_kind = found[row.kind]
            of_kind[row.value] = max(row.before, of_kind.get(row.value, row.before))
        self._sub, self._sid, self._device = found["sub"], found["sid"], found["device"]

    def refuses(self, claims: Claims, device: str | None = None) -> bool:
        """Was the token issued at or before a revocation of its account, its sid or the device that uses it?

        `device` is the one of the hello; without it the token's own is looked at.
        """
        if self._sub and claims.iat <= self._sub.get(claims.account, -1.0):
            return True
        if self._sid and claims.sid is not None and claims.iat <= self._sid.get(claims.sid, -1.0):
            return True
        device = claims.device if device is None else device
        if not self._device or device is None:
            return False
        before = max(self._device.get(device, -1.0), self._device.get(f"{claims.account}/{device}", -1.0))
        return claims.iat <= before


# The check


class Verifier:
    """Checks tokens with the keys it was last given (`use`). Belongs to one thread, the event loop's.

    A token that names an unknown key makes it ask `unknown_key()`, which `KeyWatch` sets: is that key perhaps on its
    way?
    """

    def __init__(
        self,
        keys: KeySet | None = None,
        *,
        audience: str = "vestnik",
        revocations: Revocations | None = None,
        counts: Counts | None = None,
        remember: int = REMEMBERED,
    ):
        self.revocations = revocations if revocations is not None else Revocations()
        self.unknown_key: Callable[[], bool] = lambda: False
        self._audience, self._remember = audience, remember
        self._counts = counts if counts is not None else Counts()
        self._good: dict[bytes, Claims] = {}
        self._heads: dict[str, Key] = {}
        self._keys = keys if keys is not None else KeySet()

    @property
    def keys(self) -> KeySet:
        return self._keys

    @property
    def ready(self) -> bool:
        """Are there keys at all?"""
        return len(self._keys) > 0

    def use(self, keys: KeySet) -> None:
        """Take these keys from now on. Tokens of keys that are gone are refused from now on, remembered or not."""
        self._keys = keys
        self._good.clear()
        self._heads.clear()

    def verify(self, token: object, now: float, device: str | None = None) -> Claims:
        """The claims of a good token, used by `device` (None: over HTTP). Raises Close: see the module's docstring."""
        try:
            claims = self._claims(token, now)
            if claims.exp <= now:
                raise Close(4401, "token has ended")
            if device is not None and claims.device is not None and claims.device != device:
                raise Close(4403, "token is for another device")
            if self.revocations.refuses(claims, device):
                raise Close(4410, "revoked")
        except Close as refusal:
            self._counts.tokens_refused[refusal.code] += 1
            raise
        return claims

    def _claims(self, token: object, now: float) -> Claims:
        if not isinstance(token, str) or not 0 < len(token) <= MAX_TOKEN_CHARS or not token.isascii():
            raise Close(4401, "token missing or no JWT")
        name = hashlib.sha256(token.encode()).digest()
        known = self._good.pop(name, None)
        if known is not None:
            self._good[name] = known  # to the young end
            self._counts.tokens_cached += 1
            return known
        claims = self._check(token, now)
        self._counts.tokens_verified += 1
        if len(self._good) >= self._remember:
            del self._good[next(iter(self._good))]
        self._good[name] = claims
        return claims

    def _check(self, token: str, now: float) -> Claims:
        parts = _TOKEN.fullmatch(token)
        if parts is None:
            raise Close(4401, "token is no JWT")
        head, payload, signature = parts.groups()
        key = self._heads.get(head) or self._key(head)
        try:
            proof = _decode(signature)
        except ValueError:
            raise Close(4401, "token is no JWT") from None
        if not key.signed(proof, token[: parts.start(3) - 1].encode()):
            raise Close(4401, "token has a wrong signature")
        return read_claims(_object(payload), self._audience, now)

    def _key(self, head: str) -> Key:
        """The key that a JOSE header names. Headers repeat from token to token, so those that led to a key are kept."""
        header = _object(head)
        kid, alg = header.get("kid"), header.get("alg")
        if alg not in ("ES256", "EdDSA", "RS256"):
            raise Close(4401, "token has a wrong algorithm")
        if "crit" in header or "b64" in header:  # RFC 7515, section 4.1.11: what is critical and unknown is refused
            raise Close(4401, "token has a critical header")
        if kid is not None and not isinstance(kid, str):
            raise Close(4401, "token has a wrong kid")
        key = self._keys.find(kid, alg)
        if key is None:
            if not self._keys:
                raise Close(4503, "no keys to check tokens with")
            if kid is not None and self.unknown_key():
                raise Close(4503, "keys are being fetched")
            raise Close(4401, "token is signed with an unknown key" if kid is not None else "token names no key")
        if len(self._heads) >= 64:
            self._heads.clear()
        self._heads[head] = key
        return key


def _object(segment: str) -> dict[str, Any]:
    try:
        value = orjson.loads(_decode(segment))
    except ValueError:
        raise Close(4401, "token is no JWT") from None
    if not isinstance(value, dict):
        raise Close(4401, "token is no JWT")
    return value


def read_claims(payload: Mapping[str, Any], audience: str, now: float) -> Claims:
    """The claims of a payload whose signature is good. Raises Close(4401) with the first that is wrong; `exp` in the
    past is the caller's to see."""
    account, device, sid = payload.get("sub"), payload.get("device"), payload.get("sid")
    if not isinstance(account, str) or _ID.fullmatch(account) is None:
        raise Close(4401, "token has a wrong sub")
    if device is not None and (not isinstance(device, str) or _ID.fullmatch(device) is None):
        raise Close(4401, "token has a wrong device")
    if sid is not None and (not isinstance(sid, str) or not 0 < len(sid) <= 256):
        raise Close(4401, "token has a wrong sid")
    aud = payload.get("aud")
    if aud != audience and not (isinstance(aud, list) and audience in aud):
        raise Close(4401, "token is for another audience")
    iat, exp, nbf = payload.get("iat"), payload.get("exp"), payload.get("nbf", 0)
    if not (_is_time(iat) and _is_time(exp) and _is_time(nbf)):
        raise Close(4401, "token has a wrong iat, exp or nbf")
    if max(iat, nbf) > now + EARLY_S:
        raise Close(4401, "token is not valid yet")
    scope = payload.get("scope", "")
    if not isinstance(scope, str):
        raise Close(4401, "token has a wrong scope")
    return Claims(account, device, sid, frozenset(scope.split()) if scope else _NO_SCOPES, float(iat), float(exp))


_NO_SCOPES: frozenset[str] = frozenset()


def _is_time(value: object) -> TypeGuard[float]:
    """RFC 7519: a NumericDate. A bool is an int to Python and no date; NaN fails both comparisons."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _MAX_TIME


# HTTP


def bearer(header: str | None) -> str:
    """The token of an Authorization header (RFC 6750, section 2.1). Raises Problem 401."""
    scheme, _, token = (header or "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Problem(
            401,
            "unauthorized",
            "A token is needed",
            "Send Authorization: Bearer <token>.",
            headers={"WWW-Authenticate": "Bearer"},
        )
    return token.strip()


def problem(refusal: Close) -> Problem:
    """A refused token as the answer to an HTTP request."""
    match refusal.code:
        case 4403:
            return Problem(403, "forbidden", "Not allowed with this token", refusal.reason)
        case 4503:
            return Problem(
                503, "unavailable", "Tokens cannot be checked now", refusal.reason, headers={"Retry-After": "2"}
            )
        case 4410:
            return Problem(
                401,
                "revoked",
                "The token was revoked",
                "A new sign-in is needed.",
                headers={"WWW-Authenticate": 'Bearer error="invalid_token"'},
            )
    return Problem(
        401,
        "unauthorized",
        "The token is not good",
        refusal.reason,
        headers={"WWW-Authenticate": 'Bearer error="invalid_token"'},
    )


# The local key


class LocalKey:
    """The key of a gateway without identity provider. Whoever reads it can be anyone: for development only."""

    def __init__(self, pem: bytes):
        private = serialization.load_pem_private_key(pem, password=None)
        if not isinstance(private, ec.EllipticCurvePrivateKey) or not isinstance(private.curve, ec.SECP256R1):
            raise ValueError("not a P-256 key")
        self._private = private
        self.key = Key(_thumbprint(private.public_key()), "ES256", private.public_key())

    @classmethod
    def open(cls, data: Path) -> "LocalKey":
        """The key under this data directory, made at the first call. Raises ConfigError."""
        path = data / "token-key.pem"
        pem = make_once(path, _new_pem)
        try:
            return cls(pem)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ConfigError(
                f"VESTNIK_DATA has an unusable key in {path} ({error}): remove it to get a new one."
            ) from None

    def keys(self) -> KeySet:
        return KeySet([self.key])

    def issue(
        self,
        account: str,
        *,
        device: str | None = None,
        ttl: float = 3600,
        scope: str | None = None,
        sid: str | None = None,
        now: float | None = None,
        audience: str = "vestnik",
    ) -> str:
        """A signed token that ends `ttl` seconds after `now`. `iat` has milliseconds: a token made right after a
        revocation is good. Raises ValueError for an id that breaks section 1."""
        for name, value in (("account", account), ("device", device)):
            if value is not None and _ID.fullmatch(value) is None:
                raise ValueError(f"{name} must be 1 to 64 of A-Z a-z 0-9 . _ -")
        now = time.time() if now is None else now
        optional = {"device": device, "sid": sid, "scope": scope}
        payload = {"sub": account, "aud": audience, "iat": int(now * 1000) / 1000, "exp": int(now + ttl)}
        payload |= {name: value for name, value in optional.items() if value is not None}
        header = {"alg": "ES256", "typ": "JWT", "kid": self.key.kid}
        content = f"{_encode(orjson.dumps(header))}.{_encode(orjson.dumps(payload))}"
        r, s = decode_dss_signature(self._private.sign(content.encode(), _ECDSA))
        return f"{content}.{_encode(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def _new_pem() -> bytes:
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _thumbprint(public: ec.EllipticCurvePublicKey) -> str:
    """RFC 7638: the key's own name."""
    numbers = public.public_numbers()
    x, y = (_encode(number.to_bytes(32, "big")) for number in (numbers.x, numbers.y))
    canonical = json.dumps({"crv": "P-256", "kty": "EC", "x": x, "y": y}, separators=(",", ":"), sort_keys=True)
    return _encode(hashlib.sha256(canonical.encode()).digest())


# Keeping the keys current


class KeyWatch:
    """Loads the verifier's keys at start (`load`) and keeps them current (`run`, a task that ends by cancelling).

    A file is read again when it changed, a URL every `jwks_refresh_s` and when a token names an unknown key (at most
    every 30 s). When that fails the last good keys stay, and a line is logged. The last good answer of a URL is also
    kept under the data directory, so that a restart does not depend on the identity provider being there.
    """

    def __init__(
        self,
        verifier: Verifier,
        settings: Settings,
        counts: Counts | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._verifier, self._settings, self._clock = verifier, settings, clock
        self._counts = counts if counts is not None else Counts()
        self._wanted = asyncio.Event()
        self._tried = float("-inf")
        self._fetching = False
        self._stamp: tuple[int, int, int] | None = None
        self._url = settings.jwks if settings.jwks and "://" in settings.jwks else None
        self._file = Path(settings.jwks) if settings.jwks and self._url is None else None
        self._copy = settings.data / "jwks.json"

    async def load(self) -> None:
        """The first keys. Raises ConfigError when a file or the local key is unusable; a URL that does not answer
        leaves the verifier without keys (4503, not ready) unless an earlier answer of it was kept."""
        if self._url is not None:
            self._verifier.unknown_key = self._unknown_key
            if not await self.fetch():
                self._use_copy()
        elif self._file is not None:
            self._stamp = _stamp(self._file)
            try:
                self._verifier.use(parse_jwks(self._file.read_bytes()))
            except (OSError, ValueError) as error:
                raise ConfigError(
                    f"VESTNIK_JWKS must be a JWK set, but {self._file} is not: {_words(error)}."
                ) from None
        else:
            self._verifier.use(LocalKey.open(self._settings.data).keys())

    async def run(self) -> None:
        """Forever; never raises but for being cancelled."""
        while True:
            if self._url is not None:
                pause = (
                    self._settings.jwks_refresh_s if self._verifier.ready else min(5.0, self._settings.jwks_refresh_s)
                )
                await woken(self._wanted, pause)
                await self.fetch()
            else:
                await asyncio.sleep(FILE_POLL_S)
                self.look()

    def look(self) -> bool:
        """Read the file again if it changed. Were there new keys?"""
        if self._file is None:
            return False
        stamp = _stamp(self._file)
        if stamp is None or stamp == self._stamp:
            return False
        self._stamp = stamp
        try:
            return self._take(parse_jwks(self._file.read_bytes()))
        except (OSError, ValueError) as error:
            self._failed(error)
            return False

    async def fetch(self) -> bool:
        """Get the keys of the URL. Did it answer with usable ones? Redirects are not followed: keys come from where
        was said."""
        import httpx  # 80 ms of start that a gateway with a file or the local key does not need

        assert self._url is not None
        self._tried, self._fetching = self._clock(), True
        try:
            async with httpx.AsyncClient(timeout=10, follow_redirects=False, trust_env=False) as client:
                content = await _get(client, self._url)
            self._take(parse_jwks(content))
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, OSError) as error:
            self._failed(error)
            return False
        finally:
            self._fetching = False
        self._keep(content)
        return True

    def _unknown_key(self) -> bool:
        """A token named a key that is not known: is it worth a fetch, and so worth coming again?"""
        if not self._fetching and self._clock() - self._tried >= REFETCH_S:
            self._wanted.set()
            return True
        return self._fetching

    def _take(self, keys: KeySet) -> bool:
        if keys.same(self._verifier.keys):
            return False
        self._verifier.use(keys)
        log.info("keys loaded", keys=len(keys))
        return True

    def _failed(self, error: Exception) -> None:
        self._counts.keys_failures += 1
        log.warning("keys not loaded", reason=_words(error), kept=len(self._verifier.keys))

    def _keep(self, content: bytes) -> None:
        document = orjson.dumps({"url": _bare(self._url), "jwks": orjson.loads(content)})
        draft = self._copy.with_suffix(f".{os.getpid()}")
        try:
            self._copy.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft.write_bytes(document)
            draft.replace(self._copy)
        except OSError as error:
            log.warning("keys not kept", reason=_words(error))

    def _use_copy(self) -> None:
        try:
            document = orjson.loads(self._copy.read_bytes())
            if document["url"] == _bare(self._url):
                self._take(parse_jwks(orjson.dumps(document["jwks"])))
        except (OSError, ValueError, KeyError, TypeError):
            return


async def _get(client: "httpx.AsyncClient", url: str) -> bytes:
    """The body of a 200, at most MAX_JWKS_BYTES of it."""
    content = bytearray()
    async with client.stream("GET", url, headers={"Accept": "application/jwk-set+json, application/json"}) as answer:
        if answer.status_code != 200:
            raise ValueError(f"status {answer.status_code}")
        async for part in answer.aiter_bytes():
            content += part
            if len(content) > MAX_JWKS_BYTES:
                raise ValueError("longer than 1 MiB")
    return bytes(content)


def _bare(url: str | None) -> str:
    parts = urlsplit(url or "")
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _words(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)) or type(error).__name__
