"""The console: server-rendered pages over the same API that everybody calls, in the name of the person signed in."""

from pathlib import Path

from fastapi import FastAPI, Request, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from . import active, computers, documents, overview, policies, requests, sign_in
from .desk import Refused, page, render

POLICIES = "/policies/just-in-time-access"


def add_to(app: FastAPI) -> None:
    """The console's pages. Each path and word is the administrator's; nothing changes by GET."""
    app.router.routes.extend(
        [
            Route("/sign-in", sign_in.show, methods=["GET"]),
            Route("/sign-in", sign_in.enter, methods=["POST"]),
            Route("/sign-out", page(sign_in.leave), methods=["POST"]),
            Route("/", page(overview.show), methods=["GET"]),
            Route("/just-in-time-access/requests", page(requests.show), methods=["GET"]),
            Route("/just-in-time-access/requests/{id}/{decision:str}", page(requests.decide), methods=["POST"]),
            Route("/just-in-time-access/active", page(active.show), methods=["GET"]),
            Route("/just-in-time-access/active/{id}/revoke", page(active.revoke), methods=["POST"]),
            Route(POLICIES, page(policies.show_all), methods=["GET"]),
            Route(f"{POLICIES}/new", page(policies.new), methods=["GET"]),
            Route(f"{POLICIES}/new", page(policies.create), methods=["POST"]),
            Route(f"{POLICIES}/{{id}}", page(policies.show), methods=["GET"]),
            Route(f"{POLICIES}/{{id}}/audit", page(policies.audit), methods=["GET"]),
            Route(f"{POLICIES}/{{id}}/{{change:str}}", page(policies.change), methods=["POST"]),
            Route("/computers", page(computers.show_all), methods=["GET"]),
            Route("/computers", page(computers.make_token), methods=["POST"]),
            Route("/computers/{id}", page(computers.show), methods=["GET"]),
            Route("/api/v1/docs", documents.show, methods=["GET"]),
            Mount("/static", StaticFiles(directory=Path(__file__).parent / "static")),
        ]
    )


def nothing_here(request: Request) -> Response:
    """The page for a path without one."""
    refused = Refused(404, "There is no such page", "It may have moved: begin at the overview.")
    return render(request.app.state.house, request, "refused.html", 404, refused=refused)
