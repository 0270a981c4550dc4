"""Pages by keyset, newest first; or, for who keeps a copy, what changed after a moment, oldest change first."""

from typing import Any

from sqlalchemy import Select, Table, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from sojourn_shared.service import Paging, settled_until


async def page_of(connection: AsyncConnection, query: Select[Any], table: Table, asked: Paging) -> list[Any]:
    """Up to `asked.limit + 1` rows of `query` on `table`."""
    if asked.updated_after is None:
        columns = tuple_(table.c.created_at, table.c.id)
        if asked.cursor:
            query = query.where(columns < asked.cursor)
        query = query.order_by(table.c.created_at.desc(), table.c.id.desc())
    else:
        columns = tuple_(table.c.updated_at, table.c.id)
        until = await settled_until(connection)
        query = query.where(table.c.updated_at > asked.updated_after, table.c.updated_at < until)
        if asked.cursor:
            query = query.where(columns > asked.cursor)
        query = query.order_by(table.c.updated_at, table.c.id)
    return list((await connection.execute(query.limit(asked.limit + 1))).mappings())


def containing(text: str) -> str:
    """A LIKE pattern, for use with `escape="\\\\"`."""
    for special in "\\%_":
        text = text.replace(special, f"\\{special}")
    return f"%{text}%"
