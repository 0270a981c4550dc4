"""`sojourn requests`: what people ask for, and the decisions."""

from typing import Annotated, Any

import typer

from sojourn_cli.client import Client
from sojourn_cli.output import Json, Limit, command_line, left, print_fields, print_json, print_table, rule, say, when
from sojourn_cli.resolve import whole_id

app = typer.Typer(no_args_is_help=True, help="Requests: who asks for what and why; approve or decline.")

Which = Annotated[str, typer.Argument(metavar="REQUEST", help="Its id.")]


@app.command("list")
def list_requests(
    status: Annotated[str | None, typer.Option(help="pending, approved, declined, cancelled or expired.")] = None,
    user: Annotated[str | None, typer.Option(help="Only those of this user.")] = None,
    limit: Limit = 50,
    json: Json = False,
) -> None:
    """List requests, the newest first.

    Example: sojourn requests list --status pending
    """
    client = Client.from_environment()
    found = client.items("/requests", at_most=limit, status=status, user=user)
    if json:
        print_json(found)
        return
    print_table(
        found,
        [
            ("id", lambda r: r["id"]),
            ("status", lambda r: r["status"]),
            ("user", lambda r: r["user"]),
            ("computer", lambda r: r.get("computer_name") or r["computer_id"]),
            ("application", lambda r: command_line(r["application"])),
            ("minutes", lambda r: r["duration_minutes"]),
            ("reason", lambda r: r["justification"]),
            ("waits", lambda r: left(r["expires_at"]) if r["status"] == "pending" else "-"),
        ],
        "There are no requests like that.",
    )


@app.command()
def show(request: Which, json: Json = False) -> None:
    """Show one request with everything that is needed to judge it.

    Example: sojourn requests show 0199…
    """
    client = Client.from_environment()
    _print(client.get(f"/requests/{whole_id(request)}"), json)


@app.command()
def approve(
    request: Which,
    note: Annotated[str | None, typer.Option(help="What the person should know.")] = None,
    minutes: Annotated[int | None, typer.Option(min=1, help="Shorter than asked for.")] = None,
    match: Annotated[
        str | None,
        typer.Option(help="What to match: file_hash, verified_executable, product, vendor or folder_path."),
    ] = None,
    any_arguments: Annotated[bool, typer.Option("--any-arguments", help="Not only those asked for.")] = False,
    uses: Annotated[int | None, typer.Option(min=1, help="How often it may be started.")] = None,
    json: Json = False,
) -> None:
    """Approve a request; the person's command starts at once.

    Example: sojourn requests approve 0199… --minutes 10 --note "only today"
    """
    body = {
        "note": note,
        "duration_minutes": minutes,
        "match": match,
        "arguments": "any" if any_arguments else None,
        "max_uses": uses,
    }
    _decide(request, "approve", {name: value for name, value in body.items() if value is not None}, json)


@app.command()
def decline(
    request: Which,
    note: Annotated[str, typer.Option(help="Why, or what to do instead: the person reads it.")],
    json: Json = False,
) -> None:
    """Decline a request; the person reads the note.

    Example: sojourn requests decline 0199… --note "use the packaged version"
    """
    _decide(request, "decline", {"note": note}, json)


@app.command()
def cancel(request: Which, json: Json = False) -> None:
    """Take back a request of your own.

    Example: sojourn requests cancel 0199…
    """
    _decide(request, "cancel", {}, json)


def _decide(request: str, decision: str, body: dict[str, Any], json: bool) -> None:
    done = Client.from_environment().post(f"/requests/{whole_id(request)}/{decision}", body)
    if json:
        print_json(done)
        return
    say(f"{done['user']}'s request for {command_line(done['application'])} is {done['status']}.")


def _print(request: dict[str, Any], json: bool) -> None:
    if json:
        print_json(request)
        return
    application, decision = request["application"], request["decision"] or {}
    signature = application.get("signature") or {}
    print_fields(
        [
            ("id", request["id"]),
            ("status", request["status"]),
            ("user", request["user"]),
            ("computer", request.get("computer_name") or request["computer_id"]),
            ("application", command_line(application)),
            ("sha256", application.get("sha256")),
            ("package", application.get("package")),
            ("vendor", application.get("vendor")),
            ("signature", signature.get("status")),
            ("folder", application.get("working_directory")),
            ("minutes", request["duration_minutes"]),
            ("reason", request["justification"]),
            ("asked", when(request["created_at"])),
            ("waits until", when(request["expires_at"]) if request["status"] == "pending" else None),
            ("checks", "\n".join(_check(one) for one in request["checks"] or [])),
            ("decided by", decision.get("by_name") and f"{decision['by_name']}, {when(decision['at'])}"),
            ("note", decision.get("note")),
            ("rules", "\n".join(rule(one) for one in decision.get("rules") or [])),
            ("grant", request["grant_id"]),
        ]
    )


def _check(check: dict[str, Any]) -> str:
    return f"{'passed' if check['passed'] else 'failed'}  {check['name']}: {check['detail']}"
