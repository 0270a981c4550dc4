"""The ledger as its readers see it: leaf and tree hashes, proofs, signed checkpoints, and the check of an export.

Service and verifier share this file, because a proof is worth nothing unless both hash the same bytes. Only the
standard library and `signing`: whoever doubts the service can read all that they need to trust here.

Hashes and proofs are those of RFC 6962 (section 2) and RFC 9162 (sections 2.1.3 and 2.1.4); a checkpoint is a C2SP
tlog-checkpoint in a C2SP signed note.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from .signing import BadSignature, PublicKey

ORIGIN = "sojourn/ledger"
EMPTY_ROOT = hashlib.sha256().digest()
ED25519 = b"\x01"  # the algorithm byte of a signed note's keys

_LINE = re.compile(rb'\{"seq":(0|[1-9][0-9]{0,18}),"previous":(?:null|"([A-Za-z0-9+/]{43}=)"),')
_SIGNATURE_LINE = re.compile(r"^— (\S+) (\S+)$")
_SIZE = re.compile(r"^(0|[1-9][0-9]{0,18})$")


class LedgerError(Exception):
    """What was shown does not hold; the message says what and where."""


class BadNote(LedgerError):
    """Not a signed note, not a checkpoint, or not signed by any of the keys given."""


class BadProof(LedgerError):
    """The hashes do not lead from what is claimed to the root that was signed."""


class LedgerAltered(LedgerError):
    """The lines are not those that were signed. `seqs` are the entries at fault, as far as they can be told."""

    def __init__(self, detail: str, seqs: Sequence[int] = ()) -> None:
        super().__init__(detail)
        self.seqs = tuple(seqs)


# --- hashes -----------------------------------------------------------------------------------------------------------


def leaf_hash(line: bytes) -> bytes:
    """The hash of an entry: of the bytes of its line, without the newline."""
    return hashlib.sha256(b"\x00" + line).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


class Tree:
    """A tree that grows at its right end: only its perfect subtrees are held, one for each bit of `size`."""

    def __init__(self, size: int = 0, peaks: Sequence[bytes] = ()) -> None:
        """`peaks` are the roots of the perfect subtrees of a tree of `size`, from left to right."""
        if len(peaks) != size.bit_count():
            raise ValueError(f"a tree of {size} has {size.bit_count()} peaks")
        self.size = size
        self._peaks = list(peaks)

    def add(self, leaf: bytes) -> list[bytes]:
        """Append a leaf hash; returns it and the roots of the perfect subtrees that it completes, smallest first."""
        completed = [leaf]
        rest = self.size
        while rest & 1:
            completed.append(node_hash(self._peaks.pop(), completed[-1]))
            rest >>= 1
        self._peaks.append(completed[-1])
        self.size += 1
        return completed

    def root(self) -> bytes:
        return fold(self._peaks)


def fold(peaks: Sequence[bytes]) -> bytes:
    """The root over perfect subtrees of falling size, from left to right."""
    if not peaks:
        return EMPTY_ROOT
    *rest, root = peaks
    for peak in reversed(rest):
        root = node_hash(peak, root)
    return root


# --- proofs -----------------------------------------------------------------------------------------------------------


def verify_inclusion(leaf: bytes, seq: int, size: int, hashes: Sequence[bytes], root: bytes) -> None:
    """Check that the entry `seq` with hash `leaf` is in the tree of `size` with `root`. Raises BadProof."""
    if not 0 <= seq < size:
        raise BadProof(f"a tree of {size} entries has no entry {seq}")
    index, last, found = seq, size - 1, leaf
    for sibling in hashes:
        if last == 0:
            raise BadProof("the proof is longer than the tree is high")
        if index & 1 or index == last:
            found = node_hash(sibling, found)
            while index and not index & 1:
                index, last = index >> 1, last >> 1
        else:
            found = node_hash(found, sibling)
        index, last = index >> 1, last >> 1
    if last or found != root:
        raise BadProof(f"the proof does not lead from entry {seq} to the signed root of {size} entries")


def verify_consistency(earlier: "Checkpoint", later: "Checkpoint", hashes: Sequence[bytes]) -> None:
    """Check that the later tree begins with every entry of the earlier one, unchanged. Raises BadProof."""
    old, new = earlier.size, later.size
    if not 0 < old <= new:
        raise BadProof(f"no proof leads from a tree of {old} to one of {new}")
    if old == new:
        if hashes or earlier.root != later.root:
            raise BadProof(f"two different trees of {old} entries were signed")
        return
    path = list(hashes)
    if old & (old - 1) == 0:  # the earlier tree is one perfect subtree: its root is where the proof starts
        path.insert(0, earlier.root)
    if not path:
        raise BadProof("the proof is empty")
    index, last = old - 1, new - 1
    while index & 1:
        index, last = index >> 1, last >> 1
    was = now = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise BadProof("the proof is longer than the tree is high")
        if index & 1 or index == last:
            was, now = node_hash(sibling, was), node_hash(sibling, now)
            while index and not index & 1:
                index, last = index >> 1, last >> 1
        else:
            now = node_hash(now, sibling)
        index, last = index >> 1, last >> 1
    if last or was != earlier.root or now != later.root:
        raise BadProof(f"the first {old} entries are not those of the earlier checkpoint")


# --- checkpoints ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checkpoint:
    """The whole ledger in two numbers: how many entries, and the root over them."""

    size: int
    root: bytes
    origin: str = ORIGIN

    @property
    def text(self) -> str:
        """What is signed."""
        return f"{self.origin}\n{self.size}\n{base64_text(self.root)}\n"


@dataclass(frozen=True)
class NoteKey:
    """A public key of signed notes. Text form (vkey): `<name>+<8 hex digits>+<base64>`."""

    name: str
    public: PublicKey

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Raises BadNote when `text` is no Ed25519 vkey."""
        name, _, rest = text.strip().partition("+")
        number, _, raw_text = rest.partition("+")
        try:
            raw = from_base64_text(raw_text)
            if len(raw) != 33 or raw[:1] != ED25519 or not name or re.search(r"[\s+]", name):
                raise ValueError("it names no Ed25519 key")
            key = cls(name, PublicKey(raw[1:]))
        except ValueError as error:
            raise BadNote(f"this is no key of a ledger: {error}") from None
        if key.id.hex() != number:
            raise BadNote(f"the key's number is {key.id.hex()}, not {number}: it was copied wrongly")
        return key

    @property
    def text(self) -> str:
        return f"{self.name}+{self.id.hex()}+{base64_text(ED25519 + self.public.raw)}"

    @property
    def id(self) -> bytes:
        """4 bytes that stand before each signature, so that a reader finds the right key."""
        return hashlib.sha256(self.name.encode() + b"\n" + ED25519 + self.public.raw).digest()[:4]


def open_checkpoint(note: str, keys: Iterable[NoteKey]) -> Checkpoint:
    """The checkpoint in a signed note, if one of `keys` signed it. Signatures of others are ignored. Raises BadNote."""
    body, gap, signatures = note.rpartition("\n\n")
    if not gap or not signatures.endswith("\n"):
        raise BadNote("this is no signed note: a text, an empty line, and lines of signatures are expected")
    text = body + "\n"
    known = {(key.name, key.id): key for key in keys}
    signed = False
    for name, number, signature in _signatures(signatures):
        if key := known.get((name, number)):
            try:
                key.public.check(signature, text.encode())
            except BadSignature:
                raise BadNote("the signature does not fit the note: it was altered") from None
            signed = True
    if not signed:
        raise BadNote("the note is not signed by the key that was given")
    return read_checkpoint(text)


def signers(note: str) -> set[tuple[str, bytes]]:
    """Names and numbers of the keys that a note says it is signed by: nothing is checked. Raises BadNote."""
    return {(name, number) for name, number, _ in _signatures(note.rpartition("\n\n")[2])}


def read_checkpoint(text: str) -> Checkpoint:
    """The checkpoint that a note's text tells, believed as it stands. Raises BadNote."""
    origin, size, root, *_ = [*text.split("\n"), "", "", ""]
    try:
        if not origin or not _SIZE.match(size) or len(raw := from_base64_text(root)) != 32:
            raise ValueError("an origin, a size and a root are expected")
    except ValueError as error:
        raise BadNote(f"the note is no checkpoint: {error}") from None
    return Checkpoint(int(size), raw, origin)


def _signatures(lines: str) -> list[tuple[str, bytes, bytes]]:
    """Name, key number and signature of each line below a note's text. Raises BadNote."""
    found = []
    for line in lines.splitlines():
        match = _SIGNATURE_LINE.match(line)
        try:
            raw = from_base64_text(match[2] if match else "!")
        except ValueError:
            raise BadNote("a line of signatures cannot be read") from None
        found.append((match[1] if match else "", raw[:4], raw[4:]))
    return found


# --- an export --------------------------------------------------------------------------------------------------------


def line_start(seq: int, previous: bytes | None) -> bytes:
    """How the line of entry `seq` begins; `previous` is the hash of the entry before, None for the first.

    The tree alone proves *that* a line was altered; `previous` says *which*, with no service to ask.
    """
    link = b'"' + base64_text(previous).encode() + b'"' if previous is not None else b"null"
    return b'{"seq":%d,"previous":%b,' % (seq, link)


def verify_lines(lines: Iterable[bytes], checkpoint: Checkpoint, earlier: Iterable[Checkpoint] = ()) -> int:
    """Check an export against a checkpoint, and against others kept from before; returns how many lines there were.

    `lines` are the lines of a JSONL export from entry 0 on, without their newlines (split at b"\\n" only). Lines after
    `checkpoint.size` came later: they must follow from those before, but nothing signed is known of them here.
    Holds the hash of every line (about 80 bytes). Raises LedgerAltered, which names the lines at fault.
    """
    hashes: list[bytes] = []
    contradicted: dict[int, bytes] = {}  # entries whose follower names another hash, and the hash that it names
    for seq, line in enumerate(lines):
        start = _LINE.match(line)
        if start is None or int(start[1]) != seq:
            said = f"says that it is entry {int(start[1])}" if start else "is no line of a ledger"
            raise LedgerAltered(f"line {seq + 1}, where entry {seq} is expected, {said}", [seq])
        previous = base64.b64decode(start[2]) if start[2] else None
        if seq == 0 and previous is not None:
            raise LedgerAltered("entry 0 names an entry before it", [0])
        if seq and previous != hashes[-1]:
            contradicted[seq - 1] = previous or b""
        hashes.append(leaf_hash(line))
    if len(hashes) < checkpoint.size:
        raise LedgerAltered(f"{checkpoint.size} entries were signed, but the lines end before entry {len(hashes)}")
    if contradicted or _root(hashes, checkpoint.size) != checkpoint.root:
        raise _altered(hashes, contradicted, checkpoint)
    for kept in earlier:
        if kept.size > checkpoint.size:
            raise LedgerAltered(
                f"{kept.size} entries were signed before, now only {checkpoint.size}: some were removed"
            )
        if _root(hashes, kept.size) != kept.root:
            raise LedgerAltered(f"the first {kept.size} entries are not those that were signed before: rewritten since")
    return len(hashes)


def _altered(hashes: list[bytes], contradicted: dict[int, bytes], checkpoint: Checkpoint) -> LedgerAltered:
    """Which entries are at fault. If the hashes that their followers name lead to the signed root, it is proven."""
    at_fault = _at_fault(contradicted)
    corrected = [contradicted[seq] if seq in at_fault else own for seq, own in enumerate(hashes)]
    proven = _root(corrected, checkpoint.size) == checkpoint.root
    if not proven and len(hashes) == checkpoint.size:  # nothing follows the last line, only the root speaks for it
        at_fault = _at_fault(contradicted, {checkpoint.size - 1})
    if not at_fault:
        return LedgerAltered("the lines follow from each other, but they are not what was signed: rewritten")
    seqs = sorted(at_fault)
    names = ", ".join(map(str, seqs[:20])) + (" …" if len(seqs) > 20 else "")
    rest = "every other entry is as it was signed" if proven else "others may be too: the signed root is not reached"
    return LedgerAltered(f"altered: entry {names}; {rest}", seqs)


def _at_fault(contradicted: dict[int, bytes], known: Iterable[int] = ()) -> set[int]:
    found = set(known)
    for seq in sorted(contradicted, reverse=True):
        if seq + 1 not in found:  # an altered line's word on the one before it counts for nothing
            found.add(seq)
    return found


def _root(hashes: Sequence[bytes], size: int) -> bytes:
    tree = Tree()
    for leaf in hashes[:size]:
        tree.add(leaf)
    return tree.root()


def base64_text(raw: bytes) -> str:
    """RFC 4648, section 4, with padding: the form of hashes in notes and proofs."""
    return base64.b64encode(raw).decode()


def from_base64_text(text: str) -> bytes:
    """Strict. Raises ValueError."""
    try:
        raw = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ValueError(f"not base64: {error}") from None
    if base64_text(raw) != text:
        raise ValueError("not base64: another spelling of the same bytes")
    return raw
