"""A computer as this service sees it: what it should hold, what it holds, and its document over HTTPS."""

from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy import or_

from sojourn_expiry.domain import Delivery, Status
from sojourn_expiry.keys import StateKeys
from sojourn_expiry.store import computers, lists, liveness
from sojourn_expiry.store.tables import elevations, grants
from sojourn_shared.contracts.events import Id, Model, Time
from sojourn_shared.errors import NotFound
from sojourn_shared.service import Caller, Paging, allow, allow_computer, problems
from sojourn_shared.service import router as new_router
from sojourn_shared.service.renewal import ComputerLogin, ProofNeeded, ask_for_proof, proven

from .elevations import ElevationOut
from .sight import Console, TheTx, sight_of

router = new_router("/computers", tags=["computers"])

SHOWN = 500  # of each: more than any document holds


class NoSuchComputer(NotFound):
    """No computer of that id in the caller's sight."""


class GrantBrief(Model):
    id: str
    status: Status
    delivery: Delivery
    policy_name: str | None
    request_id: str | None
    until: Time | None


class ComputerStateOut(Model):
    """`desired_version` is of the newest document, `applied_version` of the newest that the computer confirmed."""

    computer_id: str
    computer_name: str
    status: str
    desired_version: int
    applied_version: int
    last_seen_at: Time | None
    connected: bool
    grants: list[GrantBrief]
    running: list[ElevationOut]


class DocumentOut(Model):
    document: str
    keys: str


@router.get("/{computer_id}/state", responses=problems(NoSuchComputer))
async def get_computer_state(
    computer_id: Id,
    caller: Annotated[Caller, Depends(allow("administrator", "approver", "auditor"))],
    tx: TheTx,
    console: Console,
) -> ComputerStateOut:
    """What is in force on a computer at this moment, and what runs there."""
    computer = await computers.get(tx, computer_id)
    if computer is None or not sight_of(caller).everything:
        raise NoSuchComputer(f"There is no computer {computer_id}.")
    seen = await liveness.of(tx, computer_id)
    page = Paging(limit=SHOWN)
    in_force = or_(grants.c.status.in_(("ready", "active")), grants.c.delivery == "ending")
    held = await lists.grants_page(tx, page, [grants.c.computer_id == computer_id, in_force])
    running = [elevations.c.computer_id == computer_id, elevations.c.ended_at.is_(None)]
    return ComputerStateOut(
        computer_id=computer.id,
        computer_name=computer.name,
        status=computer.status,
        desired_version=computer.version,
        applied_version=computer.applied_version,
        last_seen_at=seen.last_seen_at if seen else None,
        connected=bool(seen and seen.connected),
        grants=[GrantBrief.model_validate(row._asdict()) for row in held[:SHOWN]],
        running=[ElevationOut.of(row, console) for row in (await lists.elevations_page(tx, page, running))[:SHOWN]],
    )


@router.post("/{computer_id}/document", responses=problems(ProofNeeded, NoSuchComputer))
async def get_document(
    computer_id: Id,
    body: ComputerLogin,
    caller: Annotated[Caller, Depends(allow_computer())],
    tx: TheTx,
    request: Request,
) -> DocumentOut:
    """The newest document over HTTPS, for a computer that cannot reach NATS, also one that was decommissioned.

    Without `renewal`, or with one that does not hold, the problem carries a `nonce`: sign it and call again.
    """
    keys: StateKeys = request.app.state.house.parts
    jws = ask_for_proof(body, computer_id, keys.nonces, tx.now)
    computer = await computers.get(tx, computer_id)
    if computer is None:
        raise NoSuchComputer(f"There is no computer {computer_id}.")
    await proven(jws, computer_id, computer.keeper_public_key, keys.nonces, tx)
    if computer.document is None:
        raise NoSuchComputer("The computer's first document is being written: ask again in a second.")
    return DocumentOut(document=computer.document, keys=keys.key_set)
