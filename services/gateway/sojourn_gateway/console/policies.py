"""Policies: the list, *Create → Application Elevation*, one policy with its deployment, and its *Audit* tab."""

import asyncio
import hashlib
from typing import Any

import msgspec
from fastapi import Response

from sojourn_shared.ids import new_id

from .desk import Desk, Found, Refused
from .policy_form import PolicyForm

HERE = "/policies/just-in-time-access"


async def show_all(desk: Desk) -> Response:
    found, names = await asyncio.gather(desk.find("policies", limit=200), _computers(desk))
    return desk.render("policies.html", policies=found, names=_names(names), may_write=desk.may("administrator"))


async def new(desk: Desk) -> Response:
    return await _form(desk, PolicyForm.blank(desk.house.clock()))


async def create(desk: Desk) -> Response:
    """Save a draft, and deploy it when *Deploy Immediately* was pressed. Rules are added and removed by buttons too,
    so that the page needs no script."""
    form = PolicyForm.typed(desk.form)
    action = desk.typed("action")
    if (edited := form.after(action)) is not None:
        return await _form(desk, edited)
    body = form.body()
    once = hashlib.sha256(desk.typed("once").encode() + msgspec.json.encode(body)).hexdigest()
    try:  # pressed twice it is created once; gone back to and changed, it is another
        policy = await desk.tell("policies", body, Idempotency_Key=once)
    except Refused as refused:
        return await _form(desk, form, refused)
    where = f"{HERE}/{policy['id']}"
    if action != "deploy":
        return desk.go(where, "created")
    try:
        await desk.tell(f"policies/{policy['id']}/deploy")
    except Refused as refused:
        return await _policy(desk, policy["id"], refused)
    return desk.go(where, "deployed")


async def _form(desk: Desk, form: PolicyForm, refused: Refused | None = None) -> Response:
    computers = await _computers(desk)
    return desk.render(
        "policy_new.html",
        refused.status if refused else 200,
        form=form,
        computers=computers,
        refused=refused,
        errors=form.places(refused.errors) if refused else {},
        once=new_id(desk.house.clock()),
    )


async def show(desk: Desk) -> Response:
    return await _policy(desk, desk.request.path_params["id"])


async def change(desk: Desk) -> Response:
    """Deploy, withdraw or delete."""
    policy_id, wish = desk.request.path_params["id"], desk.request.path_params["change"]
    try:
        match wish:
            case "deploy" | "withdraw":
                await desk.tell(f"policies/{policy_id}/{wish}")
            case "delete":
                await desk.tell(f"policies/{policy_id}", method="DELETE", If_Match=f'"{desk.typed("version")}"')
                return desk.go(HERE, "deleted")
            case _:
                raise Refused(404, "There is no such thing here", "A policy is deployed, withdrawn or deleted.")
    except Refused as refused:
        return await _policy(desk, policy_id, refused)
    return desk.go(f"{HERE}/{policy_id}", "deployed" if wish == "deploy" else "withdrawn")


async def _policy(desk: Desk, policy_id: str, refused: Refused | None = None) -> Response:
    policy, grants, computers = await asyncio.gather(
        desk.ask(f"policies/{policy_id}"), desk.find("grants", policy_id=policy_id, limit=200), _computers(desk)
    )
    return desk.render(
        "policy.html",
        refused.status if refused else 200,
        policy=policy,
        grants=grants,
        names=_names(computers),
        refused=refused,
        may_write=desk.may("administrator"),
    )


async def audit(desk: Desk) -> Response:
    """The events report of one policy."""
    policy_id = desk.request.path_params["id"]
    cursor = desk.request.query_params.get("cursor")
    policy, report, computers = await asyncio.gather(
        desk.ask(f"policies/{policy_id}"),
        desk.find(f"audit/policies/{policy_id}", limit=200, **({"cursor": cursor} if cursor else {})),
        _computers(desk),
    )
    return desk.render("policy_audit.html", policy=policy, report=report, names=_names(computers))


async def _computers(desk: Desk) -> Found:
    return await desk.find("computers", limit=500, status="enrolled")


def _names(computers: Found) -> dict[str, Any]:
    """By id: nobody reads ids."""
    return {computer["id"]: computer["name"] for computer in computers.items}
