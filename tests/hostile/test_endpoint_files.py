"""Attacks of an unprivileged user on what the agent takes for root's: names, links, interpreters, media, groups.

As root.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sojourn_agent.keeper.leaves import find_parent
from sojourn_agent.testing import Computer, a_computer, eventually
from sojourn_shared.contracts import wire

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root elevates, and only root is another user"),
]
MALLORY = 64_002
PYTHON = os.path.realpath("/usr/bin/python3")


@pytest.fixture
def computer() -> Iterator[Computer]:
    with a_computer() as computer:
        yield computer


@pytest.fixture
def trusted() -> Iterator[Path]:
    """A folder whose whole path is root's alone."""
    folder = Path(tempfile.mkdtemp(prefix="sojourn-test-", dir="/opt"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def environment() -> Iterator[Path]:
    """What a virtual environment of Mallory's is made of; its packages say so when they are loaded."""
    folder = Path(tempfile.mkdtemp(prefix="sojourn-mallory-"))
    folder.chmod(0o755)
    packages = folder / "lib" / Path(PYTHON).name / "site-packages"
    packages.mkdir(parents=True)
    (packages / "evil.pth").write_text("import os; os.write(1, b'EVIL\\n')\n")
    (folder / "pyvenv.cfg").write_text("home = /usr/bin\n")
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(not Path(PYTHON).name.startswith("python3."), reason="needs the system's own Python")
def test_6_an_interpreter_called_through_ones_own_link_loads_nothing_of_ones_own(
    computer: Computer, trusted: Path, environment: Path
) -> None:
    """The file and its arguments are as approved; what the program is called would have it load Mallory's packages."""
    tool = trusted / "tool.py"
    tool.write_text("print('good')\n")
    (environment / "bin").symlink_to(Path(PYTHON).parent)
    computer.grant(wire.FolderPathRule(path=str(Path(PYTHON).parent), arguments=[str(tool)]))
    told = computer.elevate("--", str(environment / "bin" / Path(PYTHON).name), str(tool), uid=MALLORY)
    assert (told.status, told.out) == (0, "good\n")


def test_10_an_interpreter_behind_a_users_link_is_a_users_interpreter(
    computer: Computer, trusted: Path, environment: Path
) -> None:
    """A script of root's that names it runs nothing: the link leads elsewhere a moment later, or brings packages."""
    (environment / "bin").mkdir()
    (environment / "bin" / "python").symlink_to(PYTHON)
    script = trusted / "tool"
    script.write_text(f"#!{environment}/bin/python\nprint('good')\n")
    script.chmod(0o755)
    computer.grant(wire.FolderPathRule(path=str(trusted)))
    told = computer.elevate("--no-wait", "--", str(script), uid=MALLORY)
    assert (told.status, told.out) == (77, "")
    assert "others than root can change" in told.err


def test_8_roots_files_on_a_medium_that_a_user_brought_are_not_roots(computer: Computer) -> None:
    """Whoever makes a file system writes into it what they like, owners too."""
    Path("/media").mkdir(exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix="sojourn-test-", dir="/media"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nosuid,nodev,mode=755", "stick", place], check=True)
    try:
        shutil.copy("/usr/bin/id", place / "id")
        computer.grant(wire.FolderPathRule(path=str(place)))
        told = computer.elevate("--no-wait", "--", str(place / "id"), "-u", uid=MALLORY)
    finally:
        subprocess.run(["umount", place], check=True)
        place.rmdir()
    assert (told.status, told.out) == (77, "")
    assert f"others than root can change {place}" in told.err


# --- groups -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def mallorys_groups() -> Iterator[tuple[Path, Path]]:
    """Two cgroups as a desktop delegates them to its user; this process, and the agent with it, is in the first."""
    try:
        top = find_parent("test").parent / f"mallory-{os.getpid()}"
    except ValueError:
        pytest.skip("cgroup v2 is not mounted")
    groups = top / "terminal", top / "elsewhere"
    home = Path(f"{top.parent}/cgroup.procs")
    try:
        for group in (top, *groups):
            group.mkdir()
            for name in ("", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"):
                os.chown(group / name, MALLORY, MALLORY)
    except OSError as error:
        pytest.skip(f"no cgroup can be made: {error}")
    (groups[0] / "cgroup.procs").write_text(str(os.getpid()))
    yield groups
    home.write_text(str(os.getpid()))
    for group in (*groups, top):
        for pid in (group / "cgroup.procs").read_text().split():
            os.kill(int(pid), signal.SIGKILL)
        eventually(lambda group=group: "populated 0" in (group / "cgroup.events").read_text())
        group.rmdir()


def test_21_an_elevated_process_is_in_no_group_that_its_user_commands(mallorys_groups: tuple[Path, Path]) -> None:
    """Else Mallory moves it out of its leaf, and without the run's id in its environment nothing would end it."""
    with a_computer() as computer:
        grant = computer.grant(wire.FolderPathRule(path="/usr/bin"))
        script = "echo $$; exec sleep 987"
        process = computer.popen("--", "/usr/bin/env", "-i", "/usr/bin/sh", "-c", script, uid=MALLORY)
        pid = process.stdout.readline().decode().strip()

        def move() -> None:
            os.setresuid(MALLORY, MALLORY, MALLORY)
            (mallorys_groups[1] / "cgroup.procs").write_text(pid)

        moving = os.fork()
        if moving == 0:
            with contextlib.suppress(OSError):
                move()
            os._exit(0)
        os.waitpid(moving, 0)
        computer.server.revoke(grant)
        assert process.wait(5) == 124
        eventually(lambda: not Path(f"/proc/{pid}").exists())
