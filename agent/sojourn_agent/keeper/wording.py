"""What the agent says to people: every refusal is a sentence that says what to do."""

from collections.abc import Iterator
from datetime import datetime
from typing import assert_never

from sojourn_agent.packets import Reason
from sojourn_shared.contracts.wire import (
    AnyArgument,
    Application,
    Asking,
    ClsidRule,
    Decision,
    FileHashRule,
    FolderPathRule,
    Grant,
    ProductRule,
    Rule,
    Signature,
    VendorRule,
    VerifiedExecutableRule,
)

from .cover import Covered
from .spool import Asked

SPOOL_FULL = (
    "too many reports wait on this computer for its server, so it starts nothing new:"
    " see that it reaches the server again (sojourn-agent doctor)"
)
NOT_ROOT = (
    "the agent does not run as root on this computer: it observes only and elevates nothing"
    " (its administrator starts it as root: sudo sojourn-agent run)"
)


def not_trusted(path: str, writable: str) -> str:
    what = "the file itself" if writable == path else writable
    return (
        f"{path} is not elevated: others than root can change {what}."
        f" Its administrator can make {what} root's alone (chown root, chmod go-w), or install the program elsewhere"
    )


def allowed(covered: Covered) -> str:
    end = f"until {moment(covered.until)}" if covered.until else "without an end of its own"
    return f"allowed now, {end}: {covered.match.why}"


def problem(code: str) -> str:
    """The sentence for a problem that the server names by its code; what is no code is a sentence already."""
    return _PROBLEMS.get(code, code)


_PROBLEMS = {
    "asking-disabled": "asking is switched off for you by your administrators",
    "no-approver": "nobody could approve it: tell your administrators that no approver is named for you",
    "not-permitted": "you may not ask for this",
    "document_full": "this computer holds too many grants already: its administrators must end some first",
    "decommissioned": "this computer is no longer managed: tell your administrators",
}


def problem_of(reason: Reason, asking: Asking, longest: int) -> str | None:
    """What is wrong with a person's answer, or None. The ticket's pattern is the server's to judge."""
    because, ticket = reason.because.strip(), reason.ticket
    if not 1 <= reason.minutes <= longest:
        return f"the time must be from 1 to {longest} minutes, not {reason.minutes}"
    if len(because) < max(1, asking.justification_min):
        return f"the reason needs at least {max(1, asking.justification_min)} characters"
    if len(because) > 2000 or (ticket is not None and len(ticket) > 200):
        return "the reason may have 2,000 characters, the ticket 200"
    if any(ord(character) < 32 or ord(character) == 127 for character in because + (ticket or "")):
        return "the reason and the ticket are one line of text, without control characters"
    if asking.ticket == "required" and not (ticket or "").strip():
        return "a ticket is required (--ticket)"
    return None


def news(decision: Decision) -> Iterator[str]:
    """What a request that is still pending can tell the person."""
    if decision.joined is not None:
        yield f"the same was asked before: request {decision.joined} is waiting for a decision"
    if decision.told:
        yield f"asked: {', '.join(decision.told[:20])}"
    if decision.escalated:
        yield "nobody has answered yet: others were asked too"
    if decision.problem:
        yield decision.problem
    elif decision.note:
        yield decision.note


def facts(application: Application, writable: str | None) -> tuple[list[str], dict[str, object]]:
    """Lines for people, and the same for programs."""
    trusted = "yes: root alone can change it" if writable is None else f"no: others than root can change {writable}"
    rows = [
        ("path", application.path),
        ("executable", application.executable),
        ("sha256", application.sha256 or "not known (too large, or it changed while it was read)"),
        ("size", f"{application.size} bytes" if application.size is not None else None),
        ("vendor", application.vendor),
        ("product", application.product),
        ("version", application.version),
        ("package", application.package),
        ("signature", signature(application.signature)),
        ("trusted path", trusted),
    ]
    lines = [f"{name:13} {value}" for name, value in rows if value is not None]
    return lines, {"application": application, "trusted": writable is None, "writable": writable}


def signature(found: Signature) -> str:
    """Its status, and what it means here."""
    by = f" by {found.by}" if found.by else ""
    match found.status:
        case "verified":
            return f"verified{by}: it is what its package brought"
        case "invalid":
            return f"invalid: it is not what its package brought{by and f' (recorded{by})'}"
        case "unsigned":
            return "unsigned: it belongs to no package"
        case "unknown":
            return "unknown: nothing shows that it is what a package brought, and stays so"
    assert_never(found.status)


def granted(grant: Grant, until: datetime | None, state: str) -> str:
    """One line of `elevate --status`."""
    what = ", ".join(_rule(rule) for rule in grant.rules[:3]) + (", …" if len(grant.rules) > 3 else "")
    if state == "not begun":
        when = f"from {moment(grant.from_)}"
    elif until is not None:
        when = f"until {moment(until)}"
    elif grant.duration_minutes is not None:
        when = f"for {grant.duration_minutes} minutes from its first use"
    else:
        when = "without an end of its own"
    uses = f", {grant.max_uses} uses at most" if grant.max_uses is not None else ""
    return f"{what} {when}{uses}  [{grant.policy_name or 'request'}, {grant.id}]"


def pending(asked: Asked) -> str:
    arguments = " ".join(repr(argument) for argument in (asked.application.arguments or [])[:8])
    return (
        f"{asked.application.path} {arguments} for {asked.minutes} minutes: {asked.status}  [request {asked.known_as}]"
    )


def moment(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


def _rule(rule: Rule) -> str:
    match rule:
        case FileHashRule():
            what = rule.executable or f"sha256 {rule.sha256[:12]}…"
        case FolderPathRule():
            what = f"{rule.path}/{rule.executable or '…'}"
        case VendorRule():
            what = f"anything by {rule.vendor}"
        case ProductRule():
            what = rule.product
        case VerifiedExecutableRule():
            what = rule.executable
        case ClsidRule():
            what = rule.name or rule.clsid
    if rule.arguments is None:
        return what
    return " ".join([what, *(repr(part) if not isinstance(part, AnyArgument) else "…" for part in rule.arguments)])
