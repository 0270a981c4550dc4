"""One caller from the first packet to the end: judged, covered and started, or asked, and then waiting.

judging ─▶ started                    a grant covers it; from now on the warden speaks with the caller
judging ─▶ looking ─▶ judging         none does: the server is asked once for a newer document (≤ 300 ms)
judging ─▶ asking ─▶ waiting          still none: terms, the person's reason, the request on disk and on its way
waiting ─▶ judging ─▶ started         a grant came that covers it; the file is judged anew
any     ─▶ closed                     answered, refused, declined, or the caller went away (the request stays)
"""

import contextlib
import logging
import socket
import sqlite3
from typing import TYPE_CHECKING, Literal

import msgspec

from sojourn_agent.between import Ask
from sojourn_agent.packets import (
    AskPerson,
    Found,
    FromWarden,
    NotFound,
    Pending,
    Reason,
    Refused,
    Say,
    Stored,
    ToClient,
    Told,
    pack,
    read_more,
)
from sojourn_agent.warden import Order
from sojourn_shared.contracts.wire import Application, AskTerms, Decision, TermsAnswer, encode
from sojourn_shared.ids import new_id

from . import wording
from .cover import Covered, NotCovered
from .door import Guest
from .judge import unseen
from .leaves import Containment, Descent, Leaf
from .loop import GONE
from .names import Person
from .requests import TooMany
from .runs import CannotStart
from .spool import Asked, TooLong
from .wardens import Warden

if TYPE_CHECKING:
    from .keeper import Keeper

log = logging.getLogger("sojourn.keeper")

_JUDGE_WITHIN = 20.0
"""Seconds: 512 MiB are hashed in one; a file system that hangs must not hold the caller for ever."""
_RUNS = 200
"""At once, of one user: each holds descriptors of the keeper, which others need too."""

Stage = Literal["naming", "judging", "looking", "asking", "waiting", "started", "closed"]


class Conversation:
    """Owns the guest until the end, and the warden until it is a run."""

    def __init__(self, keeper: "Keeper", guest: Guest) -> None:
        self._keeper = keeper
        self._guest = guest
        self.hello = guest.hello
        self.stage: Stage = "naming"
        self.run_id = ""
        self._warden: Warden | None = None
        self._leaf: Leaf | None = None
        self._looked = False
        self._because = guest.hello.because
        self._longest = 0
        self._terms: TermsAnswer | None = None
        self.asked: Asked | None = None
        self.application: Application | None = None
        self.approved = False
        self._taken = False
        # A warden takes the first packet; until then only the caller's going is heard.
        keeper.loop.watch(guest.client.fileno(), self.close, GONE)
        keeper.loop.watch(guest.pidfd, self.close)
        keeper.names.find(guest.caller.uid, self._named)

    @property
    def known_as(self) -> str:
        """The request that is waited for, as the server calls it."""
        return self.asked.known_as if self.asked else ""

    # --- judging ------------------------------------------------------------------------------------------------------

    def _named(self, person: Person) -> None:
        if self.stage == "closed":
            return
        self.person = person
        self.judge()

    def judge(self) -> None:
        """Fork a warden that opens and judges the file, now."""
        self.stage = "judging"
        keeper, guest = self._keeper, self._guest
        self.run_id = new_id(keeper.now())  # each time anew: the leaf of the last judging may still be emptying
        home, shell = keeper.root_home
        may_start = self.hello.op == "run" and keeper.observed_only is None
        if may_start and keeper.leaves.parent is not None:
            try:
                self._leaf = keeper.leaves.make(self.run_id)
            except OSError as error:
                self._refuse(75, "no-leaf", f"the agent could not make a group for its processes ({error}): try again")
                return
        leaf = self._leaf
        assert guest.parked is not None
        parked, taken = guest.parked, self._taken

        def order(channel: socket.socket) -> Order:
            return Order(
                hello=self.hello,
                caller=guest.caller,
                channel=channel,
                client=guest.client,
                parked=parked,
                taken=taken,
                caller_pidfd=guest.pidfd,
                keeper_pidfd=keeper.pidfd,
                leaf=leaf.descriptor() if leaf else None,
                run_id=self.run_id,
                may_start=may_start,
                home=home,
                shell=shell,
                nofile=keeper.nofile,
            )

        try:
            warden = Warden(
                keeper.loop, order, keeper.cache, on_message=self._on_warden, on_death=self._on_warden_death
            )
        except OSError as error:
            self._drop_warden()
            self._refuse(75, "no-process", f"the agent could not make a process for it ({error}): try again")
            return
        self._warden = warden
        late = keeper.loop.after(_JUDGE_WITHIN, warden.kill)
        self._judge_late = late

    def _on_warden(self, message: FromWarden) -> None:
        self._judge_late.cancel()
        if not self._taken:
            self._taken = True
            self._keeper.loop.unwatch(self._guest.client.fileno())
            self._keeper.loop.watch(self._guest.client.fileno(), self._on_client)
        match message:
            case NotFound():
                self._drop_warden()
                self._refuse(message.exit, message.code, message.why)
            case Found():
                facts = message.application
                if message.key is not None:
                    self._keeper.remember(message.key, facts)
                self.application = msgspec.structs.replace(
                    facts, arguments=self.hello.argv[1:], working_directory=message.working_directory or "/"
                )
                self._found = msgspec.structs.replace(message, application=self.application)
                self._decide()
            case _:
                log.error("a warden that judges says %s", message)

    def _on_warden_death(self) -> None:
        self._judge_late.cancel()
        if self.stage == "judging":
            self._drop_warden()
            self._refuse(126, "not-judged", f"{self.hello.argv[0]} could not be judged in time")

    def _decide(self) -> None:
        """Covered: go. Else look once for a newer document, then ask."""
        assert self.application is not None
        if self.hello.op == "facts":
            self._drop_warden()
            self._tell_facts(self.application)
            return
        if self._found.writable is not None:
            self._drop_warden()
            if self._found.hidden:
                self._refuse(127, "no-such-program", unseen(self.hello.argv[0]))
                return
            self._refuse(77, "path-not-trusted", wording.not_trusted(self.application.path, self._found.writable))
            return
        answer = self._keeper.cover(self.person, self.application)
        if isinstance(answer, Covered):
            self._go(answer)
            return
        if answer.final and not self._found.hidden:
            self._drop_warden()
            self._refuse(77, answer.code, answer.why)
            return
        self._why = answer.why
        if not self._looked:
            self._looked = True
            self.stage = "looking"
            self._keeper.server.look_for_newer(self._on_looked)
            return
        self._drop_warden()
        self._not_covered(answer)

    def _on_looked(self) -> None:
        if self.stage == "looking":
            self.stage = "judging"
            self._decide()

    def _go(self, covered: Covered) -> None:
        keeper = self._keeper
        if self.hello.op == "check":
            self._drop_warden()
            self._answer(Told(exit=0, lines=[wording.allowed(covered)]))
            return
        if keeper.spool.full:
            self._drop_warden()
            self._refuse(77, "spool-full", wording.SPOOL_FULL)
            return
        if keeper.observed_only is not None:
            self._drop_warden()
            self._refuse(77, "observed-only", keeper.observed_only)
            return
        if sum(run.person.uid == self.person.uid for run in keeper.runs.live.values()) >= _RUNS:
            self._drop_warden()
            self._refuse(77, "too-many-runs", f"{_RUNS} applications of yours run elevated already: end some first")
            return
        assert self._warden is not None
        warden, self._warden = self._warden, None
        containment: Containment = self._leaf or Descent(self.run_id, warden.pid)
        self._leaf = None
        deadline = keeper.enforcement.deadline_of(covered.until)
        try:
            keeper.runs.start(
                self.run_id,
                warden,
                self._found,
                containment=containment,
                person=self.person,
                covered=covered,
                deadline=deadline,
            )
        except CannotStart as error:
            self._refuse(77, "not-recorded", str(error))
            return
        self.stage = "started"
        self._leave()
        self._guest.hand_over()
        keeper.on_started()

    # --- asking -------------------------------------------------------------------------------------------------------

    def _not_covered(self, answer: NotCovered) -> None:
        """The person may ask, if there is a person, a reason, or both."""
        assert self.application is not None
        if self.asked is not None:  # approved, but what came does not cover what is there now
            self.stage = "waiting"
            return
        if self._found.hidden:
            self._refuse(127, "no-such-program", unseen(self.hello.argv[0]))
        elif self.hello.op == "check":
            self._answer(Told(exit=77, lines=[f"not now: {answer.why}"]))
        elif self.hello.no_wait and not self._because:
            self._refuse(77, "not-covered", answer.why, "ask for it: elevate --no-wait --because REASON -- …")
        elif self.person.why_unnamed is not None:
            self._refuse(77, "no-name", f"{answer.why}; and {self.person.why_unnamed}, so you cannot ask")
        elif (pending := self._keeper.requests.pending_of(self.person, self.application)) is not None:
            self._rejoin(pending)
        elif not self._keeper.asking.enabled:
            self._refuse(77, "asking-disabled", f"{answer.why}; and asking is switched off by your administrators")
        elif not self._because and not self.hello.interactive:
            self._refuse(
                78, "not-covered", f"{answer.why}; it was not asked for: no terminal, and no reason given",
                "ask for it: elevate --for 30m --because REASON -- …",
            )  # fmt: skip
        else:
            self.stage = "asking"
            terms = AskTerms(user=self.person.reporting.name, application=self.application)
            ask = Ask(ask=0, kind="terms", body=encode(terms).decode())
            self._keeper.linkage.ask(ask, self._on_terms)

    def _on_terms(self, body: str | None) -> None:
        if self.stage != "asking":
            return
        asking = self._keeper.asking
        self._longest = asking.longest_minutes
        with contextlib.suppress(msgspec.MsgspecError):
            self._terms = msgspec.json.decode(body, type=TermsAnswer) if body else None
        if self._terms is not None:
            self._longest = min(self._longest, self._terms.longest_minutes) or self._longest
            if not self._terms.allowed:
                why = wording.problem(self._terms.problem or "not-permitted")
                self._refuse(78 if self._because else 77, "not-permitted", f"{self._why}; and {why}")
                return
        if self._because:
            minutes = self.hello.minutes or min(asking.default_minutes, self._longest)
            reason = Reason(minutes=minutes, because=self._because, ticket=self.hello.ticket)
            if (problem := wording.problem_of(reason, asking, self._longest)) is not None:
                self._refuse(78, "invalid", problem)
            else:
                self._submit(reason)
            return
        self._ask_person(None)

    def _ask_person(self, problem: str | None) -> None:
        assert self.application is not None
        asking = self._keeper.asking
        self._say(
            AskPerson(
                application=self.application.path,
                why=self._why,
                default_minutes=min(asking.default_minutes, self._longest),
                longest_minutes=self._longest,
                justification_min=asking.justification_min,
                ticket=asking.ticket,
                approvers=self._terms.approvers[:20] if self._terms else [],
                minutes=self.hello.minutes,
                problem=problem,
            )
        )

    def _on_reason(self, reason: Reason) -> None:
        if self.stage != "asking":
            return
        if (problem := wording.problem_of(reason, self._keeper.asking, self._longest)) is not None:
            self._ask_person(problem)
        else:
            self._submit(reason)

    def _submit(self, reason: Reason) -> None:
        """The request is on disk before anybody hears of it."""
        assert self.application is not None
        keeper = self._keeper
        if keeper.spool.full:
            self._refuse(78, "spool-full", wording.SPOOL_FULL)
            return
        try:
            self.asked = keeper.requests.make(self.person, self.application, reason, once=self.hello.once)
        except TooMany as error:
            self._refuse(78, "request-limit", str(error))
            return
        except (sqlite3.Error, TooLong) as error:
            self._refuse(78, "not-recorded", f"the request could not be stored: {error}")
            return
        if self.hello.no_wait:
            self._answer(Stored(request_id=self.asked.request_id))
            return
        self._wait(f"asked for {reason.minutes} minutes (request {self.asked.request_id}); waiting for a decision")

    def _rejoin(self, pending: Asked) -> None:
        self.asked = pending
        if self.hello.no_wait:
            self._answer(Stored(request_id=pending.known_as))
            return
        self._wait(f"request {pending.known_as} is still waiting for a decision; joined it")
        self._keeper.requests.ask(pending.known_as)

    def _wait(self, text: str) -> None:
        assert self.asked is not None
        self.stage = "waiting"
        self._say(Pending(request_id=self.asked.known_as, text=text))
        if not self._keeper.linkage.connected:
            self._say(Say(text=f"the server cannot be reached now ({self._keeper.linkage.why}); the request is kept"))
        self._keeper.waiting.add(self)

    # --- waiting ------------------------------------------------------------------------------------------------------

    def reconsider(self) -> None:
        """Something changed: does a grant cover it now?"""
        if self.stage != "waiting" or self.application is None:
            return
        if isinstance(self._keeper.cover(self.person, self.application), Covered):
            self.judge()

    def on_decision(self, asked: Asked, decision: Decision) -> None:
        """Tell the person. `asked` is the request as this computer now knows it."""
        if self.stage not in ("waiting", "judging"):
            return
        self.asked = asked
        by = decision.by_name or "an approver"
        note = f": {decision.note}" if decision.note else ""
        match decision.status:
            case "pending":
                for text in wording.news(decision):
                    self._say(Say(text=text))
            case "approved" if decision.problem is not None:
                self._refuse_asked(77, f"approved by {by}{note}; but {wording.problem(decision.problem)}")
            case "approved":
                if not self.approved:
                    self.approved = True
                    minutes = f" for {decision.duration_minutes} minutes" if decision.duration_minutes else ""
                    self._say(Say(text=f"approved by {by}{minutes}{note}"))
            case "declined":
                self._refuse_asked(77, f"declined by {by}{note}")
            case "cancelled":
                self._refuse_asked(77, f"the request was cancelled{note}")
            case "expired":
                self._refuse_asked(77, "nobody decided in time; the request has expired", "ask again")
            case "refused":
                self._refuse_asked(78, decision.problem or "the server refused the request")

    # --- the caller ---------------------------------------------------------------------------------------------------

    def _on_client(self) -> None:
        try:
            packet, _, flags, _ = self._guest.client.recvmsg(65536, 0, socket.MSG_PEEK)
            more = read_more(packet) if packet and not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) else None
            if more is not None:
                self._guest.client.recv(65536)
        except BlockingIOError:
            return
        except (OSError, msgspec.MsgspecError):
            more = None
        if more is None:
            self.close()
        elif more.reason is not None:
            self._on_reason(more.reason)

    def _say(self, packet: ToClient) -> None:
        with contextlib.suppress(OSError):
            self._guest.client.send(pack(packet), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def _answer(self, packet: ToClient) -> None:
        self._say(packet)
        self.close()

    def _refuse(self, exit: int, code: str, why: str, next: str | None = None) -> None:
        if self.hello.op == "check" and exit == 77:
            self._answer(Told(exit=77, lines=[f"not now: {why}"]))
            return
        if exit in (77, 78) and self.hello.op == "run":
            application = self.application or Application(path=self.hello.argv[0], arguments=self.hello.argv[1:])
            self._keeper.refusals.add(self.person, application, code, why)
        self._answer(Refused(exit=exit, why=why, next=next))

    def _refuse_asked(self, exit: int, why: str, next: str | None = None) -> None:
        """The server knows already: no report."""
        self._answer(Refused(exit=exit, why=why, next=next))

    def _tell_facts(self, application: Application) -> None:
        if self._found.hidden:
            self._refuse(127, "no-such-program", unseen(self.hello.argv[0]))
            return
        lines, data = wording.facts(application, self._found.writable)
        self._answer(Told(exit=0, lines=lines, data=data))

    def _drop_warden(self) -> None:
        if self._warden is not None:
            warden, self._warden = self._warden, None
            warden.on_message = lambda message: None
            warden.on_death = lambda: None
            warden.let_be()
        if self._leaf is not None:
            leaf, self._leaf = self._leaf, None
            self._keeper.runs.discard(leaf)

    def _leave(self) -> None:
        self._keeper.waiting.discard(self)
        for fd in (self._guest.client.fileno(), self._guest.pidfd):
            self._keeper.loop.unwatch(fd)
        self._keeper.door.left(self._guest.caller.uid)

    def close(self) -> None:
        if self.stage in ("closed", "started"):
            return
        self.stage = "closed"
        self._drop_warden()
        self._leave()
        self._guest.close(self._keeper.door.closing)
