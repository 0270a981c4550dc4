"""Tables and queries of policy; nothing else speaks SQL."""

from .computers import Computers
from .policies import InForce, Policies
from .tables import metadata

__all__ = ["InForce", "Tx", "metadata"]


class Tx(Policies, Computers):
    """One transaction of policy."""
