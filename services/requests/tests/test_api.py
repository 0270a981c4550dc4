"""Requests over HTTP, on a real PostgreSQL."""

from typing import Any


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
