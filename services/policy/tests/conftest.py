"""A policy service under test, the keys that it needs, and computers that enrol at it."""

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from sojourn_policy.app import SERVICE
from sojourn_shared.contracts import wire
from sojourn_shared.service.auth import Caller
from sojourn_shared.service.nats_accounts import Key
from sojourn_shared.service.testing import OpenHouse, TestHouse
from sojourn_shared.signing import PrivateKey

AGENT = Caller(id="enrolment", kind="computer", name="a computer", roles=frozenset())
"""Whom the gateway mints a token for when an agent calls."""


@dataclass
class Machine:
    """A computer that wants to enrol, with its keys."""

    name: str = "ws-042"
    machine_id: str = "6f1c"
    keeper: PrivateKey = field(default_factory=PrivateKey.generate)
    link: Key = field(default_factory=lambda: Key.new("USER"))

    def enrolment(self, **changes: Any) -> dict[str, Any]:
        platform = {"os": "linux", "distribution": "debian", "version": "12", "architecture": "x86_64"}
        body = {
            "name": self.name,
            "machine_id": self.machine_id,
            "platform": platform,
            "agent_version": "0.1.0",
            "link_public_key": self.link.id,
            "keeper_public_key": self.keeper.public.text,
            "guarantees": {"caller": {"word": "enforced", "why": "the kernel says who calls"}},
        }
        return body | changes

    def proof(self, computer_id: str, nonce: str, **changes: Any) -> dict[str, str]:
        """The body of a call that proves itself."""
        said = {"computer_id": computer_id, "link_public_key": self.link.id, "nonce": nonce} | changes
        return {"renewal": self.keeper.sign(wire.encode(wire.Renewal(**said)), "sojourn-renew")}

    def health(self, computer_id: str, at: Any, seq: int = 1, **changes: Any) -> str:
        """A signed report of its health."""
        said: dict[str, Any] = {
            "id": f"r{seq}",
            "seq": seq,
            "computer_id": computer_id,
            "boot_id": "b",
            "at": at,
            "guarantees": {"caller": wire.Guarantee(word="enforced", why="the kernel says who calls")},
            "spool": wire.Spool(waiting=0, limit=100),
        }
        return self.keeper.sign(wire.encode(wire.HealthReport(**said | changes)), "sojourn-report")


@dataclass
class Agents:
    """Computers and the one who lets them in, at one house."""

    house: TestHouse

    def machine(self, name: str = "ws-042", **more: Any) -> Machine:
        return Machine(**{"name": name, "machine_id": name} | more)

    async def token(self, **body: Any) -> str:
        """A new enrolment token, made by an administrator."""
        async with self.house.client() as admin:
            answer = await admin.post("/enrolment-tokens", json={"name": "a token"} | body)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["token"])

    async def enrols(self, machine: Machine, token: str | None = None, **changes: Any) -> httpx.Response:
        """What the service answers when `machine` enrols with a token, or with a new one."""
        headers = {"Sojourn-Enrolment-Token": token or await self.token()}
        async with self.house.client(AGENT) as agent:
            return await agent.post("/computers/enrol", json=machine.enrolment(**changes), headers=headers)

    async def enrolled(self, name: str = "ws-042", machine: Machine | None = None) -> str:
        """The id of a new computer."""
        answer = await self.enrols(machine or self.machine(name))
        assert answer.status_code == 201, answer.text
        return str(answer.json()["computer_id"])

    async def asks(self, computer_id: str, what: dict[str, Any]) -> httpx.Response:
        """What the service answers when a computer asks for new credentials."""
        async with self.house.client(AGENT) as agent:
            return await agent.post(f"/computers/{computer_id}/credentials", json=what)

    async def removes(self, computer_id: str) -> None:
        async with self.house.client() as admin:
            answer = await admin.delete(f"/computers/{computer_id}", headers={"If-Match": "*"})
        assert answer.status_code == 204, answer.text


@pytest.fixture
def root() -> PrivateKey:
    return PrivateKey.generate()


@pytest.fixture
def policy_settings(tmp_path: Path, root: PrivateKey) -> dict[str, Any]:
    """Settings that policy needs besides every service's."""
    key_set = tmp_path / "key-set.json"
    signed = root.sign(wire.encode(wire.KeySet(epoch=1, keys=[])), "sojourn-keys")
    key_set.write_text(json.dumps({"root_key": root.public.text, "keys": signed}))
    issuer = {"seed": Key.new("ACCOUNT").seed, "account": Key.new("ACCOUNT").id}
    return {"key_set": key_set, "agent_issuer_seed": json.dumps(issuer)}


@pytest.fixture
async def house(house_of: OpenHouse, policy_settings: dict[str, Any]) -> AsyncIterator[TestHouse]:
    async with house_of(SERVICE, **policy_settings) as opened:
        yield opened


@pytest.fixture
def agents(house: TestHouse) -> Agents:
    return Agents(house)


@pytest.fixture
def agents_of() -> type[Agents]:
    """`agents_of(house)`: computers at another house than the usual one."""
    return Agents


@pytest.fixture
def body() -> Callable[..., dict[str, Any]]:
    """`body("Printers", computer_id)`: a policy as people send it."""

    def make(name: str, *computer_ids: str, **changes: Any) -> dict[str, Any]:
        targets = {"computer_ids": list(computer_ids)} if computer_ids else {"all": True}
        return {
            "name": name,
            "targets": targets,
            "users": {"names": ["alice"]},
            "duration": {"type": "fixed", "minutes": 30},
            "access": {"type": "specific", "rules": [{"type": "file_hash", "sha256": "a" * 64}]},
        } | changes

    return make
