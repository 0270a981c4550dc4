"""Policies: who may run what, where, when, at most; and the assignments that carry one revision to each computer.

A change is a pure function. What an edition of the product cannot do yet is refused here, in one sentence each.
"""

import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationInfo,
    field_validator,
    model_validator,
)

from sojourn_shared.contracts.events import (
    Actor,
    Assignment,
    AssignmentsChanged,
    Body,
    ExternalRef,
    FixedDuration,
    Id,
    Name,
    Rule,
    Terms,
    Time,
    Users,
    WindowDuration,
)
from sojourn_shared.errors import DomainError, FieldError, InvalidBody, NotFound
from sojourn_shared.ids import new_id

PAGE = 500  # assignments in one event: 60 KB, far below what the bus takes
MAX_TARGETS = 5_000  # the whole policy travels in its events, at most 1 MB each
MAX_RULES = 100
MAX_RULES_BYTES = 128 * 1024  # a computer's whole document holds 180 KiB
MAX_USERS = 100

Status = Literal["draft", "deployed", "withdrawn", "deleted"]


class NoSuchPolicy(NotFound):
    pass


class NoSuchRevision(InvalidBody):
    pass


class NameTaken(DomainError):
    code, status, title = "name-taken", 409, "The name is taken"


class PolicyDeployed(DomainError):
    code, status, title = "policy-deployed", 409, "The policy is deployed"


class NotDeployed(DomainError):
    code, status, title = "not-deployed", 409, "The policy is not deployed"


class TooManyRules(DomainError):
    code, status, title = "too-many-rules", 422, "A policy has at most 100 rules"


# --- what a policy says -----------------------------------------------------------------------------------------------


def _no_groups(ids: list[str]) -> list[str]:
    if ids:
        raise ValueError("groups are not available yet: leave this empty")
    return ids


def _no_recurrence(duration: Any) -> Any:
    if isinstance(duration, dict) and duration.get("recurrence") is not None:
        raise ValueError("recurring windows are not available yet: give `from` and `until`")
    return duration


def _only_specific(access: Any) -> Any:
    if isinstance(access, dict) and access.get("type") == "all_allowed":
        raise ValueError("all allowed applications are not available yet: give `specific` with rules")
    return access


def _only_root(run_as: str) -> str:
    if run_as != "root":
        raise ValueError("running as another user than root is not available yet")
    return run_as


def _plain(text: str) -> str:
    if any(unicodedata.category(character) == "Cc" for character in text):
        raise ValueError("must not contain control characters")
    return text


GroupIds = Annotated[list[Id], AfterValidator(_no_groups)]


class PolicyTargets(Body):
    """The computers. Names become ids when the policy is saved; `all` includes those that enrol later."""

    computer_ids: Annotated[list[Id], Field(max_length=MAX_TARGETS)] = Field(default_factory=list)
    computer_names: Annotated[list[Name], Field(max_length=MAX_TARGETS)] = Field(default_factory=list)
    group_ids: GroupIds = Field(default_factory=list)
    all: bool = False

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        chosen = bool(self.computer_ids or self.computer_names)
        if self.all and chosen:
            raise ValueError("all computers are meant already: name none, or set `all` to false")
        if not self.all and not chosen:
            raise ValueError("name at least one computer, or set `all` to true")
        return self


class PolicyUsers(Users):
    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.all and self.names:
            raise ValueError("all users are meant already: name none, or set `all` to false")
        if not self.all and not self.names:
            raise ValueError("name at least one user, or set `all` to true")
        return self


class FixedTime(FixedDuration):
    @field_validator("take_up_until")
    @classmethod
    def _of_first_use(cls, moment: datetime | None, info: ValidationInfo) -> datetime | None:
        if moment is not None and info.data.get("starts") != "on_first_use":
            raise ValueError("belongs to `starts: on_first_use`")
        return moment


class TimeWindow(WindowDuration):
    @field_validator("until")
    @classmethod
    def _after_from(cls, until: datetime, info: ValidationInfo) -> datetime:
        if (begin := info.data.get("from_")) is not None and until <= begin:
            raise ValueError("must be after `from`")
        return until


class SpecificAccess(Body):
    type: Literal["specific"]
    rules: list[Rule] = Field(default_factory=list)
    application_group_ids: GroupIds = Field(default_factory=list)

    @field_validator("rules")
    @classmethod
    def _deliverable(cls, rules: list[Rule]) -> list[Rule]:
        if not rules:
            raise ValueError("give at least one rule")
        for rule in rules:
            if any(isinstance(argument, str) and "\0" in argument for argument in rule.arguments or ()):
                raise ValueError("an argument must not contain a NUL character")
        if len(rules) <= MAX_RULES and len(_RULES.dump_json(rules)) > MAX_RULES_BYTES:
            raise ValueError(f"the rules take more than {MAX_RULES_BYTES // 1024} KiB: no computer could hold them")
        return rules


_RULES: TypeAdapter[list[Rule]] = TypeAdapter(list[Rule])


class PolicyBody(Body):
    """What people write: the body of POST and PUT, and of each revision."""

    name: Name
    description: Annotated[str, StringConstraints(max_length=2000), AfterValidator(_plain)] = ""
    type: Literal["application_elevation"] = "application_elevation"
    targets: PolicyTargets
    users: PolicyUsers
    duration: Annotated[FixedTime | TimeWindow, Field(discriminator="type"), BeforeValidator(_no_recurrence)]
    access: Annotated[SpecificAccess, BeforeValidator(_only_specific)]
    child_processes: Literal["allow", "same_package", "require_rule", "deny"] = "allow"
    run_as: Annotated[str, AfterValidator(_only_root)] = "root"
    max_uses: Annotated[int, Field(ge=1, le=1_000_000, strict=True)] | None = None
    ticket_required: bool = False
    external_refs: Annotated[list[ExternalRef], Field(max_length=20)] = Field(default_factory=list)

    @property
    def terms(self) -> Terms:
        """What one revision grants, the same on every computer."""
        return Terms(
            policy_name=self.name,
            users=self.users,
            duration=self.duration,
            rules=self.access.rules,
            child_processes=self.child_processes,
            run_as=self.run_as,
            max_uses=self.max_uses,
            ticket_required=self.ticket_required,
        )


class PolicyState(PolicyBody):
    """A policy as REST and events show it: the newest revision, and how it stands."""

    id: str
    version: int
    status: Status
    revision: int
    deployed_revision: int | None
    deployed_at: Time | None
    created_by: str
    created_by_name: str
    created_at: Time
    updated_at: Time


@dataclass(frozen=True, kw_only=True)
class Policy:
    """`body` is the newest revision's; `deployed_revision` the one in force, None when none is."""

    id: str
    version: int
    status: Status
    revision: int
    body: PolicyBody
    created_by: str
    created_by_name: str
    created_at: datetime
    updated_at: datetime
    deployed_revision: int | None = None
    deployed_at: datetime | None = None

    @property
    def state(self) -> PolicyState:
        return PolicyState(
            **dict(self.body),
            id=self.id,
            version=self.version,
            status=self.status,
            revision=self.revision,
            deployed_revision=self.deployed_revision,
            deployed_at=self.deployed_at,
            created_by=self.created_by,
            created_by_name=self.created_by_name,
            created_at=self.created_at,
            updated_at=self.updated_at,
        )


@dataclass(frozen=True, kw_only=True)
class Revision:
    policy_id: str
    number: int
    body: PolicyBody
    author: Actor
    created_at: datetime


# --- transitions ------------------------------------------------------------------------------------------------------


def create(body: PolicyBody, *, by: Actor, now: datetime) -> Policy:
    """A draft with its first revision. Raises TooManyRules."""
    _check_rules(body)
    return Policy(
        id=new_id(now),
        version=1,
        status="draft",
        revision=1,
        body=body,
        created_by=by.id,
        created_by_name=by.name,
        created_at=now,
        updated_at=now,
    )


def revise(policy: Policy, body: PolicyBody, *, now: datetime) -> Policy:
    """Save a new revision, also one that says the same. What is deployed stays as it is until the next deploy.

    Raises TooManyRules, NoSuchPolicy (deleted).
    """
    _check_there(policy)
    _check_rules(body)
    return _changed(policy, now, body=body, revision=policy.revision + 1)


def deploy(policy: Policy, revision: int | None, *, now: datetime) -> Policy:
    """Put a revision in force, the newest unless told otherwise. The one that is in force already: unchanged.

    Raises NoSuchRevision, NoSuchPolicy (deleted).
    """
    _check_there(policy)
    number = policy.revision if revision is None else revision
    if not 1 <= number <= policy.revision:
        detail = f"The policy has no revision {number}: the newest is {policy.revision}."
        raise NoSuchRevision(detail, errors=[FieldError("/revision", detail)])
    if policy.status == "deployed" and number == policy.deployed_revision:
        return policy
    return _changed(policy, now, status="deployed", deployed_revision=number, deployed_at=now)


def withdraw(policy: Policy, *, now: datetime) -> Policy:
    """Take the policy off every computer. One that is withdrawn already: unchanged.

    Raises NotDeployed (a draft), NoSuchPolicy (deleted).
    """
    _check_there(policy)
    if policy.status == "withdrawn":
        return policy
    if policy.status != "deployed":
        raise NotDeployed("It is a draft: there is nothing to withdraw.")
    return _changed(policy, now, status="withdrawn", deployed_revision=None, deployed_at=None)


def delete(policy: Policy, *, now: datetime) -> Policy:
    """Remove a draft or a withdrawn policy from sight; its revisions and events stay.

    Raises PolicyDeployed, NoSuchPolicy (deleted).
    """
    _check_there(policy)
    if policy.status == "deployed":
        raise PolicyDeployed("It is in force on computers: withdraw it first.")
    return _changed(policy, now, status="deleted")


def _changed(policy: Policy, now: datetime, **changes: Any) -> Policy:
    return replace(policy, version=policy.version + 1, updated_at=now, **changes)


def _check_there(policy: Policy) -> None:
    if policy.status == "deleted":
        raise NoSuchPolicy("The policy was deleted.")


def _check_rules(body: PolicyBody) -> None:
    if (count := len(body.access.rules)) > MAX_RULES:
        detail = f"{count} rules; a policy has at most {MAX_RULES}."
        raise TooManyRules(detail, errors=[FieldError("/access/rules", detail)])


# --- targets ----------------------------------------------------------------------------------------------------------


def with_ids(
    body: PolicyBody,
    *,
    named: Mapping[str, Sequence[str]],
    enrolled: Collection[str],
    before: Collection[str] = (),
) -> PolicyBody:
    """The body with its computers as ids alone, each once.

    `named`: the ids of the enrolled computers of each name; `enrolled`: which of the ids given are enrolled; `before`:
    those of the revision before, which may have been decommissioned since. Raises InvalidBody, with pointers.
    """
    wrong = [
        FieldError(f"/targets/computer_ids/{index}", f"There is no enrolled computer {computer_id}.")
        for index, computer_id in enumerate(body.targets.computer_ids)
        if computer_id not in enrolled and computer_id not in before
    ]
    ids = dict.fromkeys(body.targets.computer_ids)
    for index, name in enumerate(body.targets.computer_names):
        found = named.get(name, ())
        if len(found) == 1:
            ids[found[0]] = None
        else:
            several = f"{len(found)} computers are called {name}: give the id of one ({', '.join(found[:5])})."
            wrong.append(
                FieldError(f"/targets/computer_names/{index}", several if found else f"No computer is called {name}.")
            )
    if wrong:
        raise InvalidBody(wrong[0].detail if len(wrong) == 1 else f"{len(wrong)} computers are wrong.", errors=wrong)
    targets = PolicyTargets(computer_ids=list(ids), all=body.targets.all)
    return body.model_copy(update={"targets": targets})


# --- assignments ------------------------------------------------------------------------------------------------------


def assign(held: Iterable[Assignment], targeted: Iterable[str], *, now: datetime) -> list[Assignment]:
    """The assignments of a policy that change when a revision is to be in force on exactly the `targeted` computers.

    Each one targeted is present anew (a higher version: its clock starts again), one that is present elsewhere becomes
    absent; an absent one that is not targeted stays as it is.
    """
    by_computer = {assignment.computer_id: assignment for assignment in held}
    wanted = dict.fromkeys(targeted)
    changed = []
    for computer_id in wanted:
        there = by_computer.get(computer_id)
        changed.append(
            there.model_copy(update={"version": there.version + 1, "state": "present"})
            if there
            else Assignment(id=new_id(now), version=1, computer_id=computer_id, state="present")
        )
    return changed + absent(one for one in by_computer.values() if one.computer_id not in wanted)


def absent(held: Iterable[Assignment]) -> list[Assignment]:
    """Those of `held` that change when none of them is to be in force."""
    return [
        one.model_copy(update={"version": one.version + 1, "state": "absent"}) for one in held if one.state == "present"
    ]


def announcements(
    policy_id: str, revision: int, deployed_at: datetime, terms: Terms, changed: Sequence[Assignment]
) -> list[AssignmentsChanged]:
    """What the others are told of `changed`, in pages; nothing when nothing changed."""
    pages = [changed[start : start + PAGE] for start in range(0, len(changed), PAGE)]
    return [
        AssignmentsChanged(
            policy_id=policy_id,
            revision=revision,
            deployed_at=deployed_at,
            terms=terms,
            page=number,
            pages=len(pages),
            assignments=list(page),
        )
        for number, page in enumerate(pages, start=1)
    ]
