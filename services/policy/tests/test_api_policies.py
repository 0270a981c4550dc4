"""`/policies` on a real database."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import httpx
import pytest

from sojourn_shared.ids import new_id
from sojourn_shared.service.testing import TestHouse, person

Body = Callable[..., dict[str, Any]]
GROUP = "01930000-0000-7000-8000-00000000000b"


@pytest.fixture
async def admin(house: TestHouse) -> AsyncIterator[httpx.AsyncClient]:
    async with house.client() as client:
        yield client


async def created(admin: httpx.AsyncClient, body: dict[str, Any]) -> dict[str, Any]:
    answer = await admin.post("/policies", json=body)
    assert answer.status_code == 201, answer.text
    policy: dict[str, Any] = answer.json()
    return policy


async def deployed(admin: httpx.AsyncClient, policy: dict[str, Any], **body: Any) -> dict[str, Any]:
    answer = await admin.post(f"/policies/{policy['id']}/deploy", json=body)
    assert answer.status_code == 202, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def assignments(house: TestHouse) -> list[list[tuple[str, int, str]]]:
    """Of each `assignments.changed`: (computer, version, state)."""
    return [
        [(one["computer_id"], one["version"], one["state"]) for one in event.data.entity["assignments"]]
        for event in await house.events("assignments.changed")
    ]


def pointers(answer: httpx.Response) -> dict[str, str]:
    assert answer.status_code == 422, answer.text
    return {error["pointer"]: error["detail"] for error in answer.json()["errors"]}


async def test_a_policy_comes_back_as_it_was_sent(
    house: TestHouse, admin: httpx.AsyncClient, agents: Any, body: Body
) -> None:
    """With its defaults, who wrote it, and where the console shows it."""
    computer = await agents.enrolled()
    answer = await admin.post("/policies", json=body("Printers", computer))
    policy = answer.json()
    assert answer.headers["location"] == f"/api/v1/policies/{policy['id']}"
    assert answer.headers["etag"] == '"1"'
    assert policy == {
        "id": policy["id"],
        "version": 1,
        "status": "draft",
        "revision": 1,
        "deployed_revision": None,
        "deployed_at": None,
        "name": "Printers",
        "description": "",
        "type": "application_elevation",
        "targets": {"computer_ids": [computer], "computer_names": [], "group_ids": [], "all": False},
        "users": {"all": False, "names": ["alice"]},
        "duration": {"type": "fixed", "minutes": 30, "starts": "on_deploy", "take_up_until": None},
        "access": {
            "type": "specific",
            "rules": [{"type": "file_hash", "sha256": "a" * 64, "executable": None, "arguments": None}],
            "application_group_ids": [],
        },
        "child_processes": "allow",
        "run_as": "root",
        "max_uses": None,
        "ticket_required": False,
        "external_refs": [],
        "created_by": "01930000-0000-7000-8000-00000000000a",
        "created_by_name": "Ada",
        "created_at": "2026-11-02T09:00:00.000000Z",
        "updated_at": "2026-11-02T09:00:00.000000Z",
        "console_url": f"/policies/just-in-time-access/{policy['id']}",
    }
    assert (await admin.get(f"/policies/{policy['id']}")).json() == policy
    (event,) = await house.events("policy.created")
    assert event.data.entity == {name: value for name, value in policy.items() if name != "console_url"}
    assert event.data.links.policy_id == policy["id"]


async def test_names_become_ids(admin: httpx.AsyncClient, agents: Any, body: Body) -> None:
    """Whatever the case; a name that nobody or more than one has is refused at its place."""
    first = await agents.enrolled("ws-042")
    await agents.enrolled("twin", agents.machine("twin", machine_id="1"))
    await agents.enrolled("twin", agents.machine("twin", machine_id="2"))
    policy = await created(admin, body("P", targets={"computer_names": ["WS-042"], "computer_ids": [first]}))
    assert policy["targets"]["computer_ids"] == [first]
    assert policy["targets"]["computer_names"] == []
    answer = await admin.post("/policies", json=body("Q", targets={"computer_names": ["ws-042", "nobody", "twin"]}))
    errors = pointers(answer)
    assert set(errors) == {"/targets/computer_names/1", "/targets/computer_names/2"}
    assert "2 computers are called twin" in errors["/targets/computer_names/2"]


async def test_an_unknown_computer_is_refused_and_one_removed_later_is_kept(
    admin: httpx.AsyncClient, agents: Any, body: Body
) -> None:
    """PUT takes what GET gave, also when a computer has gone meanwhile."""
    computer, stranger = await agents.enrolled(), new_id(agents.house.clock())
    assert set(pointers(await admin.post("/policies", json=body("P", computer, stranger)))) == {
        "/targets/computer_ids/1"
    }
    policy = await created(admin, body("P", computer))
    await agents.removes(computer)
    again = await admin.put(f"/policies/{policy['id']}", json=policy, headers={"If-Match": '"1"'})
    assert again.status_code == 200
    assert set(pointers(await admin.post("/policies", json=body("Q", computer)))) == {"/targets/computer_ids/0"}


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"name": ""}, "/name", "must not be empty"),
    ({"name": "a\nb"}, "/name", "control characters"),
    ({"description": "a\x07"}, "/description", "control characters"),
    ({"targets": {}}, "/targets", "name at least one computer"),
    ({"targets": {"all": True, "computer_names": ["x"]}}, "/targets", "all computers are meant already"),
    ({"targets": {"group_ids": [GROUP]}}, "/targets/group_ids", "not available"),
    ({"targets": {"computer_ids": ["x"]}}, "/targets/computer_ids/0", "is not an id"),
    ({"users": {}}, "/users", "name at least one user"),
    ({"users": {"all": True, "names": ["alice"]}}, "/users", "all users are meant already"),
    ({"users": {"names": ["u"] * 101}}, "/users/names", "at most 100"),
    ({"duration": {"type": "fixed", "minutes": 0}}, "/duration/minutes", "at least 1"),
    ({"duration": {"type": "fixed", "minutes": 43201}}, "/duration/minutes", "at most 43200"),
    ({"duration": {"type": "fixed", "minutes": 1.5}}, "/duration/minutes", "whole number"),
    (
        {"duration": {"type": "fixed", "minutes": 1, "take_up_until": "2026-11-03T09:00:00Z"}},
        "/duration/take_up_until",
        "on_first_use",
    ),
    (
        {"duration": {"type": "window", "from": "2026-11-03T09:00:00Z", "until": "2026-11-03T09:00:00Z"}},
        "/duration/until",
        "after `from`",
    ),
    (
        {"duration": {"type": "window", "from": "2026-11-03T09:00:00", "until": "soon"}},
        "/duration/from",
        "time zone",
    ),
    ({"duration": {"type": "window", "recurrence": {"days": ["mon"]}}}, "/duration", "not available yet"),
    ({"duration": {"type": "for ever"}}, "/duration", "type"),
    ({"access": {"type": "all_allowed"}}, "/access", "not available yet"),
    ({"access": {"type": "specific", "rules": []}}, "/access/rules", "at least one rule"),
    (
        {
            "access": {
                "type": "specific",
                "rules": [{"type": "vendor", "vendor": "v"}],
                "application_group_ids": [GROUP],
            }
        },
        "/access/application_group_ids",
        "not available yet",
    ),
    (
        {"access": {"type": "specific", "rules": [{"type": "vendor", "vendor": "v", "arguments": ["\0"]}]}},
        "/access/rules",
        "NUL",
    ),
    (
        {"access": {"type": "specific", "rules": [{"type": "folder_path", "path": "bin"}]}},
        "/access/rules/0/path",
        "absolute",
    ),
    ({"child_processes": "some"}, "/child_processes", "must be"),
    ({"run_as": "postgres"}, "/run_as", "not available yet"),
    ({"max_uses": 0}, "/max_uses", "at least 1"),
    (
        {"external_refs": [{"system": "itsm", "number": "1", "url": "javascript:x"}]},
        "/external_refs/0/url",
        "begin with http",
    ),
    ({"ticket_require": True}, "/ticket_require", "not known"),
]


async def test_what_is_wrong_is_named_at_its_place(admin: httpx.AsyncClient, body: Body) -> None:
    """Also what is not available yet, in one sentence."""
    for change, pointer, says in WRONG:
        errors = pointers(await admin.post("/policies", json=body("P") | change))
        assert says in errors.get(pointer, ""), (change, errors)
    assert (await admin.get("/policies")).json()["items"] == []


async def test_rules_have_limits(admin: httpx.AsyncClient, body: Body) -> None:
    """101 are too many; 100 that no computer's document could hold are too large."""

    def access(*rules: dict[str, Any]) -> dict[str, Any]:
        return {"type": "specific", "rules": list(rules)}

    one = {"type": "vendor", "vendor": "v"}
    many = await admin.post("/policies", json=body("P", access=access(*[one] * 101)))
    assert (many.status_code, many.json()["type"]) == (422, "/problems/too-many-rules")
    assert set(pointers(many)) == {"/access/rules"}
    large = one | {"arguments": ["a" * 1000] * 140}
    assert "128 KiB" in pointers(await admin.post("/policies", json=body("P", access=access(large))))["/access/rules"]
    await created(admin, body("P", access=access(*[one] * 100)))


async def test_names_are_unique_without_case(admin: httpx.AsyncClient, body: Body) -> None:
    """Whoever saves second is told; the name of a deleted policy is free again."""
    first, other = await created(admin, body("Printers")), await created(admin, body("Other"))
    taken = await admin.post("/policies", json=body("PRINTERS"))
    assert (taken.status_code, taken.json()["type"]) == (409, "/problems/name-taken")
    renamed = await admin.put(f"/policies/{other['id']}", json=other | {"name": "printerS"}, headers={"If-Match": "*"})
    assert renamed.status_code == 409
    await admin.delete(f"/policies/{first['id']}", headers={"If-Match": '"1"'})
    await created(admin, body("printers"))
    race = await asyncio.gather(*(admin.post("/policies", json=body("Race")) for _ in range(4)))
    assert sorted(answer.status_code for answer in race) == [201, 409, 409, 409]


async def test_a_deploy_reaches_its_computers_and_a_withdrawal_leaves_them(
    house: TestHouse, admin: httpx.AsyncClient, agents: Any, body: Body
) -> None:
    """The assignments say it, with the revision's terms; the same again changes nothing."""
    computer = await agents.enrolled()
    policy = await created(admin, body("P", computer))
    first = await deployed(admin, policy)
    assert (first["status"], first["deployed_revision"], first["version"]) == ("deployed", 1, 2)
    assert first["deployed_at"] == "2026-11-02T09:00:00.000000Z"
    assert await deployed(admin, policy, revision=1) == first
    withdrawn = (await admin.post(f"/policies/{policy['id']}/withdraw")).json()
    assert (withdrawn["status"], withdrawn["deployed_revision"], withdrawn["version"]) == ("withdrawn", None, 3)
    assert (await admin.post(f"/policies/{policy['id']}/withdraw")).json() == withdrawn
    await deployed(admin, policy)
    assert await assignments(house) == [
        [(computer, 1, "present")],
        [(computer, 2, "absent")],
        [(computer, 3, "present")],
    ]
    event = (await house.events("assignments.changed"))[0]
    assert event.subject == event.data.entity["policy_id"] == policy["id"]
    assert event.data.entity["terms"]["policy_name"] == "P"
    assert event.data.entity["terms"]["duration"]["minutes"] == 30
    changes = [event.change for event in await house.events() if event.entity_kind == "policy"]
    assert changes == ["policy.created", "policy.deployed", "policy.withdrawn", "policy.deployed"]


async def test_a_new_revision_waits_for_its_deploy(
    house: TestHouse, admin: httpx.AsyncClient, agents: Any, body: Body
) -> None:
    """What is deployed stays; then computers that were dropped lose it, and the others get it anew."""
    kept, dropped, added = [await agents.enrolled(name) for name in ("kept", "dropped", "added")]
    policy = await deployed(admin, await created(admin, body("P", kept, dropped)))
    edited = policy | {"targets": policy["targets"] | {"computer_ids": [kept, added]}}
    answer = await admin.put(f"/policies/{policy['id']}", json=edited, headers={"If-Match": '"2"'})
    saved = answer.json()
    assert answer.headers["etag"] == '"3"'
    assert (saved["status"], saved["revision"], saved["deployed_revision"]) == ("deployed", 2, 1)
    assert len(await assignments(house)) == 1
    await deployed(admin, policy)
    assert sorted((await assignments(house))[1]) == sorted(
        [(kept, 2, "present"), (added, 1, "present"), (dropped, 2, "absent")]
    )
    older = await deployed(admin, policy, revision=1)
    assert (older["revision"], older["deployed_revision"]) == (2, 1)
    assert sorted((await assignments(house))[2]) == sorted(
        [(kept, 3, "present"), (added, 2, "absent"), (dropped, 3, "present")]
    )


async def test_a_policy_for_all_reaches_who_enrols_later(
    house: TestHouse, admin: httpx.AsyncClient, agents: Any, body: Body
) -> None:
    """With the time of the deploy, so that a fixed time counts from there; not once it is withdrawn."""
    before = await agents.enrolled("before")
    policy = await deployed(admin, await created(admin, body("P")))
    house.clock.advance(timedelta(minutes=5))
    later = await agents.enrolled("later")
    assert await assignments(house) == [[(before, 1, "present")], [(later, 1, "present")]]
    event = (await house.events("assignments.changed"))[1]
    assert event.data.entity["deployed_at"] == policy["deployed_at"]
    await admin.post(f"/policies/{policy['id']}/withdraw")
    await agents.enrolled("too late")
    assert sorted((await assignments(house))[2]) == sorted([(before, 2, "absent"), (later, 2, "absent")])
    assert len(await assignments(house)) == 3


async def test_nobody_falls_between_a_deploy_and_an_enrolment(
    house: TestHouse, admin: httpx.AsyncClient, agents: Any, body: Body
) -> None:
    """A deploy is held when it knows which computers there are; one that enrols then gets the policy all the same."""
    before, token = await agents.enrolled("before"), await agents.token()
    policy = await created(admin, body("P"))

    async with house.house.database.begin() as holding:
        await holding.exec_driver_sql("LOCK TABLE assignments IN EXCLUSIVE MODE")  # may be read, not written
        deploying = asyncio.create_task(deployed(admin, policy))
        await waiting(house, 1)
        enrolling = asyncio.create_task(agents.enrols(agents.machine("during"), token))
        await waiting(house, 2, unless=enrolling)

    await deploying
    during = (await enrolling).json()["computer_id"]
    assert await assignments(house) == [[(before, 1, "present")], [(during, 1, "present")]]


async def waiting(house: TestHouse, count: int, unless: asyncio.Task[Any] | None = None) -> None:
    """Return when so many transactions wait for a lock, or when `unless` ended without waiting."""
    query = (
        "SELECT count(DISTINCT pid) FROM pg_locks JOIN pg_stat_activity USING (pid) "
        "WHERE NOT granted AND datname = current_database()"
    )
    async with asyncio.timeout(10):
        while not (unless and unless.done()):
            async with house.house.database.begin() as connection:  # a new one each time: it shows one moment
                if (await connection.exec_driver_sql(query)).scalar_one() >= count:
                    return
            await asyncio.sleep(0.01)


async def test_many_assignments_come_in_pages(
    house: TestHouse, admin: httpx.AsyncClient, agents: Any, body: Body
) -> None:
    """At most 500 in each event, so that no event outgrows the bus."""
    computer = await agents.enrolled()
    async with house.house.database.begin() as connection:
        await connection.exec_driver_sql(
            "INSERT INTO computers SELECT (jsonb_populate_record(c, jsonb_build_object("
            "'id', gen_random_uuid()::text, 'machine_id', n::text, 'keeper_public_key', n::text))).* "
            f"FROM computers c, generate_series(1, 1000) n WHERE id = '{computer}'"
        )
    await deployed(admin, await created(admin, body("P")))
    pages = [event.data.entity for event in await house.events("assignments.changed")]
    assert [(page["page"], page["pages"], len(page["assignments"])) for page in pages] == [
        (1, 3, 500),
        (2, 3, 500),
        (3, 3, 1),
    ]


async def test_only_what_is_not_in_force_is_deleted(
    house: TestHouse, admin: httpx.AsyncClient, agents: Any, body: Body
) -> None:
    """A deleted policy is out of sight; what it said stays."""
    policy = await deployed(admin, await created(admin, body("P")))
    url = f"/policies/{policy['id']}"
    refused = await admin.delete(url, headers={"If-Match": "*"})
    assert (refused.status_code, refused.json()["type"]) == (409, "/problems/policy-deployed")
    await admin.post(f"{url}/withdraw")
    stale = await admin.delete(url, headers={"If-Match": '"2"'})
    assert (stale.status_code, (await admin.delete(url)).status_code) == (412, 428)
    assert (await admin.delete(url, headers={"If-Match": '"3"'})).status_code == 204
    assert (await house.events())[-1].data.entity["status"] == "deleted"
    for answer in (
        await admin.get(url),
        await admin.delete(url, headers={"If-Match": "*"}),
        await admin.put(url, json=policy, headers={"If-Match": "*"}),
        await admin.post(f"{url}/deploy"),
        await admin.post(f"{url}/withdraw"),
    ):
        assert (answer.status_code, answer.json()["type"]) == (404, "/problems/not-found")
    assert (await admin.get("/policies")).json()["items"] == []
    assert len((await admin.get(f"{url}/revisions")).json()["items"]) == 1


async def test_refusals_of_deploy_and_withdraw(house: TestHouse, admin: httpx.AsyncClient, body: Body) -> None:
    """A draft cannot be withdrawn; a revision that is not there is named; a stranger is not found."""
    policy = await created(admin, body("P"))
    url = f"/policies/{policy['id']}"
    draft = await admin.post(f"{url}/withdraw")
    assert (draft.status_code, draft.json()["type"]) == (409, "/problems/not-deployed")
    assert "the newest is 1" in pointers(await admin.post(f"{url}/deploy", json={"revision": 2}))["/revision"]
    assert "/revision" in pointers(await admin.post(f"{url}/deploy", json={"revision": 0}))
    for strange in (new_id(house.clock()), "x", "%00"):
        assert (await admin.post(f"/policies/{strange}/deploy")).status_code == 404
        assert (await admin.get(f"/policies/{strange}/revisions")).status_code == 404


async def test_revisions_keep_body_author_and_time(house: TestHouse, admin: httpx.AsyncClient, body: Body) -> None:
    """The newest first, in pages."""
    policy = await created(admin, body("P"))
    async with house.client(person("Bea", "administrator")) as bea:
        for number in range(2, 5):
            house.clock.advance(timedelta(minutes=1))
            changed = policy | {"description": f"edition {number}"}
            await bea.put(f"/policies/{policy['id']}", json=changed, headers={"If-Match": "*"})
    page = (await admin.get(f"/policies/{policy['id']}/revisions?limit=3")).json()
    assert [(one["revision"], one["author"]["name"]) for one in page["items"]] == [(4, "Bea"), (3, "Bea"), (2, "Bea")]
    assert page["items"][0]["body"]["description"] == "edition 4"
    assert page["items"][0]["created_at"] == "2026-11-02T09:03:00.000000Z"
    rest = await admin.get(f"/policies/{policy['id']}/revisions", params={"cursor": page["next_cursor"]})
    assert [(one["revision"], one["author"]["name"]) for one in rest.json()["items"]] == [(1, "Ada")]
    assert rest.json()["next_cursor"] is None


async def test_filters_and_pages(house: TestHouse, admin: httpx.AsyncClient, agents: Any, body: Body) -> None:
    """By status, computer, user and words; those for all belong to each; pages neither repeat nor skip."""
    one, two = await agents.enrolled("one"), await agents.enrolled("two")
    await created(admin, body("First", one))
    await created(admin, body("Second 100%", two, users={"names": ["bob"]}, description="for printers"))
    third = await created(admin, body("Third", users={"all": True}))
    await deployed(admin, third)

    async def names(**params: Any) -> list[str]:
        answer = await admin.get("/policies", params=params)
        assert answer.status_code == 200, answer.text
        return sorted(item["name"] for item in answer.json()["items"])

    assert await names(status="deployed") == ["Third"]
    assert await names(status="draft") == ["First", "Second 100%"]
    assert await names(computer_id=one) == ["First", "Third"]
    assert await names(user="bob") == ["Second 100%", "Third"]
    assert await names(user="Bob") == ["Third"]
    assert await names(q="PRINT") == ["Second 100%"]
    assert await names(q="100%") == ["Second 100%"]
    assert await names(q="%") == ["Second 100%"]
    assert await names(q="\\") == []
    assert (await admin.get("/policies", params={"q": "a\0"})).status_code == 422
    walked, params = [], {"limit": "1"}
    while True:
        page = (await admin.get("/policies", params=params)).json()
        walked += [item["name"] for item in page["items"]]
        if not page["next_cursor"]:
            break
        params["cursor"] = page["next_cursor"]
    assert sorted(walked) == ["First", "Second 100%", "Third"]


async def test_what_changed_since(house: TestHouse, admin: httpx.AsyncClient, body: Body) -> None:
    """`updated_after` shows the oldest change first, and nothing that did not change."""
    house.clock.at -= timedelta(days=3650)  # what the database's own clock takes for settled must be past
    first, _ = await created(admin, body("First")), await created(admin, body("Second"))
    since = first["updated_at"]
    house.clock.advance(timedelta(seconds=1))
    await deployed(admin, first)
    house.clock.advance(timedelta(seconds=1))
    await created(admin, body("Third"))
    page = (await admin.get("/policies", params={"updated_after": since, "limit": 1})).json()
    assert [item["name"] for item in page["items"]] == ["First"]
    rest = await admin.get("/policies", params={"updated_after": since, "cursor": page["next_cursor"]})
    assert [item["name"] for item in rest.json()["items"]] == ["Third"]


async def test_who_may(house: TestHouse, body: Body) -> None:
    """Administrators write; approvers and auditors read; requesters see no policies."""
    async with house.client() as admin:
        policy = await created(admin, body("P"))
    url = f"/policies/{policy['id']}"
    for role, reads in (("approver", 200), ("auditor", 200), ("requester", 403)):
        async with house.client(person("Bea", role)) as caller:
            for path in ("/policies", url, f"{url}/revisions"):
                assert (await caller.get(path)).status_code == reads
            for answer in (
                await caller.post("/policies", json=body("Q")),
                await caller.put(url, json=policy, headers={"If-Match": "*"}),
                await caller.delete(url, headers={"If-Match": "*"}),
                await caller.post(f"{url}/deploy"),
                await caller.post(f"{url}/withdraw"),
            ):
                assert (answer.status_code, answer.json()["type"]) == (403, "/problems/not-permitted")


async def test_what_is_left_for_later_is_not_there(house: TestHouse, admin: httpx.AsyncClient) -> None:
    """Neither answered nor promised."""
    for path in ("/settings/policies", "/computer-groups", "/application-groups", "/policies/x/deployment"):
        assert (await admin.get(path)).status_code == 404
    assert (await admin.post("/policies/x/review", json={"note": "ok"})).status_code == 404
