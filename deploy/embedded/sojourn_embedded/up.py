"""`sojourn up`: the whole of Sojourn on this machine, in the foreground."""

import os
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from .data import default_data
from .files import closed_folder
from .launch import become_launcher
from .owners import SERVICES, check_free
from .process import CannotStart
from .stack import Wishes

DATABASE_URL = "SOJOURN_DATABASE_URL"


def up(  # noqa: PLR0917 - a command line, not a call
    data: Annotated[
        Path | None, typer.Option(help=f"Folder that keeps everything between runs.  [default: {default_data()}]")
    ] = None,
    ephemeral: Annotated[bool, typer.Option("--ephemeral", help="Use a temporary folder, and remove it.")] = False,
    port: Annotated[
        int, typer.Option(help="Port of the console; the services take the next four. 0: free ones.")
    ] = 8400,
    no_agent: Annotated[bool, typer.Option("--no-agent", help="Start no agent for this computer.")] = False,
    ready_file: Annotated[
        Path | None, typer.Option(help="Write addresses, the admin's token and process ids here when all is ready.")
    ] = None,
    database_url: Annotated[
        str | None,
        typer.Option(
            help=f"A PostgreSQL of your own: @FILE, - for standard input, or the variable {DATABASE_URL}. "
            "Its role may create databases and roles."
        ),
    ] = None,
    nats_url: Annotated[
        str | None, typer.Option(help="A NATS of your own, with the accounts of `nats-config`.")
    ] = None,
    nats_creds: Annotated[Path | None, typer.Option(help="The folder that `sojourn nats-config` wrote.")] = None,
) -> None:
    """Start everything on this computer; Ctrl-C ends it.

    PostgreSQL, NATS, the five services, the console and an agent.

    Example: sojourn up --port 9000 --data ./sojourn-data
    """
    try:
        wishes = Wishes(
            data=data.absolute() if data else None,
            ephemeral=ephemeral,
            port=port,
            agent=not no_agent,
            ready_file=ready_file.absolute() if ready_file else None,
            database_url=_database_url(database_url),
            nats_url=nats_url,
            nats_creds=nats_creds.absolute() if nats_creds else None,
        )
        _check(wishes)
    except CannotStart as error:
        sys.stderr.write(f"sojourn up: {error}\n")
        raise typer.Exit(1) from None
    become_launcher(wishes, {name: value for name, value in os.environ.items() if name != DATABASE_URL})


def _check(wishes: Wishes) -> None:
    """What can be known before anything is touched. Raises CannotStart."""
    if wishes.data and wishes.ephemeral:
        raise CannotStart("--data keeps what --ephemeral removes: give one of them.")
    if bool(wishes.nats_url) != bool(wishes.nats_creds):
        raise CannotStart("--nats-url and --nats-creds belong together: `sojourn nats-config DIR` writes the folder.")
    if wishes.nats_creds and not (wishes.nats_creds / "provisioner.creds").is_file():
        raise CannotStart(f"{wishes.nats_creds} holds no provisioner.creds: write it with `sojourn nats-config`.")
    if wishes.ready_file and wishes.ready_file.parent != wishes.data and not wishes.ready_file.parent.is_dir():
        raise CannotStart(f"{wishes.ready_file.parent} is no folder: --ready-file needs one that exists.")
    check_free()
    if os.geteuid() == 0:
        _check_installation()


def _check_installation() -> None:
    """Parts that run under uids of their own still read modules, migrations and templates. Raises CannotStart."""
    packages = ["sojourn_shared", "sojourn_agent", *(f"sojourn_{service}" for service in SERVICES)]
    places = [Path(sys.executable), Path(os.path.realpath(sys.executable)), Path(sysconfig.get_path("purelib"))]
    for package in packages:
        spec = find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise CannotStart(f"The part {package} is not installed: run `make setup`.")
        places.append(Path(spec.submodule_search_locations[0]))
    for place in places:
        if closed := closed_folder(place):
            raise CannotStart(
                f"Other users may not enter {closed}, but the parts of Sojourn run as users of their own and are "
                f"installed in {place}: install it elsewhere (say, below /opt), or allow entering (chmod o+x {closed})."
            )


def _database_url(given: str | None) -> str | None:
    """Raises CannotStart for a password that everybody can read in the list of processes."""
    if given is None:
        given = os.environ.get(DATABASE_URL)
    elif given == "-":
        given = sys.stdin.readline().strip()
    elif given.startswith("@"):
        try:
            given = Path(given[1:]).read_text().strip()
        except OSError as error:
            raise CannotStart(f"--database-url: {given[1:]} cannot be read: {error.strerror}.") from None
    elif urlsplit(given).password:
        raise CannotStart(
            "A password on the command line can be read by every user: give --database-url as @FILE, "
            f"as - (standard input), or in the variable {DATABASE_URL}."
        )
    if given is not None and urlsplit(given).scheme not in ("postgresql", "postgres"):
        raise CannotStart("--database-url starts with postgresql://")
    return given
