"""What comes out of a scenario: figures with their spread and what was asked of them, decided without I/O."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal


@dataclass(frozen=True, slots=True)
class Want:
    """What a figure must reach."""

    relation: Literal["<=", ">="]
    value: float

    def met_by(self, value: float) -> bool:
        return value <= self.value if self.relation == "<=" else value >= self.value


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure: the median of its samples, and the lowest and highest of them.

    reference: what it was compared with in the same run, empty if it stands alone. subject, measure: whose it is and of
    what, where several have the same measures: the page lays them out as a table.
    """

    name: str
    value: float
    low: float
    high: float
    samples: int
    unit: str
    reference: str = ""
    want: Want | None = None
    subject: str = ""
    measure: str = ""

    @property
    def met(self) -> bool | None:
        return None if self.want is None else self.want.met_by(self.value)

    def to_json(self) -> dict[str, object]:
        return {**asdict(self), "met": self.met}


def at_most(value: float) -> Want:
    return Want("<=", value)


def at_least(value: float) -> Want:
    return Want(">=", value)


def figure(name: str, samples: Sequence[float], unit: str, *, reference: str = "", want: Want | None = None) -> Figure:
    """The median of samples. Raises ValueError if there are none."""
    if not samples:
        raise ValueError(f"{name}: got no samples")
    return Figure(name, statistics.median(samples), min(samples), max(samples), len(samples), unit, reference, want)


def figure_of(
    subject: str, measure: str, samples: Sequence[float], unit: str, *, reference: str = "", want: Want | None = None
) -> Figure:
    """One contender's share of a measure that others have as well."""
    found = figure(f"{subject}, {measure}", samples, unit, reference=reference, want=want)
    return replace(found, subject=subject, measure=measure)


def ratios(ours: Sequence[float], reference: Sequence[float]) -> list[float]:
    """Each round's time over the reference's time of the same round. Raises ValueError if the rounds differ."""
    return [one / other for one, other in zip(ours, reference, strict=True)]


def differences(ours: Sequence[float], reference: Sequence[float]) -> list[float]:
    """Each round's time less the reference's time of the same round."""
    return [one - other for one, other in zip(ours, reference, strict=True)]


def readable(value: float) -> str:
    """Three significant digits, thousands apart, no exponent."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    if size >= 10:
        return f"{value:.1f}"
    if size >= 1:
        return f"{value:.2f}"
    return f"{value:.3g}" if size >= 0.001 else f"{value:.6f}"
