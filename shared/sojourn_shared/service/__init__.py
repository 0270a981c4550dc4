"""The frame that every service stands on: app, transactions, events out and in, problems, paging, health.

A service's `app.py` makes one `Service` of its parts; everything else is the same for all of them.
"""

from .app import House, Service, build, main, serve
from .auth import Caller, allow, allow_computer
from .inbox import NotYet, Park
from .paging import Page, Paging, paging, settled_until
from .problems import problems
from .reports import open_report
from .routing import Precondition, if_match, router, set_etag, transaction
from .settings import BadSettings, ServiceSettings
from .transaction import Transaction

__all__ = [
    "BadSettings",
    "Caller",
    "House",
    "NotYet",
    "Page",
    "Paging",
    "Park",
    "Precondition",
    "Service",
    "ServiceSettings",
    "Transaction",
    "allow",
    "allow_computer",
    "build",
    "if_match",
    "main",
    "open_report",
    "paging",
    "problems",
    "router",
    "serve",
    "set_etag",
    "settled_until",
    "transaction",
]
