"""`make demo` tells the truth: it fails by itself when a line would not be so, and leaves nobody behind."""

import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sojourn_embedded.demo.__main__ import USERS
from sojourn_embedded.demo.people import ThrowAwayUsers
from sojourn_embedded.files import closed_folder

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the demo elevates, and an ordinary user is made for it"),
]


def tell(**how: Any) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-P", "-m", "sojourn_embedded.demo"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd="/", **how)


def test_the_whole_story_is_told_in_under_a_minute() -> None:
    """As root: all eight chapters, and the two users are gone afterwards."""
    told = tell()
    assert told.returncode == 0, told.stdout + told.stderr
    assert "\n8. The proof" in told.stdout
    assert int(told.stdout.rpartition("Told in ")[2].split()[0]) < 60
    assert not {user.pw_name for user in pwd.getpwall()} & set(USERS)


@pytest.mark.skipif(
    closed_folder(Path(sys.prefix)) is not None, reason=f"other users may not enter the folders above {sys.prefix}"
)
def test_without_root_it_says_what_is_not_shown_and_shows_the_rest() -> None:
    """An ordinary user sees why the agent only observes, a decision by another person, and the proof."""
    with ThrowAwayUsers("sj-test-demo"):
        user = pwd.getpwnam("sj-test-demo")
        home = {"HOME": "/tmp", "PATH": os.defpath, "LANG": "C.UTF-8"}
        told = tell(user=user.pw_uid, group=user.pw_gid, extra_groups=[], env=home)
    assert told.returncode == 0, told.stdout + told.stderr
    for line in (
        "Without root",
        "observes only",
        "self-approval",
        "declined by approver",
        "are exactly what was signed",
    ):
        assert line in told.stdout
