"""Where the devices' tokens come from: a development key that signs as `vestnik token` does, or a file of tokens.

Written from the contract (section 5) alone: the gateway's own signing is not used here.
"""

import base64
import hashlib
import json
import time
from pathlib import Path
from typing import Any, Protocol

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key


class NoTokens(Exception):
    """Tokens cannot be had. One sentence for a person."""


class Identity(Protocol):
    """An identity provider."""

    def token(self, account: str) -> str:
        """A token of this account that is good now. Raises NoTokens."""


class LocalKey:
    """Signs with the P-256 key that a gateway without identity provider makes at its first start."""

    def __init__(self, path: Path, ttl_s: float = 3600.0, age_s: float = 0.0):
        """`age_s`: how long ago a new token was issued, for a gateway whose clock may be behind."""
        self.ttl_s, self.age_s = ttl_s, age_s
        try:
            key = load_pem_private_key(path.read_bytes(), password=None)
        except FileNotFoundError:
            raise NoTokens(
                f"There is no token key {path}: start a gateway on this --data directory first, or give --tokens FILE."
            ) from None
        except (OSError, ValueError, TypeError) as error:
            raise NoTokens(f"The token key {path} cannot be used: {error}.") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise NoTokens(f"The token key {path} is not a P-256 key.")
        self._key = key
        self._name = _thumbprint(key.public_key())

    def token(self, account: str) -> str:
        now = time.time()
        claims: dict[str, Any] = {
            "sub": account,
            "aud": "vestnik",
            "iat": now - self.age_s,
            "exp": int(now + self.ttl_s),
        }
        return jwt.encode(claims, self._key, "ES256", {"kid": self._name})


class TokenFile:
    """Tokens that somebody else made, one a line; whose each is stands in its `sub`."""

    def __init__(self, path: Path):
        self._tokens: dict[str, str] = {}
        try:
            lines = path.read_text("ascii").split()
        except (OSError, ValueError) as error:
            raise NoTokens(f"The tokens in {path} cannot be read: {error}.") from None
        for number, token in enumerate(lines, 1):
            try:
                self._tokens[str(jwt.decode(token, options={"verify_signature": False})["sub"])] = token
            except (jwt.InvalidTokenError, KeyError):
                raise NoTokens(f"Line {number} of {path} is no token with a `sub`.") from None
        if not self._tokens:
            raise NoTokens(f"There are no tokens in {path}.")

    def accounts(self) -> list[str]:
        return list(self._tokens)

    def token(self, account: str) -> str:
        try:
            return self._tokens[account]
        except KeyError:
            raise NoTokens(f"There is no token for the account {account}.") from None


def _thumbprint(public: ec.EllipticCurvePublicKey) -> str:
    """RFC 7638: the name of a key that anyone can compute."""
    numbers = public.public_numbers()
    x, y = (_base64(number.to_bytes(32, "big")) for number in (numbers.x, numbers.y))
    canonical = json.dumps({"crv": "P-256", "kty": "EC", "x": x, "y": y}, separators=(",", ":"), sort_keys=True)
    return _base64(hashlib.sha256(canonical.encode()).digest())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
