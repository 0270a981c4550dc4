"""`/policies`: write, deploy, withdraw, delete; each is one transaction with its events."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import Field, model_validator

from sojourn_policy.domain import policies as domain
from sojourn_policy.domain.policies import (
    NameTaken,
    NoSuchPolicy,
    NoSuchRevision,
    NotDeployed,
    Policy,
    PolicyBody,
    PolicyDeployed,
    PolicyState,
    Revision,
    TooManyRules,
)
from sojourn_policy.store import InForce, Tx
from sojourn_shared.contracts.events import Actor, Body, Id, Model, Time
from sojourn_shared.errors import InvalidBody
from sojourn_shared.service import Page, problems, router, set_etag

from .common import Administrator, Console, Filter, Reader, ThePaging, ThePrecondition, TheTx

routes: APIRouter = router("/policies", tags=["policies"])


class PolicyOut(PolicyState):
    console_url: str

    @classmethod
    def of(cls, policy: Policy, console: str) -> "PolicyOut":
        return cls(**dict(policy.state), console_url=f"{console}/policies/just-in-time-access/{policy.id}")


_READ_ONLY = frozenset(PolicyOut.model_fields) - frozenset(PolicyBody.model_fields) | {"warnings"}


class PolicyIn(PolicyBody):
    """What GET gave may be sent back: its read-only fields are ignored. Any other unknown field is an error."""

    @model_validator(mode="before")
    @classmethod
    def _without_read_only(cls, sent: Any) -> Any:
        return (
            {name: value for name, value in sent.items() if name not in _READ_ONLY} if isinstance(sent, dict) else sent
        )

    @property
    def body(self) -> PolicyBody:
        return PolicyBody.model_construct(**dict(self))


class PolicyPage(Page[PolicyOut]):
    pass


class DeployIn(Body):
    revision: Annotated[int | None, Field(ge=1, le=2**31 - 1, description="The newest one unless given.")] = None


class RevisionOut(Model):
    revision: int
    body: PolicyBody
    author: Actor
    created_at: Time

    @classmethod
    def of(cls, revision: Revision) -> "RevisionOut":
        return cls(revision=revision.number, body=revision.body, author=revision.author, created_at=revision.created_at)


class RevisionPage(Page[RevisionOut]):
    pass


@routes.post("", status_code=201, responses=problems(NameTaken, TooManyRules, InvalidBody))
async def create_policy(
    body: PolicyIn, caller: Administrator, tx: TheTx, console: Console, response: Response
) -> PolicyOut:
    """Write a draft. Nothing happens on any computer before it is deployed."""
    policy = domain.create(await _with_ids(tx, body.body), by=caller.actor, now=tx.now)
    await tx.add_policy(policy)
    response.headers["Location"] = f"/api/v1/policies/{policy.id}"
    set_etag(response, policy.version)
    return PolicyOut.of(policy, console)


@routes.get("")
async def list_policies(
    *,
    caller: Reader,
    tx: TheTx,
    asked: ThePaging,
    console: Console,
    status: Annotated[domain.Status | None, Query()] = None,
    computer_id: Annotated[Id | None, Query(description="Policies whose newest revision names it, or all.")] = None,
    user: Filter = None,
    q: Annotated[Filter, Query(description="A part of the name or the description.")] = None,
) -> PolicyPage:
    found = await tx.policies(asked, status=status, computer_id=computer_id, user=user, q=q)
    page = asked.page(found, lambda one: (one.updated_at if asked.updated_after else one.created_at, one.id))
    page["items"] = [PolicyOut.of(policy, console) for policy in page["items"]]
    return PolicyPage.model_validate(page)


@routes.get("/{policy_id}", responses=problems(NoSuchPolicy))
async def read_policy(policy_id: str, caller: Reader, tx: TheTx, console: Console, response: Response) -> PolicyOut:
    policy = await tx.policy(policy_id)
    set_etag(response, policy.version)
    return PolicyOut.of(policy, console)


@routes.put("/{policy_id}", responses=problems(NoSuchPolicy, NameTaken, TooManyRules, InvalidBody))
async def revise_policy(
    policy_id: str,
    *,
    body: PolicyIn,
    caller: Administrator,
    tx: TheTx,
    precondition: ThePrecondition,
    console: Console,
    response: Response,
) -> PolicyOut:
    """Save a new revision. A deployed policy stays in force as it was until the new revision is deployed."""
    policy = await tx.policy(policy_id, for_update=True)
    precondition.check(policy.version)
    before = frozenset(policy.body.targets.computer_ids)
    revised = domain.revise(policy, await _with_ids(tx, body.body, before), now=tx.now)
    await tx.save_policy(revised, "policy.revised")
    set_etag(response, revised.version)
    return PolicyOut.of(revised, console)


@routes.delete("/{policy_id}", status_code=204, responses=problems(NoSuchPolicy, PolicyDeployed))
async def delete_policy(policy_id: str, caller: Administrator, tx: TheTx, precondition: ThePrecondition) -> None:
    """Remove a draft or a withdrawn policy. Its revisions and its events stay."""
    policy = await tx.policy(policy_id, for_update=True)
    precondition.check(policy.version)
    await tx.save_policy(domain.delete(policy, now=tx.now), "policy.deleted")


@routes.post("/{policy_id}/deploy", status_code=202, responses=problems(NoSuchPolicy, NoSuchRevision))
async def deploy_policy(
    policy_id: str,
    *,
    caller: Administrator,
    tx: TheTx,
    console: Console,
    response: Response,
    body: DeployIn | None = None,
) -> PolicyOut:
    """*Deploy Immediately*: put a revision in force on its computers. The one in force already changes nothing."""
    await tx.take_turns()
    policy = await tx.policy(policy_id, for_update=True)
    deployed = domain.deploy(policy, body.revision if body else None, now=tx.now)
    if deployed is not policy:
        assert deployed.deployed_revision is not None
        await tx.save_policy(deployed, "policy.deployed")
        in_force = InForce(deployed, (await tx.revision(policy.id, deployed.deployed_revision)).body)
        targets = in_force.body.targets
        computers = await tx.enrolled_ids(None if targets.all else targets.computer_ids)
        await tx.save_assignments(in_force, domain.assign(await tx.assignments(policy.id), computers, now=tx.now))
    set_etag(response, deployed.version)
    return PolicyOut.of(deployed, console)


@routes.post("/{policy_id}/withdraw", status_code=202, responses=problems(NoSuchPolicy, NotDeployed))
async def withdraw_policy(
    policy_id: str, caller: Administrator, tx: TheTx, console: Console, response: Response
) -> PolicyOut:
    """Take the policy off every computer: each of its grants ends."""
    await tx.take_turns()
    policy = await tx.policy(policy_id, for_update=True)
    withdrawn = domain.withdraw(policy, now=tx.now)
    if withdrawn is not policy:
        assert policy.deployed_revision is not None
        await tx.save_policy(withdrawn, "policy.withdrawn")
        was_in_force = InForce(policy, (await tx.revision(policy.id, policy.deployed_revision)).body)
        await tx.save_assignments(was_in_force, domain.absent(await tx.assignments(policy.id)))
    set_etag(response, withdrawn.version)
    return PolicyOut.of(withdrawn, console)


@routes.get("/{policy_id}/revisions", responses=problems(NoSuchPolicy))
async def list_revisions(policy_id: str, caller: Reader, tx: TheTx, asked: ThePaging) -> RevisionPage:
    """Each revision's body, author and time, the newest first; those of a deleted policy too."""
    page = asked.page(await tx.revisions(policy_id, asked), lambda one: (one.created_at, str(one.number)))
    page["items"] = [RevisionOut.of(revision) for revision in page["items"]]
    return RevisionPage.model_validate(page)


async def _with_ids(tx: Tx, body: PolicyBody, before: frozenset[str] = frozenset()) -> PolicyBody:
    targets = body.targets
    return domain.with_ids(
        body,
        named=await tx.enrolled_ids_by_name(targets.computer_names),
        enrolled=frozenset(await tx.enrolled_ids(targets.computer_ids)),
        before=before,
    )
