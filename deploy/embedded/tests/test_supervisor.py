"""Parts are started again, later and later, and one that never works is given up in a sentence."""

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sojourn_embedded import supervisor
from sojourn_embedded.parts import Program
from sojourn_embedded.process import CannotStart, Identity, end, spawn
from sojourn_embedded.supervisor import Stopped, Supervisor


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def watching(lines: list[str], monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    """Says into `lines`. It does not adopt orphans: other tests wait for their own children."""
    monkeypatch.setattr(supervisor, "adopt_orphans", lambda: None)
    return Supervisor(lines.append, lambda: None)


def program(log: Path, script: str, is_ready: Callable[[], bool] = lambda: True) -> Program:
    def start() -> "subprocess.Popen[bytes]":
        return spawn(["/bin/sh", "-c", script], Identity.caller(), log=log, dies_by=signal.SIGKILL)

    return Program("part", log, start, is_ready)


def test_a_part_that_never_works_is_given_up(watching: Supervisor, lines: list[str], tmp_path: Path) -> None:
    """After three attempts, with the last lines of its log and where to read more."""
    watching.launch(program(tmp_path / "log", "echo no such key >&2; exit 3", lambda: False))
    with pytest.raises(CannotStart, match=r"part does not start \(status 3\): no such key.*log"):
        watching.wait_for("part")
    pauses = [line.partition("again in ")[2][:3] for line in lines]
    assert pauses == ["0.2", "0.4"]


def test_a_part_that_dies_comes_back_with_another_pid(watching: Supervisor, lines: list[str], tmp_path: Path) -> None:
    """And a line says how it ended."""
    part = program(tmp_path / "log", "exec sleep 987")
    watching.launch(part)
    watching.wait_for("part")
    first = part.pid
    assert first
    os.kill(first, signal.SIGKILL)
    while part.pid == first:
        watching._look_at_all()
        watching._sleep()
    watching.wait_for("part")
    assert "ended (killed by SIGKILL): starting again in 0.2 s" in lines[1]
    assert "ready again" in lines[2]
    watching.stop((["part"], signal.SIGTERM, 5))
    assert part.ended() == "killed by SIGTERM"


def test_a_part_that_does_not_heed_is_killed(watching: Supervisor, tmp_path: Path) -> None:
    """The end of everything waits for nobody longer than its time."""
    flag = tmp_path / "ready"
    part = program(tmp_path / "log", f"trap '' TERM; touch {flag}; while :; do sleep 1; done", flag.exists)
    watching.launch(part)
    watching.wait_for("part")
    watching.stop((["part"], signal.SIGTERM, 0.2))
    assert part.ended() == "killed by SIGKILL"


def test_a_signal_stops_the_watch(watching: Supervisor, tmp_path: Path) -> None:
    """SIGTERM, while nothing happens and nothing is due."""
    watching.launch(program(tmp_path / "log", "exec sleep 987"))
    watching.wait_for("part")
    with watching.heeding_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped):
            watching.run()
    watching.stop((["part"], signal.SIGTERM, 5))


def test_a_program_ends_with_who_started_it(tmp_path: Path) -> None:
    """SIGKILL of the parent reaches it through the kernel, whatever it runs as."""
    script = (
        "import os, signal, sys, time; from pathlib import Path; from sojourn_embedded.process import *\n"
        "who = Identity(64199, 64199) if os.geteuid() == 0 else Identity.caller()\n"
        "child = spawn(['/bin/sleep', '987'], who, log=Path(sys.argv[1]), dies_by=signal.SIGTERM)\n"
        "print(child.pid, flush=True); time.sleep(987)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, tmp_path / "log"], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout
        child = int(parent.stdout.readline())
        assert Path(f"/proc/{child}/comm").read_text() == "sleep\n"
        parent.kill()
    for _ in itertools.takewhile(lambda _: is_running(child), range(500)):
        time.sleep(0.01)
    assert not is_running(child)


def test_end_kills_what_does_not_end(tmp_path: Path) -> None:
    """`end` returns only when the process is gone."""
    process = spawn(["/bin/sleep", "987"], Identity.caller(), log=tmp_path / "log", dies_by=signal.SIGKILL)
    end(process, signal.SIGCONT, within=0.1)
    assert process.returncode == -signal.SIGKILL


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
