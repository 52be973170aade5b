"""What was predicted of filtering beside what came of it."""

import pytest

from benchmarks.advice.cases import OBSERVING, SOURCES, Case, cases
from benchmarks.advice.report import advice_table, outcome
from benchmarks.common.rows import rows_of


def rows(method, budget, accuracies):
    return [
        {"method": method, "budget": budget, "seed": seed, "accuracy": accuracy}
        for seed, accuracy in enumerate(accuracies)
    ]


def case_with(lost, gained):
    full, shortened = rows("full", 1.0, [0.9, 0.8]), rows("uniform", 0.6, [0.9 - lost, 0.8 - lost])
    filtered = rows("prioritized", 0.6, [row["accuracy"] + gained for row in shortened])
    return Case(SOURCES["images"], [*full, *shortened, *filtered])


@pytest.mark.parametrize(
    ("concentration", "lost", "gained", "came_true"),
    [
        (12.0, 0.05, 0.03, "yes"),
        (12.0, 0.05, 0.0, "no"),
        (2.0, 0.05, 0.03, "no"),
        (2.0, 0.001, 0.0, "yes"),
        (4.0, 0.001, 0.0, "-"),  # nothing to be gained
    ],
)
def test_advice_is_held_against_what_filtering_gained(concentration, lost, gained, came_true):
    case = case_with(lost, gained)
    [(shortened, filtered)] = case.compared()
    cells = outcome({"concentration": concentration}, case, shortened, filtered).split(" | ")
    assert cells[0] == "0.6"
    assert cells[1].startswith(f"{-100 * lost:+.2f}")
    assert cells[2].startswith(f"{100 * gained:+.2f}")
    assert cells[3] == came_true


def test_settings_without_a_filtered_run_are_left_out():
    case = Case(SOURCES["images"], [*rows("full", 1.0, [0.9]), *rows("uniform", 0.6, [0.8])])
    assert case.compared() == []


def test_every_setting_of_the_rows_observes_at_the_full_runs_rate():
    found = list(cases())
    assert {case.source.table for case in found} == set(SOURCES)
    for case in found:
        full = next(row for row in case.rows if row["method"] == "full" and row["seed"] == 0)
        assert (case.job.method, case.job.budget, case.job.learning_rate) == (OBSERVING, 1.0, full["learning_rate"])
    assert advice_table().count("\n| ") >= len(rows_of("advice"))
