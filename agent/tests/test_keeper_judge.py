"""What is judged, what is refused, and how it is named (as root: only root takes leases)."""

import mmap
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sojourn_agent.facts.dpkg import Dpkg
from sojourn_agent.facts.owner import Unreadable
from sojourn_agent.keeper.judge import Caller, Judged, NotJudged, first_writable, judge, secure_path

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="leases and other users' eyes need root"),
]
BOB = Caller(64_001, 64_001, ())
ROOT = Caller(0, 0, (0,))


@pytest.fixture
def trusted() -> Iterator[Path]:
    """A folder whose whole path is root's alone."""
    folder = Path(tempfile.mkdtemp(prefix="sojourn-test-", dir="/opt"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def judged(
    name: str | Path, *, cwd: str | Path = "/", caller: Caller = BOB, cache: dict[object, object] | None = None
) -> Judged:
    folder = os.open(cwd, os.O_PATH | os.O_DIRECTORY)
    try:
        found = judge(str(name), folder, caller, cache if cache is not None else {})  # type: ignore[arg-type]
    finally:
        os.close(folder)
    for fd in {found.fd, *found.leased}:
        os.close(fd)
    return found


def refusal(name: str | Path, **options: object) -> NotJudged:
    with pytest.raises(NotJudged) as caught:
        judged(name, **options)  # type: ignore[arg-type]
    return caught.value


def test_a_program_is_judged_by_its_real_path(trusted: Path) -> None:
    """Links lead to what they lead to."""
    link = trusted / "link"
    link.symlink_to("/usr/bin/id")
    found = judged(link)
    assert found.application.path == "/usr/bin/id"
    assert found.application.executable == "id"
    assert found.writable is None
    assert len(found.application.sha256 or "") == 64


def test_a_bare_name_is_found_on_the_secure_path_alone(trusted: Path) -> None:
    """Never in the caller's folder."""
    shutil.copy("/usr/bin/false", trusted / "id")
    assert judged("id", cwd=trusted).application.path == "/usr/bin/id"
    assert judged("./id", cwd=trusted).application.path == f"{trusted}/id"
    assert refusal("nosuchprogram").exit == 127
    assert all(first_writable(os.path.realpath(folder)) is None for folder in secure_path())


def test_the_first_folder_that_others_can_change_is_named(trusted: Path) -> None:
    """Owner, group and world: each is enough, anywhere on the path."""
    place = trusted / "a" / "b"
    place.mkdir(parents=True)
    shutil.copy("/usr/bin/id", place / "id")
    assert judged(place / "id").writable is None
    for change, back in (
        (lambda: os.chown(trusted / "a", 64_001, -1), lambda: os.chown(trusted / "a", 0, -1)),
        (lambda: (trusted / "a").chmod(0o775), lambda: (trusted / "a").chmod(0o755)),
        (lambda: (trusted / "a").chmod(0o757), lambda: (trusted / "a").chmod(0o755)),
    ):
        change()
        assert judged(place / "id").writable == str(trusted / "a")
        back()
    (place / "id").chmod(0o775)
    assert judged(place / "id").writable == str(place / "id")


def test_nothing_but_a_regular_executable_is_run(trusted: Path) -> None:
    """Neither hangs nor is opened: pipes, devices, sockets, folders; 126 for each."""
    os.mkfifo(trusted / "pipe", 0o755)
    os.mknod(trusted / "device", 0o600 | 0o020000, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(trusted / "socket"))
        (trusted / "plain").touch(0o644)
        for name in ("pipe", "device", "socket", "plain", "."):
            assert refusal(trusted / name, caller=ROOT).exit == 126
    assert refusal(trusted / "gone").exit == 127


def test_a_file_open_for_writing_is_refused(trusted: Path) -> None:
    """Whoever has it open could change it between judging and executing; a shared mapping counts too."""
    shutil.copy("/usr/bin/id", trusted / "id")
    with (trusted / "id").open("r+b") as writer:
        assert refusal(trusted / "id").code == "open-for-writing"
        mapping = mmap.mmap(writer.fileno(), 4096, mmap.MAP_SHARED, mmap.PROT_WRITE)
    assert refusal(trusted / "id").code == "open-for-writing"
    mapping.close()
    assert judged(trusted / "id")


def test_what_the_caller_cannot_see_is_marked(trusted: Path) -> None:
    """It may be granted all the same; if not, they are told nothing about it."""
    closed = trusted / "closed"
    closed.mkdir(mode=0o700)
    shutil.copy("/usr/bin/id", closed / "id")
    assert judged(closed / "id").hidden
    assert not judged(closed / "id", caller=ROOT).hidden
    assert not judged("/usr/bin/id").hidden
    (closed / "plain").touch(0o644)
    (closed / "folder").mkdir()
    for name in ("gone", "plain", "folder"):  # nothing tells what is there from what is not
        assert refusal(closed / name).why.replace(name, "x") == refusal(closed / "gone").why.replace("gone", "x")


def test_a_link_of_the_callers_gives_a_program_no_other_name(trusted: Path) -> None:
    """Programs such as busybox do what they are called: only root's links name them."""
    mine = Path(tempfile.mkdtemp(prefix="sojourn-mallory-"))
    try:
        for folder in (trusted, mine):
            (folder / "sh").symlink_to("/usr/bin/id")
        assert judged(trusted / "sh").name == f"{trusted}/sh"
        assert judged(mine / "sh").name == "/usr/bin/id"
        assert judged("../usr/bin/id", cwd="/opt").name == "../usr/bin/id"
        assert judged("id").name == "id"
    finally:
        shutil.rmtree(mine)


def test_a_script_is_judged_with_its_interpreter(trusted: Path) -> None:
    """An interpreter that others can change makes the script theirs."""
    script = trusted / "script"
    script.write_text("#! /bin/sh -e\nid\n")
    script.chmod(0o755)
    assert (judged(script).script, judged(script).writable) == (True, None)
    mine = Path(tempfile.mkdtemp(dir=trusted)) / "sh"
    shutil.copy("/bin/sh", mine)
    os.chown(mine, 64_001, -1)
    script.write_text(f"#!{mine}\nid\n")
    assert judged(script).writable == str(mine)
    for first in ("#!sh", "#!", "#!/nowhere/sh", f"#!{script}"):
        script.write_text(f"{first}\nid\n")
        assert refusal(script).exit == 126


def test_facts_are_remembered_only_of_settled_files_on_trusted_paths(trusted: Path) -> None:
    """A file changed a moment ago may change again within a tick of its time stamps."""
    fresh = trusted / "id"
    shutil.copy("/usr/bin/id", fresh)
    assert judged(fresh).key is None
    found = judged("/usr/bin/id")
    assert found.key is not None
    again = judged("/usr/bin/id", cache={found.key: found.application})
    assert (again.key, again.application) == (None, found.application)
    fresh.parent.chmod(0o777)
    os.utime(fresh, (0, 0))
    assert judged(fresh).key is None


def test_what_is_remembered_of_one_name_is_not_told_of_another(trusted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hard link is the very same file, but a package vouches for its own name alone."""
    monkeypatch.setattr("sojourn_agent.keeper.judge._SETTLED_AFTER", -1.0)  # a link is a change
    one, twin = trusted / "one", trusted / "twin"
    shutil.copy("/usr/bin/id", one)
    twin.hardlink_to(one)
    cache: dict[object, object] = {}
    for name in (one, twin, one, twin):
        found = judged(name, cache=cache)
        assert found.application.path == str(name)
        assert found.key is not None
        cache[found.key] = found.application
    assert judged(twin, cache=cache).key is None


@pytest.mark.skipif(not Path("/var/lib/dpkg/status").exists(), reason="this computer has no dpkg")
def test_what_could_not_be_told_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what was told before packages changed counts no more."""

    def in_trouble(*_: object) -> list[object]:
        raise Unreadable("changing just now")

    before = judged("/usr/bin/id")
    assert before.key is not None
    with monkeypatch.context() as trouble:
        trouble.setattr(Dpkg, "owners", in_trouble)
        found = judged("/usr/bin/id")
        assert (found.key, found.application.signature.status) == (None, "unknown")
    with monkeypatch.context() as upgraded:
        upgraded.setattr(Dpkg, "stamp", lambda _: (1, 2, 3))
        again = judged("/usr/bin/id", cache={before.key: before.application})
        assert again.key not in (None, before.key)


def test_a_descriptor_of_the_agent_is_no_program() -> None:
    """`/proc/self` is the agent's own while it looks: what it has open is judged like any file."""
    assert refusal("/dev/fd/0").exit in (126, 127)
    assert judged("/proc/self/exe").application.path == os.path.realpath("/proc/self/exe")
