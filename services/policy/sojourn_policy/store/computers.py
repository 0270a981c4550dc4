"""Computers and enrolment tokens in the database, and the events that tell of them."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import ColumnElement, insert, or_, select, update

from sojourn_policy.domain.computers import (
    Computer,
    ComputerGuarantee,
    ComputerPlatform,
    ComputerUser,
    Enrolment,
    NoSuchComputer,
    StandingRight,
    Status,
    Token,
    TokenRefused,
)
from sojourn_shared.clock import rfc3339
from sojourn_shared.contracts.events import Actor, ExternalRef, Links
from sojourn_shared.ids import is_id
from sojourn_shared.service import Paging, Transaction

from .pages import containing, page_of
from .policies import name_key
from .tables import computers, enrolment_tokens


class Computers(Transaction):
    async def computer(self, computer_id: str, *, for_update: bool = False) -> Computer:
        """Raises NoSuchComputer."""
        return (await self.computer_and_liveness(computer_id, for_update=for_update))[0]

    async def computer_and_liveness(self, computer_id: str, *, for_update: bool = False) -> tuple[Computer, bool]:
        """The computer, and whether it is connected. Raises NoSuchComputer."""
        row = None
        if is_id(computer_id):
            query = select(computers).where(computers.c.id == computer_id)
            query = query.with_for_update() if for_update else query
            row = (await self.connection.execute(query)).mappings().one_or_none()
        if row is None:
            raise NoSuchComputer(f"There is no computer {computer_id}.")
        return _computer(row), row["connected"]

    async def computers(
        self,
        asked: Paging,
        *,
        name: str | None = None,
        q: str | None = None,
        labels: Iterable[str] = (),
        external_id: str | None = None,
        connected: bool | None = None,
        status: Status | None = None,
    ) -> list[tuple[Computer, bool]]:
        """Each with whether it is connected. `labels`: `key` or `key=value`, all of them."""
        where: list[ColumnElement[bool]] = []
        if name:
            where.append(computers.c.name_key == name_key(name))
        if q:
            pattern = containing(q)
            where.append(or_(computers.c.name.ilike(pattern, escape="\\"), computers.c.id.ilike(pattern, escape="\\")))
        for label in labels:
            key, given, value = label.partition("=")
            where.append(computers.c.labels.contains({key: value}) if given else computers.c.labels.has_key(key))
        if external_id:
            where.append(computers.c.external_refs.contains([{"number": external_id}]))
        if connected is not None:
            where.append(computers.c.connected == connected)
        if status:
            where.append(computers.c.status == status)
        rows = await page_of(self.connection, select(computers).where(*where), computers, asked)
        return [(_computer(row), row["connected"]) for row in rows]

    async def enrolled_ids(self, among: Collection[str] | None = None) -> list[str]:
        """The ids of the enrolled computers, of all or of those given."""
        query = select(computers.c.id).where(computers.c.status == "enrolled").order_by(computers.c.id)
        if among is not None:
            query = query.where(computers.c.id.in_(among))
        return list((await self.connection.execute(query)).scalars())

    async def enrolled_ids_by_name(self, names: Collection[str]) -> dict[str, list[str]]:
        """For each name, in any case, the ids of the enrolled computers that have it."""
        keys = {name: name_key(name) for name in names}
        found: dict[str, list[str]] = {}
        if keys:
            query = select(computers.c.id, computers.c.name_key).where(
                computers.c.status == "enrolled", computers.c.name_key.in_(set(keys.values()))
            )
            for row in await self.connection.execute(query.order_by(computers.c.id)):
                found.setdefault(row.name_key, []).append(row.id)
        return {name: found.get(key, []) for name, key in keys.items()}

    async def claimants(self, asked: Enrolment, bound_to: str | None) -> list[Computer]:
        """The enrolled computers with that machine id or that keeper's key, and the one that a token is bound to."""
        same = (computers.c.machine_id == asked.machine_id) | (computers.c.keeper_public_key == asked.keeper_public_key)
        query = select(computers).where((same & (computers.c.status == "enrolled")) | (computers.c.id == bound_to))
        rows = await self.connection.execute(query.order_by(computers.c.id).with_for_update())
        return [_computer(row) for row in rows.mappings()]

    async def add_computer(self, computer: Computer) -> None:
        await self.connection.execute(insert(computers).values(**_computer_row(computer), connected=False))
        self._tell_computer(computer, "computer.enrolled", None)

    async def save_computer(self, computer: Computer, event: str | None, actor: Actor | None = None) -> None:
        """`event` None: nothing that others see has changed."""
        await self.connection.execute(
            update(computers).where(computers.c.id == computer.id).values(_computer_row(computer))
        )
        if event:
            self._tell_computer(computer, event, actor)

    async def set_connected(self, computer_id: str, connected: bool) -> None:
        """Liveness: no version, no event."""
        await self.connection.execute(
            update(computers).where(computers.c.id == computer_id).values(connected=connected)
        )

    def renewed(self, computer: Computer, expires_at: datetime) -> None:
        """Tell that a computer got fresh credentials: no change of the computer."""
        said = {"id": computer.id, "link_public_key": computer.link_public_key, "expires_at": rfc3339(expires_at)}
        actor = Actor(kind="computer", id=computer.id, name=computer.name)
        links = Links(computer_id=computer.id)
        self.emit("agent.credentials_renewed", id=computer.id, entity=said, version=None, links=links, actor=actor)

    def _tell_computer(self, computer: Computer, event: str, actor: Actor | None) -> None:
        links = Links(computer_id=computer.id)
        self.emit(event, id=computer.id, entity=computer.state, version=computer.version, links=links, actor=actor)

    # --- enrolment tokens

    async def add_token(self, token: Token, digest: str) -> None:
        await self.connection.execute(insert(enrolment_tokens).values(**_token_row(token), digest=digest))
        links = Links(computer_id=token.computer_id)
        self.emit("enrolment_token.created", id=token.id, entity=token.state, version=token.version, links=links)

    async def token(self, digest: str) -> Token:
        """The token with that digest, locked. Raises TokenRefused."""
        query = select(enrolment_tokens).where(enrolment_tokens.c.digest == digest).with_for_update()
        row = (await self.connection.execute(query)).mappings().one_or_none()
        if row is None:
            raise TokenRefused("This enrolment token is none of ours: ask an administrator for one.")
        return _token(row)

    async def use_token(self, token: Token, computer_id: str) -> None:
        await self.connection.execute(
            update(enrolment_tokens).where(enrolment_tokens.c.id == token.id).values(_token_row(token))
        )
        links = Links(computer_id=computer_id)
        self.emit("enrolment_token.used", id=token.id, entity=token.state, version=token.version, links=links)

    async def tokens(self, asked: Paging) -> list[Token]:
        rows = await page_of(self.connection, select(enrolment_tokens), enrolment_tokens, asked)
        return [_token(row) for row in rows]


_AS_THEY_ARE = (
    "id",
    "version",
    "name",
    "machine_id",
    "agent_version",
    "link_public_key",
    "keeper_public_key",
    "offline_secret",
    "enrolled_at",
    "enrolled_with",
    "created_at",
    "updated_at",
    "status",
    "health_seq",
    "health_at",
)
_AS_JSON: dict[str, TypeAdapter[Any]] = {
    "platform": TypeAdapter(ComputerPlatform),
    "labels": TypeAdapter(Mapping[str, str]),
    "external_refs": TypeAdapter(Sequence[ExternalRef]),
    "guarantees": TypeAdapter(Mapping[str, ComputerGuarantee]),
    "users": TypeAdapter(Sequence[ComputerUser]),
    "standing_rights": TypeAdapter(Sequence[StandingRight]),
}


def _computer_row(computer: Computer) -> dict[str, Any]:
    plain = {name: getattr(computer, name) for name in _AS_THEY_ARE}
    json = {name: kind.dump_python(getattr(computer, name), mode="json") for name, kind in _AS_JSON.items()}
    return plain | json | {"name_key": name_key(computer.name)}


def _computer(row: Any) -> Computer:
    plain = {name: row[name] for name in _AS_THEY_ARE}
    return Computer(**plain, **{name: kind.validate_python(row[name]) for name, kind in _AS_JSON.items()})


def _token_row(token: Token) -> dict[str, Any]:
    return {name: getattr(token, name) for name in Token.__dataclass_fields__} | {"labels": dict(token.labels)}


def _token(row: Any) -> Token:
    return Token(**{name: row[name] for name in Token.__dataclass_fields__})
