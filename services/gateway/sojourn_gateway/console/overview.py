"""What needs somebody now, what is in force, and what happened lately."""

import asyncio

from fastapi import Response

from .desk import Desk


async def show(desk: Desk) -> Response:
    reads_all = desk.may("administrator", "approver", "auditor")
    pending, grants, running, events = await asyncio.gather(
        desk.find("requests", status="pending", limit=6),
        desk.find("grants", in_force="true", limit=100),
        desk.find("elevations", running="true", limit=100),
        desk.find("audit/events", limit=12),
    )
    computers = policies = None
    if reads_all:
        computers, policies = await asyncio.gather(
            desk.find("computers", limit=500, status="enrolled"), desk.find("policies", status="deployed", limit=500)
        )
    return desk.render(
        "overview.html",
        pending=pending,
        grants=grants,
        running=running,
        events=events,
        computers=computers,
        policies=policies,
    )
