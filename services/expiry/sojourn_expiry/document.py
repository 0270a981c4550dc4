"""The document of one computer: what it says, and how each grant is written. Pure: `publisher` signs it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import msgspec

from sojourn_shared.contracts import wire

from .domain import Grant, Revocation

PAYLOAD_LIMIT = 180 * 1024
"""Bytes of a document's payload; signed and in base64url that is below what a push may carry (256 KiB)."""
FRAME_BYTES = 4 * 1024
"""Room for what is no grant: ids, times, `asking`."""
REASON_BYTES = 200
"""What a reason takes at most, as JSON: the rest is for the console."""
REVOKED_BYTES = 1024
"""What a grant that was taken away takes at most: no rules, no users, no name, a short reason."""


def build(
    computer_id: str,
    grants: Sequence[tuple[Grant, int]],
    *,
    epoch: int,
    version: int,
    now: datetime,
    max_offline: timedelta,
    asking: wire.Asking,
) -> bytes:
    """The payload; `grants` are pairs of a grant and the uses that other grants of its policy had before it."""
    return wire.encode(
        wire.Document(
            v=1,
            computer_id=computer_id,
            epoch=epoch,
            version=version,
            issued_at=now,
            valid_until=now + max_offline,
            asking=asking,
            grants=[msgspec.Raw(wire.encode(on_wire(grant, uses_before))) for grant, uses_before in grants],
        )
    )


def next_version(held: int, now: datetime) -> int:
    """Versions only grow, and are milliseconds since 1970: an old database that is restored overtakes by itself."""
    return max(held + 1, int(now.timestamp() * 1000))


def on_wire(grant: Grant, uses_before: int = 0) -> wire.Grant:
    """A grant as the agent reads it. One that was taken away keeps only what ends it, so that revoking always fits.

    Raises msgspec.ValidationError when a stored rule is none that the wire knows.
    """
    over = grant.revoked is not None
    return wire.Grant(
        id=grant.id,
        users=wire.Users() if over else wire.Users(all=grant.users_all, names=list(grant.user_names)),
        from_=grant.from_,
        until=grant.until,
        starts=grant.starts,
        duration_minutes=_minutes(grant.duration),
        take_up_until=grant.take_up_until,
        policy_id=grant.policy_id,
        policy_name=None if over else grant.policy_name,
        request_id=grant.request_id,
        rules=[] if over else _rules(grant.rules),
        child_processes=grant.child_processes,
        run_as=grant.run_as,
        max_uses=grant.max_uses,
        uses_before=uses_before,
        ends_with_application=grant.ends_with_application,
        ticket_required=grant.ticket_required,
        revoked=_revoked(grant),
    )


def size_on_wire(grant: Grant) -> int:
    """Bytes that the grant takes in a document at most, in force or revoked: what fits once fits for good."""
    longest = Revocation(by="", by_name="", at=grant.created_at, reason="x" * REASON_BYTES, grace_seconds=3600)
    sizes = (len(wire.encode(on_wire(one))) for one in (grant, replace(grant, revoked=longest)))
    return max(sizes) + 64  # the comma, and `until` and `uses_before`, which are still to come


def _rules(rules: Sequence[Mapping[str, object]]) -> list[wire.Rule]:
    return msgspec.convert(list(rules), list[wire.Rule])


def _revoked(grant: Grant) -> wire.Revoked | None:
    if grant.revoked is None:
        return None
    return wire.Revoked(
        at=grant.revoked.at,
        reason=_short(grant.revoked.reason),
        grace_seconds=grant.revoked.grace_seconds,
        superseded=grant.revoked.superseded,
    )


def _short(reason: str) -> str:
    reason = reason[:REASON_BYTES]
    while len(wire.encode(reason)) > REASON_BYTES:
        reason = reason[:-1]
    return reason


def _minutes(duration: timedelta | None) -> int | None:
    return None if duration is None else int(duration.total_seconds() // 60)
