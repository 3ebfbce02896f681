"""An identity provider of our own: three keys, their JWKS, and JWTs signed by hand (RFC 7515, 7517, 7519)."""

import base64
import hashlib
import hmac
import json
import time
import uuid
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

ALGORITHMS = ("ES256", "EdDSA", "RS256")


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def number(value: int, size: int | None = None) -> str:
    return b64(value.to_bytes(size or (value.bit_length() + 7) // 8, "big"))


class Identity:
    """Signs tokens for any account. `jwks(path)` writes the public keys for `VESTNIK_JWKS`."""

    def __init__(self) -> None:
        self.ec = ec.generate_private_key(ec.SECP256R1())
        self.ed = ed25519.Ed25519PrivateKey.generate()
        self.rsa = rsa.generate_private_key(65537, 2048)

    def document(self) -> dict[str, Any]:
        point = self.ec.public_key().public_numbers()
        modulus = self.rsa.public_key().public_numbers()
        raw = self.ed.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        return {
            "keys": [
                {"kty": "EC", "crv": "P-256", "kid": "ES256", "alg": "ES256", "use": "sig",
                 "x": number(point.x, 32), "y": number(point.y, 32)},
                {"kty": "OKP", "crv": "Ed25519", "kid": "EdDSA", "alg": "EdDSA", "use": "sig", "x": b64(raw)},
                {"kty": "RSA", "kid": "RS256", "alg": "RS256", "use": "sig",
                 "n": number(modulus.n), "e": number(modulus.e)},
            ]
        }  # fmt: skip

    def jwks(self, path: Path) -> Path:
        path.write_text(json.dumps(self.document()))
        return path

    def public_pem(self) -> bytes:
        return self.rsa.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def sign(self, algorithm: str, signed: bytes) -> bytes:
        if algorithm == "ES256":
            r, s = decode_dss_signature(self.ec.sign(signed, ec.ECDSA(hashes.SHA256())))
            return r.to_bytes(32, "big") + s.to_bytes(32, "big")
        if algorithm == "EdDSA":
            return self.ed.sign(signed)
        if algorithm == "RS256":
            return self.rsa.sign(signed, padding.PKCS1v15(), hashes.SHA256())
        if algorithm == "HS256":  # the classic attack: the public key taken for a shared secret
            return hmac.digest(self.public_pem(), signed, hashlib.sha256)
        return b""  # "none"

    def token(
        self,
        account: str,
        *,
        ttl: float = 3600,
        algorithm: str = "ES256",
        kid: str | None = None,
        without: tuple[str, ...] = (),
        **claims: Any,
    ) -> str:
        """A JWT of this account. `claims` replace or add, `without` removes. `ttl` in seconds from now."""
        now = int(time.time())
        body: dict[str, Any] = {"sub": account, "iat": now, "exp": now + int(ttl), "aud": "vestnik"}
        body |= {"sid": uuid.uuid4().hex, **claims}
        body = {name: value for name, value in body.items() if name not in without}
        header = {"alg": algorithm, "typ": "JWT", "kid": kid or algorithm}
        signed = ".".join(b64(json.dumps(part).encode()) for part in (header, body))
        return f"{signed}.{b64(self.sign(algorithm, signed.encode()))}"
