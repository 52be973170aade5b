r"""The objective of a linear SVM, its minimum, and how far that is from the true one at most.

.. math:: P(w) = \frac{\lambda}{2} \|w\|^2 + \frac{1}{N} \sum_i \max(0, 1 - y_i\, w \cdot x_i)

Shapes: N instances, F features.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.linear_svm.data import TwoClasses

FloatArray = npt.NDArray[np.float64]

TOLERANCE = 1e-10
MAX_ITERATIONS = 10_000_000
# Instances whose margin is 1 up to this may have any dual variable from 0 to C. It is chosen among a few: where too
# narrow or too wide, the gap that comes out is larger, and true all the same.
MARGIN_TOLERANCES = (1e-9, 1e-8, 1e-7, 1e-6, 1e-5)
MAX_FREE = 2_000


class Objective:
    """P, in double precision.

    Args:
        data: The instances.
        l2: Lambda.
    """

    def __init__(self, data: TwoClasses, l2: float) -> None:
        self.features: FloatArray = data.features.numpy().astype(np.float64)
        self.labels: FloatArray = data.labels.numpy().astype(np.float64)
        self.l2 = l2

    def __call__(self, weight: npt.NDArray[np.floating]) -> float:
        """P at ``weight``, shape ``(F,)``."""
        return float(self.values(weight[None])[0])

    def values(self, weights: npt.NDArray[np.floating]) -> FloatArray:
        """P at several weights, shape ``(k, F)``; returns shape ``(k,)``."""
        weights = weights.astype(np.float64)
        hinges = np.maximum(0, 1 - self.margins(weights.T)).mean(0)
        return self.l2 / 2 * (weights**2).sum(1) + hinges

    def margins(self, weight: FloatArray) -> FloatArray:
        """Label times score of each instance, shape ``(N,)``, or ``(N, k)`` for weights of shape ``(F, k)``."""
        scores: FloatArray = self.features @ weight
        return self.labels.reshape(-1, *[1] * (weight.ndim - 1)) * scores


class Optimum(NamedTuple):
    """The minimum.

    Attributes:
        weight: Shape ``(F,)``.
        objective: P there.
        gap: Upper bound of what it is above the true minimum: by weak duality, so it needs no trust in the solver.
    """

    weight: FloatArray
    objective: float
    gap: float


def optimum(objective: Objective, folder: Path | None = None) -> Optimum:
    """The minimum by scikit-learn's LinearSVC (liblinear), solved to 1e-10.

    Args:
        objective: P.
        folder: Where minima are kept; None: it is solved anew.

    Raises:
        RuntimeError: If the minimum is not known to 1e-10.
    """
    path = None if folder is None else folder.expanduser() / f"svm-optimum-{_fingerprint(objective)}.npy"
    weight = np.load(path) if path is not None and path.exists() else _solve(objective)
    solved = Optimum(weight, objective(weight), duality_gap(objective, weight))
    if not solved.gap <= TOLERANCE:
        raise RuntimeError(f"the minimum is known to {solved.gap:.1e} only, it has to be to {TOLERANCE:.0e}")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, weight)
    return solved


def duality_gap(objective: Objective, weight: FloatArray) -> float:
    r"""P at ``weight`` less the best dual value that is found near it.

    The dual is :math:`\lambda (\sum_i a_i - \|\sum_i a_i y_i x_i\|^2 / 2)` for a in [0, C], C = 1 / (lambda N).
    Instances of margins below 1 have a = C, above 1 a = 0; those at 1 get what best explains ``weight``, by bounded
    least squares. Any feasible a gives a lower bound of the minimum.

    Args:
        objective: P.
        weight: Shape ``(F,)``.
    """
    margins = objective.margins(weight)
    primal = objective(weight)
    return min(primal - _dual(objective, weight, margins, tolerance) for tolerance in MARGIN_TOLERANCES)


def _dual(objective: Objective, weight: FloatArray, margins: FloatArray, tolerance: float) -> float:
    from scipy.optimize import lsq_linear

    upper = 1 / (objective.l2 * len(margins))
    is_below, is_free = margins <= 1 - tolerance, np.abs(margins - 1) < tolerance
    if is_free.sum() > MAX_FREE:
        return -np.inf
    bound = upper * ((objective.labels * is_below) @ objective.features)
    free_rows = objective.labels[is_free, None] * objective.features[is_free]
    free = np.zeros(0)
    if len(free_rows):
        free = lsq_linear(free_rows.T, weight - bound, (0, upper), method="bvls", tol=1e-14).x
    explained = bound + free @ free_rows
    return float(objective.l2 * (upper * is_below.sum() + free.sum() - explained @ explained / 2))


def _solve(objective: Objective) -> FloatArray:
    from sklearn.svm import LinearSVC

    # liblinear minimises |w|^2 / 2 + C * (sum of hinges): the same, divided by lambda.
    solver = LinearSVC(
        loss="hinge",
        C=1 / (objective.l2 * len(objective.labels)),
        fit_intercept=False,
        tol=TOLERANCE,
        max_iter=MAX_ITERATIONS,
        random_state=0,
    )
    weight: FloatArray = solver.fit(objective.features, objective.labels).coef_[0]
    return weight


def _fingerprint(objective: Objective) -> str:
    digest = hashlib.sha256(repr((objective.l2, objective.features.shape)).encode())
    for part in (objective.features, objective.labels):
        digest.update(np.ascontiguousarray(part))
    return digest.hexdigest()[:16]
