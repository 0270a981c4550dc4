"""One line of the table, and the numbers in it."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """What was measured. `beside`: a peer or a limit in words; `other`: its value, in the same unit.

    A peer was measured in the same run. What the project asks of itself says `limit` or `goal`.
    """

    what: str
    value: float
    unit: str
    beside: str = ""
    other: float | None = None

    @property
    def ratio(self) -> float | None:
        """The figure divided by what it stands beside."""
        return self.value / self.other if self.other else None


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of them lie."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def number(value: float) -> str:
    """Three digits that say something: `19,400`, `231`, `14.6`, `0.52`."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def cells(figure: Figure) -> tuple[str, str, str, str]:
    """What, figure, beside, ratio: the columns of the table."""
    other = f"{number(figure.other)} {figure.unit}" if figure.other is not None else ""
    beside = ": ".join(filter(None, (figure.beside, other)))
    ratio = "" if figure.ratio is None else f"{number(figure.ratio)} ×"
    return figure.what, f"{number(figure.value)} {figure.unit}", beside, ratio
