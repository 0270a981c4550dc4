"""The server as the keeper hears it: heartbeats, documents, time, keys. What is not signed by it changes nothing."""

import base64
import logging
import os
import random
import re
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec
import nkeys

from sojourn_agent import VERSION
from sojourn_agent.between import (
    Ask,
    Connected,
    FetchedDocument,
    FromLink,
    NewCredentials,
    Pushed,
    Renew,
    Signature,
    SignNonce,
    SignRenewal,
    Start,
)
from sojourn_shared.clock import boottime, system_clock
from sojourn_shared.contracts.wire import Credentials, Heartbeat, HeartbeatAnswer, Renewal, RunningRun, encode
from sojourn_shared.signing import PrivateKey, base64url

from .document import KeyRing, KeysOutdated, NotNewer, Refused
from .loop import Timer
from .state import Unusable

if TYPE_CHECKING:
    from .keeper import Keeper

log = logging.getLogger("sojourn.keeper")

_LOOK_MS = 300
"""How long a person waits for a newer document before they are told *no*."""
_ANSWER_MS = 2000
_LOOKED = 0.5
"""Seconds for which a look is as good as a new one: a loop of refusals must not become a loop of questions."""
_RENEW_EACH = 10.0
_STORE_AGAIN = 5.0
_MOST = 60.0
_NONCE = re.compile(r"[A-Za-z0-9_-]{8,128}")
_RENEWAL_NONCE = re.compile(r"[\x21-\x7e]{8,512}")


class Server:
    """Asks in heartbeats, and judges what the link brings. `must_hear`: nothing starts before a heartbeat was answered,
    because no document was stored when the keeper started, or no memory of what was used."""

    def __init__(self, keeper: "Keeper", keys: KeyRing, key: PrivateKey) -> None:
        self._keeper = keeper
        self._keys = keys
        self._key = key
        try:
            self._link_key = nkeys.from_seed(keeper.state.need("link.seed").encode())
        except (nkeys.NkeysError, ValueError) as error:
            raise Unusable(f"{keeper.state.path('link.seed')} holds no nkey seed ({error}): enrol again") from None
        self.link_public_key: str = self._link_key.public_key.decode()
        self.must_hear = keeper.documents.held is None or keeper.spool.is_new
        self._nonces: set[str] = set()
        self._beat: Timer | None = None
        self._pause = 1.0
        self._answered_at = 0.0
        self._looking: list[Callable[[], None]] = []
        self._renewed_at = 0.0

    def greet(self) -> None:
        """Tell a new link all that it needs."""
        keeper = self._keeper
        keeper.linkage.send(
            Start(
                computer_id=keeper.config.computer_id,
                server=keeper.config.server,
                link_public_key=self.link_public_key,
                credentials=keeper.state.read("credentials.json") or "",  # a lost one costs a renewal
                ca_pem=keeper.state.read("ca.pem"),
            )
        )

    def hear(self, message: FromLink) -> None:
        match message:
            case Connected():
                self._on_connected(message)
            case Pushed(kind="decision"):
                self._keeper.requests.hear(message.body)
            case Pushed():
                self._take_document(message.body)
            case SignNonce():
                self._sign_nonce(message)
            case SignRenewal():
                self._sign_renewal(message)
            case NewCredentials():
                self._take_credentials(message)
            case FetchedDocument():
                self._take_keys(message.keys)
                self._take_document(message.document)
            case _:
                log.error("the link says %s, which is not for here", type(message).__name__)

    def heartbeat(self, *, within_ms: int = _ANSWER_MS, then: Callable[[bool], None] = lambda answered: None) -> None:
        """Ask for time and a newer document; `then` hears whether there was an answer."""
        keeper, nonce = self._keeper, base64url(os.urandom(18))
        held = keeper.documents.held
        version = held.version if held else (0, 0)
        body = Heartbeat(
            nonce=nonce,
            epoch=version[0],
            version=version[1],
            running=[RunningRun(run_id=run.run_id, grant_id=run.grant_id) for run in keeper.runs.live.values()],
            boot_id=keeper.timekeeping.boot_id,
            clock=system_clock(),
            agent_version=VERSION,
        )
        self._nonces.add(nonce)

        def answered(text: str | None) -> None:
            good = text is not None and self._on_answer(text)
            self._nonces.discard(nonce)
            then(good)

        ask = Ask(ask=0, kind="heartbeat", body=encode(body).decode(), timeout_ms=within_ms)
        keeper.linkage.ask(ask, answered)

    def look_for_newer(self, then: Callable[[], None]) -> None:
        """Refuse only after looking: `then` is called after an answer, or 300 ms, whichever is first."""
        if not self._keeper.linkage.connected or boottime() - self._answered_at < _LOOKED:
            then()
            return
        self._looking.append(then)
        if len(self._looking) == 1:
            self.heartbeat(within_ms=_LOOK_MS, then=self._looked)

    def expect_grant(self, request_id: str, tries: int = 0) -> None:
        """A decision says approved: ask at once, and again until its grant is here (a minute, then the usual beat)."""
        held = self._keeper.documents.held
        if held is not None and any(getattr(grant, "request_id", None) == request_id for grant in held.grants.values()):
            return
        self.heartbeat()
        if tries < 6:
            self._keeper.loop.after(2.0**tries, lambda: self.expect_grant(request_id, tries + 1))

    def _looked(self, _: bool) -> None:
        waiting, self._looking = self._looking, []
        for then in waiting:
            then()

    # --- heartbeats ---------------------------------------------------------------------------------------------------

    def _on_connected(self, connected: Connected) -> None:
        log.info("the link is %s", "connected" if connected.up else f"not connected: {connected.why}")
        if self._beat is not None:
            self._beat.cancel()
            self._beat = None
        if connected.up:
            self._pause = 1.0
            self._beat_now()
            self._keeper.requests.on_connected()
            self._keeper.health.say()

    def _beat_now(self) -> None:
        self.heartbeat(then=self._after_beat)

    def _after_beat(self, answered: bool) -> None:
        if not self._keeper.linkage.connected:
            return
        if answered:
            self._pause = 1.0
            each = self._keeper.config.heartbeat_seconds
            pause = each + random.uniform(-each / 6, each / 6)  # noqa: S311 - so that computers do not beat together
        else:
            pause, self._pause = self._pause, min(_MOST, self._pause * 2)
        if self._beat is not None:
            self._beat.cancel()
        self._beat = self._keeper.loop.after(pause, self._beat_now)

    def _on_answer(self, text: str) -> bool:
        """Whether the answer carries a valid time; a document in it is judged for itself."""
        keeper = self._keeper
        try:
            answer = msgspec.json.decode(text, type=HeartbeatAnswer)
            time = keeper.documents.read_time(answer.time, frozenset(self._nonces), self._now())
        except KeysOutdated as error:
            self._want_keys(str(error))
            return False
        except (Refused, msgspec.MsgspecError) as error:
            log.warning("a heartbeat's answer is not valid: %s", error)
            return False
        self._answered_at = boottime()
        keeper.timekeeping.confirm(time.server_time)
        if answer.document is not None:
            self._take_document(answer.document)
        held = keeper.documents.held
        if self.must_hear and held is not None and held.version >= (time.epoch, time.version):
            self.must_hear = False
            keeper.enforcement.review()
        return True

    # --- what is signed by the server ---------------------------------------------------------------------------------

    def _take_document(self, jws: str) -> None:
        try:
            held = self._keeper.documents.offer(jws, self._now())
        except NotNewer:
            return
        except KeysOutdated as error:
            self._want_keys(str(error))
        except Refused as error:
            log.error("a document is not taken: %s", error)
        else:
            self._keeper.on_document(held)

    def _take_keys(self, jws: str) -> None:
        keeper = self._keeper
        try:
            newer = self._keys.offer(jws)
        except Refused as error:
            log.error("a key set is not taken: %s", error)
            return
        if newer:
            self._keep_keys()
            if keeper.documents.drop_if_key_removed():
                self.must_hear = True
                keeper.enforcement.review()
            self.heartbeat()

    def _take_credentials(self, renewed: NewCredentials) -> None:
        try:
            msgspec.json.decode(renewed.credentials, type=Credentials)
        except msgspec.MsgspecError as error:
            log.error("renewed credentials cannot be read: %s", error)
            return
        self._take_keys(renewed.keys)
        try:
            self._keeper.state.write("credentials.json", renewed.credentials)
        except OSError as error:  # a full disk: the link has them, and renews again after a restart
            log.error("renewed credentials cannot be written: %s", error)

    def _keep_keys(self) -> None:
        try:
            self._keys.keep()
        except OSError as error:  # a full disk: they count all the same
            log.error("the key set cannot be written now: %s", error)
            self._keeper.loop.after(_STORE_AGAIN, self._keep_keys)

    def _want_keys(self, why: str) -> None:
        if boottime() - self._renewed_at >= _RENEW_EACH:
            self._renewed_at = boottime()
            log.warning("%s; asking for the newest key set", why)
            self._keeper.linkage.send(Renew())

    # --- what is signed by the keeper ---------------------------------------------------------------------------------

    def _sign_nonce(self, wish: SignNonce) -> None:
        signature = None
        if _NONCE.fullmatch(wish.nonce):
            signature = base64.b64encode(self._link_key.sign(wish.nonce.encode())).decode()
        self._keeper.linkage.send(Signature(ask=wish.ask, signature=signature))

    def _sign_renewal(self, wish: SignRenewal) -> None:
        signature = None
        if _RENEWAL_NONCE.fullmatch(wish.nonce):
            renewal = Renewal(
                computer_id=self._keeper.config.computer_id,
                link_public_key=self.link_public_key,
                nonce=wish.nonce,
            )
            signature = self._key.sign(encode(renewal), "sojourn-renew")
        self._keeper.linkage.send(Signature(ask=wish.ask, signature=signature))

    def _now(self) -> datetime | None:
        trusted = self._keeper.timekeeping.trusted
        return trusted.now(boottime()) if trusted else None
