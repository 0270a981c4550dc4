"""A service from its parts: the app, the tasks beside it, and the commands that operations run."""

import argparse
import asyncio
import contextlib
import gc
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import structlog
import uvicorn
import uvloop
from fastapi import APIRouter, FastAPI, Request
from fastapi.routing import APIRoute
from sqlalchemy import MetaData, text
from starlette.middleware.body_limit import RequestBodyLimitMiddleware

from sojourn_shared.clock import Clock, system_clock
from sojourn_shared.contracts.events import Actor
from sojourn_shared.signing import PublicKey

from . import inbox, outbox, telemetry
from .auth import Caller, by_gateways_token, keys_from
from .bus import Bus
from .database import Database, migrate
from .problems import install, is_database_gone
from .routing import MAX_BODY_BYTES
from .settings import BadSettings, ServiceSettings, load
from .transaction import Transaction

log = structlog.get_logger(__name__)

KEPT = timedelta(days=35)  # inboxes and outboxes: longer than the stream keeps an event
KEYS_KEPT = timedelta(hours=24)
HOUSEKEEPING_SECONDS = 600.0
MAX_RESTART_SECONDS = 30.0

Task = Callable[["House"], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class Service:
    """What a service is made of; each `app.py` holds one.

    `hears` handlers by entity of the event (`"*"` hears everything); `listen` takes events from the bus, one by one
    unless a service hears so many that it takes several at once; `takes` reports by kind; `answers` questions of
    agents by name; `tasks` run for ever beside the app; `open` makes what only this service has (keys, queues).
    `around` is entered before the first request is answered and left after the last. Two are for the gateway alone:
    `authenticate` says who calls, `extend` adds to the app what does not lie at `/api/v1`.
    """

    name: str
    title: str
    settings: type[ServiceSettings]
    metadata: MetaData
    migrations: Path
    transaction: type[Transaction]
    routers: Sequence[APIRouter]
    hears: Mapping[str, inbox.EventHandler] = field(default_factory=dict)
    newest_only: bool = True
    listen: Task = inbox.consume_events
    takes: Mapping[str, inbox.ReportHandler] = field(default_factory=dict)
    answers: Mapping[str, Callable[[str, bytes, Any], Awaitable[bytes | None]]] = field(default_factory=dict)
    tasks: Sequence[Task] = ()
    open: Callable[["House"], Any] = lambda house: None
    around: Callable[["House"], contextlib.AbstractAsyncContextManager[None]] = lambda house: contextlib.nullcontext()
    authenticate: Callable[["House", Request], Awaitable[Caller]] = by_gateways_token
    extend: Callable[[FastAPI], None] = lambda app: None


class House:
    """A running service: its settings, database, bus and clock. `parts` is what `Service.open` made."""

    def __init__(self, service: Service, settings: ServiceSettings, clock: Clock = system_clock) -> None:
        self.service = service
        self.name = service.name
        self.settings: Any = settings
        self.clock = clock
        self.database = Database(settings.database_url.get_secret_value(), application_name=f"sojourn-{service.name}")
        self.bus = Bus(service.name, settings.nats_url, settings.nats_creds)
        self.gateway_keys: dict[str, PublicKey] = keys_from(settings.gateway_keys)
        self.actor = Actor(kind="system", id=service.name, name="Sojourn")
        self.parts: Any = service.open(self)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Everything beside the app, until the block ends."""
        service = self.service
        for ask, answering in service.answers.items():
            self.bus.answer(ask, self._asked(answering))
        tasks: list[Task] = [lambda house: house.database.listen(), outbox.relay, _housekeeping, *service.tasks]
        if service.hears:
            tasks.append(service.listen)
        if service.takes:
            tasks.append(inbox.consume_reports)
        running: list[asyncio.Task[None]] = []
        try:
            async with service.around(self):
                running.append(asyncio.create_task(self.bus.run()))
                running += [asyncio.create_task(self._keep(task)) for task in tasks]
                yield
        finally:
            await _end(running)
            await self.bus.close()
            await self.database.close()

    def _asked(self, answering: Callable[[str, bytes, Any], Awaitable[bytes | None]]) -> Any:
        async def answer(computer_id: str, body: bytes) -> bytes | None:
            return await answering(computer_id, body, self)

        return answer

    async def _keep(self, task: Task) -> None:
        """Run a task for ever: one that fails is started again, later and later while it goes on failing."""
        name = getattr(task, "__qualname__", "task")
        pause = 0.1
        while True:
            began = asyncio.get_running_loop().time()
            try:
                await task(self)
            except Exception as error:
                telemetry.FAILURES.labels(name).inc()
                if is_database_gone(error):
                    log.warning("a task waits for the database", task=name, error=repr(error))
                else:
                    log.error("a task failed", task=name, exc_info=error)
            pause = 0.1 if asyncio.get_running_loop().time() - began > 60 else min(pause * 2, MAX_RESTART_SECONDS)
            await asyncio.sleep(pause)


async def _end(running: list[asyncio.Task[None]]) -> None:
    """Cancel until every task has ended: Python 3.11's `wait_for` loses a cancellation that meets its result."""
    while running:
        for task in running:
            task.cancel()
        _, pending = await asyncio.wait(running, timeout=0.2)
        running = list(pending)


def build(house: House) -> FastAPI:
    """The app of a service. Its routes lie at `/api/v1`; every other path is a problem."""

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with house.running():
            yield

    app = bare_app(house.service, lifespan)
    app.state.house = house
    return app


def bare_app(service: Service, lifespan: Any = None) -> FastAPI:
    """The app without a running house: enough for its OpenAPI document."""
    app = FastAPI(
        title=service.title,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        generate_unique_id_function=_operation_id,
    )
    for router in service.routers:
        app.include_router(router, prefix="/api/v1")
    telemetry.add_health(app)
    service.extend(app)
    install(app)
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=MAX_BODY_BYTES)
    app.add_middleware(telemetry.Tracing)  # outermost: it makes a problem of what the limit says
    return app


def _operation_id(route: APIRoute) -> str:
    return route.name


async def _housekeeping(house: House) -> None:
    """Forget what is old enough: repeats' answers, inbox rows, and published events that are not an entity's newest."""
    while True:
        now = house.clock()
        async with house.database.begin() as connection:
            await connection.execute(text("DELETE FROM idempotency WHERE created_at < :t"), {"t": now - KEYS_KEPT})
            await connection.execute(text("DELETE FROM inbox WHERE received_at < :t"), {"t": now - KEPT})
            await connection.execute(_FORGET_EVENTS, {"t": now - KEPT})
        await asyncio.sleep(HOUSEKEEPING_SECONDS)


_FORGET_EVENTS = text(
    "DELETE FROM outbox o WHERE created_at < :t AND published_at IS NOT NULL AND version IS NOT NULL AND EXISTS "
    "(SELECT FROM outbox n WHERE n.entity = o.entity AND n.entity_id = o.entity_id AND n.version > o.version)"
)


def serve(service: Service, environ: Mapping[str, str] = os.environ) -> None:
    """Run a service until SIGTERM: migrations first, then the app. Raises BadSettings."""
    settings = load(service.settings, environ)
    telemetry.configure_logs(settings.log, service.name)
    host, port = settings.host_and_port

    async def main() -> None:
        house = House(service, settings)
        await migrate(house.database, service.migrations)
        config = uvicorn.Config(
            build(house),
            host=host,
            port=port,
            http="httptools",
            lifespan="on",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers="FORWARDED_ALLOW_IPS" in environ,  # unset, uvicorn would believe every local user
            timeout_graceful_shutdown=2,  # an open event stream would hold the server for ever
        )
        held = [_beside_who_holds_it(host, port)] if settings.listen_held else None
        await uvicorn.Server(config).serve(sockets=held)

    gc.freeze()  # what was imported stays; a fork shares its pages
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def _beside_who_holds_it(host: str, port: int) -> socket.socket:
    """A socket on a port that another socket of the same user is bound to, without listening. Raises OSError."""
    own = socket.socket()
    own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    own.bind((host, port))
    return own


def main(service: Service, arguments: Sequence[str] | None = None) -> None:
    """The command `sojourn-<service>`."""
    parser = argparse.ArgumentParser(
        prog=f"sojourn-{service.name}",
        description=f"{service.title}. Settings are environment variables: see docs/operations.md.",
        epilog=f"example: SOJOURN_DATABASE_URL=postgresql://… sojourn-{service.name} serve",
    )
    parser.add_argument(
        "command",
        choices=["serve", "migrate", "republish"],
        help="serve: migrate, then answer until SIGTERM; migrate: bring the schema up to date; "
        "republish: send the newest state of every entity again",
    )
    command = parser.parse_args(arguments).command
    try:
        if command == "serve":
            serve(service)
            return
        settings = load(service.settings)
        telemetry.configure_logs(settings.log, service.name)
        print(asyncio.run(_once(House(service, settings), command)))  # noqa: T201
    except BadSettings as error:
        sys.exit(f"sojourn-{service.name}: {error}")
    except Exception as error:
        if not is_database_gone(error):
            raise
        sys.exit(f"sojourn-{service.name}: the database does not answer ({error}). Check SOJOURN_DATABASE_URL.")


async def _once(house: House, command: str) -> str:
    try:
        if command == "migrate":
            await migrate(house.database, house.service.migrations)
            return "The schema is up to date."
        count = await outbox.republish(house)
        return f"{count} events wait to be sent again; a running service sends them."
    finally:
        await house.database.close()
