"""Credentials lapse, are refused, revoked and renewed; and the document comes over HTTPS when nothing else works."""

import base64
import json
import os
import socket
import subprocess
import sys
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from sojourn_agent import between
from sojourn_agent.link import https
from sojourn_agent.link.renewal import Validity
from sojourn_shared.clock import system_clock
from sojourn_shared.contracts import wire
from sojourn_shared.service.nats_accounts import SYSTEM, Key

LAPSED = timedelta(seconds=-5)


async def test_a_lapsed_credential_is_renewed_at_the_start(world: Any) -> None:
    """Off for longer than its credential was good: it renews over HTTPS, tells the keeper, and connects."""
    world.links(world.credentials(life=LAPSED))
    renewed = await world.keeper.hears(between.NewCredentials)
    assert renewed.keys == "the.keys.jws"
    assert msgspec.json.decode(renewed.credentials, type=wire.Credentials).expires_at > system_clock()
    await world.connected()


async def test_a_damaged_credential_is_renewed(world: Any) -> None:
    """A file cut in half on the computer's disk costs one call over HTTPS."""
    world.links(world.credentials(), damaged=True)
    await world.keeper.hears(between.NewCredentials)
    await world.connected()


async def test_a_credential_that_lapses_while_connected_is_renewed(world: Any) -> None:
    """The server cuts the connection at `exp`; a new one with a new credential follows by itself."""
    world.server.failing = True  # at half life nothing was to be had
    world.links(world.credentials(life=timedelta(seconds=2)))
    await world.connected()
    await world.keeper.hears(between.Connected, lambda said: "refuses the login" in said.why)
    world.server.failing = False
    await world.keeper.hears(between.NewCredentials)
    await world.connected()


async def test_a_refused_login_is_told_and_tried_again_until_it_can_be_renewed(world: Any) -> None:
    """Refused by NATS and nothing to be had over HTTPS: it says which, and goes on trying."""
    world.server.failing = True
    world.links(world.credentials(life=LAPSED))
    assert "refuses the login" in (await world.connected(False)).why
    world.server.failing = False
    await world.keeper.hears(between.NewCredentials)
    await world.connected()


async def test_at_half_its_life_a_credential_is_renewed(world: Any) -> None:
    """The connection is made anew with the new one, long before the old one lapses."""
    world.links(world.credentials())
    await world.connected()
    assert world.server.calls == []
    world.ahead += timedelta(hours=12).total_seconds()
    await world.keeper.hears(between.NewCredentials)
    await world.connected(False)
    await world.connected()
    assert world.server.calls == ["credentials"]


async def test_past_half_its_life_a_credential_is_renewed_at_the_start(world: Any) -> None:
    """The age of what lies on disk is read from the credential."""
    world.clock.advance(timedelta(hours=13))
    world.links(world.credentials())
    await world.keeper.hears(between.NewCredentials)


async def test_an_unknown_key_renews_once_a_minute_at_most(world: Any) -> None:
    """The keeper asks for the newest key set; a forged document a second costs one call a minute."""
    world.links(world.credentials())
    await world.connected()
    world.keeper.say(between.Renew())
    await world.keeper.hears(between.NewCredentials)
    await world.connected()
    world.keeper.say(between.Renew())
    assert (await world.keeper.asks("heartbeat", "{}")).problem  # the wish was heard before
    assert world.server.calls == ["credentials"]
    world.ahead += 61
    await world.keeper.hears(between.NewCredentials)
    assert world.server.calls == ["credentials", "credentials"]


async def test_a_revoked_computer_is_cut_and_renews(world: Any) -> None:
    """Revoked at the bus: cut at once, refused; a credential issued later is accepted."""
    world.links(world.credentials())
    await world.connected()
    world.server.failing = True

    now = system_clock()
    await update_agents_account(world, {world.keeper.nkey.id: int(now.timestamp())})
    try:
        assert "revoked" in (await world.connected(False)).why.lower()
        assert "refuses the login" in (await world.connected(False)).why
        world.server.issue = lambda: later(world)
        world.server.failing = False
        await world.keeper.hears(between.NewCredentials)
        await world.connected()
    finally:
        await update_agents_account(world, {})


async def test_a_decommissioned_computer_fetches_its_last_document(world: Any) -> None:
    """410: no credentials ever again, but the document that ends every grant."""
    world.server.gone = True
    world.links(world.credentials(life=LAPSED))
    await world.keeper.hears(between.Connected, lambda said: "decommissioned" in said.why)
    fetched = await world.keeper.hears(between.FetchedDocument)
    assert (fetched.document, fetched.keys) == ("the.document.jws", "the.keys.jws")
    assert world.server.calls == ["credentials", "document"]


async def test_after_ten_minutes_without_nats_the_document_comes_over_https(world: Any) -> None:
    """Once each ten minutes, and not while NATS is there."""
    world.links(world.credentials())
    await world.connected()
    world.ahead += 601
    assert (await world.keeper.asks("heartbeat", "{}")).problem
    assert world.server.calls == []

    world.nats.stop()
    try:
        await world.connected(False)
        world.ahead += 601
        await world.keeper.hears(between.FetchedDocument)
        world.ahead += 601
        await world.keeper.hears(between.FetchedDocument)
    finally:
        world.nats.start()
    await world.connected()
    assert world.server.calls == ["document", "document"]


def test_validity_is_read_from_the_credential() -> None:
    """Half life counts from the issue; a clock before the issue means renew now; junk falls back to `expires_at`."""
    now = system_clock()
    claims = base64.urlsafe_b64encode(json.dumps({"iat": 1000, "exp": 5000}).encode()).rstrip(b"=").decode()
    credentials = wire.Credentials(jwt=f"h.{claims}.s", expires_at=now, nats_urls=[], inbox_prefix="")
    validity = Validity.of(credentials)
    assert validity.half_life == 2000
    assert validity.until_half(now) == 0
    junk = wire.Credentials(jwt="junk", expires_at=now + timedelta(hours=3), nats_urls=[], inbox_prefix="")
    assert Validity.of(junk).until_half(now + timedelta(hours=2)) == pytest.approx(1800)
    assert Validity.of(junk).until_half(now) == 0


@pytest.mark.parametrize("server", ["http://example.com", "ftp://x", "example.com", "https://", "https://u:p@x", ""])
def test_only_https_and_loopback_are_called(server: str) -> None:
    """Nothing secret goes out in the clear."""
    with pytest.raises(ValueError, match=r"https|address"):
        https.checked_server(server)


def test_good_addresses_are_taken() -> None:
    """https anywhere, http on this computer."""
    for server in ("https://sojourn.example.com", "https://x:8443/base", "http://127.0.0.1:8400", "http://[::1]:1"):
        assert https.checked_server(server) == server


def test_a_server_that_is_not_there_is_a_sentence() -> None:
    """No trace: which address, and why."""
    with pytest.raises(https.NoAnswer, match=r"^http://127.0.0.1:1 cannot be reached: "):
        https.post("http://127.0.0.1:1", "/x", b"{}")


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to see that the link drops it")
async def test_the_process_drops_root_and_dies_with_its_keeper(world: Any) -> None:
    """As the keeper starts it: another uid, no groups, no way back; connected; gone when the socket closes."""
    process = start(world.keeper.links_end, "--uid", "64192", "--gid", "64192")
    world.keeper.links_end.close()
    world.keeper.links_end = socket.socket()
    try:
        world.keeper.start(world.server.url, world.credentials())
        await world.connected()
        with open(f"/proc/{process.pid}/status") as status:
            told = dict(line.rstrip("\n").split(":\t", 1) for line in status)
        assert told["Uid"].split() == ["64192"] * 4
        assert told["Gid"].split() == ["64192"] * 4
        assert told["Groups"].strip() == ""
        assert told["NoNewPrivs"] == "1"
        assert int(told["CapEff"], 16) == int(told["CapPrm"], 16) == 0
        world.keeper.close()
        assert process.wait(5) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to be refused as such")
def test_the_process_does_not_run_as_root() -> None:
    """Started as root without another uid it says so and ends."""
    near, far = socket.socketpair()
    with near, far:
        process = start(far, stderr=subprocess.PIPE)
        _, said = process.communicate(timeout=10)
        assert process.returncode == 1
        assert b"does not run as root" in said


def start(end: socket.socket, *more: str, stderr: int | None = None) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "sojourn_agent.link", "--fd", str(end.fileno()), *more]
    return subprocess.Popen(command, pass_fds=[end.fileno()], stderr=stderr)


def later(world: Any) -> wire.Credentials:
    """A credential issued in the second after now: a revocation refuses all issued up to its second."""
    now = system_clock() + timedelta(seconds=1)
    issuer = Key(world.nats.agent_issuer.seed)
    claims = {"issuer_account": world.nats.agent_issuer.account}
    exp = int((now + timedelta(hours=1)).timestamp())
    jwt = issuer.token(world.keeper.nkey.id, world.keeper.computer_id, "user", claims, now, exp=exp)
    return wire.Credentials(jwt=jwt, expires_at=now, nats_urls=[world.nats.url], inbox_prefix="")


async def update_agents_account(world: Any, revocations: dict[str, int]) -> None:
    """What removing a computer does at the bus: the account's JWT with its revocations, sent from SYS."""
    accounts = world.nats.accounts
    body = accounts.account_jwt("AGENTS").split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))["nats"]
    claims = {name: value for name, value in claims.items() if name not in ("type", "version")}
    account = accounts.account_ids["AGENTS"]
    jwt = accounts.operator.token(account, "AGENTS", "account", claims | {"revocations": revocations}, system_clock())
    system = await world.client(SYSTEM)
    answer = await system.request(f"$SYS.REQ.ACCOUNT.{account}.CLAIMS.UPDATE", jwt.encode(), timeout=5)
    assert b"jwt updated" in answer.data, answer.data
