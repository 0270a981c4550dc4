"""The settings of asking: what may be asked, for how long, and who decides."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from sojourn_shared.contracts.events import Body, Id, Name, UserName

from .people import DECIDING_ROLES

LONGEST_MINUTES = 43200  # 30 days
Minutes = Annotated[int, Field(ge=1, le=LONGEST_MINUTES, strict=True)]
Role = Literal["requester", "approver", "auditor", "administrator"]
NoGroups = Annotated[tuple[Id, ...], Field(max_length=100)]


def none_yet(values: tuple[str, ...], what: str) -> tuple[str, ...]:
    if values:
        raise ValueError(f"{what} cannot be used yet: leave the list empty")
    return values


class Who(Body):
    """Who may ask: everybody, or the OS users named."""

    all: bool = True
    users: Annotated[tuple[UserName, ...], Field(max_length=1000)] = ()
    computer_group_ids: NoGroups = ()

    @field_validator("computer_group_ids")
    @classmethod
    def _no_groups(cls, ids: tuple[str, ...]) -> tuple[str, ...]:
        return none_yet(ids, "computer groups")

    def includes(self, user: str) -> bool:
        return self.all or user in self.users


class When(Body):
    """The requests that an approval rule is for; all of them, for now."""

    computer_group_ids: NoGroups = ()
    application_group_ids: NoGroups = ()
    longer_than_minutes: None = None
    hours: None = None

    @field_validator("computer_group_ids", "application_group_ids")
    @classmethod
    def _no_groups(cls, ids: tuple[str, ...]) -> tuple[str, ...]:
        return none_yet(ids, "groups")


class Seat(Body):
    """A place that somebody with one of `roles` fills by approving."""

    id: Name = "approver"
    roles: Annotated[tuple[Role, ...], Field(max_length=4)] = ("approver", "administrator")
    account_ids: NoGroups = ()
    count: Literal[1] = 1

    @model_validator(mode="after")
    def _is_the_usual_one(self) -> Self:
        if set(self.roles) != DECIDING_ROLES:
            raise ValueError("a seat for other roles than approver and administrator cannot be used yet")
        none_yet(self.account_ids, "accounts of a seat")
        return self


class ApprovalRule(Body):
    """Whose approval a request needs. Nobody is reminded and nothing escalates yet: only the usual times are taken."""

    when: When = When()
    seats: list[Seat] = Field(default_factory=lambda: [Seat()], min_length=1, max_length=1)
    remind_after_minutes: Literal[15] | None = 15
    escalate_after_minutes: Literal[60] | None = 60
    escalate_to: NoGroups = ()

    @field_validator("escalate_to")
    @classmethod
    def _nobody(cls, ids: tuple[str, ...]) -> tuple[str, ...]:
        return none_yet(ids, "people to escalate to")


class AskingSettings(Body):
    """`/settings/requests`. Durations in minutes, but for `max_offline_hours`."""

    enabled: bool = True
    who: Who = Who()
    default_minutes: Minutes = 30
    longest_minutes: Minutes = 480
    justification_min: Annotated[int, Field(ge=1, le=2000, strict=True)] = 1
    ticket: Literal["optional", "required"] | None = "optional"
    ticket_pattern: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    pending_minutes: Minutes = 1440
    take_up_minutes: Minutes = 480
    max_pending_per_user: Annotated[int, Field(ge=1, le=1000, strict=True)] = 5
    max_offline_hours: Annotated[int, Field(ge=1, le=8760, strict=True)] = 168
    rules: list[ApprovalRule] = Field(default_factory=lambda: [ApprovalRule()], min_length=1, max_length=1)

    @field_validator("ticket_pattern")
    @classmethod
    def _is_a_pattern(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"is not a regular expression: {error}") from None
        return pattern

    @model_validator(mode="after")
    def _default_is_allowed(self) -> Self:
        if self.default_minutes > self.longest_minutes:
            raise ValueError("default_minutes is longer than longest_minutes")
        return self

    @property
    def seat(self) -> Seat:
        return self.rules[0].seats[0]
