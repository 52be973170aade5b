"""The table of what was tried with other people's modules and losses, and whether its rows are whole."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.rows import RESULTS, rows_of
from benchmarks.outside.cases import all_cases

TABLE = "compatibility"
PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"
FEWEST = 60
ALWAYS_FILLED = ("package", "version", "name", "kind", "seconds")
FILLED = ("bit_equal", "bit_equal_captured", "filtering", "diagnosis", "why")  # where nothing failed
MOST_CHARACTERS = 240
_ROWS_EACH = re.compile(r", one row each(?=;|$)")

Row = dict[str, Any]
Key = tuple[str, str]


def rows_by_case(folder: Path = RESULTS) -> dict[Key, Row]:
    """The rows by package and name."""
    return {(row["package"], row["name"]): row for row in rows_of(TABLE, folder)}


# ---- the check


def gaps(rows: Mapping[Key, Row], cases: Sequence[Key]) -> list[str]:
    """Why committed rows are not whole, in a line each: too few, missing, of no case, not filled, not bit equal."""
    found = [f"{' '.join(key)}: no row" for key in cases if key not in rows]
    found += [f"{' '.join(key)}: a row of a case that is not listed" for key in rows if key not in cases]
    for key, row in rows.items():
        found += [f"{' '.join(key)}: {gap}" for gap in _gaps_of(row)]
    if len(rows) < FEWEST:
        found.append(f"{len(rows)} rows, fewer than {FEWEST}")
    return found


def _gaps_of(row: Row) -> list[str]:
    names = ALWAYS_FILLED if row.get("error") else (*ALWAYS_FILLED, *FILLED)
    found = [f"{name} is not filled" for name in names if row.get(name) in (None, "")]
    return found + [f"{name} is false" for name in ("bit_equal", "bit_equal_captured") if row.get(name) is False]


def faults(rows: Mapping[Key, Row]) -> list[str]:
    """What whole rows show to be wrong, in a line each."""
    return [f"{' '.join(key)}: {fault}" for key, row in rows.items() for fault in _faults_of(row)]


def _faults_of(row: Row) -> list[str]:
    if row.get("error"):
        return [row["error"]]
    found = ["the loss is not finite"] if row.get("finite") is False else []
    if row.get("steps") != row.get("steps_due"):
        found.append(f"{row['steps']} steps where {row['steps_due']} are due")
    if row.get("diagnosis") != row.get("filtering"):
        found.append(f"filtering is {row['filtering']}, and the diagnosis says {row.get('diagnosis')}")
    if row.get("filtering") == "on" and row.get("losses_equal") is not True:
        found.append("filtering is on, and a captured loss is not the instance's own")
    return found


# ---- the page


def write_page() -> None:
    """Write docs/compatibility.md from the rows."""
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())


def is_stale() -> bool:
    """Whether the page is not what the rows say."""
    return not PAGE.exists() or PAGE.read_text() != page()


def page() -> str:
    """The page's text."""
    rows = [row for key, row in rows_by_case().items() if key in all_cases()]
    parts = [INTRODUCTION, *_counts(rows), "", "## What was tried", "", *_table(rows), "", _measured(rows), ""]
    return "\n".join([*parts, *_shortcomings(rows)])


INTRODUCTION = """\
# Compatibility

<!-- Written by `python -m benchmarks.report` from benchmarks/results/compatibility.jsonl. -->

Modules and losses of other packages, each trained for some steps without any change to them. Models are small and begin
at random numbers; data are made. For each one:

- **Nothing changes where nothing is filtered.** With `policy="uniform"` and a budget of 1, and again with a policy that
  keeps everything while losses are captured, the weights after training equal those of plain Lightning bit for bit.
- **It trains with the default policy** and a budget of 0.6 for the number of steps that is due. *On*: instances are
  filtered. *Off*: no loss of single instances was found; training goes on with every instance, and one warning tells
  why.
- **The captured loss is the instance's own.** Where filtering is on, the loss captured for each instance of shuffled
  batches is compared with what plain Lightning computes for a batch of that instance alone, without dropout and
  with BatchNorm's running statistics. *By hand*: the loss depends on the other instances of the batch, and is compared
  with the rows of the same batch. A factor that all instances share is allowed.

`make outside` runs all of it, in an environment of its own.
"""


def _counts(rows: Sequence[Row]) -> list[str]:
    num_failed = sum(bool(row.get("error")) for row in rows)
    num_on = sum(row.get("filtering") == "on" for row in rows)
    kinds = Counter(row["kind"] for row in rows)
    return [
        f"{len(rows)} were tried: {kinds['module']} modules and {kinds['loss']} losses. "
        f"{num_on} are filtered, {len(rows) - num_on - num_failed} train with every instance"
        f"{f', {num_failed} failed' if num_failed else ''}."
    ]


def _table(rows: Sequence[Row]) -> list[str]:
    head = ["| package | module or loss | unchanged | filtering | own loss | why |", "|---|---|---|---|---|---|"]
    return head + [f"| {' | '.join(_cells(row))} |" for row in sorted(rows, key=_order)]


def _shortcomings(rows: Sequence[Row]) -> list[str]:
    found = faults({(row["package"], row["name"]): row for row in sorted(rows, key=_order)})
    return ["## What falls short", "", *(f"- {_short(fault)}" for fault in found), ""] if found else []


def _order(row: Row) -> tuple[str, ...]:
    return row["package"], row["kind"], row["name"].lower()


def _cells(row: Row) -> list[str]:
    if row.get("error"):
        return [row["package"], f"`{row['name']}`", "?", "?", "?", _short(row["error"])]
    is_unchanged = row["bit_equal"] and row["bit_equal_captured"]
    return [
        row["package"],
        f"`{row['name']}`",
        "yes" if is_unchanged else "no",
        row["filtering"],
        _own_loss(row),
        _short(_ROWS_EACH.sub("", row["why"])),
    ]


def _own_loss(row: Row) -> str:
    if row["filtering"] == "off":
        return "-"
    if not row["losses_equal"]:
        return "no"
    return "yes" if row["reference"] == "alone" else row["reference"]


def _short(text: str) -> str:
    text = " ".join(text.replace("|", "\\|").split())
    return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS].rsplit(" ", 1)[0] + " …"


def _measured(rows: Sequence[Row]) -> str:
    packages = sorted({f"{row['package']} {row['version']}" for row in rows})
    torches = sorted({f"torch {row['versions']['torch']}" for row in rows})
    lightnings = sorted({f"Lightning {row['versions']['pytorch-lightning']}" for row in rows})
    return f"Versions: {', '.join([*packages, *torches, *lightnings])}."
