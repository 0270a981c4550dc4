"""Which documents and key sets the keeper takes, and which it does not."""

from pathlib import Path

import msgspec
import pytest

from sojourn_agent.keeper.document import Documents, KeyRing, KeysOutdated, NotNewer, Refused
from sojourn_agent.keeper.state import State
from sojourn_agent.testing import FakeServer
from sojourn_shared.clock import system_clock
from sojourn_shared.contracts import wire
from sojourn_shared.ids import new_id
from sojourn_shared.signing import PrivateKey


class Bench:
    def __init__(self, folder: Path) -> None:
        self.state = State(folder)
        self.server = FakeServer(new_id(system_clock()), PrivateKey.generate())
        self.state.write("keys.jws", self.server.key_set())
        self.open()

    def open(self, floor: tuple[int, int] = (0, 0)) -> None:
        self.keys = KeyRing(self.state, self.server.root.public)
        self.documents = Documents(self.state, self.server.computer_id, self.keys, floor=floor)

    def offer(self, jws: str) -> None:
        self.documents.offer(jws, system_clock())
        self.documents.keep()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_signed_document_is_held_and_survives_a_restart(bench: Bench) -> None:
    """What was kept is read again, signature and all."""
    bench.offer(bench.server.document)
    held = bench.documents.held
    bench.open()
    assert held is not None
    assert bench.documents.held == held


def test_an_older_or_equal_version_is_not_taken(bench: Bench) -> None:
    """Losing, repeating and reordering messages is harmless: the highest version stands."""
    old = bench.server.document
    bench.offer(bench.server.sign())
    for jws in (old, bench.server.document):
        with pytest.raises(NotNewer):
            bench.offer(jws)


def test_a_higher_epoch_orders_before_any_version(bench: Bench) -> None:
    """After an epoch began, no version of the old one comes back."""
    bench.offer(bench.server.sign(epoch=2, version=1))
    with pytest.raises(NotNewer):
        bench.offer(bench.server.sign(epoch=1))


def test_a_document_for_another_computer_is_refused(bench: Bench) -> None:
    """A valid signature over another computer's document opens nothing here."""
    with pytest.raises(Refused, match="another computer"):
        bench.offer(bench.server.sign(computer_id=new_id(system_clock())))


def test_a_signature_of_another_purpose_is_refused(bench: Bench) -> None:
    """The same bytes signed as time are no document."""
    payload = wire.encode(wire.Document(
        v=1, computer_id=bench.server.computer_id, epoch=1, version=1, issued_at=system_clock(),
        valid_until=system_clock(),
    ))  # fmt: skip
    with pytest.raises(Refused, match="sojourn-time"):
        bench.offer(bench.server.key.sign(payload, "sojourn-time"))


def test_an_altered_document_is_refused(bench: Bench) -> None:
    """One other byte in the payload, and the signature does not fit."""
    head, payload, signature = bench.server.document.split(".")
    altered = payload[:-2] + ("A" if payload[-2] != "A" else "B") + payload[-1]
    with pytest.raises(Refused):
        bench.offer(f"{head}.{altered}.{signature}")


def test_an_unknown_key_asks_for_newer_keys(bench: Bench) -> None:
    """It may be newer than the set held; whoever signed it, it is not taken."""
    stranger = FakeServer(bench.server.computer_id, PrivateKey.generate())
    with pytest.raises(KeysOutdated):
        bench.offer(stranger.document)
    assert bench.documents.held is None


def test_a_key_set_counts_only_by_the_root_and_a_higher_epoch(bench: Bench) -> None:
    """Neither a stranger's set nor an old one replaces what is held."""
    stranger = FakeServer(bench.server.computer_id, PrivateKey.generate())
    with pytest.raises(Refused):
        bench.keys.offer(stranger.key_set(epoch=9))
    assert not bench.keys.offer(bench.server.key_set(stranger.key))
    assert bench.keys.offer(bench.server.key_set(stranger.key, epoch=2))
    assert bench.keys.epoch == 2


def test_what_a_removed_key_signed_is_discarded(bench: Bench) -> None:
    """A key that left the set takes its document with it, on disk too."""
    bench.offer(bench.server.document)
    bench.keys.offer(bench.server.key_set(PrivateKey.generate(), epoch=2))
    assert bench.documents.drop_if_key_removed()
    bench.open()
    assert bench.documents.held is None


def test_a_cut_document_is_set_aside_and_no_older_one_is_let_in(bench: Bench) -> None:
    """A file cut in half is kept for people to look at; the highest version ever held is still known."""
    old = bench.server.document
    bench.offer(bench.server.sign())
    floor = bench.documents.floor
    path = bench.state.path("document.jws")
    path.write_text(path.read_text()[: len(path.read_text()) // 2])
    bench.open(floor)
    assert bench.documents.held is None
    assert list(path.parent.glob("document.jws.unusable-*"))
    with pytest.raises(NotNewer):
        bench.offer(old)
    bench.offer(bench.server.document)  # the same again, fetched anew


def test_a_grant_that_cannot_be_read_harms_no_other(bench: Bench) -> None:
    """A newer server's grant is refused alone, by name."""
    good = wire.Grant(id="good", users=wire.Users(all=True), from_=system_clock())
    needy = wire.encode(msgspec.structs.replace(good, id="needy", needs=["teleport"]))
    strange = wire.encode(msgspec.structs.replace(good, id="strange")).replace(b'"allow"', b'"juggle"')
    bench.offer(bench.server.sign(grants=[msgspec.Raw(wire.encode(good)), msgspec.Raw(needy), msgspec.Raw(strange)]))
    held = bench.documents.held
    assert held is not None
    assert isinstance(held.grants["good"], wire.Grant)
    assert {isinstance(held.grants[name], wire.UnreadableGrant) for name in ("needy", "strange")} == {True}


def test_time_counts_only_in_answer_to_an_own_nonce(bench: Bench) -> None:
    """An old answer, another computer's, or one to no question, is no time."""
    time = wire.SignedTime(
        computer_id=bench.server.computer_id, nonce="mine", server_time=system_clock(), epoch=1, version=1
    )
    sign = lambda time: bench.server.key.sign(wire.encode(time), "sojourn-time")  # noqa: E731
    assert bench.documents.read_time(sign(time), frozenset({"mine"}), None) == time
    with pytest.raises(Refused, match="no question"):
        bench.documents.read_time(sign(time), frozenset({"other"}), None)
    other = msgspec.structs.replace(time, computer_id="x")
    with pytest.raises(Refused, match="another computer"):
        bench.documents.read_time(sign(other), frozenset({"mine"}), None)


def test_a_lapsed_key_signs_nothing_more(bench: Bench) -> None:
    """`not_after` is judged by trusted time."""
    now = system_clock()
    body = wire.KeySet(
        epoch=2, keys=[wire.DocumentKey(kid=bench.server.key.kid, x=bench.server.key.public.text, not_after=now)]
    )
    bench.keys.offer(bench.server.root.sign(wire.encode(body), "sojourn-keys"))
    with pytest.raises(KeysOutdated):
        bench.documents.offer(bench.server.document, now)
