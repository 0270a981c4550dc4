"""Settings of a service: environment variables, each also as `…_FILE`, read once at start."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError


class ServiceSettings(BaseModel):
    """What every service needs. A field `nats_url` is the variable `SOJOURN_NATS_URL` or `…_URL_FILE`."""

    model_config = ConfigDict(frozen=True)

    database_url: SecretStr
    """`postgresql://role:password@host:port/database`"""
    nats_url: str = "nats://127.0.0.1:4222"
    nats_creds: Path | None = None
    """A standard credentials file: the user's JWT and seed."""
    listen: str = "127.0.0.1:8401"
    """host:port"""
    listen_held: bool = False
    """Who started this holds the port for it, with SO_REUSEPORT, so that no other user takes it in between."""
    gateway_keys: str = ""
    """Public keys of the gateway, base64url, comma separated: the only ones whose tokens are believed."""
    log: Literal["text", "json"] = "text"

    @property
    def host_and_port(self) -> tuple[str, int]:
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)


class BadSettings(Exception):
    """A setting is missing or wrong; the message names the variable and what to do."""


S = TypeVar("S", bound=ServiceSettings)


def load(kind: type[S], environ: Mapping[str, str] = os.environ) -> S:
    """The settings of `kind` from `environ`. Raises BadSettings."""
    values: dict[str, str] = {}
    for field in kind.model_fields:
        variable = f"SOJOURN_{field.upper()}"
        if (text := environ.get(variable)) is not None:
            values[field] = text
        elif (path := environ.get(f"{variable}_FILE")) is not None:
            try:
                values[field] = Path(path).read_text().strip()
            except OSError as error:
                raise BadSettings(f"{variable}_FILE names {path}, which cannot be read: {error.strerror}.") from None
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        variable = f"SOJOURN_{str(first['loc'][0]).upper()}"
        raise BadSettings(f"{variable}: {first['msg']}. Set it, or {variable}_FILE to the path of a file.") from None
