"""The one writer of the ledger: gives every arrival its place, in batches, and signs the tree after each of them."""

import structlog

from sojourn_shared.ledger import Checkpoint, Tree
from sojourn_shared.service import House

from .domain import rest_of_line
from .ledger import Signer, append, check_last
from .store import MOMENT, Tx

log = structlog.get_logger(__name__)

BATCH = 500  # about 25 ms of work: a reader waits no longer for its checkpoint
POLL_SECONDS = 1.0  # the wake-up call hurries; this guarantees


async def run(house: House) -> None:
    """Sequence for ever. Replicas take turns, batch by batch: what they need to know is in the ledger's last rows."""
    wake = house.database.woken("arrivals")
    while True:
        while await sequence_batch(house, house.parts.signer):
            pass
        await wake.wait(POLL_SECONDS)


async def sequence_batch(house: House, signer: Signer) -> int:
    """Append up to BATCH arrivals and sign the new tree, all or nothing; returns how many.

    Raises Altered when what is stored is not what was signed last.
    """
    async with Tx.begin(house) as tx:
        await tx.become_sequencer()
        waiting = await tx.waiting(BATCH)
        if not waiting:
            return 0
        end = await tx.end()
        tree, recorded_at, previous = Tree(), tx.now, None
        if end:
            peaks = await tx.peaks(end.size)
            check_last(signer, end.note, end.size, peaks)
            tree, previous = Tree(end.size, peaks), end.leaf_hash
            recorded_at = max(tx.now, end.recorded_at + MOMENT)  # never back, whatever this machine's clock does
        leaves = append(tree, previous, [rest_of_line(recorded_at, one.told) for one in waiting])
        await tx.append(waiting, leaves, recorded_at, signer.sign(Checkpoint(tree.size, tree.root())))
    log.debug("sequenced", entries=len(waiting), size=tree.size)
    return len(waiting)
