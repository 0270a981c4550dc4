"""Ed25519 keys and the one kind of signature that Sojourn knows: a compact JWS (RFC 7515, RFC 8037).

Every JWS names its purpose in `typ`, and a reader takes only the purpose it expects: a report can never be
taken for a document, whoever signed it.
"""

import base64
import binascii
import hashlib
from collections.abc import Mapping
from typing import Literal, Self

import msgspec
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

Purpose = Literal["sojourn-state", "sojourn-time", "sojourn-report", "sojourn-keys", "sojourn-renew", "JWT"]


class BadSignature(Exception):
    """The text is no JWS of that purpose by any of those keys; the message says which of these failed."""


class _Header(msgspec.Struct, forbid_unknown_fields=True):
    alg: Literal["EdDSA"]
    kid: str
    typ: Purpose


_read_header = msgspec.json.Decoder(_Header).decode


class PrivateKey:
    """An Ed25519 private key. `kid` names its public half."""

    def __init__(self, seed: bytes) -> None:
        self._key = SigningKey(seed)
        self.public = PublicKey(bytes(self._key.verify_key))
        self.kid = self.public.kid

    @classmethod
    def generate(cls) -> Self:
        return cls(bytes(SigningKey.generate()))

    @property
    def seed(self) -> bytes:
        """The 32 secret bytes, for writing to a file of mode 0600."""
        return bytes(self._key)

    def sign(self, payload: bytes, purpose: Purpose) -> str:
        """`payload` as a compact JWS."""
        header = msgspec.json.encode(_Header(alg="EdDSA", kid=self.kid, typ=purpose))
        signed = f"{base64url(header)}.{base64url(payload)}"
        return f"{signed}.{base64url(self._key.sign(signed.encode()).signature)}"

    def signature(self, text: bytes) -> bytes:
        """64 raw bytes over `text`, for signed notes: their texts begin with an origin, and can never be a JWS."""
        return self._key.sign(text).signature


class PublicKey:
    """An Ed25519 public key. Text form: base64url of its 32 bytes, without padding."""

    def __init__(self, raw: bytes) -> None:
        self._key = VerifyKey(raw)
        self.raw = raw
        self.kid = base64url(hashlib.sha256(raw).digest()[:12])

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Raises ValueError when `text` is not 32 bytes in base64url."""
        raw = from_base64url(text)
        if len(raw) != 32:
            raise ValueError("an Ed25519 public key has 32 bytes")
        return cls(raw)

    @property
    def text(self) -> str:
        return base64url(self.raw)

    @property
    def fingerprint(self) -> str:
        """128 bits of SHA-256 in hex: what an enrolment token carries of the root key."""
        return hashlib.sha256(self.raw).hexdigest()[:32]

    def check(self, signature: bytes, text: bytes) -> None:
        """Raises BadSignature unless `signature` is what `PrivateKey.signature` makes of `text`."""
        try:
            self._key.verify(text, signature)
        except (BadSignatureError, ValueError):
            raise BadSignature("the signature does not fit the text") from None


def verify(token: str, purpose: Purpose, keys: Mapping[str, PublicKey]) -> bytes:
    """The payload of `token`, if one of `keys` (by kid) signed it for `purpose`.

    Raises BadSignature.
    """
    header_text, _, rest = token.partition(".")
    payload_text, _, signature_text = rest.partition(".")
    try:
        header = _read_header(from_base64url(header_text))
        payload, signature = from_base64url(payload_text), from_base64url(signature_text)
    except (ValueError, msgspec.MsgspecError) as error:
        raise BadSignature(f"not a compact JWS: {error}") from None
    if header.typ != purpose:
        raise BadSignature(f"signed as {header.typ}, expected {purpose}")
    if (key := keys.get(header.kid)) is None:
        raise UnknownKey(header.kid)
    try:
        key._key.verify(f"{header_text}.{payload_text}".encode(), signature)
    except (BadSignatureError, ValueError):
        raise BadSignature("the signature does not fit the text") from None
    return payload


class UnknownKey(BadSignature):
    """Signed by a key that the reader does not hold: it may be newer than the reader's key set."""

    def __init__(self, kid: str) -> None:
        super().__init__(f"signed by a key that is not known here: {kid}")
        self.kid = kid


def base64url(raw: bytes) -> str:
    """RFC 4648, section 5, without padding."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def from_base64url(text: str) -> bytes:
    """Strict: the URL-safe alphabet, no padding, and no second spelling of the same bytes. Raises ValueError."""
    try:
        raw = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ValueError(f"not base64url: {error}") from None
    if base64url(raw) != text:
        raise ValueError("not base64url: another spelling of the same bytes")
    return raw
