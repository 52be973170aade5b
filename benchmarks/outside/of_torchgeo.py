"""torchgeo's LightningModules, of ``lightning.pytorch``, whose schedule watches the validation loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.outside.cases import Setup, case, integers, loaders, normal

PACKAGE = "torchgeo"
SIZE, CLASSES = 32, 3


def _setup(make_module: Callable[[], Any], columns: dict[str, Tensor] | Any, **options: Any) -> Setup:
    make_loader = loaders(columns) if isinstance(columns, dict) else columns
    return Setup(make_module, make_loader, **{"validates": True, **options})


def _pictures(**others: Tensor) -> dict[str, Tensor]:
    return {"image": normal(3, SIZE, SIZE), **others}


@case(PACKAGE, "ClassificationTask", "module")
def classification() -> Setup:
    """One label a picture."""
    from torchgeo.trainers import ClassificationTask

    def make_module() -> Any:
        return ClassificationTask("test_resnet", num_classes=CLASSES)

    return _setup(make_module, _pictures(label=integers(CLASSES)))


@case(PACKAGE, "ClassificationTask, focal", "module")
def focal() -> Setup:
    """The same with smp's focal loss."""
    from torchgeo.trainers import ClassificationTask

    def make_module() -> Any:
        return ClassificationTask("test_resnet", num_classes=CLASSES, loss="focal")

    return _setup(make_module, _pictures(label=integers(CLASSES)))


@case(PACKAGE, "ClassificationTask, several labels", "module")
def tags() -> Setup:
    """Several labels a picture."""
    from torchgeo.trainers import ClassificationTask

    def make_module() -> Any:
        return ClassificationTask("test_resnet", task="multilabel", num_labels=CLASSES, loss="bce")

    return _setup(make_module, _pictures(label=integers(2, CLASSES)))


@case(PACKAGE, "RegressionTask", "module")
def regression() -> Setup:
    """One number a picture."""
    from torchgeo.trainers import RegressionTask

    return _setup(lambda: RegressionTask("test_resnet", num_outputs=1), _pictures(label=normal(1)))


@case(PACKAGE, "PixelwiseRegressionTask", "module")
def pixelwise() -> Setup:
    """One number a pixel."""
    from torchgeo.trainers import PixelwiseRegressionTask

    def make_module() -> Any:
        return PixelwiseRegressionTask("fcn", num_filters=4, loss="mae")

    return _setup(make_module, _pictures(mask=normal(1, SIZE, SIZE)))


@case(PACKAGE, "SemanticSegmentationTask", "module")
def segmentation() -> Setup:
    """One label a pixel, some left out."""
    from torchgeo.trainers import SemanticSegmentationTask

    def make_module() -> Any:
        return SemanticSegmentationTask("fcn", num_filters=4, num_classes=CLASSES, ignore_index=0)

    return _setup(make_module, _pictures(mask=integers(CLASSES, SIZE, SIZE)))


@case(PACKAGE, "SemanticSegmentationTask, jaccard", "module")
def jaccard() -> Setup:
    """The same with a loss of the whole batch's regions."""
    from torchgeo.trainers import SemanticSegmentationTask

    def make_module() -> Any:
        return SemanticSegmentationTask("fcn", num_filters=4, num_classes=CLASSES, loss="jaccard")

    return _setup(make_module, _pictures(mask=integers(CLASSES, SIZE, SIZE)))


def _lists_of_boxes(rows: list[Any]) -> dict[str, Any]:
    batch = {name: [row[name] for row in rows] for name in rows[0]}
    return {**batch, "image": torch.stack(batch["image"])}


@case(PACKAGE, "ObjectDetectionTask", "module")
def detection() -> Setup:
    """A dict of losses over boxes."""
    from torch.utils.data import DataLoader
    from torchgeo.trainers import ObjectDetectionTask

    from benchmarks.outside.cases import NUM_INSTANCES
    from benchmarks.outside.detection import targets

    pictures = normal(3, SIZE, SIZE)
    boxes = targets(SIZE, CLASSES)
    rows = [
        {"image": pictures[index], "bbox_xyxy": boxes[index]["boxes"], "label": boxes[index]["labels"]}
        for index in range(NUM_INSTANCES)
    ]

    def make_loader(batch_size: int, shuffle: bool) -> DataLoader:
        return DataLoader(rows, batch_size=batch_size, shuffle=shuffle, collate_fn=_lists_of_boxes)

    def make_module() -> Any:
        task = ObjectDetectionTask("fcos", "resnet18", num_classes=CLASSES + 1)
        task.model.transform.min_size, task.model.transform.max_size = (SIZE,), SIZE
        return task

    return _setup(make_module, make_loader, eval_mode=False)


@case(PACKAGE, "SimCLRTask", "module")
def simclr() -> Setup:
    """Contrastive, two views made on the device (none here, so that a step draws nothing)."""
    from torchgeo.trainers import SimCLRTask

    def make_module() -> Any:
        return SimCLRTask(
            "test_resnet", layers=2, hidden_dim=8, output_dim=8, memory_bank_size=0, augmentations=nn.Identity()
        )

    return _setup(make_module, {"image": normal(6, SIZE, SIZE)}, validates=False)


@case(PACKAGE, "MoCoTask", "module")
def moco() -> Setup:
    """Contrastive, against a momentum encoder."""
    from torchgeo.trainers import MoCoTask

    def make_module() -> Any:
        identity = {"augmentation1": nn.Identity(), "augmentation2": nn.Identity()}
        return MoCoTask("test_resnet", layers=2, hidden_dim=8, output_dim=8, lr=0.01, **identity)

    return _setup(make_module, {"image": normal(6, SIZE, SIZE)}, validates=False)


@case(PACKAGE, "BYOLTask", "module")
def byol() -> Setup:
    """Two views without negatives, and a target network of running means."""
    from torchgeo.trainers import BYOLTask
    from torchgeo.trainers.byol import BYOL

    def make_module() -> Any:
        task = BYOLTask("test_resnet")
        sizes = {"image_size": (SIZE, SIZE), "projection_size": 8, "hidden_size": 8, "in_channels": 3}
        task.model = BYOL(task.model.backbone, augment_fn=nn.Identity(), **sizes)
        return task

    def by_hand(task: Any, batch: Any) -> Tensor:
        one, other = batch["image"].chunk(2, dim=1)
        pairs = (task.model(one), task.model.target(other)), (task.model(other), task.model.target(one))
        return sum(2 - 2 * F.cosine_similarity(guess, target) for guess, target in pairs)

    return _setup(make_module, {"image": normal(6, SIZE, SIZE)}, by_hand=by_hand)
