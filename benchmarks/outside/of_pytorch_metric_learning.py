"""Losses of pytorch-metric-learning, over the embeddings of a small network."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor

from benchmarks.outside.cases import Setup, case, cases, integers, loaders, normal
from benchmarks.outside.steps import Step, perceptron

PACKAGE = "pytorch-metric-learning"
NUM_CLASSES, WIDTH = 4, 6
# Against a weight of each class: an instance has a loss of its own.
OF_CLASSES = (
    "ArcFaceLoss",
    "CosFaceLoss",
    "LargeMarginSoftmaxLoss",
    "NormalizedSoftmaxLoss",
    "SoftTripleLoss",
    "SphereFaceLoss",
    "SubCenterArcFaceLoss",
)
OF_PROXIES = ("ProxyAnchorLoss", "ProxyNCALoss")
# Against the other instances of the batch.
OF_PAIRS = (
    "CircleLoss",
    "ContrastiveLoss",
    "FastAPLoss",
    "GeneralizedLiftedStructureLoss",
    "IntraPairVarianceLoss",
    "MultiSimilarityLoss",
    "NCALoss",
    "NTXentLoss",
    "RankedListLoss",
    "SignalToNoiseRatioContrastiveLoss",
    "SupConLoss",
    "TripletMarginLoss",
    "TupletMarginLoss",
)
OPTIONS = {"RankedListLoss": {"margin": 0.4, "Tn": 10}}
# Those of them that are a mean over anchors.
HAVE_ROWS = ("GeneralizedLiftedStructureLoss", "MultiSimilarityLoss", "RankedListLoss")


def _rows(step: Any, batch: Any) -> Tensor:
    """The losses of the anchors, by the package's own reducer that reduces nothing."""
    from pytorch_metric_learning.reducers import DoNothingReducer

    criterion = copy.deepcopy(step.criterion)
    criterion.reducer = DoNothingReducer()
    return criterion(step.net(batch[0]), batch[1])["loss"]["losses"]


def _line(step: Any, batch: Any) -> Tensor:
    return step.criterion(step.net(batch[0]), batch[1])


def _setup(make_criterion: Any, line: Any = _line) -> Setup:
    labels = integers(NUM_CLASSES)
    columns = normal(WIDTH) + labels[:, None], labels
    return Setup(lambda: Step(line, net=perceptron(WIDTH, 8), criterion=make_criterion()), loaders(columns))


@cases(PACKAGE, OF_CLASSES + OF_PROXIES, "loss")
def of_classes(name: str) -> Setup:
    """A loss with weights of its own."""
    from pytorch_metric_learning import losses

    return _setup(lambda: getattr(losses, name)(num_classes=NUM_CLASSES, embedding_size=8))


@cases(PACKAGE, OF_PAIRS, "loss")
def of_pairs(name: str) -> Setup:
    """A loss of pairs or triplets in the batch."""
    from pytorch_metric_learning import losses

    setup = _setup(lambda: getattr(losses, name)(**OPTIONS.get(name, {})))
    return setup._replace(by_hand=_rows) if name in HAVE_ROWS else setup


@case(PACKAGE, "TripletMarginLoss with MultiSimilarityMiner", "loss")
def mined() -> Setup:
    """Triplets that a miner chooses."""
    from pytorch_metric_learning import losses, miners

    miner = miners.MultiSimilarityMiner()

    def line(step: Any, batch: Any) -> Tensor:
        embeddings = step.net(batch[0])
        return step.criterion(embeddings, batch[1], miner(embeddings, batch[1]))

    return _setup(losses.TripletMarginLoss, line)


@case(PACKAGE, "CrossBatchMemory of ContrastiveLoss", "loss")
def remembering() -> Setup:
    """Pairs with earlier batches."""
    from pytorch_metric_learning import losses

    return _setup(lambda: losses.CrossBatchMemory(losses.ContrastiveLoss(), 8, memory_size=16))
