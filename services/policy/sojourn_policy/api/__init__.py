"""Wishes arriving by HTTP: parse, authorise, one call of the domain, answer."""

from . import computers, enrolment, policies

ROUTERS = [policies.routes, enrolment.routes, computers.routes]
