"""What the ledger keeps of an event, and who may see it. Pure."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

import msgspec

from sojourn_shared.clock import rfc3339
from sojourn_shared.contracts.events import Actor, Event, Links
from sojourn_shared.errors import DomainError

from .summaries import summary

LINKS = ("policy_id", "request_id", "grant_id", "computer_id", "user")


class NotInLedger(DomainError):
    code, status, title = "not-found", 404, "There is no such entry in the ledger"


class NoSuchTree(DomainError):
    code, status, title = "invalid-body", 422, "The ledger never had that size"


class FormatNotAvailable(DomainError):
    code, status, title = "invalid-body", 422, "This format is not available yet"


@dataclass(frozen=True)
class Arrival:
    """An event that was heard and waits for its place in the ledger.

    `told` are the JSON members of its line, without braces, from `id` on: the bytes that will be hashed. They are made
    when it arrives, so that an event which cannot be told fails alone and is set aside with its reason.
    """

    event_id: str
    type: str
    time: datetime
    actor: Actor
    links: Links
    told: bytes


def arrival_of(event: Event, computer_name: str | None = None) -> Arrival:
    """What will stand in the ledger of `event`. No member is left out when empty: every line has the same form.

    `computer_name` is what the computer in its links is called now, for the sentence.
    """
    data = event.data
    line = {
        "id": event.id,
        "type": event.change,
        "time": rfc3339(event.time),
        "source": event.service,
        "subject": event.subject,
        "traceparent": event.traceparent,
        "actor": {"kind": data.actor.kind, "id": data.actor.id, "name": data.actor.name},
        **{name: getattr(data.links, name) for name in LINKS},
        "summary": summary(event, computer_name),
        "because": data.because,
        "data": data.entity,
    }
    told = msgspec.json.encode(line)[1:-1]
    return Arrival(event.id, event.change, event.time, data.actor, data.links, told)


def rest_of_line(recorded_at: datetime, told: bytes) -> bytes:
    """What follows `seq` and `previous` in the line of an entry."""
    return b'"recorded_at":"%b",%b}' % (rfc3339(recorded_at).encode(), told)


def read_line(line: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = msgspec.json.decode(line)
    return entry


@dataclass(frozen=True)
class Sight:
    """Which events somebody may read: all, or those about themselves and those that they caused."""

    everything: bool
    caller_id: str
    os_users: tuple[str, ...]

    @classmethod
    def of(cls, caller_id: str, roles: frozenset[str], os_users: tuple[str, ...] | None) -> Self:
        everything = not roles.isdisjoint({"administrator", "auditor", "approver"})
        return cls(everything, caller_id, os_users or ())


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which events somebody asks for; what is None is not asked. `type` may end in `.*`; `actor` is an id or a name."""

    policy_id: str | None = None
    request_id: str | None = None
    grant_id: str | None = None
    computer_id: str | None = None
    user: str | None = None
    actor: str | None = None
    type: str | None = None
    since: datetime | None = None
    until: datetime | None = None
