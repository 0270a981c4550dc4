"""What an agent gets to log in with: its credential for the bus, the keys it shall believe, and enrolment tokens."""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import msgspec

from sojourn_shared.service import BadSettings
from sojourn_shared.service.nats_accounts import AGENT_JWT_LIFE, Key, agent_jwt
from sojourn_shared.service.renewal import Nonces
from sojourn_shared.signing import PublicKey, base64url

from .settings import Settings


class KeySetFile(msgspec.Struct, frozen=True):
    """`root_key`: the root's public key; `keys`: the key set, a JWS `sojourn-keys`."""

    root_key: str
    keys: str


class Credential(NamedTuple):
    """A user JWT of the bus for one computer's link."""

    jwt: str
    expires_at: datetime
    nats_urls: list[str]
    inbox_prefix: str


class _IssuerFile(msgspec.Struct, frozen=True):
    seed: str
    account: str


@dataclass(frozen=True)
class Credentials:
    """Issues credentials; `nonces` guard their renewal."""

    nonces: Nonces
    half_life = AGENT_JWT_LIFE / 2
    _seed: str
    _account: str
    _key_set: Path
    _nats_urls: tuple[str, ...]

    @classmethod
    def of(cls, settings: Settings) -> "Credentials":
        """Raises BadSettings when the issuer's seed or the key set cannot be used."""
        try:
            issuer = msgspec.json.decode(settings.agent_issuer_seed.get_secret_value(), type=_IssuerFile)
            Key(issuer.seed)
        except Exception:  # nkeys raises errors of many kinds; none of them may show the seed
            raise BadSettings(
                'SOJOURN_AGENT_ISSUER_SEED is no usable JSON {"seed": "SA…", "account": "A…"}: take the one that was '
                "made with the accounts of NATS."
            ) from None
        made = cls(
            # Every replica holds the issuer's seed, and nobody else does.
            nonces=Nonces(issuer.seed.encode()),
            _seed=issuer.seed,
            _account=issuer.account,
            _key_set=settings.key_set,
            _nats_urls=tuple(url.strip() for url in settings.nats_public_urls.split(",") if url.strip()),
        )
        made.key_set()
        return made

    def key_set(self) -> KeySetFile:
        """The root key and the newest key set. Raises BadSettings, naming the file."""
        try:
            found = msgspec.json.decode(self._key_set.read_bytes(), type=KeySetFile)
            PublicKey.from_text(found.root_key)
        except OSError as error:
            raise BadSettings(
                f"SOJOURN_KEY_SET names {self._key_set}, which cannot be read: {error.strerror}."
            ) from None
        except ValueError:  # msgspec's errors too
            raise BadSettings(
                f'{self._key_set} is no key set (JSON {{"root_key", "keys"}}): restore it, or make it anew.'
            ) from None
        return found

    def issue(self, computer_id: str, link_public_key: str, issued_at: datetime) -> Credential:
        """A credential that is good for 24 hours from `issued_at`. Raises ValueError unless both are what they say."""
        whole = issued_at.replace(microsecond=0)  # a JWT counts in seconds
        return Credential(
            jwt=agent_jwt(self._seed, self._account, computer_id, link_public_key, whole),
            expires_at=whole + AGENT_JWT_LIFE,
            nats_urls=list(self._nats_urls),
            inbox_prefix=f"_INBOX_{computer_id}",
        )

    def new_token(self) -> str:
        """An enrolment token: 128 random bits, and the root key's fingerprint for the agent to pin."""
        root = PublicKey.from_text(self.key_set().root_key)
        return f"sje_{secrets.token_hex(16)}_{root.fingerprint}"


def digest_of(token: str) -> str:
    """What is stored of an enrolment token, hex: its secret has 128 bits, so that no slow hash is needed."""
    return hashlib.sha256(token.encode()).hexdigest()


def new_offline_secret() -> str:
    """32 random bytes, base64url; shared with one computer."""
    return base64url(secrets.token_bytes(32))
