"""What `sojourn up` becomes: a small process that starts the parts and keeps them up."""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from .data import open_data
from .ports import choose_ports
from .process import CannotStart, call_this_process
from .stack import Stack, Wishes
from .supervisor import Stopped


def become_launcher(wishes: Wishes, environ: Mapping[str, str]) -> NoReturn:
    """Replace this process: the same pid, 10 MiB less. The wishes may hold a password, so they go through a pipe."""
    reader, writer = os.pipe()
    with open(writer, "w", encoding="utf-8") as out:
        json.dump(asdict(wishes), out, default=str)
    os.set_inheritable(reader, True)
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-P", "-m", "sojourn_embedded.launch", str(reader)], dict(environ))  # noqa: S606


def main() -> int:
    """0: ended because somebody asked; 1: it could not start, and a sentence says why and what to do."""
    call_this_process("sojourn-up")
    with open(int(sys.argv[1]), encoding="utf-8") as given:
        wishes = _wishes(json.load(given))
    try:
        run(wishes)
    except CannotStart as error:
        sys.stderr.write(f"sojourn up: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def run(wishes: Wishes) -> None:
    """Bring everything up, keep it up, and end it when asked. Raises CannotStart."""
    os.umask(0o022)
    data = open_data(wishes.data, ephemeral=wishes.ephemeral)
    try:
        ports = choose_ports(wishes.port)
        say(f"Sojourn starts in {data.path}")
        stack = Stack(data, ports, wishes, say)
        with stack.supervisor.heeding_signals():
            try:
                stack.bring_up()
                stack.supervisor.run()
            except Stopped:
                say("  ending …")
            finally:
                stack.stop()
    finally:
        data.close()


def say(text: str) -> None:
    """One line for people. If nobody reads any more, everything goes on."""
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except OSError:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def _wishes(told: dict[str, Any]) -> Wishes:
    for name in ("data", "ready_file", "nats_creds"):
        told[name] = Path(told[name]) if told[name] else None
    return Wishes(**told)


if __name__ == "__main__":
    sys.exit(main())
