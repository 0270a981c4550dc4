"""Facts arriving by the bus: events of other services, reports of computers, and their questions."""

from .asks import on_heartbeat, on_rules
from .events import on_assignments, on_computer, on_request, on_settings
from .reports import on_applied, on_ended, on_moved, on_refused, on_returned, on_started

__all__ = [
    "on_applied",
    "on_assignments",
    "on_computer",
    "on_ended",
    "on_heartbeat",
    "on_moved",
    "on_refused",
    "on_request",
    "on_returned",
    "on_rules",
    "on_settings",
    "on_started",
]
