"""`sojourn computers`: the managed computers, and the tokens that let new ones in."""

from datetime import timedelta
from typing import Annotated

import typer

from sojourn_cli.client import Client
from sojourn_cli.output import Json, Limit, confirm, print_fields, print_json, print_table, say, when
from sojourn_cli.resolve import computer_id
from sojourn_shared.clock import rfc3339, system_clock

app = typer.Typer(no_args_is_help=True, help="Computers: what is managed, and what each can promise.")


@app.command("list")
def list_computers(
    q: Annotated[str | None, typer.Option(help="Only those whose name has this text.")] = None,
    connected: Annotated[bool | None, typer.Option("--connected/--lost", help="Only those (not) connected.")] = None,
    limit: Limit = 50,
    json: Json = False,
) -> None:
    """List computers.

    Example: sojourn computers list --lost
    """
    client = Client.from_environment()
    found = client.items(
        "/computers", at_most=limit, q=q, connected=None if connected is None else str(connected).lower()
    )
    if json:
        print_json(found)
        return
    print_table(
        found,
        [
            ("id", lambda c: c["id"]),
            ("name", lambda c: c["name"]),
            ("status", lambda c: c["status"]),
            ("connected", lambda c: c["connected"]),
            ("platform", lambda c: f"{c['platform'].get('distribution')} {c['platform'].get('version')}"),
            ("agent", lambda c: c["agent_version"]),
        ],
        "There are no computers like that. Let one in with `sojourn computers token NAME`.",
    )


@app.command()
def show(
    computer: Annotated[str, typer.Argument(metavar="COMPUTER", help="Its name or id.")], json: Json = False
) -> None:
    """Show one computer and what it can promise. Also who is root there anyway, what it holds and runs.

    Example: sojourn computers show desk-12
    """
    client = Client.from_environment()
    which = computer_id(client, computer)
    found, state = client.get(f"/computers/{which}"), client.get(f"/computers/{which}/state")
    if json:
        print_json({**found, "state": state})
        return
    promises = [f"{name}: {one['word']} – {one['why']}" for name, one in (found["guarantees"] or {}).items()]
    print_fields(
        [
            ("id", found["id"]),
            ("name", found["name"]),
            ("status", found["status"]),
            ("connected", found["connected"]),
            ("last seen", when(state["last_seen_at"])),
            ("document", f"wanted {state['desired_version']}, applied {state['applied_version']}"),
            ("guarantees", "\n".join(promises)),
            (
                "standing rights",
                "\n".join(f"{r['user']} through {r['through']}" for r in found["standing_rights"] or []),
            ),
            ("running", len(state["running"]) if isinstance(state["running"], list) else state["running"]),
        ]
    )


@app.command()
def token(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the token is for: people read it in the audit.")],
    uses: Annotated[int, typer.Option(min=1, help="How many computers it may let in.")] = 1,
    hours: Annotated[int, typer.Option(min=1, help="How long it is valid.")] = 24,
    json: Json = False,
) -> None:
    """Make a token that lets a computer in; it is shown once.

    Example: sojourn computers token "desk 12"
    """
    client = Client.from_environment()
    until = rfc3339(system_clock() + timedelta(hours=hours))
    made = client.post("/enrolment-tokens", {"name": name, "max_uses": uses, "expires_at": until})
    if json:
        print_json(made)
        return
    print(made["token"])
    say(f"Valid until {when(made['expires_at'])}. Write it to a file on the computer, and run there, as root:")
    say(f"  sojourn-agent enrol --server {client.url} --token @FILE")


@app.command()
def remove(
    computer: Annotated[str, typer.Argument(metavar="COMPUTER", help="Its name or id.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Decommission a computer for good. Every grant there is revoked, its credentials are never renewed.

    Example: sojourn computers remove desk-12 --yes
    """
    client = Client.from_environment()
    which = computer_id(client, computer)
    if not yes:
        confirm(f"Remove {computer} for good?")
    client.changed("DELETE", f"/computers/{which}")
    say(f"{computer} is decommissioned.")
