"""Nonces of a computer's login. How a proof opens the door, once, is tried where the doors are: policy and expiry."""

from datetime import UTC, datetime, timedelta

import pytest

from sojourn_shared.ids import new_id
from sojourn_shared.service.renewal import NONCE_LIFE, ComputerLogin, Nonces, ProofNeeded, ask_for_proof

NOW = datetime(2026, 11, 24, 10, 0, tzinfo=UTC)
COMPUTER, OTHER = new_id(NOW), new_id(NOW)
SECRET = b"one that every replica holds"


def test_any_replica_knows_a_nonce_of_another() -> None:
    """It needs no table: the nonce carries its end and the proof of where it comes from."""
    nonce = Nonces(SECRET).new(COMPUTER, NOW)
    assert len(nonce) == 43
    assert Nonces(SECRET).knows(nonce, COMPUTER, NOW + NONCE_LIFE - timedelta(seconds=1))


@pytest.mark.parametrize(
    ("secret", "computer", "later"),
    [(b"another service", COMPUTER, timedelta(0)), (SECRET, OTHER, timedelta(0)), (SECRET, COMPUTER, NONCE_LIFE)],
)
def test_another_services_another_computers_and_an_old_nonce_are_strange(
    secret: bytes, computer: str, later: timedelta
) -> None:
    """A nonce opens one door, for one computer, for two minutes."""
    nonce = Nonces(SECRET).new(COMPUTER, NOW)
    assert not Nonces(secret).knows(nonce, computer, NOW + later)


def test_what_was_altered_or_invented_is_strange() -> None:
    """Neither a nonce with a later end, nor text that is none."""
    nonces = Nonces(SECRET)
    nonce = nonces.new(COMPUTER, NOW)
    for position in range(len(nonce)):
        altered = nonce[:position] + ("B" if nonce[position] != "B" else "C") + nonce[position + 1 :]
        assert not nonces.knows(altered, COMPUTER, NOW)
    for invented in ("", "A", "AAAA", "A" * 43, "ä" * 43, nonce + "A", nonce[:-4]):
        assert not nonces.knows(invented, COMPUTER, NOW)


def test_who_brings_no_proof_gets_a_nonce() -> None:
    """The 401 carries what to sign."""
    nonces = Nonces(SECRET)
    with pytest.raises(ProofNeeded) as refusal:
        ask_for_proof(ComputerLogin(), COMPUTER, nonces, NOW)
    assert nonces.knows(refusal.value.more["nonce"], COMPUTER, NOW)
    assert ask_for_proof(ComputerLogin(renewal="a.b.c"), COMPUTER, nonces, NOW) == "a.b.c"
