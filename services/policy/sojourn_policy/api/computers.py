"""`/computers`: what they are, what people say of them, and the way out."""

from typing import Annotated, Self

from fastapi import APIRouter, Query, Response
from pydantic import model_validator

from sojourn_policy.domain import computers as domain
from sojourn_policy.domain import policies
from sojourn_policy.domain.computers import (
    Computer,
    ComputerState,
    ComputerUser,
    ExternalRefs,
    Gone,
    Labels,
    NoSuchComputer,
)
from sojourn_shared.contracts.events import Body, Name
from sojourn_shared.service import Page, problems, router, set_etag

from .common import Administrator, Console, Filter, NoGroup, Reader, ThePaging, ThePrecondition, TheTx

routes: APIRouter = router("/computers", tags=["computers"])


class ComputerOut(ComputerState):
    connected: bool
    console_url: str

    @classmethod
    def of(cls, computer: Computer, connected: bool, console: str) -> "ComputerOut":
        return cls(
            **dict(computer.state),
            connected=connected and computer.status == "enrolled",
            console_url=f"{console}/computers/{computer.id}",
        )


class ComputerPage(Page[ComputerOut]):
    pass


class ComputerUserPage(Page[ComputerUser]):
    pass


class ComputerPatch(Body):
    """A field that is given replaces what was there, whole; at least one."""

    name: Name | None = None
    labels: Labels | None = None
    external_refs: ExternalRefs | None = None

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.name is None and self.labels is None and self.external_refs is None:
            raise ValueError("give at least one of name, labels and external_refs")
        return self


@routes.get("")
async def list_computers(
    *,
    caller: Reader,
    tx: TheTx,
    asked: ThePaging,
    console: Console,
    name: Annotated[Filter, Query(description="The whole name, in any case.")] = None,
    q: Annotated[Filter, Query(description="A part of the name or the id.")] = None,
    label: Annotated[list[Name], Query(description="`key` or `key=value`; several: all of them.")] = [],  # noqa: B006
    external_id: Annotated[Filter, Query(description="The number of an external reference.")] = None,
    connected: Annotated[bool | None, Query()] = None,
    status: Annotated[domain.Status | None, Query()] = None,
    group_id: NoGroup = None,
) -> ComputerPage:
    found = await tx.computers(
        asked, name=name, q=q, labels=label, external_id=external_id, connected=connected, status=status
    )
    page = asked.page(found, lambda one: (one[0].updated_at if asked.updated_after else one[0].created_at, one[0].id))
    page["items"] = [ComputerOut.of(computer, is_connected, console) for computer, is_connected in page["items"]]
    return ComputerPage.model_validate(page)


@routes.get("/{computer_id}", responses=problems(NoSuchComputer))
async def read_computer(
    computer_id: str, caller: Reader, tx: TheTx, console: Console, response: Response
) -> ComputerOut:
    computer, connected = await tx.computer_and_liveness(computer_id)
    set_etag(response, computer.version)
    return ComputerOut.of(computer, connected, console)


@routes.get("/{computer_id}/users", responses=problems(NoSuchComputer))
async def list_computer_users(computer_id: str, caller: Reader, tx: TheTx, asked: ThePaging) -> ComputerUserPage:
    """The OS users, as the computer last reported them and spells them; by name."""
    computer = await tx.computer(computer_id)
    users = sorted(computer.users, key=lambda user: user.name)
    if asked.cursor:
        users = [user for user in users if user.name > asked.cursor[1]]
    return ComputerUserPage.model_validate(asked.page(users, lambda user: (computer.created_at, user.name)))


@routes.patch("/{computer_id}", responses=problems(NoSuchComputer, Gone))
async def edit_computer(
    computer_id: str,
    *,
    body: ComputerPatch,
    caller: Administrator,
    tx: TheTx,
    precondition: ThePrecondition,
    console: Console,
    response: Response,
) -> ComputerOut:
    """Rename it, label it, or note its number in another system."""
    computer, connected = await tx.computer_and_liveness(computer_id, for_update=True)
    precondition.check(computer.version)
    edited = domain.edit(computer, now=tx.now, name=body.name, labels=body.labels, external_refs=body.external_refs)
    if edited is not computer:
        await tx.save_computer(edited, "computer.changed")
    set_etag(response, edited.version)
    return ComputerOut.of(edited, connected, console)


@routes.delete("/{computer_id}", status_code=204, responses=problems(NoSuchComputer))
async def decommission_computer(
    computer_id: str, caller: Administrator, tx: TheTx, precondition: ThePrecondition
) -> None:
    """Take it out of service for ever: every grant on it is revoked, its credentials are never renewed."""
    await tx.take_turns()
    computer = await tx.computer(computer_id, for_update=True)
    gone = domain.decommission(computer, now=tx.now)
    if gone is computer:
        return
    precondition.check(computer.version)
    await tx.save_computer(gone, "computer.decommissioned")
    for in_force, assignment in await tx.present_on(computer.id):
        await tx.save_assignments(in_force, policies.absent([assignment]))
