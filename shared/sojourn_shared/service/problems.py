"""Every refusal as `application/problem+json` (RFC 9457): domain errors, bad bodies, unknown paths, our own faults."""

from collections.abc import Sequence
from typing import Any

import asyncpg
import sqlalchemy.exc
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from sojourn_shared.errors import DomainError, FieldError, InvalidBody, Unavailable

log = structlog.get_logger(__name__)

DATABASE_GONE = (
    ConnectionError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # the server said that it ends, and the connection is not closed yet
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.InsufficientResourcesError,  # the disk is full, too many connections
    sqlalchemy.exc.InterfaceError,
    sqlalchemy.exc.OperationalError,
    sqlalchemy.exc.TimeoutError,
)
"""What the driver raises when the database cannot be reached, as opposed to when it refuses a statement."""

_MAY_BE_DONE = "Whether it was done is not known: repeat it with the same Idempotency-Key, or look."
"""The connection may have gone after the commit was sent."""

_BY_STATUS = {
    400: ("invalid-body", "The request cannot be understood"),
    401: ("unauthenticated", "Sign in first"),
    403: ("not-permitted", "Not permitted"),
    404: ("not-found", "There is no such thing here"),
    405: ("method-not-allowed", "This method does nothing here"),
    413: ("too-large", "The body is too large"),
    415: ("invalid-body", "The request cannot be understood"),
    422: ("invalid-body", "The request cannot be understood"),
    429: ("rate-limited", "Too many requests"),
    503: ("unavailable", "Temporarily unavailable"),
}


def problem(
    request: Request,
    status: int,
    code: str,
    title: str,
    detail: str,
    *,
    errors: Sequence[FieldError] = (),
    headers: dict[str, str] | None = None,
    **more: Any,
) -> JSONResponse:
    """One problem document. `more` are extension members."""
    body = {"type": f"/problems/{code}", "title": title, "status": status, "detail": detail}
    body |= {"instance": request.url.path, **more}
    if errors:
        body["errors"] = [{"pointer": error.pointer, "detail": error.detail} for error in errors]
    return JSONResponse(body, status, headers=headers, media_type="application/problem+json")


def of_error(request: Request, error: Exception) -> JSONResponse:
    """The problem that tells of `error`; one that we did not foresee says nothing of the inside."""
    match error:
        case DomainError():
            headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
            headers |= {"Retry-After": "1"} if error.status in {429, 503} else {}
            return problem(
                request,
                error.status,
                error.code,
                error.title,
                error.detail,
                errors=error.errors,
                headers=headers,
                **error.more,
            )
        case RequestValidationError():
            return of_error(request, bad_body(error))
        case HTTPException():
            code, title = _BY_STATUS.get(error.status_code, ("internal", "Something went wrong here"))
            status = 422 if error.status_code == 400 else error.status_code  # one code, one status
            detail = _said(request, error)
            return problem(request, status, code, title, detail, headers=dict(error.headers or {}))
        case _ if request.method in {"GET", "HEAD"} and is_no_value(error):
            log.warning("a query holds what no value can be", error=repr(error))
            return of_error(request, InvalidBody("The query holds a text or a moment that cannot be looked for."))
        case _ if is_database_gone(error):
            log.warning("database unavailable", error=repr(error))
            rest = "Try again." if request.method in {"GET", "HEAD"} else _MAY_BE_DONE
            return of_error(request, Unavailable(f"The database does not answer. {rest}"))
        case _:
            log.error("unforeseen error", exc_info=error)
            detail = "This was not foreseen. It is in the log; nothing was changed."
            return problem(request, 500, "internal", "Something went wrong here", detail)


def is_database_gone(error: BaseException) -> bool:
    """Whether the database could not be reached, or refused for want of room; SQLAlchemy wraps the driver's error."""
    cause = getattr(error, "orig", None)
    inner = getattr(cause, "__cause__", None)
    return any(isinstance(one, DATABASE_GONE) for one in (error, cause, inner) if one is not None)


def is_no_value(error: BaseException) -> bool:
    """Whether a parameter was nothing that a column can hold: NUL or half a character in a text, a moment too far."""
    inner = getattr(getattr(error, "orig", None), "__cause__", None)
    return isinstance(error, asyncpg.DataError) or isinstance(inner, asyncpg.DataError)


def _said(request: Request, error: HTTPException) -> str:
    match error.status_code:
        case 404:
            return f"There is nothing at {request.url.path}."
        case 405:
            return f"{request.method} is not possible at {request.url.path}."
        case 413:
            return "The body is larger than 1 MiB."
        case _:
            return str(error.detail)


def bad_body(error: RequestValidationError) -> InvalidBody:
    """The fields that are wrong, each with a pointer that resolves in what was sent."""
    errors = [_field_error(one, error.body) for one in error.errors()]
    unique = list(dict.fromkeys(errors))
    return InvalidBody(f"{unique[0].detail}" if len(unique) == 1 else f"{len(unique)} fields are wrong.", errors=unique)


def _field_error(error: Any, body: Any) -> FieldError:
    place, *path = error["loc"]
    message = _message(error)
    if error["type"] == "json_invalid":
        return FieldError("", f"The body is not JSON: {error.get('ctx', {}).get('error', message)}")
    if place != "body":
        return FieldError("", f"{_called(path[:1])} ({place}): {message}")
    pointer, here = "", body
    for part in path:
        if (isinstance(here, dict) and part in here) or (isinstance(here, list) and part in range(len(here))):
            here = here[part]
            pointer += "/" + str(part).replace("~", "~0").replace("/", "~1")
        # else: the name of a variant in a union, which is no place in the body, or the missing field itself
    if error["type"] == "missing":
        return FieldError(pointer, f"{_called(path)} is missing.")
    return FieldError(pointer, f"{_called(path)}: {message}")


def _called(path: Sequence[str | int]) -> str:
    """The field as a person would name it: the last name in the path, with its place in a list (`names[0]`)."""
    if not path:
        return "the body"
    *before, last = path
    return f"{_called(before)}[{last}]" if isinstance(last, int) and before else str(last)


_MESSAGES: dict[str, str] = {
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "datetime_from_date_parsing": "must be a moment, such as 2030-05-01T20:00:00Z",
    "datetime_parsing": "must be a moment, such as 2030-05-01T20:00:00Z",
    "datetime_type": "must be a moment, such as 2030-05-01T20:00:00Z",
    "dict_type": "must be an object: {{…}}",
    "extra_forbidden": "is not known here; look at how it is spelled",
    "frozen_set_type": "must be a list: […]",
    "greater_than_equal": "must be at least {ge}",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "less_than_equal": "must be at most {le}",
    "list_type": "must be a list: […]",
    "literal_error": "must be {expected}",
    "model_attributes_type": "must be an object: {{…}}",
    "model_type": "must be an object: {{…}}",
    "string_too_long": "must have at most {max_length} characters",
    "string_type": "must be a text",
    "timezone_aware": "must say its time zone, such as 2030-05-01T20:00:00Z",
    "too_long": "must have at most {max_length} entries",
    "too_short": "must have at least {min_length}",
    "tuple_type": "must be a list: […]",
    "union_tag_invalid": "{discriminator} must be one of {expected_tags}, not '{tag}'",
    "union_tag_not_found": "needs {discriminator}, which says what it is",
}
"""What is wrong with a value, by pydantic's type of error, where its own sentence is one for programmers."""

_PATTERNS = {
    r"^[0-9a-fA-F]{64}$": "must be 64 hexadecimal digits",
    r"^https?://": "must begin with http:// or https://",
}


def _message(error: Any) -> str:
    context = error.get("ctx", {})
    match error["type"]:
        case "string_too_short" if context["min_length"] > 1:
            return f"must have at least {context['min_length']} characters"
        case "string_too_short":
            return "must not be empty"
        case "string_pattern_mismatch":
            return _PATTERNS.get(context["pattern"], f"must match {context['pattern']}")
        case kind if kind in _MESSAGES:
            return _MESSAGES[kind].format(**context)
        case _:
            return str(error["msg"]).removeprefix("Value error, ")


def problems(*kinds: type[DomainError]) -> dict[int | str, dict[str, Any]]:
    """For a route's `responses`: the errors that it can give, for the OpenAPI document."""
    found: dict[int | str, dict[str, Any]] = {}
    for kind in kinds:
        entry = found.setdefault(kind.status, {"description": "", "content": {"application/problem+json": {}}})
        entry["description"] = "; ".join(filter(None, [entry["description"], f"`{kind.code}`: {kind.title}"]))
    return found


def install(app: FastAPI) -> None:
    """Make every error of `app` a problem."""

    async def handler(request: Request, error: Exception) -> JSONResponse:
        return of_error(request, error)

    for kind in (DomainError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, handler)
