"""The ledger as it is built: leaves, perfect subtrees, proofs, and the signature on a checkpoint. Pure.

Checking is in `sojourn_shared.ledger`, with the hashes that both sides must agree on. Each entry keeps the roots of the
perfect subtrees that it completes, so that every proof needs O(log n) rows, and no tree is held in memory.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sojourn_shared.ledger import (
    ORIGIN,
    BadNote,
    Checkpoint,
    NoteKey,
    Tree,
    base64_text,
    fold,
    leaf_hash,
    line_start,
    open_checkpoint,
    read_checkpoint,
    signers,
)
from sojourn_shared.signing import PrivateKey

HASH_BYTES = 32


class Altered(Exception):
    """What is stored is not what was signed. Nothing is appended until somebody has looked."""


class Node(NamedTuple):
    """A perfect subtree: the entries from `number` * 2^`level`, 2^`level` of them."""

    level: int
    number: int

    @property
    def seq(self) -> int:
        """The entry that completes it, and keeps its root."""
        return ((self.number + 1) << self.level) - 1


class Span(NamedTuple):
    """The entries from `first` to before `end`, as one subtree of a tree."""

    first: int
    end: int

    def nodes(self) -> list[Node]:
        """The perfect subtrees that it consists of, from left to right: each smaller than the one before."""
        found, first = [], self.first
        while first < self.end:
            level = (self.end - first).bit_length() - 1
            found.append(Node(level, first >> level))
            first += 1 << level
        return found

    def hash(self, hashes: Mapping[Node, bytes]) -> bytes:
        return fold([hashes[node] for node in self.nodes()])


def inclusion_path(seq: int, size: int) -> list[Span]:
    """The subtrees whose hashes prove that the entry `seq` is in the tree of `size`; the nearest first."""
    first, end, path = 0, size, []
    while end - first > 1:
        middle = _middle(first, end)
        if seq < middle:
            path.append(Span(middle, end))
            end = middle
        else:
            path.append(Span(first, middle))
            first = middle
    return path[::-1]


def consistency_path(old: int, new: int) -> list[Span]:
    """The subtrees whose hashes prove that the tree of `new` begins with the tree of `old` (0 < old ≤ new)."""
    first, end, path = 0, new, []
    while end != old:
        middle = _middle(first, end)
        if old <= middle:
            path.append(Span(middle, end))
            end = middle
        else:
            path.append(Span(first, middle))
            first = middle
    if first:  # else the verifier knows this subtree's hash: it is the old root
        path.append(Span(first, end))
    return path[::-1]


def _middle(first: int, end: int) -> int:
    """Where a tree divides: at the largest power of two below its size."""
    return first + (1 << (end - first - 1).bit_length() - 1)


class Signer:
    """The key of the ledger, by name and number as signed notes show it."""

    def __init__(self, key: PrivateKey, name: str = ORIGIN) -> None:
        self._key = key
        self.key = NoteKey(name, key.public)

    def sign(self, checkpoint: Checkpoint) -> str:
        """The checkpoint as a signed note. The same tree always gives the same note."""
        signature = base64_text(self.key.id + self._key.signature(checkpoint.text.encode()))
        return f"{checkpoint.text}\n— {self.key.name} {signature}\n"


@dataclass(frozen=True)
class Leaf:
    """One entry as it is stored: the line's bytes, and its hash followed by the roots of the subtrees it completes."""

    seq: int
    line: bytes
    hashes: bytes


def append(tree: Tree, previous: bytes | None, rests: Iterable[bytes]) -> list[Leaf]:
    """Append an entry to `tree` for each of `rests`: what follows in the line after `seq` and `previous`."""
    leaves = []
    for rest in rests:
        seq, line = tree.size, line_start(tree.size, previous) + rest
        previous = leaf_hash(line)
        leaves.append(Leaf(seq, line, b"".join(tree.add(previous))))
    return leaves


def subtree_root(hashes: bytes, level: int) -> bytes:
    """The root of the perfect subtree of `level` among what an entry keeps."""
    return hashes[level * HASH_BYTES : (level + 1) * HASH_BYTES]


def check_last(signer: Signer, note: str, size: int, peaks: Sequence[bytes]) -> None:
    """Before anything is appended: the stored tree is the one that was last signed. Raises Altered.

    A note by an earlier key is compared too, but its signature cannot be checked here.
    """
    mine = (signer.key.name, signer.key.id) in signers(note)
    try:
        told = open_checkpoint(note, [signer.key]) if mine else read_checkpoint(note.rpartition("\n\n")[0])
    except BadNote as error:
        raise Altered(f"the last checkpoint that is stored cannot be believed: {error}") from None
    if (told.size, told.root) != (size, fold(peaks)):
        raise Altered(f"the ledger holds {size} entries, and they are not those that were signed as {told.size}")
