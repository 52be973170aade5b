"""segmentation-models-pytorch: its networks with torch's loss, and its losses over a small network."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from benchmarks.outside.cases import FEW, Setup, case, cases, integers, loaders, normal
from benchmarks.outside.steps import Step, pixel_net

PACKAGE = "segmentation-models-pytorch"
NUM_CLASSES, SIZE = 3, 32
NETWORKS = ("DeepLabV3Plus", "FPN", "Unet")
MULTICLASS = ("DiceLoss", "FocalLoss", "JaccardLoss", "LovaszLoss", "TverskyLoss")


def _line(step: Any, batch: Any) -> Tensor:
    return step.criterion(step.net(batch[0]), batch[1])


def _setup(make_criterion: Any, masks: Tensor, outputs: int = NUM_CLASSES) -> Setup:
    columns = normal(3, 12, 12), masks
    return Setup(lambda: Step(_line, net=pixel_net(3, outputs), criterion=make_criterion()), loaders(columns))


@cases(PACKAGE, NETWORKS, "module")
def network(name: str) -> Setup:
    """A segmentation network with cross-entropy."""
    import segmentation_models_pytorch as smp

    def make_module() -> Step:
        net = getattr(smp, name)("resnet18", encoder_weights=None, classes=NUM_CLASSES)
        return Step(lambda step, batch: F.cross_entropy(step.net(batch[0]), batch[1]), net=net)

    columns = normal(3, SIZE, SIZE, num=FEW), integers(NUM_CLASSES, SIZE, SIZE, num=FEW)
    return Setup(make_module, loaders(columns), num_instances=FEW)


@cases(PACKAGE, MULTICLASS, "loss")
def multiclass(name: str) -> Setup:
    """A loss of class masks."""
    import segmentation_models_pytorch as smp

    return _setup(lambda: getattr(smp.losses, name)("multiclass"), integers(NUM_CLASSES, 12, 12))


@case(PACKAGE, "SoftBCEWithLogitsLoss", "loss")
def soft_bce() -> Setup:
    """Binary masks, smoothed."""
    import segmentation_models_pytorch as smp

    return _setup(lambda: smp.losses.SoftBCEWithLogitsLoss(smooth_factor=0.1), integers(2, 1, 12, 12).float(), 1)


@case(PACKAGE, "SoftCrossEntropyLoss", "loss")
def soft_cross_entropy() -> Setup:
    """Class masks, smoothed."""
    import segmentation_models_pytorch as smp

    return _setup(lambda: smp.losses.SoftCrossEntropyLoss(smooth_factor=0.1), integers(NUM_CLASSES, 12, 12))


@case(PACKAGE, "MCCLoss", "loss")
def mcc() -> Setup:
    """Correlation of the whole batch's pixels."""
    import segmentation_models_pytorch as smp

    def line(step: Any, batch: Any) -> Tensor:
        return step.criterion(step.net(batch[0]).sigmoid(), batch[1])

    columns = normal(3, 12, 12), integers(2, 1, 12, 12).float()
    return Setup(lambda: Step(line, net=pixel_net(3, 1), criterion=smp.losses.MCCLoss()), loaders(columns))


@case(PACKAGE, "FocalLoss plus DiceLoss", "loss")
def focal_and_dice() -> Setup:
    """The usual sum: one part has rows, the other is of the whole batch."""
    import segmentation_models_pytorch as smp

    def line(step: Any, batch: Any) -> Tensor:
        logits = step.net(batch[0])
        return step.focal(logits, batch[1]) + step.dice(logits, batch[1])

    columns = normal(3, 12, 12), integers(NUM_CLASSES, 12, 12)

    def make_module() -> Step:
        losses = {"focal": smp.losses.FocalLoss("multiclass"), "dice": smp.losses.DiceLoss("multiclass")}
        return Step(line, net=pixel_net(3, NUM_CLASSES), **losses)

    return Setup(make_module, loaders(columns))
