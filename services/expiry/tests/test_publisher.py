"""Documents: written once for what changed, numbered upwards, signed again in time, and none is in another's way."""

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import text

from sojourn_expiry import keys as state_keys
from sojourn_expiry import publisher
from sojourn_expiry.store import Tx, computers
from sojourn_shared.contracts import wire
from sojourn_shared.service import BadSettings
from sojourn_shared.signing import PrivateKey, base64url


async def test_a_document_is_written_when_something_changed_and_only_then(yard: Any) -> None:
    """Versions are milliseconds, and grow even within one."""
    pc = await yard.enrol()
    assert (await yard.documents(), await yard.documents()) == (1, 0)
    first = await yard.document(pc)
    assert first.version == int(yard.now.timestamp() * 1000)
    await yard.assign(pc)
    assert (await yard.documents(), await yard.documents()) == (1, 0)
    assert (await yard.document(pc)).version == first.version + 1


async def test_a_change_made_while_signing_is_not_lost(yard: Any) -> None:
    """The computer's row is held while its document is written: a change waits, then makes it dirty again."""
    pc = await yard.enrol()
    async with Tx.begin(yard.house.house) as tx:
        assert [computer.id for computer in await computers.take_dirty(tx, limit=9)] == [pc.id]
        change = asyncio.ensure_future(yard.assign(pc))
        await asyncio.sleep(0.1)
        assert not change.done()
        assert await yard.documents() == 0  # another replica leaves it to us
    await change
    assert len(await yard.granted(pc)) == 1


async def test_it_is_signed_again_at_half_of_its_life(yard: Any) -> None:
    """A computer off the network keeps what it has until `valid_until`; one that is on it never comes near."""
    pc = await yard.enrol()
    await yard.documents()
    first = await yard.document(pc)
    yard.pass_time(hours=83)
    assert await yard.documents() == 0
    yard.pass_time(hours=1)
    assert await yard.documents() == 1
    assert (await yard.document(pc)).valid_until > first.valid_until


async def test_a_grant_whose_end_is_confirmed_leaves_the_document(yard: Any) -> None:
    """Over and unconfirmed stays in; over and confirmed is not in the next one."""
    pc = await yard.enrol()
    grant_id = await yard.approve(pc)
    async with yard.house.client() as admin:
        await admin.post(f"/grants/{grant_id}/revoke", json={"reason": "no"})
    assert set(await yard.granted(pc)) == {grant_id}
    await yard.reports(pc, "ended", grant_id=grant_id, cause="revoked", runs=[])
    other = await yard.approve(pc)
    assert set(await yard.granted(pc)) == {other}


async def test_one_that_cannot_be_written_is_in_nobodys_way(yard: Any) -> None:
    """It stays dirty and is named; the others get their documents."""
    bad, good = await yard.enrol("bad"), await yard.enrol("good")
    await yard.assign(bad)
    async with yard.house.house.database.begin() as connection:
        await connection.execute(text("""UPDATE grants SET rules = '[{"type": "no such rule"}]'"""))
    unwritable: set[str] = set()
    assert await publisher.publish_batch(yard.house.house, unwritable) == 2
    assert unwritable == {bad.id}
    assert await publisher.publish_batch(yard.house.house, unwritable) == 0
    assert (await yard.document(good)).grants == []
    assert (await yard.beat(bad)).document is None


async def test_what_is_taken_away_goes_first_and_as_a_revoke(yard: Any) -> None:
    """The mark of a revoke outlasts a grant that comes after it, until the document is written."""
    slow, urgent = await yard.enrol("slow"), await yard.enrol("urgent")
    grant_id = await yard.approve(urgent)
    await yard.documents()
    await yard.assign(slow)
    async with yard.house.client() as admin:
        await admin.post(f"/grants/{grant_id}/revoke", json={"reason": "no"})
    await yard.approve(urgent)
    async with Tx.begin(yard.house.house) as tx:
        taken = await computers.take_dirty(tx, limit=9)
    assert [(computer.id, computer.taken_away) for computer in taken] == [(urgent.id, True), (slow.id, False)]
    await yard.documents()
    await yard.approve(urgent)
    async with Tx.begin(yard.house.house) as tx:
        assert [computer.taken_away for computer in await computers.take_dirty(tx, limit=9)] == [False]


async def test_a_new_key_set_signs_everything_anew(yard: Any, keys: dict[str, Any]) -> None:
    """A higher epoch: documents order by (epoch, version), and what a removed key signed counts no more."""
    pc = await yard.enrol()
    await yard.documents()
    second = PrivateKey.generate()
    (keys["state_keys"] / f"{second.kid}.seed").write_text(base64url(second.seed))
    new = wire.KeySet(
        epoch=2, keys=[wire.DocumentKey(kid=key.kid, x=key.public.text) for key in (keys["signer"], second)]
    )
    signed = keys["root"].sign(msgspec.json.encode(new), "sojourn-keys")
    keys["key_set"].write_text(json.dumps({"root_key": keys["root"].public.text, "keys": signed}))
    house = yard.house.house
    house.parts = state_keys.load(keys["state_keys"], keys["key_set"], yard.now)
    async with Tx.begin(house) as tx:
        await computers.mark_outdated_dirty(tx, epoch=house.parts.epoch, kid=house.parts.signer.kid)
    assert await yard.documents() == 1
    yard.signer = second
    assert (await yard.document(pc)).epoch == 2


@pytest.mark.parametrize("fault", ["no folder", "no seed", "not json", "another root", "another key's seed", "lapsed"])
def test_keys_that_do_not_fit_are_refused_at_start(fault: str, keys: dict[str, Any], yard: Any) -> None:
    """The sentence names the variable and the file."""
    folder: Path = keys["state_keys"]
    seed = folder / f"{keys['signer'].kid}.seed"
    match fault:
        case "no folder":
            folder = folder / "missing"
        case "no seed":
            seed.unlink()
        case "not json":
            keys["key_set"].write_text("{")
        case "another root":
            stranger = PrivateKey.generate().public.text
            keys["key_set"].write_text(json.dumps({"root_key": stranger, "keys": keys["signed"]}))
        case "another key's seed":
            seed.write_text(base64url(PrivateKey.generate().seed))
        case "lapsed":
            old = wire.DocumentKey(kid=keys["signer"].kid, x=keys["signer"].public.text, not_after=yard.now)
            signed = keys["root"].sign(msgspec.json.encode(wire.KeySet(epoch=1, keys=[old])), "sojourn-keys")
            keys["key_set"].write_text(json.dumps({"root_key": keys["root"].public.text, "keys": signed}))
    with pytest.raises(BadSettings, match=r"SOJOURN_(STATE_KEYS|KEY_SET)"):
        state_keys.load(folder, keys["key_set"], yard.now)
