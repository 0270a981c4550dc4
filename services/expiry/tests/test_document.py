"""What stands in a document, and that everything which was let in can also be revoked in it."""

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as some

from sojourn_expiry import document, domain
from sojourn_expiry.domain import Grant, Revocation
from sojourn_shared.contracts import wire
from sojourn_shared.ids import new_id

NOW = datetime(2026, 11, 2, 9, 0, tzinfo=UTC)
ID = new_id(NOW)
WORDS = some.text(some.characters(exclude_categories=("Cc", "Cs")), max_size=2000)


def grant(**fields: Any) -> Grant:
    ids = {"id": ID, "computer_id": ID, "policy_id": ID, "request_id": ID}
    times = {"from_": NOW, "until": NOW + timedelta(hours=1), "created_at": NOW, "updated_at": NOW}
    return Grant(status="active", delivery="applied", **ids | times | fields)


@given(
    reason=WORDS,
    name=some.text(min_size=1, max_size=256),
    grace=some.integers(0, 3600),
    rules=some.integers(0, 3),
    superseded=some.booleans(),
)
def test_a_revoke_always_fits(reason: str, name: str, grace: int, rules: int, superseded: bool) -> None:
    """Whatever the reason, the grant takes no more room revoked than it was counted with, and never much."""
    before = grant(
        policy_name=name,
        user_names=("alice",),
        rules=tuple({"type": "file_hash", "sha256": "a" * 64} for _ in range(rules)),
    )
    revocation = Revocation(by=ID, by_name="Ada", at=NOW, reason=reason, grace_seconds=grace, superseded=superseded)
    after = document.on_wire(domain.revoke(before, revocation), uses_before=999_999)
    size = len(wire.encode(after))
    assert size <= document.size_on_wire(before)
    assert size <= document.REVOKED_BYTES
    assert after.revoked is not None
    assert reason.startswith(after.revoked.reason)


def test_a_full_document_is_below_what_a_push_may_carry() -> None:
    """180 KiB of payload, in base64url and signed, stays below the limit of agents and bus."""
    assert document.PAYLOAD_LIMIT * 4 // 3 + 1024 < wire.DOCUMENT_LIMIT


def test_versions_only_grow() -> None:
    """Milliseconds since 1970, or one more than what is held."""
    milliseconds = int(NOW.timestamp() * 1000)
    assert document.next_version(0, NOW) == milliseconds
    assert document.next_version(milliseconds, NOW) == milliseconds + 1
    assert document.next_version(milliseconds + 10**6, NOW) == milliseconds + 10**6 + 1
