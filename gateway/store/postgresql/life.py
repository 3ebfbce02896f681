"""Which life of the log this is. An epoch belongs to one place; the same tables in another place are a copy.

A copy may lack what the original had acknowledged, so it must never pass for it (contract, section 1, epoch). The
place is: the identity of the server's data directory, its timeline, the database, and the table of events. So a new
epoch comes by itself

* after `pg_restore` or `psql` of a dump: other tables,
* after CREATE DATABASE … TEMPLATE: another database,
* in a server of its own made from a dump: another identity,
* after a restore from a base backup with recovery, to a point in time or to the end: a new timeline,
* after a standby was promoted: a new timeline.

The last one is not needed when the standby had everything: with `?standbys=synchronous` in the URL the timeline does
not count. A disk image brought back to the same server without recovery looks like a crash and cannot be told; `vestnik
restore --new-epoch` is for that.
"""

import secrets
from typing import Any, Final

import structlog

log = structlog.get_logger(__name__)

PLACE: Final = """
    (SELECT system_identifier FROM pg_control_system()) || '/' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)
    || '/' || (SELECT oid FROM pg_database WHERE datname = current_database())
    || '.' || 'vestnik.events'::regclass::oid"""


def new_epoch() -> str:
    return secrets.token_hex(8)


def same(kept: str, here: str, *, synchronous: bool) -> bool:
    """Is the place where we are the one that the epoch belongs to?"""
    if synchronous:
        kept, here = _without_timeline(kept), _without_timeline(here)
    return kept == here


def _without_timeline(place: str) -> str:
    server, _, rest = place.partition("/")
    return f"{server}/{rest.rpartition('/')[2]}"


async def settle(conn: Any, *, synchronous: bool) -> str:
    """The epoch of the log here; a new one when the place is another. Call it inside a transaction that nobody else
    is in at the same time."""
    epoch, kept, here = await conn.fetchrow(f"SELECT epoch, place, {PLACE} FROM meta")  # noqa: S608
    if kept == here:
        return str(epoch)
    if kept and not same(kept, here, synchronous=synchronous):
        epoch = new_epoch()
        log.warning("store_is_a_copy", epoch=epoch, place=here, was=kept)
    await conn.execute("UPDATE meta SET epoch = $1, place = $2", epoch, here)
    return str(epoch)
