"""One stack and two users of its computer for all guides."""

import os
from collections.abc import Iterator

import pytest

from sojourn_embedded.demo.people import Administrator, ThrowAwayUsers
from sojourn_embedded.demo.stack import Stack

PEOPLE = {"alice": "sj-docs-alice", "bob": "sj-docs-bob"}
"""What the guides call people, and what the users are called that live as long as the test."""


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    if os.geteuid() != 0:
        pytest.skip("needs root: the guides elevate, and two OS users are made and removed")
    with ThrowAwayUsers(*PEOPLE.values()), Stack() as started:
        yield started


@pytest.fixture(scope="session")
def administrator(stack: Stack) -> Iterator[Administrator]:
    with Administrator(stack) as somebody:
        yield somebody
