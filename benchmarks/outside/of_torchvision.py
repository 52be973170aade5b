"""torchvision: detection models, which return a dict of losses, and its losses of boxes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from benchmarks.outside.cases import FEW, Setup, case, cases, integers, loaders, normal
from benchmarks.outside.detection import collate_pairs, targets
from benchmarks.outside.steps import Step, pixel_net

PACKAGE = "torchvision"
SIZE, NUM_CLASSES = 32, 3
CLASSIFIERS = ("shufflenet_v2_x0_5", "squeezenet1_1")


@cases(PACKAGE, CLASSIFIERS, "module")
def classifier(name: str) -> Setup:
    """A classifier with torch's loss."""
    import torchvision

    def make_module() -> Step:
        net = getattr(torchvision.models, name)(weights=None, num_classes=NUM_CLASSES)
        return Step(lambda step, batch: F.cross_entropy(step.net(batch[0]), batch[1]), net=net)

    columns = normal(3, SIZE, SIZE, num=FEW), integers(NUM_CLASSES, num=FEW)
    return Setup(make_module, loaders(columns), num_instances=FEW)


def _backbone() -> Any:
    net = pixel_net(3, 32)
    net.append(nn.AvgPool2d(4))
    net.out_channels = 32
    return net


def _detection(make_net: Callable[[], Any]) -> Setup:
    pictures = normal(3, SIZE, SIZE)
    rows = [(pictures[index], target) for index, target in enumerate(targets(SIZE, NUM_CLASSES))]

    def line(step: Any, batch: Any) -> Tensor:
        return sum(step.net(*batch).values())

    def make_loader(batch_size: int, shuffle: bool) -> DataLoader:
        return DataLoader(rows, batch_size=batch_size, shuffle=shuffle, collate_fn=collate_pairs)

    return Setup(lambda: Step(line, net=make_net()), make_loader, eval_mode=False)


@cases(PACKAGE, ("FCOS", "FasterRCNN", "RetinaNet"), "module")
def detector(name: str) -> Setup:
    """Anchors or proposals, sampled out of the whole batch."""
    from torchvision.models import detection

    def make_net() -> Any:
        sizes = {"min_size": SIZE, "max_size": SIZE, "num_classes": NUM_CLASSES + 1}
        anchors = detection.anchor_utils.AnchorGenerator(((8,),), ((1.0,),))
        options = {"rpn_anchor_generator" if name == "FasterRCNN" else "anchor_generator": anchors}
        if name == "FasterRCNN":
            from torchvision.ops import MultiScaleRoIAlign

            options["box_roi_pool"] = MultiScaleRoIAlign(["0"], 3, 2)
        return getattr(detection, name)(_backbone(), **sizes, **options)

    return _detection(make_net)


@cases(PACKAGE, ("complete_box_iou_loss", "distance_box_iou_loss", "generalized_box_iou_loss"), "loss")
def of_boxes(name: str) -> Setup:
    """One box an instance, the mean over boxes."""
    import torch
    import torchvision

    from benchmarks.outside.steps import perceptron

    def line(step: Any, batch: Any) -> Tensor:
        features, boxes = batch
        start, span = step.net(features).sigmoid().chunk(2, dim=1)
        return getattr(torchvision.ops, name)(torch.cat([start, start + span + 0.1], 1), boxes, reduction="mean")

    start, span = normal(2).sigmoid(), normal(2).flip(0).sigmoid()
    columns = normal(6), torch.cat([start, start + span], 1)
    return Setup(lambda: Step(line, net=perceptron(6, 4)), loaders(columns))


@case(PACKAGE, "sigmoid_focal_loss", "loss")
def focal() -> Setup:
    """Factors that depend on the logits."""
    from torchvision.ops import sigmoid_focal_loss

    from benchmarks.outside.steps import perceptron

    def line(step: Any, batch: Any) -> Tensor:
        return sigmoid_focal_loss(step.net(batch[0]), batch[1], reduction="mean")

    return Setup(lambda: Step(line, net=perceptron(6, 5)), loaders((normal(6), integers(2, 5).float())))


@case(PACKAGE, "MixUp with cross_entropy", "module")
def mixed() -> Setup:
    """Rows that mix two instances, by torchvision's own transform in the collate function."""
    from torch.utils.data import default_collate
    from torchvision.transforms import v2

    from benchmarks.outside.cases import Columns
    from benchmarks.outside.steps import small_cnn

    mixup = v2.MixUp(num_classes=NUM_CLASSES)
    dataset = Columns((normal(3, 8, 8), integers(NUM_CLASSES)))

    def make_loader(batch_size: int, shuffle: bool) -> DataLoader:
        def collate(rows: list[Any]) -> Any:
            return mixup(*default_collate(rows))

        return DataLoader(dataset, batch_size=batch_size, shuffle=shuffle, collate_fn=collate)

    def line(step: Any, batch: Any) -> Tensor:
        return F.cross_entropy(step.net(batch[0]), batch[1])

    def by_hand(step: Any, batch: Any) -> Tensor:
        return F.cross_entropy(step.net(batch[0]), batch[1], reduction="none")

    return Setup(lambda: Step(line, net=small_cnn(3, NUM_CLASSES)), make_loader, by_hand)
