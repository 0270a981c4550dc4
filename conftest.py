"""Fixtures for every part: a real PostgreSQL and a real NATS, and the kit for services."""

from importlib.util import find_spec

pytest_plugins = ["sojourn_embedded.testing"]
if find_spec("sojourn_shared.service.testing"):
    pytest_plugins.append("sojourn_shared.service.testing")
