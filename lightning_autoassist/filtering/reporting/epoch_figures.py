"""What loggers get of an epoch, whatever they make of it."""

from __future__ import annotations

from typing import Any, NamedTuple

from lightning_autoassist.filtering.reporting.reliability import Reliability

Gallery = dict[str, list[dict[str, Any]]]
ClassCounts = dict[int, tuple[int, int]]


class EpochFigures(NamedTuple):
    """The figures of an epoch that are no single numbers.

    Attributes:
        histograms: Values by the histogram's name.
        gallery: Instances kept least and most, a row each, by the gallery's name.
        reliability: Of the Assistant's predictions; None where it made none.
        classes: How many candidates of each class were kept and dropped.
    """

    histograms: dict[str, Any]
    gallery: Gallery
    reliability: Reliability | None
    classes: ClassCounts


def as_cell(value: Any) -> str:
    """A value in a cell of a table that is text."""
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/").replace("\n", " ")
