"""What computers report, signed by their keepers. Each report counts once, and they converge in any order.

A report speaks for its own computer alone: a grant or run of another one does not exist for it.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
import structlog

from sojourn_expiry import domain
from sojourn_expiry.domain import Grant, Run
from sojourn_expiry.store import Tx, computers, elevations, grants
from sojourn_expiry.store.computers import Computer
from sojourn_shared.contracts import wire
from sojourn_shared.contracts.events import Actor, Links
from sojourn_shared.ids import is_id
from sojourn_shared.service import NotYet, Park, open_report

log = structlog.get_logger(__name__)


async def on_applied(computer_id: str, jws: bytes, tx: Tx) -> None:
    """The computer holds a document: for each grant in it, it can enforce it, or says why not."""
    report, computer = await _open(wire.AppliedReport, computer_id, jws, tx)
    if report is None:
        return
    said = {one.id: one for one in report.grants}
    changes = []
    for grant in await grants.lock_undelivered(tx, said, computer_id):
        word = said[grant.id]
        after = domain.applied(grant, applied=word.applied, reason=word.reason, at=report.at, now=tx.now)
        changes.append((grant, after, "grant.applied" if word.applied else "grant.failed"))
    await grants.save_all(tx, changes, actor=_actor(computer))
    await computers.has_applied(tx, computer_id, report.epoch, report.version)


async def on_started(computer_id: str, jws: bytes, tx: Tx) -> None:
    """A run began. The first one starts the clock of a grant that waits for it, and the document then says its end."""
    report, computer = await _open(wire.StartedReport, computer_id, jws, tx)
    if report is None:
        return
    grant = await _lock_one(tx, report.grant_id, computer_id)
    run = await _lock_run(tx, report.run_id, computer_id)
    application: Mapping[str, Any] = _without_nothing(msgspec.to_builtins(report.application))
    started = domain.run_started(run, report, application, tx.now)
    await elevations.save(tx, run, started, "elevation.started", grant=grant, actor=_actor(computer))
    if grant is None:
        return
    after = domain.used(grant, at=report.at, until=report.until, now=tx.now)
    await grants.save(tx, grant, after, "grant.activated", actor=_actor(computer, report.user.name))
    late_use = grant.is_final and grant.max_uses is not None and started is not run
    if after is not grant or late_use:  # a late use counts for the policy's next grant on this computer
        await computers.mark_dirty(tx, [computer_id])


async def on_moved(computer_id: str, jws: bytes, tx: Tx) -> None:
    """A run goes on under another grant that covers it: the first one's time was over."""
    report, computer = await _open(wire.MovedReport, computer_id, jws, tx)
    if report is None:
        return
    grant = await _lock_one(tx, report.to, computer_id)
    run = await _lock_run(tx, report.run_id, computer_id)
    moved = domain.run_moved(run, report, tx.now)
    await elevations.save(tx, run, moved, "elevation.moved", grant=grant, actor=_actor(computer))


async def on_ended(computer_id: str, jws: bytes, tx: Tx) -> None:
    """Runs ended, and with some causes the grant. The end of one that is not known here is recorded all the same."""
    report, computer = await _open(wire.EndedReport, computer_id, jws, tx)
    if report is None:
        return
    grant = await _lock_one(tx, report.grant_id, computer_id)
    known = await elevations.lock(tx, [run.run_id for run in report.runs])
    actor = _actor(computer)
    for end in report.runs:
        run = _own(known.get(end.run_id), end.run_id, computer_id)
        await elevations.save(
            tx, run, domain.run_ended(run, end, report, tx.now), "elevation.ended", grant=grant, actor=actor
        )
    if grant is None:
        log.warning("the end of an unknown grant", computer=computer_id, grant=report.grant_id, cause=report.cause)
        await elevations.record_stray_end(tx, computer_id, report.grant_id, report.cause, report.at)
        return
    gone = all(run.gone for run in report.runs)
    over = domain.over_as_reported(grant, cause=report.cause, at=report.at, now=tx.now)
    await grants.save(tx, grant, over, _OVER.get(report.cause, ""), actor=actor)
    after = domain.end_confirmed(over, cause=report.cause, at=report.at, gone=gone, now=tx.now)
    await grants.save(tx, over, after, "grant.ended", because=report.cause, actor=actor)


_OVER: Mapping[wire.Cause, str] = {"expired": "grant.expired", "revoked": "grant.revoked", "returned": "grant.returned"}


async def on_returned(computer_id: str, jws: bytes, tx: Tx) -> None:
    """The person gave the access back, on the computer."""
    report, computer = await _open(wire.ReturnedReport, computer_id, jws, tx)
    if report is None:
        return
    grant = await _lock_one(tx, report.grant_id, computer_id)
    if grant is None:
        log.warning("an unknown grant was given back", computer=computer_id, grant=report.grant_id)
        return
    actor = _actor(computer, report.user.name)
    after = domain.give_back(grant, by=report.user.name, by_name=report.user.name, at=report.at, now=tx.now)
    await grants.save(tx, grant, after, "grant.returned", actor=actor)
    if after is not grant:
        await computers.mark_dirty(tx, [computer_id], taken_away=[computer_id])


async def on_refused(computer_id: str, jws: bytes, tx: Tx) -> None:
    """Somebody tried what nothing covers. No entity changes: it is only told."""
    report, computer = await _open(wire.RefusedReport, computer_id, jws, tx)
    if report is None:
        return
    entity = {
        "id": report.id,
        "computer_id": computer_id,
        "user": report.user.name,
        "application": _without_nothing(msgspec.to_builtins(report.application)),
        "reason": report.reason,
        "detail": report.detail,
        "count": report.count,
        "at": msgspec.to_builtins(report.at),
    }
    tx.emit(
        "elevation.refused",
        id=report.id,
        entity=entity,
        version=None,
        links=Links(computer_id=computer_id, user=report.user.name),
        actor=_actor(computer),
    )


R = TypeVar("R", bound=wire.Report)


async def _open(kind: type[R], computer_id: str, jws: bytes, tx: Tx) -> tuple[R | None, Computer]:
    """The report, or None when it was taken before. Raises NotYet for a computer that is not known yet, Park."""
    computer = await computers.get(tx, computer_id)
    if computer is None:
        raise NotYet(f"computer {computer_id} is not known here yet")
    report = open_report(jws, computer_id, computer.keeper_public_key)
    if not isinstance(report, kind):
        raise Park(f"came as {kind.__name__}, but says {type(report).__name__}")
    for name in ("id", "grant_id", "run_id", "to"):
        if not is_id(getattr(report, name, report.id)):
            raise Park(f"{name} is no id: {getattr(report, name)!r}")
    return (report if await tx.first_time(f"{computer_id}/{report.id}") else None), computer


async def _lock_one(tx: Tx, grant_id: str, computer_id: str) -> Grant | None:
    """None when there is none. Raises Park when it is another computer's, whose uses and story it shall not tell."""
    if found := await grants.lock(tx, [grant_id], computer_id=computer_id):
        return found[0]
    if await grants.exists(tx, grant_id):
        raise Park(f"grant {grant_id} is another computer's")
    return None


async def _lock_run(tx: Tx, run_id: str, computer_id: str) -> Run | None:
    return _own((await elevations.lock(tx, [run_id])).get(run_id), run_id, computer_id)


def _own(run: Run | None, run_id: str, computer_id: str) -> Run | None:
    if not is_id(run_id):
        raise Park(f"run_id is no id: {run_id!r}")
    if run is not None and run.computer_id != computer_id:
        raise Park(f"run {run_id} is another computer's")
    return run


def _actor(computer: Computer, user: str | None = None) -> Actor:
    """The computer, or a person at it."""
    return Actor(kind="computer", id=computer.id, name=f"{user} on {computer.name}" if user else computer.name)


def _without_nothing(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if value is not None}
