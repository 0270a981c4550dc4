"""`sojourn nats-config DIR`: the accounts and credentials for a NATS that somebody else runs."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from .files import own, write_secret
from .process import Identity


def nats_config(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Made if it is not there; closed to other users.")],
) -> None:
    """Write what a NATS server of your own needs. That is the accounts, and a credentials file for each service.

    Include accounts.conf in the server's configuration (nats.conf is a whole one), and give the folder to
    `sojourn up --nats-url URL --nats-creds DIR`. Run again, it keeps every key.

    Example: sojourn nats-config /etc/sojourn/nats
    """
    # The frame takes a second to import, and every `sojourn` command imports this module.
    from sojourn_shared.clock import system_clock  # noqa: PLC0415
    from sojourn_shared.service.nats_accounts import USERS, Accounts  # noqa: PLC0415

    kept = folder / "accounts.json"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        own(folder, Identity.caller())
        before = kept.read_text() if kept.exists() else None
        accounts = Accounts.kept(before, system_clock())
        write_secret(kept, accounts.to_keep)
        write_secret(folder / "accounts.conf", accounts.accounts_config())
        write_secret(folder / "nats.conf", accounts.server_config(port=4222, store=folder.absolute() / "jetstream"))
        write_secret(folder / "agent-issuer.json", accounts.agent_issuer.json())
        for user in USERS:
            write_secret(folder / f"{user}.creds", accounts.credentials(user))
    except ValueError:
        sys.stderr.write(f"sojourn nats-config: {kept} is damaged: restore it, or move it away to make new keys.\n")
        raise typer.Exit(1) from None
    except OSError as error:
        sys.stderr.write(f"sojourn nats-config: {error.filename} cannot be written: {error.strerror}.\n")
        raise typer.Exit(1) from None
    typer.echo(f"{folder} holds accounts.conf for the server and {len(USERS)} credentials files.")
