"""timm: its models with torch's loss, its losses, and its loader."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.outside.cases import FEW, NUM_INSTANCES, Setup, case, cases, integers, loaders, normal
from benchmarks.outside.steps import Step, perceptron

PACKAGE = "timm"
NUM_CLASSES, WIDTH, SIZE = 5, 6, 32
MODELS = {
    "convnext_atto": {},
    "efficientnet_lite0": {},
    "mobilenetv3_small_050": {},
    "resnet10t": {},
    "test_vit": {"img_size": SIZE, "patch_size": 8},
}
OF_CLASSES = ("AsymmetricLossSingleLabel", "LabelSmoothingCrossEntropy", "PolyCrossEntropy")
OF_TAGS = (
    "AsymmetricLossMultiLabel",
    "PolyBinaryCrossEntropy",
    "TwoWayLoss",
    "ZlprLoss",
)


def _line(step: Any, batch: Any) -> Tensor:
    return step.criterion(step.net(batch[0]), batch[1])


def _setup(make_criterion: Any, target: Tensor) -> Setup:
    columns = normal(WIDTH), target
    return Setup(lambda: Step(_line, net=perceptron(WIDTH, NUM_CLASSES), criterion=make_criterion()), loaders(columns))


def _tags() -> Tensor:
    return integers(2, NUM_CLASSES).float()


@cases(PACKAGE, MODELS, "module")
def model(name: str) -> Setup:
    """An image classifier."""
    import timm

    def make_module() -> Step:
        net = timm.create_model(name, num_classes=NUM_CLASSES, pretrained=False, **MODELS[name])
        return Step(lambda step, batch: F.cross_entropy(step.net(batch[0]), batch[1]), net=net)

    columns = normal(3, SIZE, SIZE, num=FEW), integers(NUM_CLASSES, num=FEW)
    return Setup(make_module, loaders(columns), num_instances=FEW)


@cases(PACKAGE, OF_CLASSES, "loss")
def of_classes(name: str) -> Setup:
    """A loss of class indices."""
    import timm.loss

    return _setup(getattr(timm.loss, name), integers(NUM_CLASSES))


@cases(PACKAGE, OF_TAGS, "loss")
def of_tags(name: str) -> Setup:
    """A loss of several labels an instance."""
    import timm.loss

    return _setup(getattr(timm.loss, name), _tags())


@case(PACKAGE, "SoftTargetCrossEntropy", "loss")
def soft_targets() -> Setup:
    """Class probabilities for targets, as mixup makes them."""
    import timm.loss

    return _setup(timm.loss.SoftTargetCrossEntropy, normal(NUM_CLASSES).softmax(1))


@case(PACKAGE, "BinaryCrossEntropy", "loss")
def binary() -> Setup:
    """Class indices made one-hot and smoothed."""
    import timm.loss

    return _setup(lambda: timm.loss.BinaryCrossEntropy(smoothing=0.1), integers(NUM_CLASSES))


@case(PACKAGE, "JsdCrossEntropy", "loss")
def jsd() -> Setup:
    """Three views of each instance, joined one after the other (AugMix)."""
    import timm.loss

    def line(step: Any, batch: Any) -> Tensor:
        features, labels = batch
        views = torch.cat([features, 0.9 * features, 1.1 * features])
        return step.criterion(step.net(views), labels)

    columns = normal(WIDTH), integers(NUM_CLASSES)

    def make_module() -> Step:
        return Step(line, net=perceptron(WIDTH, NUM_CLASSES), criterion=timm.loss.JsdCrossEntropy(num_splits=3))

    return Setup(make_module, loaders(columns))


@case(PACKAGE, "create_loader", "module")
def own_loader() -> Setup:
    """The loader of timm over pictures, without its prefetcher, as on a CPU."""
    import numpy as np
    import timm
    from PIL import Image
    from timm.data import create_loader, create_transform

    transform = create_transform((3, SIZE, SIZE), is_training=True, no_aug=True)

    class Pictures(torch.utils.data.Dataset):
        """Noise and labels; timm sets ``transform``."""

        transform = None

        def __init__(self) -> None:
            pixels = np.random.default_rng(0).integers(0, 256, (NUM_INSTANCES, SIZE, SIZE, 3), np.uint8)
            self.pictures = [Image.fromarray(each) for each in pixels]
            self.labels = integers(NUM_CLASSES).tolist()

        def __len__(self) -> int:
            return NUM_INSTANCES

        def __getitem__(self, index: int) -> Any:
            return self.transform(self.pictures[index]), self.labels[index]

    def make_loader(batch_size: int, shuffle: bool) -> Any:
        pictures = Pictures()
        loader = create_loader(
            pictures,
            (3, SIZE, SIZE),
            batch_size,
            is_training=shuffle,
            no_aug=True,
            use_prefetcher=False,
            num_workers=0,
            persistent_workers=False,
            pin_memory=False,
            device=torch.device("cpu"),
        )
        pictures.transform = transform  # its own for evaluation crops
        return loader

    def make_module() -> Step:
        net = timm.create_model("test_resnet", num_classes=NUM_CLASSES, pretrained=False)
        return Step(lambda step, batch: F.cross_entropy(step.net(batch[0]), batch[1]), net=net)

    return Setup(make_module, make_loader)
