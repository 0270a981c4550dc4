"""Runs: what was elevated, when, and how it ended."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import Depends, Response
from pydantic import Field

from sojourn_expiry.store import lists
from sojourn_expiry.store.tables import elevations as table
from sojourn_shared.contracts import wire
from sojourn_shared.contracts.events import Id, Model, Time, UserName
from sojourn_shared.errors import NotFound
from sojourn_shared.service import Caller, Page, Paging, allow, paging, problems, set_etag
from sojourn_shared.service import router as new_router

from .sight import Console, TheTx, sight_of

router = new_router("/elevations", tags=["elevations"])

Reader = Annotated[Caller, Depends(allow())]


class NoSuchElevation(NotFound):
    """No run of that id in the caller's sight."""


class ProcessOut(Model):
    pid: int
    name: str


class ElevationOut(Model):
    """A run. What the computer has not reported yet is null; its reports come in any order."""

    id: str
    version: int
    grant_id: str = Field(description="The grant that it runs under, or ended under.")
    started_under: str | None = Field(description="The grant that its use counts for.")
    computer_id: str
    computer_name: str | None
    user: str | None
    uid: int | None
    application: dict[str, Any] | None
    rule: int | str | None
    pid: int | None
    started_at: Time | None
    ended_at: Time | None
    cause: wire.Cause | None
    exit_status: int | None
    processes_ended: list[ProcessOut]
    escaped: list[ProcessOut]
    kill_ms: int | None
    gone: bool | None = Field(description="The computer looked again, and nothing of the run was left.")
    created_at: Time
    updated_at: Time
    console_url: str

    @classmethod
    def of(cls, row: Any, console: str) -> "ElevationOut":
        """`row`: what `lists.elevation` gives."""
        return cls.model_validate(
            row._asdict()
            | {"user": row.user_name, "console_url": f"{console}/just-in-time-access/active?grant_id={row.grant_id}"}
        )


class ElevationPage(Page[ElevationOut]):
    pass


@router.get("")
async def list_elevations(
    *,
    caller: Reader,
    tx: TheTx,
    console: Console,
    asked: Annotated[Paging, Depends(paging)],
    grant_id: Id | None = None,
    computer_id: Id | None = None,
    user: UserName | None = None,
    running: bool | None = None,
) -> ElevationPage:
    """Runs, newest first."""
    conditions = lists.elevations_in(sight_of(caller))
    if running is not None:
        conditions.append(table.c.ended_at.is_(None) if running else table.c.ended_at.is_not(None))
    for column, wanted in (("grant_id", grant_id), ("computer_id", computer_id), ("user_name", user)):
        if wanted is not None:
            conditions.append(table.c[column] == wanted)
    rows = await lists.elevations_page(tx, asked, conditions)

    def key(run: ElevationOut) -> tuple[datetime, str]:
        return (run.updated_at if asked.updated_after else run.created_at), run.id

    return ElevationPage.model_validate(asked.page([ElevationOut.of(row, console) for row in rows], key))


@router.get("/{run_id}", responses=problems(NoSuchElevation))
async def get_elevation(run_id: Id, caller: Reader, tx: TheTx, console: Console, response: Response) -> ElevationOut:
    """One run."""
    row = await lists.elevation(tx, run_id, sight_of(caller))
    if row is None:
        raise NoSuchElevation(f"There is no elevation {run_id}.")
    set_etag(response, row.version)
    return ElevationOut.of(row, console)
