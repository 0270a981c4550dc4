"""`sojourn-agent`: for the administrator of one computer. The person's command is `elevate`."""

import argparse
import os
import sys
from pathlib import Path
from typing import NoReturn

from .config import DEFAULT_CONFIG, DEFAULT_SOCKET, DEFAULT_STATE

USAGE = 64
TOKEN_VARIABLE = "SOJOURN_ENROL_TOKEN"  # noqa: S105 (its name)

_EXAMPLES = """examples:
  sojourn-agent enrol --server https://sojourn.example.com --token @/root/token
  SOJOURN_ENROL_TOKEN=sje_… sojourn-agent enrol --server https://sojourn.example.com
  sojourn-agent run          keep this computer, in the foreground: what the service manager starts
  sojourn-agent status       is it running and connected; which grants are in force, what runs
  sojourn-agent doctor       try every promise on this computer, and the way to the server
  sojourn-agent leave        forget the server: remove keys, state and configuration
"""


def main(arguments: list[str] | None = None) -> int:
    """0: done; 1: it could not be done, and a line says why and what to do; 64: wrong usage."""
    given = _parser().parse_args(arguments)
    if given.command == "run":
        return _run(given.config)
    from . import commands  # noqa: PLC0415 (the keeper needs nothing of it)
    from .enrolment import Problem  # noqa: PLC0415

    try:
        match given.command:
            case "enrol":
                return commands.enrol(given, _token(given))
            case "status":
                return commands.status(given.config, as_json=given.json)
            case "doctor":
                return commands.doctor(given.config, as_json=given.json)
            case _:
                return commands.leave(given.config, sure=given.yes)
    except Problem as problem:
        _complain(str(problem))
        return 1
    except KeyboardInterrupt:
        return 130


def _run(config_file: Path) -> int:
    """Become the keeper. It stays the process that the service manager started."""
    import logging  # noqa: PLC0415

    from .config import BadConfig, read_config  # noqa: PLC0415
    from .keeper import run  # noqa: PLC0415
    from .keeper.state import Unusable  # noqa: PLC0415

    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    try:
        run(read_config(config_file))
    except (BadConfig, Unusable) as error:
        _complain(str(error))
        return 1
    return 0


def _token(given: argparse.Namespace) -> str:
    """From where it was said to be; a literal on the command line can be read by everybody on this computer."""
    told = f"@{given.token_file}" if given.token_file else given.token or os.environ.get(TOKEN_VARIABLE)
    if not told:
        _usage(f"enrol needs a token: --token @FILE, --token - (standard input), or {TOKEN_VARIABLE}")
    try:
        if told == "-":
            return sys.stdin.readline().strip()
        if told.startswith("@"):
            return Path(told[1:]).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        _usage(f"the token cannot be read from {told.removeprefix('@')}: {error}")
    if given.token:
        _complain(
            "warning: a token on the command line can be seen by every user of this computer while this runs; "
            f"next time use --token @FILE, --token - or {TOKEN_VARIABLE}"
        )
    return told


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="sojourn-agent",
        description="The agent of Sojourn on this computer: it elevates what was granted, and ends it in time.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common = _Parser(add_help=False)
    common.add_argument(
        "--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help="its configuration (%(default)s)"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    enrol = commands.add_parser("enrol", parents=[common], help="make this computer one of a server's")
    enrol.add_argument("--server", required=True, metavar="URL", help="the console's address, https")
    enrol.add_argument(
        "--token", metavar="TOKEN", help=f"@FILE, - for standard input, or the token itself; or set {TOKEN_VARIABLE}"
    )
    enrol.add_argument("--token-file", type=Path, metavar="FILE", help="the same as --token @FILE")
    enrol.add_argument("--name", default=os.uname().nodename, help="what people call this computer (%(default)s)")
    enrol.add_argument("--ca", type=Path, metavar="FILE", help="trust the server by these authorities (PEM) alone")
    enrol.add_argument("--state", type=Path, default=DEFAULT_STATE, metavar="DIR", help="keys and state (%(default)s)")
    enrol.add_argument(
        "--socket", type=Path, default=DEFAULT_SOCKET, metavar="PATH", help="where elevate asks (%(default)s)"
    )
    enrol.add_argument("--link-uid", type=int, metavar="UID", help="whom the network part runs as, when run by root")
    enrol.add_argument("--link-gid", type=int, metavar="GID", help="and its group (the same number)")

    commands.add_parser("run", parents=[common], help="keep this computer, in the foreground")
    for name, what in (
        ("status", "is it running and connected, what is in force"),
        ("doctor", "try every promise, and the way to the server"),
    ):
        command = commands.add_parser(name, parents=[common], help=what)
        command.add_argument("--json", action="store_true", help="for programs")
    leave = commands.add_parser("leave", parents=[common], help="forget the server")
    leave.add_argument("--yes", action="store_true", help="do not ask")
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        _usage(f"{message} (see {self.prog} --help)")


def _usage(what: str) -> NoReturn:
    _complain(what)
    sys.exit(USAGE)


def _complain(what: str) -> None:
    sys.stderr.write(f"sojourn-agent: {what}\n")


if __name__ == "__main__":
    sys.exit(main())
