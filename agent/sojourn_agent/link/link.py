"""What the link does all day: stay connected, stay valid, pass on; read `Link.run` first."""

import asyncio
import logging
import random
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from sojourn_agent import between
from sojourn_shared.clock import Clock, boottime, system_clock
from sojourn_shared.contracts import wire

from . import bus
from .pipe import KeeperPipe
from .renewal import Decommissioned, HttpsLogin, NotRenewed, Validity

log = logging.getLogger("sojourn.link")


@dataclass(frozen=True)
class Pauses:
    """Seconds. All are the time between two tries, doubling from the first to the second where there are two."""

    connect: tuple[float, float] = (0.2, 10.0)
    """So that a thousand computers come back within ten seconds of their server, and not in one burst."""
    renew: tuple[float, float] = (5.0, 300.0)
    cut_off: float = 600.0
    """So long without NATS, the document comes over HTTPS; and again after as long."""
    decommissioned: float = 3600.0
    look: float = 15.0
    """How often what is due by the clock is looked for: timers of the event loop stand still in suspend."""
    stands: float = 10.0
    """A connection that lasted so long was no accident: the next pause is the first again."""
    renew_on_demand: float = 60.0
    """The keeper may ask for a renewal (an unknown key) at most so often: a forged document must cost nothing."""


class KeeperGone(Exception):
    """The keeper closed its end: there is nothing to link."""


@dataclass
class Backoff:
    """Pauses that double, with chance in them: many computers lose one server at the same moment."""

    first: float
    most: float
    tries: int = 0

    def next(self) -> float:
        pause = min(self.most, self.first * 2.0**self.tries)
        self.tries = min(self.tries + 1, 32)
        return pause * (0.5 + random.random() / 2)  # noqa: S311 (chance, not a secret)

    def reset(self) -> None:
        self.tries = 0


class Link:
    """`keeper` is this process's end of the socketpair; `clock` and `since_boot` are the system's but in tests."""

    def __init__(
        self,
        keeper: socket.socket,
        *,
        clock: Clock = system_clock,
        since_boot: Callable[[], float] = boottime,
        pauses: Pauses | None = None,
    ) -> None:
        self._socket = keeper
        self._clock = clock
        self._since_boot = since_boot
        self._pauses = pauses or Pauses()
        self._connection: bus.Connection | None = None
        self._said: between.Connected | None = None
        self._reports: dict[str, deque[between.Report]] = {}
        self._asks: set[asyncio.Task[None]] = set()
        self._renewal_wanted = asyncio.Event()
        self._renewing = asyncio.Lock()

    async def run(self) -> None:
        """Link keeper and server until the keeper closes its end. A fault of our own ends it with its trace."""
        self._pipe = KeeperPipe(self._socket, self._on_message)
        self._start: asyncio.Future[between.Start] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._until_keeper_is_gone())
                start = await self._start
                self._group = group
                self._take_up(start)
                group.create_task(self._stay_connected())
                group.create_task(self._stay_valid())
                group.create_task(self._fetch_when_cut_off())
        except* KeeperGone:
            pass
        finally:
            if self._connection:
                await self._connection.close()
            self._pipe.close()

    def _take_up(self, start: between.Start) -> None:
        try:
            self._credentials = msgspec.json.decode(start.credentials, type=wire.Credentials)
        except msgspec.MsgspecError as error:  # a damaged file costs a renewal, and nothing else
            log.warning("the stored credential cannot be read: %s", error)
            self._credentials = wire.Credentials(jwt="", expires_at=self._clock(), nats_urls=[], inbox_prefix="")
        self._renew_at = self._since_boot() + Validity.of(self._credentials).until_half(self._clock())
        self._down_since = self._since_boot()
        self._login = bus.Login(start.computer_id, self._pipe.sign_nonce, self._on_push, start.ca_pem)
        self._https = HttpsLogin(start.server, start.computer_id, self._pipe.sign_renewal, start.ca_pem)

    async def _until_keeper_is_gone(self) -> None:
        await self._pipe.gone.wait()
        raise KeeperGone

    # --- the connection -----------------------------------------------------------------------------------------------

    async def _stay_connected(self) -> None:
        pause = Backoff(*self._pauses.connect)
        # Python 3.11's `wait_for`, which nats-py uses, may lose the cancellation that says so: hence the look.
        while not self._pipe.gone.is_set():
            credentials = self._credentials
            try:
                connection = await bus.Connection.open(self._login, credentials)
            except bus.Unreachable as error:
                self._say(between.Connected(up=False, why=str(error)))
            except bus.Refused as error:
                self._say(between.Connected(up=False, why=f"the NATS server refuses the login: {error}"))
                if await self._renewed(credentials):
                    continue
            else:
                since = self._since_boot()
                why = await self._stay_with(connection)
                self._say(between.Connected(up=False, why=why))
                if self._since_boot() - since >= self._pauses.stands:
                    pause.reset()
            await asyncio.sleep(pause.next())

    async def _stay_with(self, connection: bus.Connection) -> str:
        """Until it is over; answers why."""
        if self._pipe.gone.is_set():
            await connection.close()
        self._connection = connection
        self._say(between.Connected(up=True))
        try:
            return await connection.closed
        finally:
            self._connection = None
            self._down_since = self._since_boot()
            with suppress(asyncio.CancelledError):
                await connection.close()

    def _say(self, connected: between.Connected) -> None:
        """Every coming and going, and a going on as before only once."""
        if connected != self._said:
            self._said = connected
            log.info("connected" if connected.up else "not connected: %s", *([] if connected.up else [connected.why]))
            self._pipe.send(connected)

    # --- credentials --------------------------------------------------------------------------------------------------

    async def _stay_valid(self) -> None:
        """Renew at half life, and when the keeper wants it; a connection then is made anew, with the new credential."""
        pause = Backoff(*self._pauses.renew)
        earliest = self._since_boot()
        while True:
            await self._until_renewal_is_due(earliest)
            if not await self._renewed(self._credentials):
                await asyncio.sleep(pause.next())
                continue
            self._renewal_wanted.clear()
            pause.reset()
            earliest = self._since_boot() + self._pauses.renew_on_demand
            if self._connection:
                await self._connection.close()

    async def _until_renewal_is_due(self, earliest: float) -> None:
        """Until half life, or until the keeper wants it; but that not before `earliest`."""
        while (now := self._since_boot()) < self._renew_at:
            if not self._renewal_wanted.is_set():
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._pauses.look):
                        await self._renewal_wanted.wait()
            elif now < earliest:
                await asyncio.sleep(self._pauses.look)
            else:
                return

    async def _renewed(self, instead_of: wire.Credentials) -> bool:
        """Whether there are other credentials now than those that were found wanting."""
        async with self._renewing:
            if self._credentials is not instead_of:
                return True
            try:
                renewed = await self._https.renew()
            except NotRenewed as error:
                log.warning("the credential was not renewed: %s", error)
                return False
            except Decommissioned as error:
                await self._when_decommissioned(str(error))
                return False
            self._credentials = renewed.credentials
            self._renew_at = self._since_boot() + max(30.0, Validity.of(renewed.credentials).half_life)
            credentials = wire.encode(renewed.credentials).decode()
            self._pipe.send(between.NewCredentials(credentials=credentials, keys=renewed.keys))
            log.info("the credential is renewed until %s", renewed.credentials.expires_at)
            return True

    async def _when_decommissioned(self, why: str) -> None:
        """Fetch the document that ends every grant, until it is there; then ask rarely whether that still holds."""
        if self._connection:
            await self._connection.close()
        self._say(between.Connected(up=False, why=why))
        pause = Backoff(*self._pauses.renew)
        fetched = await self._fetched_document()
        while not fetched:
            await asyncio.sleep(pause.next())
            fetched = await self._fetched_document()
        await asyncio.sleep(self._pauses.decommissioned)

    async def _fetch_when_cut_off(self) -> None:
        while True:
            await asyncio.sleep(self._pauses.look)
            if self._connection is None and self._since_boot() - self._down_since >= self._pauses.cut_off:
                await self._fetched_document()
                self._down_since = self._since_boot()

    async def _fetched_document(self) -> bool:
        try:
            answer = await self._https.document()
        except (NotRenewed, Decommissioned) as error:
            log.warning("the document was not fetched: %s", error)
            return False
        self._pipe.send(between.FetchedDocument(document=answer.document, keys=answer.keys))
        return True

    # --- passing on ---------------------------------------------------------------------------------------------------

    def _on_push(self, kind: bus.Push, body: bytes) -> None:
        try:
            self._pipe.send(between.Pushed(kind=kind, body=body.decode()))
        except UnicodeDecodeError:
            log.warning("a push that is no text is ignored")

    def _on_message(self, message: between.FromKeeper) -> None:
        match message:
            case between.Start():
                if not self._start.done():
                    self._start.set_result(message)
            case between.Ask():
                task = self._group.create_task(self._ask(message))
                self._asks.add(task)
                task.add_done_callback(self._asks.discard)
            case between.Report():
                self._offer(message)
            case between.Renew():
                self._renewal_wanted.set()
            case between.Signature():
                pass  # too late: whoever asked has given up

    async def _ask(self, ask: between.Ask) -> None:
        if (connection := self._connection) is None:
            self._pipe.send(between.Answer(ask=ask.ask, problem="not connected to the server"))
            return
        try:
            body = await connection.ask(ask.kind, ask.body.encode(), timeout_s=ask.timeout_ms / 1000)
            answer = between.Answer(ask=ask.ask, body=body.decode())
        except (bus.NoAnswer, UnicodeDecodeError) as error:
            answer = between.Answer(ask=ask.ask, problem=str(error))
        self._pipe.send(answer)

    def _offer(self, report: between.Report) -> None:
        if report.kind not in self._reports:
            self._reports[report.kind] = deque()
        waiting = self._reports[report.kind]
        if all(report.report_id != other.report_id for other in waiting):
            waiting.append(report)
            if len(waiting) == 1:
                self._group.create_task(self._deliver(report.kind))

    async def _deliver(self, kind: str) -> None:
        """One report of a kind after the other, so that they are stored in order; kinds do not wait for each other.

        Behind one that was not taken none of its kind goes on: the keeper offers them all again, in order.
        """
        waiting = self._reports[kind]
        while waiting:
            report = waiting[0]
            try:
                if (connection := self._connection) is None:
                    raise bus.NotTaken("not connected to the server")
                await connection.publish(kind, report.report_id, report.jws.encode())
            except bus.NotTaken as error:
                for refused in (waiting.popleft() for _ in range(len(waiting))):
                    self._pipe.send(between.Undelivered(report_id=refused.report_id, why=str(error)))
            else:
                waiting.popleft()
                self._pipe.send(between.Delivered(report_id=report.report_id))
