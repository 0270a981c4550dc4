"""The service `expiry`: the grants and their clock, the documents of the computers, and what they confirmed."""

from pathlib import Path

from sojourn_shared import service
from sojourn_shared.service import House, Service

from . import api, handlers, keys, liveness, publisher, scheduler
from .settings import Settings
from .store import Tx, metadata


def open_keys(house: House) -> keys.StateKeys:
    """What `house.parts` is: the keys that sign documents and time. Raises BadSettings."""
    return keys.load(house.settings.state_keys, house.settings.key_set, house.clock())


SERVICE = Service(
    name="expiry",
    title="Sojourn expiry: grants, documents, runs",
    settings=Settings,
    metadata=metadata,
    migrations=Path(__file__).parent / "migrations",
    transaction=Tx,
    routers=api.ROUTERS,
    hears={
        "assignments": handlers.on_assignments,
        "computer": handlers.on_computer,
        "request": handlers.on_request,
        "settings": handlers.on_settings,
    },
    takes={
        "applied": handlers.on_applied,
        "started": handlers.on_started,
        "moved": handlers.on_moved,
        "ended": handlers.on_ended,
        "returned": handlers.on_returned,
        "refused": handlers.on_refused,
    },
    answers={"heartbeat": handlers.on_heartbeat, "rules": handlers.on_rules},
    tasks=[scheduler.run, publisher.run, liveness.run],
    open=open_keys,
)


def main() -> None:
    """The command `sojourn-expiry`."""
    service.main(SERVICE)
