"""Who is calling: from an API key or a session to a `Caller`, read from the database at each call.

A role that was taken away a moment ago is gone from the very next call.
"""

import asyncio
import hmac
import ipaddress
from urllib.parse import urlsplit

from fastapi import Request

from sojourn_shared.clock import rfc3339
from sojourn_shared.errors import NotPermitted, Unauthenticated
from sojourn_shared.ids import new_id
from sojourn_shared.service import Caller, House

from . import domain
from .domain import Account, Session
from .limits import Buckets, RateLimited
from .store import Refused, Tx

TELL_SECONDS = 20.0  # a minute's refusals are told at most this long after it
READS = frozenset({"GET", "HEAD", "OPTIONS"})


async def of_request(house: House, request: Request) -> Caller:
    """The caller of the API, by `Authorization: Bearer sjn_…` or by the console's cookie.

    A write by cookie must come from our own pages: same origin, and the form's token as `X-CSRF-Token`.
    Raises Unauthenticated, NotPermitted, RateLimited.
    """
    if "authorization" in request.headers:
        account = await _by_key(house, request, request.headers["authorization"])
    else:
        session = await session_of(house, request)
        if session is None:
            meet_stranger(house, request)
            raise Unauthenticated("Send an API key as `Authorization: Bearer sjn_…`, or sign in at the console.")
        if request.method not in READS:
            check_origin(house, request)
            check_form(house, request, request.headers.get("x-csrf-token", ""))
        account = session.account
    return admit(house, request, account)


def admit(house: House, request: Request, account: Account) -> Caller:
    """The account as a caller, if its rate allows. Raises RateLimited."""
    _take(house.parts.limits.callers, account.id, request)
    return caller_of(account)


def caller_of(account: Account) -> Caller:
    return Caller(
        id=account.id, kind="account", name=account.name, roles=frozenset(account.roles), os_users=account.os_users
    )


def meet_stranger(house: House, request: Request) -> None:
    """Count a call of somebody unknown. Raises RateLimited when the address made too many."""
    _take(house.parts.limits.strangers, source_of(request), request)


def _take(buckets: Buckets, who: str, request: Request) -> None:
    request.state.rate, passes = buckets.take(who)
    if not passes:
        raise RateLimited(f"Wait {request.state.rate.wait} s, then go on more slowly.")


async def _by_key(house: House, request: Request, header: str) -> Account:
    scheme, _, secret = header.partition(" ")
    if scheme.lower() == "bearer" and secret.startswith("sjn_"):
        async with Tx.begin(house, read_only=True) as tx:
            account = await tx.account_of_key(domain.digest(secret))
        if account is not None:
            return account
    meet_stranger(house, request)
    await count_refusal(house, request, "api_key")
    raise Unauthenticated("This is no API key of this server: it may have been deleted.")


# --- sessions ---------------------------------------------------------------------------------------------------------


def cookie_name(house: House) -> str:
    """`__Host-` ties a cookie to exactly this host and https, so that no neighbour can plant one."""
    return "__Host-sojourn" if house.settings.is_https else "sojourn"


async def session_of(house: House, request: Request) -> Session | None:
    """The session of the cookie, if it still holds; being used, it holds on."""
    secret = request.cookies.get(cookie_name(house))
    if not secret:
        return None
    async with Tx.begin(house) as tx:
        session = await tx.session(domain.digest(secret))
        if session is None or not session.holds_at(tx.now):
            return None
        if session.is_worth_touching(tx.now):
            await tx.touch_session(session.id)
    return session


def form_token(house: House, request: Request) -> str:
    """What the forms of this session carry."""
    return domain.csrf_token(request.cookies[cookie_name(house)])


def check_form(house: House, request: Request, sent: str) -> None:
    """Raises NotPermitted unless `sent` is the token of this session's forms."""
    if not hmac.compare_digest(sent.encode(), form_token(house, request).encode()):
        raise NotPermitted("This form is from another session: load the page again, then repeat.")


def check_origin(house: House, request: Request) -> None:
    """Raises NotPermitted unless one of our own pages sent this: a browser names the page's origin in every POST."""
    try:
        origin = urlsplit(request.headers.get("origin", ""))
    except ValueError:  # `http://[`: no browser says that
        origin = urlsplit("")
    ours = {request.headers.get("host", ""), urlsplit(house.settings.public_url).netloc}
    site = request.headers.get("sec-fetch-site", "same-origin")
    if origin.scheme not in {"http", "https"} or origin.netloc not in ours or site != "same-origin":
        raise NotPermitted("Only the console's own pages may send this.")


# --- refusals ---------------------------------------------------------------------------------------------------------


def source_of(request: Request) -> str:
    """The address that calls; of IPv6 the /64, which is what one household or machine has."""
    try:
        address = ipaddress.ip_address(request.client.host if request.client else "")
    except ValueError:
        return "unknown"
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network(f"{address}/64", strict=False)) if not address.is_loopback else str(address)
    return str(address)


async def count_refusal(house: House, request: Request, what: Refused) -> None:
    """Remember that somebody was refused; `tell_refusals` says so once a minute."""
    async with Tx.begin(house) as tx:
        await tx.count_refusal(source_of(request), what)


async def tell_refusals(house: House) -> None:
    """Say `session.refused` once for each source and minute, with the count: a guesser must not grow the ledger."""
    while True:
        await tell_refusals_once(house)
        await asyncio.sleep(TELL_SECONDS)


async def tell_refusals_once(house: House) -> None:
    async with Tx.begin(house) as tx:
        for row in await tx.take_refusals():
            refusal_id = new_id(tx.now)
            entity = {"id": refusal_id, "source": row.source, "what": row.what, "count": row.count}
            entity["minute"] = rfc3339(row.minute)
            tx.emit("session.refused", id=refusal_id, entity=entity, version=None)
        await tx.forget_what_is_over()
