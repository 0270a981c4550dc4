"""`make demo`: the whole story in under a minute, each line what really happened, with its measured time."""

import os
import pwd
import signal
import sys
import time
from pathlib import Path

from sojourn_embedded.process import CannotStart

from .chapters import Cast, as_root, for_everybody
from .people import Administrator, Person, ThrowAwayUsers
from .stack import NotStarted, Stack
from .telling import Telling

USERS = ("sojourn-alice", "sojourn-bob")


def main() -> None:
    """Tell the story; exit 1 with a sentence when something was not as it is told."""
    telling = Telling()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that users and stack are removed then too
    began = time.monotonic()
    try:
        if os.geteuid() == 0:
            with ThrowAwayUsers(*USERS):
                _tell(telling, *USERS)
        else:
            me = pwd.getpwuid(os.geteuid()).pw_name
            telling.note(
                "Without root the agent can elevate nothing: policies taking effect, revokes and ends on a running "
                "program are not shown. `sudo make demo` shows everything."
            )
            _tell(telling, me, me)
    except (NotStarted, CannotStart, FileExistsError) as error:
        sys.exit(f"demo: {error}")
    except (AssertionError, TimeoutError) as error:
        sys.exit(f"demo: that was not as it should be: {error}")
    telling.end(time.monotonic() - began)


def _tell(telling: Telling, alice: str, bob: str) -> None:
    telling.chapter("One command starts everything")
    with Stack() as stack, Administrator(stack) as admin:
        parts = ", ".join(name for name in stack.ready["pids"])
        telling.line(f"{parts} are ready", stack.start_seconds)
        cast = Cast(stack, admin, Person(alice, stack), Person(bob, stack), Path(stack.ready_file).parent)
        for chapter in as_root if os.geteuid() == 0 else for_everybody:
            telling.chapter(chapter.__doc__ or "")
            chapter(cast, telling)


if __name__ == "__main__":
    main()
