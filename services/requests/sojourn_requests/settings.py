"""Settings of this service: those of every service, none of its own. What people set lies in the database."""

from sojourn_shared.service import ServiceSettings


class Settings(ServiceSettings):
    listen: str = "127.0.0.1:8402"
    """host:port"""
