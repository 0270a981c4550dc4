"""What every page stands on: who is signed in, calls to the API in their name, and answers as pages."""

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import httpx
import msgspec
from fastapi import Request, Response
from jinja2 import Environment, PackageLoader
from starlette.datastructures import FormData
from starlette.responses import HTMLResponse, RedirectResponse

from sojourn_gateway import callers
from sojourn_gateway.domain import Session
from sojourn_shared.errors import DomainError
from sojourn_shared.service import Caller, House
from sojourn_shared.service.auth import Role

from . import words

STATIC = Path(__file__).parent / "static"

DONE: Mapping[str, str] = {
    "approved": "Approved. Whoever waits for it goes on at once.",
    "declined": "Declined. The person reads your note.",
    "revoked": "Revoked. It is over on the computer once it says so: until then the access is shown as ending.",
    "created": "Saved as a draft. Nothing happens on any computer before it is deployed.",
    "deployed": "Deployed.",
    "withdrawn": "Withdrawn. Every grant of it ends.",
    "deleted": "Deleted.",
}
"""What a page says after something was done; the address names only the key, so that nobody else writes it."""


class Refused(Exception):
    """The API said no."""

    def __init__(self, status: int, title: str, detail: str, errors: Sequence[Mapping[str, str]] = ()) -> None:
        super().__init__(detail)
        self.status = status
        self.title = title
        self.detail = detail
        self.errors = list(errors)

    @classmethod
    def by(cls, problem: Any, status: int) -> "Refused":
        if not isinstance(problem, dict):
            return cls(status, "That did not work", f"The service answered with status {status}.")
        said = problem.get("title", "That did not work"), problem.get("detail", "")
        return cls(status, *said, errors=problem.get("errors", ()))


@dataclass(frozen=True)
class Desk:
    """One request for a page, by somebody who is signed in."""

    house: House
    request: Request
    session: Session
    caller: Caller
    form: FormData = field(default_factory=FormData)

    async def ask(self, path: str, **params: Any) -> Any:
        """What the API answers to a GET. Raises Refused."""
        return await self._call("GET", path, query=urlencode(params, doseq=True))

    async def find(self, path: str, **params: Any) -> "Found":
        """As `ask`, for a part of a page that may be missing while the rest is shown."""
        try:
            return Found(await self.ask(path, **params))
        except Refused as refused:
            return Found(None, refused)

    async def tell(self, path: str, body: Any = None, *, method: str = "POST", **headers: str) -> Any:
        """What the API answers to a write. Raises Refused."""
        named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        return await self._call(method, path, body=body, headers=named)

    async def _call(self, method: str, path: str, *, query: str = "", body: Any = None, headers: Any = ()) -> Any:
        content = b"" if body is None else msgspec.json.encode(body)
        fields = [*headers, (b"content-type", b"application/json")] if content else list(headers)
        try:
            answer = await self.house.parts.forwarding.send(
                self.caller,
                method,
                path,
                query=query,
                headers=fields,
                body=content,
                trace=self.request.state.trace,
            )
            try:
                text = await answer.aread()
            finally:
                await answer.aclose()
        except DomainError as error:
            raise Refused(error.status, error.title, error.detail) from None
        except httpx.HTTPError:
            raise Refused(503, "Temporarily unavailable", "The service broke off. Load the page again.") from None
        data = msgspec.json.decode(text) if "json" in answer.headers.get("content-type", "") else None
        if answer.status_code >= 400:
            raise Refused.by(data, answer.status_code)
        return data

    def may(self, *roles: Role) -> bool:
        return self.caller.has(*roles)

    def typed(self, name: str) -> str:
        """What was typed into a field, without space around it."""
        value = self.form.get(name, "")
        return value.strip() if isinstance(value, str) else ""

    def render(self, template: str, status: int = 200, **context: Any) -> Response:
        done = DONE.get(self.request.query_params.get("done", ""))
        form_token = callers.form_token(self.house, self.request)
        common = {"desk": self, "me": self.caller, "form_token": form_token, "done": done}
        return render(self.house, self.request, template, status, **common, **context)

    def go(self, path: str, done: str | None = None, anchor: str = "") -> Response:
        """To another page, by GET. Parts of `path` that somebody else wrote are quoted."""
        where = quote(path) + (f"?done={done}" if done else "") + (f"#{quote(anchor)}" if anchor else "")
        return RedirectResponse(where, 303)


@dataclass(frozen=True)
class Found:
    """A part of a page, or why it is missing."""

    data: Any
    refused: Refused | None = None

    @property
    def items(self) -> list[Any]:
        return self.data["items"] if self.data else []


Handler = Callable[[Desk], Awaitable[Response]]


def page(handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    """A page for somebody who is signed in; anybody else is led to the sign-in page. A refusal is a page too."""

    async def endpoint(request: Request) -> Response:
        house: House = request.app.state.house
        try:
            session = await callers.session_of(house, request)
            if session is None:
                callers.meet_stranger(house, request)
                return RedirectResponse("/sign-in", 303)
            caller = callers.admit(house, request, session.account)
            desk = Desk(house, request, session, caller)
            if request.method not in callers.READS:
                callers.check_origin(house, request)
                form = await request.form(max_files=0)
                desk = Desk(house, request, session, caller, form)
                callers.check_form(house, request, desk.typed("form_token"))
            return await handler(desk)
        except Refused as refused:
            return desk.render("refused.html", refused.status, refused=refused)
        except DomainError as error:
            why = Refused(error.status, error.title, error.detail)
            return render(house, request, "refused.html", error.status, refused=why)

    return endpoint


def render(house: House, request: Request, template: str, status: int = 200, **context: Any) -> Response:
    """A page; never kept by anybody, for it shows who may do what."""
    text = _templates().get_template(template).render(now=house.clock(), path=request.url.path, **context)
    return HTMLResponse(text, status, headers={"Cache-Control": "no-store"})


@cache
def _templates() -> Environment:
    """Everything shown is escaped, and what cannot be seen is made visible (`words.seen`)."""
    environment = Environment(
        loader=PackageLoader("sojourn_gateway.console"),
        autoescape=True,
        finalize=words.seen,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters |= words.FILTERS
    environment.globals["static"] = _static
    return environment


@cache
def _static(name: str) -> str:
    """The address of a static file, which changes with its content."""
    return f"/static/{name}?{hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]}"
