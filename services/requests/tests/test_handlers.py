"""What arrives by the bus: reports and questions of agents, and the news of other services."""

from datetime import timedelta
from typing import Any

import msgspec
import pytest

from sojourn_requests import handlers
from sojourn_shared.contracts import wire
from sojourn_shared.ids import new_id
from sojourn_shared.service import NotYet, Park
from sojourn_shared.signing import PrivateKey

COMPUTER = "01930000-0000-7000-8000-0000000000c1"
OTHER = "01930000-0000-7000-8000-0000000000c2"


async def decision(house: Any, request_id: str, computer_id: str = COMPUTER) -> wire.Decision | None:
    body = wire.encode(wire.AskDecision(request_id=request_id))
    answer = await handlers.on_ask_decision(computer_id, body, house.test.house)
    return msgspec.json.decode(answer, type=wire.Decision) if answer else None


async def terms(house: Any, user: str = "alice", computer_id: str = COMPUTER) -> Any:
    asked = wire.AskTerms(user=user, application=wire.Application(path="/usr/bin/id"))
    answer = await handlers.on_ask_terms(computer_id, wire.encode(asked), house.test.house)
    return msgspec.json.decode(answer, type=wire.TermsAnswer) if answer else None


# --- reports ----------------------------------------------------------------------------------------------------------


async def test_a_report_becomes_the_request_of_its_id(house: Any) -> None:
    """Made by the computer for the person, who is the account of that OS user; the person hears that it waits."""
    report = await house.takes(house.wish_report(ticket="INC1", max_uses=2))
    request = (await house.bob.sees(report.id)).json()
    assert (request["status"], request["requested_by"], request["user"]) == ("pending", house.alice.id, "alice")
    assert (request["external_refs"][0]["number"], request["max_uses"]) == ("INC1", 2)
    (event,) = await house.test.events("request.submitted")
    assert (event.data.actor.kind, event.data.actor.name) == ("computer", "alice on pc-7")
    (told,) = await house.told()
    assert (told.request_id, told.status, told.version) == (report.id, "pending", 1)


async def test_a_person_without_an_account_can_ask_too(house: Any) -> None:
    """Then `requested_by` is a word that is no person."""
    report = await house.takes(house.wish_report(user="zacharias"))
    request = (await house.bob.sees(report.id)).json()
    assert (request["requested_by"], request["requested_by_name"]) == ("computer", "zacharias")


async def test_a_report_delivered_twice_is_one_request(house: Any) -> None:
    """The work queue may deliver again; nothing is told twice."""
    report = await house.takes(house.wish_report())
    await house.takes(report)
    assert await house.events_of(report.id) == ["request.submitted"]


async def test_the_decision_reaches_the_person_with_its_note(house: Any) -> None:
    """Pushed after the commit, and asked for after a reconnect: both say the same."""
    report = await house.takes(house.wish_report())
    await house.told()
    await house.bob.declines(report.id, "use sudo-free tool")
    (told,) = await house.told()
    assert (told.status, told.note, told.by_name, told.version) == ("declined", "use sudo-free tool", "bob", 2)
    assert await decision(house, report.id) == told


async def test_a_second_report_joins_what_waits(house: Any) -> None:
    """Both who wait are told of the one decision, each under the id that they know."""
    first = await house.takes(house.wish_report())
    second = await house.takes(house.wish_report(minutes=9))
    assert [(one.request_id, one.joined) for one in await house.told()] == [(first.id, None), (second.id, first.id)]
    await house.bob.approves(first.id)
    told = await house.told()
    assert {(one.request_id, one.joined, one.status) for one in told} == {
        (first.id, None, "approved"),
        (second.id, first.id, "approved"),
    }
    joined = await decision(house, second.id)
    assert joined is not None
    assert (joined.status, joined.joined) == ("approved", first.id)
    assert (await house.bob.sees(second.id)).status_code == 404


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"minutes": 481}, "481 minutes: the settings allow 1 to 480."),
        ({"justification": "   "}, "justification: must not be empty"),
        ({"user": "x\n"}, "user: must not contain control characters"),
        ({"application": wire.Application(path="id")}, "path: must be absolute"),
        ({"max_uses": 0}, "max_uses"),
    ],
)
async def test_a_report_that_is_no_request_is_refused_with_its_reason(
    house: Any, changes: dict[str, Any], sentence: str
) -> None:
    """The person waiting reads why; asked again, the computer hears the same; nothing is parked or made."""
    report = await house.takes(house.wish_report(**changes))
    (told,) = await house.told()
    assert (told.request_id, told.status) == (report.id, "refused")
    assert sentence in (told.problem or "")
    assert await decision(house, report.id) == told
    assert await house.events_of(report.id) == []


async def test_a_report_of_an_unknown_computer_waits(house: Any) -> None:
    """Its enrolment is on the way: retried, not parked."""
    with pytest.raises(NotYet):
        await house.test.takes(OTHER, "request", house.signed(house.wish_report()))


async def test_a_report_that_its_keeper_did_not_sign_is_parked(house: Any) -> None:
    """Another key, another computer, another kind, or an id that is taken."""
    await house.hears_computer(OTHER)
    taken = await house.takes(house.wish_report())
    with pytest.raises(Park, match="not known"):
        await house.takes(house.wish_report(), PrivateKey.generate())
    with pytest.raises(Park, match="it names"):
        await house.test.takes(OTHER, "request", house.signed(house.wish_report()))
    with pytest.raises(Park, match="another kind"):
        await house.test.takes(COMPUTER, "cancel", house.signed(house.wish_report()))
    with pytest.raises(Park, match="no new id"):
        await house.test.takes(OTHER, "request", house.signed(house.wish_report(id=taken.id, computer_id=OTHER)))
    with pytest.raises(Park, match="no new id"):
        await house.takes(house.wish_report(id="../x"))


async def test_the_person_takes_a_request_back(house: Any) -> None:
    """Also under the id of a report that joined; a second time, or after a decision, nothing changes."""
    first = await house.takes(house.wish_report())
    second = await house.takes(house.wish_report())
    user = wire.ReportingUser(name="alice", uid=1000)
    await house.takes(house.report(wire.CancelReport, request_id=second.id, user=user))
    await house.takes(house.report(wire.CancelReport, request_id=first.id, user=user))
    assert await house.events_of(first.id) == ["request.submitted", "request.cancelled"]
    third = await house.takes(house.wish_report())
    await house.bob.approves(third.id)
    await house.takes(house.report(wire.CancelReport, request_id=third.id, user=user))
    assert (await house.bob.sees(third.id)).json()["status"] == "approved"


async def test_nobody_takes_back_what_is_not_theirs(house: Any) -> None:
    """Another user of the computer is parked; one whose request has not come yet waits; a refused one is done."""
    asked = await house.takes(house.wish_report())
    refused = await house.takes(house.wish_report(minutes=0))
    alice, mallory = wire.ReportingUser(name="alice", uid=1000), wire.ReportingUser(name="mallory", uid=1001)
    with pytest.raises(Park, match="did not ask"):
        await house.takes(house.report(wire.CancelReport, request_id=asked.id, user=mallory))
    with pytest.raises(NotYet):
        await house.takes(house.report(wire.CancelReport, request_id=new_id(house.clock()), user=alice))
    await house.takes(house.report(wire.CancelReport, request_id=refused.id, user=alice))


# --- questions --------------------------------------------------------------------------------------------------------


async def test_a_computer_hears_only_of_its_own_requests(house: Any) -> None:
    """Neither another computer's, nor one that is not there; nonsense is not answered."""
    await house.hears_computer(OTHER)
    report = await house.takes(house.wish_report())
    refused = await house.takes(house.wish_report(minutes=0))
    assert await decision(house, report.id) is not None
    for request_id in (report.id, refused.id):
        assert await decision(house, request_id, OTHER) is None
    assert await decision(house, new_id(house.clock())) is None
    assert await handlers.on_ask_decision(COMPUTER, b"{", house.test.house) is None
    assert await handlers.on_ask_terms(COMPUTER, b"[]", house.test.house) is None


async def test_terms_are_told_before_the_person_is_asked_why(house: Any) -> None:
    """How long at most, and who could decide: never the person."""
    await house.hears_account(house.alice.caller, version=2, roles=["approver"])
    assert await terms(house) == wire.TermsAnswer(
        allowed=True, longest_minutes=480, approvers=["ada", "bob", "carol"], problem=None
    )
    assert await terms(house, computer_id=OTHER) is None


async def test_terms_say_why_asking_is_in_vain(house: Any) -> None:
    """Switched off, not open to this user, or nobody to decide; autonomous approval needs nobody."""
    await house.ada.changes("/settings/requests", who={"all": False, "users": ["bob"]})
    answer = await terms(house)
    assert (answer.allowed, answer.problem) == (False, "asking-disabled")
    await house.ada.changes("/settings/requests", enabled=False)
    assert (await terms(house, user="bob")).problem == "asking-disabled"
    await house.ada.changes("/settings/requests", enabled=True, who={})
    for somebody in (house.ada, house.bob, house.carol):
        await house.hears_account(somebody.caller, version=2, active=False)
    assert (await terms(house)).problem == "no-approver"
    await house.trusts("alice", require_verified_application=False)
    assert (await terms(house)).allowed


# --- news -------------------------------------------------------------------------------------------------------------


async def test_what_waits_for_a_decommissioned_computer_is_cancelled(house: Any) -> None:
    """With its reason, for the person and the audit; what was decided stays."""
    waits = (await house.alice.asks("alice")).json()["id"]
    decided = (await house.alice.asks("alice", facts={"arguments": []})).json()["id"]
    await house.bob.approves(decided)
    await house.hears_computer(version=2, status="decommissioned")
    request = (await house.bob.sees(waits)).json()
    assert (request["status"], request["closed"]["reason"]) == ("cancelled", "pc-7 is not managed any more.")
    (event,) = await house.test.events("request.cancelled")
    assert event.data.because == "decommissioned"
    assert (await house.bob.sees(decided)).json()["status"] == "approved"


@pytest.mark.parametrize(
    ("reason", "sentence"), [("document_full", "does not fit"), ("decommissioned", "not managed any more")]
)
async def test_a_grant_that_cannot_reach_its_computer_is_told(house: Any, reason: str, sentence: str) -> None:
    """The person waiting would wait for ever; heard again, it is not told again."""
    report = await house.takes(house.wish_report())
    grant_id = (await house.bob.approves(report.id)).json()["grant_id"]
    await house.told()
    said = {
        "id": grant_id,
        "version": 1,
        "status": "revoked",
        "delivery": "failed",
        "computer_id": COMPUTER,
        "request_id": report.id,
        "revoked": {"by": "expiry", "by_name": "Sojourn", "reason": reason},
    }
    await house.test.hears("grant.revoked", said, service="expiry", id=grant_id)
    await house.test.hears("grant.ended", said | {"version": 2}, service="expiry", id=grant_id)
    (told,) = await house.told()
    assert told.status == "approved"
    assert sentence in (told.problem or "")
    assert (await house.bob.sees(report.id)).json()["problem"] == reason
    assert await house.events_of(report.id) == ["request.submitted", "request.approved", "request.changed"]


async def test_a_grant_that_people_revoke_is_no_news_here(house: Any) -> None:
    """The computer's document tells of it."""
    report = await house.takes(house.wish_report())
    grant_id = (await house.bob.approves(report.id)).json()["grant_id"]
    await house.told()
    said = {
        "id": grant_id,
        "version": 1,
        "status": "revoked",
        "delivery": "ending",
        "computer_id": COMPUTER,
        "request_id": report.id,
        "revoked": {"reason": "done"},
    }
    await house.test.hears("grant.revoked", said, service="expiry", id=grant_id)
    assert await house.told() == []


async def test_renewed_credentials_say_nothing_of_liveness(house: Any) -> None:
    """Another service speaks of the same entity in other words."""
    await house.trusts("alice")
    await house.test.hears("agent.credentials_renewed", {"expires_at": "x"}, service="policy", id=COMPUTER)
    house.clock.advance(timedelta(hours=1))
    assert (await house.alice.asks("alice")).json()["status"] == "approved"


async def test_a_deleted_account_decides_nothing_any_more(house: Any) -> None:
    """Nor is it named to those who ask."""
    await house.test.hears(
        "account.deleted", {"id": house.bob.id, "version": 2, "name": "bob"}, service="gateway", id=house.bob.id
    )
    answer = await terms(house)
    assert answer.approvers == ["ada", "carol"]
