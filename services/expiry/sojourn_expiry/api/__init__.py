"""Wishes arriving by HTTP: parse, call, answer."""

from . import computers, elevations, grants

ROUTERS = [grants.router, elevations.router, computers.router]
