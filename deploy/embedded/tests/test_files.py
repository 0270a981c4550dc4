"""Secrets have one reader and are written whole; closed folders are found; ports are what they are said to be."""

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from sojourn_embedded.files import closed_folder, write_public, write_secret
from sojourn_embedded.owners import owner_of
from sojourn_embedded.ports import choose_nats_port, choose_ports, hold, is_free, is_listened_on_by
from sojourn_embedded.process import CannotStart, Identity


def test_a_secret_is_closed_whatever_was_there_before(tmp_path: Path) -> None:
    """An older file's mode, and a symbolic link laid under its name, change nothing."""
    file, elsewhere = tmp_path / "key", tmp_path / "elsewhere"
    elsewhere.write_text("untouched")
    file.write_text("old")
    file.chmod(0o666)
    (tmp_path / ".key.new").symlink_to(elsewhere)
    write_secret(file, "new")
    assert file.read_text() == "new"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert elsewhere.read_text() == "untouched"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["elsewhere", "key"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_secret_belongs_to_its_reader(tmp_path: Path) -> None:
    """And what is public to nobody in particular."""
    write_secret(tmp_path / "key", "x", Identity(64199, 64198))
    assert ((tmp_path / "key").stat().st_uid, (tmp_path / "key").stat().st_gid) == (64199, 64198)
    write_public(tmp_path / "keys", "x")
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o644


def test_the_first_closed_folder_on_the_real_way_is_found(tmp_path: Path) -> None:
    """Through symbolic links too: what counts is where the file is."""
    closed = tmp_path / "closed"
    (closed / "open").mkdir(parents=True)
    (closed / "open" / "file").touch()
    (tmp_path / "link").symlink_to(closed / "open")
    for folder in [tmp_path, *tmp_path.parents]:
        if folder.stat().st_uid == os.geteuid():
            folder.chmod(folder.stat().st_mode | stat.S_IXOTH)
    closed.chmod(0o700)
    assert closed_folder(tmp_path / "link" / "file") == closed
    closed.chmod(0o711)
    assert closed_folder(tmp_path / "link" / "file") is None


def test_ports_follow_the_first_and_one_in_use_is_named() -> None:
    """The gateway has the first, the services the next four, in the order in which they are documented."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert not is_free(port)
        with pytest.raises(CannotStart, match=rf"Port {port} of 127.0.0.1 \(for gateway\) is in use"):
            choose_ports(port)
    assert list(choose_ports(0)) == ["gateway", "policy", "requests", "expiry", "audit"]
    assert len(set(choose_ports(0).values())) == 5


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes other users")
def test_a_held_port_is_its_owners_alone() -> None:
    """Another user can take it in no way, before the owner listens, meanwhile, and after the owner died."""
    owner, port = owner_of("gateway"), choose_ports(0)["gateway"]

    def listened(uid: int, *options: int, address: str = "127.0.0.1") -> bool:
        """Whether a process of `uid` could listen there; it has ended when this returns."""
        script = (
            "import socket, sys\nown = socket.socket()\n"
            f"for option in {list(options)}: own.setsockopt(socket.SOL_SOCKET, option, 1)\n"
            f"own.bind(({address!r}, {port})); own.listen()"
        )
        done = subprocess.run([sys.executable, "-c", script], user=uid, group=uid, capture_output=True, check=False)
        return done.returncode == 0

    ways = [(), (socket.SO_REUSEADDR,), (socket.SO_REUSEPORT,), (socket.SO_REUSEADDR, socket.SO_REUSEPORT)]

    def taken_by_a_stranger() -> bool:
        return any(listened(65534, *way, address=address) for way in ways for address in ("127.0.0.1", "0.0.0.0"))

    with hold(port, owner):
        assert not taken_by_a_stranger()
        assert not is_listened_on_by(port, owner)
        assert listened(owner.uid, socket.SO_REUSEPORT)
        assert not taken_by_a_stranger()
        with pytest.raises(CannotStart, match=f"Port {port}"):
            hold(port, owner_of("nats"))
    with socket.socket() as quicker:
        quicker.bind(("127.0.0.1", port))
        quicker.listen()
        assert not is_listened_on_by(port, owner)
        assert is_listened_on_by(port, Identity.caller())


def test_nats_keeps_the_port_that_agents_were_told(tmp_path: Path) -> None:
    """While it is free; a file that is no number is as none."""
    kept = tmp_path / "nats.port"
    port = choose_nats_port(kept, any_free=True)
    kept.write_text(str(port))
    assert choose_nats_port(kept, any_free=True) == port
    kept.write_text("…")
    assert choose_nats_port(kept, any_free=True)
