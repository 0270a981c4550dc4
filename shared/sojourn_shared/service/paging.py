"""Lists in pages, by keyset: stable while rows are added, and as fast on the last page as on the first."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Query
from pydantic import AwareDatetime, BaseModel
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from sojourn_shared.clock import rfc3339
from sojourn_shared.errors import InvalidBody
from sojourn_shared.signing import base64url, from_base64url

T = TypeVar("T")


class Page(BaseModel, Generic[T]):
    """One page; `next_cursor` is null on the last one."""

    items: list[T]
    next_cursor: str | None = None


@dataclass(frozen=True)
class Paging:
    """What a caller asked of a list. `cursor` is the (time, id) of the last row of the page before."""

    limit: int = 50
    cursor: tuple[datetime, str] | None = None
    updated_after: datetime | None = None

    def page(self, rows: Sequence[T], key: Callable[[T], tuple[datetime, str]]) -> dict[str, Any]:
        """`items` and `next_cursor` from up to `limit + 1` rows: one more than the page tells that there is a next."""
        more = len(rows) > self.limit
        items = list(rows[: self.limit])
        return {"items": items, "next_cursor": write_cursor(*key(items[-1])) if more else None}


def paging(
    limit: Annotated[int, Query(ge=1, le=500, description="How many at most.")] = 50,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before.")] = None,
    updated_after: Annotated[AwareDatetime | None, Query(description="Only what changed after this moment.")] = None,
) -> Paging:
    """A dependency: the paging that the query asks for."""
    return Paging(limit, read_cursor(cursor) if cursor else None, updated_after)


def write_cursor(moment: datetime, id: str) -> str:
    return base64url(json.dumps([rfc3339(moment), id]).encode())


def read_cursor(text: str) -> tuple[datetime, str]:
    """Raises InvalidBody when this is no cursor that a list gave out."""
    try:
        at, last_id = json.loads(from_base64url(text))
        moment = datetime.fromisoformat(at)
        if not isinstance(last_id, str) or moment.tzinfo is None:
            raise TypeError(at, last_id)
        return moment.astimezone(UTC), last_id
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise InvalidBody("This cursor is none that this list gave out: start again without it.") from None


async def settled_until(connection: AsyncConnection) -> datetime:
    """The moment before which no transaction still under way can have changed anything.

    A list by `updated_after` shows only rows changed before it: a slow transaction may commit an earlier time after a
    quick one was already read, and a caller who polls would never see it. One that has written nothing yet counts too:
    it has taken its time already.
    """
    result = await connection.execute(
        text(
            "SELECT least(min(xact_start), clock_timestamp()) FROM pg_stat_activity "
            "WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
    )
    moment: datetime = result.scalar_one()
    return moment
