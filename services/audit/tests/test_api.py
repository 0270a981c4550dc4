"""The ledger over HTTP: searching, paging, whose events one sees, proofs, the report, the export."""

import csv
import io
from base64 import b64decode
from datetime import timedelta
from typing import Any

import pytest

from sojourn_audit import answers
from sojourn_shared.contracts.events import Links
from sojourn_shared.ids import new_id
from sojourn_shared.ledger import leaf_hash, open_checkpoint, verify_consistency, verify_inclusion, verify_lines
from sojourn_shared.service.testing import person

from .conftest import ADA, SYSTEM, Audit

BOB = person("Bob", "requester", os_users=("bob", "CORP\\bob"))
AUDITOR = person("Olga", "auditor")
APPROVER = person("Carl", "approver")
POLICY = "01930000-0000-7000-8000-000000000111"
HTOP = {"path": "/usr/bin/htop", "executable": "htop"}


async def found(audit: Audit, query: str, caller: Any = AUDITOR) -> list[int]:
    """The `seq` of each event that the query finds, in its order."""
    async with audit.house.client(caller) as client:
        answer = await client.get(f"/audit/events{query}")
    assert answer.status_code == 200, answer.text
    return [event["seq"] for event in answer.json()["items"]]


async def story(audit: Audit) -> dict[str, str]:
    """A policy for bob and alice, its grant, a run; a request by bob; a setting. Returns the ids by name."""
    ids = {name: new_id(audit.house.clock()) for name in ("computer", "grant", "request")}
    of_policy = Links(policy_id=POLICY)
    of_grant = Links(policy_id=POLICY, grant_id=ids["grant"], computer_id=ids["computer"])
    of_run = of_grant.model_copy(update={"user": "alice"})
    of_bob = Links(request_id=ids["request"], computer_id=ids["computer"], user="bob")
    alice = {"names": ["alice"]}
    await audit.hears("policy.created", id=POLICY, name="Drivers", links=of_policy)
    await audit.hears("policy.deployed", id=POLICY, name="Drivers", links=of_policy)
    await audit.hears("grant.activated", links=of_grant, users=alice, actor=SYSTEM, service="expiry")
    await audit.hears("elevation.started", links=of_run, application=HTOP, actor=SYSTEM, service="expiry")
    await audit.hears("request.submitted", links=of_bob, application=HTOP, actor=SYSTEM, service="requests")
    await audit.hears("request.approved", links=of_bob, application=HTOP, service="requests")
    await audit.hears("settings.changed", id="requests", service="requests")
    await audit.hears("grant.revoked", links=of_grant, users=alice, service="expiry")
    await audit.sequences()
    return ids


async def test_an_event_comes_back_as_the_contract_says(audit: Audit) -> None:
    """With its sentence, its links and the hash of its line."""
    ids = await story(audit)
    async with audit.house.client(AUDITOR) as client:
        event = (await client.get("/audit/events/5")).json()
    line = (await audit.lines())[5]
    assert b64decode(event.pop("leaf_hash")) == leaf_hash(line)
    assert event["summary"] == "Ada approved bob's request for htop"
    assert event["actor"] == {"kind": "account", "id": ADA.id, "name": "Ada"}
    assert (event["seq"], event["type"], event["source"]) == (5, "request.approved", "requests")
    links = {"policy_id": None, "request_id": ids["request"], "grant_id": None, "computer_id": ids["computer"]}
    assert {name: event[name] for name in links} == links
    assert event["user"] == "bob"
    assert event["data"]["application"] == HTOP
    assert event["time"].endswith("Z")


async def test_filters_find_what_is_asked(audit: Audit) -> None:
    """Each one alone, and together; the newest first."""
    ids = await story(audit)
    assert await found(audit, "") == [7, 6, 5, 4, 3, 2, 1, 0]
    assert await found(audit, f"?policy_id={POLICY}") == [7, 3, 2, 1, 0]
    assert await found(audit, f"?request_id={ids['request']}") == [5, 4]
    assert await found(audit, f"?grant_id={ids['grant']}") == [7, 3, 2]
    assert await found(audit, f"?computer_id={ids['computer']}") == [7, 5, 4, 3, 2]
    assert await found(audit, "?user=alice") == [3]
    assert await found(audit, "?actor=Ada") == await found(audit, f"?actor={ADA.id}") == [7, 6, 5, 1, 0]
    assert await found(audit, "?type=grant.revoked") == [7]
    assert await found(audit, "?type=grant.*") == [7, 2]
    assert await found(audit, "?type=g%25.*") == []
    assert await found(audit, f"?policy_id={POLICY}&actor=Ada&type=policy.*") == [1, 0]
    assert await found(audit, "?after=4") == [5, 6, 7]
    assert await found(audit, "?after=7") == []
    events = await audit.entries()
    assert await found(audit, f"?from={events[2]['time']}&until={events[4]['time']}") == [3, 2]
    assert await found(audit, f"?updated_after={events[0]['recorded_at']}") == []


@pytest.mark.parametrize("start", ["?limit=3", "?limit=3&after=-1"], ids=["newest first", "in order"])
async def test_pages_hold_still_while_the_ledger_grows(audit: Audit, start: str) -> None:
    """Each entry once, whatever is appended meanwhile."""
    await audit.records(8)
    async with audit.house.client(AUDITOR) as client:
        page = (await client.get(f"/audit/events{start}")).json()
        seen = [event["seq"] for event in page["items"]]
        await audit.records(1)
        while cursor := page["next_cursor"]:
            page = (await client.get(f"/audit/events{start}&cursor={cursor}")).json()
            seen += [event["seq"] for event in page["items"]]
    assert seen in ([7, 6, 5, 4, 3, 2, 1, 0], list(range(9)))


async def test_what_was_recorded_since_comes_in_order(audit: Audit) -> None:
    """`updated_after` the last `recorded_at` that was seen misses nothing and repeats nothing."""
    await audit.records(3)
    last = (await audit.entries())[-1]["recorded_at"]
    audit.house.clock.advance(timedelta(minutes=-5))
    await audit.records(2)
    assert await found(audit, f"?updated_after={last}") == [3, 4]


async def test_a_requester_sees_their_own_only(audit: Audit) -> None:
    """What concerns one of their OS users, and what they did themselves; all else is not there for them."""
    await story(audit)
    bob = ADA.model_copy(update={"id": BOB.id, "name": "Bob"})
    await audit.hears("session.signed_in", id="s1", actor=bob, service="gateway")
    await audit.sequences()
    assert await found(audit, "", BOB) == [8, 5, 4]
    assert await found(audit, "?user=alice", BOB) == []
    assert await found(audit, "?after=-1", BOB) == [4, 5, 8]
    assert await found(audit, "", person("Eve", "requester", os_users=None)) == []
    assert await found(audit, "?after=-1", APPROVER) == list(range(9))
    async with audit.house.client(BOB) as client:
        statuses = {
            path: (await client.get(f"/audit/{path}")).status_code
            for path in ("events/4", "events/3", "events/99", f"policies/{POLICY}", "export", "checkpoint", "keys")
        }
    assert statuses == {
        "events/4": 200,
        "events/3": 404,
        "events/99": 404,
        f"policies/{POLICY}": 403,
        "export": 403,
        "checkpoint": 200,
        "keys": 200,
    }


async def test_the_report_tells_the_whole_story_of_a_policy(audit: Audit) -> None:
    """Totals, and the time line by the time at which things happened, page by page."""
    await story(audit)
    async with audit.house.client(AUDITOR) as client:
        report = (await client.get(f"/audit/policies/{POLICY}?limit=3")).json()
        rest = (await client.get(f"/audit/policies/{POLICY}?limit=3&cursor={report['next_cursor']}")).json()
        unknown = await client.get(f"/audit/policies/{new_id(audit.house.clock())}")
    assert report["name"] == "Drivers"
    assert report["totals"] | {"first_at": "", "last_at": ""} == {
        "events": 5,
        "first_at": "",
        "last_at": "",
        "grants": 1,
        "computers": 1,
        "elevations": 1,
        "users": ["alice"],
        "by_type": {
            "elevation.started": 1,
            "grant.activated": 1,
            "grant.revoked": 1,
            "policy.created": 1,
            "policy.deployed": 1,
        },
    }
    assert [event["type"] for event in report["timeline"] + rest["timeline"]] == [
        "policy.created",
        "policy.deployed",
        "grant.activated",
        "elevation.started",
        "grant.revoked",
    ]
    assert rest["next_cursor"] is None
    assert (unknown.status_code, unknown.json()["type"]) == (404, "/problems/not-found")


async def test_the_time_line_goes_by_time_not_by_arrival(audit: Audit) -> None:
    """A report that a computer could send only a day later stands where it happened."""
    links = Links(policy_id=POLICY)
    await audit.hears("policy.deployed", links=links)
    late = audit.house.clock()
    await audit.hears("grant.revoked", links=links, service="expiry")
    audit.house.clock.at = late
    audit.house.clock.advance(timedelta(milliseconds=-500))
    await audit.hears("grant.applied", links=links, service="expiry")
    await audit.sequences()
    async with audit.house.client(AUDITOR) as client:
        report = (await client.get(f"/audit/policies/{POLICY}")).json()
    assert [event["type"] for event in report["timeline"]] == ["policy.deployed", "grant.applied", "grant.revoked"]


async def test_the_report_as_csv_holds_no_formula(audit: Audit) -> None:
    """One row for each event; what a user wrote is text, whatever it begins with."""
    await audit.hears("elevation.refused", links=Links(policy_id=POLICY, user='=HYPERLINK("x")'), service="expiry")
    await audit.sequences()
    async with audit.house.client(AUDITOR) as client:
        answer = await client.get(f"/audit/policies/{POLICY}", headers={"Accept": "text/csv"})
    assert answer.headers["content-type"].startswith("text/csv")
    (row,) = csv.DictReader(io.StringIO(answer.text))
    assert (row["seq"], row["type"], row["user"]) == ("0", "elevation.refused", '\'=HYPERLINK("x")')


async def test_the_export_is_what_was_hashed(audit: Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than one piece of reading; verified with the checkpoint and the public key alone."""
    monkeypatch.setattr(answers, "PIECE", 5)
    for count in (3, 14):
        await audit.records(count)
    assert verify_lines(await audit.lines(), await audit.checkpoint()) == 17


async def test_other_formats_are_refused_with_a_sentence(audit: Audit) -> None:
    """Those of the contract that are not built yet, and those that it does not know."""
    async with audit.house.client() as client:
        for asked in ("csv", "ocsf", "xml"):
            answer = await client.get(f"/audit/export?format={asked}")
            assert (answer.status_code, answer.json()["type"]) == (422, "/problems/invalid-body")
        assert "not available yet" in (await client.get("/audit/export?format=csv")).json()["detail"]


async def test_proofs_hold_against_the_signed_checkpoint(audit: Audit) -> None:
    """Inclusion of each entry, and consistency from every earlier checkpoint to the newest."""
    kept = []
    for size in (1, 3, 2, 7):
        await audit.records(size)
        kept.append(await audit.checkpoint())
    lines = await audit.lines()
    key = audit.house.house.parts.signer.key
    async with audit.house.client(AUDITOR) as client:
        for seq, line in enumerate(lines):
            proof = (await client.get(f"/audit/proofs/inclusion?seq={seq}")).json()
            signed = open_checkpoint(proof["checkpoint"], [key])
            assert (proof["seq"], proof["tree_size"], signed.size) == (seq, 13, 13)
            hashes = [b64decode(text) for text in proof["hashes"]]
            verify_inclusion(leaf_hash(line), seq, 13, hashes, signed.root)
        for old in kept:
            for new in kept[kept.index(old) :]:
                proof = (await client.get(f"/audit/proofs/consistency?from={old.size}&to={new.size}")).json()
                assert (proof["from"], proof["to"]) == (old.size, new.size)
                assert open_checkpoint(proof["checkpoint"], [key]) == new
                verify_consistency(old, new, [b64decode(text) for text in proof["hashes"]])
        newest = (await client.get("/audit/proofs/consistency?from=1")).json()
    assert newest["to"] == 13


@pytest.mark.parametrize(
    ("query", "status", "says"),
    [
        ("inclusion?seq=3", 404, "the ledger has 3 entries"),
        ("inclusion?seq=-1", 422, "seq"),
        ("inclusion", 422, "seq"),
        ("inclusion?seq=99999999999999999999", 422, "seq"),
        ("consistency?from=0&to=3", 422, "from"),
        ("consistency?from=3&to=1", 422, "from 3 to 1"),
        ("consistency?from=1&to=4", 422, "the ledger has 3 entries"),
        ("consistency?from=1&to=2", 422, "No checkpoint was signed at 2 entries. The newest is at 3."),
    ],
)
async def test_proofs_of_what_never_was_are_refused(audit: Audit, query: str, status: int, says: str) -> None:
    """With what there is instead; a tree that was not signed at its time is not signed later."""
    await audit.records(1)
    await audit.records(2)
    async with audit.house.client(AUDITOR) as client:
        answer = await client.get(f"/audit/proofs/{query}")
    assert answer.status_code == status
    assert says in answer.json()["detail"]


async def test_an_empty_ledger_is_a_ledger(audit: Audit) -> None:
    """Its checkpoint is signed too; there is nothing to prove in it."""
    assert verify_lines(await audit.lines(), await audit.checkpoint()) == 0
    assert await found(audit, "") == []


@pytest.mark.parametrize(
    "path",
    [
        "events",
        "events/0",
        "stream",
        f"policies/{POLICY}",
        "checkpoint",
        "keys",
        "proofs/inclusion?seq=0",
        "proofs/consistency?from=1&to=1",
        "export",
    ],
)
async def test_nothing_is_told_without_the_gateways_token(audit: Audit, path: str) -> None:
    """Every route answers 401."""
    async with audit.house.client(None) as nobody:
        answer = await nobody.get(f"/audit/{path}")
    assert (answer.status_code, answer.json()["type"]) == (401, "/problems/unauthenticated")


async def test_bad_questions_are_answered_with_what_is_wrong(audit: Audit) -> None:
    """Times without a zone, numbers that are none, cursors of another list."""
    async with audit.house.client() as client:
        for query in ("from=yesterday", "from=2026-01-01T00:00:00", "after=x", "limit=0", "cursor=eA"):
            answer = await client.get(f"/audit/events?{query}")
            assert (answer.status_code, answer.json()["type"]) == (422, "/problems/invalid-body"), query
