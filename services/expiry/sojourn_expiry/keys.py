"""The keys that sign documents and time, and the key set by which agents know them. Read once, at start."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec

from sojourn_shared.contracts import wire
from sojourn_shared.service import BadSettings
from sojourn_shared.service.renewal import Nonces
from sojourn_shared.signing import BadSignature, PrivateKey, PublicKey, from_base64url, verify


@dataclass(frozen=True)
class StateKeys:
    """`signer` is the newest key of the set whose seed lies here; `key_set` the signed set as agents get it."""

    signer: PrivateKey
    epoch: int
    key_set: str
    nonces: Nonces
    """For the login of computers over HTTPS; made of the signing key, which all replicas share."""


class _KeySetFile(msgspec.Struct):
    root_key: str
    keys: str


def load(folder: Path, key_set: Path, now: datetime) -> StateKeys:
    """Raises BadSettings, saying which file is wrong and what to do."""
    try:
        file = msgspec.json.decode(key_set.read_bytes(), type=_KeySetFile)
        root = PublicKey.from_text(file.root_key)
        keys = msgspec.json.decode(verify(file.keys, "sojourn-keys", {root.kid: root}), type=wire.KeySet)
    except OSError as error:
        raise BadSettings(f"SOJOURN_KEY_SET names {key_set}, which cannot be read: {error.strerror}.") from None
    except (ValueError, msgspec.MsgspecError, BadSignature) as error:
        raise BadSettings(f"SOJOURN_KEY_SET names {key_set}, which is no signed key set: {error}.") from None
    for key in reversed(keys.keys):  # a rotation adds the new key at the end
        if key.not_after is None or key.not_after > now:
            seed = folder / f"{key.kid}.seed"
            if seed.exists():
                signer = _signer(seed, key)
                return StateKeys(signer, keys.epoch, file.keys, Nonces(signer.seed))
    raise BadSettings(
        f"SOJOURN_STATE_KEYS names {folder}, which holds the seed of no valid key of the key set "
        f"({', '.join(key.kid for key in keys.keys) or 'it has none'}). Put the seed of one there, as <kid>.seed."
    )


def _signer(seed: Path, key: wire.DocumentKey) -> PrivateKey:
    try:
        signer = PrivateKey(from_base64url(seed.read_text().strip()))
    except OSError as error:
        raise BadSettings(f"SOJOURN_STATE_KEYS: {seed} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise BadSettings(f"SOJOURN_STATE_KEYS: {seed} holds no seed of 32 bytes in base64url: {error}.") from None
    if signer.public.text != key.x:
        raise BadSettings(f"SOJOURN_STATE_KEYS: {seed} is the seed of another key than the one that it is named for.")
    return signer
