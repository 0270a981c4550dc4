"""The frame, through a toy service that keeps notes: what every service inherits is tested once, here."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, Header, Request, Response
from pydantic import BaseModel
from sqlalchemy import Column, DateTime, Integer, MetaData, Table, Text, insert, select, text

from sojourn_shared.contracts import events
from sojourn_shared.errors import DomainError, Unauthenticated, Unavailable
from sojourn_shared.ids import new_id
from sojourn_shared.service import (
    Caller,
    House,
    Page,
    Paging,
    Park,
    Precondition,
    Service,
    ServiceSettings,
    Transaction,
    allow,
    allow_computer,
    if_match,
    inbox,
    paging,
    router,
    set_etag,
    transaction,
)
from sojourn_shared.service.auth import mint
from sojourn_shared.service.paging import settled_until
from sojourn_shared.service.testing import ADMIN, OpenHouse, TestHouse, person
from sojourn_shared.signing import base64url

KNOCK = "sojourn-enrolment-token"
metadata = MetaData()
notes = Table(
    "notes",
    metadata,
    Column("id", Text, primary_key=True),
    Column("version", Integer, nullable=False),
    Column("words", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("updated_at", DateTime(timezone=True), nullable=False),
)


class Tx(Transaction):
    pass


class TooRude(DomainError):
    code, status, title = "not-permitted", 403, "Not permitted"


class NoteIn(BaseModel):
    words: events.Text
    rules: list[events.Rule] = []


class NoteOut(BaseModel):
    id: str
    version: int
    words: str
    token: str | None = None
    created_at: events.Time


class NotePage(Page[NoteOut]):
    pass


routes = router("/notes", tags=["notes"])
TheTx = Annotated[Tx, Depends(transaction)]


@routes.post("", status_code=201, openapi_extra={"x-secrets": ["token"]})
async def write_note(
    body: NoteIn, caller: Annotated[Caller, Depends(allow("administrator"))], tx: TheTx, response: Response
) -> NoteOut:
    note = {"id": new_id(tx.now), "version": 1, "words": body.words, "created_at": tx.now, "updated_at": tx.now}
    await tx.connection.execute(insert(notes).values(note))
    tx.emit("policy.created", id=note["id"], entity={"id": note["id"], "version": 1}, version=1)
    if body.words == "rude":
        raise TooRude("That is rude.")
    if body.words == "crash":
        raise RuntimeError("a fault of ours")
    if body.words == "busy":
        raise Unavailable("Something that this needs is away.")
    if body.words == "slow":
        await asyncio.sleep(0.3)
    set_etag(response, 1)
    return NoteOut(**note, token="a secret")


@routes.post("/knocks", status_code=201)
async def knock(
    body: NoteIn, agent: Annotated[Caller, Depends(allow_computer())], token: Annotated[str, Header(alias=KNOCK)] = ""
) -> str:
    if token != "right":
        raise Unauthenticated("This token is none of ours.")
    return body.words


@routes.get("")
async def list_notes(
    caller: Annotated[Caller, Depends(allow())],
    tx: TheTx,
    asked: Annotated[Paging, Depends(paging)],
    words: str | None = None,
) -> NotePage:
    query = select(notes).order_by(notes.c.created_at.desc(), notes.c.id.desc()).limit(asked.limit + 1)
    if words is not None:
        query = query.where(notes.c.words == words)
    if asked.updated_after is not None:
        query = query.where(notes.c.updated_at > asked.updated_after)
    if asked.cursor:
        moment, last = asked.cursor
        query = query.where(text("(created_at, id) < (:m, :i)").bindparams(m=moment, i=last))
    rows = (await tx.connection.execute(query)).all()
    page = asked.page([NoteOut.model_validate(row._mapping) for row in rows], lambda note: (note.created_at, note.id))
    return NotePage.model_validate(page)


@routes.put("/{note_id}", status_code=204)
async def change_note(
    note_id: str,
    caller: Annotated[Caller, Depends(allow("administrator"))],
    tx: TheTx,
    precondition: Annotated[Precondition, Depends(if_match)],
) -> None:
    precondition.check(7)


async def on_request(event: events.Event, tx: Tx) -> None:
    if event.data.entity["status"] == "impossible":
        raise Park("it cannot be")
    await tx.connection.execute(
        insert(notes).values(
            id=event.id, version=1, words=event.data.entity["status"], created_at=tx.now, updated_at=tx.now
        )
    )
    tx.emit("grant.ready", id=event.subject, entity={"id": event.subject}, version=event.data.entity["version"])


def write(cursor: str) -> str:
    """A cursor as no list gives it out."""
    return base64url(cursor.encode())


TOY = Service(
    name="policy",
    title="Notes",
    settings=ServiceSettings,
    metadata=metadata,
    migrations=Path(__file__).parent / "frame_service" / "migrations",
    transaction=Tx,
    routers=[routes],
    hears={"request": on_request},
)


@pytest.fixture
async def house(house_of: OpenHouse) -> Any:
    async with house_of(TOY) as opened:
        yield opened


async def words_in(house: TestHouse) -> list[str]:
    async with house.house.database.begin() as connection:
        return [row.words for row in await connection.execute(select(notes.c.words).order_by(notes.c.id))]


async def test_the_migrated_schema_is_the_one_in_code(house: TestHouse) -> None:
    """A table changed in code without a migration is noticed here."""
    assert await house.schema_differences() == []


async def test_a_write_its_event_and_its_answer_are_one(house: TestHouse) -> None:
    """The event carries who did it and the trace that the answer names."""
    async with house.client() as admin:
        answer = await admin.post("/notes", json={"words": "hello"})
    assert answer.status_code == 201
    assert answer.headers["etag"] == '"1"'
    (event,) = await house.events()
    assert event.change == "policy.created"
    assert event.data.actor.name == ADMIN.name
    assert answer.headers["x-request-id"] == (event.traceparent or "").split("-")[1]


@pytest.mark.parametrize(("words", "status"), [("rude", 403), ("crash", 500)])
async def test_what_is_refused_leaves_nothing(house: TestHouse, words: str, status: int) -> None:
    """Neither a row nor an event stays behind a refusal or a fault; the fault says nothing of the inside."""
    async with house.client() as admin:
        answer = await admin.post("/notes", json={"words": words})
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert "RuntimeError" not in answer.text
    assert await words_in(house) == []
    assert await house.events() == []


async def test_a_repeat_gets_the_first_answer_without_its_secret(house: TestHouse) -> None:
    """Same key and body: the first answer again, marked; another body: refused; another caller: another key."""
    async with house.client() as admin, house.client(person("Bea", "administrator")) as bea:
        headers = {"Idempotency-Key": "k1"}
        first = await admin.post("/notes", json={"words": "once"}, headers=headers)
        again = await admin.post("/notes", json={"words": "once"}, headers=headers)
        other = await admin.post("/notes", json={"words": "twice"}, headers=headers)
        hers = await bea.post("/notes", json={"words": "once"}, headers=headers)
    assert first.json() | {"token": None} == again.json()
    assert first.json()["token"] == "a secret"
    assert (again.status_code, again.headers["idempotent-replayed"]) == (201, "true")
    assert (other.status_code, other.json()["type"]) == (422, "/problems/idempotency-mismatch")
    assert hers.json()["id"] != first.json()["id"]
    assert await words_in(house) == ["once", "once"]


async def test_a_refusal_is_kept_and_a_fault_is_not(house: TestHouse) -> None:
    """A repeat of a refused request is refused the same way; one that failed by our fault may be tried again."""
    async with house.client() as admin:
        for words, status in (("rude", 403), ("crash", 500)):
            for _ in range(2):
                answer = await admin.post("/notes", json={"words": words}, headers={"Idempotency-Key": words})
                assert answer.status_code == status
            assert ("idempotent-replayed" in answer.headers) == (status == 403)


async def test_what_was_unavailable_is_tried_again(house: TestHouse) -> None:
    """A 5xx is never the answer to a repeat, whoever raised it."""
    async with house.client() as admin:
        for _ in range(2):
            answer = await admin.post("/notes", json={"words": "busy"}, headers={"Idempotency-Key": "k"})
            assert (answer.status_code, answer.headers.get("idempotent-replayed")) == (503, None)


async def test_whoever_proves_nothing_leaves_nothing(house: TestHouse) -> None:
    """A computer that was refused wrote no row, and its key holds for its own enrolment token alone."""
    agent = Caller(id="enrolling", kind="computer", name="a computer", roles=frozenset())
    async with house.client(agent) as stranger:

        async def knocks(token: str, key: str) -> int:
            headers = {"Idempotency-Key": key, KNOCK: token}
            return (await stranger.post("/notes/knocks", json={"words": "hello"}, headers=headers)).status_code

        assert [await knocks("wrong", str(number)) for number in range(3)] == [401] * 3
        async with house.house.database.begin() as connection:
            assert (await connection.execute(text("SELECT count(*) FROM idempotency"))).scalar_one() == 0
        assert [await knocks(token, "k") for token in ("wrong", "right", "right", "wrong")] == [401, 201, 201, 401]


async def test_simultaneous_repeats_do_it_once(house: TestHouse) -> None:
    """Twenty at once with one key: one does it, the others are told that it runs, or get its answer."""
    async with house.client() as admin:
        answers = await asyncio.gather(
            *(admin.post("/notes", json={"words": "slow"}, headers={"Idempotency-Key": "k"}) for _ in range(20))
        )
    assert {answer.status_code for answer in answers} <= {201, 409}
    assert sum(answer.status_code == 201 and "idempotent-replayed" not in answer.headers for answer in answers) == 1
    assert await words_in(house) == ["slow"]


async def test_every_refusal_is_a_problem(house: TestHouse) -> None:
    """404, 405, 413, 422, 428 and 412 say what, where, and what to do."""
    async with house.client() as admin:
        answers = [
            await admin.get("/nothing"),
            await admin.delete("/notes"),
            await admin.post("/notes", content=b"x" * (1024 * 1024 + 1), headers={"Content-Type": "application/json"}),
            await admin.post("/notes", content=b"{", headers={"Content-Type": "application/json"}),
            await admin.put("/notes/1"),
            await admin.put("/notes/1", headers={"If-Match": '"6"'}),
            await admin.put("/notes/1", headers={"If-Match": '"7"'}),
            await admin.get("/notes?cursor=nonsense"),
            await admin.get("/notes?limit=501"),
        ]
    codes = [(a.status_code, a.json()["type"].rpartition("/")[2] if a.content else "") for a in answers]
    assert codes == [
        (404, "not-found"),
        (405, "method-not-allowed"),
        (413, "too-large"),
        (422, "invalid-body"),
        (428, "precondition-required"),
        (412, "stale-version"),
        (204, ""),
        (422, "invalid-body"),
        (422, "invalid-body"),
    ]


async def test_pointers_resolve_in_what_was_sent(house: TestHouse) -> None:
    """The name of a variant is no place in the body; a missing field is named at its parent; each says what must be."""
    async with house.client() as admin:
        answer = await admin.post(
            "/notes", json={"words": "a\x07b", "rules": [{"type": "file_hash", "sha256": "0" * 63}, {"type": "vendor"}]}
        )
    errors = {error["pointer"]: error["detail"] for error in answer.json()["errors"]}
    assert set(errors) == {"/words", "/rules/0/sha256", "/rules/1"}
    assert "control characters" in errors["/words"]
    assert "vendor is missing" in errors["/rules/1"]
    assert errors["/rules/0/sha256"] == "sha256: must be 64 hexadecimal digits"


async def test_no_route_answers_without_the_gateways_token(house: TestHouse) -> None:
    """No token, a token of another key, for another service, or of a minute ago: 401."""
    async with house.client(None) as nobody:
        stranger = mint(ADMIN, "policy", type(house.gateway_key).generate(), house.clock())
        elsewhere = mint(ADMIN, "audit", house.gateway_key, house.clock())
        old = mint(ADMIN, "policy", house.gateway_key, house.clock())
        house.clock.advance(timedelta(minutes=2))
        for token in ("", stranger, elsewhere, old):
            answer = await nobody.get("/notes", headers={"Authorization": f"Bearer {token}"} if token else {})
            assert (answer.status_code, answer.json()["type"]) == (401, "/problems/unauthenticated")


async def test_the_wrong_role_is_refused(house: TestHouse) -> None:
    """403 names the role that is needed and those that the caller has."""
    async with house.client(person("Rita", "requester")) as rita:
        answer = await rita.post("/notes", json={"words": "hello"})
    assert answer.status_code == 403
    assert "administrator" in answer.json()["detail"]


async def test_pages_hold_still_while_rows_are_added(house: TestHouse) -> None:
    """Walking by cursor sees each row once, whatever is written meanwhile."""
    async with house.client() as admin:
        for number in range(5):
            await admin.post("/notes", json={"words": str(number)})
        page = (await admin.get("/notes?limit=2")).json()
        seen = [note["words"] for note in page["items"]]
        house.clock.advance(timedelta(seconds=1))
        await admin.post("/notes", json={"words": "new"})
        while cursor := page["next_cursor"]:
            page = (await admin.get("/notes", params={"limit": 2, "cursor": cursor})).json()
            seen += [note["words"] for note in page["items"]]
    assert sorted(seen) == ["0", "1", "2", "3", "4"]


LATEST, NAIVE = "2026-11-02T09:00:00Z", "2026-11-02T09:00:00"


@pytest.mark.parametrize(
    "query",
    [
        {"cursor": write(f'["{NAIVE}", "x"]')},
        {"cursor": write('["0001-01-01T00:00:00+14:00", "x"]')},
        {"cursor": write(f'["{LATEST}", "\\u0000"]')},
        {"cursor": write(f'["{LATEST}", "\\ud800"]')},
        {"cursor": write("[" * 20_000)},
        {"updated_after": "0001-01-01T00:00:00+14:00"},
        {"updated_after": "9999-12-31T23:59:59-14:00"},
        {"words": "\0"},
    ],
)
async def test_a_query_that_means_nothing_is_refused(house: TestHouse, query: dict[str, str]) -> None:
    """Moments without a zone or outside the calendar, text that no database holds, a cursor that somebody made up."""
    async with house.client() as admin:
        answer = await admin.get("/notes", params=query)
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/invalid-body"), answer.text


@pytest.mark.parametrize("body", [b'"\xff"', b"[" * 200_000, b'{"words": ' + b"9" * 5_000 + b"}"])
async def test_a_body_that_no_parser_takes_is_refused(house: TestHouse, body: bytes) -> None:
    """Not UTF-8, too deep, or a number without end: the caller's fault, and said to be."""
    async with house.client() as admin:
        answer = await admin.post("/notes", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/invalid-body"), answer.text


async def test_a_change_that_is_under_way_holds_the_horizon_back(house: TestHouse) -> None:
    """Who polls by `updated_after` misses nothing of a transaction that took its time before it wrote."""
    async with Tx.begin(house.house) as slow:
        began = (await slow.connection.execute(text("SELECT clock_timestamp()"))).scalar_one()
        async with house.house.database.begin(read_only=True) as poller:
            await poller.execute(text("SELECT pg_sleep(0.01)"))
            horizon = await settled_until(poller)
    assert horizon <= began


async def test_an_event_is_heard_once_and_only_its_newest_state(house: TestHouse) -> None:
    """A repeat and a late, older state change nothing: idea four of the architecture."""
    said = {"id": new_id(house.clock()), "version": 2, "status": "approved"}
    event = await house.hears("request.approved", said, service="requests", id=said["id"])
    await house.hears("request.approved", said, service="requests", id=said["id"], event_id=event.id)
    await house.hears(
        "request.submitted", said | {"version": 1, "status": "pending"}, service="requests", id=said["id"]
    )
    assert await words_in(house) == ["approved"]
    assert [event.change for event in await house.events()] == ["grant.ready"]


async def test_a_handler_that_fails_leaves_no_trace(house: TestHouse) -> None:
    """The inbox row, the heard version and the effect roll back together, so that a retry starts afresh."""
    said = {"id": new_id(house.clock()), "version": 1, "status": "impossible"}
    with pytest.raises(Park):
        await house.hears("request.submitted", said, service="requests", id=said["id"])
    async with house.house.database.begin() as connection:
        counts = await connection.execute(text("SELECT (SELECT count(*) FROM inbox) + (SELECT count(*) FROM heard)"))
        assert counts.scalar_one() == 0


async def test_an_event_under_a_false_subject_is_parked(house: TestHouse) -> None:
    """Whoever may publish as one service cannot speak as another: subject, type and source must agree."""
    said = {"id": new_id(house.clock()), "version": 1, "status": "approved"}
    event = await house.hears("request.approved", said, service="requests", id=said["id"])
    with pytest.raises(Park, match="its subject is"):
        await inbox.hear(
            house.house, event.bus_subject.replace(".requests.", ".policy."), event.model_dump_json().encode()
        )


async def test_health_is_ready_only_when_it_can_write(house: TestHouse) -> None:
    """Ready writes a row; metrics count what waits."""
    async with house.client(None) as operator:
        ready = await operator.get("http://service/health/ready")
        await operator.get("http://service/health/live")
        metrics = await operator.get("http://service/metrics")
    assert ready.json()["database"] == "written"
    assert "sojourn_outbox_waiting 0.0" in metrics.text


def test_a_route_without_roles_cannot_be_built() -> None:
    """Deny by default: forgetting the roles is an error at start, not an open door."""
    careless = router("/open", tags=["open"])
    with pytest.raises(TypeError, match="declares no roles"):

        @careless.get("")
        async def open_door() -> None: ...


async def test_a_service_may_know_its_callers_by_itself(house_of: OpenHouse) -> None:
    """The gateway knows people by their keys: reads and writes both ask it, and the caller is the event's actor."""

    async def by_word(_house: House, request: Request) -> Caller:
        if request.headers.get("x-word") != "please":
            raise Unauthenticated("Say please.")
        return ADMIN

    async with house_of(replace(TOY, authenticate=by_word)) as house, house.client(None) as anyone:
        refused = [await anyone.get("/notes"), await anyone.post("/notes", json={"words": "hello"})]
        written = await anyone.post("/notes", json={"words": "hello"}, headers={"X-Word": "please"})
        read = await anyone.get("/notes", headers={"X-Word": "please"})
        (event,) = await house.events()
    assert [answer.status_code for answer in refused] == [401, 401]
    assert (written.status_code, len(read.json()["items"])) == (201, 1)
    assert event.data.actor == ADMIN.actor


async def test_a_service_has_its_own_beginning_end_and_pages(house_of: OpenHouse) -> None:
    """What must stand before the first request is made in `around`; what is no API is added by `extend`."""
    told: list[str] = []

    @contextlib.asynccontextmanager
    async def around(house: House) -> AsyncIterator[None]:
        told.append(f"{house.name} begins")
        yield
        told.append("ends")

    def extend(app: FastAPI) -> None:
        app.add_api_route("/hello", lambda: "hello", include_in_schema=False)

    service = replace(TOY, around=around, extend=extend)
    async with house_of(service) as house, house.client(None) as anyone, house.house.running():
        told.append((await anyone.get("http://service/hello")).json())
    assert told == ["policy begins", "hello", "ends"]
