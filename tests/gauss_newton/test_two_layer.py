"""The paper's network: its theorem, scikit-learn's interface, and life without scikit-learn."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from lightning_autoassist.gauss_newton.solvers import SOLVER_NAMES
from lightning_autoassist.gauss_newton.two_layer import TwoLayerGaussNewton
from tests.gauss_newton.problems import unit_rows
from tests.helpers.paths import ROOT


def problem(n, d, seed=0, decay=0.5):
    rows = unit_rows(n, d, torch.Generator().manual_seed(seed), decay=decay).numpy()
    return rows, np.sign(np.random.default_rng(seed).normal(size=n))


@pytest.mark.parametrize("solver", ["gram", "sketch"])
@pytest.mark.parametrize(("n", "factor"), [(64, 16), (64, 64), (128, 16)])
def test_the_loss_at_least_halves_in_every_iteration(n, factor, solver):
    rows, targets = problem(n, 16)
    model = TwoLayerGaussNewton(factor * n, solver=solver, max_iter=8, random_state=0).fit(rows, targets)
    losses = np.array([0.5 * n, *model.loss_curve_])
    assert (losses[1:] <= losses[:-1] / 2).all(), losses
    assert model.n_iter_ == len(model.loss_curve_) == len(model.cg_iterations_)
    assert max(model.cg_iterations_) <= (12 if solver == "sketch" else 0)


def test_all_solvers_make_the_same_steps():
    rows, targets = problem(50, 8)
    curves = [
        TwoLayerGaussNewton(
            800, solver=solver, max_iter=3, tol=0.0, cg_tol=1e-12, max_cg_iter=2000, damping=1e-3, random_state=0
        )
        .fit(rows, targets)
        .loss_curve_
        for solver in SOLVER_NAMES
    ]
    for curve in curves[1:]:
        assert curve == pytest.approx(curves[0], rel=1e-6)


def test_it_starts_at_0_and_calls_of_partial_fit_are_iterations_of_fit():
    rows, targets = problem(60, 8)
    whole = TwoLayerGaussNewton(960, max_iter=3, tol=0.0, random_state=3).fit(rows, targets)
    parts = TwoLayerGaussNewton(960, random_state=3)
    for _ in range(3):
        parts.partial_fit(rows, targets)
        parts = pickle.loads(pickle.dumps(parts))
    assert parts.loss_curve_ == whole.loss_curve_
    np.testing.assert_array_equal(parts.predict(rows), whole.predict(rows))
    undone = TwoLayerGaussNewton(960, random_state=3)
    undone.fit(rows, targets * 0)
    np.testing.assert_allclose(undone.predict(rows), 0, atol=1e-12)


def test_with_little_width_only_damped_steps_never_raise_the_loss():
    """The theorem wants width; this K has a condition of thousands."""
    rows, targets = problem(256, 8, decay=1)
    options = {"solver": "gram", "max_iter": 10, "random_state": 0}
    undamped = TwoLayerGaussNewton(256, **options).fit(rows, targets)
    damped = TwoLayerGaussNewton(256, damping="lm", **options).fit(rows, targets)
    assert max(undamped.loss_curve_) > 128
    assert (np.diff([128, *damped.loss_curve_]) <= 0).all()
    assert damped.loss_curve_[-1] < 0.8 * 128
    assert damped.damping_ != 1e-2


def test_float32_stays_float32():
    rows, targets = problem(40, 8)
    model = TwoLayerGaussNewton(640, random_state=0).fit(rows.astype(np.float32), targets)
    assert model.W_.dtype == torch.float32
    assert model.predict(rows).dtype == np.float32
    assert model.score(rows, targets) > 0.999


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_hidden": 5}, "n_hidden must be even, as units come in pairs, got 5"),
        ({"solver": "qr"}, "solver must be one of dense, gram, cg, sketch, nystrom, got 'qr'"),
        ({"damping": -1.0}, "damping must not be negative, got -1.0"),
        ({"sketch_ratio": 0.5}, "sketch_ratio must be at least 1, got 0.5"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    rows, targets = problem(10, 3)
    with pytest.raises(ValueError, match=message):
        TwoLayerGaussNewton(**options).fit(rows, targets)


# Checks that want pandas or another array library are skipped with a warning.
@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_estimator_checks():
    checks = pytest.importorskip("sklearn.utils.estimator_checks")
    model = TwoLayerGaussNewton(128, max_iter=4)
    if hasattr(checks, "SkipTestWarning"):
        checks.check_estimator(model)
    else:
        assert not [one for one in checks.check_estimator(model, on_fail=None) if one["status"] == "failed"]


ALONE = """
import sys
sys.modules["sklearn"] = None  # as if it were not installed
import numpy as np
from lightning_autoassist.gauss_newton.two_layer import TwoLayerGaussNewton
rows = np.random.default_rng(0).normal(size=(30, 4))
targets = rows[:, 0] * rows[:, 1]
model = TwoLayerGaussNewton(64).set_params(n_hidden=512, random_state=1)
assert model.get_params()["n_hidden"] == 512
for call, message in [
    (lambda: model.predict(rows), "has not been trained yet"),
    (lambda: model.fit(rows[:, 0], targets), "X must have 2 dimensions"),
    (lambda: model.fit(rows, targets[1:]), "must be equal"),
    (lambda: model.fit(rows * np.nan, targets), "finite numbers only"),
    (lambda: model.set_params(depth=3), "has the parameters n_hidden"),
    (lambda: model.fit(rows, targets).predict(rows[:, 1:]), "X has 3 features, but fit was given 4"),
]:
    try:
        call()
    except ValueError as error:
        assert message in str(error), error
    else:
        raise AssertionError(message)
print(model.fit(rows, targets).score(rows, targets))
"""


def test_without_scikit_learn_it_has_the_same_methods():
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    rows = np.random.default_rng(0).normal(size=(30, 4))
    model = TwoLayerGaussNewton(512, random_state=1).fit(rows, rows[:, 0] * rows[:, 1])
    assert float(done.stdout) == pytest.approx(model.score(rows, rows[:, 0] * rows[:, 1]), abs=1e-9)
