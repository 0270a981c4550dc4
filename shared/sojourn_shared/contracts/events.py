"""What services say to each other: one closed vocabulary of events, and the bodies that REST and events share.

pydantic, for services only. The rules and facts here are those of `wire`, checked more strictly: a golden test keeps
the two the same. A consumer acts on the entity's state, never on the event's name.
"""

import re
import unicodedata
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, PlainSerializer, StringConstraints

from sojourn_shared.clock import rfc3339
from sojourn_shared.ids import is_id

# --- values -----------------------------------------------------------------------------------------------------------


def _without_controls(text: str) -> str:
    if any(unicodedata.category(character) in {"Cc", "Cs"} for character in text):
        raise ValueError("must not contain control characters")
    return text


def _readable(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    return _without_controls(text)


def _canonical_id(text: str) -> str:
    if not is_id(text):
        raise ValueError("is not an id: expected a UUID in lower case")
    return text


def _whole_path(path: str) -> str:
    if not path.startswith("/") and not re.match(r"^([A-Za-z]:[\\/]|\\\\)", path):
        raise ValueError("must be absolute")
    if ".." in re.split(r"[\\/]", path):
        raise ValueError("must not contain `..`")
    return _without_controls(path)


Text = Annotated[str, StringConstraints(min_length=1, max_length=2000), AfterValidator(_readable)]
"""Text that people read: 1–2,000 characters, no control characters, not only white space."""
Name = Annotated[str, StringConstraints(min_length=1, max_length=256), AfterValidator(_readable)]
UserName = Annotated[str, StringConstraints(min_length=1, max_length=256), AfterValidator(_readable)]
Id = Annotated[str, AfterValidator(_canonical_id)]
AbsolutePath = Annotated[str, StringConstraints(min_length=1, max_length=4096), AfterValidator(_whole_path)]
Time = Annotated[AwareDatetime, PlainSerializer(rfc3339, return_type=str, when_used="json")]
"""RFC 3339 in UTC with `Z`, six decimals."""


class Model(BaseModel):
    """A frozen value; unknown fields are ignored, because a newer service may say more."""

    model_config = ConfigDict(frozen=True, populate_by_name=True, serialize_by_alias=True)


class Body(Model):
    """A part of what a caller sends: an unknown field is an error there, never silently dropped."""

    model_config = ConfigDict(frozen=True, populate_by_name=True, serialize_by_alias=True, extra="forbid")


# --- rules and facts --------------------------------------------------------------------------------------------------


class AnyArgument(Body):
    """One argument (`one`), or, last, whatever follows (`rest`)."""

    any: Literal["one", "rest"]


def _rest_last(patterns: list[str | AnyArgument] | None) -> list[str | AnyArgument] | None:
    for pattern in (patterns or [])[:-1]:
        if isinstance(pattern, AnyArgument) and pattern.any == "rest":
            raise ValueError('{"any": "rest"} can only come last')
    return patterns


Arguments = Annotated[list[str | AnyArgument] | None, Field(max_length=1024), AfterValidator(_rest_last)]


class _Rule(Body):
    arguments: Arguments = None


class VendorRule(_Rule):
    type: Literal["vendor"]
    vendor: Name
    verified: bool = True


class ProductRule(_Rule):
    type: Literal["product"]
    product: Name
    vendor: Name | None = None
    verified: bool = True


class VerifiedExecutableRule(_Rule):
    type: Literal["verified_executable"]
    executable: Name
    product: Name | None = None
    vendor: Name | None = None


Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{64}$", to_lower=True)]
"""64 hex digits; capitals are accepted and stored in lower case."""


class FileHashRule(_Rule):
    type: Literal["file_hash"]
    sha256: Sha256
    executable: Name | None = None


class ClsidRule(_Rule):
    type: Literal["clsid"]
    clsid: Annotated[
        str,
        StringConstraints(pattern=r"^\{[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}\}$"),
    ]
    name: Name | None = None


class FolderPathRule(_Rule):
    type: Literal["folder_path"]
    path: AbsolutePath
    recursive: bool = True
    executable: Name | None = None


Rule = Annotated[
    VendorRule | ProductRule | VerifiedExecutableRule | FileHashRule | ClsidRule | FolderPathRule,
    Field(discriminator="type"),
]


class Signature(Body):
    status: Literal["verified", "unsigned", "invalid", "unknown"] = "unknown"
    by: Annotated[str, StringConstraints(max_length=2000)] | None = None


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not contain a NUL character")
    return text


Argument = Annotated[str, StringConstraints(max_length=65536), AfterValidator(_no_nul)]
"""An argument may hold control characters (it is never shown raw), but no NUL."""
Fact = Annotated[str, StringConstraints(min_length=1, max_length=1000), AfterValidator(_without_controls)]


class Application(Body):
    """The facts of an application; only `path` is always present."""

    path: AbsolutePath
    executable: Fact | None = None
    sha256: Sha256 | None = None
    size: Annotated[int, Field(ge=0)] | None = None
    vendor: Fact | None = None
    product: Fact | None = None
    version: Fact | None = None
    package: Fact | None = None
    signature: Signature = Signature()
    clsid: Fact | None = None
    arguments: Annotated[list[Argument], Field(max_length=1024)] | None = None
    working_directory: Argument | None = None
    platform: Literal["linux", "windows", "macos"] | None = None


class ExternalRef(Body):
    """A record of another system, such as an ITSM ticket (`system: ticket`)."""

    system: Name
    number: Name
    url: Annotated[str, StringConstraints(max_length=2000, pattern=r"^https?://")] | None = None


class Users(Body):
    all: bool = False
    names: Annotated[list[UserName], Field(max_length=100)] = []


class FixedDuration(Body):
    type: Literal["fixed"]
    minutes: Annotated[int, Field(ge=1, le=43200, strict=True)]
    starts: Literal["on_deploy", "on_first_use"] = "on_deploy"
    take_up_until: Time | None = None


class WindowDuration(Body):
    type: Literal["window"]
    from_: Time = Field(alias="from")
    until: Time


Duration = Annotated[FixedDuration | WindowDuration, Field(discriminator="type")]

# --- what entities look like in events --------------------------------------------------------------------------------


class Terms(Model):
    """What one revision of a policy grants; the same on every computer."""

    policy_name: str
    users: Users
    duration: Duration
    rules: list[Rule]
    child_processes: Literal["allow", "same_package", "require_rule", "deny"] = "allow"
    run_as: str = "root"
    max_uses: int | None = None
    ticket_required: bool = False


class Assignment(Model):
    """A policy on one computer: the unit that `expiry` acts on. `version` only grows."""

    id: str
    version: int
    computer_id: str
    state: Literal["present", "absent"]


class AssignmentsChanged(Model):
    policy_id: str
    revision: int
    deployed_at: Time
    terms: Terms
    page: int
    pages: int
    assignments: list[Assignment]


class ComputerState(Model):
    """What others need to know of a computer (the event carries more)."""

    id: str
    version: int
    name: str
    status: Literal["enrolled", "decommissioned"]
    keeper_public_key: str
    platform: dict[str, Any] = {}
    guarantees: dict[str, Any] = {}


class RequestDecision(Model):
    by: str
    by_name: str
    at: Time
    note: str | None = None
    duration_minutes: int | None = None
    rules: list[Rule] = []
    max_uses: int | None = None


class RequestState(Model):
    id: str
    version: int
    status: Literal["pending", "approved", "declined", "cancelled", "expired"]
    computer_id: str
    user: str
    application: Application
    duration_minutes: int
    grant_id: str | None = None
    take_up_until: Time | None = None
    not_before: Time | None = None
    ends_with_application: bool = False
    decision: RequestDecision | None = None
    external_refs: list[ExternalRef] = []


class GrantState(Model):
    id: str
    version: int
    status: Literal["scheduled", "ready", "active", "expired", "revoked"]
    delivery: Literal["pending", "applied", "failed", "ending", "ended", "unconfirmed"]
    computer_id: str
    policy_id: str | None = None
    request_id: str | None = None
    revoked: dict[str, Any] | None = None


class AgentState(Model):
    """Liveness of a computer's agent; `version` is milliseconds since 1970, so that the later word wins."""

    id: str
    version: int
    connected: bool
    last_seen_at: Time | None = None


class RequestsSettings(Model):
    """The part of `/settings/requests` that reaches computers (entity id `requests`)."""

    id: Literal["requests"] = "requests"
    version: int
    enabled: bool = True
    default_minutes: int = 30
    longest_minutes: int = 480
    justification_min: int = 1
    ticket: Literal["optional", "required"] | None = None
    ticket_pattern: str | None = None
    max_offline_hours: int = 168


# --- the envelope -----------------------------------------------------------------------------------------------------

EventType = Literal[
    "policy.created",
    "policy.revised",
    "policy.deployed",
    "policy.withdrawn",
    "policy.deleted",
    "policy.reviewed",
    "assignments.changed",
    "computer.enrolled",
    "computer.changed",
    "computer.decommissioned",
    "enrolment_token.created",
    "enrolment_token.used",
    "request.submitted",
    "request.changed",
    "request.endorsed",
    "request.approved",
    "request.declined",
    "request.cancelled",
    "request.expired",
    "grant.scheduled",
    "grant.ready",
    "grant.activated",
    "grant.applied",
    "grant.failed",
    "grant.expired",
    "grant.revoked",
    "grant.ended",
    "grant.returned",
    "elevation.started",
    "elevation.moved",
    "elevation.ended",
    "elevation.refused",
    "settings.changed",
    "account.created",
    "account.changed",
    "account.deleted",
    "client.created",
    "client.deleted",
    "key.created",
    "key.deleted",
    "session.link_made",
    "session.signed_in",
    "session.refused",
    "session.signed_out",
    "agent.connected",
    "agent.lost",
    "agent.credentials_renewed",
]
EVENT_TYPES: frozenset[str] = frozenset(get_args(EventType))
ServiceName = Literal["policy", "requests", "expiry", "audit", "gateway"]


class Actor(Model):
    """Who did it. `system` is a clock or a rule of the product itself."""

    kind: Literal["account", "client", "computer", "autonomous", "system"]
    id: str
    name: str


class Links(Model):
    """What an event is about; audit finds events by these."""

    policy_id: str | None = None
    request_id: str | None = None
    grant_id: str | None = None
    computer_id: str | None = None
    user: str | None = None


class EventData(Model):
    actor: Actor
    links: Links = Links()
    because: str | None = None
    entity: dict[str, Any]


class Event(Model):
    """A CloudEvents 1.0 envelope; `type` is `sojourn.<entity>.<change>`, `subject` the entity's id."""

    specversion: Literal["1.0"] = "1.0"
    id: Id
    source: Annotated[str, StringConstraints(pattern=r"^sojourn/[a-z]+$")]
    type: Annotated[str, StringConstraints(pattern=r"^sojourn\.[a-z_]+\.[a-z_]+$")]
    subject: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,128}$")]
    time: Time
    datacontenttype: Literal["application/json"] = "application/json"
    traceparent: str | None = None
    data: EventData

    @property
    def change(self) -> str:
        """`request.approved` for `sojourn.request.approved`."""
        return self.type.removeprefix("sojourn.")

    @property
    def entity_kind(self) -> str:
        return self.change.partition(".")[0]

    @property
    def service(self) -> str:
        return self.source.removeprefix("sojourn/")

    @property
    def bus_subject(self) -> str:
        return f"sojourn.events.{self.service}.{self.change}.{self.subject}"
