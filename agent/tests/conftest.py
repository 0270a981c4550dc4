"""A keeper, servers and a proxy that a test holds in its hand: what stands around the link and the command."""

import asyncio
import base64
import contextlib
import json
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

import msgspec
import nats as nats_client
import nats.aio.client
import nkeys
import pytest
from nats.js.api import StreamInfo

from sojourn_agent import between
from sojourn_agent.link.link import Link, Pauses
from sojourn_embedded.testing import TestNats
from sojourn_shared.clock import ManualClock, boottime, system_clock
from sojourn_shared.contracts import wire
from sojourn_shared.ids import new_id
from sojourn_shared.service.nats_accounts import PROVISIONER, Key, agent_jwt
from sojourn_shared.signing import BadSignature, PrivateKey, verify

QUICK = Pauses(connect=(0.02, 0.2), renew=(0.05, 0.2), look=0.05, stands=0.5, decommissioned=60.0)
T = TypeVar("T")


async def eventually(look: Callable[[], T | None], within: float = 10.0) -> T:
    """What `look` finds, as soon as that is something; a test that waits longer fails."""
    async with asyncio.timeout(within):
        while not (found := look()):
            await asyncio.sleep(0.01)
        return found


class HeldKeeper:
    """The keeper's end of the socketpair, in a thread as the real one is a process; it keeps all that it hears."""

    def __init__(self, computer_id: str) -> None:
        self.computer_id = computer_id
        self.nkey = Key.new("USER")
        self.key = PrivateKey.generate()
        self.signs = True
        self.heard: list[Any] = []
        self._asks = 0
        self.end, self.links_end = socket.socketpair()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def start(
        self, server: str, credentials: wire.Credentials, ca_pem: str | None = None, *, damaged: bool = False
    ) -> None:
        self.say(
            between.Start(
                computer_id=self.computer_id,
                server=server,
                link_public_key=self.nkey.id,
                credentials=wire.encode(credentials).decode()[: 100 if damaged else None],
                ca_pem=ca_pem,
            )
        )

    def say(self, message: between.FromKeeper) -> None:
        self.end.sendall(between.pack(message))

    async def hears(self, kind: type[T], which: Callable[[T], object] = lambda _: True, within: float = 10.0) -> T:
        """The first message of that kind since the last one asked for here; it and all before it are forgotten."""

        def look() -> T | None:
            for index, message in enumerate(self.heard):
                if isinstance(message, kind) and which(message):
                    del self.heard[: index + 1]
                    return message
            return None

        try:
            return await eventually(look, within)
        except TimeoutError:
            raise AssertionError(f"no such {kind.__name__} within {within} s, but {self.heard}") from None

    async def asks(self, kind: Any, body: str, timeout_ms: int = 2000) -> between.Answer:
        self._asks += 1
        number = self._asks
        self.say(between.Ask(ask=number, kind=kind, body=body, timeout_ms=timeout_ms))
        return await self.hears(between.Answer, lambda answer: answer.ask == number)

    def reports(self, kind: str, jws: str = "a.b.c", report_id: str | None = None) -> str:
        report_id = report_id or new_id(system_clock())
        self.say(between.Report(report_id=report_id, kind=kind, jws=jws))
        return report_id

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.end.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self.end.close()

    def _listen(self) -> None:
        frames = between.Frames(between.FromLink)
        with contextlib.suppress(OSError):
            while chunk := self.end.recv(65536):
                for message in frames.feed(chunk):
                    self._take(message)

    def _take(self, message: Any) -> None:
        match message:
            case between.SignNonce():
                pair = nkeys.from_seed(self.nkey.seed.encode())
                signature = base64.b64encode(pair.sign(message.nonce.encode())).decode() if self.signs else None
                self.say(between.Signature(ask=message.ask, signature=signature))
            case between.SignRenewal():
                renewal = wire.Renewal(computer_id=self.computer_id, link_public_key=self.nkey.id, nonce=message.nonce)
                jws = self.key.sign(wire.encode(renewal), "sojourn-renew") if self.signs else None
                self.say(between.Signature(ask=message.ask, signature=jws))
            case _:
                self.heard.append(message)


class HeldServer:
    """What answers the HTTPS calls of §4 of the contract as the services do: a nonce first, then the signed login."""

    issue: Callable[[], wire.Credentials]

    def __init__(self, keeper: HeldKeeper) -> None:
        self.keeper = keeper
        self.gone = False
        self.failing = False
        self.calls: list[str] = []
        self.nonces: set[str] = set()
        held = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, answer = held.answer(self.path, msgspec.json.decode(body, type=wire.ComputerLogin))
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def answer(self, path: str, login: wire.ComputerLogin) -> tuple[int, bytes]:
        what = path.removeprefix(f"/api/v1/computers/{self.keeper.computer_id}/")
        if self.failing:
            return 503, b'{"title": "Temporarily unavailable", "detail": "the database is away"}'
        if (renewal := self._proof(login)) is None:
            nonce = new_id(system_clock())
            self.nonces.add(nonce)
            return 401, json.dumps({"title": "Sign in first", "nonce": nonce}).encode()
        assert renewal.link_public_key == self.keeper.nkey.id
        self.nonces.discard(renewal.nonce)
        self.calls.append(what)
        if what == "document":
            return 200, wire.encode(wire.DocumentAnswer(document="the.document.jws", keys="the.keys.jws"))
        assert what == "credentials"
        if self.gone:
            return 410, b'{"title": "Gone"}'
        return 200, wire.encode(wire.Renewed(credentials=self.issue(), keys="the.keys.jws"))

    def _proof(self, login: wire.ComputerLogin) -> wire.Renewal | None:
        try:
            key = self.keeper.key
            payload = verify(login.renewal or "", "sojourn-renew", {key.kid: key.public})
        except BadSignature:
            return None
        renewal = msgspec.json.decode(payload, type=wire.Renewal)
        return renewal if renewal.nonce in self.nonces else None

    def close(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


class Proxy:
    """A TCP proxy before the NATS server: `swallow` loses what the server says, `cut` ends every connection."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.swallow = False

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"nats://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks)

    def cut(self) -> None:
        for writer in self._writers:
            writer.close()
        self._writers.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers += [writer, back]
        for source, target, from_server in ((reader, back, False), (there, writer, True)):
            task = asyncio.create_task(self._pump(source, target, from_server))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, from_server: bool) -> None:
        with contextlib.suppress(OSError):
            while chunk := await source.read(65536):
                if not (from_server and self.swallow):
                    target.write(chunk)
        target.close()
        with contextlib.suppress(OSError):
            await target.wait_closed()


@dataclass
class LinkWorld:
    """A computer with a running link, and everything around it."""

    nats: TestNats
    keeper: HeldKeeper
    server: HeldServer
    proxy: Proxy
    clock: ManualClock
    ahead: float = 0.0
    """Seconds by which the time since boot was moved."""
    clients: list[nats.aio.client.Client] = field(default_factory=list)
    task: asyncio.Task[None] | None = None

    @property
    def subject(self) -> str:
        return f"sojourn.agent.{self.keeper.computer_id}"

    def credentials(self, life: timedelta = timedelta(hours=24), *, through_proxy: bool = False) -> wire.Credentials:
        now = system_clock()
        issuer = self.nats.agent_issuer
        jwt = agent_jwt(issuer.seed, issuer.account, self.keeper.computer_id, self.keeper.nkey.id, now, life=life)
        urls = [self.proxy.url if through_proxy else self.nats.url]
        prefix = f"_INBOX_{self.keeper.computer_id}"
        return wire.Credentials(jwt=jwt, expires_at=now + life, nats_urls=urls, inbox_prefix=prefix)

    def links(self, credentials: wire.Credentials, ca_pem: str | None = None, *, damaged: bool = False) -> None:
        """Start the link, in this process."""
        link = Link(self.keeper.links_end, clock=self.clock, since_boot=lambda: boottime() + self.ahead, pauses=QUICK)
        self.task = asyncio.create_task(link.run())
        self.keeper.start(self.server.url, credentials, ca_pem, damaged=damaged)

    async def connected(self, up: bool = True) -> between.Connected:
        return await self.keeper.hears(between.Connected, lambda said: said.up is up)

    async def client(self, user: str) -> nats.aio.client.Client:
        client = await nats_client.connect(
            self.nats.url, user_credentials=str(self.nats.creds(user)), inbox_prefix=f"_INBOX_{user}"
        )
        self.clients.append(client)
        return client

    async def answers(self, ask: str, answer: Callable[[bytes], Awaitable[bytes]]) -> None:
        """Answer the computers' questions as their service does."""
        service = "requests" if ask in ("decision", "terms") else "expiry"
        client = await self.client(service)

        async def on_ask(message: Any) -> None:
            await client.publish(message.reply, await answer(message.data))

        await client.subscribe(f"sojourn.agent.*.ask.{ask}", queue=service, cb=on_ask)
        for _ in range(2):
            await client.flush()

    async def stored(self, kind: str) -> int:
        """How many reports of this computer the stream holds."""
        jetstream = (await self.client(PROVISIONER)).jetstream()
        subject = f"{self.subject}.report.{kind}"
        info: StreamInfo = await jetstream.stream_info("REPORTS", subjects_filter=subject)
        return (info.state.subjects or {}).get(subject, 0)


@pytest.fixture
async def world(nats: TestNats) -> AsyncIterator[LinkWorld]:
    """A computer of its own for this test; nothing is connected yet."""
    keeper = HeldKeeper(new_id(system_clock()))
    proxy = Proxy(nats.server.port)
    await proxy.open()
    server = HeldServer(keeper)
    made = LinkWorld(nats, keeper, server, proxy, ManualClock(system_clock()))
    server.issue = made.credentials
    try:
        yield made
    finally:
        keeper.close()
        if made.task:
            async with asyncio.timeout(20):  # a link that outlives its keeper fails the test, and hangs nothing
                await made.task
        else:
            keeper.links_end.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):  # these are the test's own: their end proves nothing
                for client in made.clients:
                    await client.close()
        made.server.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                await proxy.close()


class EnrollingServer:
    """Answers POST /computers/enrol as §4 of the contract says; `lose` answers are lost on their way.

    `jwt_for` gives the JWT for a link's public key, `nats_url` where it is good.
    """

    def __init__(self) -> None:
        self.root = PrivateKey.generate()
        self.token = f"sje_{'ab' * 16}_{self.root.public.fingerprint}"
        self.computer_id = new_id(system_clock())
        self.asked: list[wire.Enrolment] = []
        self.lose = 0
        self.refuse: tuple[int, str] | None = None
        self.signer = self.root
        self.document_key = PrivateKey.generate()
        self.jwt_for: Callable[[str], str] = lambda _: "a.b.c"
        self.nats_url = "nats://127.0.0.1:4222"
        held = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, answer = held.answer(self.path, self.headers.get("Authorization", ""), body)
                if held.lose:
                    held.lose -= 1
                    return
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def answer(self, path: str, login: str, body: bytes) -> tuple[int, bytes]:
        if path.endswith("/credentials"):
            return 401, b'{"nonce": "x"}'
        assert path == "/api/v1/computers/enrol"
        if self.refuse or login != f"Bearer {self.token}":
            status, detail = self.refuse or (401, "This enrolment token is spent or unknown.")
            return status, json.dumps({"title": "No", "detail": detail}).encode()
        asked = msgspec.json.decode(body, type=wire.Enrolment)
        self.asked.append(asked)
        credentials = wire.Credentials(
            jwt=self.jwt_for(asked.link_public_key),
            expires_at=system_clock() + timedelta(days=1),
            nats_urls=[self.nats_url],
            inbox_prefix=f"_INBOX_{self.computer_id}",
        )
        key = self.document_key
        key_set = wire.KeySet(epoch=1, keys=[wire.DocumentKey(kid=key.kid, x=key.public.text)])
        enrolled = wire.Enrolled(
            computer_id=self.computer_id,
            credentials=credentials,
            root_key=self.root.public.text,
            keys=self.signer.sign(wire.encode(key_set), "sojourn-keys"),
            offline_secret="c2VjcmV0",
        )
        return 201, wire.encode(enrolled)

    def close(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


@pytest.fixture
def server() -> Iterator[EnrollingServer]:
    made = EnrollingServer()
    yield made
    made.close()
