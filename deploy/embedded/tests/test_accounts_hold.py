"""The accounts hold: the server never checks a message's reply-to, and yet nobody reaches what is not theirs.

Each permitted publish and pull is made with each evil reply-to, as an agent and as a user of a service's account who
may do all that the account can. Afterwards streams, consumers, events, reports and the other computer are as before.
"""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import nats.errors
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.errors import APIError, NotFoundError

from sojourn_embedded.testing import TestNats
from sojourn_shared.clock import system_clock
from sojourn_shared.contracts import wire
from sojourn_shared.ids import new_id
from sojourn_shared.service.nats_accounts import (
    DUTIES,
    PUSHES,
    UPWARD,
    Key,
    agent_jwt,
    streams_of,
)

A, B = new_id(system_clock()), new_id(system_clock())

OF_B = [
    f"sojourn.agent.{B}.{last}" for last in ("report.ended", "report.request", "ask.heartbeat", "ask.terms", *PUSHES)
]
EVIL = [
    *OF_B,
    "$JS.API.STREAM.DELETE.EVENTS",
    "$JS.API.STREAM.PURGE.REPORTS",
    "$JS.API.STREAM.MSG.DELETE.EVENTS",
    "$JS.API.CONSUMER.DELETE.REPORTS.expiry",
    "$JS.API.CONSUMER.DELETE.EVENTS.audit",
    "$JS.ACK.REPORTS.expiry.1.1.1.1.0",
    "$SYS.REQ.SERVER.PING",
    "_R_.abcdef.abcdef",
    f"_INBOX_{B}.x",
    "_INBOX_expiry.x",
    *(f"sojourn.events.{service}.thing.forged.1" for service in DUTIES),
]


class Town:
    """The services answering their questions, computers A and B connected, and what everybody was told."""

    def __init__(self, bus: TestNats) -> None:
        self.bus = bus
        self.refusals: list[str] = []
        self.asked: list[str] = []
        self.reached_b: list[str] = []
        self._open: list[Client] = []
        self._stock: dict[str, int] = {}

    async def connect(self, name: str, key: Key, jwt: str) -> Client:
        async def refused(error: Exception) -> None:
            self.refusals.append(str(error))

        client = Client()
        self._open.append(client)
        await client.connect(
            self.bus.url,
            inbox_prefix=f"_INBOX_{name}",
            signature_cb=key.sign,
            user_jwt_cb=lambda: bytearray(jwt.encode()),
            error_cb=refused,
            allow_reconnect=False,
        )
        return client

    async def agent(self, computer: str, life: timedelta = timedelta(hours=24)) -> Client:
        link, issuer = Key.new("USER"), self.bus.agent_issuer
        jwt = agent_jwt(issuer.seed, issuer.account, computer, link.id, system_clock(), life=life)
        return await self.connect(computer, link, jwt)

    async def user(self, name: str) -> Client:
        accounts = self.bus.accounts
        jwt = accounts.credentials(name).splitlines()[1]
        return await self.connect(name, accounts.users[name], jwt)

    async def rogue(self, service: str) -> Client:
        """Somebody in the service's account without any permission to hold them back."""
        accounts, key, account = self.bus.accounts, Key.new("USER"), service.upper()
        everything = {"allow": [">"]}
        jwt = accounts.signers[account].token(
            key.id,
            "rogue",
            "user",
            {
                **dict.fromkeys(("subs", "data", "payload"), -1),
                "pub": everything,
                "sub": everything,
                "issuer_account": accounts.account_ids[account],
            },
            system_clock(),
        )
        return await self.connect("rogue", key, jwt)

    async def open(self) -> None:
        self.provisioner = await self.user("provisioner")
        for service, duties in DUTIES.items():
            client = await self.user(service)
            for ask in duties.asks:
                await client.subscribe(f"sojourn.agent.*.ask.{ask}", queue=service, cb=self._answerer(client))
            await client.flush()
        self.a, self.b = await self.agent(A), await self.agent(B)
        for push in PUSHES:
            await self.b.subscribe(f"sojourn.agent.{B}.{push}", cb=self._received)
        await self.b.flush()
        for client, subject in (
            (self.a, f"sojourn.agent.{A}.report.health"),
            (self.b, f"sojourn.agent.{B}.report.health"),
        ):
            await client.jetstream().publish(subject, b"{}")  # something to lose
        self._stock = await self._count()

    async def close(self) -> None:
        for client in self._open:
            await client.close()

    async def say(self, client: Client, subject: str, data: bytes = b"x", reply: str = "") -> list[str]:
        """What the client was told about it: nothing means that the server let it pass."""
        self.refusals.clear()
        await client.publish(subject, data, reply=reply)
        await settle(client)
        return list(self.refusals)

    async def hear(self, client: Client, subject: str) -> list[str]:
        self.refusals.clear()
        await client.subscribe(subject)
        await settle(client)
        return list(self.refusals)

    async def harm(self, own: str) -> list[str]:
        """What changed since the last call, other than on subjects that contain `own`."""
        await asyncio.sleep(0.03)  # for what the server does on its own, in answer
        now, before = await self._count(), self._stock
        found = {
            f"{subject}: {before.get(subject, 0)} -> {now.get(subject, 0)}"
            for subject in {*before, *now}
            if now.get(subject, 0) < before.get(subject, 0)
            or (now.get(subject, 0) > before.get(subject, 0) and own not in subject)
        }
        found |= {f"B received {text}" for text in self.reached_b}
        found |= {f"asked as B: {subject}" for subject in self.asked if B in subject}
        self._stock = now
        self.reached_b.clear()
        self.asked.clear()
        return sorted(found)

    async def _count(self) -> dict[str, int]:
        jetstream, count = self.provisioner.jetstream(), dict[str, int]()
        for stream in ("EVENTS", "REPORTS"):
            try:
                info = await jetstream.stream_info(stream, subjects_filter=">")
            except NotFoundError:
                continue
            count[f"stream {stream}"] = 1
            count |= {f"{stream} {subject}": number for subject, number in (info.state.subjects or {}).items()}
            count |= {f"{stream} consumer {each.name}": 1 for each in await jetstream.consumers_info(stream)}
        return count

    def _answerer(self, client: Client) -> Any:
        async def answer(message: Msg) -> None:
            self.asked.append(message.subject)
            if message.reply:
                await client.publish(message.reply, b"answer to " + message.data)

        return answer

    async def _received(self, message: Msg) -> None:
        self.reached_b.append(f"{message.subject}: {message.data[:40]!r}")


async def settle(client: Client) -> None:
    """Two, because nats-py writes the PING of one flush before what it has buffered."""
    await client.flush()
    await client.flush()


@pytest.fixture
async def town(nats: TestNats) -> AsyncIterator[Town]:
    town = Town(nats)
    await town.open()
    yield town
    await town.close()


async def test_questions_reports_and_events_arrive(town: Town) -> None:
    """Across accounts: an answer, an acknowledgement, and each service takes its own reports."""
    answer = await town.a.request(f"sojourn.agent.{A}.ask.heartbeat", b"now", timeout=5)
    assert answer.data == b"answer to now"
    assert not answer.headers
    ack = await town.a.jetstream().publish(f"sojourn.agent.{A}.report.ended", b"{}", timeout=5)
    assert ack.stream == "REPORTS"
    expiry = await town.user("expiry")
    pull = await expiry.jetstream().pull_subscribe_bind("expiry", "REPORTS")
    for message in await pull.fetch(100, timeout=2):
        assert wire.REPORT_KINDS[message.subject.rpartition(".")[2]] == "expiry"
        await message.ack_sync()
    await expiry.publish(f"sojourn.agent.{B}.revoke", b"document")
    await settle(expiry)
    await settle(town.b)
    assert town.reached_b == [f"sojourn.agent.{B}.revoke: b'document'"]


async def test_an_agent_says_and_hears_nothing_of_others(town: Town) -> None:
    """Another computer's subjects, kinds that nobody named, JetStream's and the system's are refused."""
    elsewhere = [*EVIL, f"sojourn.agent.{A}.report.invented", f"sojourn.agent.{A}.grant"]
    assert [subject for subject in elsewhere if not await town.say(town.a, subject)] == []
    for listen in (*OF_B, "sojourn.agent.*.ask.rules", "sojourn.>", ">", "$SYS.>", "_R_.>", f"_INBOX_{B}.>"):
        assert await town.hear(town.a, listen), listen


@pytest.mark.parametrize("service", DUTIES)
async def test_a_service_says_and_hears_nothing_of_others(town: Town, service: str) -> None:
    """Its own events and duties; not another's events, pushes or questions, and nothing of JetStream's interface."""
    client = await town.user(service)
    foreign = [subject for subject in EVIL if not is_duty(service, subject)]
    assert [subject for subject in foreign if not await town.say(client, subject)] == []
    for listen in ("sojourn.events.>", "sojourn.agent.*.grant", "sojourn.>", ">", "$SYS.>", f"_INBOX_{B}.>"):
        assert await town.hear(client, listen), listen
    assert await town.harm(own="nothing at all") == []


async def test_an_agent_steers_no_answer_to_anybody(town: Town) -> None:
    """Each of its publishes, with each evil reply-to: the server's answer, and a service's, ends nowhere."""
    for reply in EVIL:
        for up in UPWARD:
            await town.a.publish(f"sojourn.agent.{A}.{up}", b"x", reply=reply)
        await settle(town.a)
        assert await town.harm(own=f".{A}.") == [], f"reply-to {reply}"


@pytest.mark.parametrize("service", DUTIES)
async def test_a_taken_over_service_steers_no_answer_to_anybody(town: Town, service: str) -> None:
    """Even without permissions to hold it back: pulls, empty pulls, events and plain publishes, with each reply-to."""
    rogue = await town.rogue(service)
    foreign = [subject for subject in EVIL if not is_duty(service, subject)]
    for reply in foreign:
        for _ in range(2):  # a duplicate is answered otherwise
            await rogue.publish(f"sojourn.events.{service}.thing.made.1", b"x", reply=reply)
        for stream in streams_of(service):
            # What an empty pull is answered with is an empty message: a command, were the reply-to believed.
            for batch in (b"1", b'{"batch":999,"no_wait":true}', b'{"batch":999,"no_wait":true}'):
                await rogue.publish(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{service}", batch, reply=reply)
        for subject in foreign:
            await rogue.publish(subject, b"", reply=reply)
        await settle(rogue)
        assert await town.harm(own=f"sojourn.events.{service}.") == [], f"{service} with reply-to {reply}"


def is_duty(service: str, subject: str) -> bool:
    """Whether the table gives `service` the right to that subject anyway, or to answer there."""
    duties = DUTIES[service]
    mine = (*(f".{push}" for push in duties.pushes), *(f".ask.{ask}" for ask in duties.asks))
    rows = (f"sojourn.events.{service}.", f"$JS.ACK.REPORTS.{service}.", *(["_R_."] if duties.asks else []))
    return subject.endswith(mine) or subject.startswith(rows)


async def test_a_flood_of_one_kind_fills_only_that_queue(town: Town) -> None:
    """A computer's thousand-and-first report of a kind is refused; its other kinds and other computers go on."""
    flooder = await town.agent(computer := new_id(system_clock()))

    def report(client: Client, name: str, kind: str) -> Any:
        return client.jetstream().publish(f"sojourn.agent.{name}.report.{kind}", b"x", timeout=10)

    answers = await asyncio.gather(
        *(report(flooder, computer, "started") for _ in range(1_050)), return_exceptions=True
    )
    refused = [answer for answer in answers if isinstance(answer, APIError)]
    assert len(refused) == 50
    assert {error.err_code for error in refused} == {10077}
    assert await report(flooder, computer, "refused")
    assert await report(town.b, B, "started")


async def test_a_report_over_its_limit_is_refused(town: Town) -> None:
    """64 KiB is the payload that an agent may send; its connection ends there, and nothing was stored."""
    agent = await town.agent(A)
    with pytest.raises(nats.errors.Error):
        await agent.jetstream().publish(f"sojourn.agent.{A}.report.health", b"x" * (wire.REPORT_LIMIT + 1), timeout=2)
    assert await town.harm(own="nothing at all") == []


async def test_a_credential_past_its_end_connects_nobody(town: Town) -> None:
    """A lapsed one is refused at the door; a fresh one for the same computer is not."""
    with pytest.raises(nats.errors.Error):
        await town.agent(A, life=timedelta(seconds=-1))
    assert (await town.agent(A)).is_connected
