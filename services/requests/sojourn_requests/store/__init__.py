"""Tables and queries; nothing else in this service speaks SQL."""

from . import people
from .people import Computer
from .rows import Saved
from .shapes import RequestEntity, answer_for, entity_of, refusal
from .tables import metadata
from .transaction import EXPIRE_BATCH, Filter, Tx

__all__ = [
    "EXPIRE_BATCH",
    "Computer",
    "Filter",
    "RequestEntity",
    "Saved",
    "Tx",
    "answer_for",
    "entity_of",
    "metadata",
    "people",
    "refusal",
]
