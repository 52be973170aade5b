r"""The paper's network and algorithm as they stand, with scikit-learn's interface.

Shapes: n instances, d features, m hidden units.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_autoassist.gauss_newton.jacobian import Jacobian, LayerRows
from lightning_autoassist.gauss_newton.solvers import (
    SKETCH_NAMES,
    SOLVER_NAMES,
    SketchName,
    SolverName,
    SolverOptions,
    solve,
)
from lightning_autoassist.trainer_support.arguments import check_choice, check_number, check_whole

if TYPE_CHECKING:
    from typing_extensions import Self

# With scikit-learn installed it is one of its estimators; without, it has the same methods.
try:
    from sklearn.base import BaseEstimator, RegressorMixin
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError:
    from lightning_autoassist.gauss_newton.without_sklearn import (
        BaseEstimator,
        RegressorMixin,
        check_is_fitted,
        validate_data,
    )


class TwoLayerGaussNewton(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    r"""A two-layer ReLU network trained by Gauss-Newton steps, :math:`W \leftarrow W - J^T (J J^T)^{-1} (f - y)`.

    The network is :math:`f(x) = m^{-1/2} \sum_r a_r\,\mathrm{relu}(w_r^T x)` with fixed signs :math:`a_r`, and only W
    is trained, on :math:`\frac12 \|f - y\|^2`. It starts at :math:`w_r \sim N(0, I)` in pairs of opposite signs, so
    that f is 0 and the loss :math:`\frac12 \|y\|^2`. There are no biases; the theorem has rows x of norm 1. For m that
    is a polynomial in n the loss at least halves in each iteration, with high probability, and with ``solver="sketch"``
    an iteration takes about O(m n d + n³) time. Where the network is narrow, undamped steps may not converge: then
    ``damping="lm"``.

    Source: Brand, Peng, Song & Weinstein, Training (Overparametrized) Neural Networks in Near-Linear Time, ITCS 2021,
    arXiv:2006.11648; damping: Levenberg, 1944, and Marquardt, 1963.

    Args:
        n_hidden: m, an even number.
        solver: Of the linear system over the instances: ``"dense"``, ``"gram"``, ``"cg"``, ``"sketch"`` (the paper's)
            or ``"nystrom"`` (wants damping); see :class:`~lightning_autoassist.gauss_newton.solvers.SolverOptions`.
        max_iter: Most iterations of ``fit``.
        tol: ``fit`` ends where the loss is at most ``tol`` times that of the start.
        damping: :math:`\lambda`, relative to the mean of K's diagonal; ``"lm"``: as Levenberg and Marquardt have it,
            a step that does not lower the loss is not made, and 8 times the damping is tried, else a third of it.
        cg_tol: Norm of the residual at which conjugate gradients stop, relative to that of the right-hand side.
        max_cg_iter: Most iterations of conjugate gradients for one step.
        sketch: ``"tensor_srht"`` or ``"tensor_sketch"``.
        sketch_ratio: Rows of the sketch for each instance.
        rank: Of Nyström's approximation.
        device: Of torch.
        random_state: Seed of the start and of the sketches; None: another one each time.

    Attributes:
        W_: The hidden weights, shape ``(m, d)``, a tensor on ``device``.
        loss_curve_: Loss after each iteration, a list.
        n_iter_: Number of iterations.
        cg_iterations_: Iterations of conjugate gradients in each iteration, a list; 0 for exact solvers.
        damping_: The damping in force, relative to the mean of K's diagonal.
        n_features_in_: d.

    Raises:
        ValueError: By ``fit``, if an argument lies outside its range.

    Example:
        >>> rows = np.random.default_rng(0).normal(size=(20, 3))
        >>> model = TwoLayerGaussNewton(n_hidden=512, solver="sketch", random_state=0).fit(rows, rows[:, 0] ** 2)
        >>> bool(model.score(rows, rows[:, 0] ** 2) > 0.99)
        True
    """

    def __init__(
        self,
        n_hidden: int = 1024,
        *,
        solver: SolverName = "sketch",
        max_iter: int = 20,
        tol: float = 1e-6,
        damping: float | str = 0.0,
        cg_tol: float = 1e-2,
        max_cg_iter: int = 200,
        sketch: SketchName = "tensor_sketch",
        sketch_ratio: float = 4.0,
        rank: int = 256,
        device: str = "cpu",
        random_state: Any = None,
    ) -> None:
        # As scikit-learn has it: arguments are kept as they are, and checked by fit.
        self.n_hidden = n_hidden
        self.solver = solver
        self.max_iter = max_iter
        self.tol = tol
        self.damping = damping
        self.cg_tol = cg_tol
        self.max_cg_iter = max_cg_iter
        self.sketch = sketch
        self.sketch_ratio = sketch_ratio
        self.rank = rank
        self.device = device
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:  # noqa: N803
        """Train from the start.

        Args:
            X: Shape ``(n, d)``, of any numbers; float32 is computed with as it is, all else as float64.
            y: Shape ``(n,)``.
        """
        rows, targets = self._validated(X, y, reset=True)
        self._begin(rows)
        start = float(0.5 * targets.square().sum())
        for _ in range(int(self.max_iter)):
            if self._iterate(rows, targets) <= self.tol * start:
                break
        return self

    def partial_fit(self, X: Any, y: Any) -> Self:  # noqa: N803
        """Make one iteration from where it stands; the first call begins.

        Args:
            X: Shape ``(n, d)``.
            y: Shape ``(n,)``.
        """
        is_new = not hasattr(self, "W_")
        rows, targets = self._validated(X, y, reset=is_new)
        if is_new:
            self._begin(rows)
        self._iterate(rows.to(self.W_), targets.to(self.W_))
        return self

    def predict(self, X: Any) -> npt.NDArray[Any]:  # noqa: N803
        """The network's outputs, shape ``(n,)``.

        Args:
            X: Shape ``(n, d)``.
        """
        check_is_fitted(self)
        rows = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        outputs, _ = _forward(torch.as_tensor(rows).to(self.W_), self.W_, self._signs)
        values: npt.NDArray[Any] = outputs.cpu().numpy()
        return values

    def _validated(self, X: Any, y: Any, *, reset: bool) -> tuple[Tensor, Tensor]:  # noqa: N803
        self._check_arguments()
        rows, targets = validate_data(self, X, y, dtype=[np.float64, np.float32], y_numeric=True, reset=reset)
        as_tensor = torch.as_tensor(rows, device=self.device)
        return as_tensor, torch.as_tensor(np.asarray(targets)).to(as_tensor)

    def _check_arguments(self) -> None:
        if check_whole("n_hidden", self.n_hidden, "[2, inf)", "try 1024") % 2:
            raise ValueError(f"n_hidden must be even, as units come in pairs, got {self.n_hidden}; try 1024")
        check_whole("max_iter", self.max_iter, "[1, inf)", "20 is the default")
        check_number("tol", self.tol, "[0, inf)", "1e-6 is the default")
        if self.damping != "lm":
            check_number("damping", self.damping, "[0, inf)", 'try 1e-2, or "lm"')
        check_choice("solver", self.solver, SOLVER_NAMES)
        check_choice("sketch", self.sketch, SKETCH_NAMES)
        check_number("sketch_ratio", self.sketch_ratio, "[1, inf)", "4 is the default")
        check_whole("rank", self.rank, "[1, inf)", "256 is the default")

    def _begin(self, rows: Tensor) -> None:
        self._generator = torch.Generator().manual_seed(_seed(self.random_state))
        half = int(self.n_hidden) // 2
        weights = torch.randn(half, rows.shape[1], generator=self._generator, dtype=torch.float64)
        self.W_ = torch.cat([weights, weights]).to(rows)
        self._signs = torch.cat([torch.ones(half), -torch.ones(half)]).to(rows)
        self.damping_ = 1e-2 if self.damping == "lm" else float(self.damping)
        self.loss_curve_: list[float] = []
        self.cg_iterations_: list[int] = []
        self.n_iter_ = 0

    def _iterate(self, rows: Tensor, targets: Tensor) -> float:
        """One iteration; returns the loss after it."""
        outputs, active = _forward(rows, self.W_, self._signs)
        residual = outputs - targets
        jacobian = Jacobian([LayerRows(rows, active.unsqueeze(1))])
        damping = self.damping_ * jacobian.gram_diagonal().mean()
        solution = solve(jacobian, residual.unsqueeze(1), damping, self._options(), self._generator)
        (step,) = jacobian.transposed_times(solution.rows)
        loss = self._move(step, rows, targets, float(0.5 * residual.square().sum()))
        self.n_iter_ += 1
        self.loss_curve_.append(loss)
        self.cg_iterations_.append(solution.num_iterations)
        return loss

    def _move(self, step: Tensor, rows: Tensor, targets: Tensor, before: float) -> float:
        weights = self.W_ - step
        loss = float(0.5 * (_forward(rows, weights, self._signs)[0] - targets).square().sum())
        if self.damping == "lm":
            if not loss < before:
                self.damping_ *= 8
                return before
            self.damping_ /= 3
        self.W_ = weights
        return loss

    def _options(self) -> SolverOptions:
        return SolverOptions(
            self.solver, float(self.cg_tol), int(self.max_cg_iter), self.sketch, float(self.sketch_ratio), self.rank
        )


def _forward(rows: Tensor, weights: Tensor, signs: Tensor) -> tuple[Tensor, Tensor]:
    r"""Outputs, shape ``(n,)``, and their gradients at the hidden units' inputs, :math:`\Phi`, shape ``(n, m)``."""
    hidden = rows @ weights.T
    scaled = signs / len(signs) ** 0.5
    active = (hidden > 0).to(rows.dtype).mul_(scaled)
    return hidden.clamp_(min=0) @ scaled, active


def _seed(random_state: Any) -> int:
    """A seed of torch's out of what scikit-learn takes for one."""
    if random_state is None:
        return int(np.random.default_rng().integers(2**31))
    if hasattr(random_state, "randint"):
        return int(random_state.randint(2**31 - 1))
    if hasattr(random_state, "integers"):
        return int(random_state.integers(2**31))
    return int(random_state)
