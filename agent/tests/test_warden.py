"""Terminal, pipes, signals and environment of an elevated application (as root)."""

import fcntl
import hashlib
import os
import shutil
import signal
import struct
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from sojourn_agent.testing import Computer, Typist, a_computer, eventually
from sojourn_agent.warden import environment
from sojourn_shared.contracts import wire

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root elevates")
BOB = 64_001


@pytest.fixture(scope="module")
def computer() -> Iterator[Computer]:
    with a_computer() as computer:
        computer.grant(wire.FolderPathRule(path="/usr"))
        yield computer


def elevated(computer: Computer) -> list[str]:
    """The names of all that runs elevated."""
    pids = [pid for file in Path(computer.agent()["leaves"]).glob("*/cgroup.procs") for pid in file.read_text().split()]
    return [Path(f"/proc/{pid}/comm").read_text().strip() for pid in pids]


def test_the_environment_starts_empty() -> None:
    """Names that change what a program loads or reads never get in; of the kept ones only plain values."""
    told = {
        "LD_PRELOAD": "/tmp/x.so", "PYTHONPATH": "/tmp", "BASH_ENV": "/tmp/x", "IFS": "x", "PATH": "/tmp",
        "BASH_FUNC_id%%": "() { evil; }", "TERMINFO": "/tmp", "GCONV_PATH": "/tmp", "HOME": "/tmp",
        "LC_ALL": "../../tmp/x", "LC_TIME": "nb_NO.UTF-8", "LANG": "C.UTF-8", "TERM": "xterm-256color",
        "TZ": "Europe/Oslo", "LC_X/../Y": "a",
    }  # fmt: skip
    kept = environment(told, "run-1", "/root", "/bin/sh")
    assert {name: kept[name] for name in ("LC_TIME", "LANG", "TERM", "TZ")} == {
        "LC_TIME": "nb_NO.UTF-8",
        "LANG": "C.UTF-8",
        "TERM": "xterm-256color",
        "TZ": "Europe/Oslo",
    }
    assert kept.keys() == {
        "LC_TIME", "LANG", "TERM", "TZ", "PATH", "HOME", "USER", "LOGNAME", "SHELL", "SOJOURN_RUN",
    }  # fmt: skip
    assert "/tmp" not in kept["PATH"]


@pytest.mark.parametrize("zone", ["../../tmp/x", "/tmp/x", ":Oslo", "a%sb", "Europe/../x"])
def test_a_time_zone_names_a_zone_and_no_other_file(zone: str) -> None:
    """A zone file of the caller's is none."""
    assert "TZ" not in environment({"TZ": zone}, "run-1", "/root", "/bin/sh")


@pytest.mark.root
@needs_root
class TestStreams:
    def test_binary_data_passes_unchanged_through_pipes(self, computer: Computer) -> None:
        """20 MB in, 20 MB out, no terminal in between; the end of input is seen."""
        data = os.urandom(1 << 20) * 20
        process = computer.popen("--", "/usr/bin/cat", uid=BOB, stdin=subprocess.PIPE)
        out, _ = process.communicate(data, timeout=30)
        assert process.returncode == 0
        assert hashlib.sha256(out).digest() == hashlib.sha256(data).digest()

    @pytest.mark.parametrize(("script", "status"), [("exit 42", 42), ("kill -SEGV $$", 139), ("kill -KILL $$", 137)])
    def test_the_status_is_the_applications_own(self, computer: Computer, script: str, status: int) -> None:
        """128 + n for a signal."""
        assert computer.elevate("--", "/bin/sh", "-c", script, uid=BOB).status == status

    def test_signals_are_passed_on(self, computer: Computer) -> None:
        """To the application, which decides."""
        script = "trap 'echo caught; exit 7' TERM; echo ready; while :; do sleep 0.05; done"
        process = computer.popen("--", "/bin/sh", "-c", script, uid=BOB)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=10)
        assert (process.returncode, out) == (7, b"caught\n")

    def test_the_process_is_as_a_login_would_make_it(self, computer: Computer) -> None:
        """umask 022, no other descriptor, default signals, root's own groups, the caller's folder."""
        script = "umask; ls /proc/self/fd | wc -l; grep SigIgn /proc/self/status; id -G; pwd; tty"
        options = {"umask": 0o777, "restore_signals": False, "cwd": "/usr/share"}
        told = computer.elevate("--", "/bin/sh", "-c", script, uid=BOB, **options).out.split("\n")
        assert told[:6] == ["0022", "4", "SigIgn:\t0000000000000000", "0", "/usr/share", "not a tty"]

    def test_a_working_folder_that_is_gone_does_no_harm(self, computer: Computer) -> None:
        """A deleted working folder is passed on as it is."""
        folder = computer.folder / "bobs" / "gone"
        folder.mkdir(parents=True)
        os.chown(folder.parent, BOB, BOB)
        done = computer.elevate(
            "--", "/usr/bin/id", "-u", uid=BOB, cwd=str(folder), preexec_fn=lambda: os.rmdir(str(folder))
        )
        assert (done.status, done.out) == (0, "0\n")

    def test_closed_descriptors_are_no_other_file(self, computer: Computer) -> None:
        """What the caller has closed is /dev/null inside."""
        out = computer.folder / "out"
        out.touch()
        out.chmod(0o666)
        shell = f"exec {computer.elevate_file} -- /bin/sh -c 'readlink /proc/self/fd/0 /proc/self/fd/2 >&1' <&- 2>&-"
        env = {"SOJOURN_AGENT_SOCKET": str(computer.config.socket)}
        done = subprocess.run(["/bin/sh", "-c", shell], env=env, user=BOB, capture_output=True, check=False, timeout=20)
        assert done.stdout == b"/dev/null\n/dev/null\n"


@pytest.mark.root
@needs_root
class TestTerminal:
    def test_an_application_has_a_terminal_of_its_own(self, computer: Computer) -> None:
        """Never the caller's: what it types into its terminal reaches no shell of the caller. The size is the same."""
        typist = Typist(computer, "--", "/bin/sh", "-c", "tty; stty size; ps -o stat= -p $$", uid=BOB)
        shown = typist.sees("40 100")
        assert "/dev/pts/" in shown
        assert typist.leaves() == 0

    def test_keys_reach_it_and_ctrl_c_interrupts_it(self, computer: Computer) -> None:
        """As on the person's own terminal: Ctrl-C goes to what is in its foreground."""
        typist = Typist(computer, "--", "/bin/sh", uid=BOB)
        typist.sees("# ")
        typist.types("echo $((6*7))\n")
        typist.sees("42")
        typist.types("/usr/bin/sleep 987\n")
        eventually(lambda: "sleep" in elevated(computer))
        typist.types("\x03")
        typist.types("echo still $?\n")
        typist.sees("still 130")
        typist.types("exit 5\n")
        assert typist.leaves() == 5

    def test_a_new_window_size_is_passed_on(self, computer: Computer) -> None:
        """SIGWINCH reaches the application with the new size."""
        script = "trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.05; done"
        typist = Typist(computer, "--", "/bin/sh", "-c", script, uid=BOB)
        typist.sees("ready")
        fcntl.ioctl(typist.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 11, 22, 0, 0))
        typist.sees("11 22")
        assert typist.leaves() == 0

    def test_only_the_terminals_among_the_streams_are_replaced(self, computer: Computer) -> None:
        """A pipe stays a pipe beside a terminal."""
        typist = Typist(computer, "--", "/usr/bin/wc", "-c", uid=BOB, stdin=subprocess.PIPE)
        typist.process.stdin.write(b"x" * 1000)
        typist.process.stdin.close()
        typist.sees("1000")
        assert typist.leaves() == 0

    def test_the_terminal_is_given_back_as_it_was(self, computer: Computer) -> None:
        """Raw only while the application has it."""
        typist = Typist(computer, "--", "/bin/sh", "-c", "echo on; sleep 0.5", uid=BOB)
        before = termios.tcgetattr(typist.terminal)
        typist.sees("on")
        eventually(lambda: not termios.tcgetattr(typist.terminal)[3] & termios.ICANON)
        typist.process.wait(10)
        assert termios.tcgetattr(typist.terminal) == before
        typist.leaves()

    def test_in_a_pipeline_the_terminal_keeps_its_line_ends(self, computer: Computer) -> None:
        """What reads us writes to the same terminal meanwhile: no staircase."""
        words = ("/bin/sh", "-c", "echo on >&2; sleep 0.5")
        typist = Typist(computer, "--", *words, uid=BOB, stdout=subprocess.PIPE)
        typist.sees("on")
        eventually(lambda: not termios.tcgetattr(typist.terminal)[3] & termios.ICANON)
        assert termios.tcgetattr(typist.terminal)[1] & termios.OPOST
        assert typist.leaves() == 0

    def test_the_end_is_told_on_the_terminal(self, computer: Computer) -> None:
        """With the reason, after the terminal was given back."""
        with a_computer() as other:
            grant = other.grant()
            typist = Typist(other, "--", "/usr/bin/sleep", "986", uid=BOB)
            eventually(lambda: other.agent()["running"])
            other.server.revoke(grant, "enough")
            typist.sees("access was revoked: enough")
            assert typist.leaves() == 124


@pytest.mark.root
@needs_root
class TestScripts:
    def test_a_script_and_its_interpreter_are_judged(self, computer: Computer) -> None:
        """A root-owned script runs; its arguments are its own."""
        folder = Path(f"/opt/sojourn-test-{os.getpid()}")
        folder.mkdir(mode=0o755)
        script = folder / "greet"
        script.write_text("#!/bin/sh -e\necho $1 $(id -u)\n")
        script.chmod(0o755)
        computer.grant(wire.FolderPathRule(path=str(folder)))
        try:
            assert computer.elevate("--", str(script), "hello", uid=BOB).out == "hello 0\n"
            assert computer.elevate("--", "./greet", "hello", uid=BOB, cwd=str(folder)).out == "hello 0\n"
            mine = computer.folder / "interpreter"
            shutil.copy("/bin/sh", mine)
            os.chown(mine, BOB, BOB)
            script.write_text(f"#!{mine}\nid\n")
            told = computer.elevate("--no-wait", "--", str(script), uid=BOB)
            assert told.status == 77
            assert "others than root can change /tmp" in told.err
        finally:
            shutil.rmtree(folder)
