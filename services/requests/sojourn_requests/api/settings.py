"""The settings of asking and of autonomous approval."""

from dataclasses import replace
from typing import Annotated, Any

from fastapi import Depends, Response
from pydantic import model_validator

from sojourn_requests import domain
from sojourn_requests.domain import AskingSettings, AutonomousSettings, TrustEntry
from sojourn_requests.store import Saved, Tx, people
from sojourn_shared.contracts.events import Model, Time
from sojourn_shared.errors import InvalidBody
from sojourn_shared.service import Caller, Precondition, allow, if_match, problems, router, set_etag, transaction
from sojourn_shared.service.routing import PreconditionRequired, StaleVersion

routes = router("/settings", tags=["settings"])

Reader = Annotated[Caller, Depends(allow("approver", "auditor", "administrator"))]
Administrator = Annotated[Caller, Depends(allow("administrator"))]
TheTx = Annotated[Tx, Depends(transaction)]
Match = Annotated[Precondition, Depends(if_match)]
CHANGE_ERRORS = problems(PreconditionRequired, StaleVersion, InvalidBody)


class _Kept(Model):
    """What the service itself adds; ignored when it is sent back."""

    id: str
    version: int
    console_url: str
    created_at: Time
    updated_at: Time


def _without_read_only(body: Any) -> Any:
    if not isinstance(body, dict):
        return body
    return {name: value for name, value in body.items() if name not in {*_Kept.model_fields, "trusted_by"}}


class RequestsSettingsIn(AskingSettings):
    _ignore = model_validator(mode="before")(_without_read_only)


class RequestsSettingsOut(AskingSettings, _Kept):
    pass


class AutonomousApprovalIn(AutonomousSettings):
    _ignore = model_validator(mode="before")(_without_read_only)


class TrustedBy(Model):
    by: str
    by_name: str
    at: Time


class AutonomousApprovalOut(AutonomousSettings, _Kept):
    """`trusted_by`: who wrote each name into `trusted_users`; what somebody wrote for themself does not count."""

    trusted_by: dict[str, TrustedBy]


@routes.get("/requests")
async def show_requests_settings(caller: Reader, tx: TheTx, response: Response) -> RequestsSettingsOut:
    """What may be asked, for how long, and who decides."""
    return _asking(await tx.asking_settings(), tx, response)


@routes.put("/requests", responses=CHANGE_ERRORS)
async def change_requests_settings(
    body: RequestsSettingsIn, caller: Administrator, tx: TheTx, precondition: Match, response: Response
) -> RequestsSettingsOut:
    """Replace the settings; every computer hears of them. Requests that wait keep the times they were given."""
    saved = await tx.asking_settings(held=True)
    precondition.check(saved.version)
    wanted = AskingSettings.model_validate(body.model_dump())
    return _asking(await _save(tx, "requests", replace(saved, body=wanted), saved), tx, response)


@routes.get("/autonomous-approval")
async def show_autonomous_approval(caller: Reader, tx: TheTx, response: Response) -> AutonomousApprovalOut:
    """Which requests are approved without a person."""
    return _autonomous(await tx.autonomous_settings(), tx, response)


@routes.put("/autonomous-approval", responses=CHANGE_ERRORS)
async def change_autonomous_approval(
    body: AutonomousApprovalIn, caller: Administrator, tx: TheTx, precondition: Match, response: Response
) -> AutonomousApprovalOut:
    """Replace the settings. Who adds a name to `trusted_users` answers for it, and cannot add themself."""
    saved = await tx.autonomous_settings(held=True)
    precondition.check(saved.version)
    wanted = AutonomousSettings.model_validate(body.model_dump())
    trust = domain.trust_after(saved.trust, wanted.trusted_users, await _author(caller, tx))
    return _autonomous(
        await _save(tx, "autonomous-approval", replace(saved, body=wanted, trust=trust), saved), tx, response
    )


async def _author(caller: Caller, tx: Tx) -> TrustEntry:
    person = await people.person(tx.connection, [caller.id, caller.owner_id], caller.os_users or ())
    return TrustEntry(
        by=caller.id,
        by_name=caller.name,
        at=tx.now,
        account_ids=tuple(sorted(person.account_ids)),
        os_users=None if caller.os_users is None else tuple(sorted(person.os_users)),
    )


async def _save(tx: Tx, id: str, wanted: Saved[Any], before: Saved[Any]) -> Saved[Any]:
    """Save what differs; the same again changes nothing and says nothing."""
    if wanted == before:
        return before
    after = replace(wanted, version=before.version + 1, updated_at=tx.now)
    await tx.save_settings(id, after)
    return after


def _asking(saved: Saved[AskingSettings], tx: Tx, response: Response) -> RequestsSettingsOut:
    set_etag(response, saved.version)
    return RequestsSettingsOut(**saved.body.model_dump(), **_kept("requests", saved, tx))


def _autonomous(saved: Saved[AutonomousSettings], tx: Tx, response: Response) -> AutonomousApprovalOut:
    set_etag(response, saved.version)
    trusted_by = {name: TrustedBy(by=one.by, by_name=one.by_name, at=one.at) for name, one in saved.trust.items()}
    kept = _kept("autonomous-approval", saved, tx)
    return AutonomousApprovalOut(**saved.body.model_dump(), **kept, trusted_by=trusted_by)


def _kept(id: str, saved: Saved[Any], tx: Tx) -> dict[str, Any]:
    times = {"created_at": saved.created_at, "updated_at": saved.updated_at}
    return {"id": id, "version": saved.version, "console_url": f"{tx.house.settings.public_url}/settings/{id}", **times}
