"""The document of one computer: which grants stand in it, and how each is written. Pure: `publisher` signs it."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

import msgspec

from sojourn_shared.contracts import wire

from .domain import ANNOUNCED, Grant

PAYLOAD_LIMIT = 180 * 1024
"""Bytes of a document's payload; signed and in base64url that is below what a push may carry (256 KiB)."""
FRAME_BYTES = 4 * 1024
"""Room for what is no grant: ids, times, `asking`."""
OVER_BYTES = 2 * 1024
"""What a grant that is over can take at most: no rules, no users, a reason of at most 200 characters."""
REASON_CHARACTERS = 200


def belongs(grant: Grant, now: datetime, *, decommissioned: bool = False) -> bool:
    """Whether the document written at `now` holds this grant; `store.grants.in_documents` asks the same in SQL."""
    if not grant.is_final:
        return grant.from_ <= now + ANNOUNCED
    return grant.delivery == "ending" or (decommissioned and grant.delivery == "unconfirmed")


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
        policy_name=grant.policy_name,
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
    """Bytes that the grant takes in a document while it is in force."""
    return len(wire.encode(on_wire(grant))) + 32  # the comma, and the digits of `until` and `uses_before` to come


def _rules(rules: Sequence[Mapping[str, object]]) -> list[wire.Rule]:
    return msgspec.convert(list(rules), list[wire.Rule])


def _revoked(grant: Grant) -> wire.Revoked | None:
    if grant.revoked is None:
        return None
    return wire.Revoked(
        at=grant.revoked.at,
        reason=grant.revoked.reason[:REASON_CHARACTERS],
        grace_seconds=grant.revoked.grace_seconds,
        superseded=grant.revoked.superseded,
    )


def _minutes(duration: timedelta | None) -> int | None:
    return None if duration is None else int(duration.total_seconds() // 60)
