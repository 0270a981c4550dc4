"""What the tests of this service share: keys, an open house, and computers that report as real ones do."""

import itertools
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sojourn_expiry import publisher
from sojourn_expiry.app import SERVICE
from sojourn_expiry.handlers import on_heartbeat
from sojourn_shared.clock import rfc3339
from sojourn_shared.contracts import wire
from sojourn_shared.contracts.events import Actor, Event
from sojourn_shared.ids import new_id
from sojourn_shared.service.testing import ADMIN, OpenHouse, TestHouse
from sojourn_shared.signing import PrivateKey, base64url, verify

RULE = {"type": "file_hash", "sha256": "a" * 64}


@dataclass
class Computer:
    """A computer as `expiry` meets it: a keeper that signs reports, and the document that it holds."""

    id: str
    keeper: PrivateKey
    seqs: dict[str, Any] = field(default_factory=dict)

    def report(self, kind: str, at: datetime, **fields: Any) -> str:
        """A signed report; the fields are those of the wire."""
        seq = next(self.seqs.setdefault(kind, itertools.count(1)))
        body = {"v": 1, "kind": kind, "id": new_id(at), "seq": seq, "computer_id": self.id, "boot_id": "b"}
        return self.keeper.sign(json.dumps(body | {"at": rfc3339(at)} | fields).encode(), "sojourn-report")


@dataclass
class Yard:
    """The service, what the others tell it, and its computers."""

    house: TestHouse
    signer: PrivateKey
    key_set: str

    @property
    def now(self) -> datetime:
        return self.house.clock()

    def after(self, **delta: float) -> datetime:
        return self.now + timedelta(**delta)

    def pass_time(self, **delta: float) -> None:
        self.house.clock.advance(timedelta(**delta))

    def stranger(self) -> Computer:
        """A computer that nobody told this service about."""
        return Computer(new_id(self.now), PrivateKey.generate())

    # what other services say

    async def enrol(self, name: str = "pc-1", *, version: int = 1, computer: Computer | None = None) -> Computer:
        computer = computer or self.stranger()
        await self.say_computer(computer, version=version, name=name)
        return computer

    async def say_computer(self, computer: Computer, *, version: int, status: str = "enrolled", **more: Any) -> None:
        state = {"id": computer.id, "version": version, "name": "pc-1", "status": status, **more}
        state |= {"keeper_public_key": computer.keeper.public.text, "guarantees": {"start": {"word": "enforced"}}}
        change = "computer.decommissioned" if status == "decommissioned" else "computer.enrolled"
        await self.house.hears(change, state, service="policy", id=computer.id)

    async def assign(
        self,
        *computers: Computer,
        duration: dict[str, Any] | None = None,
        version: int = 1,
        revision: int = 1,
        state: str = "present",
        deployed_at: datetime | None = None,
        policy_id: str | None = None,
        assignment_ids: Sequence[str] = (),
        event_id: str | None = None,
        **terms: Any,
    ) -> Event:
        """`assignments.changed` of one policy: one assignment for each computer."""
        policy_id = policy_id or new_id(self.now)
        ids = list(assignment_ids) or [new_id(self.now) for _ in computers]
        given = {"policy_name": "Printers", "users": {"names": ["alice"]}, "rules": [RULE]}
        given["duration"] = duration or {"type": "fixed", "minutes": 60}
        entity = {
            "policy_id": policy_id,
            "revision": revision,
            "deployed_at": rfc3339(deployed_at or self.now),
            "terms": given | terms,
            "page": 1,
            "pages": 1,
            "assignments": [
                {"id": assigned, "version": version, "computer_id": computer.id, "state": state}
                for assigned, computer in zip(ids, computers, strict=True)
            ],
        }
        return await self.house.hears(
            "assignments.changed", entity, service="policy", id=policy_id, event_id=event_id, actor=ADA
        )

    async def approve(self, computer: Computer, *, minutes: int = 10, version: int = 2, **fields: Any) -> str:
        """`request.approved`; returns the grant's id."""
        request = {
            "id": new_id(self.now),
            "version": version,
            "status": "approved",
            "computer_id": computer.id,
            "user": "alice",
            "application": {"path": "/usr/bin/id"},
            "duration_minutes": minutes,
            "grant_id": new_id(self.now),
            "take_up_until": rfc3339(self.after(hours=8)),
            "decision": {"by": ADMIN.id, "by_name": "Ada", "at": rfc3339(self.now), "rules": [RULE]},
        } | fields
        await self.house.hears("request.approved", request, service="requests", id=request["id"])
        return str(request["grant_id"])

    # what a computer does

    async def documents(self) -> int:
        """Write all dirty documents; returns how many computers were dirty."""
        return await publisher.publish_batch(self.house.house, set())

    async def beat(self, computer: Computer, *, version: int = 0, epoch: int = 1, nonce: str = "n") -> Any:
        body = {"nonce": nonce, "epoch": epoch, "version": version, "boot_id": "b", "clock": rfc3339(self.now)}
        answer = await on_heartbeat(computer.id, json.dumps(body | {"agent_version": "1"}).encode(), self.house.house)
        return None if answer is None else msgspec.json.decode(answer, type=wire.HeartbeatAnswer)

    async def document(self, computer: Computer) -> wire.Document:
        """The newest document, as the computer gets it, verified."""
        answer = await self.beat(computer)
        assert answer.document is not None
        return self.read(answer.document)

    def read(self, jws: str) -> wire.Document:
        payload = verify(jws, "sojourn-state", {self.signer.kid: self.signer.public})
        return msgspec.json.decode(payload, type=wire.Document)

    async def granted(self, computer: Computer) -> dict[str, wire.Grant]:
        """The grants of a freshly written document, by id."""
        await self.documents()
        found = wire.read_grants(await self.document(computer), frozenset())
        return {grant.id: grant for grant in found if isinstance(grant, wire.Grant)}

    async def reports(self, computer: Computer, kind: str, *, at: datetime | None = None, **fields: Any) -> str:
        jws = computer.report(kind, at or self.now, **fields)
        await self.house.takes(computer.id, kind, jws)
        return jws

    async def starts(self, computer: Computer, grant_id: str, *, until: datetime | None = None, **more: Any) -> str:
        run_id = new_id(self.now)
        await self.reports(computer, "started", **started(run_id, grant_id, until, **more))
        return run_id

    # what people see

    async def grant(self, grant_id: str) -> dict[str, Any]:
        async with self.house.client() as admin:
            answer = await admin.get(f"/grants/{grant_id}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    async def grants(self, **filters: Any) -> list[dict[str, Any]]:
        async with self.house.client() as admin:
            answer = await admin.get("/grants", params=filters)
        assert answer.status_code == 200, answer.text
        return list(answer.json()["items"])

    async def changes(self, *kinds: str) -> list[str]:
        return [event.change for event in await self.house.events(*kinds)]


ADA = Actor(kind="account", id=ADMIN.id, name=ADMIN.name)


def started(run_id: str, grant_id: str, until: datetime | None = None, *, user: str = "alice") -> dict[str, Any]:
    return {
        "run_id": run_id,
        "grant_id": grant_id,
        "rule": 0,
        "user": {"name": user, "uid": 1000},
        "application": {"path": "/usr/bin/id"},
        "pid": 4711,
        "until": rfc3339(until) if until else None,
    }


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, Any]:
    """The settings that name a fresh signing key and the key set with it, and the key itself."""
    root, signer = PrivateKey.generate(), PrivateKey.generate()
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / f"{signer.kid}.seed").write_text(base64url(signer.seed))
    first = wire.KeySet(epoch=1, keys=[wire.DocumentKey(kid=signer.kid, x=signer.public.text)])
    signed = root.sign(msgspec.json.encode(first), "sojourn-keys")
    key_set = tmp_path / "key-set.json"
    key_set.write_text(json.dumps({"root_key": root.public.text, "keys": signed}))
    return {"state_keys": folder, "key_set": key_set, "signer": signer, "root": root, "signed": signed}


@pytest.fixture
def yard_of(keys: dict[str, Any]) -> Callable[[TestHouse], Yard]:
    """The yard around a house that a test opened by itself."""
    return lambda house: Yard(house, keys["signer"], keys["signed"])


@pytest.fixture
async def yard(house_of: OpenHouse, keys: dict[str, Any]) -> AsyncIterator[Yard]:
    async with house_of(SERVICE, state_keys=keys["state_keys"], key_set=keys["key_set"]) as house:
        yield Yard(house, keys["signer"], keys["signed"])
