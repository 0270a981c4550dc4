"""Computers and how they come in: enrolment by token, what people and the computer itself say of it, the way out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from sojourn_shared.contracts import events
from sojourn_shared.contracts.events import ExternalRef, Name, Time
from sojourn_shared.errors import DomainError, FieldError, InvalidBody, NotFound, Unauthenticated
from sojourn_shared.ids import new_id

Status = Literal["enrolled", "decommissioned"]

TOKEN_LIFE = timedelta(hours=24)
"""Of an enrolment token for which nobody said: long enough for one afternoon's work, too short to be found later."""
TOKEN_LIFE_MAX = timedelta(days=366)

LabelKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$")]
Labels = Annotated[dict[LabelKey, Name], Field(max_length=64)]
ExternalRefs = Annotated[list[ExternalRef], Field(max_length=20)]


class NoSuchComputer(NotFound):
    pass


class Gone(DomainError):
    code, status, title = "gone", 410, "The computer was decommissioned"


class AlreadyEnrolled(DomainError):
    code, status, title = "already-enrolled", 409, "The computer is enrolled already"


class TokenRefused(Unauthenticated):
    pass


class TokenSpent(DomainError):
    code, status, title = "token-spent", 401, "The enrolment token is used up"


# --- values -----------------------------------------------------------------------------------------------------------


class ComputerGuarantee(events.Model):
    """What a computer can really do, found by doing it; `why` is a sentence."""

    word: Literal["enforced", "best effort", "observed only", "absent"]
    why: Annotated[str, StringConstraints(max_length=400)]  # every grant of the computer shows it: a list has 500


class ComputerPlatform(events.Model):
    os: Name
    distribution: Name
    version: Name
    architecture: Name


class ComputerUser(events.Model):
    """An OS user of a computer, as the computer spells the name."""

    name: str
    uid: int


class StandingRight(events.Model):
    """A user who is an administrator of the computer without any grant, and through what."""

    user: str
    through: str


class ComputerState(events.ComputerState):
    """A computer as REST and events show it. Liveness is not here: it is no state of the computer."""

    platform: dict[str, Any]
    agent_version: str
    labels: dict[str, str]
    external_refs: list[ExternalRef]
    guarantees: dict[str, Any]
    standing_rights: list[StandingRight]
    created_at: Time
    updated_at: Time


class TokenState(events.Model):
    """An enrolment token as REST and events show it: never its secret."""

    id: str
    version: int
    name: str
    max_uses: int
    uses: int
    expires_at: Time
    labels: dict[str, str]
    computer_id: str | None
    created_by: str
    created_by_name: str
    created_at: Time
    updated_at: Time


@dataclass(frozen=True, kw_only=True)
class Enrolment:
    """What an agent says of its computer when it enrols."""

    name: str
    machine_id: str
    platform: ComputerPlatform
    agent_version: str
    link_public_key: str
    keeper_public_key: str
    guarantees: Mapping[str, ComputerGuarantee]


@dataclass(frozen=True, kw_only=True)
class Health:
    """What a computer reports of itself; `seq` counts its reports, `at` is the computer's trusted time."""

    seq: int
    at: datetime
    guarantees: Mapping[str, ComputerGuarantee]
    users: Sequence[ComputerUser]
    standing_rights: Sequence[StandingRight]
    agent_version: str | None = None


@dataclass(frozen=True, kw_only=True)
class Token:
    """The right to enrol `max_uses` computers until `expires_at`; bound to `computer_id`, that one anew."""

    id: str
    version: int
    name: str
    max_uses: int
    uses: int
    expires_at: datetime
    labels: Mapping[str, str]
    computer_id: str | None
    created_by: str
    created_by_name: str
    created_at: datetime
    updated_at: datetime

    @property
    def is_spent(self) -> bool:
        return self.uses >= self.max_uses

    @property
    def state(self) -> TokenState:
        return TokenState.model_validate(self, from_attributes=True)


@dataclass(frozen=True, kw_only=True)
class Computer:
    """`enrolled_with` is the token of the newest enrolment. `offline_secret` is shared with this computer alone."""

    id: str
    version: int
    name: str
    machine_id: str
    platform: ComputerPlatform
    agent_version: str
    link_public_key: str
    keeper_public_key: str
    offline_secret: str
    enrolled_at: datetime
    enrolled_with: str
    created_at: datetime
    updated_at: datetime
    status: Status = "enrolled"
    labels: Mapping[str, str]
    external_refs: Sequence[ExternalRef] = ()
    guarantees: Mapping[str, ComputerGuarantee]
    users: Sequence[ComputerUser] = ()
    standing_rights: Sequence[StandingRight] = ()
    health_seq: int = 0
    health_at: datetime | None = None

    @property
    def state(self) -> ComputerState:
        return ComputerState(
            id=self.id,
            version=self.version,
            name=self.name,
            status=self.status,
            keeper_public_key=self.keeper_public_key,
            platform=self.platform.model_dump(),
            agent_version=self.agent_version,
            labels=dict(self.labels),
            external_refs=list(self.external_refs),
            guarantees={name: one.model_dump() for name, one in self.guarantees.items()},
            standing_rights=list(self.standing_rights),
            created_at=self.created_at,
            updated_at=self.updated_at,
        )

    def is_of(self, enrolment: Enrolment) -> bool:
        """Whether that is this machine, with the keys that it has."""
        return (
            self.machine_id == enrolment.machine_id
            and self.keeper_public_key == enrolment.keeper_public_key
            and self.link_public_key == enrolment.link_public_key
        )


# --- enrolment --------------------------------------------------------------------------------------------------------


def create_token(
    *,
    name: str,
    max_uses: int,
    expires_at: datetime | None,
    labels: Mapping[str, str],
    bound_to: Computer | None,
    by: events.Actor,
    now: datetime,
) -> Token:
    """A new token. Raises InvalidBody (an end that is past or too far away), Gone (bound to a decommissioned one)."""
    end = expires_at or now + TOKEN_LIFE
    if not now < end <= now + TOKEN_LIFE_MAX:
        detail = "expires_at must lie in the future, and at most a year away."
        raise InvalidBody(detail, errors=[FieldError("/expires_at", detail)])
    if bound_to is not None and bound_to.status == "decommissioned":
        raise Gone("The computer was decommissioned: it enrols as a new one, with a token that is bound to none.")
    return Token(
        id=new_id(now),
        version=1,
        name=name,
        max_uses=max_uses,
        uses=0,
        expires_at=end,
        labels=labels,
        computer_id=bound_to.id if bound_to else None,
        created_by=by.id,
        created_by_name=by.name,
        created_at=now,
        updated_at=now,
    )


def enrol(
    asked: Enrolment, token: Token, claimants: Sequence[Computer], *, new_secret: str, now: datetime
) -> tuple[Computer, Token]:
    """The computer that `asked` becomes, and the token after it.

    `claimants`: the enrolled computers with the same machine id or the same keeper's key, and the one that the token is
    bound to. A repeat returns both unchanged, so that a lost answer burns nothing. `new_secret` becomes the
    offline secret of a computer that is new or was installed anew.

    Raises TokenRefused (expired), TokenSpent, AlreadyEnrolled, Gone (bound to a computer that was decommissioned).
    """
    if now >= token.expires_at:
        raise TokenRefused("The enrolment token has expired: ask for a new one.")
    bound = next((one for one in claimants if one.id == token.computer_id), None)
    if bound is not None and bound.status == "decommissioned":
        raise Gone("The computer that this token is bound to was decommissioned.")
    for computer in claimants:
        if computer.is_of(asked) and token.computer_id in (None, computer.id):
            if token.is_spent and computer.enrolled_with != token.id:
                raise TokenSpent("The enrolment token was used for another computer: ask for a new one.")
            return computer, token
    if other := next((one for one in claimants if one is not bound), None):
        raise AlreadyEnrolled(
            f"This machine, or one with its key, is enrolled as {other.name} ({other.id}) with other keys. Remove that "
            "computer first, or enrol with a token that is bound to it."
        )
    if token.is_spent:
        raise TokenSpent("The enrolment token is used up: ask for a new one.")
    used = replace(token, uses=token.uses + 1, version=token.version + 1, updated_at=now)
    if bound is not None:
        return _reinstalled(bound, asked, used, new_secret, now), used
    computer = Computer(
        id=new_id(now),
        version=1,
        name=asked.name,
        machine_id=asked.machine_id,
        platform=asked.platform,
        agent_version=asked.agent_version,
        link_public_key=asked.link_public_key,
        keeper_public_key=asked.keeper_public_key,
        offline_secret=new_secret,
        enrolled_at=now,
        enrolled_with=token.id,
        created_at=now,
        updated_at=now,
        labels=dict(token.labels),
        guarantees=asked.guarantees,
    )
    return computer, used


def _reinstalled(bound: Computer, asked: Enrolment, token: Token, new_secret: str, now: datetime) -> Computer:
    """The same computer with a new machine id, new keys and a new secret; what people said of it stays."""
    return _changed(
        bound,
        now,
        machine_id=asked.machine_id,
        platform=asked.platform,
        agent_version=asked.agent_version,
        link_public_key=asked.link_public_key,
        keeper_public_key=asked.keeper_public_key,
        offline_secret=new_secret,
        guarantees=asked.guarantees,
        labels={**bound.labels, **token.labels},
        enrolled_at=now,
        enrolled_with=token.id,
        health_seq=0,
        health_at=None,
    )


# --- what becomes of it -----------------------------------------------------------------------------------------------


def edit(
    computer: Computer,
    *,
    now: datetime,
    name: str | None = None,
    labels: Mapping[str, str] | None = None,
    external_refs: Sequence[ExternalRef] | None = None,
) -> Computer:
    """What people say of it; None leaves it, anything else replaces it. Nothing new: unchanged. Raises Gone."""
    if computer.status == "decommissioned":
        raise Gone("The computer was decommissioned: it is kept as it was.")
    changes: dict[str, Any] = {}
    if name is not None and name != computer.name:
        changes["name"] = name
    if labels is not None and dict(labels) != dict(computer.labels):
        changes["labels"] = dict(labels)
    if external_refs is not None and list(external_refs) != list(computer.external_refs):
        changes["external_refs"] = list(external_refs)
    return _changed(computer, now, **changes) if changes else computer


def report_health(computer: Computer, health: Health, *, now: datetime) -> Computer:
    """What the computer says of itself. Its version grows only when something is new; a late report changes nothing.

    A lower number with a later time is news: the computer lost its count.
    """
    if computer.status == "decommissioned":
        return computer
    if health.seq <= computer.health_seq and computer.health_at is not None and health.at <= computer.health_at:
        return computer
    said = {
        "guarantees": dict(health.guarantees),
        "users": sorted(health.users, key=lambda user: (user.uid, user.name)),
        "standing_rights": sorted(health.standing_rights, key=lambda right: (right.user, right.through)),
        "agent_version": health.agent_version or computer.agent_version,
    }
    heard = replace(computer, health_seq=health.seq, health_at=health.at)
    news = {field: value for field, value in said.items() if _plain(getattr(computer, field)) != _plain(value)}
    return _changed(heard, now, **news) if news else heard


def renew_link(computer: Computer, link_public_key: str) -> Computer:
    """The keeper vouches for a link key, the old or a new one; others do not see it. Raises Gone."""
    if computer.status == "decommissioned":
        raise Gone("The computer was decommissioned: its credentials are never renewed.")
    return replace(computer, link_public_key=link_public_key)


def decommission(computer: Computer, *, now: datetime) -> Computer:
    """Out of service for ever. A computer that is out already: unchanged."""
    if computer.status == "decommissioned":
        return computer
    return _changed(computer, now, status="decommissioned")


def _changed(computer: Computer, now: datetime, **changes: Any) -> Computer:
    return replace(computer, version=computer.version + 1, updated_at=now, **changes)


def _plain(value: Any) -> Any:
    """Sequences and mappings compare by what they hold, whether they come from the database or from a report."""
    if isinstance(value, Mapping):
        return dict(value)
    return value if isinstance(value, str) else list(value)
