"""The live feed, over a real socket: news at once, nothing missed after a break, no stop that it would hold up."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import uvicorn

from sojourn_audit import answers
from sojourn_audit.app import SERVICE
from sojourn_shared.contracts.events import Links
from sojourn_shared.service import Caller
from sojourn_shared.service.auth import mint
from sojourn_shared.service.testing import ADMIN, OpenHouse, person
from sojourn_shared.signing import PrivateKey, base64url

from .conftest import Audit

NOWHERE = "nats://127.0.0.1:1"


@dataclass
class Stream:
    """What a reader of the stream got."""

    response: httpx.Response
    comments: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    pieces: AsyncIterator[str] | None = None

    async def next(self) -> dict[str, Any]:
        """The next event, within 5 seconds."""
        async with asyncio.timeout(5):
            return await self._next()

    async def _next(self) -> dict[str, Any]:
        self.pieces = self.pieces or self.response.aiter_lines()
        async for line in self.pieces:
            name, _, value = line.partition(": ")
            if name == "id":
                self.ids.append(int(value))
            elif name == "data":
                event: dict[str, Any] = json.loads(value)
                return event
            elif line:
                self.comments.append(line)
        raise EOFError("the stream ended")


@dataclass
class Served:
    """The service on a real port."""

    audit: Audit
    server: uvicorn.Server
    serving: "asyncio.Task[None]"

    @contextlib.asynccontextmanager
    async def watches(
        self, query: str = "", caller: Caller = ADMIN, last_event_id: int | None = None
    ) -> AsyncIterator[Stream]:
        (listener,) = self.server.servers
        host, port = listener.sockets[0].getsockname()
        house = self.audit.house
        headers = {"Authorization": f"Bearer {mint(caller, 'audit', house.gateway_key, house.clock())}"}
        headers |= {"Last-Event-ID": str(last_event_id)} if last_event_id is not None else {}
        async with (
            httpx.AsyncClient(base_url=f"http://{host}:{port}/api/v1", timeout=10) as client,
            client.stream("GET", f"/audit/stream{query}", headers=headers) as response,
        ):
            assert response.headers["content-type"].startswith("text/event-stream")
            yield Stream(response)

    async def stops(self) -> None:
        self.server.should_exit = True
        await self.serving


@pytest.fixture
async def served(house_of: OpenHouse) -> AsyncIterator[Served]:
    settings = {"ledger_key": base64url(PrivateKey.generate().seed), "nats_url": NOWHERE}
    async with house_of(SERVICE, **settings) as house:
        config = uvicorn.Config(
            house.app, port=0, lifespan="on", access_log=False, log_config=None, timeout_graceful_shutdown=2
        )
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        async with asyncio.timeout(5):
            while not server.started:
                await asyncio.sleep(0.01)
        opened = Served(Audit(house), server, serving)
        try:
            yield opened
        finally:
            await opened.stops()


async def test_news_arrives_with_its_place_as_id(served: Served) -> None:
    """From now on when nothing else is asked; the reader is told when to come back after a break."""
    await served.audit.records(2)
    async with served.watches() as stream:
        event = await served.audit.hears("policy.deployed", name="Drivers")
        told = await stream.next()
    assert (told["seq"], told["id"], told["summary"]) == (2, event.id, "Ada deployed the policy “Drivers”")
    assert stream.ids == [2]
    assert stream.comments == ["retry: 2000"]


async def test_a_reader_who_comes_back_misses_nothing(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """`Last-Event-ID` is where it goes on, whatever `after` said at first; more than one piece of reading too."""
    monkeypatch.setattr(answers, "PIECE", 5)
    await served.audit.records(20)
    async with served.watches("?after=1", last_event_id=9) as stream:
        assert [(await stream.next())["seq"] for _ in range(10)] == list(range(10, 20))
        await served.audit.hears()
        assert (await stream.next())["seq"] == 20


async def test_the_stream_shows_only_what_is_asked_and_may_be_read(served: Served) -> None:
    """The filters of the list, and a requester's own events."""
    bob = person("Bob", "requester", os_users=("bob",))
    async with served.watches(caller=bob) as his, served.watches("?type=grant.*") as grants:
        await served.audit.hears("request.submitted", links=Links(user="alice"), service="requests")
        await served.audit.hears("request.submitted", links=Links(user="bob"), service="requests")
        await served.audit.hears("grant.ready", service="expiry")
        assert (await his.next())["seq"] == 1
        assert (await grants.next())["seq"] == 2


async def test_many_readers_each_get_every_event(served: Served) -> None:
    """One wake-up call serves them all."""
    async with contextlib.AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(served.watches()) for _ in range(20)]
        for number in range(3):
            await served.audit.hears(name=str(number))
            told = await asyncio.gather(*(stream.next() for stream in streams))
            assert {event["seq"] for event in told} == {number}


async def test_a_silent_stream_shows_that_it_lives(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Comments while there is nothing new; the end after its time, so that a lost role does not read on."""
    monkeypatch.setattr(answers, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(answers, "STREAM_SECONDS", 0.3)
    async with served.watches() as stream:
        with pytest.raises(EOFError):
            await stream.next()
    assert stream.comments[0] == "retry: 2000"
    assert 3 <= stream.comments.count(": nothing new") <= 7


async def test_an_open_stream_does_not_hold_up_the_stop(served: Served) -> None:
    """The service stops within its grace, whoever watches."""
    async with served.watches():
        async with asyncio.timeout(4):
            await served.stops()


async def test_a_reader_who_goes_leaves_nothing_behind(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The work for a stream ends with its reader."""
    open_streams = 0
    watched = answers.watched

    async def counted(*arguments: Any) -> AsyncIterator[bytes]:
        nonlocal open_streams
        open_streams += 1
        try:
            async for piece in watched(*arguments):
                yield piece
        finally:
            open_streams -= 1

    monkeypatch.setattr(answers, "watched", counted)
    async with served.watches() as stream:
        await served.audit.hears()
        await stream.next()
        assert open_streams == 1
    await eventually(lambda: open_streams == 0)


async def eventually(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0.01)
