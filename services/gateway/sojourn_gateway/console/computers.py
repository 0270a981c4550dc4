"""The computers, what each can really enforce, and how another one comes in."""

import asyncio

from fastapi import Response

from .desk import Desk, Refused


async def show_all(desk: Desk) -> Response:
    return await _page(desk)


async def make_token(desk: Desk) -> Response:
    """An enrolment token, shown once: this answer is no redirect."""
    name = desk.typed("name") or "made in the console"
    try:
        token = await desk.tell("enrolment-tokens", {"name": name})
    except Refused as refused:
        return await _page(desk, status=refused.status, refused=refused)
    return await _page(desk, status=201, token=token)


async def _page(desk: Desk, *, status: int = 200, refused: Refused | None = None, token: object = None) -> Response:
    computers = await desk.find("computers", limit=500, status="enrolled")
    return desk.render(
        "computers.html",
        status,
        computers=computers,
        refused=refused,
        token=token,
        server=desk.house.settings.public_url,
        may_enrol=desk.may("administrator"),
    )


async def show(desk: Desk) -> Response:
    computer_id = desk.request.path_params["id"]
    computer, state, users = await asyncio.gather(
        desk.ask(f"computers/{computer_id}"),
        desk.find(f"computers/{computer_id}/state"),
        desk.find(f"computers/{computer_id}/users", limit=200),
    )
    return desk.render("computer.html", computer=computer, state=state, users=users)
