"""The ledger over HTTP: events as they are searched, watched and told; proofs and the export as they are verified."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from fastapi import Depends, Header, Path, Query, Request
from fastapi.responses import PlainTextResponse, Response, StreamingResponse
from pydantic import AwareDatetime, BaseModel, Field

from sojourn_shared.contracts.events import Actor, Time
from sojourn_shared.errors import InvalidBody
from sojourn_shared.ledger import EMPTY_ROOT, Checkpoint, base64_text
from sojourn_shared.service import Caller, House, Page, Paging, allow, paging, problems, router, transaction
from sojourn_shared.service.paging import write_cursor

from . import answers
from .domain import Filter, FormatNotAvailable, NoSuchTree, NotInLedger, Sight, read_line
from .ledger import HASH_BYTES, consistency_path, inclusion_path
from .store import Entry, Tx

LARGEST = 2**63 - 1

routes = router("/audit", tags=["audit"])

TheTx = Annotated[Tx, Depends(transaction)]
Anyone = Annotated[Caller, Depends(allow())]
Reader = Annotated[Caller, Depends(allow("approver", "auditor", "administrator"))]
Seq = Annotated[int, Path(ge=0, le=LARGEST, description="The entry's place in the ledger, from 0.")]


def _house(request: Request) -> House:
    house: House = request.app.state.house
    return house


TheHouse = Annotated[House, Depends(_house)]


def _sight(caller: Anyone) -> Sight:
    return Sight.of(caller.id, caller.roles, caller.os_users)


TheSight = Annotated[Sight, Depends(_sight)]


def _filter(
    *,
    policy_id: str | None = None,
    request_id: str | None = None,
    grant_id: str | None = None,
    computer_id: str | None = None,
    user: Annotated[str | None, Query(description="A user of a computer, as the computer spells them.")] = None,
    actor: Annotated[str | None, Query(description="Who did it: an id, or the name at that time.")] = None,
    type: Annotated[str | None, Query(description="`grant.revoked`, or a family: `grant.*`.")] = None,
    since: Annotated[AwareDatetime | None, Query(alias="from", description="Happened at this moment or later.")] = None,
    until: Annotated[AwareDatetime | None, Query(description="Happened before this moment.")] = None,
) -> Filter:
    return Filter(
        policy_id=policy_id,
        request_id=request_id,
        grant_id=grant_id,
        computer_id=computer_id,
        user=user,
        actor=actor,
        type=type,
        since=since,
        until=until,
    )


TheFilter = Annotated[Filter, Depends(_filter)]


class AuditEvent(BaseModel):
    """One entry of the ledger. `time` is when it happened, `recorded_at` when the ledger took it."""

    seq: int
    id: str
    type: str
    time: Time
    recorded_at: Time
    source: str
    subject: str
    traceparent: str | None
    actor: Actor
    policy_id: str | None
    request_id: str | None
    grant_id: str | None
    computer_id: str | None
    user: str | None
    summary: str
    because: str | None
    data: dict[str, Any] = Field(description="The entity after the change.")
    leaf_hash: str = Field(description="RFC 6962 hash of the entry's line in the export, base64.")

    @classmethod
    def of(cls, entry: Entry) -> "AuditEvent":
        return cls.model_validate(read_line(entry.line) | {"leaf_hash": base64_text(entry.hashes[:HASH_BYTES])})


class AuditEventPage(Page[AuditEvent]):
    pass


@routes.get("/events", responses=problems(InvalidBody))
async def list_audit_events(
    sight: TheSight,
    wanted: TheFilter,
    tx: TheTx,
    asked: Annotated[Paging, Depends(paging)],
    after: Annotated[
        int | None, Query(ge=-1, le=LARGEST, description="Only entries after this `seq`, in order.")
    ] = None,
) -> AuditEventPage:
    """Events, the newest first; with `after` or `updated_after` in the ledger's order. Requesters see their own."""
    place = _place(asked)
    if after is None and asked.updated_after is None:
        entries = await tx.newest(sight, wanted, before=place, limit=asked.limit + 1)
    else:
        start = max(after if after is not None else -1, place if place is not None else -1)
        entries = await tx.following(
            sight, wanted, after=start, limit=asked.limit + 1, recorded_after=asked.updated_after
        )
    return AuditEventPage.model_validate(asked.page([AuditEvent.of(entry) for entry in entries], _key))


@routes.get("/events/{seq}", responses=problems(NotInLedger))
async def read_audit_event(seq: Seq, sight: TheSight, tx: TheTx) -> AuditEvent:
    """One entry of the ledger."""
    if (entry := await tx.entry(seq, sight)) is None:
        raise NotInLedger(f"There is no entry {seq} that you may read.")
    return AuditEvent.of(entry)


@routes.get(
    "/stream",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}, "description": "Server-sent events: AuditEvent as JSON."}},
)
async def stream_audit_events(
    sight: TheSight,
    wanted: TheFilter,
    house: TheHouse,
    after: Annotated[
        int | None, Query(ge=-1, le=LARGEST, description="Begin after this `seq`; else with news.")
    ] = None,
    last_event_id: Annotated[int | None, Header(ge=-1, le=LARGEST, description="As browsers send it.")] = None,
) -> StreamingResponse:
    """Events as they enter the ledger. `id` is the `seq`: a reader who comes back with `Last-Event-ID` misses none.

    It ends after five minutes, so that a changed role bites; readers come back by themselves.
    """
    begin = last_event_id if last_event_id is not None else after
    if begin is None:
        begin = await house.parts.feed.look(house) - 1
    told = answers.watched(house, sight, wanted, begin, lambda entry: AuditEvent.of(entry).model_dump_json())
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(told, media_type="text/event-stream", headers=headers)


class PolicyTotals(BaseModel):
    """What the events of a policy come to."""

    events: int
    first_at: Time
    last_at: Time
    grants: int
    computers: int
    elevations: int
    users: list[str]
    by_type: dict[str, int]


class PolicyReport(BaseModel):
    """The story of one policy. `timeline` is in the order of `time`; `next_cursor` leads to its next page."""

    policy_id: str
    name: str | None
    totals: PolicyTotals
    timeline: list[AuditEvent]
    next_cursor: str | None


@routes.get(
    "/policies/{policy_id}",
    response_model=PolicyReport,
    responses={200: {"content": {"text/csv": {}}}, **problems(NotInLedger)},
)
async def report_policy(
    *,
    policy_id: str,
    caller: Reader,
    request: Request,
    tx: TheTx,
    house: TheHouse,
    asked: Annotated[Paging, Depends(paging)],
) -> PolicyReport | Response:
    """The events report of one policy: totals and time line. `Accept: text/csv` gives the whole time line as CSV."""
    if (totals := await tx.policy_totals(policy_id)) is None:
        raise NotInLedger(f"The ledger knows no policy {policy_id}.")
    if "text/csv" in request.headers.get("accept", ""):
        headers = {"Content-Disposition": f'attachment; filename="policy-{policy_id}.csv"'}
        return StreamingResponse(answers.policy_csv(house, policy_id), media_type="text/csv", headers=headers)
    place = _place(asked)
    after = (asked.cursor[0], place) if asked.cursor and place is not None else None
    entries = await tx.policy_story(policy_id, after=after, limit=asked.limit + 1)
    shown = entries[: asked.limit]
    line = await tx.policy_name_line(policy_id)
    return PolicyReport(
        policy_id=policy_id,
        name=read_line(line)["data"].get("name") if line else None,
        totals=PolicyTotals.model_validate({**totals, "by_type": msgspec.json.decode(totals["by_type"])}),
        timeline=[AuditEvent.of(entry) for entry in shown],
        next_cursor=write_cursor(shown[-1].time, str(shown[-1].seq)) if len(entries) > len(shown) else None,
    )


class LedgerKeys(BaseModel):
    """The keys that sign checkpoints, as vkeys of C2SP signed notes."""

    origin: str
    keys: list[str]


class InclusionProof(BaseModel):
    """That the entry `seq` is in the tree of `tree_size`, which `checkpoint` signs; hashes in base64."""

    seq: int
    tree_size: int
    hashes: list[str]
    checkpoint: str


class ConsistencyProof(BaseModel):
    """That the tree of size `to`, which `checkpoint` signs, begins with the one of size `from`; hashes in base64."""

    from_: int = Field(alias="from")
    to: int
    hashes: list[str]
    checkpoint: str


@routes.get("/checkpoint", response_class=PlainTextResponse)
async def read_checkpoint(caller: Anyone, tx: TheTx, house: TheHouse) -> PlainTextResponse:
    """The newest checkpoint: a signed note over the size and the root of the ledger. Keep one outside."""
    end = await tx.end()
    note = end.note if end else house.parts.signer.sign(Checkpoint(0, EMPTY_ROOT))
    return PlainTextResponse(note)


@routes.get("/keys")
async def read_ledger_keys(caller: Anyone, house: TheHouse) -> LedgerKeys:
    """The public keys of the ledger. Keep them outside too: whoever asks the accused for the key proves nothing."""
    key = house.parts.signer.key
    return LedgerKeys(origin=key.name, keys=[key.text])


@routes.get("/proofs/inclusion", responses=problems(NotInLedger))
async def prove_inclusion(caller: Anyone, tx: TheTx, seq: Annotated[int, Query(ge=0, le=LARGEST)]) -> InclusionProof:
    """The proof that an entry is in the ledger of the newest checkpoint."""
    end = await tx.end()
    if end is None or seq >= end.size:
        raise NotInLedger(f"There is no entry {seq}: the ledger has {end.size if end else 0} entries.")
    hashes = await tx.path(inclusion_path(seq, end.size))
    return InclusionProof(seq=seq, tree_size=end.size, hashes=_texts(hashes), checkpoint=end.note)


@routes.get("/proofs/consistency", responses=problems(NoSuchTree))
async def prove_consistency(
    caller: Anyone,
    tx: TheTx,
    old: Annotated[int, Query(alias="from", ge=1, le=LARGEST, description="The size of an earlier checkpoint.")],
    new: Annotated[int | None, Query(alias="to", ge=1, description="Of a later one; else the newest.")] = None,
) -> ConsistencyProof:
    """The proof that nothing was changed or removed between two checkpoints."""
    end = await tx.end()
    size = end.size if end else 0
    new = size if new is None else new
    if not old <= new <= size:
        raise NoSuchTree(f"There is no proof from {old} to {new}: the ledger has {size} entries.")
    # Only the sequencer signs: a proof never gives a signature to a tree that was not signed when it was made.
    if (note := await tx.note_at(new)) is None:
        raise NoSuchTree(f"No checkpoint was signed at {new} entries. The newest is at {size}.")
    hashes = await tx.path(consistency_path(old, new))
    return ConsistencyProof(**{"from": old}, to=new, hashes=_texts(hashes), checkpoint=note)


@routes.get(
    "/export",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/jsonl": {}}}, **problems(FormatNotAvailable)},
)
async def export_ledger(
    caller: Reader, tx: TheTx, house: TheHouse, format: Literal["jsonl", "csv", "ocsf"] = "jsonl"
) -> StreamingResponse:
    """The whole ledger. Each line is the bytes that were hashed, and a newline; line numbers are `seq`, from 0."""
    if format != "jsonl":
        raise FormatNotAvailable(f"{format} is not available yet: use format=jsonl.")
    end = await tx.end()
    headers = {"Content-Disposition": 'attachment; filename="sojourn-ledger.jsonl"'}
    lines = answers.exported(house, end.size if end else 0)
    return StreamingResponse(lines, media_type="application/jsonl", headers=headers)


def _texts(hashes: Sequence[bytes]) -> list[str]:
    return [base64_text(one) for one in hashes]


def _key(event: AuditEvent) -> tuple[datetime, str]:
    return event.time, str(event.seq)


def _place(asked: Paging) -> int | None:
    """The `seq` in a cursor. Raises InvalidBody."""
    if asked.cursor is None:
        return None
    if not asked.cursor[1].isascii() or not asked.cursor[1].isdigit():
        raise InvalidBody("This cursor is none that this list gave out: start again without it.")
    return min(int(asked.cursor[1]), LARGEST)
