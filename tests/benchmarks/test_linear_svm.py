from __future__ import annotations

import subprocess
import sys
import zipfile
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from benchmarks.common import rows as result_rows
from benchmarks.common.runs import Runner
from benchmarks.linear_svm import __main__ as command
from benchmarks.linear_svm import data as svm_data
from benchmarks.linear_svm import methods as svm_methods
from benchmarks.linear_svm import optimum as svm_optimum
from benchmarks.linear_svm import report as svm_report
from benchmarks.linear_svm import runs as svm_runs
from benchmarks.linear_svm.methods import METHODS
from benchmarks.linear_svm.model import LinearSVM
from lightning_autoassist import AutoAssistPolicy, InstanceLossCapture, Instances, ShrinkingBatchSampler
from tests.helpers.paths import ROOT
from tests.helpers.plans import finish_all

L2 = 1e-2


@pytest.fixture
def small():
    """200 instances of 5 features, with a constant one."""
    rng = np.random.default_rng(1)
    is_positive = rng.random(200) < 0.4
    features = rng.normal(size=(200, 5)) + np.where(is_positive, 0.5, -0.5)[:, None]
    return svm_data.scaled(features, is_positive)


def job_of(**changes):
    job = svm_runs.SvmJob("final", "small", L2, 1.0, "autoassist", 0.3, 0)
    return replace(job, **changes)


def run(data, **changes):
    job = job_of(**changes)
    objective = svm_optimum.Objective(data, job.l2)
    return svm_runs.run_job(job, data, objective, svm_optimum.optimum(objective))


# ---- the data


def test_norms_are_at_most_1_and_the_bias_is_a_feature(small):
    assert small.features.dtype == small.labels.dtype == torch.float32
    assert small.norms.max().item() == pytest.approx(1, abs=1e-6)
    assert set(small.labels.tolist()) == {-1.0, 1.0}
    assert len(set(small.features[:, -1].tolist())) == 1
    # Each other feature goes from 0 to the same highest value.
    assert small.features.amin(0)[:-1].abs().max() == 0
    torch.testing.assert_close(small.features.amax(0), small.features[0, -1].expand(6))


def test_covtype_is_read_from_the_wheel_without_installing_it(tmp_path):
    lines = ["a,b,Cover_Type", "1,4,2", "3,4,5", "2,8,2"]
    with zipfile.ZipFile(tmp_path / "scikit_multiflow-0.4.1-cp37-cp37m-any.whl", "w") as wheel:
        wheel.writestr("skmultiflow/data/datasets/covtype.csv", "\n".join(lines) + "\n")
    data = svm_data.covtype(tmp_path)
    assert data.labels.tolist() == [1, -1, 1]
    largest = np.sqrt(0.25 + 1 + 1)
    expected = np.array([[0, 0, 1], [1, 0, 1], [0.5, 1, 1]]) / largest
    np.testing.assert_allclose(data.features.numpy(), expected, rtol=1e-6)


def test_a_missing_wheel_says_what_to_run(tmp_path, monkeypatch):
    # pip itself, with nowhere to look.
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    message = r"(?s)wheel of scikit-multiflow==0.4.1, which is not in .*run `python -m pip download .*--data-dir"
    with pytest.raises(FileNotFoundError, match=message):
        svm_data.covtype(tmp_path)


def test_the_command_ends_with_that_message(tmp_path):
    arguments = ["-m", "benchmarks.linear_svm", "--dataset", "covtype", "--data-dir", str(tmp_path)]
    (tmp_path / "FashionMNIST").write_text("in the way of a download")
    environment = {"PATH": "", "PIP_NO_INDEX": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "--data-dir" in done.stderr or "dataset-fashion-mnist" in done.stderr


# ---- the minimum


def test_the_objective_is_the_one_that_the_module_minimises(small):
    module = LinearSVM(6, L2)
    torch.nn.init.normal_(module.weight)
    loss = module.training_step(tuple(small), 0)
    objective = svm_optimum.Objective(small, L2)
    weight = module.weight.detach().numpy()
    assert loss.item() == pytest.approx(objective(weight), rel=1e-5)
    assert objective.values(np.stack([weight, 0 * weight])).tolist() == pytest.approx([loss.item(), 1], rel=1e-5)


def test_the_minimum_is_that_of_an_independent_solver(small):
    """As a quadratic program in weights and slacks: SLSQP on few enough instances."""
    few = type(small)(small.features[:40], small.labels[:40])
    objective = svm_optimum.Objective(few, L2)
    solved = svm_optimum.optimum(objective)
    rows = objective.labels[:, None] * objective.features

    def value(both):
        return L2 / 2 * both[:6] @ both[:6] + both[6:].mean()

    def slope(both):
        return np.concatenate([L2 * both[:6], np.full(40, 1 / 40)])

    constraints = [
        {
            "type": "ineq",
            "fun": lambda both: rows @ both[:6] + both[6:] - 1,
            "jac": lambda both: np.column_stack([rows, np.eye(40)]),
        },
        {
            "type": "ineq",
            "fun": lambda both: both[6:],
            "jac": lambda both: np.eye(40, 46, 6),
        },
    ]
    start = np.concatenate([np.zeros(6), np.ones(40)])
    result = minimize(value, start, jac=slope, constraints=constraints, options={"ftol": 1e-13, "maxiter": 500})
    assert result.success
    assert solved.objective == pytest.approx(result.fun, abs=1e-8)
    assert 0 <= solved.gap + 1e-15 < 1e-10


def test_the_gap_bounds_the_distance_to_the_minimum(small):
    objective = svm_optimum.Objective(small, L2)
    solved = svm_optimum.optimum(objective)
    rng = np.random.default_rng(0)
    for size in (1e-6, 1e-3, 1.0):
        weight = solved.weight + size * rng.normal(size=6)
        assert svm_optimum.duality_gap(objective, weight) >= objective(weight) - solved.objective - 1e-14 > 0


def test_a_minimum_is_kept_and_found_again(small, tmp_path, monkeypatch):
    first = svm_optimum.optimum(svm_optimum.Objective(small, L2), tmp_path)
    monkeypatch.setattr(svm_optimum, "_solve", lambda objective: pytest.fail("it was solved again"))
    again = svm_optimum.optimum(svm_optimum.Objective(small, L2), tmp_path)
    assert again.objective == first.objective
    # Of other data, or another lambda, it is another minimum.
    monkeypatch.setattr(svm_optimum, "_solve", lambda objective: np.zeros(6))
    with pytest.raises(RuntimeError, match="the minimum is known to"):
        svm_optimum.optimum(svm_optimum.Objective(small, 2 * L2), tmp_path)


# ---- the rules


def test_the_margin_rule_equals_the_per_instance_reference(small):
    module = LinearSVM(6, L2)
    torch.nn.init.normal_(module.weight)
    rule = svm_methods.MarginRule(module, small)
    rows = torch.tensor([7, 3, 199, 3])
    weight, gamma = module.weight.tolist(), 0.3
    expected = []
    for row in rows.tolist():
        x, y = small.features[row].tolist(), small.labels[row].item()
        margin = y * sum(w * v for w, v in zip(weight, x, strict=True))
        norm = sum(v * v for v in x) ** 0.5
        expected.append(gamma + (1 - gamma) * norm * (margin < 1))
    policy = AutoAssistPolicy(gamma)
    assert policy.keep_probability(rule.predict(Instances(indices=rows))).tolist() == pytest.approx(expected, abs=1e-6)
    assert rule.num_margins == 4
    # With the weights as they are now, not as they were.
    with torch.no_grad():
        module.weight.mul_(1e6)
    is_wrong = small.labels[rows] * (small.features[rows] @ module.weight) < 1
    assert ((rule.predict(Instances(indices=rows)) > 0) == is_wrong).all()


def test_a_current_score_is_the_instances_own_loss_and_gradient(small):
    module = LinearSVM(6, 0.0)
    torch.nn.init.normal_(module.weight, std=3)
    rows = torch.arange(0, 200, 7)
    losses = svm_methods.CurrentLoss(module, small).predict(Instances(indices=rows))
    norms = svm_methods.MarginRule(module, small).predict(Instances(indices=rows))
    remembered = svm_methods.RememberedGradient(module, small).predict(Instances(indices=rows, scores=losses))
    for place, row in enumerate(rows.tolist()):
        loss = module.training_step((small.features[[row]], small.labels[[row]]), 0)
        (gradient,) = torch.autograd.grad(loss, module.weight)
        assert losses[place].item() == pytest.approx(loss.item(), abs=1e-6)
        assert norms[place].item() == pytest.approx(gradient.norm().item(), abs=1e-6)
        assert remembered[place] == norms[place]


@pytest.mark.parametrize("method", ["autoassist", "current-loss", "current-gradient"])
def test_weights_leave_the_gradient_as_it_is(small, method):
    """Over many batches, the weighted gradients of the hinge average to the full gradient, and L2's is L2's."""
    module = LinearSVM(6, L2)
    torch.nn.init.normal_(module.weight, std=2, generator=torch.Generator().manual_seed(0))
    chosen = METHODS[method]
    assistant, policy = chosen.assistant(module, small), chosen.policy(0.3)

    def chance(indices, pass_index):
        return policy.keep_probability(assistant.predict(Instances(indices=torch.from_numpy(indices)))).numpy()

    sampler = ShrinkingBatchSampler(
        torch.utils.data.RandomSampler(small.labels, generator=torch.Generator().manual_seed(1)),
        32,
        budget=1,
        keep_probability=chance,
        reweighting="normalized",
    )
    capture, batches = InstanceLossCapture(score="loss"), []
    for _ in range(300):
        for draw in sampler.draws():
            sampler.mark_consumed(draw)
            batch = small.features[draw.indices], small.labels[draw.indices]
            with capture.step(batch, 32, weights=torch.from_numpy(draw.weights)) as captured:
                loss = module.training_step(batch, 0)
            captured.observe(loss)
            batches.append(torch.autograd.grad(loss, module.weight)[0])
    gradients = torch.stack(batches)
    (full,) = torch.autograd.grad(module.training_step(tuple(small), 0), module.weight)
    deviation = gradients.std(0) / len(gradients) ** 0.5
    assert sampler.num_kept < 0.9 * sampler.num_considered
    assert ((gradients.mean(0) - full).abs() < 4.5 * deviation + 1e-3 * full.abs()).all()


# ---- runs


def test_every_method_approaches_the_minimum_from_above(small):
    for method in METHODS:
        floor = 1.0 if method == "sgd" else 0.3
        row = run(small, method=method, floor=floor, epochs=20.0)
        assert row["warnings"] == []
        assert all(min(average, last) >= 0 for *_, average, last in row["curve"]), method
        assert row["suboptimality"] < 0.02, method
        assert row["curve"][-1][0] == row["updates"] == 20 * 7
        seen = 20 * 200 if method == "sgd" else 20 * 7 * 32
        assert row["gradient_evaluations"] == row["curve"][-1][1] == seen
        assert row["minimum_gap"] < 1e-10


def test_margins_of_candidates_are_counted(small):
    row = run(small, epochs=10.0)
    # One batch more is drawn ahead in some steps; nothing but candidates has its margin counted.
    assert row["gradient_evaluations"] < row["candidate_margins"] <= row["candidates"]
    assert row["candidate_margins"] > 0.9 * row["candidates"]
    assert row["settings"]["reweighting"] == "normalized"
    assert run(small, method="sgd")["candidate_margins"] == 0


def test_known_margins_filter_the_first_pass_and_remembered_scores_do_not(small):
    first = {"epochs": 5 / 7}  # 160 of 200 instances
    kept = {method: run(small, method=method, **first) for method in METHODS}
    assert kept["autoassist"]["keep_rate"] < 0.95
    for method in ("importance-loss", "importance-gradient"):
        assert kept[method]["keep_rate"] == 1
        points = [[point[:3] + point[4:] for point in kept[name]["curve"]] for name in (method, "sgd")]
        assert points[0] == points[1]


def test_a_run_with_one_seed_is_the_same_run(small):
    first, again, other = (run(small, seed=seed) for seed in (0, 0, 1))
    without_seconds = [[point[:3] + point[4:] for point in row["curve"]] for row in (first, again, other)]
    assert without_seconds[0] == without_seconds[1] != without_seconds[2]


# ---- plans and tables


def test_floors_are_chosen_on_one_data_set_and_used_on_all():
    plan = command.SVMPlan(("shirts", "covtype"), command.REQUIRED, (0, 1), (0.1, 0.3, 0.5), "shirts")
    best = {"importance-loss": 0.5, "importance-gradient": 0.3, "autoassist": 0.1}
    order = finish_all(plan, lambda job: {"suboptimality": abs(job.floor - best.get(job.method, 1))})
    assert {job.dataset for job in order if job.phase == "tune"} == {"shirts"}
    finals = {(job.dataset, job.method, job.floor) for job in order if job.phase == "final"}
    used = [("sgd", 1.0), *best.items(), ("autoassist", 0.3)]
    assert finals == {(dataset, *method) for dataset in ("shirts", "covtype") for method in used}
    assert len(order) == 9 + 2 * 2 * 5


def test_what_has_its_row_is_not_run_again(tmp_path):
    plan = command.SVMPlan(("clouds",), ("sgd",), (0, 1), (), "clouds")
    finished_job, left = list(plan.jobs({}))
    result_rows.append_row("linear_svm", {**asdict(finished_job), "suboptimality": 0.5}, tmp_path)
    ran = []

    def run_job(job):
        ran.append(job)
        return {**asdict(job), "suboptimality": 0.1, "updates": 1, "seconds": 0.0, "warnings": []}

    runner = Runner(plan, "linear_svm", tmp_path, run_job)
    assert runner.run() == 1
    assert ran == [left]
    assert runner.run() == 0


def made_up(job, scale, exponent=1.0):
    curve = [
        [t, 32 * t, 64 * t * (job.method != "sgd"), t / 1000, scale * t**-exponent, 2 * scale * t**-exponent]
        for t in range(20, 2001, 20)
    ]
    out = {"updates": 2000, "gradient_evaluations": 64_000, "train_instances": 1000, "features": 5, "batch_size": 32}
    return {**asdict(job), **out, "minimum": 0.5, "minimum_gap": 1e-15, "curve": curve}


def test_slopes_and_evaluations_are_those_of_the_curve():
    row = made_up(job_of(), 1.0, 1.5)
    assert svm_report.slope(row) == pytest.approx(-1.5)
    assert svm_report.evaluations_to(row, 1e-3) == 32 * 100  # 100 ** -1.5
    assert svm_report.evaluations_to(row, 1e-9) is None
    assert svm_report.evaluations_to(row, 1e-3, svm_report.LAST) == 32 * 160  # 2 * 159 ** -1.5


def test_tables_are_those_of_the_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(svm_report, "rows_of", lambda name: result_rows.rows_of(name, tmp_path))
    monkeypatch.setattr(svm_report, "RESULTS", tmp_path)
    assert "Not measured yet" in svm_report.svm_tables()
    for seed, scale in ((0, 1.0), (1, 1.2)):
        for method, floor, factor in (("sgd", 1.0, 1.0), ("autoassist", 0.1, 0.5)):
            job = job_of(dataset="shirts", method=method, floor=floor, seed=seed)
            result_rows.append_row("linear_svm", made_up(job, factor * scale), tmp_path)
    table = svm_report.svm_tables()
    assert "| SGD | 3,520 ± 320 | 35,200 ± 3,200 | - | 0 | -1.00 ± 0.00 | 2 |" in table
    assert (
        "| AutoAssist, gamma = 0.1 | 1,920 ± 0 | 17,600 ± 1,600 | -50 ± 0 % | 35,200 ± 3,200 | -1.00 ± 0.00 | 2 |"
        in table
    )
    assert svm_report.stale_svm_curves() == ["linear-svm-shirts.png"]
    svm_report.write_svm_curves()
    assert svm_report.stale_svm_curves() == []
