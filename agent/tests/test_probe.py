"""Promises are tried, not read off; people and standing rights are read from the computer's files."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from sojourn_agent.probe import PROMISES, computer_users, probe, standing_rights
from sojourn_shared.contracts.wire import ComputerUser, Guarantee, StandingRight

AS_ROOT = pytest.mark.skipif(os.getuid() != 0, reason="needs root, to elevate anything")


def processes() -> set[int]:
    mine = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    return {int(pid) for pid in mine.split()}


def test_every_promise_has_a_word_and_a_reason() -> None:
    """All eight, each with a sentence; the answer is the same a second time, and no dummy is left."""
    before = processes()
    found = probe()
    assert tuple(found) == PROMISES
    assert all(len(guarantee.why) > 20 for guarantee in found.values())
    assert found["child_programs"].word == "observed only"
    assert probe() == found
    assert processes() == before


@AS_ROOT
def test_as_root_a_start_is_enforced() -> None:
    """What needs nothing but root and a kernel of these years is enforced."""
    found = probe()
    for promise in ("caller", "judge", "start", "end_starts_if_agent_dies", "clock"):
        assert found[promise].word == "enforced", found[promise].why


@AS_ROOT
def test_without_a_cgroup_an_end_is_best_effort() -> None:
    """Where no leaf can be made the tree is ended by descent, and the word and the reason say so."""
    found = probe(Path("/proc/no-cgroup"))
    for promise in ("end_running", "end_if_agent_dies"):
        assert found[promise].word == "best effort", found[promise].why
        assert "without a writable cgroup" in found[promise].why


@AS_ROOT
def test_without_root_nothing_is_promised_that_needs_it() -> None:
    """The same probe by an ordinary user: observed only, with the reason; the caller is known all the same."""
    script = (
        "import os, sys, msgspec; from sojourn_agent.probe import probe; import tempfile;"
        "os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534);"
        "sys.stdout.buffer.write(msgspec.json.encode(probe()))"
    )
    answer = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, timeout=30).stdout
    found = msgspec.json.decode(answer, type=dict[str, Guarantee])
    for promise in ("judge", "start", "end_running", "end_if_agent_dies", "end_starts_if_agent_dies"):
        assert found[promise].word == "observed only"
        assert "does not run as root" in found[promise].why
    assert found["caller"].word == "enforced"
    assert found["clock"].word == "enforced"


PASSWD = """root:x:0:0:root:/root:/bin/bash
toor:x:0:0::/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
alice:x:1000:1000:Alice:/home/alice:/bin/bash
bob:x:1001:27:Bob:/home/bob:/bin/bash
carol:x:1002:1002:Carol:/home/carol:/bin/bash
dora:x:1003:1003:Dora:/home/dora:/bin/bash
broken line
"""
GROUP = "root:x:0:\nsudo:x:27:alice\nwheel:x:10:\nops:x:1500:carol,dora\ndocker:x:999:dora\n"
SUDOERS = """# a comment
Defaults env_reset, secure_path="/usr/bin:/bin"
User_Alias DESK = carol, \\
           eve : OTHERS = frank
Cmnd_Alias PRINT = /usr/sbin/lpadmin
root ALL=(ALL:ALL) ALL
%sudo ALL=(ALL:ALL) ALL
%ops   ALL = NOPASSWD: /usr/bin/systemctl
DESK, "domain user" ALL=PRINT  # printers
#1003 ALL=(ALL) ALL
@includedir /etc/sudoers.d
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    etc = tmp_path / "etc"
    (etc / "sudoers.d").mkdir(parents=True)
    (etc / "passwd").write_text(PASSWD)
    (etc / "group").write_text(GROUP)
    (etc / "sudoers").write_text(SUDOERS)
    (etc / "sudoers.d" / "bob").write_text("bob ALL=(ALL) /usr/bin/apt\n#include /etc/sudoers\n")
    (etc / "sudoers.d" / "ignored.conf").write_text("alice ALL=(ALL) ALL\n")
    (etc / "sudoers.d" / "ignored~").write_text("alice ALL=(ALL) ALL\n")
    return tmp_path


def test_the_people_of_a_computer_are_its_ordinary_accounts(root: Path) -> None:
    """From uid 1000, `nobody` and root left out; lines that are none are passed over."""
    assert computer_users(root) == [
        ComputerUser(name="alice", uid=1000),
        ComputerUser(name="bob", uid=1001),
        ComputerUser(name="carol", uid=1002),
        ComputerUser(name="dora", uid=1003),
    ]


def test_standing_rights_name_everybody_and_the_way(root: Path) -> None:
    """Twins of root, administrators' groups by either kind of membership, sudoers with aliases, groups and uids."""
    found = standing_rights(root)
    assert [right for right in found if not right.through.startswith("sudoers")] == [
        StandingRight(user="toor", through="uid 0"),
        StandingRight(user="alice", through="group sudo"),
        StandingRight(user="bob", through="group sudo"),
        StandingRight(user="dora", through="group docker"),
    ]
    by_sudoers = {(right.user, right.through) for right in found if right.through.startswith("sudoers")}
    ops = "sudoers (/etc/sudoers: ALL = NOPASSWD: /usr/bin/systemctl) by group ops"
    desk = "sudoers (/etc/sudoers: ALL=PRINT)"
    assert by_sudoers == {
        ("carol", ops),
        ("dora", ops),
        ("carol", desk),
        ("eve", desk),
        ("domain user", desk),
        ("dora", "sudoers (/etc/sudoers: ALL=(ALL) ALL)"),
        ("bob", "sudoers (/etc/sudoers.d/bob: ALL=(ALL) /usr/bin/apt)"),
    }


def test_a_computer_without_these_files_has_nobody(tmp_path: Path) -> None:
    """Missing and unreadable files are no error."""
    assert computer_users(tmp_path) == []
    assert standing_rights(tmp_path) == []


def test_this_computer_can_be_read() -> None:
    """The real files, whatever they say, fit into a health report."""
    people, rights = computer_users(), standing_rights()
    assert all(person.uid >= 1000 for person in people)
    assert len(msgspec.json.encode([people, rights])) < 60_000
