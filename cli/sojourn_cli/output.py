"""What a command prints: a table for people, JSON for programs, and nothing raw that could steer a terminal."""

import json
import shlex
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sojourn_shared.clock import system_clock

from .client import Refused

Json = Annotated[bool, typer.Option("--json", help="Print JSON, as the API answers it.")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="How many at most.")]

UNLIMITED = 10_000  # characters: as wide as the table wants to be
Column = tuple[str, Callable[[Mapping[str, Any]], Any]]


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column], empty: str) -> None:
    """A table on a terminal that is wide enough, else a block for each row; tab-separated lines in a pipe.

    `empty` is the sentence when there is nothing.
    """
    if not rows:
        sys.stderr.write(f"{empty}\n")
        return
    cells = [[plain(read(row)) for _, read in columns] for row in rows]
    if not sys.stdout.isatty():
        for line in cells:
            print("\t".join(line))
        return
    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for title, _ in columns:
        table.add_column(title, overflow="fold", no_wrap=title == "id")
    for line in cells:
        table.add_row(*(_coloured(cell) for cell in line))
    console = Console()
    if console.measure(table, options=console.options.update(max_width=UNLIMITED)).maximum <= console.width:
        console.print(table)
        return
    for number, line in enumerate(cells):
        if number:
            print()
        print_fields((title, cell) for (title, _), cell in zip(columns, line, strict=True))


def print_fields(fields: Iterable[tuple[str, Any]]) -> None:
    """One thing, a line for each of its fields."""
    shown = [(name, plain(value)) for name, value in fields if value not in (None, [], {}, "")]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        first, *rest = value.splitlines() or [""]
        print(f"{name:<{width}}  {first}")
        for line in rest:
            print(f"{'':<{width}}  {line}")


def say(sentence: str) -> None:
    """A sentence for people, on standard error, so that standard output stays for programs."""
    sys.stderr.write(f"{plain(sentence)}\n")


def confirm(question: str) -> None:
    """Go on only after a yes. Raises Refused."""
    try:
        said = typer.confirm(question, err=True)
    except typer.Abort:
        say("")
        raise Refused("nothing was done: nobody said yes; --yes does not ask") from None
    if not said:
        raise Refused("nothing was done")


def plain(value: Any) -> str:
    """Text that is safe on a terminal: control and direction marks are shown, not obeyed."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "".join(_shown(character) for character in str(value))


def _shown(character: str) -> str:
    if character == "\n" or unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Co"}:
        return character
    return f"\\x{ord(character):02x}" if ord(character) < 256 else f"\\u{ord(character):04x}"


_COLOURS = {
    "approved": "green",
    "active": "green",
    "deployed": "green",
    "applied": "green",
    "pending": "yellow",
    "ending": "yellow",
    "ready": "cyan",
    "failed": "red",
    "declined": "red",
    "revoked": "red",
}


def _coloured(cell: str) -> Text:
    return Text(cell, style=_COLOURS.get(cell, ""))


def when(text: str | None) -> str:
    """A moment in the reader's own zone, to the second."""
    if not text:
        return "-"
    return datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def left(until: str | None) -> str:
    """How long until then: `4m 10s`; `over` when it has passed."""
    if not until:
        return "-"
    seconds = int((datetime.fromisoformat(until) - _now()).total_seconds())
    if seconds <= 0:
        return "over"
    hours, rest = divmod(seconds, 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}h {minutes:02}m" if hours else f"{minutes}m {seconds:02}s" if minutes else f"{seconds}s"


def _now() -> datetime:
    return system_clock().astimezone(UTC)


def command_line(application: Mapping[str, Any]) -> str:
    """An application with its arguments, as one would type it."""
    return shlex.join([application["path"], *(application.get("arguments") or [])])


def users(of: Mapping[str, Any]) -> str:
    return "all users" if of["all"] else ", ".join(of["names"])


def rule(of: Mapping[str, Any]) -> str:
    """A rule in one line: `file hash 3f2a…`, `folder /opt/tools (and below)`."""
    match of["type"]:
        case "file_hash":
            said = f"file hash {of['sha256'][:12]}…"
        case "folder_path":
            said = f"folder {of['path']}" + (" and below" if of.get("recursive", True) else "")
        case "clsid":
            said = f"CLSID {of['clsid']}"
        case kind:
            said = f"{kind.replace('_', ' ')} {of.get('executable') or of.get('product') or of.get('vendor')}"
    if of.get("executable") and of["type"] in {"file_hash", "folder_path"}:
        said += f", {of['executable']}"
    if (arguments := of.get("arguments")) is not None:
        said += " with " + (
            " ".join("…" if isinstance(one, dict) else repr(one) for one in arguments) or "no arguments"
        )
    return said
