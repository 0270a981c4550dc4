"""What rpm says of a file: answers that rpm 4.18 gave for packages made for this, told again by a stand-in for it."""

import hashlib
import os
import shlex
import time
from pathlib import Path

import pytest

from sojourn_agent.facts import facts_of, packages_of, stamp_of
from sojourn_agent.facts.owner import Owner, Unreadable
from sojourn_agent.facts.rpm import QUESTION, Rpm
from sojourn_shared.contracts.wire import Application, Signature

RECORDED = Path(__file__).parent / "recorded"
SAMPLE = b"#!/bin/sh\necho sample\n"
"""The content of the recorded packages' program."""


class Computer:
    """A root folder with a database of rpm, and an rpm that gives one answer, to the right question alone."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.rpm = root / "usr/bin/rpm"
        self.rpm.parent.mkdir(parents=True)
        self.database = root / "usr/lib/sysimage/rpm/rpmdb.sqlite"
        self.database.parent.mkdir(parents=True)
        self.database.write_bytes(b"SQLite format 3")

    def says(self, answer: str, status: int = 0) -> None:
        """`answer`: a shell command that prints it."""
        checked = f'[ "$1 $2 $4" = "-q --qf -f" ] && [ "$3" = {shlex.quote(QUESTION)} ] && [ $# = 5 ] || exit 9'
        self.rpm.write_text(f"#!/bin/sh\n{checked}\n{answer}\nexit {status}\n")
        self.rpm.chmod(0o755)

    def recorded(self, name: str, status: int = 0) -> None:
        self.says(f"cat {shlex.quote(str(RECORDED / f'rpm-{name}.txt'))}", status)

    def owners(self, name: str) -> list[Owner]:
        return Rpm(str(self.root), limit=1).owners(f"{self.root}{name}")

    def facts(self, name: str, content: bytes) -> Application:
        path = self.root / name[1:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        fd = os.open(path, os.O_RDONLY)
        try:
            before = os.listdir("/proc/self/fd")
            found = facts_of(fd, str(path), trusted=True, packages=packages_of(str(self.root)))
            assert os.listdir("/proc/self/fd") == before, "a descriptor was left open"
            return found
        finally:
            os.close(fd)


@pytest.fixture
def computer(tmp_path: Path) -> Computer:
    return Computer(tmp_path)


def test_a_packaged_file_is_known_and_verified(computer: Computer) -> None:
    """Vendor, version with its epoch, and the SHA-256 that the package recorded."""
    computer.recorded("sample")
    found = computer.facts("/opt/sample/bin/sample", SAMPLE)
    assert (found.vendor, found.product, found.package) == (
        "Example Project",
        "sojourn-sample",
        "sojourn-sample 1:2.5-3",
    )
    assert found.signature == Signature(status="verified", by="rpm")
    assert computer.facts("/opt/sample/with space", b"a file\n").signature.status == "verified"
    assert computer.facts("/opt/sample/bin/sample", SAMPLE + b"#").signature == Signature(status="invalid", by="rpm")


def test_what_a_package_does_not_say_is_not_known(computer: Computer) -> None:
    """No vendor, no epoch."""
    computer.recorded("bare")
    (owner,) = computer.owners("/opt/bare/bin/sample")
    assert (owner.vendor, owner.version, owner.algorithm) == (None, "2.5-3", "sha256")


def test_older_packages_recorded_md5(computer: Computer) -> None:
    """They name no algorithm."""
    computer.recorded("md5")
    (owner,) = computer.owners("/opt/old/bin/old")
    assert (owner.algorithm, owner.digest) == ("md5", hashlib.md5(b"other\n").hexdigest())
    assert computer.facts("/opt/old/bin/old", b"other\n").signature.status == "verified"


def test_a_file_of_no_package_is_unsigned(computer: Computer) -> None:
    """rpm says so, and ends with 1 as for every trouble."""
    computer.recorded("nobodys", status=1)
    assert computer.facts("/opt/mine", b"mine").signature == Signature(status="unsigned")


def test_a_merged_usr_knows_both_spellings(computer: Computer) -> None:
    """The package may call it `/bin/tool`."""
    (computer.root / "bin").symlink_to("usr/bin")
    computer.says(r"printf 'tool\t0\t1-1\t(none)\t8\tff\t0\t/bin/tool\n'")
    assert [owner.product for owner in computer.owners("/usr/bin/tool")] == ["tool"]


@pytest.mark.parametrize("state", [1, 2, 4])
def test_a_file_that_another_package_replaced_is_not_its_first_packages(computer: Computer, state: int) -> None:
    """Nor is one that was not installed."""
    computer.says(rf"printf 'old\t0\t1-1\tx\t8\taa\t{state}\t/opt/t\n'; printf 'new\t0\t1-1\tx\t8\tbb\t0\t/opt/t\n'")
    assert [owner.product for owner in computer.owners("/opt/t")] == ["new"]


def is_left(process: Path, rpm: Path) -> bool:
    """Whether it is the rpm of this test, still running, or ended and not waited for."""
    try:
        command = process.joinpath("cmdline").read_bytes()
        name, _, rest = process.joinpath("stat").read_text().partition("(")[2].rpartition(")")
    except OSError:
        return False
    return os.fsencode(rpm) in command or (name == rpm.name and rest.split()[:2] == ["Z", str(os.getpid())])


@pytest.mark.parametrize(
    "answer",
    [
        "exit 1",
        "echo error: cannot open Packages database; exit 1",
        "head -c 100000 /dev/urandom",
        "yes",
        "sleep 60",
        "echo; sleep 60",
        r"printf 'tool\t0\t1-1\tx\t8\tff\t0\t/opt/other\n'",
        r"printf 'tool\t0\t1-1\n'",
        "kill -9 $$",
    ],
)
def test_an_answer_that_cannot_be_read_is_no_answer(computer: Computer, answer: str) -> None:
    """Damaged, endless, or never: nothing is known, within the limit, and nothing is left running."""
    computer.says(answer)
    began = time.monotonic()
    with pytest.raises(Unreadable):
        computer.owners("/opt/tool")
    assert time.monotonic() - began < 10
    assert not [process for process in Path("/proc").glob("[0-9]*") if is_left(process, computer.rpm)]


def test_an_unknown_digest_proves_nothing(computer: Computer) -> None:
    """An algorithm that we do not know, or a file without a digest."""
    for told in (r"99\tff", r"8\t", r"(none)\t"):
        computer.says(rf"printf 'tool\t0\t1-1\tx\t{told}\t0\t/opt/tool\n'")
        assert computer.facts("/opt/tool", b"").signature == Signature(status="unknown")


def test_an_rpm_that_others_can_change_is_not_asked(computer: Computer) -> None:
    """It would run as root."""
    computer.recorded("sample")
    computer.rpm.chmod(0o777)
    with pytest.raises(Unreadable, match="others than root"):
        computer.owners("/opt/sample/bin/sample")


def test_without_a_database_rpm_is_not_asked(computer: Computer) -> None:
    """The program alone, as on Debian, knows nothing; and a change of the database is noticed."""
    computer.recorded("nobodys")
    before = stamp_of(packages_of(str(computer.root)))
    computer.database.write_bytes(b"SQLite format 3, changed")
    assert stamp_of(packages_of(str(computer.root))) != before
    computer.database.unlink()
    assert packages_of(str(computer.root)) == []
    assert computer.facts("/opt/mine", b"mine").signature == Signature(status="unknown")
