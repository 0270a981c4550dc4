"""The newest valid document and the key set: the only things that the server says and the keeper believes.

A document counts when its purpose, its signature (by a key of the current set) and its computer are right and its
(epoch, version) is higher than what is held; whoever delivered it is not asked.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import msgspec

from sojourn_shared.contracts.wire import (
    DOCUMENT_LIMIT,
    Document,
    Grant,
    KeySet,
    Moment,
    SignedTime,
    UnreadableGrant,
    read_grants,
)
from sojourn_shared.signing import BadSignature, PublicKey, UnknownKey, from_base64url, verify

from .state import State

log = logging.getLogger("sojourn.keeper")

KNOWN_NEEDS: frozenset[str] = frozenset()
"""The abilities that a grant may name in `needs` and that this agent has."""

Version = tuple[int, int]
"""(epoch, version): how documents are ordered."""


class Refused(Exception):
    """The document, key set or time is not taken; the message says why."""


class NotNewer(Refused):
    """What is held is as new, or newer: nothing is wrong."""


class KeysOutdated(Refused):
    """Signed by a key that is not in the set held: a newer set may have it."""


@dataclass(frozen=True)
class Held:
    """A valid document, read once."""

    document: Document
    grants: Mapping[str, Grant | UnreadableGrant]
    outlines: Mapping[str, "Outline"]
    """Of the grants that cannot be read: whether they are over can be told nevertheless."""
    jws: str
    kid: str

    @property
    def version(self) -> Version:
        return self.document.epoch, self.document.version


class Outline(msgspec.Struct, frozen=True):
    """As much of an unreadable grant as its end needs."""

    id: str
    until: Moment | None = None
    take_up_until: Moment | None = None
    revoked: msgspec.Raw | None = None

    def ended(self, now: datetime) -> Literal["revoked", "expired"] | None:
        if self.revoked is not None:
            return "revoked"
        ends = [end for end in (self.until, self.take_up_until) if end is not None]
        return "expired" if ends and now >= min(ends) else None


class KeyRing:
    """The key set, under the pinned root key. The higher epoch replaces; what a removed key signed counts no more."""

    def __init__(self, state: State, root: PublicKey) -> None:
        self._state = state
        self._root = root
        self._set: KeySet | None = None
        self._jws: str | None = None
        self._keys: dict[str, tuple[PublicKey, datetime | None]] = {}
        if text := state.read("keys.jws"):
            try:
                self._use(self._open(text))
            except Refused as error:
                state.set_aside("keys.jws", str(error))

    @property
    def epoch(self) -> int:
        """-1: none is held."""
        return self._set.epoch if self._set else -1

    def usable(self, now: datetime | None) -> Mapping[str, PublicKey]:
        """The keys by kid that have not lapsed at `now` (unknown: none has)."""
        return {kid: key for kid, (key, end) in self._keys.items() if end is None or now is None or now < end}

    def offer(self, jws: str) -> bool:
        """Take a key set of a higher epoch; False when the one held is as new. It counts from now on, but is not on
        disk before `keep`. Raises Refused."""
        offered = self._open(jws)
        if offered.epoch <= self.epoch:
            return False
        self._use(offered)
        self._jws = jws
        return True

    def keep(self) -> None:
        """Write what is held to disk. Raises OSError."""
        if self._jws is not None:
            self._state.write("keys.jws", self._jws)

    def _open(self, jws: str) -> KeySet:
        try:
            payload = verify(jws, "sojourn-keys", {self._root.kid: self._root})
            offered = msgspec.json.decode(payload, type=KeySet)
            for key in offered.keys:
                if PublicKey.from_text(key.x).kid != key.kid:
                    raise Refused(f"the key set calls a key {key.kid} that is another")
        except (BadSignature, msgspec.MsgspecError, ValueError) as error:
            raise Refused(f"the key set is not valid: {error}") from None
        return offered

    def _use(self, offered: KeySet) -> None:
        self._set = offered
        self._keys = {key.kid: (PublicKey.from_text(key.x), key.not_after) for key in offered.keys}


class Documents:
    """Holds the newest document of this computer, in memory and on disk."""

    def __init__(self, state: State, computer_id: str, keys: KeyRing, *, floor: Version = (0, 0)) -> None:
        """`floor`: the highest version ever held here; a lost or cut file never lets an older one in."""
        self._state = state
        self._computer_id = computer_id
        self._keys = keys
        self.floor = floor
        self.held: Held | None = None
        if text := state.read("document.jws"):
            try:
                self.held = self._open(text, now=None)
                if self.held.version < floor:
                    self.held = None
                    raise Refused("it is older than what was held here before")
                self.floor = self.held.version
            except Refused as error:
                state.set_aside("document.jws", str(error))

    def offer(self, jws: str, now: datetime | None) -> Held:
        """The new document, held from now on, but not on disk before `keep`: first it is acted upon.

        Raises NotNewer, KeysOutdated, Refused.
        """
        offered = self._open(jws, now)
        if self.held is None:
            if offered.version < self.floor:
                raise NotNewer(f"version {offered.version} came, {self.floor} was held here before")
        elif offered.version <= self.held.version:
            raise NotNewer(f"version {offered.version} came, {self.held.version} is held")
        self.held = offered
        self.floor = max(self.floor, offered.version)
        return offered

    def keep(self) -> None:
        """Write what is held to disk."""
        if self.held is not None:
            self._state.write("document.jws", self.held.jws)

    def drop_if_key_removed(self) -> bool:
        """After a new key set: what a removed key signed is discarded, and fetched again. Answers whether it was."""
        if self.held is None or self.held.kid in self._keys.usable(None):
            return False
        log.warning("the key that signed document %s is no longer in the key set: discarded", self.held.version)
        self.held = None
        self._state.path("document.jws").unlink(missing_ok=True)
        return True

    def read_time(self, jws: str, nonces: frozenset[str], now: datetime | None) -> SignedTime:
        """The server's time, in answer to one of our own `nonces`. Raises Refused, KeysOutdated."""
        try:
            time = msgspec.json.decode(verify(jws, "sojourn-time", self._keys.usable(now)), type=SignedTime)
        except UnknownKey as error:
            raise KeysOutdated(str(error)) from None
        except (BadSignature, msgspec.MsgspecError) as error:
            raise Refused(f"the time is not valid: {error}") from None
        if time.computer_id != self._computer_id:
            raise Refused(f"the time is for another computer: {time.computer_id}")
        if time.nonce not in nonces:
            raise Refused("the time answers no question of ours")
        if time.server_time.tzinfo is None:
            raise Refused("the time names no zone")
        return time

    def _open(self, jws: str, now: datetime | None) -> Held:
        if len(jws) > DOCUMENT_LIMIT:
            raise Refused(f"the document has {len(jws)} bytes; the limit is {DOCUMENT_LIMIT}")
        try:
            payload = verify(jws, "sojourn-state", self._keys.usable(now))
            document = msgspec.json.decode(payload, type=Document)
            if document.computer_id != self._computer_id:
                raise Refused(f"the document is for another computer: {document.computer_id}")
            grants = {grant.id: grant for grant in read_grants(document, KNOWN_NEEDS)}
        except UnknownKey as error:
            raise KeysOutdated(str(error)) from None
        except (BadSignature, msgspec.MsgspecError) as error:
            raise Refused(f"the document is not valid: {error}") from None
        if document.valid_until.tzinfo is None:
            raise Refused("the document's times name no zone")
        # `verify` has just read this header, so it is well-formed.
        return Held(document=document, grants=grants, outlines=_outlines(document, grants), jws=jws, kid=_kid(jws))


def _outlines(document: Document, grants: Mapping[str, Grant | UnreadableGrant]) -> dict[str, Outline]:
    outlines = {}
    for raw in document.grants:
        try:
            outline = msgspec.json.decode(raw, type=Outline)
        except msgspec.ValidationError:
            continue  # not even its times can be read: the server must revoke it in words that we know
        if isinstance(grants[outline.id], UnreadableGrant):
            outlines[outline.id] = outline
    return outlines


class _Kid(msgspec.Struct):
    kid: str


def _kid(jws: str) -> str:
    return msgspec.json.decode(from_base64url(jws.partition(".")[0]), type=_Kid).kid
