"""`sojourn audit`: what happened, and the proof that nobody changed the record."""

import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from sojourn_cli.client import Client, Refused, read_file, writing
from sojourn_cli.output import Json, Limit, print_json, print_table, say, when
from sojourn_cli.resolve import policy_id
from sojourn_shared.ledger import Checkpoint, LedgerError, NoteKey, open_checkpoint, verify_lines

app = typer.Typer(no_args_is_help=True, help="Audit: what happened, and the proof of it.")


@app.command("list")
def list_events(
    policy: Annotated[str | None, typer.Option(help="Only what belongs to this policy (name or id).")] = None,
    request: Annotated[str | None, typer.Option(help="Only what belongs to this request (id).")] = None,
    grant: Annotated[str | None, typer.Option(help="Only what belongs to this grant (id).")] = None,
    user: Annotated[str | None, typer.Option(help="Only what is about this user.")] = None,
    kind: Annotated[str | None, typer.Option("--type", help="Only this type, such as grant.revoked.")] = None,
    limit: Limit = 50,
    json: Json = False,
) -> None:
    """List events, the newest first.

    Example: sojourn audit list --policy "Printer drivers, finance"
    """
    client = Client.from_environment()
    found = client.items(
        "/audit/events",
        at_most=limit,
        policy_id=policy and policy_id(client, policy),
        request_id=request,
        grant_id=grant,
        user=user,
        type=kind,
    )
    if json:
        print_json(found)
        return
    print_table(
        found,
        [
            ("seq", lambda e: e["seq"]),
            ("time", lambda e: when(e["time"])),
            ("type", lambda e: e["type"]),
            ("what happened", lambda e: e["summary"]),
        ],
        "Nothing like that happened.",
    )


@app.command()
def report(
    policy: Annotated[str, typer.Argument(metavar="POLICY", help="Its name or id.")], json: Json = False
) -> None:
    """The events of one policy in the order of time, with totals.

    Example: sojourn audit report "Printer drivers, finance"
    """
    client = Client.from_environment()
    found = client.get(f"/audit/policies/{policy_id(client, policy)}")
    print_json(found) if json else _print_report(found)


@app.command()
def export(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file; standard output otherwise.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Write the newest checkpoint here too: keep it elsewhere.")
    ] = None,
) -> None:
    """Write the whole ledger as JSON lines. Each line is the bytes that were hashed.

    Example: sojourn audit export -o ledger.jsonl --checkpoint ledger.checkpoint
    """
    client = Client.from_environment()
    note = client.get("/audit/checkpoint")
    if output is None:
        for piece in client.stream("/audit/export", format="jsonl"):
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
    else:
        written = 0
        temporary = output.with_name(output.name + ".part")
        with writing(temporary), temporary.open("wb") as file:
            for piece in client.stream("/audit/export", format="jsonl"):
                written += file.write(piece)
                _progress(f"{written / 1e6:.1f} MB")
        with writing(output):
            temporary.replace(output)  # a broken connection leaves no half export under the name asked for
        _progress("")
        say(f"{output}: {written} bytes.")
    if checkpoint is not None:
        with writing(checkpoint):
            checkpoint.write_text(note)


@app.command()
def key(json: Json = False) -> None:
    """Print the ledger's public key. Keep it outside: whoever asks the accused for the key proves nothing.

    Example: sojourn audit key > ledger.key
    """
    found = Client.from_environment().get("/audit/keys")
    if json:
        print_json(found)
    else:
        print("\n".join(found["keys"]))


@app.command()
def verify(
    ledger: Annotated[Path | None, typer.Option(help="An export; the server's ledger otherwise.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="The checkpoint to hold it against; the newest.")] = None,
    key: Annotated[
        str | None, typer.Option(help="The ledger's public key, or @FILE. Without it the server's word is taken.")
    ] = None,
    since: Annotated[
        list[Path] | None, typer.Option(help="A checkpoint kept from before: its entries must still be the same.")
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(help="Write the checkpoint that was verified here, for next time.")
    ] = None,
    json: Json = False,
) -> None:
    """Prove that the ledger is what was signed. Every entry is there, in order, unchanged.

    With --ledger, --checkpoint and --key no server is asked. A single altered byte is found and named.

    Example: sojourn audit verify --since last-month.checkpoint --keep today.checkpoint
    """
    client = None if ledger and checkpoint and key else Client.from_environment()
    began = time.perf_counter()
    try:
        keys = [NoteKey.from_text(one) for one in _keys(client, key)]
        note = checkpoint.read_text() if checkpoint else _from(client).get("/audit/checkpoint")
        signed = open_checkpoint(note, keys)
        earlier = [open_checkpoint(read_file(str(path)), keys) for path in since or []]
        lines = _lines(ledger.open("rb") if ledger else _from(client).stream("/audit/export", format="jsonl"))
        count = verify_lines(lines, signed, earlier)
    except LedgerError as error:
        raise Refused(f"NOT verified: {error}") from None
    except OSError as error:
        raise Refused(f"{error.filename} cannot be read: {error.strerror}") from None
    _say_verified(signed, count, time.perf_counter() - began, earlier, json)
    if keep:
        with writing(keep):
            keep.write_text(note)
    if key is None:
        say("The key came from the server itself. Keep it elsewhere, and give it with --key next time:")
        say(f"  {keys[0].text}")


def _say_verified(signed: Checkpoint, count: int, seconds: float, earlier: list[Checkpoint], json: bool) -> None:
    if json:
        print_json({"verified": signed.size, "after_checkpoint": count - signed.size, "seconds": round(seconds, 3)})
        return
    print(f"Verified: {signed.size} entries are exactly what was signed ({seconds:.2f} s).")
    for one in earlier:
        print(f"  The first {one.size} are the same as when they were signed before.")
    if count > signed.size:
        print(f"  {count - signed.size} more came after this checkpoint.")


def _keys(client: Client | None, given: str | None) -> list[str]:
    if given is not None:
        return [(read_file(given[1:]) if given.startswith("@") else given).strip()]
    return list(_from(client).get("/audit/keys")["keys"])


def _from(client: Client | None) -> Client:
    assert client is not None
    return client


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of a byte stream, without their newlines."""
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        yield from whole
    if rest:
        yield rest


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


def _print_report(report: dict[str, Any]) -> None:
    totals = report["totals"]
    counts = [f"{name.replace('_', ' ')}: {value}" for name, value in totals.items() if isinstance(value, int)]
    say(", ".join([*counts, f"users: {', '.join(totals['users']) or 'none'}"]))
    print_table(
        report["timeline"],
        [("time", lambda e: when(e["time"])), ("type", lambda e: e["type"]), ("what happened", lambda e: e["summary"])],
        "Nothing happened under this policy yet.",
    )
