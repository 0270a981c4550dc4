"""`sojourn policies`: what may run elevated, for whom, where, when."""

from typing import Annotated, Any

import typer

from sojourn_cli.client import Client, read_body
from sojourn_cli.output import Json, Limit, confirm, left, print_fields, print_json, print_table, rule, say, users, when
from sojourn_cli.resolve import policy_id

app = typer.Typer(no_args_is_help=True, help="Policies: who may run what, where, when.")

Which = Annotated[str, typer.Argument(metavar="POLICY", help="Its name or id.")]
File = Annotated[str, typer.Option("--file", "-f", help="A JSON file with the policy's body; - is standard input.")]
BODY = (
    'The least that a body has: {"name": "Printers", "targets": {"computer_names": ["desk-12"]}, "users": {"names": '
    '["alice"]}, "duration": {"type": "fixed", "minutes": 30}, "access": {"type": "specific", "rules": [{"type": '
    '"folder_path", "path": "/opt/printers"}]}}. All of it: docs/guides/administrators.md'
)


@app.command("list")
def list_policies(
    status: Annotated[str | None, typer.Option(help="draft, deployed or withdrawn.")] = None,
    computer: Annotated[str | None, typer.Option(help="Only those for this computer (id).")] = None,
    user: Annotated[str | None, typer.Option(help="Only those for this user.")] = None,
    q: Annotated[str | None, typer.Option(help="Only those whose name or description has this text.")] = None,
    limit: Limit = 50,
    json: Json = False,
) -> None:
    """List policies, the newest first.

    Example: sojourn policies list --status deployed --user alice
    """
    client = Client.from_environment()
    found = client.items("/policies", at_most=limit, status=status, computer_id=computer, user=user, q=q)
    if json:
        print_json(found)
        return
    print_table(
        found,
        [
            ("id", lambda p: p["id"]),
            ("name", lambda p: p["name"]),
            ("status", lambda p: p["status"]),
            ("revision", lambda p: p["revision"]),
            ("users", lambda p: users(p["users"])),
            ("time", lambda p: _duration(p["duration"])),
        ],
        "There are no policies like that. Create one with `sojourn policies create -f FILE`.",
    )


@app.command()
def show(policy: Which, json: Json = False) -> None:
    """Show one policy.

    Example: sojourn policies show "Printer drivers, finance"
    """
    client = Client.from_environment()
    _print(client, client.get(f"/policies/{policy_id(client, policy)}"), json)


@app.command(epilog=BODY)
def create(
    file: File,
    deploy: Annotated[bool, typer.Option("--deploy", help="Deploy it immediately.")] = False,
    json: Json = False,
) -> None:
    """Create a policy from a JSON file. It is a draft until it is deployed.

    Example: sojourn policies create -f printer-drivers.json --deploy
    """
    client = Client.from_environment()
    made = client.post("/policies", read_body(file))
    if deploy:
        made = client.post(f"/policies/{made['id']}/deploy")
    say(
        f"{made['name']} is deployed."
        if deploy
        else f"{made['name']} is a draft: `sojourn policies deploy` puts it in force."
    )
    if deploy:
        _warn_of_window(made)
    _print(client, made, json)


@app.command()
def edit(policy: Which, file: File, json: Json = False) -> None:
    """Replace a policy's body. What is deployed stays in force until the new revision is deployed.

    Example: sojourn policies show NAME --json > p.json; $EDITOR p.json; sojourn policies edit NAME -f p.json
    """
    client = Client.from_environment()
    _print(client, client.changed("PUT", f"/policies/{policy_id(client, policy)}", read_body(file)), json)


@app.command()
def deploy(
    policy: Which,
    revision: Annotated[int | None, typer.Option(help="An older revision; the newest otherwise.")] = None,
    json: Json = False,
) -> None:
    """Put a policy in force on its computers, at once.

    Example: sojourn policies deploy "Printer drivers, finance"
    """
    client = Client.from_environment()
    body = {} if revision is None else {"revision": revision}
    path = f"/policies/{policy_id(client, policy)}"
    before = client.get(path)
    done = client.post(f"{path}/deploy", body)
    if done["version"] == before["version"]:
        say(f"{done['name']}: revision {done['deployed_revision']} was deployed already; nothing is changed.")
        say("Its time counts from then. To give it anew: `sojourn policies withdraw`, then deploy.")
    else:
        say(f"{done['name']}: revision {done['deployed_revision']} is deployed.")
    _warn_of_window(done)
    if json:
        print_json(done)


@app.command()
def withdraw(policy: Which, json: Json = False) -> None:
    """End every grant of a policy, everywhere.

    Example: sojourn policies withdraw "Printer drivers, finance"
    """
    client = Client.from_environment()
    done = client.post(f"/policies/{policy_id(client, policy)}/withdraw")
    say(f"{done['name']} is withdrawn.")
    if json:
        print_json(done)


@app.command()
def delete(policy: Which, yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False) -> None:
    """Delete a draft or withdrawn policy. What it did stays in the audit.

    Example: sojourn policies delete "Printer drivers, finance" --yes
    """
    client = Client.from_environment()
    which = policy_id(client, policy)
    if not yes:
        confirm(f"Delete {policy}?")
    client.changed("DELETE", f"/policies/{which}")
    say(f"{policy} is deleted.")


def _print(client: Client, policy: dict[str, Any], json: bool) -> None:
    if json:
        print_json(policy)
        return
    print_fields(
        [
            ("id", policy["id"]),
            ("name", policy["name"]),
            ("description", policy.get("description")),
            ("status", policy["status"]),
            ("revision", f"{policy['revision']}, deployed: {policy['deployed_revision'] or 'none'}"),
            ("computers", "\n".join(_targets(client, policy["targets"]))),
            ("users", users(policy["users"])),
            ("time", _duration(policy["duration"])),
            ("applications", "\n".join(rule(one) for one in policy["access"].get("rules", []))),
            ("children", policy["child_processes"]),
            ("changed", when(policy["updated_at"])),
            ("warnings", "\n".join(one["detail"] for one in policy.get("warnings", []))),
        ]
    )


def _targets(client: Client, targets: dict[str, Any]) -> list[str]:
    """Computers by their names; an id for what is not among the first 500."""
    if targets.get("all"):
        return ["all computers, those too that enrol later"]
    names = {one["id"]: one["name"] for one in client.items("/computers", at_most=500)}
    return [names.get(one, one) for one in targets.get("computer_ids", [])]


def _warn_of_window(policy: dict[str, Any]) -> None:
    until = policy["duration"].get("until") if policy["duration"]["type"] == "window" else None
    if until and left(until) == "over":
        say(f"Its window was over at {when(until)}: it gives nobody anything.")


def _duration(duration: dict[str, Any]) -> str:
    if duration["type"] == "window":
        return f"{when(duration['from'])} until {when(duration['until'])}"
    minutes = f"{duration['minutes']} minute{'s' if duration['minutes'] != 1 else ''}"
    return f"{minutes} from {duration['starts'].removeprefix('on_').replace('_', ' ')}"
