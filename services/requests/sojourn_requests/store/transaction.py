"""The transaction of this service: requests and settings, their events, and what waits to be told to computers."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, String, and_, cast, delete, func, insert, or_, select, text, update

from sojourn_requests import domain
from sojourn_requests.domain import AskingSettings, AutonomousSettings, Decider, Person, Request, Wish
from sojourn_shared.contracts import wire
from sojourn_shared.contracts.events import Actor, Links
from sojourn_shared.errors import FieldError, InvalidBody, NotFound
from sojourn_shared.ids import new_id
from sojourn_shared.service import Paging, Transaction, settled_until

from . import people
from .rows import Saved, request_of, row_of
from .shapes import answer_for, entity_of, refusal, twin_of
from .tables import computers, decision_pushes, report_answers, requests, settings

EXPIRE_BATCH = 500
PUSH_BATCH = 200
_USER_LOCK = 0x55_53_45_52  # the space of advisory locks that serialise one user's asking

AUTONOMOUS = Actor(kind="autonomous", id=domain.AUTONOMOUS, name="Autonomous approval")


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which requests a list shows. `visible_to`: only those asked by these accounts, or for these OS users."""

    status: str | None = None
    computer_id: str | None = None
    user: str | None = None
    ticket: str | None = None
    q: str | None = None
    visible_to: tuple[Sequence[str], Sequence[str]] | None = None


class Tx(Transaction):
    # --- asking -------------------------------------------------------------------------------------------------------

    async def ask(self, wish: Wish, *, id: str) -> Request:
        """Store the wish as the request `id`, judge it, and approve it at once if every check passes.

        Answers the pending request that it joins instead, if there is one: then the id is another. One user's asking
        takes turns, so that limits hold. Raises what `domain.ask` raises, and InvalidBody for a computer that is no
        longer managed.
        """
        await self.connection.execute(_LOCK_USER, {"space": _USER_LOCK, "user": wish.user})
        computer = await people.computer(self.connection, wish.computer_id, held=True)
        if computer is None or computer.status != "enrolled":
            sentence = "There is no such computer, or it is not managed any more."
            raise InvalidBody(sentence, errors=[FieldError("/computer_id", sentence)])
        asking = (await self.asking_settings()).body
        twin = await self._twin(wish)
        around = domain.Surroundings(
            settings=asking,
            twin=twin,
            pending=await self._pending_of(wish.user),
            approvers=await people.approvers(self.connection, await self.parties(wish), asking.seat.roles),
            checks=await self.checks_for(wish),
        )
        request = domain.ask(wish, around, id=id, now=self.now)
        if request is twin:
            return request
        await self.connection.execute(insert(requests).values(row_of(request)))
        await self._say(request, "request.submitted")
        self.wake("clock")
        if domain.passes(request.checks):
            request = domain.approve_autonomously(request, settings=asking, grant_id=new_id(self.now), now=self.now)
            await self.save(request, "request.approved", actor=AUTONOMOUS)
        return request

    async def checks_for(self, wish: Wish) -> tuple[domain.Check, ...]:
        """Every check of autonomous approval, as of now."""
        saved = await self.autonomous_settings()
        connected, last_seen_at = await people.liveness(self.connection, wish.computer_id)
        history = (await self.connection.execute(_history_of(wish.user, self.now))).one()
        known = domain.Known(
            beneficiary=await people.person(self.connection, [], [wish.user]),
            trust=saved.trust.get(wish.user),
            autonomous_approvals=history.approvals,
            last_declined_at=history.declined_at,
            connected=connected,
            last_seen_at=last_seen_at,
        )
        return domain.judge(
            saved.body, known, user=wish.user, application=wish.application, duration=wish.duration, now=self.now
        )

    async def parties(self, wish: Wish, by: Decider | None = None) -> Person:
        """Who asked and who would be elevated: all that was known of them then, and all that is known now."""
        asker = wish.asker
        if asker.only_passed_on(by):
            return await people.person(self.connection, [], [wish.user])
        return await people.person(self.connection, asker.account_ids, [wish.user, *asker.os_users])

    async def _twin(self, wish: Wish) -> Request | None:
        """The pending request for the same. One whose time is over, unnoticed by the scheduler yet, is expired here."""
        query = select(requests).where(requests.c.twin == twin_of(wish), requests.c.status == "pending")
        row = (await self.connection.execute(query.with_for_update())).one_or_none()
        if row is None:
            return None
        twin = request_of(row)
        if twin.status_at(self.now) == "pending":
            return twin
        await self.save(domain.expire(twin, now=self.now), "request.expired", actor=self.house.actor)
        return None

    async def _pending_of(self, user: str) -> int:
        query = select(func.count()).where(
            requests.c.user_name == user, requests.c.status == "pending", requests.c.expires_at > self.now
        )
        return (await self.connection.execute(query)).scalar_one()

    # --- requests -----------------------------------------------------------------------------------------------------

    async def request(self, id: str) -> Request | None:
        row = (await self.connection.execute(select(requests).where(requests.c.id == id))).one_or_none()
        return request_of(row) if row else None

    async def request_for_update(self, id: str) -> Request:
        """The request, held until this transaction ends. Raises NotFound."""
        query = select(requests).where(requests.c.id == id).with_for_update()
        if (row := (await self.connection.execute(query)).one_or_none()) is None:
            raise NotFound(f"There is no request {id}.")
        return request_of(row)

    async def save(
        self, request: Request, change: str, *, actor: Actor | None = None, because: str | None = None
    ) -> None:
        """Write a changed request, its event, and what the person waiting is told."""
        await self.connection.execute(update(requests).where(requests.c.id == request.id).values(row_of(request)))
        await self._say(request, change, actor=actor, because=because)

    async def _say(
        self, request: Request, change: str, *, actor: Actor | None = None, because: str | None = None
    ) -> None:
        wish = request.wish
        links = Links(request_id=request.id, grant_id=request.grant_id, computer_id=wish.computer_id, user=wish.user)
        entity, version = entity_of(request), request.version
        self.emit(change, id=request.id, entity=entity, version=version, links=links, actor=actor, because=because)
        joined = select(report_answers.c.report_id).where(report_answers.c.joined == request.id)
        answers = [answer_for(request)]
        reports = (await self.connection.execute(joined)).scalars()
        answers += [answer_for(request, asked_as=report) for report in reports]
        await self.tell(wish.computer_id, *answers)

    async def listed(self, wanted: Filter, paging: Paging) -> list[Request]:
        """Up to `limit + 1` requests, newest first; by `updated_after` the longest unchanged first."""
        query = _filtered(wanted)
        if paging.updated_after is not None:
            settled = await settled_until(self.connection)
            key = (requests.c.updated_at, requests.c.id)
            query = query.where(requests.c.updated_at > paging.updated_after, requests.c.updated_at < settled)
            query = query.order_by(*key)
            if paging.cursor:
                query = query.where(_row(*key) > _row(*paging.cursor))
        else:
            key = (requests.c.created_at, requests.c.id)
            query = query.order_by(*(column.desc() for column in key))
            if paging.cursor:
                query = query.where(_row(*key) < _row(*paging.cursor))
        rows = (await self.connection.execute(query.limit(paging.limit + 1))).all()
        return [request_of(row) for row in rows]

    async def pending_on(self, computer_id: str) -> list[Request]:
        """The pending requests of a computer, held until this transaction ends."""
        query = select(requests).where(requests.c.computer_id == computer_id, requests.c.status == "pending")
        rows = await self.connection.execute(query.order_by(requests.c.id).with_for_update())
        return [request_of(row) for row in rows]

    async def expire_due(self) -> int:
        """Expire what is due, at most EXPIRE_BATCH, in one statement; what somebody is just deciding waits its turn."""
        due = (
            select(requests.c.id)
            .where(requests.c.status == "pending", requests.c.expires_at <= self.now)
            .order_by(requests.c.expires_at)
            .limit(EXPIRE_BATCH)
            .with_for_update(skip_locked=True)
            .cte("due")
        )
        statement = (
            update(requests)
            .where(requests.c.id == due.c.id)
            .values(status="expired", version=requests.c.version + 1, updated_at=self.now)
            .returning(requests)
        )
        rows = (await self.connection.execute(statement)).all()
        for row in rows:
            await self._say(request_of(row), "request.expired")
        return len(rows)

    async def next_expiry(self) -> datetime | None:
        """When the next pending request expires."""
        query = select(func.min(requests.c.expires_at)).where(requests.c.status == "pending")
        moment: datetime | None = (await self.connection.execute(query)).scalar_one()
        return moment

    # --- the person waiting at a computer -----------------------------------------------------------------------------

    async def tell(self, computer_id: str, *answers: wire.Decision) -> None:
        """Queue answers for a computer; they are sent once this is committed, and asked for when they get lost."""
        rows = [{"computer_id": computer_id, "body": wire.encode(answer)} for answer in answers]
        await self.connection.execute(insert(decision_pushes), rows)
        self.wake("decisions")

    async def keep_answer(
        self,
        report_id: str,
        computer_id: str,
        user: str,
        *,
        joined: str | None = None,
        problem: str | None = None,
        detail: str | None = None,
    ) -> None:
        """Remember what became of a report that made no request of its own."""
        values = {"report_id": report_id, "computer_id": computer_id, "user_name": user, "created_at": self.now}
        values |= {"joined": joined, "problem": problem, "detail": detail}
        await self.connection.execute(insert(report_answers).values(values))

    async def request_behind(self, report_id: str) -> str:
        """The request that a report joined; its own id otherwise."""
        query = select(report_answers.c.joined).where(report_answers.c.report_id == report_id)
        return (await self.connection.execute(query)).scalar_one_or_none() or report_id

    async def answer(self, report_id: str, computer_id: str) -> wire.Decision | None:
        """How the request of a report stands; None for what this computer never asked, or what has not come yet."""
        query = select(report_answers).where(report_answers.c.report_id == report_id)
        row = (await self.connection.execute(query)).one_or_none()
        if row is not None and row.problem is not None:
            if row.computer_id != computer_id:
                return None
            return refusal(report_id, row.detail, row.created_at)
        request = await self.request(row.joined if row else report_id)
        if request is None or request.wish.computer_id != computer_id:
            return None
        return answer_for(request, asked_as=report_id if row else None)

    async def take_pushes(self) -> Sequence[Any]:
        """Rows (computer_id, body) to be sent now, oldest first. They are gone once this is committed."""
        waiting = select(decision_pushes.c.id).order_by(decision_pushes.c.id).limit(PUSH_BATCH)
        taken = waiting.with_for_update(skip_locked=True).cte("taken")
        statement = delete(decision_pushes).where(decision_pushes.c.id == taken.c.id).returning(decision_pushes)
        rows = (await self.connection.execute(statement)).all()
        return sorted(rows, key=lambda row: row.id)

    # --- settings -----------------------------------------------------------------------------------------------------

    async def asking_settings(self, *, held: bool = False) -> Saved[AskingSettings]:
        return await self._settings("requests", AskingSettings, held)

    async def autonomous_settings(self, *, held: bool = False) -> Saved[AutonomousSettings]:
        return await self._settings("autonomous-approval", AutonomousSettings, held)

    async def save_settings(self, id: str, saved: Saved[Any]) -> None:
        body = saved.body.model_dump(mode="json")
        trust = {name: entry.model_dump(mode="json") for name, entry in saved.trust.items()}
        values = {"version": saved.version, "body": body, "trust": trust, "updated_at": saved.updated_at}
        await self.connection.execute(update(settings).where(settings.c.id == id).values(values))
        entity = {"id": id, "version": saved.version, **body}
        self.emit("settings.changed", id=id, entity=entity, version=saved.version)

    async def _settings(self, id: str, kind: type[Any], held: bool) -> Saved[Any]:
        query = select(settings).where(settings.c.id == id)
        row = (await self.connection.execute(query.with_for_update() if held else query)).one()
        trust = {name: domain.TrustEntry.model_validate(entry) for name, entry in row.trust.items()}
        return Saved(kind.model_validate(row.body), row.version, row.created_at, row.updated_at, trust)


_LOCK_USER = text("SELECT pg_advisory_xact_lock(:space, hashtext(:user))")


def _history_of(user: str, now: datetime) -> Select[int, datetime | None]:
    recently = and_(requests.c.decided_by == domain.AUTONOMOUS, requests.c.decided_at > now - domain.LIMIT_SPAN)
    return select(
        func.count().filter(recently).label("approvals"),
        func.max(requests.c.decided_at).filter(requests.c.status == "declined").label("declined_at"),
    ).where(requests.c.user_name == user, requests.c.decided_at.is_not(None))


def _filtered(wanted: Filter) -> Select[Any]:
    query = select(requests)
    if wanted.status is not None:
        query = query.where(requests.c.status == wanted.status)
    if wanted.computer_id is not None:
        query = query.where(requests.c.computer_id == wanted.computer_id)
    if wanted.user is not None:
        query = query.where(requests.c.user_name == wanted.user)
    if wanted.ticket is not None:
        query = query.where(requests.c.external_refs.contains([{"system": "ticket", "number": wanted.ticket}]))
    if wanted.q is not None:
        named = select(computers.c.id).where(computers.c.name.icontains(wanted.q, autoescape=True))
        facts = ("path", "executable", "product", "vendor", "sha256")
        texts: list[ColumnElement[str]] = [requests.c.user_name, requests.c.justification, requests.c.id]
        texts += [requests.c.application[fact].astext for fact in facts]
        texts.append(cast(requests.c.external_refs, String))
        found = [column.icontains(wanted.q, autoescape=True) for column in texts]
        query = query.where(or_(*found, requests.c.computer_id.in_(named)))
    if wanted.visible_to is not None:
        ids, os_users = wanted.visible_to
        query = query.where(or_(requests.c.requested_by.in_(ids), requests.c.user_name.in_(os_users)))
    return query


def _row(*values: Any) -> Any:
    return func.row(*values)
