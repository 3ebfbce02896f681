"""Tokens that the gateway's own verification takes."""

import time
from pathlib import Path

import pytest

from client_sim.identity import LocalKey, NoTokens, TokenFile
from gateway import tokens


def test_the_gateway_takes_a_token_of_its_own_key(tmp_path: Path):
    key = tokens.LocalKey.open(tmp_path)
    token = LocalKey(tmp_path / "token-key.pem", ttl_s=60, age_s=30).token("anna")
    now = time.time()
    claims = tokens.Verifier(key.keys()).verify(token, now)
    assert claims.account == "anna"
    assert now - 31 < claims.iat < now - 29
    assert now + 58 < claims.exp < now + 61


def test_tokens_of_a_file_are_known_by_their_subject(tmp_path: Path):
    key = tokens.LocalKey.open(tmp_path)
    lines = {name: key.issue(name) for name in ("anna", "boris")}
    file = tmp_path / "tokens"
    file.write_text("\n".join(lines.values()) + "\n")
    identity = TokenFile(file)
    assert identity.accounts() == ["anna", "boris"]
    assert identity.token("boris") == lines["boris"]
    with pytest.raises(NoTokens, match="no token for the account vera"):
        identity.token("vera")


@pytest.mark.parametrize(
    ("content", "words"), [("", "no tokens"), ("not-a-token", "Line 1"), ("e30.e30.e30", "Line 1")]
)
def test_a_wrong_file_is_one_sentence(tmp_path: Path, content, words):
    file = tmp_path / "tokens"
    file.write_text(content)
    with pytest.raises(NoTokens, match=words):
        TokenFile(file)


def test_a_missing_or_wrong_key_is_one_sentence(tmp_path: Path):
    with pytest.raises(NoTokens, match="start a gateway"):
        LocalKey(tmp_path / "token-key.pem")
    (tmp_path / "token-key.pem").write_text("nothing")
    with pytest.raises(NoTokens, match="cannot be used"):
        LocalKey(tmp_path / "token-key.pem")
    with pytest.raises(NoTokens, match="cannot be read"):
        TokenFile(tmp_path / "none")
