"""The page of the API: every operation, from the same document that programs read."""

from functools import cache
from itertools import groupby
from typing import Any

import msgspec
from fastapi import Request, Response
from starlette.exceptions import HTTPException

from sojourn_gateway import callers
from sojourn_gateway.settings import DOCUMENT
from sojourn_shared.service import House

from .desk import render


async def show(request: Request) -> Response:
    house: House = request.app.state.house
    callers.meet_stranger(house, request)
    if not DOCUMENT.exists():
        raise HTTPException(404)
    return render(house, request, "docs.html", parts=_operations(), api=house.settings.public_url)


@cache
def _operations() -> list[tuple[str, list[dict[str, Any]]]]:
    """Operations by their tag."""
    document = msgspec.json.decode(DOCUMENT.read_bytes())
    found = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if isinstance(operation, dict) and "responses" in operation:
                tag = (operation.get("tags") or ["other"])[0]
                found.append({**operation, "method": method.upper(), "path": path, "tag": tag})
    found.sort(key=lambda one: (one["tag"], one["path"]))
    return [(tag, list(operations)) for tag, operations in groupby(found, key=lambda one: one["tag"])]
