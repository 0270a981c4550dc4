"""Requests made on this computer, from the person's reason to the decision that they read."""

import logging
import sqlite3
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import msgspec

from sojourn_agent.between import Ask
from sojourn_agent.packets import Reason
from sojourn_shared.contracts.wire import Application, AskDecision, CancelReport, Decision, RequestReport, encode
from sojourn_shared.ids import new_id

from .names import Person
from .spool import Asked

if TYPE_CHECKING:
    from .keeper import Keeper

log = logging.getLogger("sojourn.keeper")


_PENDING = 20
_HOUR = timedelta(hours=1)
"""Of one user: waiting at a time, and cancelled within an hour. The server has its own limit; these keep a loop without
network from filling the spool, which would end new elevations for everybody."""


class TooMany(Exception):
    """The person must wait, or cancel; the message says so."""


class Requests:
    """Decisions inform the person who waits; they never elevate: only a grant in the document does."""

    def __init__(self, keeper: "Keeper") -> None:
        self._keeper = keeper

    def make(self, person: Person, application: Application, reason: Reason, *, once: bool) -> Asked:
        """Number, sign and store a request. Raises TooMany, sqlite3.Error, TooLong."""
        spool, now = self._keeper.spool, self._keeper.now()
        made = spool.requests(uid=person.uid)
        if sum(asked.status == "pending" for asked in made) >= _PENDING:
            raise TooMany(f"{_PENDING} requests of yours wait already: cancel one (elevate --status lists them)")
        if sum(asked.status == "cancelled" and asked.asked_at > now - _HOUR for asked in made) >= _PENDING:
            raise TooMany(f"you cancelled {_PENDING} requests in an hour: wait a while before you ask again")
        asked = Asked(
            request_id=new_id(now),
            uid=person.uid,
            asked_at=now,
            application=application,
            minutes=reason.minutes,
            status="pending",
            version=-1,
            joined=None,
        )
        with spool.transaction():
            spool.report(
                RequestReport,
                id=asked.request_id,
                user=person.reporting,
                application=application,
                duration_minutes=reason.minutes,
                justification=reason.because.strip(),
                ticket=(reason.ticket or "").strip() or None,
                max_uses=1 if once else None,
            )
            spool.put_request(asked)
        self._keeper.linkage.offer_reports()
        return asked

    def cancel(self, asked: Asked, person: Person) -> None:
        """Tell the server; what it decided before stands, and is heard. Raises sqlite3.Error."""
        spool = self._keeper.spool
        with spool.transaction():
            spool.report(CancelReport, request_id=asked.known_as, user=person.reporting)
            spool.put_request(replace(asked, status="cancelled"))
        self._keeper.linkage.offer_reports()

    def pending_of(self, person: Person, application: Application) -> Asked | None:
        """The request that the same line made before, if it waits still: same file, same arguments."""
        for asked in self._keeper.spool.requests(uid=person.uid):
            then = asked.application
            if asked.status == "pending" and (then.path, then.sha256, then.arguments) == (
                application.path,
                application.sha256,
                application.arguments,
            ):
                return asked
        return None

    def ask(self, request_id: str) -> None:
        """How does it stand? The answer is heard like a push."""
        body = encode(AskDecision(request_id=request_id)).decode()

        def answered(text: str | None) -> None:
            if text is not None:
                self.hear(text)

        self._keeper.linkage.ask(Ask(ask=0, kind="decision", body=body), answered)

    def on_connected(self) -> None:
        """Decisions may have been pushed while nobody listened."""
        for request_id in {conversation.known_as for conversation in self._keeper.waiting}:
            self.ask(request_id)

    def hear(self, text: str) -> None:
        """A decision, pushed or asked for."""
        try:
            decision = msgspec.json.decode(text, type=Decision)
        except msgspec.MsgspecError as error:
            log.warning("a decision cannot be read: %s", error)
            return
        spool = self._keeper.spool
        for asked in spool.requests(known_as=decision.request_id):
            if decision.version < asked.version:
                continue
            joined = decision.joined or asked.joined
            after = replace(asked, status=decision.status, version=decision.version, joined=joined)
            try:
                with spool.transaction():
                    spool.put_request(after)
            except sqlite3.Error as error:
                log.error("a decision cannot be recorded: %s", error)
            for conversation in list(self._keeper.waiting):
                if conversation.asked is not None and conversation.asked.request_id == asked.request_id:
                    conversation.on_decision(after, decision)
        if decision.status == "approved":
            self._keeper.server.expect_grant(decision.request_id)
