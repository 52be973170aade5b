"""What stands out among the instances: the hardest, suspected wrong labels, and what was learnt at once.

Shapes: N data set, C classes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Columns = dict[str, npt.NDArray[Any]]

# Visits from which on "never learnt" says something.
MIN_VISITS = 3
HARDEST_SHARE = 0.01
MOST_SUGGESTED = 3  # labels of a class's suspects, on its line


class Findings(NamedTuple):
    """Which instances stand out, each of shape ``(N,)``, bool.

    Attributes:
        is_seen: The model was trained on it at least once.
        is_hardest: No suspect, and among the hundredth with the highest mean loss.
        is_suspect: Never learnt in three visits or more: its label may be wrong.
        is_redundant: Learnt in the first pass and never forgotten.
    """

    is_seen: npt.NDArray[np.bool_]
    is_hardest: npt.NDArray[np.bool_]
    is_suspect: npt.NDArray[np.bool_]
    is_redundant: npt.NDArray[np.bool_]


def findings(columns: Columns) -> Findings:
    """What stands out.

    Args:
        columns: As ``frame.columns_of`` gives them.

    Example:
        >>> seen, forgotten = np.array([4, 4, 0]), np.array([0, 0, 0])
        >>> first, loss = np.array([0, -1, -1]), np.array([0.1, 3.0, np.nan])
        >>> found = findings(
        ...     {"times_seen": seen, "times_forgotten": forgotten, "first_pass_learnt": first, "loss_mean": loss}
        ... )
        >>> found.is_suspect.tolist(), found.is_redundant.tolist()
        ([False, True, False], [True, False, False])
    """
    seen, first = columns["times_seen"], columns["first_pass_learnt"]
    is_seen = seen > 0
    is_suspect = (seen >= MIN_VISITS) & (first < 0)
    order = by_loss(columns)
    is_hardest = np.zeros(len(seen), bool)
    is_hardest[order[~is_suspect[order]][: int(np.ceil(HARDEST_SHARE * is_seen.sum()))]] = True
    return Findings(
        is_seen,
        is_hardest,
        is_suspect,
        is_redundant=(first == 0) & (columns["times_forgotten"] == 0),
    )


def by_loss(columns: Columns) -> npt.NDArray[np.int64]:
    """Places of the instances that were seen, those with the highest mean loss first."""
    losses = columns["loss_mean"]
    order: npt.NDArray[np.int64] = np.argsort(-losses, kind="stable")  # NaN comes last
    return order[: int(np.isfinite(losses).sum())]


def sentences(columns: Columns, found: Findings) -> list[str]:
    """What was found, for a reader."""
    num, num_seen = len(found.is_seen), int(found.is_seen.sum())
    lines = [
        f"{num_seen:,} of {num:,} instances were seen, {columns['times_seen'].sum() / max(num_seen, 1):.1f} times each."
    ]
    if not num_seen:
        return lines
    for which, words in (
        (found.is_redundant, "were learnt in the first pass and never forgotten"),
        (found.is_suspect, f"were seen {MIN_VISITS} times or more and never learnt: look at their labels"),
        (columns["times_forgotten"] > 0, "were learnt and forgotten at least once"),
    ):
        lines.append(f"{int(which.sum()):,} ({which.sum() / num_seen:.1%}) {words}.")
    return lines


def class_lines(columns: Columns, found: Findings, names: list[str]) -> list[list[str]]:
    """A line for each class, those with the largest share of suspected labels first, after a line of headings.

    Args:
        columns: With labels; else there are no lines.
        found: What stands out.
        names: Of the classes; numbers stand for those beyond.
    """
    if "label" not in columns:
        return []
    lines, suggested = [], columns.get("suggested_label")
    for label in np.unique(columns["label"][found.is_seen]):
        of_class = found.is_seen & (columns["label"] == label)
        num = int(of_class.sum())
        suspects = int((of_class & found.is_suspect).sum())
        redundant = int((of_class & found.is_redundant).sum())
        confidence = float(columns["confidence"][of_class].mean())
        cells = [f"{num:,}", f"{suspects:,}", f"{suspects / num:.1%}", f"{redundant / num:.1%}", f"{confidence:.3f}"]
        if suggested is not None:
            cells.append(_most_suggested(suggested[of_class & found.is_suspect], names))
        lines.append((-suspects / num, [name_of(int(label), names), *cells]))
    headings = ["class", "seen", "suspects", "suspects, %", "learnt at once, %", "mean confidence"]
    headings += [] if suggested is None else ["suggested instead"]
    return [headings, *(cells for _, cells in sorted(lines, key=lambda line: line[0]))]


def _most_suggested(suggested: npt.NDArray[Any], names: list[str]) -> str:
    """The labels that are suggested most often, with the numbers of instances."""
    labels, counts = np.unique(suggested[suggested >= 0], return_counts=True)
    most = np.argsort(-counts, kind="stable")[:MOST_SUGGESTED]
    return ", ".join(f"{name_of(int(labels[place]), names)} ({counts[place]:,})" for place in most)


def name_of(label: int, names: list[str]) -> str:
    """A class's name, or its number.

    Example:
        >>> name_of(1, ["cat", "dog"]), name_of(7, ["cat", "dog"]), name_of(-1, ["cat"])
        ('dog', '7', 'none')
    """
    if label < 0:
        return "none"
    return names[label] if label < len(names) else str(label)
