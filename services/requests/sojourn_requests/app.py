"""The requests service: who may have what, now?"""

from pathlib import Path

from sojourn_requests import api, handlers, scheduler
from sojourn_requests.settings import Settings
from sojourn_requests.store import Tx, metadata
from sojourn_shared import service
from sojourn_shared.service import Service

SERVICE = Service(
    name="requests",
    title="Sojourn: requests",
    settings=Settings,
    metadata=metadata,
    migrations=Path(__file__).parent / "migrations",
    transaction=Tx,
    routers=[api.requests, api.settings],
    hears={
        "computer": handlers.on_computer,
        "agent": handlers.on_agent,
        "account": handlers.on_account,
        "grant": handlers.on_grant,
    },
    takes={"request": handlers.on_request_report, "cancel": handlers.on_cancel_report},
    answers={"decision": handlers.on_ask_decision, "terms": handlers.on_ask_terms},
    tasks=[scheduler.expire, scheduler.tell],
)


def main() -> None:
    """The command `sojourn-requests`."""
    service.main(SERVICE)
