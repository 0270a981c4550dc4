"""One stack and two ordinary users for the whole story."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from sojourn_embedded.demo.people import Administrator, Person, ThrowAwayUsers
from sojourn_embedded.demo.stack import Stack

ALICE, BOB = "sj-test-alice", "sj-test-bob"


@dataclass(frozen=True)
class Cast:
    """The stack, its administrator, and two ordinary users of its computer."""

    stack: Stack
    admin: Administrator
    alice: Person
    bob: Person


@pytest.fixture(scope="session")
def cast() -> Iterator[Cast]:
    if os.geteuid() != 0:
        pytest.skip("needs root: the agent elevates, and two OS users are made and removed")
    with ThrowAwayUsers(ALICE, BOB), Stack() as stack, Administrator(stack) as admin:
        yield Cast(stack, admin, Person(ALICE, stack), Person(BOB, stack))
