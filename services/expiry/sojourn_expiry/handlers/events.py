"""What other services said. Each handler acts on what the entity says, whichever change brought it."""

from collections.abc import Sequence
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from sojourn_expiry import domain
from sojourn_expiry.domain import Grant, Revocation
from sojourn_expiry.store import Tx, asking, computers, grants
from sojourn_shared.contracts.events import (
    Assignment,
    AssignmentsChanged,
    ComputerState,
    Event,
    RequestsSettings,
    RequestState,
)
from sojourn_shared.ids import new_id
from sojourn_shared.service import Park


async def on_assignments(event: Event, tx: Tx) -> None:
    """Open a grant for each assignment that is present, revoke those of the ones that are absent or were replaced.

    What replaces and what is replaced change in one transaction, and so stand in the same document.
    """
    changed = _read(AssignmentsChanged, event)
    news = await grants.hear_assignments(tx, changed)
    standing = await grants.lock_of_assignments(tx, [one.id for one in news])
    opening = _grants_for(news, changed, tx)
    reopened = {grant.assignment_id for grant in opening}
    absent = {one.id for one in news if one.state == "absent"}
    actor = event.data.actor
    changes = []
    for grant in standing:
        superseded = grant.assignment_id in reopened
        gone = grant.assignment_id in absent and event.data.because
        revocation = Revocation(
            by=actor.id,
            by_name=actor.name,
            at=tx.now,
            reason=domain.SUPERSEDED if superseded else gone or domain.WITHDRAWN,
            superseded=superseded,
        )
        changes.append((grant, domain.revoke(grant, revocation), "grant.revoked"))
    await grants.save_all(tx, changes, because=event.data.because)
    await grants.open_(tx, opening, taken_from={grant.computer_id for grant in standing})


def _grants_for(news: Sequence[Assignment], changed: AssignmentsChanged, tx: Tx) -> list[Grant]:
    found = [
        domain.grant_for_assignment(one, changed, id=new_id(tx.now), now=tx.now)
        for one in news
        if one.state == "present"
    ]
    return [grant for grant in found if grant is not None]


async def on_request(event: Event, tx: Tx) -> None:
    """Open the grant of an approved request, under the id that the approval minted."""
    request = _read(RequestState, event)
    if request.status != "approved":
        return
    try:
        grant = domain.grant_for_request(request, tx.now)
    except ValueError as error:
        raise Park(str(error)) from None
    await grants.open_(tx, [grant])


async def on_computer(event: Event, tx: Tx) -> None:
    """Know the computer and its keeper's key. One that is new gets its first document; of one that left, all ends."""
    state = _read(ComputerState, event)
    if state.status == "decommissioned":
        actor = event.data.actor
        held = await grants.lock_unconfirmed_of(tx, state.id)
        changes = [
            (grant, domain.decommission(grant, by=actor.id, by_name=actor.name, now=tx.now), _left(grant))
            for grant in held
        ]
        await grants.save_all(tx, changes, because=domain.DECOMMISSIONED)
    await computers.hear(tx, state)
    if state.status == "decommissioned":
        await computers.mark_dirty(tx, [state.id], taken_away=[state.id])


def _left(grant: Grant) -> str:
    """A grant that was over before only stops waiting for its confirmation; its event carries that."""
    return "grant.ended" if grant.is_final else "grant.revoked"


async def on_settings(event: Event, tx: Tx) -> None:
    """What computers tell a person before asking, and how long a document holds: every document says so anew."""
    if event.subject != "requests":
        return
    await asking.hear(tx, _read(RequestsSettings, event))
    await computers.mark_all_dirty(tx)


M = TypeVar("M", bound=BaseModel)


def _read(kind: type[M], event: Event) -> M:
    """Raises Park when the entity is none of that kind: it will never become one."""
    try:
        return kind.model_validate(event.data.entity)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise Park(f"{event.change}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
