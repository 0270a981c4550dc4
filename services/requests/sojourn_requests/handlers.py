"""What arrives by the bus: the news of computers, agents, accounts and grants; reports and questions of agents."""

from datetime import timedelta
from typing import Annotated, Any

import msgspec
import structlog
from pydantic import Field, ValidationError

from sojourn_requests import domain
from sojourn_requests.domain import Account, Asker, Wish
from sojourn_requests.store import Computer, Tx, answer_for, people, refusal
from sojourn_shared.contracts import wire
from sojourn_shared.contracts.events import (
    Actor,
    AgentState,
    Application,
    Body,
    ComputerState,
    Event,
    ExternalRef,
    GrantState,
    Name,
    Text,
    UserName,
)
from sojourn_shared.errors import DomainError, InvalidBody, NotFound
from sojourn_shared.ids import is_id
from sojourn_shared.service import House, NotYet, Park, open_report

log = structlog.get_logger(__name__)

# --- events -----------------------------------------------------------------------------------------------------------


async def on_computer(event: Event, tx: Tx) -> None:
    """Keep the computer's name and its keeper's key; what waits for a decommissioned one is cancelled."""
    said = ComputerState.model_validate(event.data.entity)
    await people.keep_computer(tx.connection, Computer(said.id, said.name, said.status, said.keeper_public_key))
    if said.status != "decommissioned":
        return
    reason = f"{said.name} is not managed any more."
    for request in await tx.pending_on(said.id):
        if request.status_at(tx.now) != "pending":
            continue  # the clock is about to expire it
        actor = event.data.actor
        cancelled = domain.cancel(request, by=actor.id, by_name=actor.name, reason=reason, now=tx.now)
        await tx.save(cancelled, "request.cancelled", because="decommissioned")


async def on_agent(event: Event, tx: Tx) -> None:
    """Keep whether the computer's agent is connected, and when it was last seen."""
    if "connected" not in event.data.entity:
        return  # about its credentials
    said = AgentState.model_validate(event.data.entity)
    await people.keep_liveness(tx.connection, event.subject, said.connected, said.last_seen_at)


class _AccountState(Body, extra="ignore"):
    """What the gateway says of an account."""

    id: str
    name: str
    email: str | None = None
    roles: tuple[str, ...] = ()
    computer_group_ids: tuple[str, ...] | None = None
    os_users: tuple[str, ...] | None = None
    active: bool = True


async def on_account(event: Event, tx: Tx) -> None:
    """Keep who could decide, and which OS users are the same person."""
    if event.change == "account.deleted":
        await people.forget_account(tx.connection, event.subject)
        return
    said = _AccountState.model_validate(event.data.entity)
    account = Account(
        id=said.id,
        name=said.name,
        email=said.email,
        roles=frozenset(said.roles),
        os_users=said.os_users,
        everywhere=said.computer_group_ids is None,
        active=said.active,
    )
    await people.keep_account(tx.connection, account)


async def on_grant(event: Event, tx: Tx) -> None:
    """Tell the person waiting when what was approved can never be used."""
    said = GrantState.model_validate(event.data.entity)
    reason = (said.revoked or {}).get("reason")
    if said.request_id is None or said.status != "revoked" or reason not in domain.GRANT_LOST:
        return
    try:
        request = await tx.request_for_update(said.request_id)
    except NotFound:
        return  # of a database older than the grant
    lost = domain.lose_grant(request, reason, now=tx.now)
    if lost is not request:
        await tx.save(lost, "request.changed", because=reason)


# --- reports ----------------------------------------------------------------------------------------------------------


class _Asked(Body):
    """The part of a report that people wrote, as strictly read as what comes by REST."""

    user: UserName
    application: Application
    duration_minutes: Annotated[int, Field(ge=-(10**9), le=10**9)]  # the domain says which are allowed
    justification: Text
    ticket: Name | None
    max_uses: Annotated[int, Field(ge=1)] | None


async def on_request_report(computer_id: str, jws: bytes, tx: Tx) -> None:
    """A person asked at a computer: their wish becomes the request of the report's id, or joins one that waits.

    What cannot become a request is refused in an answer to the computer: nobody else would ever tell the person.
    """
    computer, report = await _opened(computer_id, jws, tx, wire.RequestReport)
    if not await tx.first_time(f"{computer_id}/{report.id}"):
        return
    if not is_id(report.id) or await tx.request(report.id) is not None:
        raise Park(f"{report.id} is no new id of a request")
    user = report.user.name
    tx.actor = _at(computer, user)
    try:
        request = await tx.ask(await _wish_of(report, tx), id=report.id)
    except DomainError as refused:
        log.info("refused a report", computer=computer_id, report=report.id, problem=refused.code)
        await tx.keep_answer(report.id, computer_id, user, problem=refused.code, detail=refused.detail)
        await tx.tell(computer_id, refusal(report.id, refused.detail, tx.now))
        return
    if request.id != report.id:
        await tx.keep_answer(report.id, computer_id, user, joined=request.id)
        await tx.tell(computer_id, answer_for(request, asked_as=report.id))


async def on_cancel_report(computer_id: str, jws: bytes, tx: Tx) -> None:
    """The person takes their request back. One that is not pending any more stays what it is."""
    computer, report = await _opened(computer_id, jws, tx, wire.CancelReport)
    if not await tx.first_time(f"{computer_id}/{report.id}"):
        return
    tx.actor = _at(computer, report.user.name)
    try:
        request = await tx.request_for_update(await tx.request_behind(report.request_id))
    except NotFound:
        if await tx.answer(report.request_id, computer_id) is not None:
            return  # refused long since
        raise NotYet(f"the request {report.request_id} has not come") from None
    if request.wish.computer_id != computer_id or request.wish.user != report.user.name:
        raise Park(f"{report.user.name} on {computer_id} did not ask for {request.id}")
    try:
        by = request.wish.asker.id
        cancelled = domain.cancel(request, by=by, by_name=report.user.name, reason=None, now=tx.now)
    except (domain.AlreadyDecided, domain.NotPending):
        return
    if cancelled is not request:
        await tx.save(cancelled, "request.cancelled")


async def _opened(computer_id: str, jws: bytes, tx: Tx, kind: type[Any]) -> tuple[Computer, Any]:
    """The computer and its report, if its keeper signed it. Raises NotYet, Park."""
    if (computer := await people.computer(tx.connection, computer_id)) is None:
        raise NotYet(f"the computer {computer_id} is not known here")
    report = open_report(jws, computer_id, computer.keeper_public_key)
    if not isinstance(report, kind):
        raise Park(f"a report of another kind than its subject: {type(report).__name__}")
    return computer, report


def _at(computer: Computer, user: str) -> Actor:
    return Actor(kind="computer", id=computer.id, name=f"{user} on {computer.name}")


async def _wish_of(report: wire.RequestReport, tx: Tx) -> Wish:
    """What the report asks for. Raises InvalidBody, with the first field that is wrong."""
    try:
        asked = _Asked(
            user=report.user.name,
            application=_facts(report.application),
            duration_minutes=report.duration_minutes,
            justification=report.justification,
            ticket=report.ticket or None,
            max_uses=report.max_uses,
        )
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        field, message = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        raise InvalidBody(f"{field}: {message}") from None
    refs = (ExternalRef(system="ticket", number=asked.ticket),) if asked.ticket else ()
    return Wish(
        computer_id=report.computer_id,
        user=asked.user,
        application=asked.application,
        duration=timedelta(minutes=asked.duration_minutes),
        justification=asked.justification,
        asker=await _asker(asked.user, tx),
        external_refs=refs,
        max_uses=asked.max_uses,
    )


async def _asker(user: str, tx: Tx) -> Asker:
    owner = await people.owner_of(tx.connection, user)
    if owner is None:
        return Asker(id="computer", name=user, os_users=(user,))
    return Asker(id=owner.id, name=owner.name, account_ids=(owner.id,), os_users=(user,))


def _facts(application: wire.Application) -> Application:
    """Raises ValidationError."""
    return Application.model_validate(msgspec.to_builtins(application))


# --- questions --------------------------------------------------------------------------------------------------------


async def on_ask_decision(computer_id: str, body: bytes, house: House) -> bytes | None:
    """How a request of this computer stands; no answer for any other, or one whose report has not come yet."""
    try:
        asked = msgspec.json.decode(body, type=wire.AskDecision)
    except msgspec.MsgspecError:
        return None
    async with Tx.begin(house, read_only=True) as tx:
        answer = await tx.answer(asked.request_id, computer_id)
    return wire.encode(answer) if answer else None


async def on_ask_terms(computer_id: str, body: bytes, house: House) -> bytes | None:
    """What a person may ask for, before they are asked why; no answer to a computer that is not known."""
    try:
        asked = msgspec.json.decode(body, type=wire.AskTerms)
        application = _facts(asked.application)
    except (msgspec.MsgspecError, ValidationError):
        return None
    async with Tx.begin(house, read_only=True) as tx:
        computer = await people.computer(tx.connection, computer_id)
        if computer is None or computer.status != "enrolled":
            return None
        return wire.encode(await _terms(computer_id, asked.user, application, tx))


async def _terms(computer_id: str, user: str, application: Application, tx: Tx) -> wire.TermsAnswer:
    settings = (await tx.asking_settings()).body
    shortest = Wish(
        computer_id=computer_id,
        user=user,
        application=application,
        duration=domain.MINUTE,
        justification="",
        asker=await _asker(user, tx),
    )
    approvers = await people.approvers(tx.connection, await tx.parties(shortest), settings.seat.roles)
    problem = None
    try:
        domain.may_ask(user, settings)
        if not approvers and not domain.passes(await tx.checks_for(shortest)):
            raise domain.no_approver(user)
    except DomainError as refused:
        problem = refused.code
    return wire.TermsAnswer(
        allowed=problem is None,
        longest_minutes=settings.longest_minutes,
        approvers=[one.name for one in approvers],
        problem=problem,
    )
