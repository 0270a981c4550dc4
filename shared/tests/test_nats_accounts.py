"""What the accounts say, and what is refused before it is said. How they hold is tried in deploy/embedded/tests."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sojourn_shared.contracts import wire
from sojourn_shared.ids import new_id
from sojourn_shared.service import nats_accounts
from sojourn_shared.service.nats_accounts import ASKS, DUTIES, PUSHES, Accounts, Key, agent_jwt, is_user_key
from sojourn_shared.signing import from_base64url

NOW = datetime(2026, 11, 24, 10, 0, tzinfo=UTC)
COMPUTER = new_id(NOW)


@pytest.fixture
def accounts() -> Accounts:
    return Accounts.kept(None, NOW)


def claims(jwt: str) -> dict[str, Any]:
    return dict(json.loads(from_base64url(jwt.split(".")[1])))


def test_a_restart_gives_the_same_accounts(accounts: Accounts) -> None:
    """A server refuses to reload when the operator's JWT changes by a byte, and agents keep their credentials."""
    again = Accounts.kept(accounts.to_keep, NOW + timedelta(days=3))
    assert again.to_keep == accounts.to_keep
    assert again.accounts_config() == accounts.accounts_config()
    assert again.credentials("expiry") == accounts.credentials("expiry")


def test_an_account_that_is_new_in_the_table_is_added(accounts: Accounts) -> None:
    """An upgrade that brings a service changes no key of those that were there."""
    kept = json.loads(accounts.to_keep)
    del kept["accounts"]["AUDIT"], kept["users"]["audit"]
    again = Accounts.kept(json.dumps(kept), NOW)
    assert again.account_ids["AUDIT"] != accounts.account_ids["AUDIT"]
    assert again.account_ids["EXPIRY"] == accounts.account_ids["EXPIRY"]
    assert again.operator_jwt == accounts.operator_jwt


def test_what_cannot_be_understood_is_no_reason_to_make_new_keys() -> None:
    """A file that a full disk cut short is an error: every computer would have to enrol again."""
    with pytest.raises(ValueError, match="Expecting"):
        Accounts.kept("{", NOW)


def test_each_kind_of_report_and_question_has_exactly_one_owner() -> None:
    """A work queue refuses a second consumer of the same subjects, and a question gets one answer."""
    owned = [kind for service, duties in DUTIES.items() for kind in duties.reports(service)]
    assert sorted(owned) == sorted(wire.REPORT_KINDS)
    assert len(set(ASKS)) == len(ASKS)
    assert len(set(PUSHES)) == len(PUSHES)


def test_jetstream_lives_in_one_account_that_no_service_is_in(accounts: Accounts) -> None:
    """Who is in JetStream's account and may publish anything is its administrator, whatever the permissions say."""
    for name in nats_accounts.ACCOUNTS:
        limits = claims(accounts.account_jwt(name))["nats"]["limits"]
        assert ("disk_storage" in limits) == (name == "SOJOURN")
    assert [user for user, account in nats_accounts.USERS.items() if account == "SOJOURN"] == ["provisioner"]


def test_an_agent_may_say_only_what_carries_its_own_name(accounts: Accounts) -> None:
    """The template names each kind; a wildcard would give a computer unlimited queues on the server's disk."""
    scope = claims(accounts.account_jwt("AGENTS"))["nats"]["signing_keys"][0]
    template = scope["template"]
    for subject in template["pub"]["allow"]:
        assert subject.startswith("sojourn.agent.{{name()}}.")
        assert not set("*>") & set(subject)
    assert "_INBOX_{{name()}}.>" in template["sub"]["allow"]


def test_a_computers_credential_ends_after_a_day_and_has_no_permissions_of_its_own(accounts: Accounts) -> None:
    """Its rights come from the account's template, whoever holds the issuing key."""
    link, issuer = Key.new("USER"), accounts.agent_issuer
    issued = claims(agent_jwt(issuer.seed, issuer.account, COMPUTER, link.id, NOW))
    assert issued["name"] == COMPUTER
    assert issued["sub"] == link.id
    assert issued["exp"] - issued["iat"] == 24 * 3600
    assert issued["nats"] == {"issuer_account": issuer.account, "type": "user", "version": 2}


@pytest.mark.parametrize("name", ["*", ">", "", "computer-a", f"{COMPUTER}.grant", COMPUTER.upper(), f" {COMPUTER}"])
def test_only_a_uuid_becomes_a_credential(accounts: Accounts, name: str) -> None:
    """The name `*` would be every computer."""
    with pytest.raises(ValueError, match="UUID"):
        agent_jwt(accounts.agent_issuer.seed, accounts.agent_issuer.account, name, Key.new("USER").id, NOW)


def test_only_a_users_public_key_becomes_a_credential(accounts: Accounts) -> None:
    """Neither a seed, nor another kind of key, nor one that was mistyped."""
    good = Key.new("USER").id
    assert is_user_key(good)
    mistyped = good[:-1] + ("A" if good[-1] != "A" else "B")
    for bad in ("", "U", Key.new("ACCOUNT").id, Key.new("USER").seed, mistyped, good + "=", good.lower(), "ü" * 56):
        assert not is_user_key(bad)
        with pytest.raises(ValueError, match="link_public_key"):
            agent_jwt(accounts.agent_issuer.seed, accounts.agent_issuer.account, COMPUTER, bad, NOW)
