"""How the demo speaks: chapters, and lines with the time that each took."""

import sys

from rich.console import Console


class Telling:
    """Prints to a terminal in colour, to a pipe plainly."""

    def __init__(self) -> None:
        self._out = Console(highlight=False, soft_wrap=True)
        self._chapters = 0

    def chapter(self, title: str) -> None:
        self._chapters += 1
        self._out.print(f"\n[bold]{self._chapters}. {title.strip()}[/bold]")

    def line(self, text: str, seconds: float | None = None) -> None:
        """One thing that happened; `seconds` is how long it took, measured."""
        took = "" if seconds is None else f"{seconds * 1e3:,.0f} ms" if seconds < 1 else f"{seconds:.2f} s"
        self._out.print("  [green]✓[/green] ", end="")
        self._out.print(f"{took:>9}  ", end="", style="cyan")
        self._out.print(text, markup=False)

    def screen(self, text: str) -> None:
        """What somebody sees on their terminal."""
        for line in text.replace("\r", "").strip().splitlines():
            self._out.print(f"               │ {line}", style="dim", markup=False)

    def note(self, text: str) -> None:
        self._out.print(f"[yellow]![/yellow] {text}")

    def end(self, seconds: float) -> None:
        self._out.print(f"\nTold in {seconds:.0f} s. Everything that was started is gone again.")
        sys.stdout.flush()
