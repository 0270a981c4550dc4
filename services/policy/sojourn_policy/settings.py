"""The settings of policy; each is an environment variable `SOJOURN_…`."""

from pathlib import Path

from pydantic import SecretStr

from sojourn_shared.service import ServiceSettings


class Settings(ServiceSettings):
    agent_issuer_seed: SecretStr
    """JSON `{"seed": "SA…", "account": "A…"}`: the scoped key that signs agents' credentials, and their account."""
    key_set: Path
    """The file with the root public key and the signed key set, JSON `{"root_key", "keys"}`; read at each use, so that
    a rotation needs no restart."""
    nats_public_urls: str = "nats://127.0.0.1:4222"
    """Where agents reach NATS, comma separated; TLS except on loopback."""
    public_url: str = ""
    """Where people reach the console, without a slash at the end; empty: `console_url` is relative."""
