"""The front door's frame: every answer's security headers, the API document, and what happens to any other path."""

from fastapi import FastAPI, Request, Response
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import callers, console
from .forwarding import API, forward
from .settings import DOCUMENT

SECURITY = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; form-action 'self'; base-uri 'none'; "
    "object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def add_to(app: FastAPI) -> None:
    """Everything of the gateway that is no route of its own API."""
    app.add_route(f"{API}/openapi.json", document, methods=["GET"])
    console.add_to(app)
    app.router.default = elsewhere
    app.add_middleware(Heading)


async def document(request: Request) -> Response:
    """The OpenAPI document of all services."""
    callers.meet_stranger(request.app.state.house, request)
    if not DOCUMENT.exists():
        raise HTTPException(404)
    return FileResponse(DOCUMENT, media_type="application/json")


async def elsewhere(scope: Scope, receive: Receive, send: Send) -> None:
    """Any path without a route here: below /api/v1 it is a service's, elsewhere it is nothing."""
    if scope["type"] != "http":
        return
    request = Request(scope, receive, send)
    if request.url.path.startswith(f"{API}/"):
        response = await forward(request)
    elif "text/html" in request.headers.get("accept", ""):
        response = console.nothing_here(request)
    else:
        raise HTTPException(404)
    await response(scope, receive, send)


class Heading:
    """Adds to every answer what browsers are to hold to, and what is left of the caller's rate."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)

        async def headed(message: Message) -> None:
            if message["type"] == "http.response.start":
                message.setdefault("headers", [])
                headers = MutableHeaders(raw=message["headers"])
                headers.update(SECURITY)
                if request.url.path.startswith(f"{API}/"):
                    headers.setdefault("Cache-Control", "no-store")  # who may read it changes from call to call
                if request.app.state.house.settings.is_https:
                    headers["Strict-Transport-Security"] = "max-age=31536000"
                if (rate := getattr(request.state, "rate", None)) is not None:
                    headers.update(rate.headers)
            await send(message)

        await self.app(scope, receive, headed)
