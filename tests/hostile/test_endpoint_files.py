"""Attacks of an unprivileged user on what the agent takes for root's: names, links, interpreters, media (as root)."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sojourn_agent.testing import Computer, a_computer
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
