"""What server and agents say to each other: the document, time, keys, reports, and the questions of an agent.

msgspec structs, because the agent must stay small. Unknown fields are ignored: a newer server may say more. What an
agent must not ignore is named in a grant's `needs`. Times are RFC 3339 texts in UTC, durations whole minutes.
"""

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec

DOCUMENT_LIMIT = 256 * 1024
REPORT_LIMIT = 64 * 1024
RULE_SET_LIMIT = 512 * 1024
PACKET_LIMIT = 64 * 1024


Moment = Annotated[datetime, msgspec.Meta(tz=True)]
"""A time that names its zone: one without cannot be compared with any other."""


class Wire(msgspec.Struct, frozen=True):
    """A value on the wire. `frozen` and `kw_only` are said by each class: they are not handed down."""


# --- applications and rules -------------------------------------------------------------------------------------------


class Signature(Wire, frozen=True, kw_only=True):
    """What is known of who vouches for a file. On Linux: `verified` = package record digest + trusted path."""

    status: Literal["verified", "unsigned", "invalid", "unknown"] = "unknown"
    by: str | None = None


class Application(Wire, frozen=True, kw_only=True):
    """The facts of an application, as the computer found them. Only `path` is always present."""

    path: str
    executable: str | None = None
    sha256: str | None = None
    size: int | None = None
    vendor: str | None = None
    product: str | None = None
    version: str | None = None
    package: str | None = None
    signature: Signature = Signature()
    clsid: str | None = None
    arguments: list[str] | None = None
    working_directory: str | None = None
    platform: Literal["linux", "windows", "macos"] | None = None


class AnyArgument(Wire, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Stands for one argument (`one`), or, last, for whatever follows (`rest`)."""

    any: Literal["one", "rest"]


ArgumentPattern = list[str | AnyArgument]


class _Rule(Wire, tag_field="type", forbid_unknown_fields=True, frozen=True, kw_only=True):
    arguments: ArgumentPattern | None = None


class VendorRule(_Rule, tag="vendor", frozen=True, kw_only=True):
    vendor: str
    verified: bool = True


class ProductRule(_Rule, tag="product", frozen=True, kw_only=True):
    product: str
    vendor: str | None = None
    verified: bool = True


class VerifiedExecutableRule(_Rule, tag="verified_executable", frozen=True, kw_only=True):
    executable: str
    product: str | None = None
    vendor: str | None = None


class FileHashRule(_Rule, tag="file_hash", frozen=True, kw_only=True):
    sha256: str
    executable: str | None = None


class ClsidRule(_Rule, tag="clsid", frozen=True, kw_only=True):
    clsid: str
    name: str | None = None


class FolderPathRule(_Rule, tag="folder_path", frozen=True, kw_only=True):
    path: str
    recursive: bool = True
    executable: str | None = None


Rule = VendorRule | ProductRule | VerifiedExecutableRule | FileHashRule | ClsidRule | FolderPathRule

# --- the document -----------------------------------------------------------------------------------------------------


class Users(Wire, frozen=True, kw_only=True):
    all: bool = False
    names: list[str] = []


class Asking(Wire, frozen=True, kw_only=True):
    """What this computer tells a person before asking: from the requests settings."""

    enabled: bool = True
    default_minutes: int = 30
    longest_minutes: int = 480
    justification_min: int = 1
    ticket: Literal["optional", "required"] | None = None
    ticket_pattern: str | None = None


class Revoked(Wire, frozen=True, kw_only=True):
    at: Moment
    reason: str
    grace_seconds: Annotated[int, msgspec.Meta(ge=0, le=10**8)] = 0
    superseded: bool = False


class Grant(Wire, frozen=True, kw_only=True):
    """The only thing that elevates. `until` is null while the clock has not started (`starts: first_use`)."""

    id: str
    users: Users
    from_: Moment = msgspec.field(name="from")
    until: Moment | None = None
    starts: Literal["at_from", "first_use"] = "at_from"
    duration_minutes: Annotated[int, msgspec.Meta(ge=1, le=10**8)] | None = None
    take_up_until: Moment | None = None
    policy_id: str | None = None
    policy_name: str | None = None
    request_id: str | None = None
    rules: list[Rule] = []
    rule_sets: list[str] = []
    child_processes: Literal["allow", "same_package", "require_rule", "deny"] = "allow"
    run_as: str = "root"
    max_uses: int | None = None
    uses_before: int = 0
    ends_with_application: bool = False
    ticket_required: bool = False
    revoked: Revoked | None = None
    needs: list[str] = []


class Document(Wire, frozen=True, kw_only=True):
    """All that one computer may elevate, signed as `sojourn-state`.

    `grants` stay raw here: one that this agent cannot read is refused alone (`read_grants`), the others hold.
    """

    v: int
    computer_id: str
    epoch: int
    version: int
    issued_at: datetime
    valid_until: datetime
    asking: Asking = Asking()
    blocked: list[str] = []
    grants: list[msgspec.Raw] = []


class UnreadableGrant(Wire, frozen=True, kw_only=True):
    """A grant that this reader does not understand, and why."""

    id: str
    reason: str


class _Named(Wire, frozen=True, kw_only=True):
    id: str
    needs: list[str] = []


def read_grants(document: Document, known: frozenset[str]) -> list[Grant | UnreadableGrant]:
    """The grants of a document, each for itself; `known` are the `needs` that the reader can meet.

    Raises msgspec.ValidationError when a grant has not even an id.
    """
    grants: list[Grant | UnreadableGrant] = []
    for raw in document.grants:
        named = msgspec.json.decode(raw, type=_Named)
        if missing := [need for need in named.needs if need not in known]:
            grants.append(UnreadableGrant(id=named.id, reason=f"this agent does not know: {', '.join(missing)}"))
            continue
        try:
            grants.append(msgspec.json.decode(raw, type=Grant))
        except msgspec.ValidationError as error:
            grants.append(UnreadableGrant(id=named.id, reason=f"this agent cannot read the grant: {error}"))
    return grants


class SignedTime(Wire, frozen=True, kw_only=True):
    """The server's time, in answer to the agent's own nonce; signed as `sojourn-time`."""

    computer_id: str
    nonce: str
    server_time: datetime
    epoch: int
    version: int


class DocumentKey(Wire, frozen=True, kw_only=True):
    kid: str
    x: str
    not_after: Moment | None = None


class KeySet(Wire, frozen=True, kw_only=True):
    """The keys that may sign documents and time; signed by the root key as `sojourn-keys`; a higher epoch replaces."""

    epoch: int
    keys: list[DocumentKey]


class Renewal(Wire, frozen=True, kw_only=True):
    """Signed by the keeper as `sojourn-renew`: the only login of an agent over HTTPS."""

    computer_id: str
    link_public_key: str
    nonce: str


# --- questions of the agent -------------------------------------------------------------------------------------------


class RunningRun(Wire, frozen=True, kw_only=True):
    run_id: str
    grant_id: str


class Heartbeat(Wire, frozen=True, kw_only=True):
    v: int = 1
    nonce: str
    epoch: int
    version: int
    running: list[RunningRun] = []
    boot_id: str
    clock: datetime
    agent_version: str


class HeartbeatAnswer(Wire, frozen=True, kw_only=True):
    """Both are compact JWS; `document` is null when the agent holds the newest."""

    time: str
    document: str | None = None


class AskDecision(Wire, frozen=True, kw_only=True):
    request_id: str


class AskTerms(Wire, frozen=True, kw_only=True):
    user: str
    application: Application


class TermsAnswer(Wire, frozen=True, kw_only=True):
    allowed: bool
    longest_minutes: int
    approvers: list[str] = []
    problem: str | None = None


class AskRules(Wire, frozen=True, kw_only=True):
    digest: str


class Decision(Wire, frozen=True, kw_only=True):
    """How a request stands, for the person waiting. Informs, never elevates."""

    request_id: str
    version: int = 0
    status: Literal["pending", "approved", "declined", "cancelled", "expired", "refused"]
    note: str | None = None
    by_name: str | None = None
    at: datetime | None = None
    duration_minutes: int | None = None
    expires_at: datetime | None = None
    joined: str | None = None
    told: list[str] = []
    escalated: bool = False
    problem: str | None = None


# --- reports: signed by the keeper as `sojourn-report` ----------------------------------------------------------------


class ReportingUser(Wire, frozen=True, kw_only=True):
    name: str
    uid: int


class _Report(Wire, tag_field="kind", frozen=True, kw_only=True):
    """`seq` counts per kind without gaps; the computer is the subject's token, and must be the same here."""

    v: int = 1
    id: str
    seq: int
    computer_id: str
    boot_id: str
    at: datetime


class RequestReport(_Report, tag="request", frozen=True, kw_only=True):
    """A person asks; the report's id is the request's id."""

    user: ReportingUser
    application: Application
    duration_minutes: int
    justification: str
    ticket: str | None = None
    max_uses: int | None = None


class CancelReport(_Report, tag="cancel", frozen=True, kw_only=True):
    request_id: str
    user: ReportingUser


class AppliedGrant(Wire, frozen=True, kw_only=True):
    id: str
    applied: bool
    reason: str | None = None


class AppliedReport(_Report, tag="applied", frozen=True, kw_only=True):
    epoch: int
    version: int
    grants: list[AppliedGrant]


class StartedReport(_Report, tag="started", frozen=True, kw_only=True):
    """`rule` is the index of the grant's rule that matched, or the digest of its rule set."""

    run_id: str
    grant_id: str
    rule: int | str
    user: ReportingUser
    application: Application
    pid: int
    until: datetime | None


class MovedReport(_Report, tag="moved", frozen=True, kw_only=True):
    run_id: str
    from_: str = msgspec.field(name="from")
    to: str


Cause = Literal["exited", "expired", "revoked", "blocked", "returned", "client_gone", "agent_died", "offline"]
ENDS_GRANT: frozenset[Cause] = frozenset({"expired", "revoked", "returned"})
"""The causes that end the grant itself; the others end only the runs named."""


class EndedProcess(Wire, frozen=True, kw_only=True):
    pid: int
    name: str


class EndedRun(Wire, frozen=True, kw_only=True):
    """`gone`: the computer looked again, and nothing of the run was left."""

    run_id: str
    exit_status: int | None = None
    processes_ended: list[EndedProcess] = []
    escaped: list[EndedProcess] = []
    kill_ms: int | None = None
    gone: bool = True
    at: datetime


class EndedReport(_Report, tag="ended", frozen=True, kw_only=True):
    grant_id: str
    cause: Cause
    runs: list[EndedRun] = []


class ReturnedReport(_Report, tag="returned", frozen=True, kw_only=True):
    grant_id: str
    user: ReportingUser


class RefusedReport(_Report, tag="refused", frozen=True, kw_only=True):
    user: ReportingUser
    application: Application
    reason: str
    detail: str
    count: int = 1


class Guarantee(Wire, frozen=True, kw_only=True):
    """What a computer can really do, found by doing it; `why` is a sentence."""

    word: Literal["enforced", "best effort", "observed only", "absent"]
    why: str


class ComputerUser(Wire, frozen=True, kw_only=True):
    name: str
    uid: int


class StandingRight(Wire, frozen=True, kw_only=True):
    user: str
    through: str


class Spool(Wire, frozen=True, kw_only=True):
    waiting: int
    limit: int


class HealthReport(_Report, tag="health", frozen=True, kw_only=True):
    guarantees: dict[str, Guarantee]
    users: list[ComputerUser] = []
    standing_rights: list[StandingRight] = []
    spool: Spool
    clock_offset_s: int = 0
    agent_version: str | None = None


Report = (
    RequestReport
    | CancelReport
    | AppliedReport
    | StartedReport
    | MovedReport
    | EndedReport
    | ReturnedReport
    | RefusedReport
    | HealthReport
)
REPORT_KINDS = {
    "request": "requests",
    "cancel": "requests",
    "applied": "expiry",
    "started": "expiry",
    "moved": "expiry",
    "ended": "expiry",
    "returned": "expiry",
    "refused": "expiry",
    "health": "policy",
}
"""Each kind of report, and the one service that takes it from the work queue."""

# --- enrolment, over HTTPS --------------------------------------------------------------------------------------------


class Platform(Wire, frozen=True, kw_only=True):
    os: str
    distribution: str
    version: str
    architecture: str


class Enrolment(Wire, frozen=True, kw_only=True):
    name: str
    machine_id: str
    platform: Platform
    agent_version: str
    link_public_key: str
    keeper_public_key: str
    guarantees: dict[str, Guarantee] = {}


class Credentials(Wire, frozen=True, kw_only=True):
    jwt: str
    expires_at: datetime
    nats_urls: list[str]
    inbox_prefix: str


class Enrolled(Wire, frozen=True, kw_only=True):
    computer_id: str
    credentials: Credentials
    root_key: str
    keys: str
    offline_secret: str
    heartbeat_seconds: int = 60
    ca_pem: str | None = None


class Renewed(Wire, frozen=True, kw_only=True):
    credentials: Credentials
    keys: str


class ComputerLogin(Wire, frozen=True, kw_only=True):
    """The body of POST /computers/{id}/credentials and /computers/{id}/document, and the whole login of an agent.

    `renewal` is a compact JWS `sojourn-renew` over `Renewal`. Without it (`{}`), or with a nonce that is spent, too
    old or another's, the answer is 401, a problem with the member `nonce`: sign that one and call again.
    """

    renewal: str | None = None


class NonceProblem(Wire, frozen=True, kw_only=True):
    """What an agent reads of the 401."""

    nonce: str
    detail: str = ""


class DocumentAnswer(Wire, frozen=True, kw_only=True):
    document: str
    keys: str


def encode(message: Any) -> bytes:
    """The bytes of a message; `datetime`s become RFC 3339 with `Z`."""
    return _encoder.encode(message)


_encoder = msgspec.json.Encoder()
