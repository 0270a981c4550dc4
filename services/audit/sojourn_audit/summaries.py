"""What happened, in one English sentence for each type of event. Total: whatever an event holds, there is a sentence.

An event that could not be told would be an event not recorded; so every word is asked for as if it might be missing.
"""

import unicodedata
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final, get_args

from sojourn_shared.clock import in_words
from sojourn_shared.contracts.events import Event, EventType

LONGEST = 200  # characters of one quoted text


def summary(event: Event, computer_name: str | None = None) -> str:
    """The sentence for an event; a plain one for a type that is newer than this service."""
    told = Told(event, computer_name)
    sentence = _SENTENCES.get(event.change)
    return sentence(told) if sentence else f"{told.who}: {event.change.replace('.', ' ').replace('_', ' ')}"


class Told:
    """The words that sentences are made of."""

    def __init__(self, event: Event, computer_name: str | None) -> None:
        self.event = event
        self._computer_name = computer_name
        self.entity = event.data.entity

    @property
    def who(self) -> str:
        actor = self.event.data.actor
        if actor.kind == "autonomous":
            return "Autonomous approval"
        if actor.kind == "computer":
            return self.user if self.event.data.links.user else self.computer
        return shown(actor.name) or actor.id

    @property
    def user(self) -> str:
        return shown(self.event.data.links.user or self.entity.get("user")) or "somebody"

    @property
    def users(self) -> str:
        users = self.entity.get("users")
        if isinstance(users, dict) and users.get("all") is True:
            return "all users"
        names = users.get("names") if isinstance(users, dict) else None
        known = [shown(name) for name in names[:5]] if isinstance(names, list) else []
        if isinstance(names, list) and len(names) > 5:
            known.append(f"{len(names) - 5} more")
        return listed(known) or self.user

    @property
    def computer(self) -> str:
        actor, links = self.event.data.actor, self.event.data.links
        own = self.event.entity_kind == "computer" and self.entity.get("name")
        name = self.entity.get("computer_name") or own or self._computer_name
        name = name or (actor.name if actor.kind == "computer" else None)
        return shown(name) or shown(links.computer_id or self.entity.get("computer_id")) or "an unknown computer"

    @property
    def policy(self) -> str:
        name = self.entity.get("policy_name") or self.within("terms", "policy_name")
        name = name or (self.event.entity_kind == "policy" and self.entity.get("name"))
        if name:
            return f"the policy {quoted(name)}"
        return f"the policy {shown(self.event.data.links.policy_id)}" if self.event.data.links.policy_id else "a policy"

    @property
    def application(self) -> str:
        application = self.entity.get("application")
        if not isinstance(application, dict):
            return "an application"
        path = application.get("path")
        name = application.get("executable") or (path.rpartition("/")[2] if isinstance(path, str) else None)
        return shown(name) or shown(path) or "an application"

    @property
    def request(self) -> str:
        return f"{self.user}'s request for {self.application}"

    @property
    def access(self) -> str:
        """What a grant gives: to whom, where, and by what."""
        by = f" by {self.policy}" if self.event.data.links.policy_id else ""
        return f"access of {self.users} on {self.computer}{by}"

    @property
    def revision(self) -> str:
        return self.optional(" (revision {})", self.entity.get("revision") or self.entity.get("deployed_revision"))

    @property
    def note(self) -> str:
        """The words of whoever decided, if any, after a colon."""
        words = self.within("decision", "note") or self.entity.get("note") or self.within("revoked", "reason")
        return f": {quoted(words)}" if shown(words) else ""

    @property
    def minutes(self) -> str:
        return for_minutes(self.within("decision", "duration_minutes") or self.entity.get("duration_minutes"))

    def named(self, field: str = "name") -> str:
        words = self.entity.get(field)
        return quoted(words) if shown(words) else shown(self.event.subject)

    def within(self, field: str, inner: str) -> Any:
        value = self.entity.get(field)
        return value.get(inner) if isinstance(value, dict) else None

    def optional(self, pattern: str, *values: Any) -> str:
        """`pattern` filled, or nothing when a value is missing."""
        words = [shown(value) for value in values]
        return pattern.format(*words) if all(words) else ""


def shown(value: Any) -> str:
    """A text as it may stand in a sentence on a terminal: short, on one line, its control characters spelled out."""
    if value is None or isinstance(value, bool | list | dict):
        return ""
    text = str(value)
    text = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
    return "".join(character if is_plain(character) else ascii(character)[1:-1] for character in text).strip()


def is_plain(character: str) -> bool:
    return unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def quoted(value: Any) -> str:
    return f"“{shown(value)}”"


def listed(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def for_minutes(minutes: Any) -> str:
    if not isinstance(minutes, int) or isinstance(minutes, bool):
        return ""
    return f", {minutes} minute{'' if minutes == 1 else 's'}"


def _times(told: Told) -> str:
    count = told.entity.get("count")
    return f" ({count} times)" if isinstance(count, int) and count > 1 else ""


def _approved(told: Told) -> str:
    if told.event.data.actor.kind == "autonomous":
        return f"{told.request} was approved autonomously{told.minutes}"
    return f"{told.who} approved {told.request}{told.minutes}{told.note}"


def _cancelled(told: Told) -> str:
    own = told.who == told.user
    return f"{told.who} cancelled {'the request for ' + told.application if own else told.request}"


def _submitted(told: Told) -> str:
    reason = told.entity.get("justification")
    because = f": {quoted(reason)}" if shown(reason) else ""
    return f"{told.user} asked for {told.application} on {told.computer}{told.minutes}{because}"


def _assigned(told: Told) -> str:
    assignments = told.entity.get("assignments")
    states = [one.get("state") for one in assignments if isinstance(one, dict)] if isinstance(assignments, list) else []
    page = told.optional(", page {} of {}", told.entity.get("page"), told.entity.get("pages"))
    page = page if told.entity.get("pages") != 1 else ""
    ends = f", and no longer for {_computers(states.count('absent'))}" if "absent" in states else ""
    return f"{_upper(told.policy)}{told.revision} now stands for {_computers(states.count('present'))}{ends}{page}"


def _computers(count: int) -> str:
    return f"{count} computer{'' if count == 1 else 's'}"


def _activated(told: Told) -> str:
    return f"{_upper(told.access)} is active" + told.optional(" until {}", _moment(told.entity.get("until")))


def _scheduled(told: Told) -> str:
    return f"{_upper(told.access)} is scheduled" + told.optional(" from {}", _moment(told.entity.get("from")))


def _failed(told: Told) -> str:
    return f"{_upper(told.access)} could not be put in force" + told.optional(": {}", told.entity.get("failure"))


def _started(told: Told) -> str:
    return f"{told.user} started {told.application} elevated on {told.computer}"


def _ended(told: Told) -> str:
    said = told.entity.get("cause")
    cause = told.optional(": {}", _CAUSES.get(said, said) if isinstance(said, str) else said)
    killed = told.entity.get("processes_ended")
    count = len(killed) if isinstance(killed, list) else killed
    many = "" if count == 1 else "es"
    processes = f", {count} process{many} ended" if isinstance(count, int) and count > 0 else ""
    status = told.optional(", exit status {}", told.entity.get("exit_status"))
    return f"{told.user}'s run of {told.application} on {told.computer} ended{cause}{status}{processes}"


def _refused(told: Told) -> str:
    reason = told.optional(": {}", told.entity.get("detail") or told.entity.get("reason"))
    return f"{told.user} was refused {told.application} on {told.computer}{reason}{_times(told)}"


_CAUSES = {"agent_died": "the agent died", "client_gone": "its terminal is gone"}


def _moment(text: Any) -> str | None:
    """In words, if it is a moment."""
    try:
        return in_words(datetime.fromisoformat(text))
    except (TypeError, ValueError):
        return text if isinstance(text, str) else None


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


_SENTENCES: Final[dict[str, Callable[[Told], str]]] = {
    "policy.created": lambda t: f"{t.who} drafted {t.policy}",
    "policy.revised": lambda t: f"{t.who} revised {t.policy}{t.revision}",
    "policy.deployed": lambda t: f"{t.who} deployed {t.policy}{t.revision}",
    "policy.withdrawn": lambda t: f"{t.who} withdrew {t.policy}",
    "policy.deleted": lambda t: f"{t.who} deleted {t.policy}",
    "policy.reviewed": lambda t: f"{t.who} reviewed {t.policy}{t.revision}{t.note}",
    "assignments.changed": _assigned,
    "computer.enrolled": lambda t: f"The computer {t.computer} was enrolled",
    "computer.changed": lambda t: f"{t.who} changed the computer {t.computer}",
    "computer.decommissioned": lambda t: f"{t.who} decommissioned the computer {t.computer}",
    "enrolment_token.created": lambda t: f"{t.who} created the enrolment token {t.named()}",
    "enrolment_token.used": lambda t: f"The enrolment token {t.named()} was used",
    "request.submitted": _submitted,
    "request.changed": lambda t: f"{t.who} changed {t.request}",
    "request.endorsed": lambda t: f"{t.who} endorsed {t.request}; more seats are to be filled",
    "request.approved": _approved,
    "request.declined": lambda t: f"{t.who} declined {t.request}{t.note}",
    "request.cancelled": _cancelled,
    "request.expired": lambda t: f"{t.request} expired: nobody decided in time",
    "grant.scheduled": _scheduled,
    "grant.ready": lambda t: f"{_upper(t.access)} is ready; its clock starts at first use",
    "grant.activated": _activated,
    "grant.applied": lambda t: f"The computer {t.computer} confirmed the {t.access}",
    "grant.failed": _failed,
    "grant.expired": lambda t: f"{_upper(t.access)} is over: its time has passed",
    "grant.revoked": lambda t: f"{t.who} revoked the {t.access}{t.note}",
    "grant.ended": lambda t: f"The computer {t.computer} confirmed the end of the {t.access}",
    "grant.returned": lambda t: f"{t.who} gave back the {t.access}",
    "elevation.started": _started,
    "elevation.moved": lambda t: f"{t.user}'s run of {t.application} on {t.computer} went on under another grant",
    "elevation.ended": _ended,
    "elevation.refused": _refused,
    "settings.changed": lambda t: f"{t.who} changed the settings of {shown(t.event.subject)}",
    "account.created": lambda t: f"{t.who} created the account {t.named()}",
    "account.changed": lambda t: f"{t.who} changed the account {t.named()}",
    "account.deleted": lambda t: f"{t.who} deleted the account {t.named()}",
    "client.created": lambda t: f"{t.who} created the API client {t.named()}",
    "client.deleted": lambda t: f"{t.who} deleted the API client {t.named()}",
    "key.created": lambda t: f"{t.who} created the API key {t.named()}",
    "key.deleted": lambda t: f"{t.who} deleted the API key {t.named()}",
    "session.link_made": lambda t: (
        f"{t.who} made a sign-in link for {shown(t.entity.get('account_name')) or 'somebody'}"
    ),
    "session.signed_in": lambda t: f"{t.who} signed in",
    "session.refused": lambda t: f"A sign-in was refused{t.optional(' from {}', t.entity.get('source'))}{_times(t)}",
    "session.signed_out": lambda t: f"{t.who} signed out",
    "agent.connected": lambda t: f"The agent of {t.computer} is connected",
    "agent.lost": lambda t: f"The agent of {t.computer} is not heard of any more",
    "agent.credentials_renewed": lambda t: f"The agent of {t.computer} renewed its credentials",
}
WITHOUT_SENTENCE = frozenset(get_args(EventType)) - _SENTENCES.keys()
