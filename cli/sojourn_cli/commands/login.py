"""`sojourn login` and `sojourn doctor`: to which server, as whom, and whether all is well."""

import os
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Annotated, Any

import typer

from sojourn_cli.client import DEFAULT_URL, Client, Refused, profile_path, read_profile, read_secret, write_profile
from sojourn_cli.output import Json, print_json, say
from sojourn_shared.clock import system_clock

CLOCK_SECONDS = 5


def login(
    url: Annotated[str, typer.Option(help="The server.")] = DEFAULT_URL,
    token: Annotated[
        str | None, typer.Option(help="An API key: @FILE, or - for standard input; asked for otherwise.")
    ] = None,
) -> None:
    """Keep a server and an API key for this user.

    Example: sojourn login --url https://sojourn.example --token @key.txt
    """
    key = read_secret(token, "API key: ")
    me = Client(url, key).get("/me")
    path = write_profile(url.rstrip("/"), key)
    say(f"You are {me['name']} ({', '.join(me['roles'])}) at {url}. Kept in {path}.")


def doctor(json: Json = False) -> None:
    """Check the way to the server. Address, key, clock, every service, and which computers are connected.

    Example: sojourn doctor
    """
    checks = list(_checks())
    if json:
        print_json(checks)
    else:
        for check in checks:
            print(f"{'ok  ' if check['ok'] else 'FAIL'}  {check['name']}: {check['detail']}")
    if not all(check["ok"] for check in checks):
        raise typer.Exit(1)


def _checks() -> Any:
    source = "SOJOURN_URL" if os.environ.get("SOJOURN_URL") else str(profile_path())
    try:
        client = Client.from_environment()
    except Refused as error:
        yield _check("login", False, str(error))
        return
    yield _check("login", True, f"{client.url}, from {source if read_profile() or 'URL' in source else 'the default'}")
    try:
        answer = client.response("GET", "/me")
    except Refused as error:
        yield _check("server", False, str(error))
        return
    me = answer.json()
    yield _check("server", True, f"answers; you are {me['name']} ({', '.join(me['roles'])})")
    yield _clock(answer.headers.get("date"))
    for name, path in (
        ("policy", "/policies"),
        ("requests", "/requests"),
        ("expiry", "/grants"),
        ("audit", "/audit/events"),
    ):
        try:
            client.get(path, limit=1)
        except Refused as error:
            yield _check(name, False, str(error).splitlines()[0])
        else:
            yield _check(name, True, "answers")
    try:
        lost = [one["name"] for one in client.items("/computers", at_most=500) if not one["connected"]]
    except Refused as error:
        yield _check("computers", False, str(error).splitlines()[0])
        return
    yield _check("computers", not lost, f"not connected: {', '.join(lost)}" if lost else "all are connected")


def _clock(date: str | None) -> dict[str, Any]:
    if not date:
        return _check("clock", True, "the server does not say its time")
    server: datetime = parsedate_to_datetime(date)
    seconds = abs((system_clock() - server).total_seconds())
    return _check("clock", seconds <= CLOCK_SECONDS, f"{seconds:.0f} s from the server's")


def _check(name: str, ok: bool, detail: str) -> dict[str, Any]:
    return {"name": name, "ok": ok, "detail": detail}
