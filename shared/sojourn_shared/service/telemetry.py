"""Logs, metrics and health: what an operator sees of a service."""

import asyncio
import logging
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import structlog
from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, Counter, Gauge, Histogram, generate_latest
from sqlalchemy import text
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .problems import is_database_gone, of_error
from .routing import traceparent_of
from .transaction import trace_id

log = structlog.get_logger("sojourn.http")

REQUESTS = Histogram("sojourn_http_request_seconds", "Time to answer.", ["method", "route", "status"])
OUTBOX_WAITING = Gauge("sojourn_outbox_waiting", "Events that are committed and not yet published.")
PARKED = Gauge("sojourn_parked", "Messages set aside with a reason.")
FAILURES = Counter("sojourn_task_failures", "Times that a background task failed and was started again.", ["task"])


def configure_logs(kind: Literal["text", "json"], service: str, level: int = logging.INFO) -> None:
    """One line for each thing that happened, on standard error; `trace` ties together what belongs to one request."""
    renderer: Any = structlog.processors.JSONRenderer()
    if kind == "text":
        renderer = structlog.dev.ConsoleRenderer(colors=False, sort_keys=False)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, force=True)


class Tracing:
    """The outermost layer: gives each request its trace, answers what nobody foresaw, and measures."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        request.state.trace = traceparent_of(request)
        trace = trace_id(request.state.trace)
        status, began = 0, time.perf_counter()
        too_large = False

        async def traced(message: Message) -> None:
            nonlocal status, too_large
            if message["type"] == "http.response.start":
                headers = Headers(raw=message.get("headers", []))
                too_large = message["status"] == 413 and "problem" not in headers.get("content-type", "")
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", trace.encode())]
            if too_large:  # the body limit answers in plain text, outside of every error handler
                if message["type"] == "http.response.start":
                    await of_error(request, HTTPException(413))(scope, receive, send)
                return
            await send(message)

        with structlog.contextvars.bound_contextvars(trace=trace):
            try:
                await self.app(scope, receive, traced)
            except Exception as error:
                if status:  # the answer has begun: nothing better can be sent
                    raise
                await of_error(request, error)(scope, receive, traced)
            finally:
                seconds = time.perf_counter() - began
                route = getattr(scope.get("route"), "path", "none")
                REQUESTS.labels(request.method, route, status).observe(seconds)
                log.debug("answered", method=request.method, path=request.url.path, status=status, seconds=seconds)


def add_health(app: FastAPI) -> None:
    """`/health/live`, `/health/ready` (writes a row) and `/metrics`, for the machine that runs the service."""

    async def live() -> dict[str, str]:
        return {"status": "live"}

    async def ready(request: Request, response: Response) -> dict[str, str]:
        house = request.app.state.house
        nats = "connected" if house.bus.up.is_set() else "disconnected: events wait in the outbox"
        try:
            async with asyncio.timeout(3):
                await house.database.writable()
        except Exception as error:
            response.status_code = 503
            why = "does not answer" if is_database_gone(error) else f"cannot be written: {type(error).__name__}"
            return {"status": "not ready", "database": why, "nats": nats}
        return {"status": "ready", "database": "written", "nats": nats}

    async def metrics(request: Request) -> Response:
        house = request.app.state.house
        try:
            async with house.database.begin(read_only=True) as connection:
                counts = (await connection.execute(_COUNTS)).one()
            OUTBOX_WAITING.set(counts.waiting)
            PARKED.set(counts.parked)
        except Exception as error:
            log.warning("metrics without the database", error=repr(error))
        return Response(generate_latest(REGISTRY), media_type=CONTENT_TYPE_LATEST)

    checks: dict[str, Callable[..., Awaitable[Any]]] = {
        "/health/live": live,
        "/health/ready": ready,
        "/metrics": metrics,
    }
    for path, check in checks.items():
        app.add_api_route(path, check, methods=["GET"], include_in_schema=False)


_COUNTS = text(
    "SELECT (SELECT count(*) FROM outbox WHERE published_at IS NULL) AS waiting, "
    "(SELECT count(*) FROM parked) AS parked"
)
