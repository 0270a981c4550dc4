"""In by a one-time link, and out again. Opening the link signs nobody in: the button does."""

from fastapi import Request, Response
from starlette.responses import RedirectResponse

from sojourn_gateway import callers, domain
from sojourn_gateway.domain import Session, SessionId
from sojourn_gateway.store import Tx
from sojourn_shared.contracts.events import Actor
from sojourn_shared.errors import DomainError
from sojourn_shared.ids import new_id
from sojourn_shared.service import House

from .desk import Desk, render


async def show(request: Request) -> Response:
    """The page that a sign-in link opens. It looks the same whatever the token: a preview of it learns nothing."""
    house: House = request.app.state.house
    if (limited := _limited(house, request)) is not None:
        return limited
    token = request.query_params.get("token", "")
    return render(house, request, "sign_in.html", token=token, refused=None)


async def enter(request: Request) -> Response:
    """Use the link up, begin a session under a new secret, and end the one that this browser had."""
    house: House = request.app.state.house
    if (limited := _limited(house, request)) is not None:
        return limited
    form = await request.form(max_files=0)
    token = str(form.get("token", "")).strip()
    secret = domain.new_secret()
    before = await callers.session_of(house, request)
    source = callers.source_of(request)
    try:
        callers.check_origin(house, request)
        async with Tx.begin(house, trace=request.state.trace) as tx:
            account = await tx.use_link(domain.digest(token))
            tx.actor = Actor(kind="account", id=account.id, name=account.name)
            if before is not None:
                await tx.delete_session(before, source=source)
            session = Session(id=SessionId(new_id(tx.now)), account=account, created_at=tx.now, seen_at=tx.now)
            await tx.add_session(session, domain.digest(secret), source=source)
    except DomainError as refused:
        await callers.count_refusal(house, request, "sign_in")
        return render(house, request, "sign_in.html", refused.status, token="", refused=refused)
    answer = RedirectResponse("/", 303)
    answer.set_cookie(
        callers.cookie_name(house),
        secret,
        max_age=int(domain.SESSION_LONGEST.total_seconds()),
        secure=house.settings.is_https,
        httponly=True,
        samesite="lax",  # not strict: a link in a mail or chat opens the console signed in
    )
    return answer


async def leave(desk: Desk) -> Response:
    """End the session, here and in the database."""
    async with Tx.begin(desk.house, actor=desk.caller.actor, trace=desk.request.state.trace) as tx:
        await tx.delete_session(desk.session, source=callers.source_of(desk.request))
    answer = RedirectResponse("/sign-in", 303)
    answer.delete_cookie(
        callers.cookie_name(desk.house), secure=desk.house.settings.is_https, httponly=True, samesite="lax"
    )
    return answer


def _limited(house: House, request: Request) -> Response | None:
    """A page that says so when this address called too often."""
    try:
        callers.meet_stranger(house, request)
    except DomainError as refused:
        return render(house, request, "sign_in.html", refused.status, token="", refused=refused)
    return None
