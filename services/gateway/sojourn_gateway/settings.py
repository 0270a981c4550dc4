"""Every setting of the gateway, with its default and its reason."""

from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, SecretStr

from sojourn_shared.service import ServiceSettings

DOCUMENT = Path(__file__).parent / "openapi.json"
"""The API of all services, written by `make openapi`."""


def _base(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.netloc or parts.path.strip("/") or parts.query:
        raise ValueError("must be http(s)://host:port, without a path")
    return f"{parts.scheme}://{parts.netloc}"


BaseUrl = Annotated[str, AfterValidator(_base)]


class Settings(ServiceSettings):
    """Settings of the gateway, beside those of every service."""

    listen: str = "127.0.0.1:8400"
    public_url: BaseUrl = "http://127.0.0.1:8400"
    """Where people reach the console. With https, cookies are sent over https alone."""
    policy_url: BaseUrl = "http://127.0.0.1:8401"
    requests_url: BaseUrl = "http://127.0.0.1:8402"
    expiry_url: BaseUrl = "http://127.0.0.1:8403"
    audit_url: BaseUrl = "http://127.0.0.1:8404"
    gateway_key: SecretStr
    """The seed of the key that signs tokens for the services: base64url of 32 bytes."""
    bootstrap_file: Path | None = None
    """The first account, its API key and its sign-in link, as `bootstrap.py` describes."""

    @property
    def services(self) -> dict[str, str]:
        """Where each service answers."""
        return {
            "policy": self.policy_url,
            "requests": self.requests_url,
            "expiry": self.expiry_url,
            "audit": self.audit_url,
        }

    @property
    def is_https(self) -> bool:
        return self.public_url.startswith("https:")
