"""Wishes that arrive by HTTP."""

from .requests import routes as requests
from .settings import routes as settings

__all__ = ["requests", "settings"]
