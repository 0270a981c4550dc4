"""Nobody decides on their own request: the same refusal for every way to ask and every way to decide."""

from dataclasses import dataclass, field
from typing import Any

import pytest


async def at_the_computer(house: Any) -> str:
    request_id: str = (await house.takes(house.wish_report(user="alice"))).id
    return request_id


async def over_rest(house: Any) -> str:
    return str((await house.alice.asks("alice")).json()["id"])


async def by_an_administrator(house: Any) -> str:
    return str((await house.ada.asks("alice")).json()["id"])


async def by_a_client(house: Any) -> str:
    tool = await house.moves_in("itsm", "requester", kind="client", act_for=True, owner_id=house.ada.id)
    return str((await tool.asks("alice")).json()["id"])


ASKED = {
    "at the computer": at_the_computer,
    "over REST": over_rest,
    "for her by an administrator": by_an_administrator,
    "for her by a client": by_a_client,
}


@dataclass(frozen=True)
class Channel:
    """An account or client that decides, and what it sends besides."""

    name: str = "other"
    roles: tuple[str, ...] = ("approver",)
    more: dict[str, Any] = field(default_factory=dict)
    body: dict[str, Any] = field(default_factory=dict)
    status: tuple[int, str] = (403, "self-approval")


CLIENT = {"kind": "client", "os_users": ("bob",)}
OWNED = CLIENT | {"owner_id": "{alice}"}
ACTING = CLIENT | {"owner_id": "{bob}", "act_for": True}
CHANNELS = {
    "her account": Channel("alice", more={"os_users": ("alice",)}),
    "her account as an administrator": Channel("alice", ("administrator",), {"os_users": ("alice",)}),
    "her account after her OS users were taken from it": Channel("alice", more={"os_users": ()}),
    "another account that is her OS user": Channel(more={"os_users": ("alice",)}),
    "another account that is her OS user in capitals": Channel(more={"os_users": ("ALICE",)}),
    "an account that shares another OS user with hers": Channel(more={"os_users": ("alice-adm",)}),
    "a client that she owns": Channel(more=OWNED),
    "a client that acts for her by id": Channel(more=ACTING, body={"on_behalf_of": {"account_id": "{alice}"}}),
    "a client that acts for her by e-mail": Channel(more=ACTING, body={"on_behalf_of": {"email": "ALICE@example.org"}}),
    "a client of hers that acts for Bob": Channel(
        more=OWNED | {"act_for": True}, body={"on_behalf_of": {"account_id": "{bob}"}}
    ),
    "a client whose owner's OS users are hers": Channel(more={"kind": "client", "os_users": ("alice",)}),
    "an account whose OS users nobody stated": Channel(more={"os_users": None}, status=(403, "not-permitted")),
    "a client that acts for somebody unstated": Channel(
        more=ACTING, body={"on_behalf_of": {"email": "dunno@example.org"}}, status=(403, "not-permitted")
    ),
    "a client that may not act for others": Channel(
        more=CLIENT, body={"on_behalf_of": {"account_id": "{bob}"}}, status=(403, "not-permitted")
    ),
    "a client that acts for a requester": Channel(
        more=ACTING, body={"on_behalf_of": {"email": "rita@example.org"}}, status=(403, "not-permitted")
    ),
    "a client that acts for nobody who is known": Channel(
        more=ACTING, body={"on_behalf_of": {"email": "nobody@example.org"}}, status=(422, "unknown-approver")
    ),
    "a requester": Channel(roles=("requester",), more={"os_users": ("x",)}, status=(403, "not-permitted")),
    "an auditor": Channel(roles=("auditor",), more={"os_users": ("x",)}, status=(403, "not-permitted")),
}


@pytest.mark.parametrize("asked", ASKED)
async def test_no_channel_lets_a_person_decide_on_their_own(house: Any, asked: str) -> None:
    """Whatever the account, client, key or OS user: neither approve nor decline, and the request stays pending."""
    await house.hears_account(house.alice.caller, version=2, os_users=["alice", "alice-adm"], roles=["approver"])
    await house.moves_in("dunno", "approver", os_users=None)
    await house.moves_in("rita", "requester", os_users=("rita",))
    request_id = await ASKED[asked](house)
    answers: dict[str, set[tuple[int, str]]] = {}
    for channel, wanted in CHANNELS.items():
        decider = _decider(house, wanted)
        for answer in (
            await decider.approves(request_id, **_filled(wanted.body, house)),
            await decider.declines(request_id, **_filled(wanted.body, house)),
        ):
            answers.setdefault(channel, set()).add(
                (answer.status_code, answer.json().get("type", "").rpartition("/")[2])
            )
    assert answers == {channel: {wanted.status} for channel, wanted in CHANNELS.items()}
    assert (await house.carol.sees(request_id)).json()["status"] == "pending"
    assert (await house.carol.approves(request_id)).status_code == 200


async def test_who_asked_for_another_does_not_decide_on_it(house: Any) -> None:
    """The administrator who asked for Alice, the client that did, and the client's owner."""
    asked = await by_an_administrator(house)
    assert (await house.ada.approves(asked)).json()["type"] == "/problems/self-approval"
    await house.carol.declines(asked)
    tool = await house.moves_in(
        "itsm", "requester", "approver", kind="client", act_for=True, os_users=("bob",), owner_id=house.bob.id
    )
    asked = (await tool.asks("alice")).json()["id"]
    for decider in (tool, house.bob):
        assert (await decider.approves(asked)).json()["type"] == "/problems/self-approval"


async def test_an_itsm_tool_passes_on_the_wish_of_one_and_the_approval_of_another(house: Any) -> None:
    """The decision names the tool and the person; the person's own role counts."""
    tool = await house.moves_in(
        "itsm", "requester", "approver", kind="client", act_for=True, os_users=("bob",), owner_id=house.bob.id
    )
    asked = (await tool.asks("alice")).json()["id"]
    refused = await tool.approves(asked, on_behalf_of={"account_id": house.alice.id})
    assert refused.json()["type"] == "/problems/self-approval"
    approved = await tool.approves(asked, on_behalf_of={"email": "Carol@example.org"})
    decision = approved.json()["decision"]
    assert (decision["by"], decision["on_behalf_of"]) == (tool.id, {"account_id": house.carol.id, "name": "carol"})
    again = await tool.approves(asked, on_behalf_of={"account_id": house.carol.id})
    other = await tool.approves(asked, on_behalf_of={"account_id": house.bob.id})
    assert (again.status_code, other.status_code) == (200, 409)


def _decider(house: Any, wanted: Channel) -> Any:
    """Somebody with a token of the gateway; what the gateway told of them before stays as it was."""
    more = _filled(wanted.more, house)
    return house.stranger(wanted.name, *wanted.roles, **more)


def _filled(values: dict[str, Any], house: Any) -> dict[str, Any]:
    def fill(value: Any) -> Any:
        if isinstance(value, dict):
            return _filled(value, house)
        if isinstance(value, str):
            return value.replace("{alice}", house.alice.id).replace("{bob}", house.bob.id)
        return value

    return {name: fill(value) for name, value in values.items()}
