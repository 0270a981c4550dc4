"""Settings of this service: those of every service, and where the console is. What people set lies in the database."""

from sojourn_shared.service import ServiceSettings


class Settings(ServiceSettings):
    listen: str = "127.0.0.1:8402"
    """host:port"""
    public_url: str = ""
    """Where people reach the console, without a slash at the end; empty: `console_url` is relative."""
