"""The person's command by itself: words, exit statuses, and what it does without an agent."""

import os
import runpy
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sojourn_agent.testing import ELEVATE, Computer, Finished, a_computer
from sojourn_shared.contracts import wire

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root elevates")
NOWHERE = {"SOJOURN_AGENT_SOCKET": "/nowhere/agent.sock", "LANG": "C.UTF-8"}
BOB = 64_001


@pytest.fixture(scope="module")
def computer() -> Iterator[Computer]:
    with a_computer() as computer:
        yield computer


def elevate(*words: str | bytes) -> Finished:
    done = subprocess.run([str(ELEVATE), *words], env=NOWHERE, capture_output=True, check=False, timeout=20)
    return Finished(done.returncode, done.stdout, done.stderr)


def test_it_is_one_executable_file_with_the_systems_interpreter() -> None:
    """Isolated and without site packages: nothing of the caller's gets into it."""
    assert ELEVATE.read_text().startswith("#!/usr/bin/python3 -IS\n")
    assert os.access(ELEVATE, os.X_OK)


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--",),
        ("--check",),
        ("--wrong", "--", "id"),
        ("--for", "soon", "--", "id"),
        ("--for", "0m", "--", "id"),
        ("--for",),
        ("--because", " ", "--", "id"),
        ("--status", "--", "id"),
        ("--", b"\xff\xfe"),
    ],
)
def test_usage_errors_exit_64_with_a_sentence(words: tuple[str | bytes, ...]) -> None:
    """And name what is wrong."""
    done = elevate(*words)
    assert done.status == 64
    assert done.err.startswith("elevate: ")


def test_without_an_agent_it_exits_75_and_says_where_it_looked() -> None:
    """The socket's path is in the sentence."""
    done = elevate("--", "id")
    assert done.status == 75
    assert "/nowhere/agent.sock" in done.err


def test_help_is_help() -> None:
    """On standard output, and successful."""
    done = elevate("--help")
    assert (done.status, done.err) == (0, "")
    assert "--because" in done.out


def test_durations_are_read_as_people_write_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Minutes, hours and days, alone or together."""
    monkeypatch.setattr("sys.argv", ["elevate", "--help"])
    monkeypatch.setattr(os, "_exit", lambda status: None)
    minutes_of = runpy.run_path(str(ELEVATE))["minutes_of"]
    told = {"45": 45, "30m": 30, "2h": 120, "1h30m": 90, "1H": 60, "1d": 1440, "90 m": None, "": None, "-5": None}
    assert {text: minutes_of(text) for text in told} == told


@pytest.mark.root
@needs_root
class TestWithAnAgent:
    def test_check_answers_and_runs_nothing(self, computer: Computer) -> None:
        """0 it would run now, 77 it would not, with the reason."""
        assert computer.elevate("--check", "--", "/usr/bin/id", uid=BOB).status == 77
        grant = computer.grant()
        yes = computer.elevate("--check", "--", "/usr/bin/id", uid=BOB)
        assert (yes.status, "folder_path" in yes.out) == (0, True)
        assert computer.server.of_kind(wire.StartedReport) == []
        computer.server.revoke(grant)
        computer.catches_up()

    def test_facts_are_told_with_the_trust_in_their_path(self, computer: Computer) -> None:
        """Of a trusted file, and of one whose folder others can change."""
        told = computer.elevate("--facts", "--", "id", uid=BOB)
        assert told.status == 0
        assert "/usr/bin/id" in told.out
        assert "yes: root alone" in told.out
        mine = Path("/tmp") / f"sojourn-id-{os.getpid()}"
        mine.write_bytes(Path("/usr/bin/id").read_bytes())
        mine.chmod(0o755)
        try:
            assert "others than root can change /tmp" in computer.elevate("--facts", "--", str(mine), uid=BOB).out
        finally:
            mine.unlink()

    def test_the_statuses_of_what_cannot_run(self, computer: Computer) -> None:
        """127 no such program, 126 not executable, 77 not trusted, 78 nobody to ask."""
        assert computer.elevate("--", "/no/such", uid=BOB).status == 127
        assert computer.elevate("--", "/etc/passwd", uid=BOB).status == 126
        assert computer.elevate("--", "/etc", uid=BOB).status == 126
        own = computer.elevate("--", str(computer.elevate_file), uid=BOB)
        assert own.status == 77
        assert "change /tmp" in own.err

    def test_status_lists_what_may_be_run(self, computer: Computer) -> None:
        """Or says that it is nothing."""
        assert "nothing may be run" in computer.elevate("--status", uid=BOB).out
        grant = computer.grant(policy_name="Tools")
        told = computer.elevate("--status", uid=BOB)
        assert "Tools" in told.out
        assert grant.id in told.out
        computer.server.revoke(grant)
        computer.catches_up()

    def test_text_of_others_never_moves_the_cursor(self, computer: Computer) -> None:
        """Control characters in a name are shown as what they are: nothing."""
        grant = computer.grant(policy_name="\x1b[2Jwiped\nline")
        told = computer.elevate("--status", uid=BOB)
        assert "\x1b" not in told.out
        assert "\ufffd[2Jwiped" in told.out
        computer.server.revoke(grant)
        computer.catches_up()

    def test_the_agent_going_away_while_it_waits_is_75(self, computer: Computer) -> None:
        """Never a hang."""
        computer.grant(wire.FolderPathRule(path="/usr/bin"))
        process = computer.popen("--", "/usr/bin/sleep", "987", uid=BOB)
        computer.kill()
        assert process.wait(10) == 75


@pytest.mark.skipif(os.geteuid() != 0, reason="another user is needed to be nobody special")
@pytest.mark.root
def test_without_root_the_agent_observes_only() -> None:
    """It takes part in everything, elevates nothing, and says what to do."""
    with a_computer() as computer:
        computer.stop()
        for path in (computer.folder, *computer.folder.rglob("*")):
            os.chown(path, BOB, BOB)
        computer.start(uid=BOB)
        computer.grant()
        told = computer.elevate("--", "/usr/bin/id", uid=BOB)
        assert told.status == 77
        assert "does not run as root" in told.err
        applied = computer.server.of_kind(wire.AppliedReport)[-1].grants[0]
        assert not applied.applied
        assert "does not run as root" in applied.reason
