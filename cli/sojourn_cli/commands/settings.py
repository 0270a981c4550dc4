"""`sojourn settings`: how requests are handled, and what is approved without a person."""

import json as json_module
from typing import Annotated, Any

import typer

from sojourn_cli.client import Client, Usage, read_body
from sojourn_cli.output import Json, print_fields, print_json, say

app = typer.Typer(no_args_is_help=True, help="Settings: requests, autonomous approval.")

Which = Annotated[str, typer.Argument(metavar="SETTINGS", help="requests or autonomous-approval.")]
SETTINGS = ("requests", "autonomous-approval")
READ_ONLY = {"id", "version", "created_at", "updated_at", "updated_by", "console_url"}


@app.command()
def show(settings: Which, json: Json = False) -> None:
    """Show settings.

    Example: sojourn settings show autonomous-approval
    """
    found = Client.from_environment().get(_path(settings))
    if json:
        print_json(found)
    else:
        print_fields((name, _shown(value)) for name, value in found.items() if name not in READ_ONLY)


@app.command("set")
def set_settings(
    settings: Which,
    values: Annotated[list[str] | None, typer.Argument(metavar="NAME=VALUE…", help="VALUE is JSON or text.")] = None,
    file: Annotated[str | None, typer.Option("--file", "-f", help="A JSON file with all of them; - is stdin.")] = None,
    json: Json = False,
) -> None:
    """Change some settings, or all of them from a file.

    Example: sojourn settings set autonomous-approval enabled=true 'trusted_users=["alice"]'
    """
    client = Client.from_environment()
    path = _path(settings)
    if file:
        body = read_body(file)
    elif values:
        body = client.get(path) | dict(_pair(one) for one in values)
    else:
        raise Usage("give NAME=VALUE, or -f FILE")
    done = client.changed("PUT", path, body)
    say(f"The settings of {settings} are changed.")
    if json:
        print_json(done)


def _path(settings: str) -> str:
    if settings not in SETTINGS:
        raise Usage(f"there are no settings {settings}: say {' or '.join(SETTINGS)}")
    return f"/settings/{settings}"


def _pair(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise Usage(f"{text} is no NAME=VALUE")
    try:
        return name, json_module.loads(value)
    except json_module.JSONDecodeError:
        return name, value


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json_module.dumps(value, ensure_ascii=False)
