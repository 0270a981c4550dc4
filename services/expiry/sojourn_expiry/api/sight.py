"""What the routes share, and what a caller may see. A requester: what names one of their OS users, or everybody."""

from typing import Annotated

from fastapi import Depends, Request

from sojourn_expiry.store import Tx
from sojourn_expiry.store.lists import Sight
from sojourn_shared.service import Caller, transaction

TheTx = Annotated[Tx, Depends(transaction)]


def _console(request: Request) -> str:
    public_url: str = request.app.state.house.settings.public_url
    return public_url


Console = Annotated[str, Depends(_console)]
"""Where people reach the console, without a slash at the end."""


def sight_of(caller: Caller) -> Sight:
    """An approver who is limited to computer groups sees nobody else's before computers carry groups here."""
    unlimited = caller.computer_group_ids is None
    everything = caller.has("administrator", "auditor") or (caller.has("approver") and unlimited)
    return Sight(everything, caller.os_users or ())
