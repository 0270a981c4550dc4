"""One connection to NATS, from its login to its end; it is never revived, the link makes a new one.

nats-py's own reconnecting cannot tell a refusal from an outage, and closes for good when a credential lapses: so
each connection here is made with `allow_reconnect=False`, and one path serves the first login, an outage, a new
credential and a revocation.
"""

import asyncio
import contextlib
import functools
import logging
import ssl
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeVar
from urllib.parse import urlsplit

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from sojourn_shared.contracts import wire

from .https import is_loopback

T = TypeVar("T")
Push = Literal["grant", "revoke", "decision"]
PUSHES: tuple[Push, ...] = ("grant", "revoke", "decision")
CONNECT_WITHIN = 5
"""Seconds for each step of a login: reaching the server, its INFO, its verdict."""
CLOSE_WITHIN = 1.0
"""Seconds."""
PING_EVERY = 30
"""Seconds. A connection that died unseen is noticed after two unanswered ones."""
ACKNOWLEDGED_WITHIN = 5.0
"""Seconds. A report not acknowledged by then is offered again; its id makes the second one harmless."""
QUEUE_IS_FULL = 10077  # JetStream's err_code; its status says 503, as if JetStream were away

log = logging.getLogger("sojourn.link")


class Refused(Exception):
    """The server does not accept the credential: lapsed, revoked, or another's."""


class Unreachable(Exception):
    """No server could be reached, or none finished the login."""


class NoAnswer(Exception):
    """A question without an answer; the message says why."""


class NotTaken(Exception):
    """A report that the stream did not take; the message says why."""


class _Error(msgspec.Struct):
    description: str = "no reason given"
    err_code: int = 0


class _PubAck(msgspec.Struct):
    error: _Error | None = None
    stream: str = ""
    duplicate: bool = False


_read_ack = msgspec.json.Decoder(_PubAck).decode


@dataclass(frozen=True)
class Login:
    """What stays the same from one connection to the next. `sign_nonce` may raise OSError, and nothing else."""

    computer_id: str
    sign_nonce: Callable[[str], bytes]
    on_push: Callable[[Push, bytes], None]
    ca_pem: str | None = None


class Connection:
    """`closed` is done, with the reason, when this connection is over."""

    def __init__(self, client: Client, computer_id: str) -> None:
        self._client = client
        self._subject = f"sojourn.agent.{computer_id}"
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @classmethod
    async def open(cls, login: Login, credentials: wire.Credentials) -> Self:
        """Log in, subscribe to the pushes, and return when the server has the subscriptions.

        Raises Refused if any server refused, else Unreachable about the last one tried.
        """
        problem: Refused | Unreachable = Unreachable("the credentials name no NATS server")
        for url in credentials.nats_urls:
            try:
                return await cls._open_at(url, login, credentials.jwt)
            except Refused as error:
                problem = error
            except Unreachable as error:
                problem = problem if isinstance(problem, Refused) else error
        raise problem

    @classmethod
    async def _open_at(cls, url: str, login: Login, jwt: str) -> Self:
        client = Client()
        connection = cls(client, login.computer_id)
        last: list[Exception] = []

        async def on_error(error: Exception) -> None:
            last[:] = [error]
            if client.is_connected:  # a permission is missing, say: nothing that the link could mend
                log.warning("NATS says: %s", error)

        async def on_closed() -> None:
            connection._over(client.last_error)

        needs_tls = url.startswith("tls:") or not is_loopback(urlsplit(url).hostname or "")

        def sign(nonce: str) -> bytes:
            # nats-py asks for the signature after the step where it would have begun TLS, before it sends the JWT
            if needs_tls and not client._server_info.get("tls_required"):
                raise ConnectionRefusedError("it offers no TLS, which is needed except on loopback")
            return login.sign_nonce(nonce)

        opened = False
        try:
            async with asyncio.timeout(4 * CONNECT_WITHIN):
                await client.connect(
                    url,
                    name="sojourn-link",
                    allow_reconnect=False,
                    max_reconnect_attempts=1,  # one server that cannot be reached: two tries, then NoServersError
                    reconnect_time_wait=0,
                    connect_timeout=CONNECT_WITHIN,
                    ping_interval=PING_EVERY,
                    inbox_prefix=f"_INBOX_{login.computer_id}",
                    signature_cb=sign,
                    user_jwt_cb=jwt.encode,
                    tls=ssl.create_default_context(cadata=login.ca_pem) if needs_tls else None,
                    error_cb=on_error,
                    closed_cb=on_closed,
                )
                for push in PUSHES:
                    deliver = functools.partial(_deliver, login.on_push, push)
                    await client.subscribe(f"{connection._subject}.{push}", cb=deliver)
                for _ in range(2):  # the first PING goes out before the buffered SUBs: only its successor follows them
                    await connection._unless_closed(client.flush(CONNECT_WITHIN))
            opened = True
        except (nats.errors.Error, OSError, ValueError) as error:  # TimeoutError is an OSError
            unreached = isinstance(error, nats.errors.NoServersError) and last
            text = _reason(last[0] if unreached else client.last_error or error)
            raise (Refused(text) if _is_refusal(text) else Unreachable(f"{url}: {text}")) from None
        finally:
            if not opened:
                await connection.close()
        return connection

    async def ask(self, kind: str, body: bytes, *, timeout_s: float) -> bytes:
        """The answer to the question `ask.<kind>`. Raises NoAnswer."""
        if len(body) > wire.REPORT_LIMIT:
            raise NoAnswer(f"the question has {len(body)} bytes; the limit is {wire.REPORT_LIMIT}")
        try:
            return (await self._request(f"ask.{kind}", body, timeout_s)).data
        except nats.errors.NoRespondersError:
            raise NoAnswer("the service that answers is away") from None
        except TimeoutError:  # nats.errors.TimeoutError too
            raise NoAnswer(f"no answer within {timeout_s:g} s") from None
        except (nats.errors.Error, OSError) as error:
            raise NoAnswer(_reason(error)) from None

    async def publish(self, kind: str, report_id: str, jws: bytes) -> None:
        """Returns when the stream has acknowledged the report, now or on an earlier try. Raises NotTaken."""
        header = {"Nats-Msg-Id": report_id}
        if len(jws) + len(report_id) + 32 > wire.REPORT_LIMIT:  # the header counts; more would close the connection
            raise NotTaken(f"the report has {len(jws)} bytes; the limit is {wire.REPORT_LIMIT}")
        try:
            answer = await self._request(f"report.{kind}", jws, ACKNOWLEDGED_WITHIN, header)
            ack = _read_ack(answer.data)
        except nats.errors.NoRespondersError:
            raise NotTaken("no stream takes reports now") from None
        except TimeoutError:
            raise NotTaken(f"no acknowledgement within {ACKNOWLEDGED_WITHIN:g} s") from None
        except (nats.errors.Error, OSError, msgspec.MsgspecError) as error:
            raise NotTaken(_reason(error)) from None
        if ack.error and ack.error.err_code == QUEUE_IS_FULL:
            raise NotTaken("the server's queue for this kind of report is full")
        if ack.error or not ack.stream:
            raise NotTaken(ack.error.description if ack.error else "what came is no acknowledgement")
        if ack.duplicate:  # an earlier try of ours, or somebody who knew the id: ids are random and told to nobody
            log.warning("report %s (%s) was stored before", report_id, kind)

    async def close(self) -> None:
        # A transport that is broken already says so here; after a failed TLS handshake it would wait for ever.
        with contextlib.suppress(Exception):
            async with asyncio.timeout(CLOSE_WITHIN):
                await self._client.close()
        self._over(None)

    def _over(self, error: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(_reason(error) if error else "the connection was closed")

    async def _request(self, last: str, body: bytes, timeout_s: float, headers: dict[str, str] | None = None) -> Msg:
        request = self._client.request(f"{self._subject}.{last}", body, timeout=timeout_s, headers=headers)
        return await self._unless_closed(request)

    async def _unless_closed(self, step: Coroutine[Any, Any, T]) -> T:
        """nats-py lets requests and flushes wait for their whole time when the connection ends; these fail at once."""
        doing = asyncio.ensure_future(step)
        try:
            either: set[asyncio.Future[Any]] = {doing, self.closed}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not doing.done():
                raise nats.errors.ConnectionClosedError
            return await doing
        finally:
            doing.cancel()


async def _deliver(on_push: Callable[[Push, bytes], None], push: Push, message: Msg) -> None:
    if len(message.data) <= wire.DOCUMENT_LIMIT:
        on_push(push, message.data)
    else:
        log.warning("a push of %d bytes is ignored; the limit is %d", len(message.data), wire.DOCUMENT_LIMIT)


def _reason(error: Exception) -> str:
    return str(error).removeprefix("nats: ").strip("'") or type(error).__name__


def _is_refusal(text: str) -> bool:
    """`Authentication Timeout` is none: the keeper was slow."""
    text = text.lower()
    return any(word in text for word in ("authorization violation", "authentication expired", "authentication revoked"))
