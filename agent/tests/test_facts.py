"""The facts of a file come from its descriptor; what cannot be known for certain is not known."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import sojourn_agent.facts
from sojourn_agent.facts import HASHED_UP_TO
from sojourn_agent.facts import facts_of as facts_with
from sojourn_shared.contracts.wire import Application, Signature


def facts_of(fd: int, path: str) -> Application:
    """On a computer without packages."""
    return facts_with(fd, path, trusted=True, packages=[])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tool"
    path.write_bytes(b"#!/bin/sh\n" * 100_000)
    return path


@pytest.fixture
def fd(file: Path) -> Iterator[int]:
    opened = os.open(file, os.O_RDONLY)
    yield opened
    os.close(opened)


def test_facts_are_those_of_the_open_file(fd: int, file: Path) -> None:
    """SHA-256, size, name and platform; without packages nobody knows a vendor or a signature, and that is said."""
    facts = facts_of(fd, str(file))
    assert facts.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (facts.path, facts.executable, facts.size) == (str(file), "tool", 1_000_000)
    assert (facts.platform, facts.signature) == ("linux", Signature(status="unknown"))
    assert (facts.vendor, facts.product, facts.package, facts.arguments) == (None, None, None, None)
    assert os.lseek(fd, 0, os.SEEK_CUR) == 0


def test_another_file_under_the_same_name_changes_nothing(fd: int, file: Path) -> None:
    """Whoever swaps the name after the opening swaps nothing: the descriptor is judged."""
    before = facts_of(fd, str(file)).sha256
    other = file.with_name("evil")
    other.write_bytes(b"evil")
    other.rename(file)
    assert facts_of(fd, str(file)).sha256 == before


def test_the_name_is_that_of_the_resolved_file(file: Path) -> None:
    """A link's name is no name of the application."""
    link = file.with_name("innocent")
    link.symlink_to(file)
    opened = os.open(link, os.O_RDONLY)
    try:
        assert facts_of(opened, str(link)).executable == "tool"
    finally:
        os.close(opened)


def test_a_file_rewritten_while_it_is_read_has_no_digest(fd: int, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stat before and after differ: nothing is known of the content."""
    real = os.preadv

    def write_meanwhile(*arguments: object) -> int:
        with file.open("ab") as out:
            out.write(b"x")
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(sojourn_agent.facts.os, "preadv", write_meanwhile)
    assert facts_of(fd, str(file)).sha256 is None


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    """A sparse terabyte holds nobody up: its digest stays unknown, and no rule by hash matches it."""
    huge = tmp_path / "huge"
    with huge.open("wb") as out:
        out.truncate(HASHED_UP_TO + 1)
    opened = os.open(huge, os.O_RDONLY)
    try:
        facts = facts_of(opened, str(huge))
        assert (facts.sha256, facts.size) == (None, HASHED_UP_TO + 1)
    finally:
        os.close(opened)


def test_an_empty_file_has_the_digest_of_nothing(tmp_path: Path) -> None:
    """Zero bytes are a content too."""
    empty = tmp_path / "empty"
    empty.touch()
    opened = os.open(empty, os.O_RDONLY)
    try:
        assert facts_of(opened, str(empty)).sha256 == hashlib.sha256(b"").hexdigest()
    finally:
        os.close(opened)
