"""Watching processes end, and timing commands, without adding to what is measured."""

import json
import os
import select
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack, suppress
from typing import Any

import psutil


class Watched:
    """Processes that are going to end. Open it before: a pidfd tells the moment, whoever the parent is."""

    def __init__(self, pids: Collection[int]) -> None:
        self._exit = ExitStack()
        self._left = set()
        for pid in pids:
            pidfd = os.pidfd_open(pid)
            self._exit.callback(os.close, pidfd)
            self._left.add(pidfd)

    def gone(self, seconds: float = 10) -> float:
        """The `time.perf_counter` at which the last one had ended. Raises TimeoutError."""
        poll = select.poll()
        for pidfd in self._left:
            poll.register(pidfd, select.POLLIN)
        deadline = time.perf_counter() + seconds
        with self._exit:
            while self._left:
                for pidfd, _ in poll.poll(max(0, deadline - time.perf_counter()) * 1000):
                    poll.unregister(pidfd)
                    self._left.discard(pidfd)
                if time.perf_counter() > deadline:
                    raise TimeoutError(f"after {seconds:g} s {len(self._left)} processes were still there")
        return time.perf_counter()


def timed_in_turn(
    commands: Mapping[str, list[str]], *, rounds: int, environ: Mapping[str, str], uid: int, gid: int
) -> dict[str, list[float]]:
    """How long each command takes from its start to its end, as that user, in ms; one after the other, `rounds` times.

    Measured in a child that is that user and starts them by posix_spawn: no setuid and no fork of a large process is
    measured along. One round before does not count. Raises RuntimeError if one fails.
    """

    def measure() -> dict[str, list[float]]:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
        os.chdir("/")
        taken: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(rounds + 1):
            for name, command in commands.items():
                began = time.perf_counter()
                pid = os.posix_spawn(command[0], command, environ, file_actions=_NOWHERE)
                _, status = os.waitpid(pid, 0)
                taken[name].append((time.perf_counter() - began) * 1000)
                if status:
                    raise RuntimeError(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
        return {name: values[1:] for name, values in taken.items()}

    found: dict[str, list[float]] = _in_a_child(measure)
    return found


def pss_mib(*pids: int) -> float:
    """Proportional memory of these processes and of everything below them."""
    roots = [psutil.Process(pid) for pid in pids]
    total = 0
    for process in {process for root in roots for process in (root, *root.children(recursive=True))}:
        with suppress(psutil.NoSuchProcess):  # a session of PostgreSQL that nobody needed any more
            total += process.memory_full_info().pss
    return total / 2**20


_NOWHERE = [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in (0, 1, 2)]


def _in_a_child(measure: Callable[[], Any]) -> Any:
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.close(reader)
            told = {"found": measure()}
        except Exception as error:
            told = {"problem": str(error)}
        with open(writer, "w") as out:
            json.dump(told, out)
        os._exit(0)
    os.close(writer)
    with open(reader) as told_by_child:
        answer = json.load(told_by_child)
    os.waitpid(child, 0)
    if "problem" in answer:
        raise RuntimeError(answer["problem"])
    return answer["found"]
