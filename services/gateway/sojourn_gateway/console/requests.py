"""The inbox of requests: everything that is needed to judge one, and the two answers."""

import asyncio
from typing import Any

from fastapi import Response

from .desk import Desk, Refused

DECIDED_SHOWN = 25


async def show(desk: Desk) -> Response:
    return await _page(desk)


async def decide(desk: Desk) -> Response:
    """Approve or decline; a refusal is shown beside the form, with what was typed."""
    request_id, decision = desk.request.path_params["id"], desk.request.path_params["decision"]
    if decision not in {"approve", "decline"}:
        raise Refused(404, "There is no such thing here", "A request is approved or declined.")
    body: dict[str, Any] = {"note": desk.typed("note")} if desk.typed("note") else {}
    if decision == "approve":
        try:
            body |= {"duration_minutes": int(desk.typed("minutes"))} if desk.typed("minutes") else {}
        except ValueError:
            refused = Refused(422, "The request cannot be understood", "The time is a number of minutes.")
            return await _page(desk, {request_id: refused}, 422)
        body |= {name: desk.typed(name) for name in ("match", "arguments") if desk.typed(name)}
    try:
        await desk.tell(f"requests/{request_id}/{decision}", body)
    except Refused as refused:
        return await _page(desk, {request_id: refused}, refused.status)
    done = "approved" if decision == "approve" else "declined"
    return desk.go("/just-in-time-access/requests", done)


async def _page(desk: Desk, refused: dict[str, Refused] | None = None, status: int = 200) -> Response:
    """`refused`: by request, why the answer just given did not count."""
    pending, latest = await asyncio.gather(
        desk.find("requests", status="pending", limit=100), desk.find("requests", limit=100)
    )
    waiting = {request["id"] for request in pending.items}
    decided = [request for request in latest.items if request["status"] != "pending"][:DECIDED_SHOWN]
    elsewhere = {one: why for one, why in (refused or {}).items() if one not in waiting}  # decided by another meanwhile
    return desk.render(
        "requests.html",
        status,
        pending=pending,
        decided=decided,
        refused=refused or {},
        elsewhere=elsewhere,
        may_decide=desk.may("approver", "administrator"),
    )
