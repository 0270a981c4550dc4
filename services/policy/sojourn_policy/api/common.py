"""What the routes of all entities share: who may, in which transaction, and the links to the console."""

from typing import Annotated

from fastapi import Depends, Query, Request
from pydantic import AfterValidator

from sojourn_policy.credentials import Credentials
from sojourn_policy.store import Tx
from sojourn_shared.contracts.events import Name
from sojourn_shared.service import Caller, Paging, Precondition, allow, if_match, paging, transaction

Administrator = Annotated[Caller, Depends(allow("administrator"))]
Reader = Annotated[Caller, Depends(allow("administrator", "approver", "auditor"))]
TheTx = Annotated[Tx, Depends(transaction)]
ThePaging = Annotated[Paging, Depends(paging)]
ThePrecondition = Annotated[Precondition, Depends(if_match)]


def _console(request: Request) -> str:
    url: str = request.app.state.house.settings.public_url
    return url.rstrip("/")


def _credentials(request: Request) -> Credentials:
    credentials: Credentials = request.app.state.house.parts
    return credentials


Console = Annotated[str, Depends(_console)]
"""Where the console's paths begin; empty for relative ones."""
TheCredentials = Annotated[Credentials, Depends(_credentials)]


def _not_by_group(group_id: str | None) -> str | None:
    if group_id is not None:
        raise ValueError("computer groups are not available yet")
    return None


Filter = Annotated[Name | None, Query()]
NoGroup = Annotated[str | None, Query(include_in_schema=False), AfterValidator(_not_by_group)]
"""Refused rather than ignored: a filter that filters nothing would name every computer."""
