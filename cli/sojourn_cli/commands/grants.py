"""`sojourn grants` and `sojourn elevations`: what is in force, and what ran."""

import time
from typing import Annotated, Any

import typer

from sojourn_cli.client import Client
from sojourn_cli.output import (
    Json,
    Limit,
    command_line,
    left,
    print_fields,
    print_json,
    print_table,
    rule,
    say,
    users,
    when,
)
from sojourn_cli.resolve import whole_id

CONFIRMED_WITHIN = 1.0
"""Seconds; a computer that is connected confirms an end within a tenth of it."""

grants = typer.Typer(no_args_is_help=True, help="Grants: what is in force; revoke.")
elevations = typer.Typer(no_args_is_help=True, help="Elevations: what ran elevated, and how it ended.")

Which = Annotated[str, typer.Argument(metavar="GRANT", help="Its id.")]


@grants.command("list")
def list_grants(
    status: Annotated[str | None, typer.Option(help="scheduled, ready, active, expired or revoked.")] = None,
    delivery: Annotated[
        str | None, typer.Option(help="What the computer confirmed: pending, applied, failed …")
    ] = None,
    user: Annotated[str | None, typer.Option(help="Only those that name this user.")] = None,
    computer: Annotated[str | None, typer.Option(help="Only those on this computer (id).")] = None,
    limit: Limit = 50,
    json: Json = False,
) -> None:
    """List grants, the newest first.

    Example: sojourn grants list --status active
    """
    client = Client.from_environment()
    found = client.items("/grants", at_most=limit, status=status, delivery=delivery, user=user, computer_id=computer)
    if json:
        print_json(found)
        return
    print_table(
        found,
        [
            ("id", lambda g: g["id"]),
            ("status", lambda g: g["status"]),
            ("computer says", lambda g: g["delivery"]),
            ("users", lambda g: users(g["users"])),
            ("computer", lambda g: g.get("computer_name") or g["computer_id"]),
            ("for", lambda g: g["policy_name"] or f"request {g['request_id']}"),
            ("left", lambda g: left(g["until"]) if g["in_force"] else "-"),
            ("uses", lambda g: g["uses"]),
        ],
        "There are no grants like that.",
    )


@grants.command()
def show(grant: Which, json: Json = False) -> None:
    """Show one grant.

    Example: sojourn grants show 0199…
    """
    _print(Client.from_environment().get(f"/grants/{whole_id(grant)}"), json)


@grants.command()
def revoke(
    grant: Which,
    reason: Annotated[str, typer.Option(help="The person reads it on the terminal.")],
    grace: Annotated[int | None, typer.Option(min=0, help="Seconds to finish in; none otherwise.")] = None,
    json: Json = False,
) -> None:
    """End a grant now, with everything that runs under it.

    Example: sojourn grants revoke 0199… --reason "wrong computer"
    """
    body = {"reason": reason} | ({} if grace is None else {"grace_seconds": grace})
    client = Client.from_environment()
    path = f"/grants/{whole_id(grant)}"
    done = client.post(f"{path}/revoke", body)
    deadline = time.monotonic() + CONFIRMED_WITHIN
    while done["delivery"] == "ending" and time.monotonic() < deadline:
        time.sleep(0.05)
        done = client.get(path)
    if json:
        print_json(done)
        return
    confirmed = "the computer confirmed it" if done["delivery"] == "ended" else "the computer has not confirmed it yet"
    say(f"The grant is {done['status']}; {confirmed} ({done['delivery']}).")
    if (why := (done["revoked"] or {}).get("reason")) and why != reason:
        say(f"It was revoked before, for another reason: {why}")


@elevations.command("list")
def list_elevations(
    running: Annotated[bool | None, typer.Option("--running/--ended", help="Only those that (no longer) run.")] = None,
    user: Annotated[str | None, typer.Option(help="Only those of this user.")] = None,
    grant: Annotated[str | None, typer.Option(help="Only those under this grant (id).")] = None,
    limit: Limit = 50,
    json: Json = False,
) -> None:
    """List what ran elevated, the newest first.

    Example: sojourn elevations list --running
    """
    client = Client.from_environment()
    asked = None if running is None else str(running).lower()
    found = client.items("/elevations", at_most=limit, running=asked, user=user, grant_id=grant)
    if json:
        print_json(found)
        return
    print_table(
        found,
        [
            ("id", lambda e: e["id"]),
            ("user", lambda e: e["user"]),
            ("application", lambda e: command_line(e["application"])),
            ("started", lambda e: when(e["started_at"])),
            ("ended", lambda e: when(e["ended_at"])),
            ("cause", lambda e: e["cause"]),
            ("status", lambda e: e["exit_status"]),
            ("processes ended", lambda e: len(e["processes_ended"] or [])),
            ("ms", lambda e: e["kill_ms"]),
        ],
        "Nothing like that ran.",
    )


def _print(grant: dict[str, Any], json: bool) -> None:
    if json:
        print_json(grant)
        return
    revoked = grant["revoked"] or {}
    print_fields(
        [
            ("id", grant["id"]),
            ("status", grant["status"]),
            ("computer says", grant["delivery"]),
            ("failure", grant["failure"]),
            ("computer", grant.get("computer_name") or grant["computer_id"]),
            ("users", users(grant["users"])),
            ("policy", grant["policy_name"]),
            ("request", grant["request_id"]),
            ("from", when(grant["from"])),
            (
                "until",
                (
                    when(grant["until"])
                    + (f" ({left(grant['until'])})" if grant["status"] in {"scheduled", "ready", "active"} else "")
                )
                if grant["until"]
                else "counts from first use",
            ),
            ("applications", "\n".join(rule(one) for one in grant["rules"])),
            ("uses", grant["uses"]),
            ("revoked", revoked and f"{when(revoked['at'])} by {revoked['by_name']}: {revoked['reason']}"),
            ("ended", grant["ended_at"] and when(grant["ended_at"])),
        ]
    )
