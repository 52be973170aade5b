"""What is needed of scikit-learn's interface where scikit-learn is not installed."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from typing_extensions import Self


class BaseEstimator:
    """Parameters by the names of the constructor's arguments."""

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments.

        Args:
            deep: Not used: no argument is an estimator.
        """
        return {name: getattr(self, name) for name in list(inspect.signature(type(self)).parameters)}

    def set_params(self, **params: Any) -> Self:
        """Change arguments of the constructor.

        Args:
            params: By their names.

        Raises:
            ValueError: If a name is not one of them.
        """
        for name, value in params.items():
            if name not in self.get_params():
                raise ValueError(f"{type(self).__name__} has the parameters {', '.join(self.get_params())}, got {name}")
            setattr(self, name, value)
        return self


class RegressorMixin:
    """The coefficient of determination."""

    def score(self, X: Any, y: Any) -> float:  # noqa: N803
        """R²: 1 where predictions are exact, 0 where they are no better than the mean.

        Args:
            X: Shape ``(n, d)``.
            y: Shape ``(n,)``.
        """
        targets = np.asarray(y)
        errors = np.square(targets - self.predict(X)).sum()  # type: ignore[attr-defined]
        return float(1 - errors / np.square(targets - targets.mean()).sum())


def check_is_fitted(estimator: Any) -> None:
    """Raise where ``fit`` has not been called.

    Args:
        estimator: Of which ``fit`` sets ``n_features_in_``.

    Raises:
        ValueError: If it has not been called.
    """
    if not hasattr(estimator, "n_features_in_"):
        raise ValueError(f"this {type(estimator).__name__} has not been trained yet; call fit first")


def validate_data(
    estimator: Any,
    X: Any,  # noqa: N803
    y: Any = None,
    *,
    dtype: list[Any],
    reset: bool,
    y_numeric: bool = False,
) -> Any:
    """Arrays of numbers, of the shapes that are wanted.

    Args:
        estimator: Gets ``n_features_in_``, or has it.
        X: Shape ``(n, d)``.
        y: Shape ``(n,)``, or None.
        dtype: Allowed; others become the first.
        reset: Whether the number of features is new.
        y_numeric: Not used.

    Returns:
        X, or X and y.

    Raises:
        ValueError: If something has another shape, or is not finite.
    """
    rows = _finite("X", X, 2, dtype)
    if reset:
        estimator.n_features_in_ = rows.shape[1]
    elif rows.shape[1] != estimator.n_features_in_:
        raise ValueError(f"X has {rows.shape[1]} features, but fit was given {estimator.n_features_in_}")
    if y is None:
        return rows
    targets = _finite("y", y, 1, dtype)
    if len(targets) != len(rows):
        raise ValueError(f"X has {len(rows)} rows and y has {len(targets)}; they must be equal")
    return rows, targets


def _finite(name: str, given: Any, num_dimensions: int, dtype: list[Any]) -> npt.NDArray[Any]:
    values = np.asarray(given)
    values = values if values.dtype in dtype else values.astype(dtype[0])
    if values.ndim != num_dimensions or not len(values):
        raise ValueError(f"{name} must have {num_dimensions} dimensions and a row at least, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} must hold finite numbers only, got NaN or infinity")
    return values
