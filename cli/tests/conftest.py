"""One stack without an agent, and the command as a person runs it."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sojourn_embedded.demo.stack import Stack

Sojourn = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    with Stack("--no-agent") as stack:
        yield stack


@pytest.fixture
def sojourn(stack: Stack, tmp_path: Path) -> Sojourn:
    """Run `sojourn …` as somebody who is the administrator by SOJOURN_TOKEN, with an empty home."""

    def run(*arguments: str, stdin: str = "", **environment: str) -> "subprocess.CompletedProcess[str]":
        ready = stack.ready
        variables = {"SOJOURN_URL": ready["url"], "SOJOURN_TOKEN": ready["admin_token"]} | environment
        return subprocess.run(
            [sys.executable, "-m", "sojourn_cli.main", *arguments],
            env={"PATH": os.defpath, "HOME": str(tmp_path), **{k: v for k, v in variables.items() if v}},
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )

    return run
