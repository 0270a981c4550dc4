"""`make bench`: how fast Sojourn is, beside peers and limits measured in the same run."""

import argparse
import importlib
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import structlog
from figures import Figure
from ground import QUIET, Ground, machine
from table import show, write_json

from sojourn_embedded.demo.stack import NotStarted
from sojourn_embedded.process import CannotStart
from sojourn_shared.clock import rfc3339, system_clock


@dataclass(frozen=True)
class Part:
    """One module of this folder: `measure(ground)` yields its figures."""

    name: str
    what: str
    needs_root: bool = False


# `start` comes first: what it measures would share memory with whatever else is loaded already.
PARTS = (
    Part("start", "everything up, cold and warm, and its memory"),
    Part("revoke", "a revoke until the process tree is gone", needs_root=True),
    Part("approve", "an approval until the waiting application runs", needs_root=True),
    Part("elevate", "a covered command beside the bare one", needs_root=True),
    Part("expiry", "grants that are due at once"),
    Part("ledger", "events into the ledger"),
    Part("matching", "which of many rules matches"),
)

HELP = """
parts:
{parts}

examples:
  make bench                                      everything, in under four minutes
  make bench ARGS="--only revoke --only approve"  two parts
  make bench ARGS="--json figures.json"           the figures in a file as well (- for standard output alone)
  sudo make bench                                 the parts marked with * elevate for real, and need root
"""


def main() -> None:
    """Exit 1 with a sentence when something could not be measured; what was measured is shown all the same."""
    options = parsed()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that stack and user are removed then too
    screen = Screen()
    quiet = structlog.make_filtering_bound_logger(logging.ERROR)
    structlog.configure(wrapper_class=quiet, logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    chosen = [part for part in PARTS if not options.only or part.name in options.only]
    about = machine() | {"at": rfc3339(system_clock())}
    if float(str(about["load_before"])) > QUIET:
        screen.line(f"the machine is busy (load {about['load_before']}): figures are worse than on a quiet one")
    found: list[tuple[str, Figure]] = []
    problem = None
    try:
        with Ground(screen.progress, screen.line) as ground:
            for part in chosen:
                found += [(part.name, figure) for figure in measured(part, ground, screen)]
    except (NotStarted, CannotStart, FileExistsError, TimeoutError, RuntimeError, AssertionError) as error:
        problem = f"bench: {error}"
    except KeyboardInterrupt:
        problem = "bench: stopped"
    screen.progress("")
    if options.json:
        write_json(options.json, about, found)
    if options.json != "-" and found:
        show(about, found)
    sys.exit(problem)


def parsed() -> argparse.Namespace:
    listed = "\n".join(f"  {part.name:<8} {part.what}{' *' if part.needs_root else ''}" for part in PARTS)
    parser = argparse.ArgumentParser(
        prog="python bench",
        description=__doc__,
        epilog=HELP.format(parts=listed),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [part.name for part in PARTS]
    parser.add_argument("--only", metavar="PART", action="append", choices=names, help="this part; may be repeated")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    return parser.parse_args()


def measured(part: Part, ground: Ground, screen: "Screen") -> Iterator[Figure]:
    """The figures of one part, as they come."""
    if part.needs_root and os.geteuid() != 0:
        screen.line(f"{part.name}: not measured, it elevates for real and needs root (sudo make bench)")
        return
    began = time.monotonic()
    screen.begin(part)
    yield from importlib.import_module(part.name).measure(ground)
    screen.line(f"{part.name}: measured in {time.monotonic() - began:.0f} s")


class Screen:
    """How far we are, on standard error: one line that changes on a terminal, one line a part elsewhere."""

    def __init__(self) -> None:
        self._alive = sys.stderr.isatty()
        self._part = ""

    def begin(self, part: Part) -> None:
        self._part = part.name
        if self._alive:
            self.progress(part.what)
        else:
            self.line(f"{part.name}: {part.what} …")

    def progress(self, text: str) -> None:
        if self._alive:
            self._say(f"\r\033[K{self._part}: {text} …" if text else "\r\033[K")

    def line(self, text: str) -> None:
        self._say(f"\r\033[K{text}\n" if self._alive else f"{text}\n")

    @staticmethod
    def _say(text: str) -> None:
        with suppress(OSError):
            sys.stderr.write(text)
            sys.stderr.flush()


if __name__ == "__main__":
    main()
