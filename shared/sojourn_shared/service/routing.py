"""Routes: who calls is known first of all; a write runs in one transaction and commits before it is answered."""

import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from sojourn_shared.errors import DomainError

from .auth import declared_roles
from .idempotency import Repeat
from .problems import of_error
from .transaction import Transaction, new_trace

MAX_BODY_BYTES = 1024 * 1024
_TRACEPARENT = re.compile(r"^00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$")

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class PreconditionRequired(DomainError):
    code, status, title = "precondition-required", 428, "If-Match is needed"


class StaleVersion(DomainError):
    code, status, title = "stale-version", 412, "It was changed meanwhile"


class Route(APIRoute):
    """A route of a service.

    The caller is authenticated first, whatever the route says. A write runs inside one transaction, which also holds
    the row of its `Idempotency-Key`; it commits before the answer is sent, so that an answered 2xx is true. A refusal
    rolls the effect back. Secrets in an answer are named by the route: `openapi_extra={"x-secrets": ["token"]}`.
    """

    def get_route_handler(self) -> Handler:
        inner = super().get_route_handler()
        if declared_roles(self.dependant) is None:
            raise TypeError(f"{self.path} declares no roles: add Depends(allow(…)) to {self.name}")
        secrets = tuple((self.openapi_extra or {}).get("x-secrets", ()))

        async def handle(request: Request) -> Response:
            house = request.app.state.house
            request.state.caller = await house.service.authenticate(house, request)
            return await inner(request)

        async def write(request: Request) -> Response:
            house = request.app.state.house
            caller = request.state.caller = await house.service.authenticate(house, request)
            repeat = await Repeat.of(request, caller)
            kind: type[Transaction] = house.service.transaction
            async with kind.begin(house, actor=caller.actor, trace=request.state.trace) as tx:
                if repeat and (kept := await repeat.earlier_answer(tx)):
                    return kept
                request.state.transaction = tx
                response = await _answer(inner, request, tx)
                if repeat:
                    await repeat.keep(tx, response, secrets)
            return response

        return handle if (self.methods or set()) <= {"GET", "HEAD"} else write


async def _answer(inner: Handler, request: Request, tx: Transaction) -> Response:
    """What the route answers. A refusal undoes what the route did, but stays an answer, to be kept like any other."""
    savepoint = await tx.connection.begin_nested()
    try:
        response = await inner(request)
        await tx.flush()  # a constraint that fails at the outbox fails here, inside the savepoint
    except (DomainError, RequestValidationError) as refusal:
        await savepoint.rollback()
        tx.forget()
        return of_error(request, refusal)
    await savepoint.commit()
    return response


def router(prefix: str = "", *, tags: list[str]) -> APIRouter:
    """A router whose routes are `Route`s."""
    return APIRouter(prefix=prefix, tags=list(tags), route_class=Route)


async def transaction(request: Request) -> Any:
    """A dependency: the service's `Tx`. In a write it is the write's own; in a GET a read-only one of its own."""
    if (tx := getattr(request.state, "transaction", None)) is not None:
        yield tx
        return
    house = request.app.state.house
    kind: type[Transaction] = house.service.transaction
    async with kind.begin(house, actor=request.state.caller.actor, trace=request.state.trace, read_only=True) as tx:
        yield tx


class Precondition:
    """The caller's `If-Match`."""

    def __init__(self, sent: str) -> None:
        self._sent = sent

    def check(self, version: int) -> None:
        """Raises StaleVersion unless the caller changes the version that is there."""
        if self._sent != "*" and f'"{version}"' not in [one.strip() for one in self._sent.split(",")]:
            raise StaleVersion(f'The newest version is "{version}", you sent {self._sent}: read it again, then repeat.')


def if_match(request: Request) -> Precondition:
    """A dependency of PUT, PATCH and DELETE. Raises PreconditionRequired."""
    sent = request.headers.get("if-match")
    if not sent:
        raise PreconditionRequired("Send If-Match with the ETag that you read, so that no change of others is lost.")
    return Precondition(sent)


def set_etag(response: Response, version: int) -> None:
    response.headers["ETag"] = f'"{version}"'


def traceparent_of(request: Request) -> str:
    """The traceparent that came with the request, if it is one, else a new one."""
    sent = request.headers.get("traceparent", "")
    return sent if _TRACEPARENT.match(sent) else new_trace()
