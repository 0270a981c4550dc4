"""The audit service under test, with words for what other services tell it."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from sojourn_audit import sequencer
from sojourn_audit.app import SERVICE
from sojourn_shared.contracts.events import Actor, Event, Links
from sojourn_shared.ids import new_id
from sojourn_shared.ledger import Checkpoint, NoteKey, open_checkpoint
from sojourn_shared.service.testing import OpenHouse, TestHouse, person
from sojourn_shared.signing import PrivateKey, base64url

ADA = Actor(kind="account", id=person("Ada").id, name="Ada")
SYSTEM = Actor(kind="system", id="expiry", name="Sojourn")


@dataclass
class Audit:
    """The service, and what happens elsewhere that it hears of."""

    house: TestHouse

    async def hears(
        self,
        change: str = "policy.created",
        *,
        id: str | None = None,
        actor: Actor = ADA,
        links: Links | None = None,
        service: str = "policy",
        **entity: Any,
    ) -> Event:
        """An event arrives; it waits for the sequencer. A second passes."""
        self.house.clock.advance(timedelta(seconds=1))
        entity_id = id or new_id(self.house.clock())
        said = {"id": entity_id, "version": 1, **entity}
        return await self.house.hears(change, said, service=service, id=entity_id, actor=actor, links=links)

    async def sequences(self) -> int:
        """The sequencer does all there is to do; returns how many entries it appended."""
        done = 0
        while count := await sequencer.sequence_batch(self.house.house, self.house.house.parts.signer):
            done += count
        return done

    async def records(self, count: int) -> None:
        """So many events arrive, and are sequenced."""
        for number in range(count):
            await self.hears(name=f"Policy {number}")
        await self.sequences()

    async def sql(self, statement: str, **values: Any) -> Any:
        async with self.house.house.database.begin() as connection:
            result = await connection.execute(text(statement), values)
            return result.all() if result.returns_rows else None

    async def lines(self) -> list[bytes]:
        """The export."""
        async with self.house.client() as auditor:
            answer = await auditor.get("/audit/export")
        assert answer.status_code == 200
        return answer.content.split(b"\n")[:-1]

    async def entries(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in await self.lines()]

    async def checkpoint(self) -> Checkpoint:
        """The newest checkpoint, checked with the public key as `/audit/keys` gives it."""
        async with self.house.client() as auditor:
            note = (await auditor.get("/audit/checkpoint")).text
            (key,) = (await auditor.get("/audit/keys")).json()["keys"]
        return open_checkpoint(note, [NoteKey.from_text(key)])


@pytest.fixture
async def audit(house_of: OpenHouse) -> AsyncIterator[Audit]:
    async with house_of(SERVICE, ledger_key=base64url(PrivateKey.generate().seed)) as house:
        yield Audit(house)
