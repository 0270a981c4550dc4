"""What full disks, locks and damaged files make of the agent: nothing is used twice, and it starts (as root)."""

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sojourn_agent import between
from sojourn_agent.config import write_config
from sojourn_agent.keeper.leaves import carriers
from sojourn_agent.keeper.state import State
from sojourn_agent.testing import Computer, a_computer, eventually
from sojourn_shared.contracts import wire
from sojourn_shared.signing import PrivateKey

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root elevates, and only root is another user"),
]
BOB = 64_001


@pytest.fixture
def computer() -> Iterator[Computer]:
    with a_computer() as computer:
        yield computer


def use_once(computer: Computer) -> None:
    """A grant for one use, and the use."""
    computer.grant(starts="first_use", until=None, duration_minutes=5, max_uses=1)
    assert computer.elevate("--", "/usr/bin/id", "-u", uid=BOB).out == "0\n"


def is_refused(computer: Computer) -> bool:
    return computer.elevate("--no-wait", "--", "/usr/bin/id", "-u", uid=BOB).status == 77


def garbage(file: Path) -> None:
    file.write_bytes(os.urandom(5000))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def lost(file: Path) -> None:
    file.unlink()


def emptied(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("damage", [garbage, cut, lost, emptied])
def test_19_without_its_memory_of_uses_the_agent_first_hears_the_server(
    computer: Computer, damage: Callable[[Path], None]
) -> None:
    """The stored document alone would let the one use happen again, offline."""
    use_once(computer)
    computer.server.answers_heartbeats = False
    computer.stop()
    damage(computer.state.path("spool.db"))
    computer.start(connected=False)
    assert is_refused(computer)
    computer.server.answers_heartbeats = True
    computer.server.send(between.Connected(up=True))
    eventually(lambda: not is_refused(computer))  # the server has not heard of the use either


def test_19_a_locked_spool_is_not_thrown_away(computer: Computer) -> None:
    """Another program holds it: the agent does not start, says so, and later knows what it knew."""
    use_once(computer)
    computer.stop()
    holder = sqlite3.connect(computer.state.path("spool.db"), isolation_level=None)
    holder.execute("PRAGMA locking_mode = EXCLUSIVE")
    holder.execute("BEGIN IMMEDIATE")
    told = [sys.executable, "-m", "sojourn_agent.main", "run", "--config", str(computer.folder / "agent.toml")]
    ended = subprocess.run(told, capture_output=True, text=True, timeout=20, check=False)
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert "cannot be used now: database is locked" in ended.stderr
    holder.close()
    computer.start()
    assert is_refused(computer)


def test_15_what_a_dead_agent_left_ends_though_the_next_one_cannot_start(computer: Computer) -> None:
    """Keeper and warden were killed at once, and nothing can be recorded now: what ran is ended first."""
    computer.grant()
    process = computer.popen("--", "/usr/bin/sleep", "987", uid=BOB)
    run = eventually(lambda: computer.server.of_kind(wire.StartedReport))[0]
    warden = int(Path(f"/proc/{run.pid}/stat").read_text().rpartition(") ")[2].split()[1])
    os.kill(warden, signal.SIGSTOP)
    computer.kill()
    os.kill(warden, signal.SIGKILL)
    process.kill()
    (computer.config.state / "keeper.seed").rename(computer.config.state / "away")
    told = [sys.executable, "-m", "sojourn_agent.main", "run", "--config", str(computer.folder / "agent.toml")]
    assert subprocess.run(told, capture_output=True, timeout=20, check=False).returncode == 1
    assert not list(carriers(run.run_id))
    (computer.config.state / "away").rename(computer.config.state / "keeper.seed")
    computer.start()
    assert eventually(lambda: computer.server.of_kind(wire.EndedReport))[0].cause == "agent_died"


@pytest.mark.parametrize("text", ["", "\xff", "{", "[]"])
def test_19_lost_credentials_cost_a_renewal(computer: Computer, text: str) -> None:
    """The link is started, and asks for new ones."""
    computer.stop()
    computer.server.heard.clear()
    computer.state.path("credentials.json").write_text(text, encoding="latin-1")
    computer.start()
    assert any(isinstance(message, between.Start) for message in computer.server.heard)


@pytest.mark.parametrize(
    "change",
    [
        {"boottime": 1e300},
        {"boottime": -1e15},
        {"now": "2026-01-01T00:00:00"},
        {"now": "0001-01-01T00:00:00Z"},
        {"now": "9999-12-31T23:59:59Z"},
    ],
)
def test_19_marks_that_nobody_wrote_are_set_aside(computer: Computer, change: dict[str, object]) -> None:
    """Bits that turned must not keep the agent from starting; time is then the server's alone."""
    computer.stop()
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    marks = {"boot_id": boot_id, "boottime": 1.0, "now": "2026-01-01T00:00:00Z", "confirmed": True} | change
    computer.state.write("marks.json", wire.encode(marks).decode())
    computer.start(connected=False)
    assert computer.agent()["time"] is None
    assert list(computer.config.state.glob("marks.json.unusable-*"))


def test_23_a_removed_key_counts_no_more_on_a_full_disk() -> None:
    """The key set cannot be written; what the removed key signed is dropped all the same."""
    folder = Path(tempfile.mkdtemp(prefix="sojourn-full-"))
    small = folder / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "small", small], check=True)
    computer = Computer(folder)
    try:
        shutil.copytree(computer.config.state, small / "state")
        computer.config = replace(computer.config, state=small / "state")
        computer.state = State(small / "state")
        write_config(computer.config, folder / "agent.toml")
        computer.start()
        computer.grant()
        with (small / "fill").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 4096)
        computer.server.answers_heartbeats = False
        keys = computer.server.key_set(PrivateKey.generate(), epoch=2)
        credentials = computer.state.read("credentials.json") or ""
        computer.server.send(between.NewCredentials(credentials=credentials, keys=keys))
        eventually(lambda: computer.agent()["document_version"] is None)
        assert is_refused(computer)
        (small / "fill").unlink()
        eventually(lambda: computer.state.read("keys.jws") == keys, 10)
    finally:
        computer.close()
        subprocess.run(["umount", small], check=True)
        shutil.rmtree(folder)
