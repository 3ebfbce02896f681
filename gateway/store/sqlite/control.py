"""Agencies and revocations, and the number that tells when they changed. Functions of one transaction."""

import sqlite3
from collections.abc import Sequence

import orjson

from gateway.store.base import Agency, AgencyKey, Revocation
from gateway.store.sqlite.sql import dumps, micros, number, seconds


def revision(conn: sqlite3.Connection) -> int:
    return number(conn, "SELECT revision FROM meta")


def agencies(conn: sqlite3.Connection) -> list[Agency]:
    keys: dict[str, list[AgencyKey]] = {}
    for code, id, kind, material, created, retired in conn.execute(_KEYS):
        key = AgencyKey(id, kind, material, seconds(created), None if retired is None else seconds(retired))
        keys.setdefault(code, []).append(key)
    return [
        Agency(code, tuple(keys.get(code, ())), tuple(orjson.loads(types)), seconds(created))
        for code, types, created in conn.execute("SELECT code, types, created FROM agencies ORDER BY code")
    ]


_KEYS = "SELECT agency, id, kind, material, created, retired FROM agency_keys ORDER BY place"


def add_agency_key(
    conn: sqlite3.Connection, code: str, key: AgencyKey, types: Sequence[str] | None, now: float
) -> None:
    if number(conn, "SELECT count(*) FROM agency_keys WHERE agency = ? AND id = ?", code, key.id):
        raise ValueError(f"agency {code} already has a key {key.id}")
    conn.execute("INSERT INTO agencies VALUES (?, '[]', ?) ON CONFLICT DO NOTHING", (code, micros(now)))
    if types is not None:
        conn.execute("UPDATE agencies SET types = ? WHERE code = ?", (dumps(list(types)), code))
    retired = None if key.retired is None else micros(key.retired)
    conn.execute(
        "INSERT INTO agency_keys (agency, id, kind, material, created, retired) VALUES (?, ?, ?, ?, ?, ?)",
        (code, key.id, key.kind, key.material, micros(key.created), retired),
    )
    _changed(conn)


def retire_agency_key(conn: sqlite3.Connection, code: str, key_id: str, now: float) -> bool:
    done = conn.execute(
        "UPDATE agency_keys SET retired = ? WHERE agency = ? AND id = ? AND retired IS NULL",
        (micros(now), code, key_id),
    )
    if done.rowcount:
        _changed(conn)
    return done.rowcount > 0


def revoke(conn: sqlite3.Connection, revocation: Revocation) -> None:
    done = conn.execute(_REVOKE, (revocation.kind, revocation.value, micros(revocation.before)))
    if done.rowcount:
        _changed(conn)


_REVOKE = """
    INSERT INTO revocations VALUES (?, ?, ?)
    ON CONFLICT (kind, value) DO UPDATE SET before = excluded.before WHERE before < excluded.before"""


def revocations(conn: sqlite3.Connection) -> list[Revocation]:
    rows = conn.execute("SELECT kind, value, before FROM revocations")
    return [Revocation(kind, value, seconds(before)) for kind, value, before in rows]


def _changed(conn: sqlite3.Connection) -> None:
    conn.execute("UPDATE meta SET revision = revision + 1")
