"""Who may change whom."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from sojourn_gateway import domain
from sojourn_gateway.domain import (
    Account,
    AccountId,
    BadLink,
    LastAdministrator,
    Session,
    SessionId,
    SignInLink,
    Wanted,
)
from sojourn_shared.errors import NotPermitted

NOW = datetime(2026, 11, 2, 9, 0, tzinfo=UTC)
ADA, BEN = AccountId("ada"), AccountId("ben")


def account(id: AccountId, *roles: domain.Role, os_users: tuple[str, ...] | None = ()) -> Account:
    wanted = Wanted(name=id, email=None, roles=roles, os_users=os_users)
    return domain.create(wanted, id=id, now=NOW)


def wanted(of: Account, **changes: object) -> Wanted:
    changed = replace(of, **changes)  # type: ignore[arg-type]
    return Wanted(name=changed.name, email=changed.email, roles=changed.roles, os_users=changed.os_users)


def test_a_change_is_a_new_version_and_the_same_is_none() -> None:
    """What is so already changes nothing, and gives no event."""
    ben = account(BEN, "approver")
    changed = domain.change(ben, wanted(ben, roles=("auditor",)), by=ADA, administrators=[ADA], now=NOW)
    assert (changed.roles, changed.version) == (("auditor",), 2)
    assert domain.change(ben, wanted(ben), by=ADA, administrators=[ADA], now=NOW) is ben


@pytest.mark.parametrize("change", [{"roles": ("approver",)}, {"os_users": ("mallory",)}, {"os_users": None}])
def test_nobody_changes_their_own_roles_or_os_users(change: dict[str, object]) -> None:
    """They decide whose requests one may decide: only another administrator says them."""
    ada = account(ADA, "administrator")
    with pytest.raises(NotPermitted, match="another administrator"):
        domain.change(ada, wanted(ada, **change), by=ADA, administrators=[ADA, BEN], now=NOW)
    renamed = domain.change(ada, wanted(ada, name="Ada L."), by=ADA, administrators=[ADA], now=NOW)
    assert renamed.name == "Ada L."


def test_the_last_administrator_stays() -> None:
    """Neither by losing the role nor by being deleted, whoever asks."""
    ada = account(ADA, "administrator")
    with pytest.raises(LastAdministrator):
        domain.change(ada, wanted(ada, roles=()), by=BEN, administrators=[ADA], now=NOW)
    with pytest.raises(LastAdministrator):
        domain.delete(ada, by=BEN, administrators=[ADA], now=NOW)
    assert domain.delete(ada, by=BEN, administrators=[ADA, BEN], now=NOW).version == 2
    with pytest.raises(NotPermitted):
        domain.delete(ada, by=ADA, administrators=[ADA, BEN], now=NOW)


def test_a_session_ends_when_idle_and_after_a_day() -> None:
    """Use holds it, but not for ever."""
    began = Session(id=SessionId("s"), account=account(ADA), created_at=NOW, seen_at=NOW)
    assert began.holds_at(NOW + domain.SESSION_IDLE - timedelta(seconds=1))
    assert not began.holds_at(NOW + domain.SESSION_IDLE)
    used = replace(began, seen_at=NOW + domain.SESSION_LONGEST)
    assert not used.holds_at(NOW + domain.SESSION_LONGEST)


def test_a_link_works_once_and_not_for_ever() -> None:
    """The refusal says which of the two it was."""
    link = SignInLink(account_id=ADA, expires_at=NOW + timedelta(minutes=1), used_at=None)
    link.check(NOW)
    with pytest.raises(BadLink, match="too old"):
        link.check(NOW + timedelta(minutes=1))
    with pytest.raises(BadLink, match="used already"):
        replace(link, used_at=NOW).check(NOW)
