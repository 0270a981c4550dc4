"""Accounts, keys and who one is, over the API; the database is real."""

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from sojourn_gateway import bootstrap
from sojourn_shared.service import BadSettings

from .conftest import ADMIN_KEY, Gateway, later


async def test_the_migrated_schema_is_the_one_in_code(gateway: Gateway) -> None:
    """A table changed in code without a migration is noticed here."""
    assert await gateway.at.schema_differences() == []


async def test_the_first_account_is_made_from_the_file_once(gateway: Gateway) -> None:
    """Its key works, its OS users are stated, and reading the file again changes nothing."""
    async with gateway.client() as admin:
        me = (await admin.get("/me")).json()
        assert (me["name"], me["roles"], me["os_users"]) == ("admin", ["administrator"], ["root"])
        before = len(await gateway.at.events())
        await bootstrap.apply(gateway.at.house, gateway.at.house.parts.first)
        assert len(await gateway.at.events()) == before
    assert [event.change for event in await gateway.at.events()] == ["account.created", "key.created"]


async def test_a_new_file_replaces_the_key_and_adds_os_users(gateway: Gateway) -> None:
    """Whoever deploys holds the key, so that their OS user is this person too; the old key opens nothing."""
    file: Path = gateway.at.house.settings.bootstrap_file
    new = "sjn_" + "b" * 43
    file.write_text(
        json.dumps({"admin_os_users": ["carol"], "admin_token_sha256": hashlib.sha256(new.encode()).hexdigest()})
    )
    await bootstrap.apply(gateway.at.house, bootstrap.read(file))
    async with gateway.client() as old, gateway.client(new) as admin:
        assert (await old.get("/me")).status_code == 401
        assert (await admin.get("/me")).json()["os_users"] == ["root", "carol"]


@pytest.mark.parametrize("text", ["{", "{}", '{"admin_token_sha256": "xy"}'])
def test_a_broken_bootstrap_file_is_named(tmp_path: Path, text: str) -> None:
    """The sentence names the variable, the file and the field; the service does not start."""
    file = tmp_path / "bootstrap.json"
    file.write_text(text)
    with pytest.raises(BadSettings, match=r"SOJOURN_BOOTSTRAP_FILE.*bootstrap\.json"):
        bootstrap.read(file)


async def test_an_account_lives_and_its_events_tell_it(gateway: Gateway) -> None:
    """Created, changed, deleted: each one event with its version; its keys end with it."""
    ben = await gateway.person("ben", "approver", os_users=["ben", "CORP\\ben"])
    async with gateway.client() as admin, gateway.client(ben.key) as bens:
        read = await admin.get(f"/accounts/{ben.id}")
        assert read.headers["etag"] == '"1"'
        put = {**read.json(), "roles": ["auditor", "auditor", "approver"]}
        changed = await admin.put(f"/accounts/{ben.id}", json=put, headers={"If-Match": '"1"'})
        assert (changed.status_code, changed.json()["roles"]) == (200, ["approver", "auditor"])
        assert (await bens.get("/me")).json()["roles"] == ["approver", "auditor"]
        gone = await admin.delete(f"/accounts/{ben.id}", headers={"If-Match": changed.headers["etag"]})
        assert gone.status_code == 204
        assert (await bens.get("/me")).status_code == 401
        assert (await admin.get(f"/accounts/{ben.id}")).status_code == 404
    told = [(event.change, event.data.entity["version"]) for event in await gateway.at.events()]
    assert told[2:] == [
        ("account.created", 1),
        ("key.created", 1),
        ("account.changed", 2),
        ("key.deleted", 2),
        ("account.deleted", 3),
    ]
    events = await gateway.at.events("account.created", "account.changed")
    assert all(event.data.actor.name == "admin" for event in events[1:])
    assert "digest" not in json.dumps([event.data.entity for event in await gateway.at.events()])


async def test_what_is_wrong_is_refused_with_its_place(gateway: Gateway) -> None:
    """Pointers, the taken address without case, groups that do not exist yet."""
    await gateway.person("ben", "approver")
    group = "01930000-0000-7000-8000-00000000000a"
    cases: list[tuple[dict[str, Any], int, str, str]] = [
        ({"email": "x@example.org"}, 422, "invalid-body", ""),
        ({"name": "a\x07b"}, 422, "invalid-body", "/name"),
        ({"name": "X", "email": "no address"}, 422, "invalid-body", "/email"),
        ({"name": "X", "roles": ["king"]}, 422, "invalid-body", "/roles/0"),
        ({"name": "X", "os_user": ["x"]}, 422, "invalid-body", "/os_user"),
        ({"name": "X", "computer_group_ids": [group]}, 422, "invalid-body", "/computer_group_ids"),
        ({"name": "X", "email": "BEN@example.ORG"}, 409, "name-taken", ""),
    ]
    async with gateway.client() as admin:
        for body, status, code, pointer in cases:
            answer = await admin.post("/accounts", json=body)
            assert (answer.status_code, answer.json()["type"]) == (status, f"/problems/{code}"), body
            if status == 422:
                assert answer.json()["errors"][0]["pointer"] == pointer, body
        nowhere = await admin.post("/accounts", json={"name": "X", "computer_group_ids": []})
        assert (nowhere.status_code, nowhere.json()["computer_group_ids"]) == (201, None)


async def test_only_another_administrator_changes_roles_and_os_users(gateway: Gateway) -> None:
    """One's own: 403. Without If-Match: 428; an old one: 412."""
    async with gateway.client() as admin:
        me = (await admin.get("/me")).json()
        own = {"name": "admin", "roles": ["administrator"], "os_users": []}
        answer = await admin.put(f"/accounts/{me['id']}", json=own, headers={"If-Match": '"1"'})
        assert (answer.status_code, answer.json()["type"]) == (403, "/problems/not-permitted")
        assert (await admin.put(f"/accounts/{me['id']}", json=own)).status_code == 428
        assert (await admin.put(f"/accounts/{me['id']}", json=own, headers={"If-Match": '"7"'})).status_code == 412
        assert (await admin.delete(f"/accounts/{me['id']}", headers={"If-Match": "*"})).status_code == 403


async def test_two_administrators_who_remove_each_other_leave_one(gateway: Gateway) -> None:
    """Whoever commits first wins; the other is refused, because somebody has to administer."""
    bea = await gateway.person("bea", "administrator")
    async with gateway.client() as admin, gateway.client(bea.key) as beas:
        me = (await admin.get("/me")).json()
        any_version = {"If-Match": "*"}
        answers = await asyncio.gather(
            admin.delete(f"/accounts/{bea.id}", headers=any_version),
            beas.delete(f"/accounts/{me['id']}", headers=any_version),
        )
    assert sorted(answer.status_code for answer in answers)[0] == 204
    assert sorted(answer.status_code for answer in answers)[1] in {401, 403}


async def test_a_key_is_shown_once_and_opens_nothing_when_deleted(gateway: Gateway) -> None:
    """Lists have no secrets, a replay shows null, and only its owner and administrators see a key at all."""
    ben = await gateway.person("ben", "approver")
    eve = await gateway.person("eve", "requester")
    async with gateway.client() as admin, gateway.client(ben.key) as bens, gateway.client(eve.key) as eves:
        repeat = {"Idempotency-Key": "k"}
        first = await admin.post("/api-keys", json={"name": "ci"}, headers=repeat)
        again = await admin.post("/api-keys", json={"name": "ci"}, headers=repeat)
        assert first.json()["key"].startswith("sjn_")
        assert (again.json()["id"], again.json()["key"]) == (first.json()["id"], None)
        assert [key["name"] for key in (await bens.get("/api-keys")).json()["items"]] == ["ben's"]
        assert "sjn_" not in (await admin.get("/api-keys")).text
        assert len((await admin.get("/api-keys")).json()["items"]) == 4
        assert (await eves.get(f"/api-keys/{ben.key_id}")).status_code == 404
        assert (await eves.delete(f"/api-keys/{ben.key_id}", headers={"If-Match": "*"})).status_code == 404
        assert (await eves.post("/api-keys", json={"name": "mine"})).status_code == 403
        assert (await bens.delete(f"/api-keys/{ben.key_id}", headers={"If-Match": '"1"'})).status_code == 204
        assert (await bens.get("/me")).status_code == 401


async def test_lists_go_by_pages_and_by_change(gateway: Gateway) -> None:
    """The newest first; `updated_after` gives what changed since, the oldest change first."""
    for number in range(3):
        later(gateway, seconds=1)
        await gateway.person(f"p{number}", "requester")
    async with gateway.client() as admin:
        page = (await admin.get("/accounts?limit=2")).json()
        assert [one["name"] for one in page["items"]] == ["p2", "p1"]
        rest = (await admin.get("/accounts", params={"limit": 2, "cursor": page["next_cursor"]})).json()
        assert [one["name"] for one in rest["items"]] == ["p0", "admin"]
        since = (await admin.get("/accounts", params={"updated_after": rest["items"][0]["updated_at"]})).json()
        assert {one["name"] for one in since["items"]} <= {"p1", "p2"}


async def test_nobody_gets_in_without_a_credential(gateway: Gateway) -> None:
    """Every path below /api/v1 answers 401 without one, and with a wrong one; guesses are told once a minute."""
    wrong = ["", "sjn_" + "x" * 43, "sje_" + "x" * 43, ADMIN_KEY + "x", ADMIN_KEY[:-1]]
    async with gateway.client(None) as nobody:
        for token in wrong:
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            for path in ("/me", "/accounts", "/policies", "/nothing", "/audit/stream"):
                answer = await nobody.get(path, headers=headers)
                assert (answer.status_code, answer.headers["content-type"]) == (401, "application/problem+json")
        assert (await nobody.get("/me", headers={"Authorization": f"Basic {ADMIN_KEY}"})).status_code == 401
    assert all(service.calls == [] for service in gateway.services.values())


async def test_a_first_account_that_was_removed_stays_removed(gateway: Gateway) -> None:
    """Another administrator deleted it: neither it nor its key comes back at the next start."""
    bea = await gateway.person("bea", "administrator")
    async with gateway.client() as admin, gateway.client(bea.key) as beas:
        me = (await admin.get("/me")).json()
        assert (await beas.delete(f"/accounts/{me['id']}", headers={"If-Match": "*"})).status_code == 204
        await bootstrap.apply(gateway.at.house, gateway.at.house.parts.first)
        assert (await admin.get("/me")).status_code == 401
