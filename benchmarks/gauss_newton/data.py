"""Data of the benchmark of Gauss-Newton.

Shapes: N instances, d features.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.linear_svm.data import covtype as covtype_of
from lightning_autoassist.demo.data import fashion_mnist

NUM_IMAGES = 12_000


class Split(NamedTuple):
    """A data set of two classes, whose targets are 1 and -1.

    Attributes:
        features: Of the training, shape ``(N, d)``, float32.
        targets: Shape ``(N, 1)``.
        test_features: Of the test.
        test_targets: Of the test.
    """

    features: Tensor
    targets: Tensor
    test_features: Tensor
    test_targets: Tensor


def unit_points(n: int, d: int, data_dir: Path) -> tuple[Tensor, Tensor]:
    """The first n images of Fashion-MNIST in d principal components, of norm 1; five classes against the rest.

    Args:
        n: At most 12,000.
        d: At most 784.
        data_dir: Of downloads.

    Returns:
        Rows, shape ``(n, d)``, and targets, shape ``(n,)``.
    """
    images, labels = _images(data_dir)
    rows = _components(images, d)[:n]
    return rows / rows.norm(dim=1, keepdim=True), (labels[:n] < 5).float() * 2 - 1


def digits(data_dir: Path) -> Split:
    """scikit-learn's 1,797 digits of 8x8 pixels, odd against even; the last 397 for the test.

    Args:
        data_dir: Not used.
    """
    from sklearn.datasets import load_digits

    features, labels = load_digits(return_X_y=True)
    return _split(torch.tensor(features / 16).float(), torch.tensor(labels % 2 == 1), 1_400)


def fashion(data_dir: Path) -> Split:
    """Fashion-MNIST in 64 principal components, the first five classes against the rest, 10,000 images.

    Args:
        data_dir: Of downloads.
    """
    images, labels = _images(data_dir)
    return _split(_components(images, 64), labels < 5, 10_000)


def covtype(data_dir: Path) -> Split:
    """Forest cover types, class 2 against the rest, 10,000 instances of 54 features, chosen at random.

    Args:
        data_dir: Of downloads.
    """
    data = covtype_of(data_dir)
    chosen = torch.randperm(len(data.labels), generator=torch.Generator().manual_seed(0))[:12_000]
    return _split(data.features[chosen, :-1], data.labels[chosen] > 0, 10_000)


def clouds(data_dir: Path) -> Split:
    """Made here: 400 points of 8 features, whose class is the sign of a product.

    Args:
        data_dir: Not used.
    """
    features = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    return _split(features, features[:, 0] * features[:, 1] > 0, 300)


TRAINED: dict[str, Callable[[Path], Split]] = {
    "digits": digits,
    "fashion": fashion,
    "covtype": covtype,
    "clouds": clouds,
}


def with_classes(dataset: str, data_dir: Path) -> Split:
    """A data set of ``TRAINED`` with all of its classes as targets, shape ``(N,)``.

    Args:
        dataset: ``"digits"``, ``"fashion"`` or ``"clouds"``.
        data_dir: Of downloads.
    """
    split = TRAINED[dataset](data_dir)
    if dataset == "clouds":
        labels = torch.cat([split.targets, split.test_targets]).flatten() > 0
    elif dataset == "digits":
        from sklearn.datasets import load_digits

        labels = torch.tensor(load_digits(return_X_y=True)[1])
    else:
        labels = _images(data_dir)[1]
    num_train = len(split.features)
    return split._replace(targets=labels[:num_train].long(), test_targets=labels[num_train:].long())


def _split(features: Tensor, is_positive: Tensor, num_train: int) -> Split:
    """Features of mean 0 and variance 1 in the training part."""
    train = features[:num_train]
    features = (features - train.mean(0)) / train.std(0).clamp(min=1e-3)
    targets = is_positive.float().mul(2).sub(1).unsqueeze(1)
    return Split(features[:num_train], targets[:num_train], features[num_train:], targets[num_train:])


@functools.lru_cache(maxsize=1)
def _images(data_dir: Path) -> tuple[Tensor, Tensor]:
    images, labels = fashion_mnist(data_dir).train.tensors
    return images[:NUM_IMAGES].flatten(1).float(), labels[:NUM_IMAGES]


def _components(images: Tensor, d: int) -> Tensor:
    centred = images - images.mean(0)
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    return centred @ vectors[:, -d:].flip(1)
