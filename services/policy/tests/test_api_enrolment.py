"""Enrolment tokens, enrolment and the renewal of credentials, on a real database."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from sojourn_policy.app import SERVICE
from sojourn_policy.credentials import Credentials
from sojourn_shared.ids import new_id
from sojourn_shared.service import BadSettings
from sojourn_shared.service.nats_accounts import Key
from sojourn_shared.service.testing import TestHouse
from sojourn_shared.signing import PrivateKey, from_base64url


@pytest.fixture
async def admin(house: TestHouse) -> AsyncIterator[httpx.AsyncClient]:
    async with house.client() as client:
        yield client


def refused(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["type"].removeprefix("/problems/")


def claims(jwt: str) -> dict[str, Any]:
    return dict(json.loads(from_base64url(jwt.split(".")[1])))


# --- tokens -----------------------------------------------------------------------------------------------------------


async def test_a_token_carries_the_root_keys_fingerprint_and_is_kept_as_a_hash(
    house: TestHouse, admin: httpx.AsyncClient, root: PrivateKey
) -> None:
    """It is shown once: neither in lists, nor in events, nor to a repeat, nor in the database."""
    wish = {"name": "site oslo", "max_uses": 3, "labels": {"site": "oslo"}}
    answer = await admin.post("/enrolment-tokens", json=wish, headers={"Idempotency-Key": "k"})
    made = answer.json()
    assert answer.status_code == 201
    kind, secret, fingerprint = made["token"].split("_")
    assert (kind, len(secret), fingerprint) == ("sje", 32, root.public.fingerprint)
    assert (made["uses"], made["max_uses"], made["expires_at"]) == (0, 3, "2026-11-03T09:00:00.000000Z")
    again = await admin.post("/enrolment-tokens", json=wish, headers={"Idempotency-Key": "k"})
    assert again.json() == made | {"token": None}
    (listed,) = (await admin.get("/enrolment-tokens")).json()["items"]
    assert listed == {name: value for name, value in made.items() if name != "token"}
    (event,) = await house.events("enrolment_token.created")
    async with house.house.database.begin() as connection:
        row = (await connection.execute(text("SELECT enrolment_tokens::text FROM enrolment_tokens"))).scalar_one()
    assert secret not in event.model_dump_json() + row + (await admin.get("/enrolment-tokens")).text


WRONG_WISHES: list[tuple[dict[str, Any], str]] = [
    ({}, ""),
    ({"name": "t", "max_uses": 0}, "/max_uses"),
    ({"name": "t", "expires_at": "2026-11-02T09:00:00Z"}, "/expires_at"),
    ({"name": "t", "expires_at": "2030-11-02T09:00:00Z"}, "/expires_at"),
    ({"name": "t", "group_ids": ["01930000-0000-7000-8000-00000000000a"]}, "/group_ids"),
    ({"name": "t", "labels": {"": "x"}}, "/labels"),
    ({"name": "t", "computer_id": "x"}, "/computer_id"),
    ({"name": "t", "secret": "x"}, "/secret"),
]


async def test_a_wrong_wish_for_a_token_is_named_at_its_place(admin: httpx.AsyncClient) -> None:
    """And makes none."""
    for wish, pointer in WRONG_WISHES:
        answer = await admin.post("/enrolment-tokens", json=wish)
        assert refused(answer) == (422, "invalid-body"), wish
        assert answer.json()["errors"][0]["pointer"].startswith(pointer), wish
    assert (await admin.get("/enrolment-tokens")).json()["items"] == []


async def test_a_token_is_bound_only_to_a_computer_that_is_there(admin: httpx.AsyncClient, agents: Any) -> None:
    """Neither to a stranger nor to one that was decommissioned."""
    gone = await agents.enrolled()
    await agents.removes(gone)
    unknown = await admin.post("/enrolment-tokens", json={"name": "t", "computer_id": new_id(agents.house.clock())})
    assert refused(unknown) == (404, "not-found")
    assert refused(await admin.post("/enrolment-tokens", json={"name": "t", "computer_id": gone})) == (410, "gone")


# --- enrolment --------------------------------------------------------------------------------------------------------


async def test_a_computer_gets_all_that_it_needs(house: TestHouse, agents: Any, root: PrivateKey) -> None:
    """Its id, a credential of a day for its own key, the root key and the key set, and a secret of its own."""
    machine = agents.machine()
    token = await agents.token()
    answer = await agents.enrols(machine, token)
    said = answer.json()
    assert answer.status_code == 201
    assert said["root_key"] == root.public.text
    assert (said["heartbeat_seconds"], said["ca_pem"]) == (60, None)
    assert len(from_base64url(said["offline_secret"])) == 32
    credentials = said["credentials"]
    assert credentials["inbox_prefix"] == f"_INBOX_{said['computer_id']}"
    assert credentials["nats_urls"] == ["nats://127.0.0.1:4222"]
    assert credentials["expires_at"] == "2026-11-03T09:00:00.000000Z"
    jwt = claims(credentials["jwt"])
    assert (jwt["name"], jwt["sub"]) == (said["computer_id"], machine.link.id)
    changes = [event.change for event in await house.events()]
    assert changes == ["enrolment_token.created", "computer.enrolled", "enrolment_token.used"]
    assert (await house.events())[-1].data.links.computer_id == said["computer_id"]


async def test_the_same_again_gets_the_same_answer(house: TestHouse, agents: Any) -> None:
    """A lost answer burns nothing, and nothing is told twice; a late repeat gets a credential that is good."""
    machine, token = agents.machine(), await agents.token()
    first = await agents.enrols(machine, token)
    house.clock.advance(timedelta(hours=1))
    again = await agents.enrols(machine, token)
    assert (again.status_code, again.json()) == (201, first.json())
    assert len(await house.events()) == 3
    house.clock.advance(timedelta(hours=22, minutes=59))
    late = (await agents.enrols(machine, token)).json()
    assert late["computer_id"] == first.json()["computer_id"]
    assert late["credentials"]["expires_at"] == "2026-11-04T08:59:00.000000Z"


async def test_wrong_tokens(house: TestHouse, agents: Any) -> None:
    """None, an invented one, an expired one: 401; one that is used up says so."""
    machine, token = agents.machine(), await agents.token()
    for wrong in ("x", "sje_" + "0" * 32 + "_" + "0" * 32, token[:-1], token.upper()):
        assert refused(await agents.enrols(machine, wrong)) == (401, "unauthenticated")
    await agents.enrols(machine, token)
    assert refused(await agents.enrols(agents.machine("other"), token)) == (401, "token-spent")
    old = await agents.token()
    house.clock.advance(timedelta(hours=24))
    assert refused(await agents.enrols(agents.machine("other"), old)) == (401, "unauthenticated")


async def test_a_token_of_three_uses_takes_three_in_even_at_once(house: TestHouse, agents: Any) -> None:
    """However many try together."""
    token = await agents.token(max_uses=3)
    answers = await asyncio.gather(*(agents.enrols(agents.machine(f"ws-{n}"), token) for n in range(8)))
    assert sorted(answer.status_code for answer in answers) == [201] * 3 + [401] * 5


async def test_one_machine_is_one_computer_even_at_once(house: TestHouse, agents: Any) -> None:
    """Two tokens, two sets of keys, one machine id: one comes in, the other is told which computer it is."""
    one, two = agents.machine(), agents.machine()
    answers = await asyncio.gather(agents.enrols(one), agents.enrols(two))
    assert sorted(answer.status_code for answer in answers) == [201, 409]
    lost = next(answer for answer in answers if answer.status_code == 409)
    assert refused(lost) == (409, "already-enrolled")
    assert "ws-042" in lost.json()["detail"]


async def test_a_reinstalled_machine_keeps_its_id_by_a_bound_token(house: TestHouse, agents: Any) -> None:
    """With new keys; others hear it as enrolled anew, with the next version."""
    before = await agents.enrolled()
    anew = agents.machine(machine_id="reinstalled")
    token = await agents.token(computer_id=before, labels={"os": "new"})
    answer = await agents.enrols(anew, token)
    assert answer.json()["computer_id"] == before
    event = (await house.events("computer.enrolled"))[-1]
    assert (event.data.entity["version"], event.data.entity["keeper_public_key"]) == (2, anew.keeper.public.text)
    assert event.data.entity["labels"] == {"os": "new"}
    assert (await agents.enrols(anew, token)).json() == answer.json()


async def test_a_decommissioned_machine_comes_in_as_a_new_computer(agents: Any) -> None:
    """With the keys that it had, or others."""
    machine = agents.machine()
    before = await agents.enrolled(machine=machine)
    await agents.removes(before)
    assert await agents.enrolled(machine=machine) != before


WRONG_ENROLMENTS: list[tuple[dict[str, Any], str]] = [
    ({"name": "a\nb"}, "/name"),
    ({"machine_id": ""}, "/machine_id"),
    ({"platform": {"os": "linux"}}, "/platform"),
    ({"link_public_key": "U" * 56}, "/link_public_key"),
    ({"link_public_key": Key.new("ACCOUNT").id}, "/link_public_key"),
    ({"keeper_public_key": "AAAA"}, "/keeper_public_key"),
    ({"keeper_public_key": "not base64"}, "/keeper_public_key"),
    ({"guarantees": {"caller": {"word": "surely", "why": ""}}}, "/guarantees/caller/word"),
]


async def test_a_wrong_enrolment_is_named_at_its_place(agents: Any) -> None:
    """And burns no token."""
    token = await agents.token()
    for change, pointer in WRONG_ENROLMENTS:
        answer = await agents.enrols(agents.machine(), token, **change)
        assert refused(answer) == (422, "invalid-body"), change
        assert pointer in {error["pointer"] for error in answer.json()["errors"]}, change
    assert (await agents.enrols(agents.machine(), token)).status_code == 201


async def test_a_newer_agent_may_say_more(agents: Any) -> None:
    """Fields that this server does not know are ignored, here alone."""
    assert (await agents.enrols(agents.machine(), tpm={"present": True})).status_code == 201


# --- renewal ----------------------------------------------------------------------------------------------------------


async def nonce_of(agents: Any, computer_id: str) -> str:
    answer = await agents.asks(computer_id, {})
    assert refused(answer) == (401, "unauthenticated")
    return str(answer.json()["nonce"])


async def test_a_proof_over_the_servers_nonce_renews(house: TestHouse, agents: Any) -> None:
    """A fresh credential and the key set; audit hears it, the computer's version does not move."""
    machine = agents.machine()
    computer_id = await agents.enrolled(machine=machine)
    house.clock.advance(timedelta(days=7))
    answer = await agents.asks(computer_id, machine.proof(computer_id, await nonce_of(agents, computer_id)))
    assert answer.status_code == 200
    assert answer.json()["credentials"]["expires_at"] == "2026-11-10T09:00:00.000000Z"
    assert claims(answer.json()["credentials"]["jwt"])["sub"] == machine.link.id
    assert answer.json()["keys"]
    event = (await house.events())[-1]
    assert (event.change, event.subject, event.data.actor.kind) == (
        "agent.credentials_renewed",
        computer_id,
        "computer",
    )
    async with house.client() as admin:
        assert (await admin.get(f"/computers/{computer_id}")).json()["version"] == 1


async def test_a_nonce_opens_once(house: TestHouse, agents: Any) -> None:
    """The same proof again is a 401 with another nonce, which then opens."""
    machine = agents.machine()
    computer_id = await agents.enrolled(machine=machine)
    proof = machine.proof(computer_id, await nonce_of(agents, computer_id))
    together = await asyncio.gather(*(agents.asks(computer_id, proof) for _ in range(4)))
    assert sorted(answer.status_code for answer in together) == [200, 401, 401, 401]
    again = await agents.asks(computer_id, proof)
    assert again.status_code == 401
    assert (await agents.asks(computer_id, machine.proof(computer_id, again.json()["nonce"]))).status_code == 200


async def test_false_proofs(house: TestHouse, agents: Any) -> None:
    """Another key, purpose or computer, a nonce that is old, invented or another's: 401, with a nonce to sign."""
    machine, other = agents.machine(), agents.machine("other")
    computer_id, other_id = await agents.enrolled(machine=machine), await agents.enrolled(machine=other)
    nonce = await nonce_of(agents, computer_id)
    false = [
        other.proof(computer_id, nonce),
        machine.proof(computer_id, await nonce_of(agents, other_id)),
        machine.proof(other_id, nonce),
        machine.proof(computer_id, "AAAA"),
        {"renewal": machine.keeper.sign(b"{}", "sojourn-renew")},
        {"renewal": machine.health(computer_id, house.clock())},
        {"renewal": "x"},
    ]
    for proof in false:
        answer = await agents.asks(computer_id, proof)
        assert refused(answer) == (401, "unauthenticated")
        assert len(answer.json()["nonce"]) == 43
    house.clock.advance(timedelta(minutes=2))
    assert (await agents.asks(computer_id, machine.proof(computer_id, nonce))).status_code == 401


async def test_the_keeper_may_name_a_new_link_key(agents: Any) -> None:
    """A link that lost its key gets on; what is no key is refused."""
    machine = agents.machine()
    computer_id = await agents.enrolled(machine=machine)
    anew = Key.new("USER").id
    nonce = await nonce_of(agents, computer_id)
    answer = await agents.asks(computer_id, machine.proof(computer_id, nonce, link_public_key=anew))
    assert claims(answer.json()["credentials"]["jwt"])["sub"] == anew
    nonce = await nonce_of(agents, computer_id)
    bad = await agents.asks(computer_id, machine.proof(computer_id, nonce, link_public_key="U"))
    assert refused(bad) == (422, "invalid-body")


async def test_a_decommissioned_computer_is_told_that_it_is_gone(house: TestHouse, agents: Any) -> None:
    """Once it has proved who it is; a stranger learns nothing more than a nonce, or that there is no such computer."""
    machine = agents.machine()
    computer_id = await agents.enrolled(machine=machine)
    await agents.removes(computer_id)
    nonce = await nonce_of(agents, computer_id)
    assert (await agents.asks(computer_id, agents.machine().proof(computer_id, nonce))).status_code == 401
    assert refused(await agents.asks(computer_id, machine.proof(computer_id, nonce))) == (410, "gone")
    stranger = new_id(house.clock())
    nonce = await nonce_of(agents, stranger)
    assert refused(await agents.asks(stranger, machine.proof(stranger, nonce))) == (404, "not-found")


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"agent_issuer_seed": "SAxyz"}, "SOJOURN_AGENT_ISSUER_SEED is no usable JSON"),
        ({"agent_issuer_seed": '{"seed": "SAxyz", "account": "A"}'}, "SOJOURN_AGENT_ISSUER_SEED is no usable JSON"),
        (
            {"key_set": Path("/nowhere/key-set.json")},
            "SOJOURN_KEY_SET names /nowhere/key-set.json, which cannot be read",
        ),
        ({"key_set": Path(__file__)}, "is no key set"),
    ],
)
def test_keys_that_cannot_be_used_are_named_at_start(
    policy_settings: dict[str, Any], change: dict[str, Any], says: str
) -> None:
    """And no seed is shown."""
    settings = SERVICE.settings.model_validate({"database_url": "postgresql://x/y"} | policy_settings | change)
    with pytest.raises(BadSettings) as refusal:
        Credentials.of(settings)  # type: ignore[arg-type]
    assert says in str(refusal.value)
    assert "SAxyz" not in str(refusal.value)


async def test_a_rotated_key_set_reaches_who_renews_without_a_restart(
    house: TestHouse, agents: Any, policy_settings: dict[str, Any]
) -> None:
    """The file is read at each use."""
    machine = agents.machine()
    computer_id = await agents.enrolled(machine=machine)
    file = policy_settings["key_set"]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"keys": "rotated"}))
    answer = await agents.asks(computer_id, machine.proof(computer_id, await nonce_of(agents, computer_id)))
    assert answer.json()["keys"] == "rotated"
