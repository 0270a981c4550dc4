"""The gateway's own part of the API: accounts, API keys, sign-in links, and who one is."""

import unicodedata
from datetime import datetime
from typing import Annotated, Any

from fastapi import Depends, Request, Response
from pydantic import AfterValidator, Field, StringConstraints, model_validator

from sojourn_shared.contracts.events import Body, Id, Model, Name, Time, UserName
from sojourn_shared.errors import FieldError, InvalidBody, NotPermitted
from sojourn_shared.ids import new_id
from sojourn_shared.service import (
    Caller,
    Page,
    Paging,
    Precondition,
    allow,
    if_match,
    paging,
    problems,
    router,
    set_etag,
    transaction,
)
from sojourn_shared.service.routing import PreconditionRequired, StaleVersion

from . import domain
from .domain import (
    Account,
    AccountId,
    ApiKey,
    EmailTaken,
    KeyId,
    LastAdministrator,
    NoSuchAccount,
    NoSuchKey,
    Role,
    SignInLink,
    Wanted,
)
from .limits import RateLimited
from .store import Tx

TheTx = Annotated[Tx, Depends(transaction)]
Anyone = Annotated[Caller, Depends(allow())]
Administrator = Annotated[Caller, Depends(allow("administrator"))]
Reader = Annotated[Caller, Depends(allow("administrator", "approver", "auditor"))]
IfMatch = Annotated[Precondition, Depends(if_match)]
Asked = Annotated[Paging, Depends(paging)]

READ_ONLY = frozenset({"id", "version", "created_at", "updated_at", "console_url"})


def _address(text: str) -> str:
    local, at, host = text.rpartition("@")
    if not (local and at and host) or any(c.isspace() or unicodedata.category(c) in {"Cc", "Cs"} for c in text):
        raise ValueError("is not an e-mail address")
    return text


Email = Annotated[str, StringConstraints(min_length=3, max_length=254), AfterValidator(_address)]

# --- bodies -----------------------------------------------------------------------------------------------------------


class AccountIn(Body):
    """An account as somebody wants it. What GET gave may be sent back whole: read-only fields are ignored."""

    name: Name
    email: Email | None = None
    roles: list[Role] = Field(default=[], max_length=4)
    computer_group_ids: list[Id] | None = None
    os_users: list[UserName] | None = Field(default=None, max_length=100)

    @model_validator(mode="before")
    @classmethod
    def _without_read_only(cls, sent: Any) -> Any:
        return (
            {name: value for name, value in sent.items() if name not in READ_ONLY} if isinstance(sent, dict) else sent
        )

    def wanted(self) -> Wanted:
        """Raises InvalidBody for a limit to computer groups, which do not exist yet."""
        if self.computer_group_ids:
            detail = "Computer groups are not available yet: send null, which means everywhere."
            raise InvalidBody(detail, errors=[FieldError("/computer_group_ids", detail)])
        os_users = None if self.os_users is None else tuple(dict.fromkeys(self.os_users))
        return Wanted(name=self.name, email=self.email, roles=tuple(sorted(set(self.roles))), os_users=os_users)


class AccountOut(Model):
    id: str
    version: int
    created_at: Time
    updated_at: Time
    console_url: str | None = None
    name: str
    email: str | None
    roles: list[Role]
    computer_group_ids: list[str] | None = None
    """Null: everywhere."""
    os_users: list[str] | None
    """The OS users that are this person. Null: nobody stated it, and then it cannot decide on requests."""

    @classmethod
    def of(cls, account: Account) -> "AccountOut":
        return cls(
            id=account.id,
            version=account.version,
            created_at=account.created_at,
            updated_at=account.updated_at,
            name=account.name,
            email=account.email,
            roles=list(account.roles),
            os_users=None if account.os_users is None else list(account.os_users),
        )


class AccountPage(Page[AccountOut]):
    pass


class LinkOut(Model):
    url: str | None
    """Opens a page with a *Sign in* button; works once. Null in a repeated answer."""
    expires_at: Time


class KeyIn(Body):
    name: Name
    account_id: Id | None = None
    """Whom the key acts as; oneself when absent."""


class KeyOut(Model):
    id: str
    version: int
    created_at: Time
    updated_at: Time
    console_url: str | None = None
    name: str
    account_id: str
    account_name: str

    @classmethod
    def of(cls, key: ApiKey) -> "KeyOut":
        return cls(
            id=key.id,
            version=key.version,
            created_at=key.created_at,
            updated_at=key.updated_at,
            name=key.name,
            account_id=key.account_id,
            account_name=key.account_name,
        )


class NewKeyOut(KeyOut):
    key: str | None
    """Shown this once. Null in a repeated answer."""


class KeyPage(Page[KeyOut]):
    pass


class MeOut(Model):
    """Who one is, as every service sees it."""

    id: str
    kind: str
    name: str
    roles: list[str]
    computer_group_ids: list[str] | None
    os_users: list[str] | None


# --- accounts ---------------------------------------------------------------------------------------------------------

accounts = router("/accounts", tags=["accounts"])


@accounts.post("", status_code=201, responses=problems(EmailTaken, InvalidBody, RateLimited))
async def create_account(body: AccountIn, caller: Administrator, tx: TheTx, response: Response) -> AccountOut:
    """Create an account. Its person signs in by a link, or calls with an API key."""
    account = domain.create(body.wanted(), id=AccountId(new_id(tx.now)), now=tx.now)
    await tx.add_account(account)
    response.headers["Location"] = f"/api/v1/accounts/{account.id}"
    set_etag(response, account.version)
    return AccountOut.of(account)


@accounts.get("")
async def list_accounts(caller: Reader, tx: TheTx, asked: Asked) -> AccountPage:
    """Accounts, the newest first."""
    by_change = asked.updated_after is not None
    found = [AccountOut.of(account) for account in await tx.accounts(asked)]
    return AccountPage.model_validate(asked.page(found, lambda one: _place(one, by_change)))


@accounts.get("/{account_id}", responses=problems(NoSuchAccount))
async def get_account(account_id: Id, caller: Reader, tx: TheTx, response: Response) -> AccountOut:
    """One account."""
    account = await tx.account(account_id)
    set_etag(response, account.version)
    return AccountOut.of(account)


_CHANGE = problems(NoSuchAccount, NotPermitted, LastAdministrator, PreconditionRequired, StaleVersion)


@accounts.put("/{account_id}", responses=_CHANGE | problems(EmailTaken, InvalidBody))
async def change_account(
    account_id: Id, body: AccountIn, caller: Administrator, *, tx: TheTx, precondition: IfMatch, response: Response
) -> AccountOut:
    """Change an account. One's own roles and OS users are changed by another administrator alone."""
    administrators = await tx.administrators()
    account = await tx.account(account_id, for_update=True)
    precondition.check(account.version)
    changed = domain.change(account, body.wanted(), by=caller.id, administrators=administrators, now=tx.now)
    if changed is not account:
        await tx.save_account(changed)
    set_etag(response, changed.version)
    return AccountOut.of(changed)


@accounts.delete("/{account_id}", status_code=204, responses=_CHANGE)
async def delete_account(account_id: Id, caller: Administrator, tx: TheTx, precondition: IfMatch) -> None:
    """Remove an account with its keys and sessions. What it did stays in the ledger under its name."""
    administrators = await tx.administrators()
    account = await tx.account(account_id, for_update=True)
    precondition.check(account.version)
    await tx.delete_account(domain.delete(account, by=caller.id, administrators=administrators, now=tx.now))


@accounts.post(
    "/{account_id}/sign-in-links",
    status_code=201,
    responses=problems(NoSuchAccount, NotPermitted),
    openapi_extra={"x-secrets": ["url"]},
)
async def create_sign_in_link(account_id: Id, caller: Anyone, tx: TheTx, request: Request) -> LinkOut:
    """A one-time link into the console, for the account's person: an administrator makes it, or one for oneself."""
    if caller.id != account_id and not caller.has("administrator"):
        raise NotPermitted("Only an administrator makes a sign-in link for somebody else.")
    account = await tx.account(account_id)
    token = domain.new_secret()
    link = SignInLink(account_id=account.id, expires_at=tx.now + domain.LINK_LIFE, used_at=None)
    await tx.add_link(domain.digest(token), link)
    tx.say_link_made(account, link)
    url = f"{request.app.state.house.settings.public_url}/sign-in?token={token}"
    return LinkOut(url=url, expires_at=link.expires_at)


# --- keys -------------------------------------------------------------------------------------------------------------

keys = router("/api-keys", tags=["accounts"])


@keys.post("", status_code=201, responses=problems(NoSuchAccount), openapi_extra={"x-secrets": ["key"]})
async def create_key(body: KeyIn, caller: Administrator, tx: TheTx, response: Response) -> NewKeyOut:
    """Create an API key. It acts as its account, with the roles that the account has at each call."""
    account = await tx.account(body.account_id or caller.id)
    secret = domain.new_secret("sjn_")
    key = ApiKey(
        id=KeyId(new_id(tx.now)),
        version=1,
        name=body.name,
        account_id=account.id,
        account_name=account.name,
        created_at=tx.now,
        updated_at=tx.now,
    )
    await tx.add_key(key, digest=domain.digest(secret), created_by=caller.id)
    response.headers["Location"] = f"/api/v1/api-keys/{key.id}"
    set_etag(response, key.version)
    return NewKeyOut(**KeyOut.of(key).model_dump(), key=secret)


@keys.get("")
async def list_keys(caller: Anyone, tx: TheTx, asked: Asked) -> KeyPage:
    """API keys, the newest first, without their secrets; one's own, or all for administrators and auditors."""
    by_change = asked.updated_after is not None
    found = [KeyOut.of(key) for key in await tx.keys(asked, account_id=_own_only(caller))]
    return KeyPage.model_validate(asked.page(found, lambda one: _place(one, by_change)))


@keys.get("/{key_id}", responses=problems(NoSuchKey))
async def get_key(key_id: Id, caller: Anyone, tx: TheTx, response: Response) -> KeyOut:
    """One API key, without its secret."""
    key = _in_sight(await tx.key(key_id), caller)
    set_etag(response, key.version)
    return KeyOut.of(key)


@keys.delete(
    "/{key_id}", status_code=204, responses=problems(NoSuchKey, NotPermitted, PreconditionRequired, StaleVersion)
)
async def delete_key(key_id: Id, caller: Anyone, tx: TheTx, precondition: IfMatch) -> None:
    """Delete an API key: one's own, or any as an administrator. It opens nothing from then on."""
    key = _in_sight(await tx.key(key_id), caller)
    if caller.id != key.account_id and not caller.has("administrator"):
        raise NotPermitted("Only an administrator deletes somebody else's key.")
    precondition.check(key.version)
    await tx.delete_key(key)


def _own_only(caller: Caller) -> str | None:
    """The account whose keys the caller sees; None = all."""
    return None if caller.has("administrator", "auditor") else caller.id


def _in_sight(key: ApiKey, caller: Caller) -> ApiKey:
    if _own_only(caller) not in {None, key.account_id}:
        raise NoSuchKey(f"There is no key {key.id}.")
    return key


# --- me ---------------------------------------------------------------------------------------------------------------

me = router("/me", tags=["accounts"])


@me.get("")
async def get_me(caller: Anyone) -> MeOut:
    """Who I am."""
    return MeOut(
        id=caller.id,
        kind=caller.kind,
        name=caller.name,
        roles=sorted(caller.roles),
        computer_group_ids=None if caller.computer_group_ids is None else list(caller.computer_group_ids),
        os_users=None if caller.os_users is None else list(caller.os_users),
    )


def _place(one: AccountOut | KeyOut, by_change: bool) -> tuple[datetime, str]:
    return (one.updated_at if by_change else one.created_at), one.id
