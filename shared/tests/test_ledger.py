"""What service and verifier agree on: published vectors, proofs that hold only for the truth, and a named fault."""

import base64
import json
from collections.abc import Callable

import pytest

from sojourn_shared import ledger
from sojourn_shared.ledger import BadNote, BadProof, Checkpoint, LedgerAltered, NoteKey, Tree, leaf_hash
from sojourn_shared.signing import PrivateKey

# The tree of the reference implementation of Certificate Transparency, and its roots by size.
LEAVES = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
# Proofs are the sibling's hashes, nearest first.
INCLUSION = [
    (0, 1, []),
    (
        0,
        8,
        [
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
        ],
    ),
    (
        5,
        8,
        [
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ],
    ),
    (2, 3, ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"]),
]
CONSISTENCY = [
    (1, 1, []),
    (
        6,
        8,
        [
            "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ],
    ),
    (
        2,
        5,
        [
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        ],
    ),
]


def signed_as(size: int) -> Checkpoint:
    return Checkpoint(size, bytes.fromhex(ROOTS[size]))


def raw(texts: list[str]) -> list[bytes]:
    return [bytes.fromhex(text) for text in texts]


def test_roots_are_the_published_ones() -> None:
    """Size by size, the empty tree included."""
    tree = Tree()
    assert tree.root() == signed_as(0).root
    for size, leaf in enumerate(LEAVES, start=1):
        tree.add(leaf_hash(leaf))
        assert tree.root() == signed_as(size).root


@pytest.mark.parametrize(("seq", "size", "hashes"), INCLUSION)
def test_published_inclusion_proofs_hold(seq: int, size: int, hashes: list[str]) -> None:
    """For their entry; not for another one, another root, nor with a hash more, less or other."""
    leaf, root = leaf_hash(LEAVES[seq]), signed_as(size).root
    proof = raw(hashes)
    ledger.verify_inclusion(leaf, seq, size, proof, root)
    wrong: list[tuple[bytes, int, int, list[bytes], bytes]] = [
        (leaf_hash(b"another"), seq, size, proof, root),
        (leaf, size, size, proof, root),
        (leaf, -1, size, proof, root),
        (leaf, seq, size, [*proof, root], root),
        (leaf, seq, size, proof, leaf_hash(b"another")),
    ]
    wrong += [(leaf, seq, size, proof[:-1], root)] if proof else []
    wrong += [(leaf, seq ^ 1, size, proof, root)] if size > 1 else []
    for claim in wrong:
        with pytest.raises(BadProof):
            ledger.verify_inclusion(*claim)


@pytest.mark.parametrize(("old", "new", "hashes"), CONSISTENCY)
def test_published_consistency_proofs_hold(old: int, new: int, hashes: list[str]) -> None:
    """For their two trees; not for others, nor with a hash more or less, nor from an empty tree."""
    earlier, later, proof = signed_as(old), signed_as(new), raw(hashes)
    ledger.verify_consistency(earlier, later, proof)
    forged = Checkpoint(old, leaf_hash(b"another"))
    for claim in [
        (forged, later, proof),
        (earlier, Checkpoint(new, forged.root), proof),
        (earlier, later, [*proof, forged.root]),
        (Checkpoint(new + 1, forged.root), later, proof),
        (signed_as(0), later, proof),
        *([(earlier, later, proof[:-1])] if proof else []),
    ]:
        with pytest.raises(BadProof):
            ledger.verify_consistency(*claim)


def test_a_key_of_signed_notes_has_the_published_text() -> None:
    """The example key of the signed-note specification's implementation, read and written."""
    text = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    key = NoteKey.from_text(text)
    assert (key.name, key.text) == ("PeterNeumann", text)
    note = (
        "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n\n"
        "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
    )
    with pytest.raises(BadNote, match="no checkpoint"):  # signed by him, but about no tree
        ledger.open_checkpoint(note, [key])
    with pytest.raises(BadNote, match="altered"):
        ledger.open_checkpoint(note.replace("answer", "solution"), [key])
    with pytest.raises(BadNote, match="copied wrongly"):
        NoteKey.from_text(text.replace("c74f20a3", "c74f20a4"))


KEY = PrivateKey.generate()
NOTE_KEY = NoteKey(ledger.ORIGIN, KEY.public)


def note_of(checkpoint: Checkpoint, key: PrivateKey = KEY) -> str:
    note_key = NoteKey(ledger.ORIGIN, key.public)
    signature = ledger.base64_text(note_key.id + key.signature(checkpoint.text.encode()))
    return f"{checkpoint.text}\n— {note_key.name} {signature}\n"


def test_a_checkpoint_is_believed_only_with_the_right_signature() -> None:
    """A stranger's signature beside ours is ignored; a changed size, a missing or foreign signature are refused."""
    stranger = PrivateKey.generate()
    checkpoint = signed_as(5)
    note = note_of(checkpoint)
    assert ledger.open_checkpoint(note, [NOTE_KEY]) == checkpoint
    both = note + note_of(checkpoint, stranger).rpartition("\n\n")[2]
    assert ledger.open_checkpoint(both, [NOTE_KEY]) == checkpoint
    for wrong in (
        note.replace("\n5\n", "\n6\n"),
        note.replace("\n5\n", "\n05\n"),
        note_of(checkpoint, stranger),
        checkpoint.text,
        note.rstrip("\n"),
        note.replace("— ", "- "),
        "",
    ):
        with pytest.raises(BadNote):
            ledger.open_checkpoint(wrong, [NOTE_KEY])


# --- an export --------------------------------------------------------------------------------------------------------


def lines_of(count: int) -> list[bytes]:
    lines: list[bytes] = []
    for seq in range(count):
        previous = leaf_hash(lines[-1]) if lines else None
        lines.append(ledger.line_start(seq, previous) + b'"what":"entry %d"}' % seq)
    return lines


def checkpoint_of(lines: list[bytes]) -> Checkpoint:
    tree = Tree()
    for line in lines:
        tree.add(leaf_hash(line))
    return Checkpoint(tree.size, tree.root())


LINES = lines_of(21)


def test_an_untouched_export_holds() -> None:
    """Against the newest checkpoint and every one from before; lines that came later follow on."""
    json.loads(LINES[20])
    earlier = [checkpoint_of(LINES[:size]) for size in range(21)]
    assert ledger.verify_lines(LINES, checkpoint_of(LINES), earlier) == 21
    assert ledger.verify_lines(LINES, checkpoint_of(LINES[:8])) == 21
    assert ledger.verify_lines([], checkpoint_of([])) == 0


@pytest.mark.parametrize("seq", [0, 1, 7, 19, 20])
def test_every_altered_byte_is_found_and_its_entry_named(seq: int) -> None:
    """Whichever byte of a line it is: in what it says, in its number, or in its word on the line before."""
    checkpoint = checkpoint_of(LINES)
    for place in range(len(LINES[seq])):
        line = bytearray(LINES[seq])
        line[place] ^= 1
        with pytest.raises(LedgerAltered) as caught:
            ledger.verify_lines([*LINES[:seq], bytes(line), *LINES[seq + 1 :]], checkpoint)
        assert caught.value.seqs == (seq,), (place, bytes(line), str(caught.value))


def without(seq: int) -> list[bytes]:
    return [*LINES[:seq], *LINES[seq + 1 :]]


@pytest.mark.parametrize(
    ("lines", "seqs"),
    [
        (without(5), (5,)),
        ([*LINES[:5], LINES[4], *LINES[5:]], (5,)),
        ([*LINES[:5], LINES[6], LINES[5], *LINES[7:]], (5,)),
        (LINES[:-1], ()),
        ([line.replace(b"entry 5", b"entry V").replace(b"entry 9", b"entry X") for line in LINES], (5, 9)),
    ],
    ids=["missing", "twice", "swapped", "cut off", "two altered"],
)
def test_what_else_can_be_done_to_an_export_is_found(lines: list[bytes], seqs: tuple[int, ...]) -> None:
    """Lines that are missing, repeated, swapped, cut off; several altered ones are all named."""
    with pytest.raises(LedgerAltered) as caught:
        ledger.verify_lines(lines, checkpoint_of(LINES))
    assert caught.value.seqs == seqs


def rewritten(change: Callable[[bytes], bytes]) -> list[bytes]:
    """The whole ledger written anew from an altered entry on, every link made right again."""
    lines: list[bytes] = []
    for seq, line in enumerate(LINES):
        previous = leaf_hash(lines[-1]) if lines else None
        rest = line[len(ledger.line_start(seq, leaf_hash(b"") if seq else None)) :]
        lines.append(ledger.line_start(seq, previous) + change(rest))
    return lines


def test_a_rewritten_ledger_is_found_by_a_checkpoint_kept_outside() -> None:
    """Even one that was signed anew with the ledger's own key."""
    forged = rewritten(lambda rest: rest.replace(b"entry 3", b"entry III"))
    assert ledger.verify_lines(forged, checkpoint_of(forged)) == 21
    with pytest.raises(LedgerAltered, match="rewritten"):
        ledger.verify_lines(forged, checkpoint_of(forged), [checkpoint_of(LINES[:10])])
    with pytest.raises(LedgerAltered, match="removed"):
        ledger.verify_lines(forged, checkpoint_of(forged), [checkpoint_of(lines_of(22))])
    with pytest.raises(LedgerAltered, match="rewritten"):
        ledger.verify_lines(forged, checkpoint_of(LINES[:20]))


def test_the_vectors_are_read_strictly() -> None:
    """Another spelling of the same bytes is refused."""
    with pytest.raises(ValueError, match="base64"):
        ledger.from_base64_text(base64.b64encode(b"ab").decode().replace("=", ""))
    with pytest.raises(ValueError, match="another spelling"):
        ledger.from_base64_text("YWJ=")
