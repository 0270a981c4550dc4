"""What is in force at this moment, what runs under it, and the way to end it."""

import asyncio
from collections import defaultdict
from typing import Any

from fastapi import Response

from .desk import Desk, Refused

ENDED_SHOWN = 25


async def show(desk: Desk) -> Response:
    return await _page(desk)


async def revoke(desk: Desk) -> Response:
    grant_id = desk.request.path_params["id"]
    try:
        await desk.tell(f"grants/{grant_id}/revoke", {"reason": desk.typed("reason")})
    except Refused as refused:
        return await _page(desk, {grant_id: refused}, refused.status)
    return desk.go("/just-in-time-access/active", "revoked")


async def _page(desk: Desk, refused: dict[str, Refused] | None = None, status: int = 200) -> Response:
    grants, ended, scheduled, running = await asyncio.gather(
        desk.find("grants", in_force="true", limit=200),
        desk.find("grants", status=["expired", "revoked"], in_force="false", limit=ENDED_SHOWN),
        desk.find("grants", status="scheduled", limit=100),
        desk.find("elevations", running="true", limit=500),
    )
    asked = await _asked_for(desk, [*grants.items, *ended.items, *scheduled.items])
    runs: dict[str, list[Any]] = defaultdict(list)
    for run in running.items:
        runs[run["grant_id"]].append(run)
    return desk.render(
        "active.html",
        status,
        grants=grants,
        ended=ended,
        scheduled=scheduled,
        runs=runs,
        asked=asked,
        refused=refused or {},
        chosen=desk.request.query_params.get("grant_id"),
        may_revoke=desk.may("approver", "administrator"),
    )


async def _asked_for(desk: Desk, grants: list[dict[str, Any]]) -> dict[str, Any]:
    """The requests that grants came from: what they are of has no other name."""
    wanted = {grant["request_id"] for grant in grants if grant["request_id"]}
    if not wanted:
        return {}
    latest = await desk.find("requests", status="approved", limit=200)
    return {request["id"]: request for request in latest.items if request["id"] in wanted}
