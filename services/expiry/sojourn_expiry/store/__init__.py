"""Tables and queries; nothing else speaks SQL. Lock order everywhere: grants by id, then computers by id."""

from .tables import metadata
from .transaction import Tx

__all__ = ["Tx", "metadata"]
