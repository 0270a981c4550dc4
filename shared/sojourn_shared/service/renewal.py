"""The login of a computer over HTTPS: the service gives a nonce, the computer's keeper signs it (contract, section 4).

A nonce proves by itself that this service made it, for that computer, a moment ago: asking for one writes nothing, so
that nobody without a key can fill the database, and any replica takes a nonce of any other. Only a nonce that was
signed correctly is written down, so that it opens the door once.
"""

import hashlib
import hmac
import os
from datetime import datetime, timedelta
from typing import Annotated

import msgspec
from pydantic import Field

from sojourn_shared.contracts import wire
from sojourn_shared.contracts.events import Model
from sojourn_shared.errors import Unauthenticated
from sojourn_shared.signing import BadSignature, PublicKey, base64url, from_base64url, verify

from .transaction import Transaction

NONCE_LIFE = timedelta(minutes=2)  # a slow network and two replicas' clocks, not a lunch break

_EXPIRY_BYTES, _RANDOM_BYTES, _MAC_BYTES = 5, 11, 16
_MADE_BYTES = _EXPIRY_BYTES + _RANDOM_BYTES


class ComputerLogin(Model):
    """What a computer's agent sends: nothing to be given a nonce, then the keeper's proof over it."""

    renewal: Annotated[
        str | None,
        Field(max_length=4096, description="A compact JWS `sojourn-renew` over {computer_id, link_public_key, nonce}."),
    ] = None


class ProofNeeded(Unauthenticated):
    """Carries the nonce to sign, as the member `nonce` of the problem."""


class Nonces:
    """Makes and knows the nonces of one service. `secret` is one that all its replicas share; it is never shown."""

    def __init__(self, secret: bytes) -> None:
        self._key = hmac.digest(secret, b"sojourn nonce of a computer's login", hashlib.sha256)

    def new(self, computer_id: str, now: datetime) -> str:
        """43 characters, base64url."""
        expires = int((now + NONCE_LIFE).timestamp())
        made = expires.to_bytes(_EXPIRY_BYTES) + os.urandom(_RANDOM_BYTES)
        return base64url(made + self._mac(made, computer_id))

    def knows(self, nonce: str, computer_id: str, now: datetime) -> bool:
        """Whether `nonce` was made here for that computer, and is not too old."""
        try:
            raw = from_base64url(nonce)
        except ValueError:
            return False
        made, mac = raw[:_MADE_BYTES], raw[_MADE_BYTES:]
        fresh = now.timestamp() < int.from_bytes(made[:_EXPIRY_BYTES])
        return hmac.compare_digest(mac, self._mac(made, computer_id)) and fresh

    def _mac(self, made: bytes, computer_id: str) -> bytes:
        return hmac.digest(self._key, made + computer_id.encode(), hashlib.sha256)[:_MAC_BYTES]


def ask_for_proof(login: ComputerLogin, computer_id: str, nonces: Nonces, now: datetime) -> str:
    """The JWS that came. Raises ProofNeeded when none did; call it before looking anything up."""
    if login.renewal is None:
        raise _needs_proof("Sign this nonce with the keeper's key and call again.", nonces.new(computer_id, now))
    return login.renewal


async def proven(jws: str, computer_id: str, keeper_public_key: str, nonces: Nonces, tx: Transaction) -> wire.Renewal:
    """What the keeper of that computer signed over a nonce of ours, which is spent with it.

    Raises ProofNeeded (another key, another computer, a nonce that is spent, too old or not ours), with a fresh nonce.
    """
    key = PublicKey.from_text(keeper_public_key)
    try:
        renewal = _read(verify(jws, "sojourn-renew", {key.kid: key}))
    except (BadSignature, msgspec.MsgspecError) as error:
        raise _needs_proof(
            f"This is no proof by the computer's keeper: {error}.", nonces.new(computer_id, tx.now)
        ) from None
    good = renewal.computer_id == computer_id and nonces.knows(renewal.nonce, computer_id, tx.now)
    if not good or not await tx.first_time(f"{computer_id}/nonce/{renewal.nonce}"):
        raise _needs_proof("The nonce is spent, too old, or another's: sign this one.", nonces.new(computer_id, tx.now))
    return renewal


def _needs_proof(detail: str, nonce: str) -> ProofNeeded:
    return ProofNeeded(detail, nonce=nonce)


_read = msgspec.json.Decoder(wire.Renewal).decode
