"""The command `sojourn`: every noun, one way of failing, and what other distributions add (`up`)."""

import os
import sys
from importlib.metadata import entry_points

import typer

from .client import Refused, Usage
from .commands import audit, computers, grants, login, policies, requests, settings
from .output import plain

USAGE, REFUSED = 64, 1
TYPER_USAGE = 2

app = typer.Typer(
    name="sojourn",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Just-in-time privilege elevation: policies, requests, grants, and the proof of what happened.",
    epilog="Server and key come from SOJOURN_URL and SOJOURN_TOKEN, or from `sojourn login`. "
    "Example: sojourn requests list --status pending",
)
app.command()(login.login)
app.command()(login.doctor)
for noun, commands in (
    ("policies", policies.app),
    ("computers", computers.app),
    ("requests", requests.app),
    ("grants", grants.grants),
    ("elevations", grants.elevations),
    ("audit", audit.app),
    ("settings", settings.app),
):
    app.add_typer(commands, name=noun)


def main() -> None:
    """Run the command line: usage errors exit 64, refusals 1, each with a sentence."""
    for extension in entry_points(group="sojourn.commands"):
        app.command(extension.name)(extension.load())
    try:
        app(prog_name="sojourn")
    except SystemExit as end:
        sys.exit(USAGE if end.code == TYPER_USAGE else end.code)
    except Usage as error:
        sys.stderr.write(f"sojourn: {plain(str(error))}\n")
        sys.exit(USAGE)
    except Refused as error:
        sys.stderr.write(f"sojourn: {plain(str(error))}\n")
        sys.exit(REFUSED)
    except BrokenPipeError:  # the reader of our output went away: nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


if __name__ == "__main__":
    main()
