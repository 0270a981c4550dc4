"""The services as their frame builds them, each on a database of its own."""

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from sojourn_shared.contracts import wire
from sojourn_shared.ids import new_id
from sojourn_shared.service import Service
from sojourn_shared.service.auth import declared_roles
from sojourn_shared.service.nats_accounts import Key
from sojourn_shared.service.testing import START, OpenHouse, TestHouse
from sojourn_shared.signing import PrivateKey, base64url

SERVICES = ("policy", "requests", "expiry", "audit")
"""Those behind the gateway."""
SOME_ID = new_id(START)


def service_named(name: str) -> Service:
    service: Service = import_module(f"sojourn_{name}.app").SERVICE
    return service


@dataclass(frozen=True)
class Endpoint:
    """One method of one route. `route` is as it was declared; `path` has an id where the route has a parameter."""

    method: str
    template: str
    route: Any

    @property
    def path(self) -> str:
        return with_ids(self.template)

    @property
    def for_computers(self) -> bool:
        """Whether only computers' agents call it."""
        return declared_roles(self.route.dependant) == frozenset({"computer"})

    def __str__(self) -> str:
        return f"{self.method} {self.template}"


def with_ids(template: str) -> str:
    """A path with something in the place of every parameter."""
    return "/".join(SOME_ID if "{" in part else part for part in template.split("/"))


def endpoints_of(app: FastAPI) -> Iterator[Endpoint]:
    """Everything that the app answers, however its routers are nested."""
    for context in iter_route_contexts(app.routes):
        assert context.path, f"{context.original_route} has no path: the walk would miss what lies below it"
        for method in sorted(context.methods or ()):
            yield Endpoint(method, context.path, context.original_route)


@pytest.fixture
def settings_of(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """What each service needs beside every service's settings: keys of its own."""
    root, signer = PrivateKey.generate(), PrivateKey.generate()
    documents, key_set = tmp_path / "documents", tmp_path / "key-set.json"
    documents.mkdir()
    (documents / f"{signer.kid}.seed").write_text(base64url(signer.seed))
    first = wire.KeySet(epoch=1, keys=[wire.DocumentKey(kid=signer.kid, x=signer.public.text)])
    signed = root.sign(wire.encode(first), "sojourn-keys")
    key_set.write_text(json.dumps({"root_key": root.public.text, "keys": signed}))
    issuer = {"seed": Key.new("ACCOUNT").seed, "account": Key.new("ACCOUNT").id}
    return {
        "policy": {"key_set": key_set, "agent_issuer_seed": json.dumps(issuer)},
        "requests": {},
        "expiry": {"state_keys": documents, "key_set": key_set},
        "audit": {"ledger_key": base64url(PrivateKey.generate().seed)},
        "gateway": {"gateway_key": base64url(PrivateKey.generate().seed)},
    }


@pytest.fixture(params=SERVICES)
async def house(
    request: pytest.FixtureRequest, house_of: OpenHouse, settings_of: dict[str, dict[str, Any]]
) -> AsyncIterator[TestHouse]:
    """Each service behind the gateway, one after the other."""
    async with house_of(service_named(request.param), **settings_of[request.param]) as opened:
        yield opened


@pytest.fixture
async def gateway(house_of: OpenHouse, settings_of: dict[str, dict[str, Any]]) -> AsyncIterator[TestHouse]:
    """The gateway, with nobody behind it."""
    nobody = {f"{name}_url": "http://127.0.0.1:1" for name in SERVICES}
    async with house_of(service_named("gateway"), **settings_of["gateway"], **nobody) as opened:
        yield opened
        await opened.house.parts.forwarding.http.aclose()
