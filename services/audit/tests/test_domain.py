"""What the ledger keeps of an event: all of it, one line, and one sentence for each type, whatever it holds."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sojourn_audit.domain import Sight, arrival_of, rest_of_line
from sojourn_audit.summaries import WITHOUT_SENTENCE, summary
from sojourn_shared.contracts.events import EVENT_TYPES, Actor, Event, EventData, Links
from sojourn_shared.ledger import line_start

AT = datetime(2026, 11, 2, 9, 0, tzinfo=UTC)
ID = "01930000-0000-7000-8000-000000000001"
ADA = Actor(kind="account", id=ID, name="Ada")
AUTONOMOUS = Actor(kind="autonomous", id="autonomous", name="Autonomous approval")
SYSTEM = Actor(kind="system", id="expiry", name="Sojourn")
WEB_1 = Actor(kind="computer", id=ID, name="web-1")
HTOP = {"path": "/usr/bin/htop", "executable": "htop", "arguments": ["-d", "5"]}
BOB = Links(user="bob", computer_id=ID)


def event_of(change: str, entity: dict[str, Any], *, actor: Actor = ADA, links: Links | None = None) -> Event:
    data = EventData(actor=actor, links=links or Links(), entity=entity)
    return Event(id=ID, source="sojourn/requests", type=f"sojourn.{change}", subject="requests", time=AT, data=data)


def test_every_type_has_a_sentence() -> None:
    """The vocabulary is closed, and told in full."""
    assert frozenset() == WITHOUT_SENTENCE


@pytest.mark.parametrize(
    ("change", "entity", "actor", "links", "sentence"),
    [
        (
            "request.approved",
            {"application": HTOP, "duration_minutes": 60, "decision": {"duration_minutes": 30, "note": None}},
            ADA,
            BOB,
            "Ada approved bob's request for htop, 30 minutes",
        ),
        (
            "request.approved",
            {"application": HTOP, "duration_minutes": 1},
            AUTONOMOUS,
            BOB,
            "bob's request for htop was approved autonomously, 1 minute",
        ),
        (
            "request.declined",
            {"application": HTOP, "decision": {"note": "Use top instead."}},
            ADA,
            BOB,
            "Ada declined bob's request for htop: “Use top instead.”",
        ),
        (
            "request.submitted",
            {"application": HTOP, "duration_minutes": 5, "justification": "a leak", "computer_name": "web-1"},
            WEB_1,
            BOB,
            "bob asked for htop on web-1, 5 minutes: “a leak”",
        ),
        ("request.cancelled", {"application": HTOP}, WEB_1, BOB, "bob cancelled the request for htop"),
        (
            "policy.deployed",
            {"name": "Drivers", "revision": 2},
            ADA,
            Links(),
            "Ada deployed the policy “Drivers” (revision 2)",
        ),
        (
            "assignments.changed",
            {
                "revision": 1,
                "terms": {"policy_name": "Drivers"},
                "page": 1,
                "pages": 1,
                "assignments": [{"state": "present"}, {"state": "present"}, {"state": "absent"}],
            },
            ADA,
            Links(policy_id=ID),
            "The policy “Drivers” (revision 1) now stands for 2 computers, and no longer for 1 computer",
        ),
        (
            "grant.revoked",
            {
                "users": {"all": False, "names": ["alice", "bob"]},
                "policy_name": "Drivers",
                "computer_name": "web-1",
                "revoked": {"reason": "left the team"},
            },
            ADA,
            Links(policy_id=ID),
            "Ada revoked the access of alice and bob on web-1 by the policy “Drivers”: “left the team”",
        ),
        (
            "grant.ended",
            {"users": {"all": True, "names": []}, "computer_name": "web-1"},
            WEB_1,
            Links(),
            "The computer web-1 confirmed the end of the access of all users on web-1",
        ),
        (
            "grant.activated",
            {"users": {"all": True, "names": []}, "computer_name": "web-1", "until": "2026-11-25T01:10:55.435711Z"},
            SYSTEM,
            Links(),
            "Access of all users on web-1 is active until 2026-11-25 01:10:55 UTC",
        ),
        (
            "elevation.ended",
            {"application": HTOP, "cause": "agent_died"},
            WEB_1,
            BOB,
            "bob's run of htop on web-1 ended: the agent died",
        ),
        (
            "elevation.ended",
            {"application": HTOP, "cause": "revoked", "exit_status": 124, "processes_ended": [7, 8]},
            WEB_1,
            BOB,
            "bob's run of htop on web-1 ended: revoked, exit status 124, 2 processes ended",
        ),
        (
            "elevation.refused",
            {"application": HTOP, "reason": "no_grant", "count": 3},
            WEB_1,
            BOB,
            "bob was refused htop on web-1: no_grant (3 times)",
        ),
        ("grant.thawed", {}, SYSTEM, Links(), "Sojourn: grant thawed"),
    ],
)
def test_sentences_read_well(change: str, entity: dict[str, Any], actor: Actor, links: Links, sentence: str) -> None:
    """Who did what to whom; a type that is newer than this service is told plainly."""
    assert summary(event_of(change, entity, actor=actor, links=links)) == sentence


def test_what_users_wrote_cannot_write_on_a_terminal() -> None:
    """Control characters and those that turn the direction of text are spelled out; long texts are cut."""
    entity = {"application": {"path": "/tmp/\x1b[2J\u202egpj.exe"}, "justification": "x" * 1000 + "\n"}
    told = summary(event_of("request.submitted", entity, links=BOB))
    assert "\\x1b[2J\\u202egpj.exe" in told
    assert "…" in told
    assert len(told) < 400
    assert told.isprintable()


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = [
    *(
        "users",
        "user",
        "application",
        "decision",
        "terms",
        "assignments",
        "revoked",
        "name",
        "computer_name",
        "revision",
    ),
    *(
        "count",
        "processes_ended",
        "exit_status",
        "until",
        "from",
        "failure",
        "note",
        "page",
        "pages",
        "duration_minutes",
    ),
]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no fault
@given(
    change=st.sampled_from(sorted(EVENT_TYPES)),
    entity=st.dictionaries(st.sampled_from(FIELDS), json_values),
    actor=st.sampled_from([ADA, AUTONOMOUS, SYSTEM, WEB_1]),
    links=st.sampled_from([Links(), BOB, Links(policy_id=ID)]),
)
def test_every_event_can_be_told(change: str, entity: dict[str, Any], actor: Actor, links: Links) -> None:
    """Whatever an entity holds: a sentence on one line, and a line of JSON that holds the entity unchanged."""
    event = event_of(change, entity, actor=actor, links=links)
    arrival = arrival_of(event)
    line = line_start(0, None) + rest_of_line(AT, arrival.told)
    told = json.loads(line)
    assert b"\n" not in line
    assert told["data"] == entity
    assert told["summary"].isprintable() or " " in told["summary"]
    assert told["summary"].strip()


def test_a_line_holds_everything_of_the_event() -> None:
    """In a fixed order, absent links as null; the links for searching are the same as those in the line."""
    event = event_of("request.approved", {"id": ID, "version": 2}, links=BOB)
    arrival = arrival_of(event)
    assert json.loads(line_start(7, bytes(32)) + rest_of_line(AT, arrival.told)) == {
        "seq": 7,
        "previous": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        "recorded_at": "2026-11-02T09:00:00.000000Z",
        "id": ID,
        "type": "request.approved",
        "time": "2026-11-02T09:00:00.000000Z",
        "source": "requests",
        "subject": "requests",
        "traceparent": None,
        "actor": {"kind": "account", "id": ID, "name": "Ada"},
        "policy_id": None,
        "request_id": None,
        "grant_id": None,
        "computer_id": ID,
        "user": "bob",
        "summary": "Ada approved bob's request for an application",
        "because": None,
        "data": {"id": ID, "version": 2},
    }
    assert (arrival.links, arrival.type, arrival.time) == (BOB, "request.approved", AT)


@pytest.mark.parametrize(
    ("roles", "everything"),
    [
        ({"administrator"}, True),
        ({"auditor"}, True),
        ({"approver"}, True),
        ({"requester", "auditor"}, True),
        ({"requester"}, False),
        (set(), False),
    ],
)
def test_who_sees_everything(roles: set[str], everything: bool) -> None:
    """All roles but the requester's; nobody stated the OS users of somebody: none are theirs."""
    assert Sight.of(ID, frozenset(roles), None) == Sight(everything, ID, ())
