"""What computers tell a person before asking, and for how long a document holds: from the requests' settings."""

from datetime import timedelta

import msgspec
from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert

from sojourn_shared.contracts import wire
from sojourn_shared.contracts.events import RequestsSettings

from .tables import requests_settings as table
from .transaction import Tx

DEFAULT_MAX_OFFLINE = timedelta(hours=RequestsSettings(version=0).max_offline_hours)


async def hear(tx: Tx, said: RequestsSettings) -> None:
    asking = msgspec.to_builtins(
        wire.Asking(
            enabled=said.enabled,
            default_minutes=said.default_minutes,
            longest_minutes=said.longest_minutes,
            justification_min=said.justification_min,
            ticket=said.ticket,
            ticket_pattern=said.ticket_pattern,
        )
    )
    values = {"asking": asking, "max_offline_hours": said.max_offline_hours}
    await tx.connection.execute(
        insert(table).values(id=1, **values).on_conflict_do_update(index_elements=[table.c.id], set_=values)
    )


async def current(tx: Tx) -> tuple[wire.Asking, timedelta]:
    """`asking` and the time that a document holds; the defaults until `requests` spoke."""
    row = (await tx.connection.execute(select(table))).one_or_none()
    if row is None:
        return wire.Asking(), DEFAULT_MAX_OFFLINE
    return msgspec.convert(row.asking, wire.Asking), timedelta(hours=row.max_offline_hours)
