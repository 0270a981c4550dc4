"""What the keeper (root, no network) and the link (network, no rights) say to each other over a socketpair.

A stream of frames: four bytes of length, big-endian, then one JSON message. The keeper trusts nothing of what comes
from the link but what a signature tells: documents, time and key sets are signed by the server, judged in the keeper.
"""

import struct
from typing import Any, Literal

import msgspec

from sojourn_shared.contracts.wire import REPORT_LIMIT, Wire

FRAME_LIMIT = 2 * 1024 * 1024
"""Bytes: the longest answer, a rule set of 512 KiB, may double as a text in JSON."""
LONGEST_REPORT = REPORT_LIMIT - 128
"""Bytes of a signed report: its header counts for the server too, which closes the connection for one byte more."""
_LENGTH = struct.Struct(">I")


class _Message(Wire, frozen=True, tag_field="type"):
    pass


# --- link → keeper ----------------------------------------------------------------------------------------------------


class Connected(_Message, tag="connected", frozen=True, kw_only=True):
    """The link's connection to NATS came (subscribed and flushed) or went; `why` is for people."""

    up: bool
    why: str = ""


class Pushed(_Message, tag="pushed", frozen=True, kw_only=True):
    """A push of the server: `grant` and `revoke` carry a document, `decision` informs the person waiting."""

    kind: Literal["grant", "revoke", "decision"]
    body: str


class Answer(_Message, tag="answer", frozen=True, kw_only=True):
    """The server's answer to `Ask` number `ask`, or why there is none."""

    ask: int
    body: str | None = None
    problem: str | None = None


class Delivered(_Message, tag="delivered", frozen=True, kw_only=True):
    """The stream acknowledged this report; the keeper may forget it."""

    report_id: str


class Undelivered(_Message, tag="undelivered", frozen=True, kw_only=True):
    """The report was not taken now (queue full, connection gone); the keeper keeps it, and offers it again."""

    report_id: str
    why: str


class SignNonce(_Message, tag="sign_nonce", frozen=True, kw_only=True):
    """The NATS server's nonce; the keeper answers with `Signature`, or refuses what is not a nonce."""

    ask: int
    nonce: str


class SignRenewal(_Message, tag="sign_renewal", frozen=True, kw_only=True):
    """The nonce of POST /computers/{id}/credentials or …/document."""

    ask: int
    nonce: str


class NewCredentials(_Message, tag="new_credentials", frozen=True, kw_only=True):
    """Renewed over HTTPS; the keeper checks and stores the key set, and stores the credentials for the next start."""

    credentials: str
    keys: str


class FetchedDocument(_Message, tag="fetched_document", frozen=True, kw_only=True):
    """A document and key set got over HTTPS, when NATS cannot be reached or the computer was decommissioned."""

    document: str
    keys: str


FromLink = (
    Connected | Pushed | Answer | Delivered | Undelivered | SignNonce | SignRenewal | NewCredentials | FetchedDocument
)

# --- keeper → link ----------------------------------------------------------------------------------------------------


class Start(_Message, tag="start", frozen=True, kw_only=True):
    """The first message: all that the link needs to know; the JWT in it is worthless without the keeper."""

    computer_id: str
    server: str
    link_public_key: str
    credentials: str
    ca_pem: str | None = None


class Ask(_Message, tag="ask", frozen=True, kw_only=True):
    """Put `body` to the server as `ask.<kind>`; answered by `Answer` within `timeout_ms`."""

    ask: int
    kind: Literal["heartbeat", "rules", "decision", "terms"]
    body: str
    timeout_ms: int = 2000


class Report(_Message, tag="report", frozen=True, kw_only=True):
    """A signed report to publish as `report.<kind>`, with `Nats-Msg-Id` = its id."""

    report_id: str
    kind: str
    jws: str


class Signature(_Message, tag="signature", frozen=True, kw_only=True):
    """Answer to `SignNonce` (base64 of the nkey's signature) and to `SignRenewal` (a JWS); null when refused."""

    ask: int
    signature: str | None


class Renew(_Message, tag="renew", frozen=True, kw_only=True):
    """Renew credentials now: a document came whose key the keeper does not know."""


FromKeeper = Start | Ask | Report | Signature | Renew


def pack(message: Wire) -> bytes:
    """One frame."""
    body = msgspec.json.encode(message)
    return _LENGTH.pack(len(body)) + body


class Frames:
    """Cuts a byte stream into messages of one union (`FromLink` or `FromKeeper`)."""

    def __init__(self, union: Any) -> None:
        self._decode = msgspec.json.Decoder(union).decode
        self._rest = bytearray()

    def feed(self, chunk: bytes) -> list[Any]:
        """The messages that are complete now. Raises ValueError on what is none: the peer is broken or hostile."""
        self._rest += chunk
        messages = []
        while len(self._rest) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._rest)
            if length > FRAME_LIMIT:
                raise ValueError(f"a frame of {length} bytes; the limit is {FRAME_LIMIT}")
            end = _LENGTH.size + length
            if len(self._rest) < end:
                break
            messages.append(self._decode(self._rest[_LENGTH.size : end]))
            del self._rest[:end]
        return messages
