"""A throw-away `sojourn up`, started and ended as a person would."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeVar

START_SECONDS = 60.0
_UP = (sys.executable, "-m", "sojourn_cli.main", "up", "--port", "0")


class NotStarted(Exception):
    """`sojourn up` did not become ready; the message is what it said."""


class Stack:
    """`sojourn up --port 0`, ready when the block begins, gone when it ends; `--ephemeral` unless `--data` is given."""

    def __init__(self, *options: str) -> None:
        self._options = options if "--data" in options else ("--ephemeral", *options)

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="sojourn-stack-")
        self.ready_file = Path(self._folder.name) / "ready.json"
        self.output = Path(self._folder.name) / "up.log"
        began = time.monotonic()
        with self.output.open("wb") as out:
            self.process = subprocess.Popen(
                [*_UP, "--ready-file", str(self.ready_file), *self._options],
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        try:
            eventually(self._is_ready, START_SECONDS, "sojourn up is ready")
        except BaseException:
            self.__exit__()
            raise
        self.start_seconds = time.monotonic() - began
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._folder.cleanup()

    def _is_ready(self) -> bool:
        if self.process.poll() is not None:
            raise NotStarted(self.output.read_text(errors="replace").strip())
        return self.ready_file.exists()

    @property
    def ready(self) -> dict[str, Any]:
        """The ready file as it is now: process ids change when a part is started again."""
        found: dict[str, Any] = json.loads(self.ready_file.read_text())
        return found

    def pid(self, part: str) -> int:
        return int(self.ready["pids"][part])

    def signal(self, number: signal.Signals, *parts: str) -> None:
        """Send a signal to parts of this stack; `SIGSTOP` makes one deaf, `SIGCONT` lets it go on."""
        for part in parts:
            os.kill(self.pid(part), number)


T = TypeVar("T")


def eventually(ask: Callable[[], T], seconds: float, what: str) -> T:
    """What `ask` answers, as soon as that is true. Raises TimeoutError, naming `what`, after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (answer := ask()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {seconds:g} s it was not so: {what}")
        time.sleep(0.005)
    return answer
