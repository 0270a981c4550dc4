"""One service's connection to NATS: events out and in, reports in, questions answered, documents and decisions pushed.

The service may be up while NATS is not: what must not be lost waits in the outbox, in the streams and on the computers.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.client import JetStreamContext

log = structlog.get_logger(__name__)

# Below the 60 s after which the server forgets the way back of a pull through an import; and short, because a pull of a
# service that died still takes messages, which come again only after the consumer's ack_wait.
PULL_SECONDS = 5
PULL_BATCH = 100
PUBLISH_SECONDS = 5.0
RECONNECT_SECONDS = 0.25
ASKS_AT_ONCE = 200  # a flood of questions waits here, not in the database's pool

Answering = Callable[[str, bytes], Awaitable[bytes | None]]


class BusGone(ConnectionError):
    """There is no connection to NATS now."""


class Bus:
    """The connection, made and made again in the background."""

    def __init__(self, service: str, url: str, creds: Path | None) -> None:
        self._service = service
        self._url = url
        self._creds = creds
        self._client: Client | None = None
        self._js: JetStreamContext | None = None
        self._pulls: set[asyncio.Queue[Msg | None]] = set()
        self._asks: dict[str, Answering] = {}
        self._room = asyncio.Semaphore(ASKS_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self.up = asyncio.Event()

    def answer(self, ask: str, answering: Answering) -> None:
        """Answer `sojourn.agent.*.ask.<ask>` with what `answering(computer_id, body)` returns; None = no answer."""
        self._asks[ask] = answering

    async def run(self) -> None:
        """Keep a connection for ever."""
        while True:
            client, closed = Client(), asyncio.Event()
            try:
                await self._connect(client, closed)
            except (OSError, nats.errors.Error, TimeoutError) as error:
                log.warning("nats unavailable", url=self._url, error=str(error) or repr(error))
                await _close(client)  # a refused login leaves its socket open
                await asyncio.sleep(RECONNECT_SECONDS * 4)
                continue
            try:
                await closed.wait()
            finally:
                self._down()
                await _close(client)
            log.warning("nats connection closed", reason=str(client.last_error))
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _connect(self, client: Client, closed: asyncio.Event) -> None:
        async def on_error(error: Exception) -> None:
            log.warning("nats", error=str(error) or repr(error))

        async def on_closed() -> None:
            closed.set()

        async def on_disconnected() -> None:
            self._down()

        async def on_reconnected() -> None:
            self._up(client)

        await client.connect(
            self._url,
            name=f"sojourn-{self._service}",
            user_credentials=str(self._creds) if self._creds else None,
            inbox_prefix=f"_INBOX_{self._service}",
            max_reconnect_attempts=-1,
            allow_reconnect=True,
            reconnect_time_wait=RECONNECT_SECONDS,  # type: ignore[arg-type]  # annotated int, takes a float
            connect_timeout=3,
            error_cb=on_error,
            closed_cb=on_closed,
            disconnected_cb=on_disconnected,
            reconnected_cb=on_reconnected,
        )
        for ask, answering in self._asks.items():
            await client.subscribe(
                f"sojourn.agent.*.ask.{ask}", queue=self._service, cb=self._answering(client, answering)
            )
        self._up(client)
        log.info("nats connected", url=self._url)

    def _up(self, client: Client) -> None:
        self._client, self._js = client, client.jetstream(timeout=PUBLISH_SECONDS)
        self.up.set()
        for queue in self._pulls:  # a pull that was under way is lost: ask again now, not at its end
            queue.put_nowait(None)

    def _down(self) -> None:
        self.up.clear()

    def _answering(self, client: Client, answering: Answering) -> Callable[[Msg], Awaitable[None]]:
        async def answer(message: Msg) -> None:
            try:
                body = await answering(message.subject.split(".")[2], message.data)
            except Exception as error:
                log.error("a question failed", subject=message.subject, exc_info=error)
                return
            if body is not None and message.reply:
                # not msg.respond(): that would send the question's headers back
                await client.publish(message.reply, body)

        async def start(message: Msg) -> None:
            await self._room.acquire()  # the next ones wait in the subscription, which holds so many and no more
            task = asyncio.create_task(answer(message))
            self._tasks.add(task)
            task.add_done_callback(self._answered)

        return start

    def _answered(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        self._room.release()

    async def publish(self, subject: str, body: bytes, message_id: str) -> None:
        """Publish to a stream; returns when it is stored. Raises BusGone or what NATS says."""
        if self._js is None or not self.up.is_set():
            raise BusGone("NATS is not connected")
        await self._js.publish(subject, body, timeout=PUBLISH_SECONDS, headers={"Nats-Msg-Id": message_id})

    async def push(self, computer_id: str, kind: str, body: bytes) -> bool:
        """Send to one computer, if it listens; the truth is fetched when it did not. False when NATS is away."""
        if self._client is None or not self.up.is_set():
            return False
        try:
            await self._client.publish(f"sojourn.agent.{computer_id}.{kind}", body)
        except (nats.errors.Error, OSError):
            return False
        return True

    async def pull(self, stream: str) -> AsyncIterator[Msg]:
        """The messages of this service's durable consumer on `stream`, for ever, as they come."""
        queue: asyncio.Queue[Msg | None] = asyncio.Queue()
        self._pulls.add(queue)
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{self._service}"
        ask = json.dumps({"batch": PULL_BATCH, "expires": PULL_SECONDS * 10**9}).encode()
        client: Client | None = None
        inbox = ""
        try:
            while True:
                await self.up.wait()
                assert self._client is not None
                if client is not self._client:
                    # One inbox for as long as the connection lives: what a pull that we gave up on still brings
                    # arrives there, instead of being lost until the server sends it again.
                    client, inbox = self._client, self._client.new_inbox()
                    await client.subscribe(inbox, cb=queue.put)
                await client.publish(subject, ask, reply=inbox)
                async for message in _one_pull(queue):
                    yield message
        finally:
            self._pulls.discard(queue)

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        if self._client is not None:
            await _close(self._client)


async def _close(client: Client) -> None:
    with contextlib.suppress(Exception):
        async with asyncio.timeout(1):  # while it tries to reconnect, it would wait for its own flusher
            await client.close()


async def _one_pull(queue: "asyncio.Queue[Msg | None]") -> AsyncIterator[Msg]:
    for _ in range(PULL_BATCH):
        try:
            message = await asyncio.wait_for(queue.get(), PULL_SECONDS + 5)
        except TimeoutError:
            return
        if message is None:
            return
        status = (message.headers or {}).get("Status") if not message.data else None
        if status:
            if status not in {"404", "408"}:  # 409 and 503: the consumer or JetStream is not there now
                await asyncio.sleep(RECONNECT_SECONDS)
            return
        yield message
