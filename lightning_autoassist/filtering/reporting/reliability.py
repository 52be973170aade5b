"""How far the Assistant's predictions come true.

Shapes: n predictions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor


class Reliability(NamedTuple):
    """Predicted against realised: bins of predictions, and the share of informative instances in each.

    Attributes:
        predicted: Mean prediction of each bin.
        realised: Share of its instances that turned out informative.
        counts: Its instances.
        calibration_error: Mean distance of the two over the instances; None where predictions are no probabilities.
    """

    predicted: npt.NDArray[np.float64]
    realised: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int64]
    calibration_error: float | None


def reliability(predictions: Tensor, targets: Tensor, num_bins: int = 10) -> Reliability:
    """Compare an Assistant's predictions with what turned out.

    Args:
        predictions: Shape ``(n,)``; probabilities are binned evenly, other scores by their quantiles.
        targets: Whether each was informative, shape ``(n,)``, bool.
        num_bins: At most so many bins.

    Example:
        >>> import torch
        >>> reliability(torch.tensor([0.11, 0.13, 0.9]), torch.tensor([False, True, True])).realised
        array([0.5, 1. ])
    """
    values, informative = predictions.double().numpy(), targets.numpy()
    are_probs = bool((values >= 0).all() and (values <= 1).all())
    inner = np.linspace(0, 1, num_bins + 1)[1:-1]
    bins = np.digitize(values, inner if are_probs else np.unique(np.quantile(values, inner)))
    counts = np.bincount(bins)
    used = np.flatnonzero(counts)
    predicted = np.bincount(bins, values)[used] / counts[used]
    realised = np.bincount(bins, informative)[used] / counts[used]
    error = float(np.average(np.abs(predicted - realised), weights=counts[used])) if are_probs else None
    return Reliability(predicted, realised, counts[used], error)
