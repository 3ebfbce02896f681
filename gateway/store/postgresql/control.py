"""Agencies and revocations, and the number that tells when they changed. Functions of one transaction, or of one
statement."""

from collections.abc import Sequence

from gateway.store.base import Agency, AgencyKey, Revocation
from gateway.store.postgresql.database import Connection
from gateway.store.postgresql.sql import micros, seconds


async def revision(conn: Connection) -> int:
    return int(await conn.fetchval("SELECT revision FROM meta"))


async def agencies(conn: Connection) -> list[Agency]:
    found: dict[str, Agency] = {}
    for code, types, created, id, kind, material, made, retired in await conn.fetch(_AGENCIES):
        keys = found[code].keys if code in found else ()
        if id is not None:
            keys += (AgencyKey(id, kind, material, seconds(made), None if retired is None else seconds(retired)),)
        found[code] = Agency(code, keys, tuple(types), seconds(created))
    return list(found.values())


_AGENCIES = """
    SELECT a.code, a.types, a.created, k.id, k.kind, k.material, k.created, k.retired
    FROM agencies AS a LEFT JOIN agency_keys AS k ON k.agency = a.code ORDER BY a.code, k.place"""


async def add_agency_key(conn: Connection, code: str, key: AgencyKey, types: Sequence[str] | None, now: float) -> None:
    await _changed(conn)
    if await conn.fetchval("SELECT count(*) FROM agency_keys WHERE agency = $1 AND id = $2", code, key.id):
        raise ValueError(f"agency {code} already has a key {key.id}")
    await conn.execute("INSERT INTO agencies VALUES ($1, '{}', $2) ON CONFLICT DO NOTHING", code, micros(now))
    if types is not None:
        await conn.execute("UPDATE agencies SET types = $2 WHERE code = $1", code, list(types))
    retired = None if key.retired is None else micros(key.retired)
    await conn.execute(
        "INSERT INTO agency_keys (agency, id, kind, material, created, retired) VALUES ($1, $2, $3, $4, $5, $6)",
        *(code, key.id, key.kind, key.material, micros(key.created), retired),
    )


async def retire_agency_key(conn: Connection, code: str, key_id: str, now: float) -> bool:
    done = await conn.execute(_RETIRE, code, key_id, micros(now))
    if done == "UPDATE 0":
        return False
    await _changed(conn)
    return True


_RETIRE = "UPDATE agency_keys SET retired = $3 WHERE agency = $1 AND id = $2 AND retired IS NULL"


async def revoke(conn: Connection, revocation: Revocation) -> None:
    done = await conn.execute(_REVOKE, revocation.kind, revocation.value, micros(revocation.before))
    if done != "INSERT 0 0":
        await _changed(conn)


_REVOKE = """
    INSERT INTO revocations VALUES ($1, $2, $3)
    ON CONFLICT (kind, value) DO UPDATE SET before = excluded.before WHERE revocations.before < excluded.before"""


async def revocations(conn: Connection) -> list[Revocation]:
    rows = await conn.fetch("SELECT kind, value, before FROM revocations")
    return [Revocation(kind, value, seconds(before)) for kind, value, before in rows]


async def _changed(conn: Connection) -> None:
    await conn.execute("UPDATE meta SET revision = revision + 1")
