"""Settings of the audit service."""

from typing import Annotated

from pydantic import AfterValidator, SecretStr

from sojourn_shared.service import ServiceSettings
from sojourn_shared.signing import from_base64url


def _seed(secret: SecretStr) -> SecretStr:
    try:
        right = len(from_base64url(secret.get_secret_value().strip())) == 32
    except ValueError:
        right = False
    if not right:
        raise ValueError("must be an Ed25519 seed: 32 bytes in base64url, 43 letters")
    return secret


class Settings(ServiceSettings):
    listen: str = "127.0.0.1:8404"
    ledger_key: Annotated[SecretStr, AfterValidator(_seed)]
    """Seed of the key that signs checkpoints, base64url. After a change, whoever verifies needs the new public key."""
