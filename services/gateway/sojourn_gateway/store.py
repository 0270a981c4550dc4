"""The gateway's tables and queries; nothing else speaks SQL."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from typing import Any, Literal

import msgspec
from sqlalchemy import (
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Row,
    Table,
    Text,
    delete,
    insert,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import IntegrityError

from sojourn_shared.clock import rfc3339
from sojourn_shared.contracts.events import Actor
from sojourn_shared.service import Paging, Transaction, settled_until
from sojourn_shared.service.schema import moment

from .domain import (
    SESSION_IDLE,
    SESSION_LONGEST,
    Account,
    AccountId,
    ApiKey,
    BadLink,
    EmailTaken,
    KeyId,
    NoSuchAccount,
    NoSuchKey,
    Session,
    SessionId,
    SignInLink,
)

metadata = MetaData()
Refused = Literal["sign_in", "api_key"]
LINKS_KEPT = timedelta(days=35)  # so that a used link is said to be used, not unknown


def _account() -> Column[Any]:
    return Column("account_id", Text, ForeignKey("accounts.id", ondelete="CASCADE"), nullable=False)


accounts = Table(
    "accounts",
    metadata,
    Column("id", Text, primary_key=True),
    Column("version", Integer, nullable=False),
    Column("name", Text, nullable=False),
    Column("email", Text),
    Column("email_key", Text),  # the address without case: what must be unique
    Column("roles", ARRAY(Text), nullable=False),
    Column("os_users", ARRAY(Text)),
    Column("is_first", Boolean, nullable=False),  # made from the bootstrap file; at most one is
    moment("created_at", nullable=False),
    moment("updated_at", nullable=False),
    Index("accounts_email", "email_key", unique=True),
    Index("accounts_first", "is_first", unique=True, postgresql_where=text("is_first")),
    Index("accounts_newest", "created_at", "id"),
    Index("accounts_updated", "updated_at", "id"),
)
api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("version", Integer, nullable=False),
    Column("name", Text, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("created_by", Text, nullable=False),
    _account(),
    moment("created_at", nullable=False),
    moment("updated_at", nullable=False),
    Index("api_keys_by_digest", "digest", unique=True),
    Index("api_keys_by_account", "account_id"),
    Index("api_keys_newest", "created_at", "id"),
)
sessions = Table(
    "sessions",
    metadata,
    Column("id", Text, primary_key=True),
    Column("digest", LargeBinary, nullable=False),
    _account(),
    moment("created_at", nullable=False),
    moment("seen_at", nullable=False),
    Index("sessions_by_digest", "digest", unique=True),
    Index("sessions_by_account", "account_id"),
)
sign_in_links = Table(
    "sign_in_links",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    _account(),
    moment("created_at", nullable=False),
    moment("expires_at", nullable=False),
    moment("used_at"),
    Index("sign_in_links_by_account", "account_id"),
)
refusals = Table(
    "refusals",
    metadata,
    Column("source", Text, primary_key=True),
    Column("what", Text, primary_key=True),
    moment("minute", primary_key=True),
    Column("count", Integer, nullable=False),
)

_KEYS = select(api_keys, accounts.c.name.label("account_name")).join(accounts)


class Tx(Transaction):
    """A transaction of the gateway."""

    # --- accounts -----------------------------------------------------------------------------------------------------

    async def account(self, account_id: str, *, for_update: bool = False) -> Account:
        """Raises NoSuchAccount."""
        query = select(accounts).where(accounts.c.id == account_id)
        row = (await self.connection.execute(query.with_for_update() if for_update else query)).one_or_none()
        if row is None:
            raise NoSuchAccount(f"There is no account {account_id}.")
        return _account_of(row)

    async def accounts(self, paging: Paging) -> Sequence[Account]:
        """One page and one more, the newest first; by `updated_after` the longest unchanged first."""
        rows = await self._list(select(accounts), accounts, paging)
        return [_account_of(row) for row in rows]

    async def administrators(self) -> Sequence[AccountId]:
        """Every administrator, locked: two that remove each other at once take turns, and the last one stays."""
        query = select(accounts.c.id).where(accounts.c.roles.contains(["administrator"]))
        rows = await self.connection.execute(query.order_by(accounts.c.id).with_for_update())
        return [AccountId(row.id) for row in rows]

    async def first_account(self) -> Account | None:
        """The one made from the bootstrap file."""
        query = select(accounts).where(accounts.c.is_first).with_for_update()
        row = (await self.connection.execute(query)).one_or_none()
        return _account_of(row) if row else None

    async def add_account(self, account: Account, *, is_first: bool = False) -> None:
        """Raises EmailTaken."""
        await self._keeping_emails_apart(account, insert(accounts).values(**_row_of(account), is_first=is_first))
        self._say_account("account.created", account)

    async def save_account(self, account: Account) -> None:
        """Raises EmailTaken."""
        await self._keeping_emails_apart(
            account, update(accounts).where(accounts.c.id == account.id).values(**_row_of(account))
        )
        self._say_account("account.changed", account)

    async def _keeping_emails_apart(self, account: Account, statement: Any) -> None:
        try:
            async with self.connection.begin_nested():
                await self.connection.execute(statement)
        except IntegrityError as error:
            if "accounts_email" not in str(error.orig):
                raise
            raise EmailTaken(f"Another account has the address {account.email}.") from None

    async def delete_account(self, account: Account) -> None:
        """`account` as it was last. Its keys, sessions and links go with it."""
        for key in (await self.keys_of(account.id)).values():
            await self.delete_key(key)
        await self.connection.execute(delete(accounts).where(accounts.c.id == account.id))
        self._say_account("account.deleted", account)

    def _say_account(self, change: str, account: Account) -> None:
        self.emit(change, id=account.id, entity=_told_of(account), version=account.version)

    # --- keys ---------------------------------------------------------------------------------------------------------

    async def account_of_key(self, digest: bytes) -> Account | None:
        query = select(accounts).join(api_keys).where(api_keys.c.digest == digest)
        row = (await self.connection.execute(query)).one_or_none()
        return _account_of(row) if row else None

    async def key(self, key_id: str) -> ApiKey:
        """Raises NoSuchKey."""
        row = (await self.connection.execute(_KEYS.where(api_keys.c.id == key_id))).one_or_none()
        if row is None:
            raise NoSuchKey(f"There is no key {key_id}.")
        return _key_of(row)

    async def keys(self, paging: Paging, *, account_id: str | None = None) -> Sequence[ApiKey]:
        query = _KEYS if account_id is None else _KEYS.where(api_keys.c.account_id == account_id)
        return [_key_of(row) for row in await self._list(query, api_keys, paging)]

    async def keys_of(self, account_id: AccountId, *, created_by: str | None = None) -> dict[bytes, ApiKey]:
        """All keys of an account by their digest; only those that `created_by` made, when given."""
        query = _KEYS.where(api_keys.c.account_id == account_id)
        if created_by is not None:
            query = query.where(api_keys.c.created_by == created_by)
        return {row.digest: _key_of(row) for row in await self.connection.execute(query)}

    async def add_key(self, key: ApiKey, *, digest: bytes, created_by: str) -> None:
        values = {"id": key.id, "version": key.version, "name": key.name, "digest": digest, "created_by": created_by}
        values |= {"account_id": key.account_id, "created_at": key.created_at, "updated_at": key.updated_at}
        await self.connection.execute(insert(api_keys).values(values))
        self.emit("key.created", id=key.id, entity=_told_of(key), version=key.version)

    async def delete_key(self, key: ApiKey) -> None:
        """Nothing happens when somebody else deleted it first."""
        done = await self.connection.execute(delete(api_keys).where(api_keys.c.id == key.id))
        if done.rowcount:
            last = replace(key, version=key.version + 1, updated_at=self.now)
            self.emit("key.deleted", id=key.id, entity=_told_of(last), version=last.version)

    # --- sessions -----------------------------------------------------------------------------------------------------

    async def session(self, digest: bytes) -> Session | None:
        query = (
            select(
                accounts, sessions.c.id.label("session_id"), sessions.c.created_at.label("began"), sessions.c.seen_at
            )
            .join(sessions)
            .where(sessions.c.digest == digest)
        )
        row = (await self.connection.execute(query)).one_or_none()
        if row is None:
            return None
        return Session(
            id=SessionId(row.session_id), account=_account_of(row), created_at=row.began, seen_at=row.seen_at
        )

    async def add_session(self, session: Session, digest: bytes, *, source: str) -> None:
        whose = {"id": session.id, "digest": digest, "account_id": session.account.id}
        when = {"created_at": session.created_at, "seen_at": session.seen_at}
        await self.connection.execute(insert(sessions).values(whose | when))
        self._say_session("session.signed_in", session, source)

    async def touch_session(self, session_id: SessionId) -> None:
        await self.connection.execute(update(sessions).where(sessions.c.id == session_id).values(seen_at=self.now))

    async def delete_session(self, session: Session, *, source: str) -> None:
        done = await self.connection.execute(delete(sessions).where(sessions.c.id == session.id))
        if done.rowcount:
            self._say_session("session.signed_out", session, source)

    def _say_session(self, change: str, session: Session, source: str) -> None:
        entity = {"id": session.id, "account_id": session.account.id, "source": source}
        actor = Actor(kind="account", id=session.account.id, name=session.account.name)
        self.emit(change, id=session.id, entity=entity, version=None, actor=actor)

    async def add_link(self, digest: bytes, link: SignInLink) -> None:
        """A link that is there already stays as it is: used or too old, it does not come back."""
        values = {"digest": digest, "account_id": link.account_id, "created_at": self.now}
        values |= {"expires_at": link.expires_at, "used_at": None}
        await self.connection.execute(upsert(sign_in_links).values(values).on_conflict_do_nothing())

    def say_link_made(self, account: Account, link: SignInLink) -> None:
        """Whoever holds a link can sign in as `account`: the ledger tells who made it."""
        entity = {"account_id": account.id, "account_name": account.name, "expires_at": rfc3339(link.expires_at)}
        self.emit("session.link_made", id=account.id, entity=entity, version=None)

    async def use_link(self, digest: bytes) -> Account:
        """The account that the link signs in; the link is used by this. Raises BadLink."""
        query = select(sign_in_links).where(sign_in_links.c.digest == digest).with_for_update()
        row = (await self.connection.execute(query)).one_or_none()
        if row is None:
            raise BadLink("This is no sign-in link of this server. Was it copied whole?")
        link = SignInLink(account_id=AccountId(row.account_id), expires_at=row.expires_at, used_at=row.used_at)
        link.check(self.now)
        used = update(sign_in_links).where(sign_in_links.c.digest == digest).values(used_at=self.now)
        await self.connection.execute(used)
        return await self.account(link.account_id)

    async def forget_what_is_over(self) -> None:
        """Sessions that do not hold any more, and links too old to be asked about."""
        over = (sessions.c.created_at < self.now - SESSION_LONGEST) | (sessions.c.seen_at < self.now - SESSION_IDLE)
        await self.connection.execute(delete(sessions).where(over))
        await self.connection.execute(delete(sign_in_links).where(sign_in_links.c.expires_at < self.now - LINKS_KEPT))

    # --- refusals -----------------------------------------------------------------------------------------------------

    async def count_refusal(self, source: str, what: Refused) -> None:
        minute = self.now.replace(second=0, microsecond=0)
        row = upsert(refusals).values(source=source, what=what, minute=minute, count=1)
        await self.connection.execute(
            row.on_conflict_do_update(index_elements=["source", "what", "minute"], set_={"count": refusals.c.count + 1})
        )

    async def take_refusals(self) -> Sequence[Row[Any]]:
        """The counts of minutes that are over; they are told by this transaction or stay."""
        minute = self.now.replace(second=0, microsecond=0)
        taken = delete(refusals).where(refusals.c.minute < minute).returning(refusals)
        return (await self.connection.execute(taken)).all()

    async def _list(self, query: Any, table: Table, paging: Paging) -> Sequence[Row[Any]]:
        moment = table.c.created_at if paging.updated_after is None else table.c.updated_at
        place = tuple_(moment, table.c.id)
        if paging.updated_after is None:
            query = query.order_by(moment.desc(), table.c.id.desc())
            query = query.where(place < tuple_(*paging.cursor)) if paging.cursor else query
        else:
            horizon = await settled_until(self.connection)
            query = query.order_by(moment, table.c.id).where(moment > paging.updated_after, moment < horizon)
            query = query.where(place > tuple_(*paging.cursor)) if paging.cursor else query
        return (await self.connection.execute(query.limit(paging.limit + 1))).all()


def _told_of(entity: Account | ApiKey) -> dict[str, Any]:
    """The entity as its event tells it."""
    told: dict[str, Any] = msgspec.to_builtins(asdict(entity))
    if isinstance(entity, Account):
        told["computer_group_ids"] = None  # everywhere, until there are groups
    return told | {"created_at": rfc3339(entity.created_at), "updated_at": rfc3339(entity.updated_at)}


def _account_of(row: Row[Any]) -> Account:
    return Account(
        id=AccountId(row.id),
        version=row.version,
        name=row.name,
        email=row.email,
        roles=tuple(row.roles),
        os_users=None if row.os_users is None else tuple(row.os_users),
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def _row_of(account: Account) -> dict[str, Any]:
    return {
        "id": account.id,
        "version": account.version,
        "name": account.name,
        "email": account.email,
        "email_key": account.email.casefold() if account.email else None,
        "roles": list(account.roles),
        "os_users": None if account.os_users is None else list(account.os_users),
        "created_at": account.created_at,
        "updated_at": account.updated_at,
    }


def _key_of(row: Row[Any]) -> ApiKey:
    return ApiKey(
        id=KeyId(row.id),
        version=row.version,
        name=row.name,
        account_id=AccountId(row.account_id),
        account_name=row.account_name,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )
