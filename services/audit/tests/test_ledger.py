"""What the ledger builds, the verifier accepts: every proof of every tree of up to 200 entries."""

from sojourn_audit.ledger import Leaf, Node, Signer, Span, append, consistency_path, inclusion_path, subtree_root
from sojourn_shared.ledger import (
    Checkpoint,
    Tree,
    leaf_hash,
    node_hash,
    open_checkpoint,
    verify_consistency,
    verify_inclusion,
)
from sojourn_shared.signing import PrivateKey

SIZE = 200


def leaves_of(count: int) -> list[Leaf]:
    return append(Tree(), None, [b'"n":%d}' % number for number in range(count)])


LEAVES = leaves_of(SIZE)
HASHES = {
    Node(level, (leaf.seq + 1 >> level) - 1): subtree_root(leaf.hashes, level)
    for leaf in LEAVES
    for level in range(len(leaf.hashes) // 32)
}


def root(leaves: list[bytes]) -> bytes:
    """MTH of RFC 6962, section 2.1, word for word."""
    if len(leaves) == 1:
        return leaf_hash(leaves[0])
    middle = 1
    while middle * 2 < len(leaves):
        middle *= 2
    return node_hash(root(leaves[:middle]), root(leaves[middle:]))


CHECKPOINTS = [Checkpoint(size, root([leaf.line for leaf in LEAVES[:size]])) for size in range(1, SIZE + 1)]


def test_the_tree_is_the_one_of_the_rfc() -> None:
    """The peaks that entries keep, folded, are the root by the RFC's recursive definition, at every size."""
    for checkpoint in CHECKPOINTS:
        assert Span(0, checkpoint.size).hash(HASHES) == checkpoint.root


def test_each_entry_keeps_two_hashes_on_average() -> None:
    """What the tree costs: the leaf's hash, and one more."""
    assert sum(len(leaf.hashes) for leaf in LEAVES) < SIZE * 64


def test_every_inclusion_proof_holds() -> None:
    """20,100 of them, none with more than 8 hashes or 36 rows to read."""
    for checkpoint in CHECKPOINTS:
        for leaf in LEAVES[: checkpoint.size]:
            path = inclusion_path(leaf.seq, checkpoint.size)
            proof = [span.hash(HASHES) for span in path]
            assert len(proof) <= 8
            assert sum(len(span.nodes()) for span in path) <= 36
            verify_inclusion(leaf_hash(leaf.line), leaf.seq, checkpoint.size, proof, checkpoint.root)


def test_every_consistency_proof_holds() -> None:
    """Between every two sizes."""
    for new in CHECKPOINTS:
        for old in CHECKPOINTS[: new.size]:
            proof = [span.hash(HASHES) for span in consistency_path(old.size, new.size)]
            assert len(proof) <= 9
            verify_consistency(old, new, proof)


def test_a_tree_taken_up_from_its_peaks_goes_on_as_if_never_put_down() -> None:
    """As the sequencer does for each batch."""
    for size in range(SIZE):
        peaks = [HASHES[node] for node in Span(0, size).nodes()]
        previous = leaf_hash(LEAVES[size - 1].line) if size else None
        (leaf,) = append(Tree(size, peaks), previous, [b'"n":%d}' % size])
        assert leaf == LEAVES[size]


def test_the_same_tree_is_always_signed_the_same_way() -> None:
    """Two replicas, or two reads, never show two notes for one tree."""
    signer = Signer(PrivateKey.generate())
    note = signer.sign(CHECKPOINTS[4])
    assert note == signer.sign(CHECKPOINTS[4])
    assert open_checkpoint(note, [signer.key]) == CHECKPOINTS[4]
