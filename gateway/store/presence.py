"""Who stands for a device after some have entered: the same answer in every store. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from gateway.store.base import Entered, Presence

Key = tuple[str, str]  # (account, device)

TICK_S = 0.000_001


def enter(
    presences: Sequence[Presence], known: Mapping[Key, Presence], present: Mapping[str, frozenset[str]], now: float
) -> tuple[list[Entered], list[Presence]]:
    """What each is told, and what stands for each device in the end, sorted: rows are locked in this order everywhere.

    `known` is what stands now, `present` the connected devices of the accounts.
    """
    standing = dict(known)
    connected = dict(present)
    told = []
    for presence in presences:
        key = presence.account, presence.device
        before = standing.get(key)
        since = now if before is None else max(now, round(before.since + TICK_S, 6))
        standing[key] = replace(presence, since=since)
        devices = connected.get(presence.account, frozenset())
        connected[presence.account] = devices | {presence.device} if presence.session else devices - {presence.device}
        other = before is not None and before.session not in ("", presence.session)
        told.append(
            Entered(since, before.session if before is not None and other else None, devices - {presence.device})
        )
    keys = {(presence.account, presence.device) for presence in presences}
    return told, [standing[key] for key in sorted(keys)]


def superseded(presences: Sequence[Presence], known: Mapping[Key, Presence]) -> tuple[list[Presence], list[Presence]]:
    """(what stands instead of some of these, those of them that must be written again, sorted)."""
    instead: list[Presence] = []
    again: dict[Key, Presence] = {}
    for presence in presences:
        key = presence.account, presence.device
        found = known.get(key)
        if found is None or (found.session != presence.session and found.since < presence.since):
            if key not in again or again[key].since < presence.since:
                again[key] = presence
        elif found.session != presence.session:
            instead.append(found)
    return instead, [again[key] for key in sorted(again)]
