"""The way from the one front door to the service that owns a path: whose it is, in whose name, and back again."""

import asyncio
import contextlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import httpx
import structlog
from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from sojourn_shared.clock import Clock
from sojourn_shared.errors import InvalidBody, NotFound, Unauthenticated, Unavailable
from sojourn_shared.service import Caller, House
from sojourn_shared.service.auth import mint
from sojourn_shared.signing import PrivateKey

from . import callers

log = structlog.get_logger(__name__)

API = "/api/v1"

Field = tuple[bytes, bytes]
"""One header field."""

OWNERS: Mapping[str, str] = {
    "policies": "policy",
    "application-groups": "policy",
    "computers": "policy",
    "computer-groups": "policy",
    "enrolment-tokens": "policy",
    "requests": "requests",
    "applications": "requests",
    "grants": "expiry",
    "grant-revocations": "expiry",
    "elevations": "expiry",
    "simulations": "expiry",
    "audit": "audit",
    "webhooks": "audit",
}
"""Who owns a path, by its first segment …"""

EXCEPTIONS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"policies/[^/]+/deployment"), "expiry"),
    (re.compile(r"computers/[^/]+/(state|document)"), "expiry"),
    (re.compile(r"settings/policies"), "policy"),
    (re.compile(r"settings/(requests|autonomous-approval(/replay)?)"), "requests"),
)
"""… but for these."""

_AGENT_CALL = re.compile(r"computers/([^/]+)/(credentials|document)")
_SEGMENT = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._~:@+-]+")  # nothing that a URL parser on the way reads otherwise
_ENROLLING = Caller(id="enrolling", kind="computer", name="a computer that enrols", roles=frozenset())

_HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection"}
    | {b"te", b"trailer", b"transfer-encoding", b"upgrade"}
)  # RFC 9110, section 7.6.1
_OURS = frozenset(
    {b"host", b"authorization", b"cookie", b"content-length", b"expect", b"traceparent", b"sojourn-enrolment-token"}
    | {b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"}
)
"""Header fields of a caller that go no further: the gateway says these itself, or nobody."""
_THEIRS = frozenset({b"x-request-id", b"server", b"date"})

NOTHING_DONE = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_UNKNOWN = "Whether it was done is not known: repeat it with the same Idempotency-Key, or look."
CONNECT_SECONDS, ANSWER_SECONDS = 2.0, 30.0
KEEP_ALIVE_SECONDS = 4.0  # shorter than the five of a service, so that none is closed just as it is used


def owner_of(path: str) -> str:
    """The service that owns `path` (below /api/v1/, without a slash before). Raises NotFound."""
    segments = path.split("/")
    if all(_SEGMENT.fullmatch(segment) for segment in segments):
        for pattern, owner in EXCEPTIONS:
            if pattern.fullmatch(path):
                return owner
        if owner := OWNERS.get(segments[0], ""):
            return owner
    raise NotFound(f"There is nothing at {API}/{path}.")


@dataclass(frozen=True)
class Forwarding:
    """Calls to the services, over connections that stay open."""

    urls: Mapping[str, str]
    key: PrivateKey
    clock: Clock
    http: httpx.AsyncClient

    @classmethod
    def to(cls, urls: Mapping[str, str], key: PrivateKey, clock: Clock) -> "Forwarding":
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=KEEP_ALIVE_SECONDS)
        return cls(urls, key, clock, httpx.AsyncClient(limits=limits, trust_env=False, follow_redirects=False))

    async def send(
        self,
        caller: Caller,
        method: str,
        path: str,
        *,
        query: str = "",
        headers: Iterable[Field] = (),
        body: bytes = b"",
        trace: str,
    ) -> httpx.Response:
        """The owner's answer, its body still to be read; the one who calls closes it.

        `path` lies below /api/v1/. Raises NotFound, InvalidBody, Unavailable.
        """
        service = owner_of(path)
        token = mint(caller, service, self.key, self.clock())
        ours = [(b"Authorization", f"Bearer {token}".encode()), (b"traceparent", trace.encode())]
        url = f"{self.urls[service]}{API}/{path}" + (f"?{query}" if query else "")
        timeout = {"timeout": _patience(path).as_dict()}
        try:
            request = httpx.Request(method, url, headers=[*headers, *ours], content=body, extensions=timeout)
        except httpx.InvalidURL as error:
            raise InvalidBody(f"The query cannot be passed on: {error}.") from None
        tries = 2 if method in callers.READS else 1  # a service that starts again closes what it had open
        while True:
            tries -= 1
            try:
                return await self.http.send(request, stream=True)
            except httpx.HTTPError as error:
                if tries and not isinstance(error, httpx.TimeoutException):
                    continue
                log.warning("a service does not answer", service=service, error=repr(error))
                known = method in callers.READS or isinstance(error, NOTHING_DONE)
                rest = (
                    "Try again." if known else "Whether it was done is not known: repeat it with its Idempotency-Key."
                )
                raise Unavailable(f"The service that answers this ({service}) does not reply. {rest}") from None


def _patience(path: str) -> httpx.Timeout:
    forever = path == "audit/stream"
    return httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS, read=None if forever else ANSWER_SECONDS)


async def forward(request: Request) -> Response:
    """Answer a call to the API with what the owner of its path says. Raises what `callers.of_request` raises."""
    house: House = request.app.state.house
    path = request.url.path.removeprefix(f"{API}/")
    caller, headers = await _in_whose_name(house, request, path)
    forwarding: Forwarding = house.parts.forwarding
    upstream = await forwarding.send(
        caller,
        request.method,
        path,
        query=request.url.query,
        headers=[*_passed_on(request.headers.raw, _OURS), *headers],
        body=await request.body(),
        trace=request.state.trace,
    )
    return Passed(upstream)


async def _in_whose_name(house: House, request: Request, path: str) -> tuple[Caller, list[Field]]:
    """The caller, and header fields that the gateway adds. A computer's agent proves itself to the service."""
    if request.method == "POST" and path == "computers/enrol":
        callers.meet_stranger(house, request)
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.startswith("sje_"):
            raise Unauthenticated("Send an enrolment token as `Authorization: Bearer sje_…`.")
        return _ENROLLING, [(b"Sojourn-Enrolment-Token", token.encode("latin-1"))]
    if request.method == "POST" and (match := _AGENT_CALL.fullmatch(path)):
        callers.meet_stranger(house, request)
        return Caller(id=match[1], kind="computer", name=match[1], roles=frozenset()), []
    return await callers.of_request(house, request), []


def _passed_on(headers: Iterable[Field], stopped: frozenset[bytes]) -> list[Field]:
    """End-to-end header fields only, without those in `stopped`; as bytes, whatever they hold."""
    kept = [(name.lower(), value) for name, value in headers]
    named = {one.strip().lower() for name, value in kept if name == b"connection" for one in value.split(b",")}
    return [(name, value) for name, value in kept if name not in _HOP_BY_HOP | named | stopped]


class Passed(Response):
    """A service's answer, passed on as it comes; ends the service's work when the caller goes away."""

    def __init__(self, upstream: httpx.Response) -> None:
        self._upstream = upstream
        self.status_code = upstream.status_code
        self.background = None
        self.raw_headers = _passed_on(upstream.headers.raw, _THEIRS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with contextlib.aclosing(self._upstream):
            if "content-length" in self._upstream.headers:
                await self._whole(send)
            else:
                await self._while_somebody_listens(receive, send)

    async def _whole(self, send: Send) -> None:
        try:
            body = b"".join([chunk async for chunk in self._upstream.aiter_raw()])
        except httpx.HTTPError as error:
            raise Unavailable(f"A service broke off while it answered ({type(error).__name__}). Try again.") from None
        await self._begin(send)
        await send({"type": "http.response.body", "body": body})

    async def _while_somebody_listens(self, receive: Receive, send: Send) -> None:
        streaming = asyncio.create_task(self._stream(send))
        leaving = asyncio.create_task(_left(receive))
        try:
            await asyncio.wait({streaming, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            if not streaming.done():
                streaming.cancel()
            await asyncio.gather(streaming, leaving, return_exceptions=True)
        if not streaming.cancelled() and (error := streaming.exception()):
            raise error

    async def _stream(self, send: Send) -> None:
        await self._begin(send)
        try:
            async for chunk in self._upstream.aiter_raw():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except httpx.HTTPError:
            # Half a list must not look like a whole one; an event stream has no end, and its reader comes back.
            if not self._upstream.headers.get("content-type", "").startswith("text/event-stream"):
                raise
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _begin(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
