"""What a caller may ask besides running something: what is allowed, what waits, give it back, cancel it."""

import sqlite3
from collections.abc import Callable
from typing import TYPE_CHECKING

from sojourn_agent import VERSION
from sojourn_agent.packets import Told
from sojourn_shared.clock import boottime, rfc3339
from sojourn_shared.contracts.wire import Grant

from . import wording
from .cover import NEVER_USED, ends_at, names_user, readable, state_at
from .names import Person

if TYPE_CHECKING:
    from .keeper import Keeper

_SHOWN = 100
"""Lines of each kind in one answer; a packet has 64 KiB."""


def status(keeper: "Keeper", person: Person) -> Told:
    """What this person may run now and until when, and what is pending."""
    lines: list[str] = []
    grants = []
    time, held = keeper.time(), keeper.documents.held
    if keeper.observed_only is not None:
        lines.append(keeper.observed_only)
    if time is None or held is None:
        lines.append(keeper.timekeeping.why_none or "this computer has no document from its server yet")
    else:
        now = time.now(boottime())
        for grant in readable(held):
            use = keeper.spool.uses.get(grant.id, NEVER_USED)
            state = state_at(grant, use, now)
            why = keeper.enforcement.why_not_applied(held, grant)
            if not names_user(grant, person.who) or state not in ("in force", "not begun") or why is not None:
                continue
            until = ends_at(grant, use)
            grants.append({"grant_id": grant.id, "state": state, "until": rfc3339(until) if until else None})
            lines.append(wording.granted(grant, until, state))
    if not grants:
        lines.append("nothing may be run elevated by you now")
    waiting = [asked for asked in keeper.spool.requests(uid=person.uid) if asked.status == "pending"]
    lines += [wording.pending(asked) for asked in waiting[:_SHOWN]]
    pending = [{"request_id": asked.known_as, "path": asked.application.path} for asked in waiting[:_SHOWN]]
    return Told(exit=0, lines=lines[: 2 * _SHOWN], data={"grants": grants[:_SHOWN], "pending": pending})


def agent(keeper: "Keeper") -> Told:
    """How the agent is: for `sojourn-agent status` and `doctor`."""
    time, held = keeper.time(), keeper.documents.held
    data = {
        "version": VERSION,
        "computer_id": keeper.config.computer_id,
        "server": keeper.config.server,
        "connected": keeper.linkage.connected,
        "why_not_connected": keeper.linkage.why or None,
        "observed_only": keeper.observed_only,
        "epoch": held.document.epoch if held else None,
        "document_version": held.document.version if held else None,
        "valid_until": rfc3339(held.document.valid_until) if held else None,
        "grants": len(held.grants) if held else 0,
        "running": len(keeper.runs.live),
        "time": rfc3339(time.now(boottime())) if time else None,
        "time_confirmed": time is not None and time.confirmed,
        "why_no_time": keeper.timekeeping.why_none,
        "clock_offset_s": keeper.timekeeping.offset_s(),
        "reports_waiting": keeper.spool.waiting,
        "leaves": str(keeper.leaves.parent) if keeper.leaves.parent else None,
        "why_no_leaves": keeper.leaves.why_none,
        "guarantees": keeper.health.guarantees,
    }
    return Told(exit=0, data=data)


def done(keeper: "Keeper", person: Person, target: str | None) -> Told:
    """Give back the one grant named, or all that are this person's alone."""
    time, held = keeper.time(), keeper.documents.held
    if time is None or held is None:
        return Told(exit=77, lines=["there is nothing to give back: this computer has no document from its server"])
    now = time.now(boottime())
    mine: list[Grant] = []
    for grant in readable(held):
        use = keeper.spool.uses.get(grant.id, NEVER_USED)
        if names_user(grant, person.who) and state_at(grant, use, now) in ("in force", "not begun"):
            mine.append(grant)
    if target is not None:
        mine = [grant for grant in mine if grant.id == target]
        if not mine:
            return Told(exit=77, lines=[f"you have no grant {target} in force (elevate --status lists them)"])
    own = [grant for grant in mine if not grant.users.all and person.who.names.issuperset(grant.users.names)]
    if not own:
        why = "it is for others too: an administrator can revoke it" if mine else "there is nothing to give back"
        return Told(exit=77 if mine else 0, lines=[why])
    try:
        for grant in own:
            keeper.enforcement.give_back(grant, person)
    except sqlite3.Error as error:
        return Told(exit=75, lines=[f"it cannot be recorded now ({error}): try again"])
    return Told(exit=0, lines=[f"given back: {grant.policy_name or 'request'} [{grant.id}]" for grant in own])


def cancel(keeper: "Keeper", person: Person, target: str | None) -> Told:
    """Cancel a request made by this person on this computer."""
    known = keeper.spool.requests(uid=person.uid, known_as=target) if target else []
    if not known:
        return Told(exit=77, lines=[f"you made no request {target or ''} on this computer (elevate --status)"])
    waiting = [asked for asked in known if asked.status in ("pending", "approved")]
    if not waiting:
        return Told(exit=0, lines=[f"request {target} is decided already: {known[0].status}"])
    try:
        keeper.requests.cancel(waiting[0], person)
    except sqlite3.Error as error:
        return Told(exit=75, lines=[f"it cannot be recorded now ({error}): try again"])
    return Told(exit=0, lines=[f"cancelling request {waiting[0].known_as}"])


ERRANDS: dict[str, Callable[["Keeper", Person, str | None], Told]] = {
    "status": lambda keeper, person, _: status(keeper, person),
    "agent": lambda keeper, person, _: agent(keeper),
    "done": done,
    "cancel": cancel,
}
