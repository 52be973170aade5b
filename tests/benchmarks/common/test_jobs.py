from __future__ import annotations

import pytest

from benchmarks.common.jobs import Method, Plan, PlanChain
from benchmarks.images.__main__ import TEMPLATE
from lightning_autoassist import POLICIES
from tests.helpers import plans


def finish_all(plan, accuracy):
    return plans.finish_all(plan, lambda job: {"accuracy": accuracy(job)})


def plan_of(**changes):
    settings = {
        "stages": (("digits", 0.6), ("digits", 0.4)),
        "methods": ("full", "uniform"),
        "seeds": (0, 1),
        "grid": (0.1, 0.2, 0.4),
        "rates_from": None,
        "template": TEMPLATE,
    }
    return Plan(**{**settings, **changes})


def test_final_runs_use_the_rate_that_was_best_on_the_held_out_images():
    best = {("full", 1.0): 0.4, ("uniform", 0.6): 0.2, ("uniform", 0.4): 0.4}
    order = finish_all(plan_of(), lambda job: -abs(job.learning_rate - best[job.method, job.budget]))
    finals = [job for job in order if job.phase == "final"]
    assert {(job.method, job.budget): job.learning_rate for job in finals} == best
    assert len(finals) == 2 + 2 + 2
    tuned = [(job.method, job.budget, job.learning_rate) for job in order if job.phase == "tune"]
    assert sorted(tuned) == sorted(
        [("full", 1.0, rate) for rate in (0.1, 0.2, 0.4)]
        + [("uniform", 0.6, rate) for rate in (0.1, 0.2, 0.4)]
        + [("uniform", 0.4, rate) for rate in (0.1, 0.2, 0.4)]  # half, same and double of what was best at 0.6
    )


def test_the_whole_grid_goes_on_where_its_edge_is_best():
    best = {("full", 1.0): 0.05, ("uniform", 0.6): 0.2, ("uniform", 0.4): 0.8}
    order = finish_all(plan_of(whole_grid=True), lambda job: -abs(job.learning_rate - best[job.method, job.budget]))
    finals = [job for job in order if job.phase == "final"]
    assert {(job.method, job.budget): job.learning_rate for job in finals} == best
    tuned = [(job.method, job.budget, job.learning_rate) for job in order if job.phase == "tune"]
    assert tuned == [
        *(("full", 1.0, rate) for rate in (0.1, 0.2, 0.4, 0.05)),
        *(("uniform", 0.6, rate) for rate in (0.1, 0.2, 0.4)),
        *(("uniform", 0.4, rate) for rate in (0.1, 0.2, 0.4, 0.8)),
    ]


def test_a_chain_of_plans_runs_what_several_ask_for_once():
    chain = PlanChain((plan_of(seeds=(0,)), plan_of(seeds=(0, 1))))
    order = finish_all(chain, lambda job: job.learning_rate)
    assert len(order) == len(set(order))
    assert set(order) == set(finish_all(plan_of(), lambda job: job.learning_rate))
    assert (chain.metric, chain.template) == ("accuracy", TEMPLATE)


def test_rates_may_come_from_another_data_set():
    plan = plan_of(stages=(("label-noise", 0.6),), rates_from="digits")
    order = finish_all(plan, lambda job: job.learning_rate)
    assert {job.dataset for job in order if job.phase == "tune"} == {"digits"}
    assert {(job.dataset, job.learning_rate) for job in order if job.phase == "final"} == {("label-noise", 0.4)}


def test_a_fixed_rate_is_not_tuned():
    order = finish_all(plan_of(fixed_rate=0.3, seeds=(0,)), lambda job: 0)
    assert [(job.phase, job.method, job.budget, job.learning_rate) for job in order] == [
        ("final", "full", 1.0, 0.3),
        ("final", "uniform", 0.6, 0.3),
        ("final", "uniform", 0.4, 0.3),
    ]


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_is_a_method_with_options(name):
    callback = Method(f"{name}:reweighting=normalized,unfiltered_tail=0.25,assistant=hybrid").callback()
    assert isinstance(callback.policy, POLICIES[name])
    assert (callback.reweighting, callback.unfiltered_tail) == ("normalized", 0.25)
    assert type(callback.assistant).__name__ == "HybridAssistant"


def test_options_of_a_policy_reach_it():
    assert Method("proportional:cap_quantile=0.9").callback().policy.cap_quantile == 0.9
    assert Method("full").callback() is None
    with pytest.raises(ValueError, match="a method is one of full, autoassist"):
        Method("best")
