"""Who may call: accounts with roles and OS users, their keys and sessions, and who may change whom."""

import hashlib
import secrets
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal, NewType, get_args

from sojourn_shared.errors import DomainError, NotFound, NotPermitted

AccountId = NewType("AccountId", str)
KeyId = NewType("KeyId", str)
SessionId = NewType("SessionId", str)

Role = Literal["requester", "approver", "auditor", "administrator"]
ROLES: tuple[Role, ...] = get_args(Role)

SESSION_IDLE = timedelta(hours=1)
"""A browser left open on a desk is signed out after this long without a page."""
SESSION_LONGEST = timedelta(hours=12)
"""One working day: whoever goes on signs in again."""
SESSION_TOUCH = timedelta(minutes=1)
"""How exactly idleness is known; a write for every page would buy nothing."""
LINK_LIFE = timedelta(hours=1)
"""How long a sign-in link may wait in a terminal or a chat."""


class NoSuchAccount(NotFound):
    title = "There is no such account"


class NoSuchKey(NotFound):
    title = "There is no such key"


class EmailTaken(DomainError):
    code, status, title = "name-taken", 409, "The name is taken"


class LastAdministrator(NotPermitted):
    title = "Somebody has to administer"


class BadLink(DomainError):
    code, status, title = "unauthenticated", 401, "This link does not sign in"


@dataclass(frozen=True, kw_only=True)
class Account:
    """A person. `os_users`: the operating-system users that are this person; () = stated none, None = nobody said."""

    id: AccountId
    version: int
    name: str
    email: str | None
    roles: tuple[Role, ...]
    os_users: tuple[str, ...] | None
    created_at: datetime
    updated_at: datetime

    @property
    def administers(self) -> bool:
        return "administrator" in self.roles


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What somebody wants an account to be."""

    name: str
    email: str | None
    roles: tuple[Role, ...]
    os_users: tuple[str, ...] | None


def create(wanted: Wanted, *, id: AccountId, now: datetime) -> Account:
    """A new account, at version 1."""
    return Account(
        id=id,
        version=1,
        name=wanted.name,
        email=wanted.email,
        roles=wanted.roles,
        os_users=wanted.os_users,
        created_at=now,
        updated_at=now,
    )


def change(
    account: Account, wanted: Wanted, *, by: str, administrators: Collection[AccountId], now: datetime
) -> Account:
    """The account as wanted; unchanged when it is so already.

    `by` is the caller's account id; `administrators` are all that there are, this one included.

    Raises: NotPermitted (one's own roles or OS users: they decide whose requests one may decide), LastAdministrator.
    """
    changed = replace(account, name=wanted.name, email=wanted.email, roles=wanted.roles, os_users=wanted.os_users)
    if changed == account:
        return account
    if by == account.id and (set(changed.roles) != set(account.roles) or changed.os_users != account.os_users):
        raise NotPermitted("Only another administrator changes your roles or OS users.")
    if account.administers and not changed.administers:
        _another_must_administer(account, administrators)
    return replace(changed, version=account.version + 1, updated_at=now)


def delete(account: Account, *, by: str, administrators: Collection[AccountId], now: datetime) -> Account:
    """The account as it was last, for its final event. Raises NotPermitted, LastAdministrator."""
    if account.administers:
        _another_must_administer(account, administrators)
    if by == account.id:
        raise NotPermitted("Only another administrator removes your account.")
    return replace(account, version=account.version + 1, updated_at=now)


def _another_must_administer(account: Account, administrators: Collection[AccountId]) -> None:
    if not set(administrators) - {account.id}:
        raise LastAdministrator(f"{account.name} is the last administrator: make somebody else one first.")


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """A key that acts as its account. Only the digest of the secret is kept."""

    id: KeyId
    version: int
    name: str
    account_id: AccountId
    account_name: str
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, kw_only=True)
class Session:
    """One browser that signed in."""

    id: SessionId
    account: Account
    created_at: datetime
    seen_at: datetime

    def holds_at(self, now: datetime) -> bool:
        return now < self.created_at + SESSION_LONGEST and now < self.seen_at + SESSION_IDLE

    def is_worth_touching(self, now: datetime) -> bool:
        return now >= self.seen_at + SESSION_TOUCH


@dataclass(frozen=True, kw_only=True)
class SignInLink:
    """A one-time way into the console."""

    account_id: AccountId
    expires_at: datetime
    used_at: datetime | None

    def check(self, now: datetime) -> None:
        """Raises BadLink, saying why."""
        if self.used_at is not None:
            raise BadLink("This sign-in link was used already. Each works once; ask an administrator for another.")
        if now >= self.expires_at:
            raise BadLink("This sign-in link is too old. Ask an administrator for another.")


def new_secret(prefix: str = "") -> str:
    """256 random bits, URL-safe, after `prefix`."""
    return prefix + secrets.token_urlsafe(32)


def digest(secret: str) -> bytes:
    """What is kept of a secret. Secrets have 256 random bits, so that a plain SHA-256 is enough."""
    return hashlib.sha256(secret.encode()).digest()


def csrf_token(session_secret: str) -> str:
    """What every form of a session carries; no other site can know it, and it tells nothing of the secret."""
    return hashlib.sha256(b"form\n" + session_secret.encode()).hexdigest()
