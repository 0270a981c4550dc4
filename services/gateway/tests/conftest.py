"""The gateway under test: its own database, services that are small real servers, people who hold keys."""

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from sojourn_gateway import domain
from sojourn_gateway.app import SERVICE
from sojourn_shared.service import Caller
from sojourn_shared.service.auth import authenticate
from sojourn_shared.service.testing import OpenHouse, TestHouse
from sojourn_shared.signing import PrivateKey, base64url

ADMIN_KEY = "sjn_" + "a" * 43
SIGN_IN = "s" * 43

Answer = Callable[[dict[str, Any], bytes, Any, Any], Awaitable[None]]


@dataclass
class Upstream:
    """A service that remembers who called and how, and answers as told, on a real socket."""

    name: str
    key: PrivateKey
    clock: Any
    url: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    answers: dict[str, Any] = field(default_factory=dict)
    """By `METHOD /path`: (status, body) or (status, body, headers), or an ASGI-like coroutine function."""
    left: asyncio.Event = field(default_factory=asyncio.Event)
    server: Any = None

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        path = scope["path"].removeprefix("/api/v1")
        call = {
            "method": scope["method"],
            "path": path,
            "query": scope["query_string"].decode(),
            "headers": headers,
            "body": json.loads(body) if body.startswith(b"{") else body,
            "caller": self.caller(headers),
        }
        self.calls.append(call)
        answer = self.answers.get(f"{scope['method']} {path}", (200, {"service": self.name}))
        if callable(answer):
            await answer(scope, receive, send, self)
            return
        status, content, *more = answer
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        kind = "application/problem+json" if status >= 400 else "application/json"
        fields = {"content-type": kind, "content-length": str(len(data)), **(more[0] if more else {})}
        start = [(name.encode(), value.encode()) for name, value in fields.items()]
        await send({"type": "http.response.start", "status": status, "headers": start})
        await send({"type": "http.response.body", "body": data})

    def caller(self, headers: dict[str, str]) -> Caller:
        return authenticate(headers.get("authorization"), self.name, {self.key.kid: self.key.public}, self.clock())

    async def start(self) -> None:
        config = uvicorn.Config(self, port=0, log_config=None, lifespan="off", timeout_graceful_shutdown=1, http="h11")
        self.server = uvicorn.Server(config)
        self.server.install_signal_handlers = lambda: None
        self.task = asyncio.create_task(self.server._serve())
        while not self.server.started:
            await asyncio.sleep(0.01)
        self.url = f"http://127.0.0.1:{self.server.servers[0].sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        self.server.should_exit = True
        await self.task


@dataclass
class Gateway:
    """The gateway, its four services, and clients for people."""

    at: TestHouse
    services: dict[str, Upstream]

    def client(self, key: str | None = ADMIN_KEY, **options: Any) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        transport = httpx.ASGITransport(app=self.at.app, raise_app_exceptions=False, client=("192.0.2.7", 4711))
        return httpx.AsyncClient(
            transport=transport, base_url="http://127.0.0.1:8400/api/v1", headers=headers, **options
        )

    async def person(self, name: str, *roles: str, os_users: list[str] | None = None) -> "Person":
        """A new account with a key."""
        async with self.client() as admin:
            body = {"name": name, "email": f"{name}@example.org", "roles": list(roles), "os_users": os_users}
            made = await admin.post("/accounts", json=body)
            assert made.status_code == 201, made.text
            key = await admin.post("/api-keys", json={"name": f"{name}'s", "account_id": made.json()["id"]})
            assert key.status_code == 201, key.text
        return Person(made.json()["id"], key.json()["key"], key.json()["id"], made.json())


@dataclass
class Person:
    id: str
    key: str
    key_id: str
    account: dict[str, Any]


@pytest.fixture
async def gateway(house_of: OpenHouse, tmp_path: Path) -> AsyncIterator[Gateway]:
    async with open_gateway(house_of, tmp_path) as opened:
        yield opened


@contextlib.asynccontextmanager
async def open_gateway(house_of: OpenHouse, folder: Path, **settings: Any) -> AsyncIterator[Gateway]:
    key = PrivateKey.generate()
    names = ("policy", "requests", "expiry", "audit")
    services = {name: Upstream(name, key, None) for name in names}
    for service in services.values():
        await service.start()
    file = folder / "bootstrap.json"
    first = {"admin_os_users": ["root"], "admin_token_sha256": hashlib.sha256(ADMIN_KEY.encode()).hexdigest()}
    first |= {"sign_in_sha256": hashlib.sha256(SIGN_IN.encode()).hexdigest()}
    file.write_text(json.dumps(first))
    urls = {f"{name}_url": services[name].url for name in names}
    values = {"gateway_key": base64url(key.seed), "bootstrap_file": file, **urls, **settings}
    try:
        async with house_of(SERVICE, **values) as house:
            for service in services.values():
                service.clock = house.clock
            async with SERVICE.around(house.house):
                yield Gateway(house, services)
    finally:
        await asyncio.gather(*(service.stop() for service in services.values()))


def later(gateway: Gateway, **by: float) -> None:
    """Move the clock."""
    gateway.at.clock.advance(timedelta(**by))


__all__ = ["ADMIN_KEY", "SIGN_IN", "Gateway", "Person", "Upstream", "domain", "later", "open_gateway"]
