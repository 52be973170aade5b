"""Two-class data of the linear SVM's benchmark.

All instances of a data set are trained on: what is measured is the distance to the objective's own minimum. The last
feature is constant, so that the bias is one of the weights, and features are divided by the largest norm, so that an
instance's norm is at most 1.

Shapes: N instances, F features.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_autoassist.demo.covtype import cover_types
from lightning_autoassist.demo.data import fashion_mnist

COVTYPE_POSITIVE = 2  # LIBSVM's covtype.binary: this class against the other six
T_SHIRT, SHIRT = 0, 6


class TwoClasses(NamedTuple):
    """A data set.

    Attributes:
        features: Shape ``(N, F)``, float32; norms are at most 1, the last column is constant.
        labels: Shape ``(N,)``, float32: 1 or -1.
    """

    features: Tensor
    labels: Tensor

    @property
    def norms(self) -> Tensor:
        """Norms of the instances, shape ``(N,)``, float32, in (0, 1]."""
        return torch.linalg.vector_norm(self.features, dim=1).clamp(max=1)


def scaled(features: npt.NDArray[np.floating], is_positive: npt.NDArray[np.bool_]) -> TwoClasses:
    """Every feature scaled to [0, 1], the constant one added, and all divided by the largest norm.

    Args:
        features: Shape ``(N, F - 1)``.
        is_positive: Shape ``(N,)``.
    """
    low, high = features.min(0), features.max(0)
    unit = (features - low) / np.where(high > low, high - low, 1)
    rows = np.column_stack([unit, np.ones(len(unit))]).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1).max()
    return TwoClasses(torch.from_numpy(rows), torch.from_numpy(np.where(is_positive, 1, -1).astype(np.float32)))


def covtype(data_dir: Path) -> TwoClasses:
    """Forest cover types, 581,012 instances of 54 features: class 2 against the rest.

    Args:
        data_dir: Where the wheel that holds them is, or is downloaded to; it is not installed.

    Raises:
        FileNotFoundError: If it is not there and cannot be downloaded.
    """
    features, classes = cover_types(data_dir)
    return scaled(features, classes == COVTYPE_POSITIVE)


def shirts(data_dir: Path) -> TwoClasses:
    """Fashion-MNIST's 12,000 training images of T-shirts and of shirts, 784 features.

    Args:
        data_dir: Where downloads are kept.

    Raises:
        FileNotFoundError: If Fashion-MNIST is not there and cannot be downloaded.
    """
    images, labels = fashion_mnist(data_dir).train.tensors
    chosen = (labels == T_SHIRT) | (labels == SHIRT)
    return scaled(images[chosen].flatten(1).numpy(), labels[chosen].numpy() == T_SHIRT)


def clouds(data_dir: Path) -> TwoClasses:
    """Two Gaussian clouds that overlap, 2,000 instances of 20 features: made anew each time, always the same.

    Args:
        data_dir: Not used, nothing is downloaded.
    """
    rng = np.random.default_rng(0)
    is_positive = rng.random(2_000) < 0.5
    centre = rng.normal(size=20) / np.sqrt(20)
    features = np.where(is_positive[:, None], centre, -centre) + rng.normal(size=(2_000, 20))
    return scaled(features, is_positive)


SVM_SETS: dict[str, Callable[[Path], TwoClasses]] = {"covtype": covtype, "shirts": shirts, "clouds": clouds}
