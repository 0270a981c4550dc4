"""The link between a keeper and a real NATS server: pushes, questions, reports, outages."""

import asyncio
import contextlib
from typing import Any

import pytest
from nats.js.errors import APIError

from sojourn_agent import between
from sojourn_shared.contracts import wire
from sojourn_shared.service.nats_accounts import PROVISIONER


async def test_a_push_after_connected_arrives(world: Any) -> None:
    """When the link says connected, the server has its subscriptions: nothing pushed from then on is missed."""
    expiry, requests = await world.client("expiry"), await world.client("requests")
    world.links(world.credentials())
    await world.connected()

    for client, kind in ((expiry, "grant"), (expiry, "revoke"), (requests, "decision")):
        await client.publish(f"{world.subject}.{kind}", kind.encode() * 3)
        pushed = await world.keeper.hears(between.Pushed)
        assert (pushed.kind, pushed.body) == (kind, kind * 3)


async def test_a_push_that_is_no_text_or_too_long_is_dropped(world: Any) -> None:
    """What cannot be a document never reaches the keeper, and the connection stands."""
    expiry = await world.client("expiry")
    world.links(world.credentials())
    await world.connected()

    await expiry.publish(f"{world.subject}.grant", b"\xff\xfe")
    await expiry.publish(f"{world.subject}.grant", b"x" * (wire.DOCUMENT_LIMIT + 1))
    await expiry.publish(f"{world.subject}.grant", b"x" * wire.DOCUMENT_LIMIT)

    assert len((await world.keeper.hears(between.Pushed)).body) == wire.DOCUMENT_LIMIT


async def test_questions_are_answered(world: Any) -> None:
    """The body goes to the service and comes back; half a megabyte of rules too."""

    async def backwards(body: bytes) -> bytes:
        return body[::-1]

    async def rules(body: bytes) -> bytes:
        return b'"' * wire.RULE_SET_LIMIT

    await world.answers("heartbeat", backwards)
    await world.answers("rules", rules)
    world.links(world.credentials())
    await world.connected()

    assert (await world.keeper.asks("heartbeat", "abc")).body == "cba"
    long = await world.keeper.asks("rules", "{}")
    assert long.body == '"' * wire.RULE_SET_LIMIT


async def test_a_question_without_an_answer_says_why(world: Any) -> None:
    """Nobody there, nobody in time, too long to ask: each has its sentence, and each comes within the limit."""
    never = asyncio.Event()

    async def silent(body: bytes) -> bytes:
        await never.wait()
        return b""

    await world.answers("terms", silent)
    world.links(world.credentials())
    await world.connected()

    assert (await world.keeper.asks("decision", "{}")).problem == "the service that answers is away"
    assert (await world.keeper.asks("terms", "{}", timeout_ms=100)).problem == "no answer within 0.1 s"
    assert "the limit is 65536" in (await world.keeper.asks("rules", "x" * 65_537)).problem
    never.set()


async def test_reports_are_stored_in_order_and_acknowledged(world: Any) -> None:
    """Delivered is said after the stream's acknowledgement; reports of a kind keep their order, each with its id."""
    world.links(world.credentials())
    await world.connected()

    ids = [world.keeper.reports("applied", f"report.{number}.x") for number in range(50)]
    assert [(await world.keeper.hears(between.Delivered)).report_id for _ in ids] == ids

    expiry = (await world.client("expiry")).jetstream()
    pull = await expiry.pull_subscribe_bind("expiry", "REPORTS")
    mine: list[Any] = []
    while len(mine) < len(ids):
        for message in await pull.fetch(50, timeout=5):
            await message.ack_sync()
            mine += [message] if world.subject in message.subject else []
    assert [message.data.decode() for message in mine] == [f"report.{number}.x" for number in range(50)]
    assert [message.headers["Nats-Msg-Id"] for message in mine] == ids


async def test_an_offer_made_twice_is_published_once(world: Any) -> None:
    """The keeper may offer again what is still on its way."""
    world.links(world.credentials())
    await world.connected()
    first = world.keeper.reports("moved")
    world.keeper.reports("moved", report_id=first)
    await world.keeper.hears(between.Delivered)
    world.keeper.reports("moved")
    await world.keeper.hears(between.Delivered)
    assert await world.stored("moved") == 2


async def test_a_report_that_is_too_long_costs_no_connection(world: Any) -> None:
    """The server would close the connection; the link says no itself."""
    world.links(world.credentials())
    await world.connected()
    report = world.keeper.reports("applied", "x" * wire.REPORT_LIMIT)
    refused = await world.keeper.hears(between.Undelivered)
    assert refused.report_id == report
    assert "the limit is 65536" in refused.why

    world.keeper.reports("applied", "x" * between.LONGEST_REPORT)
    await world.keeper.hears(between.Delivered)


async def test_a_full_queue_keeps_reports_with_the_keeper(world: Any) -> None:
    """The thousandth and first of a kind is not taken, those behind it neither; other kinds go on; room is used."""
    world.links(world.credentials())
    await world.connected()
    provisioner = await world.client(PROVISIONER)
    jetstream, subject = provisioner.jetstream(), f"{world.subject}.report.refused"
    waiting = [await jetstream.publish_async(subject, b"x") for _ in range(1000)]
    await asyncio.gather(*waiting)
    with pytest.raises(APIError):
        await jetstream.publish(subject, b"x")

    first, second = world.keeper.reports("refused"), world.keeper.reports("refused")
    for report in (first, second):
        undelivered = await world.keeper.hears(between.Undelivered)
        assert undelivered.report_id == report
        assert "queue for this kind of report is full" in undelivered.why
    world.keeper.reports("health")
    await world.keeper.hears(between.Delivered)

    await jetstream.purge_stream("REPORTS", subject=subject)
    world.keeper.reports("refused", report_id=first)
    assert (await world.keeper.hears(between.Delivered)).report_id == first


async def test_a_lost_acknowledgement_stores_nothing_twice(world: Any) -> None:
    """The report arrived, its acknowledgement did not: the keeper hears *undelivered*, offers again, one is stored."""
    world.links(world.credentials(through_proxy=True))
    await world.connected()
    world.keeper.reports("ended")
    await world.keeper.hears(between.Delivered)

    world.proxy.swallow = True
    report = world.keeper.reports("ended")
    async with asyncio.timeout(10):
        while await world.stored("ended") < 2:
            await asyncio.sleep(0.01)
    world.proxy.cut()
    assert (await world.keeper.hears(between.Undelivered)).report_id == report

    world.proxy.swallow = False
    await world.connected()
    world.keeper.reports("ended", report_id=report)
    assert (await world.keeper.hears(between.Delivered)).report_id == report
    assert await world.stored("ended") == 2


async def test_an_outage_is_told_and_survived(world: Any) -> None:
    """The server goes: connected is taken back, reports and questions are answered at once; it returns: all works."""
    world.links(world.credentials())
    await world.connected()

    world.nats.stop()
    try:
        assert (await world.connected(False)).why
        world.keeper.reports("applied")
        assert "not connected" in (await world.keeper.hears(between.Undelivered)).why
        assert "not connected" in (await world.keeper.asks("heartbeat", "{}")).problem
    finally:
        world.nats.start()

    await world.connected()
    world.keeper.reports("applied")
    await world.keeper.hears(between.Delivered)


async def test_a_server_that_is_not_there_is_unreachable_not_refusing(world: Any) -> None:
    """No credential is renewed because a server is away."""
    away = wire.Credentials(
        jwt=world.credentials().jwt,
        expires_at=world.clock(),
        nats_urls=["nats://127.0.0.1:1"],
        inbox_prefix="_INBOX_x",
    )
    world.links(away)
    said = await world.connected(False)
    assert said.why.startswith("nats://127.0.0.1:1: ")
    assert world.server.calls == []


async def test_of_several_servers_one_is_enough(world: Any) -> None:
    """The next address is tried when one cannot be reached."""
    good = world.credentials()
    several = wire.Credentials(
        jwt=good.jwt,
        expires_at=good.expires_at,
        nats_urls=["nats://127.0.0.1:1", *good.nats_urls],
        inbox_prefix=good.inbox_prefix,
    )
    world.links(several)
    await world.connected()


async def test_no_credential_goes_out_in_the_clear(world: Any) -> None:
    """A server that is asked for TLS and offers none gets neither the JWT nor a signature."""
    good = world.credentials()
    plain = wire.Credentials(
        jwt=good.jwt,
        expires_at=good.expires_at,
        nats_urls=[url.replace("nats:", "tls:") for url in good.nats_urls],
        inbox_prefix=good.inbox_prefix,
    )
    world.links(plain)
    assert "offers no TLS" in (await world.connected(False)).why


async def test_a_keeper_that_does_not_sign_leaves_no_broken_client(world: Any) -> None:
    """Whatever the signature's callback meets, the next try is a whole one."""
    world.keeper.signs = False
    world.links(world.credentials())
    assert "does not sign" in (await world.connected(False)).why
    world.keeper.signs = True
    await world.connected()


async def test_the_link_ends_with_its_keeper(world: Any) -> None:
    """The socket closed: there is nothing to link, and it ends without an error."""
    world.links(world.credentials())
    await world.connected()
    world.keeper.close()
    async with asyncio.timeout(5):
        await world.task


async def test_a_keeper_that_sends_no_frames_is_left(world: Any) -> None:
    """Bytes that are none of the protocol end the link; it guesses nothing."""
    world.links(world.credentials())
    with contextlib.suppress(OSError):
        world.keeper.end.sendall(b"\xff" * 100)
    async with asyncio.timeout(5):
        await world.task
