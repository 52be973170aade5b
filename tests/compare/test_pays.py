"""Whether filtering pays is said from what was measured, and of no more than was measured."""

import pytest

from lightning_autoassist.compare.comparison import compare
from lightning_autoassist.compare.logged_runs import LoggedRun, Row
from lightning_autoassist.compare.tables import as_text

SEEDS = {0: 0.80, 1: 0.90, 2: 0.70}


def run(name, policy, final, *, seed=0, budget=0.25, concentration=None, num_instances=100):
    values = {"acc": final} | ({} if concentration is None else {"autoassist/concentration": concentration})
    rows = (Row(9.0, None, {"acc": 0.1, "autoassist/concentration": 1.0}), Row(19.0, None, values))
    settings = {"policy": {"name": policy}, "budget": budget, "num_instances": num_instances}
    return LoggedRun(name, name, rows, {"seed": seed, "autoassist": settings})


def runs_at(gains, **options):
    """A shortened schedule, and runs that are better by so much, seed by seed."""
    uniform = [run("short", "UniformPolicy", final, seed=seed, **options) for seed, final in SEEDS.items()]
    ours = [run("ours", "MyPolicy", SEEDS[seed] + gain, seed=seed, **options) for seed, gain in enumerate(gains)]
    return [*uniform, *ours]


@pytest.mark.parametrize(
    ("gains", "mode", "said"),
    [
        ((0.05, 0.06, 0.05), "max", "filtering pays: ours is better than the shortened schedule short"),
        ((-0.05, -0.06, -0.05), "max", "filtering does not pay: the shortened schedule short is better than ours"),
        ((-0.05, -0.06, -0.05), "min", "filtering pays: ours is better"),
        ((0.03, -0.02, 0.01), "max", "filtering is not shown to pay: the runs do not tell ours and the shortened"),
        ((0.02, 0.01, 0.05), "max", "filtering is not shown to pay"),  # above two standard errors, of three runs
        ((0.0, 0.0, 0.0), "max", "filtering is not shown to pay"),
        ((0.05,), "max", "filtering is not shown to pay"),  # 0.85 against 0.8, 0.9 and 0.7
    ],
)
def test_the_shortened_schedule_of_the_same_budget_tells(gains, mode, said):
    if len(gains) == 1:
        said = "it is open whether filtering pays"
    verdict, _ = compare(runs_at(gains), mode=mode).verdicts
    assert verdict.startswith(f"At budget 0.25, {said}")
    assert "Does it pay?" in as_text(compare(runs_at(gains)))


def test_the_interval_is_students():
    verdict, _ = compare(runs_at((0.05, 0.06, 0.07))).verdicts
    assert "in acc is +0.06 (95 % interval +0.0352 to +0.0848)" in verdict  # 4.30 standard errors of 0.01 / sqrt(3)


@pytest.mark.parametrize(
    "others",
    [
        [run("short", "UniformPolicy", 0.8, budget=0.5)],  # another budget
        [run("short", "UniformPolicy", 0.8, num_instances=7)],  # other data
        [run("full", "UniformPolicy", 0.8, budget=1.0), run("other", "OtherPolicy", 0.8)],
        [LoggedRun("plain", "plain", (Row(9.0, None, {"acc": 0.5}),))],
    ],
)
def test_nothing_is_said_of_runs_that_do_not_compare(others):
    found = compare([run("ours", "MyPolicy", 0.9), *others]).verdicts
    assert not [verdict for verdict in found if "At budget" in verdict]


def test_what_the_gradient_lets_expect_is_one_sentence_for_all_alike():
    runs = [run("a", "P", 0.5, concentration=3.2), run("b", "Q", 0.5, concentration=4.0)]
    runs += [run("c", "R", 0.5, concentration=12.0), run("c", "R", 0.5, concentration=14.0)]
    some, few = compare(runs).verdicts
    assert some.startswith("The gradient's concentration at the end of a, b is 3.2 to 4.0: a part of the instances")
    assert few.startswith("The gradient's concentration at the end of c is 13.0: few instances")


def test_of_many_groups_some_verdicts_are_shown():
    runs = [run("short", "UniformPolicy", 0.5), *(run(f"r{n}", f"P{n}", 0.5) for n in range(12))]
    verdicts = compare(runs).verdicts
    assert len([verdict for verdict in verdicts if verdict.startswith("At budget")]) == 10
    assert "2 more groups have a shortened schedule beside them." in verdicts
