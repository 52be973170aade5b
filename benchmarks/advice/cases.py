"""The settings of other benchmarks in which filtering was compared with the shortened schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from benchmarks.common.accuracy_report import full_runs, grouped
from benchmarks.common.jobs import Job, Row
from benchmarks.common.rows import rows_of
from benchmarks.common.runs import job_of
from benchmarks.images.report import IMAGES
from benchmarks.images.runs import ImageJob
from benchmarks.rare_events.plans import PRIORITIZED
from benchmarks.rare_events.report import case_of, settings
from benchmarks.rare_events.runs import METRIC, RareJob
from benchmarks.text.report import TEXTS
from benchmarks.text.runs import TextJob

TABLE = "advice"
# A full run that only looks.
OBSERVING = "uniform:observe=True"
UNIFORM = "uniform"
# What is compared with the shortened schedule: the first of them that has rows.
RULES = (PRIORITIZED, "prioritized", "proportional")


@dataclass(frozen=True)
class Source:
    """A benchmark whose settings are looked at.

    Args:
        table: Of its rows.
        groups: Gives the rows of its final runs, by setting.
        title: Says in few words what the setting of a row is.
        kind: Of its jobs.
        metric: What is better the higher it is, in [0, 1]: a column of its rows.
    """

    table: str
    groups: Callable[[], list[list[Row]]]
    title: Callable[[Row], str]
    kind: type[Job]
    metric: str = "accuracy"


SOURCES = {
    source.table: source
    for source in (
        *(Source(of.table, of.groups, of.case, kind) for of, kind in ((IMAGES, ImageJob), (TEXTS, TextJob))),
        Source("rare_events", settings, case_of, RareJob, METRIC),
    )
}


@dataclass(frozen=True)
class Case:
    """One setting.

    Args:
        source: Where it is from.
        rows: Of its final runs.
    """

    source: Source
    rows: list[Row]

    @property
    def title(self) -> str:
        """What the setting is, in few words."""
        return self.source.title(self.rows[0])

    @property
    def job(self) -> Job:
        """The full run of the first seed, which now observes."""
        job: Job = job_of(full_runs(self.rows)[0], self.source.kind)
        return replace(job, method=OBSERVING)

    def compared(self) -> list[tuple[list[Row], list[Row]]]:
        """Rows of the shortened schedule and of a rule that filters, for each budget that has both."""
        found = {(rows[0]["budget"], rows[0]["method"]): rows for rows in grouped(self.rows, ("budget", "method"))}
        budgets = sorted({budget for budget, method in found if method == UNIFORM}, reverse=True)
        pairs = []
        for budget in budgets:
            rule = next((rule for rule in RULES if (budget, rule) in found), None)
            if rule is not None:
                pairs.append((found[budget, UNIFORM], found[budget, rule]))
        return pairs


def cases() -> Iterator[Case]:
    """All settings with a full run and something to compare."""
    for source in SOURCES.values():
        for rows in source.groups():
            case = Case(source, rows)
            if 0 in full_runs(rows) and case.compared():
                yield case


def observed(case: Case) -> Row | None:
    """The row of a case's observing run; None where it was not run."""
    rows = (row for row in rows_of(TABLE) if row["source"] == case.source.table)
    return next((row for row in rows if job_of(row, case.source.kind) == case.job), None)
