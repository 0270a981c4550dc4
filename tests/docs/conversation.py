"""What a guide shows, run as it is shown: an administrator's terminal and people's, on one stack.

A fenced block that follows one of these comments is run, the others are only read:

    <!-- runs -->                   by the administrator; SOJOURN_URL and SOJOURN_TOKEN are set
    <!-- runs: alice -->            by a user of the computer
    <!-- runs: alice 77 -->         and its last command ends with that status; every other one with 0
    <!-- runs: alice waits 124 -->  its last command goes on while the next blocks are run, and ends with that status
    <!-- file: policy.json -->      written to the administrator's working folder

In a block `$ ` begins a command, `> ` goes on with it, and every other line is output: it must be there, in that order,
and nothing else. `…` stands for what differs each time; a line of its own, for any lines.
"""

import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

PATIENCE = 30.0
"""Seconds for one command."""

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_BLOCK = re.compile(r"^<!-- (runs|file)(?:: ([^>]*?))? -->\n```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass
class Command:
    """One command as a guide shows it, with the output that it shows; None: the guide shows none."""

    text: str
    shown: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Block:
    """`who` runs `commands`; the last one ends with `status`, and is not waited for when it `waits`."""

    line: int
    who: str
    commands: Sequence[Command]
    status: int = 0
    waits: bool = False


@dataclass(frozen=True)
class File:
    line: int
    name: str
    content: str


def read(text: str) -> Iterator[Block | File]:
    """Everything in a guide that is to be run or written, in its order."""
    for found in _BLOCK.finditer(text):
        kind, told, body = found[1], (found[2] or "").split(), found[3]
        line = text[: found.start()].count("\n") + 1
        if kind == "file":
            yield File(line, told[0], body)
            continue
        numbers = [int(word) for word in told if word.isdecimal()]
        names = [word for word in told if not word.isdecimal() and word != "waits"]
        yield Block(
            line,
            names[0] if names else "administrator",
            list(_commands(body)),
            status=numbers[0] if numbers else 0,
            waits="waits" in told,
        )


def _commands(body: str) -> Iterator[Command]:
    command: Command | None = None
    for line in body.splitlines():
        if line.startswith("$ "):
            if command:
                yield command
            command = Command(line[2:])
        elif command is None:
            raise ValueError(f"a block that runs begins with `$ `, not with {line!r}")
        elif line.startswith("> ") and not command.shown:
            command.text += f"\n{line[2:]}"
        else:
            command.shown.append(line)
    if command:
        yield command


def fits(shown: Sequence[str], said: Sequence[str]) -> bool:
    """Whether what a guide shows is what was said; columns may be wider or narrower."""
    if not shown:
        return not said
    first, *rest = shown
    if first.strip() == "…":
        return any(fits(rest, said[skipped:]) for skipped in range(len(said) + 1))
    return bool(said) and _pattern(first).fullmatch(_narrow(said[0])) is not None and fits(rest, said[1:])


def _pattern(line: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in _narrow(line).split("…")))


def _narrow(line: str) -> str:
    return " ".join(line.split())


class Shell:
    """One person's shell for a whole guide: variables and files stay from block to block."""

    def __init__(self, environment: Mapping[str, str], folder: Path, **how: Any) -> None:
        self._near, far = pty.openpty()  # so that tables come as on a terminal; what is typed comes by a pipe
        self._shell = subprocess.Popen(
            ["/bin/sh"],
            stdin=subprocess.PIPE,
            stdout=far,
            stderr=far,
            env=dict(environment),
            cwd=folder,
            process_group=0,
            **how,
        )
        os.close(far)
        self._unread = ""
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._shell.stdin is not None
        self._shell.stdin.close()
        try:
            self._shell.wait(0.5)
        except subprocess.TimeoutExpired:
            os.killpg(self._shell.pid, signal.SIGKILL)  # with the command that it waits for
            self._shell.wait()
        os.close(self._near)

    def types(self, command: str) -> None:
        assert self._shell.stdin is not None
        self._count += 1
        line = f"{{ {command}\n}} </dev/null\nprintf '\\n%s %s\\n' 'end of {self._count}:' $?\n"
        self._shell.stdin.write(line.encode())
        self._shell.stdin.flush()

    def reads(self) -> tuple[int, list[str]]:
        """The exit status and the output of the last command. Raises TimeoutError with what was said so far."""
        end = re.compile(rf"\n?^end of {self._count}: (\d+)\n", re.MULTILINE)
        until = time.monotonic() + PATIENCE
        while (found := end.search(self._unread)) is None:
            if not select.select([self._near], [], [], max(0.0, until - time.monotonic()))[0]:
                raise TimeoutError(f"not done after {PATIENCE:g} s; so far:\n{self._unread}")
            self._unread += os.read(self._near, 65536).decode(errors="replace").replace("\r\n", "\n")
        said, self._unread = self._unread[: found.start()], self._unread[found.end() :]
        lines = [_CONTROL.sub("", line.rpartition("\x1b[K")[2]).strip("\r") for line in said.split("\n")]
        while lines and not lines[-1].strip():
            lines.pop()
        return int(found[1]), lines


class Conversation:
    """A guide while it is run: one shell for each of its people. `waited`: returns once somebody's command waits."""

    def __init__(self, shells: Callable[[str], Shell], names: Mapping[str, str], waited: Callable[[str], None]) -> None:
        self._open, self._names, self._waited = shells, names, waited
        self._shells: dict[str, Shell] = {}
        self._waiting: dict[str, Block] = {}
        self.faults: list[str] = []
        self.transcript: list[tuple[str, list[str]]] = []
        """Each command with what it really said."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for shell in self._shells.values():
            shell.__exit__()

    def run(self, block: Block) -> None:
        shell = self._shells.get(block.who) or self._shells.setdefault(block.who, self._open(block.who))
        self._end(block.who)
        *before, last = block.commands
        for command in before:
            self._run(shell, block, command, 0)
        if block.waits:
            shell.types(self._named(last.text))
            self._waiting[block.who] = block
            self._waited(block.who)
        else:
            self._run(shell, block, last, block.status)

    def end(self) -> None:
        """Hear of everything that still waits."""
        for who in list(self._waiting):
            self._end(who)

    def _end(self, who: str) -> None:
        if (block := self._waiting.pop(who, None)) is not None:
            self._hear(self._shells[who], block, block.commands[-1], block.status)

    def _run(self, shell: Shell, block: Block, command: Command, status: int) -> None:
        shell.types(self._named(command.text))
        self._hear(shell, block, command, status)

    def _hear(self, shell: Shell, block: Block, command: Command, expected: int) -> None:
        status, said = shell.reads()
        self.transcript.append((command.text, said))
        if status != expected:
            self.faults.append(_fault(block, command, said, f"ended with {status}, not {expected}"))
        elif command.shown and not fits([self._named(line) for line in command.shown], said):
            self.faults.append(_fault(block, command, said, "says something else than the guide shows"))

    def _named(self, text: str) -> str:
        for name, real in self._names.items():
            text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", real, text)
        return text


def _fault(block: Block, command: Command, said: Sequence[str], what: str) -> str:
    return "\n".join([f"line {block.line}: `{command.text}` {what}:", *(f"    {line}" for line in said)])
