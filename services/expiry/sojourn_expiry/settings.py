"""Every setting of the service."""

from pathlib import Path

from sojourn_shared.service import ServiceSettings


class Settings(ServiceSettings):
    """What `expiry` needs beside the frame's settings."""

    listen: str = "127.0.0.1:8403"
    """host:port"""
    state_keys: Path
    """Folder of `<kid>.seed` files, each the base64url of 32 secret bytes: the keys that sign documents and time."""
    public_url: str = ""
    """Where people reach the console, without a slash at the end; empty: `console_url` is relative."""
    key_set: Path
    """JSON file `{"root_key", "keys"}`: the root's public key, and the key set that it signed for the agents."""
