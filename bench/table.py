"""The figures for people, and for programs."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from figures import Figure, cells
from rich.console import Console
from rich.table import Table

COLUMNS = ("", "what", "figure", "beside it", "ratio")
RIGHT = {2, 4}
Found = Sequence[tuple[str, Figure]]
"""Figures with the part that each is of."""


def show(about: dict[str, object], found: Found) -> None:
    """One table: drawn on a terminal, plain columns elsewhere."""
    rows, before = [], ""
    for part, figure in found:
        rows.append(("" if part == before else part, *cells(figure)))
        before = part
    words = (
        f"{about['cores']} cores of {about['processor']}, {about['memory_gib']} GiB, Linux {about['kernel']}, "
        f"Python {about['python']}; a synced write takes {about['fdatasync_us']} µs; load before {about['load_before']}"
    )
    if sys.stdout.isatty():
        _draw(rows, words)
    else:
        _print(rows, words)


def write_json(file: str, about: dict[str, object], found: Found) -> None:
    """`file` may be `-`: standard output."""
    what, figures = "", []
    for part, figure in found:
        what = figure.what or what  # a second comparison of the figure above
        figures.append({"part": part, **asdict(figure), "what": what.strip(), "ratio": figure.ratio})
    text = json.dumps({"machine": about, "figures": figures}, indent=2, ensure_ascii=False) + "\n"
    if file == "-":
        print(text, end="")
    else:
        Path(file).write_text(text)


def _draw(rows: Sequence[Sequence[str]], words: str) -> None:
    table = Table(title="Sojourn, measured just now", caption=words)
    for index, name in enumerate(COLUMNS):
        table.add_column(name, justify="right" if index in RIGHT else "left", style="bold" if index == 2 else "")
    for row in rows:
        if row[0] and table.rows:
            table.add_section()
        table.add_row(*row)
    Console().print(table)


def _print(rows: Sequence[Sequence[str]], words: str) -> None:
    lines = [COLUMNS, *rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(COLUMNS))]
    for line in lines:
        aligned = (
            line[index].rjust(width) if index in RIGHT else line[index].ljust(width)
            for index, width in enumerate(widths)
        )
        print("  ".join(aligned).rstrip())
    print(f"\n{words}")
