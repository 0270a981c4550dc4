"""One line of a bench's table."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """What was measured; `ratio` of `to`, where one was measured in the same run."""

    what: str
    value: float
    unit: str
    ratio: float | None = None
    to: str = ""


def shown(figure: Figure) -> str:
    number = f"{figure.value:,.0f}" if figure.value >= 100 else f"{figure.value:.3g}"
    ratio = f"{figure.ratio:.3g} × {figure.to}" if figure.ratio is not None else figure.to
    return f"  {figure.what:<52} {number:>11} {figure.unit:<10} {ratio}".rstrip()


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of them lie."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]
