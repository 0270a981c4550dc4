"""Requests over HTTP, on a real PostgreSQL."""

from datetime import timedelta
from typing import Any

from sojourn_shared.ids import new_id

UNKNOWN = "01930000-0000-7000-8000-00000000dead"


def code(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["type"].rpartition("/")[2]


async def test_the_migrated_schema_is_the_one_in_code(house: Any) -> None:
    """A table changed in code without a migration is noticed here."""
    assert await house.test.schema_differences() == []


async def test_a_request_is_asked_and_approved(house: Any) -> None:
    """The approval answers the grant's id, the rule that pins file and arguments, and until when it can be used."""
    asked = await house.alice.asks("alice")
    assert asked.status_code == 201, asked.text
    shown = asked.json()
    assert (shown["status"], shown["version"], shown["requested_by"]) == ("pending", 1, house.alice.id)
    assert shown["computer_name"] == "pc-7"
    assert asked.headers["location"] == f"/api/v1/requests/{shown['id']}"
    approved = await house.bob.approves(shown["id"], note="fine", duration_minutes=10)
    assert approved.status_code == 200, approved.text
    request = approved.json()
    assert (request["status"], request["grant_id"] is not None) == ("approved", True)
    assert request["decision"]["rules"] == [
        {"type": "file_hash", "sha256": "ab" * 32, "executable": None, "arguments": ["-d", "5"]}
    ]
    assert (request["decision"]["by_name"], request["decision"]["duration_minutes"]) == ("bob", 10)
    assert [one["seat"] for one in request["approvals"]] == ["approver"]
    assert request["take_up_until"] == "2026-11-02T17:00:00.000000Z"
    assert await house.events_of(request["id"]) == ["request.submitted", "request.approved"]
    (event,) = await house.test.events("request.approved")
    assert event.data.links.grant_id == event.data.entity["grant_id"] == request["grant_id"]
    assert (event.data.actor.name, event.data.links.user) == ("bob", "alice")


async def test_a_body_is_not_needed_to_approve_what_was_asked(house: Any) -> None:
    """The terms are what was asked; the same again is 200 and says nothing new."""
    asked = (await house.alice.asks("alice")).json()
    async with house.client(house.bob.caller) as bob:
        first = await bob.post(f"/requests/{asked['id']}/approve")
    again = await house.bob.approves(asked["id"])
    assert (first.status_code, again.status_code) == (200, 200)
    assert first.json()["grant_id"] == again.json()["grant_id"]
    assert len(await house.events_of(asked["id"])) == 2


async def test_another_decision_on_what_is_decided_names_who_and_when(house: Any) -> None:
    """By another, or another one by the same."""
    asked = (await house.alice.asks("alice")).json()
    await house.bob.declines(asked["id"], "use the test machine")
    for answer in (await house.carol.approves(asked["id"]), await house.bob.approves(asked["id"])):
        assert code(answer) == (409, "already-decided")
        assert "bob declined it at 2026-11-02 09:00:00 UTC" in answer.json()["detail"]
        assert answer.json()["decided_by"] == house.bob.id
    again = await house.bob.declines(asked["id"], "as I said")
    assert (again.status_code, again.json()["decision"]["note"]) == (200, "use the test machine")


async def test_what_is_cancelled_or_expired_is_not_pending(house: Any) -> None:
    """409, and the sentence says which."""
    cancelled = (await house.alice.asks("alice")).json()
    assert (await house.alice.cancels(cancelled["id"])).json()["closed"]["by_name"] == "alice"
    assert (await house.alice.cancels(cancelled["id"])).status_code == 200
    assert code(await house.bob.approves(cancelled["id"])) == (409, "not-pending")
    late = (await house.alice.asks("alice", minutes=31)).json()
    house.clock.advance(timedelta(minutes=1440))
    answer = await house.bob.approves(late["id"])
    assert code(answer) == (409, "not-pending")
    assert "It expired at 2026-11-03 09:00:00 UTC" in answer.json()["detail"]


async def test_the_same_wish_again_answers_the_request_that_waits(house: Any) -> None:
    """200 and the same id, whatever the reason; other arguments are another request."""
    first = await house.alice.asks("alice")
    again = await house.alice.asks("alice", minutes=5, justification="quickly")
    other = await house.alice.asks("alice", facts={"arguments": ["-d", "6"]})
    assert (first.status_code, again.status_code, other.status_code) == (201, 200, 201)
    assert first.json()["id"] == again.json()["id"] != other.json()["id"]
    assert await house.events_of(first.json()["id"]) == ["request.submitted"]


async def test_a_wish_whose_twin_is_over_is_a_new_request(house: Any) -> None:
    """The old one is expired on the way, if the scheduler did not come by yet."""
    first = (await house.alice.asks("alice")).json()
    house.clock.advance(timedelta(days=2))
    again = await house.alice.asks("alice")
    assert again.status_code == 201
    assert await house.events_of(first["id"]) == ["request.submitted", "request.expired"]


async def test_an_unknown_or_decommissioned_computer_is_refused_at_its_place(house: Any) -> None:
    """422 with a pointer into the body."""
    gone = "01930000-0000-7000-8000-00000000beef"
    await house.hears_computer(gone, status="decommissioned")
    for computer_id in (UNKNOWN, gone):
        answer = await house.alice.asks("alice", computer_id=computer_id)
        assert code(answer) == (422, "invalid-body")
        assert [error["pointer"] for error in answer.json()["errors"]] == ["/computer_id"]


BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"duration_minutes": 481}, "/duration_minutes"),
    ({"duration_minutes": 10**30}, "/duration_minutes"),
    ({"duration_minutes": "30"}, "/duration_minutes"),
    ({"justification": "a\x07b"}, "/justification"),
    ({"justification": "  "}, "/justification"),
    ({"user": ""}, "/user"),
    ({"application": {"path": "htop"}}, "/application/path"),
    ({"application": {"path": "/usr/bin/htop", "arguments": ["\0"]}}, "/application/arguments/0"),
    ({"max_uses": 0}, "/max_uses"),
    ({"appeal_of": UNKNOWN}, "/appeal_of"),
    ({"external_refs": [{"system": "ticket"}]}, "/external_refs/0"),
    ({"surprise": 1}, "/surprise"),
]


async def test_a_bad_field_is_named(house: Any) -> None:
    """422 and a pointer that resolves in what was sent; nothing is stored."""
    for change, pointer in BAD_FIELDS:
        answer = await house.ada.asks("alice", **change)
        assert answer.status_code == 422, answer.text
        assert {error["pointer"] for error in answer.json()["errors"]} == {pointer}
    assert await house.test.events("request.submitted") == []


async def test_what_narrows_the_wish_is_carried_to_the_grant(house: Any) -> None:
    """Start, uses and an end with the application are in the approval's event, where the grant is made from."""
    more = {"not_before": "2026-11-03T09:00:00Z", "max_uses": 2, "ends_with_application": True}
    asked = (await house.alice.asks("alice", **more)).json()
    await house.bob.approves(asked["id"])
    (event,) = await house.test.events("request.approved")
    said = event.data.entity
    assert (said["ends_with_application"], said["decision"]["max_uses"]) == (True, 2)
    assert (said["not_before"], said["take_up_until"]) == (
        "2026-11-03T09:00:00.000000Z",
        "2026-11-03T17:00:00.000000Z",
    )


async def test_control_characters_in_arguments_are_kept(house: Any) -> None:
    """Arguments are data: they are pinned as they are."""
    asked = await house.alice.asks("alice", facts={"arguments": ["a\x1b[31m\n", "ü\u2028"]})
    approved = await house.bob.approves(asked.json()["id"])
    assert approved.json()["decision"]["rules"][0]["arguments"] == ["a\x1b[31m\n", "ü\u2028"]


async def test_people_ask_for_themselves_administrators_for_anybody(house: Any) -> None:
    """A requester's OS users are theirs; an API client needs the right to act for others."""
    tool = await house.moves_in("itsm", "requester", os_users=(), kind="client", owner_id=house.carol.id)
    robot = await house.moves_in("robot", "requester", os_users=(), kind="client", act_for=True)
    assert code(await house.alice.asks("bob")) == (403, "not-permitted")
    assert code(await tool.asks("alice")) == (403, "not-permitted")
    assert (await robot.asks("alice")).status_code == 201
    assert (await house.ada.asks("bob", minutes=31)).json()["requested_by"] == house.ada.id


async def test_a_requester_sees_only_their_own(house: Any) -> None:
    """What they asked for, and what was asked for their OS users; everything else is not there: 404."""
    dora = await house.moves_in("dora", "requester", os_users=("dora",))
    eve = await house.moves_in("eve", "auditor", os_users=())
    hers = (await dora.asks("dora")).json()
    house.clock.advance(timedelta(seconds=1))
    for_her = (await house.ada.asks("dora", minutes=31, facts={"arguments": []})).json()
    other = (await house.alice.asks("alice")).json()
    seen = [one["id"] for one in (await dora.gets("/requests")).json()["items"]]
    assert seen == [for_her["id"], hers["id"]]
    assert code(await dora.sees(other["id"])) == (404, "not-found")
    assert code(await dora.cancels(other["id"])) == (404, "not-found")
    assert (await eve.sees(other["id"])).status_code == 200
    assert len((await eve.gets("/requests")).json()["items"]) == 3
    assert code(await eve.approves(other["id"])) == (403, "not-permitted")
    assert code(await eve.cancels(other["id"])) == (403, "not-permitted")
    assert code(await house.bob.cancels(other["id"])) == (403, "not-permitted")
    assert (await house.ada.cancels(other["id"])).status_code == 200


async def test_who_is_limited_to_computer_groups_sees_nothing_of_others(house: Any) -> None:
    """No computer is in a group yet: what nobody put into sight stays out of it."""
    other = (await house.alice.asks("alice")).json()
    greg = await house.moves_in("greg", "approver", os_users=("greg",), computer_group_ids=("g1",))
    assert (await greg.gets("/requests")).json()["items"] == []
    assert code(await greg.approves(other["id"])) == (404, "not-found")


async def test_lists_are_filtered(house: Any) -> None:
    """By status, computer, user, ticket, and a part of what a person would search for."""
    with_ticket = {"external_refs": [{"system": "ticket", "number": "INC7"}, {"system": "cmdb", "number": "CI9"}]}
    one = (await house.alice.asks("alice", **with_ticket)).json()["id"]
    house.clock.advance(timedelta(seconds=1))
    two = (await house.ada.asks("bob", justification="100% sure", facts={"path": "/opt/tool_x/run"})).json()["id"]
    await house.bob.declines(one)

    async def found(**query: Any) -> list[str]:
        return [item["id"] for item in (await house.ada.gets("/requests", **query)).json()["items"]]

    assert await found(status="declined") == [one]
    assert await found(user="bob") == [two]
    assert await found(ticket="INC7") == [one]
    assert await found(ticket="CI9") == []
    assert await found(computer_id=UNKNOWN) == []
    assert await found(q="PC-7") == [two, one]
    assert await found(q="TOOL_X") == [two]
    assert await found(q="100%") == [two]
    assert await found(q="_") == [two]
    assert await found(q="ci9") == [one]
    assert (await house.ada.gets("/requests", status="lost")).status_code == 422


async def test_a_poller_by_change_misses_nothing(house: Any) -> None:
    """Ordered by change; a page ends where the next begins."""
    ids = []
    for minutes in (10, 11, 12):
        ids.append((await house.alice.asks("alice", minutes=minutes, facts={"arguments": [str(minutes)]})).json()["id"])
        house.clock.advance(timedelta(seconds=1))
    await house.bob.approves(ids[0])
    seen, query = [], {"updated_after": "2026-11-02T08:00:00Z", "limit": 2}
    while True:
        page = (await house.ada.gets("/requests", **query)).json()
        seen += [item["id"] for item in page["items"]]
        if page["next_cursor"] is None:
            break
        query["cursor"] = page["next_cursor"]
    assert seen == [ids[1], ids[2], ids[0]]


async def test_an_itsm_tool_writes_its_number_back(house: Any) -> None:
    """Only references change, only against the version that was read."""
    asked = (await house.alice.asks("alice")).json()
    body = {"external_refs": [{"system": "ticket", "number": "INC42", "url": "https://itsm.example/INC42"}]}
    async with house.client(house.bob.caller) as bob, house.client(house.alice.caller) as alice:
        path = f"/requests/{asked['id']}"
        assert code(await bob.patch(path, json=body)) == (428, "precondition-required")
        assert code(await bob.patch(path, json=body, headers={"If-Match": '"9"'})) == (412, "stale-version")
        assert code(await alice.patch(path, json=body, headers={"If-Match": '"1"'})) == (403, "not-permitted")
        assert (await bob.patch(path, json={"status": "approved"}, headers={"If-Match": '"1"'})).status_code == 422
        changed = await bob.patch(path, json=body, headers={"If-Match": '"1"'})
    assert (changed.status_code, changed.headers["etag"]) == (200, '"2"')
    assert changed.json()["external_refs"] == body["external_refs"]
    assert await house.events_of(asked["id"]) == ["request.submitted", "request.changed"]


async def test_nobody_to_decide_is_told_at_once(house: Any) -> None:
    """422 no-approver, when everybody who could decide is the person, or nobody's OS users are stated."""
    for caller in (house.bob.caller, house.carol.caller):
        await house.hears_account(caller, version=2, active=False)
    await house.hears_account(house.ada.caller, version=2, os_users=None)
    answer = await house.alice.asks("alice")
    assert code(answer) == (422, "no-approver")
    await house.hears_account(house.ada.caller, version=3, os_users=["alice"])
    assert code(await house.alice.asks("alice")) == (422, "no-approver")
    await house.hears_account(house.ada.caller, version=4, os_users=["ada"])
    assert (await house.alice.asks("alice")).status_code == 201


async def test_limits_count_what_waits(house: Any) -> None:
    """Five pending requests for a user, then 422; one cancelled makes room."""
    asked = [await house.alice.asks("alice", facts={"arguments": [str(number)]}) for number in range(5)]
    assert code(await house.alice.asks("alice", facts={"arguments": ["5"]})) == (422, "request-limit")
    await house.alice.cancels(asked[0].json()["id"])
    assert (await house.alice.asks("alice", facts={"arguments": ["5"]})).status_code == 201


async def test_an_idempotent_repeat_makes_no_second_request(house: Any) -> None:
    """The first answer again, marked."""
    body = {
        "computer_id": "01930000-0000-7000-8000-0000000000c1",
        "user": "alice",
        "application": {"path": "/usr/bin/top"},
        "duration_minutes": 5,
        "justification": "once",
    }
    first = await house.alice.posts("/requests", body, **{"Idempotency-Key": "k"})
    again = await house.alice.posts("/requests", body, **{"Idempotency-Key": "k"})
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.headers["idempotent-replayed"] == "true"
    assert again.json()["id"] == first.json()["id"]


# --- settings ---------------------------------------------------------------------------------------------------------


async def test_settings_are_read_changed_and_told(house: Any) -> None:
    """PUT takes what GET gave; every computer will hear of it by the event, under the id `requests`."""
    async with house.client(house.ada.caller) as ada:
        read = await ada.get("/settings/requests")
        assert (read.json()["longest_minutes"], read.headers["etag"]) == (480, '"1"')
        path, match = "/settings/requests", {"If-Match": '"1"'}
        assert code(await ada.put(path, json=read.json())) == (428, "precondition-required")
        same = await ada.put(path, json=read.json(), headers=match)
        changed = await ada.put(path, json=read.json() | {"longest_minutes": 60}, headers=match)
        stale = await ada.put(path, json=read.json(), headers=match)
    assert (same.headers["etag"], changed.headers["etag"]) == ('"1"', '"2"')
    assert code(stale) == (412, "stale-version")
    (event,) = await house.test.events("settings.changed")
    assert (event.subject, event.data.entity["longest_minutes"], event.data.entity["version"]) == ("requests", 60, 2)
    assert code(await house.alice.asks("alice", minutes=61)) == (422, "duration-out-of-range")
    assert code(await house.bob.changes(path, enabled=False)) == (403, "not-permitted")


BAD_SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"who": {"computer_group_ids": [UNKNOWN]}}, "/who/computer_group_ids"),
    ({"rules": []}, "/rules"),
    ({"rules": [{}, {}]}, "/rules"),
    ({"rules": [{"seats": [{"id": "a"}, {"id": "b"}]}]}, "/rules/0/seats"),
    ({"rules": [{"seats": [{"count": 2}]}]}, "/rules/0/seats/0/count"),
    ({"rules": [{"seats": [{"roles": ["approver"]}]}]}, "/rules/0/seats/0"),
    ({"rules": [{"seats": [{"account_ids": [UNKNOWN]}]}]}, "/rules/0/seats/0"),
    ({"rules": [{"when": {"application_group_ids": [UNKNOWN]}}]}, "/rules/0/when/application_group_ids"),
    ({"rules": [{"escalate_to": [UNKNOWN]}]}, "/rules/0/escalate_to"),
    ({"default_minutes": 481}, ""),
    ({"ticket": "sometimes"}, "/ticket"),
    ({"ticket_pattern": "("}, "/ticket_pattern"),
    ({"longest_minutes": 43201}, "/longest_minutes"),
    ({"tickets": "required"}, "/tickets"),
]


async def test_settings_that_cannot_be_kept_are_refused(house: Any) -> None:
    """What cannot be used yet is refused with a sentence, never silently ignored."""
    for change, pointer in BAD_SETTINGS:
        answer = await house.ada.changes("/settings/requests", **change)
        assert code(answer) == (422, "invalid-body")
        assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]


async def test_one_rule_with_one_seat_is_kept(house: Any) -> None:
    """The contract's own example is what can be saved now."""
    rule = {
        "when": {
            "computer_group_ids": [],
            "application_group_ids": [],
            "longer_than_minutes": None,
            "hours": None,
        },
        "seats": [{"id": "approver", "roles": ["approver", "administrator"], "account_ids": [], "count": 1}],
        "remind_after_minutes": 15,
        "escalate_after_minutes": 60,
        "escalate_to": [],
    }
    answer = await house.ada.changes("/settings/requests", rules=[rule])
    assert (answer.status_code, answer.json()["rules"]) == (200, [rule])


async def test_what_is_left_for_later_is_not_there(house: Any) -> None:
    """404, and no operation of the app."""
    for path in ("/requests/decisions", "/settings/autonomous-approval/replay"):
        assert (await house.ada.posts(path, {"items": []})).status_code in {404, 405}


# --- autonomous approval ----------------------------------------------------------------------------------------------


async def test_a_trusted_user_is_approved_without_a_person(house: Any) -> None:
    """One answer: approved, by nobody, with every check; audit sees the request made and then approved."""
    await house.trusts("alice")
    request = (await house.alice.asks("alice")).json()
    assert (request["status"], request["version"], request["decision"]["by"]) == ("approved", 2, "autonomous")
    assert [check["passed"] for check in request["decision"]["checks"]] == [True] * 8
    assert request["decision"]["checks"] == request["checks"]
    made, approved = (await house.test.events("request.submitted", "request.approved"))[-2:]
    assert (made.data.actor.name, approved.data.actor.kind) == ("alice", "autonomous")


async def test_a_failing_check_goes_to_people_and_says_which(house: Any) -> None:
    """All checks are kept from the moment of asking, whatever is set afterwards."""
    await house.trusts("alice")
    asked = (await house.alice.asks("alice", minutes=61)).json()
    await house.trusts("alice", max_duration_minutes=480)
    request = (await house.bob.sees(asked["id"])).json()
    assert request["status"] == "pending"
    failed = [check for check in request["checks"] if not check["passed"]]
    assert [(check["name"], check["value"], check["threshold"]) for check in failed] == [("duration", 61, 60)]
    assert len(request["checks"]) == 8
    approved = (await house.bob.approves(asked["id"])).json()
    assert approved["decision"]["checks"] == asked["checks"]


async def test_what_is_not_known_is_not_approved(house: Any) -> None:
    """A signature that the computer cannot judge fails its check, and says so."""
    await house.trusts("alice")
    asked = (await house.alice.asks("alice", facts={"signature": {"status": "unknown"}})).json()
    assert [check["detail"] for check in asked["checks"] if not check["passed"]] == [
        "Whether the application is verified is not known."
    ]


async def test_trust_that_its_beneficiary_wrote_does_not_count(house: Any) -> None:
    """Not by another account of the same person either; another administrator's word does."""
    zoe = await house.moves_in("zoe", "administrator", os_users=("zoe", "zoe-adm"))
    await house.moves_in("zoe2", "requester", os_users=("zoe-adm", "zdev"))
    await house.trusts("zoe", "zdev", by=zoe)
    for user in ("zoe", "zdev"):
        asked = (await house.ada.asks(user)).json()
        assert asked["status"] == "pending"
        assert "the same person" in next(one["detail"] for one in asked["checks"] if one["name"] == "trusted_user")
    await house.ada.changes("/settings/autonomous-approval", trusted_users=[])
    await house.trusts("zoe")
    assert (await house.ada.asks("zoe", minutes=5, facts={"arguments": []})).json()["status"] == "approved"


async def test_a_decline_cools_down_and_days_are_rolling(house: Any) -> None:
    """After a decline people decide for an hour; the daily limit counts the last 24 hours."""
    await house.trusts("alice", daily_limit_per_user=1, max_duration_minutes=40)
    declined = (await house.alice.asks("alice", minutes=60)).json()["id"]
    await house.bob.declines(declined)

    async def fails() -> list[str]:
        asked = (await house.alice.asks("alice", facts={"arguments": [new_id(house.clock())]})).json()
        return [check["name"] for check in asked["checks"] if not check["passed"]]

    assert await fails() == ["cooldown_after_decline"]
    house.clock.advance(timedelta(minutes=60))
    assert await fails() == []
    house.clock.advance(timedelta(hours=23, minutes=59))
    assert await fails() == ["daily_limit"]
    house.clock.advance(timedelta(minutes=1))
    assert await fails() == []


async def test_a_computer_that_was_lost_is_not_seen(house: Any) -> None:
    """Liveness is what expiry said last."""
    await house.trusts("alice")
    await house.hears_agent(connected=False, version=2)
    house.clock.advance(timedelta(minutes=16))
    asked = (await house.alice.asks("alice")).json()
    assert [check["name"] for check in asked["checks"] if not check["passed"]] == ["computer_seen"]
