"""One run of the image benchmark: the job and the model.

Shapes: B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.common.jobs import Job
from benchmarks.common.training import fit
from benchmarks.images.data import NUM_CLASSES, ImageData, Images
from lightning_autoassist.demo.project import small_resnet


@dataclass(frozen=True, kw_only=True)
class ImageJob(Job):
    """One run of the image benchmark.

    Args:
        dataset: In ``IMAGE_SETS``.
        instances: Training images, 0 for all, None for the data set's own number.
        image_size: Height and width they are scaled to, None as they are.
        model: In ``MODELS``.
        batch_size: B.
        augment: Whether training images are flipped and shifted.
    """

    dataset: str = "fashion-mnist"
    instances: int | None = None
    image_size: int | None = None
    model: str = "small"
    batch_size: int = 128
    epochs: int = 24
    augment: bool = False
    learning_rate: float = 0.1


def resnet18(image_shape: torch.Size) -> nn.Module:
    """ResNet-18 of torchvision with the stem that suits images of 32x32: 3x3, no stride, no pooling."""
    from torchvision.models import resnet18 as build

    net = build(num_classes=NUM_CLASSES)
    net.conv1 = nn.Conv2d(image_shape[0], 64, 3, padding=1, bias=False)
    net.maxpool = nn.Identity()
    return net


def narrow_resnet18(image_shape: torch.Size, width: int = 8) -> nn.Module:
    """ResNet-18 with an eighth of the channels, and so a step that a CPU makes in a tenth of a second.

    Args:
        image_shape: ``(channels, H, W)``.
        width: Channels of the first stage.
    """
    from torchvision.models.resnet import BasicBlock

    def first_of_stage(channels: int, wider: int) -> nn.Module:
        shortcut = nn.Sequential(nn.Conv2d(channels, wider, 1, 2, bias=False), nn.BatchNorm2d(wider))
        return BasicBlock(channels, wider, 2, shortcut)

    convolution = nn.Conv2d(image_shape[0], width, 3, padding=1, bias=False)
    layers = [convolution, nn.BatchNorm2d(width), nn.ReLU(), BasicBlock(width, width), BasicBlock(width, width)]
    for channels in (width, 2 * width, 4 * width):
        layers += [first_of_stage(channels, 2 * channels), BasicBlock(2 * channels, 2 * channels)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, NUM_CLASSES))


def tiny_cnn(image_shape: torch.Size) -> nn.Module:
    """Three convolutions of 4, 8 and 8 channels: too few parameters to fit thousands of images."""
    layers: list[nn.Module] = []
    for width, next_width in zip((image_shape[0], 4, 8), (4, 8, 8), strict=True):
        convolution = nn.Conv2d(width, next_width, 3, 2, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(next_width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, NUM_CLASSES))


def residual_net(image_shape: torch.Size) -> nn.Module:
    """The demo's residual network, for images of any number of channels."""
    net = small_resnet(stem_stride=2 if image_shape[-1] > 16 else 1)
    if image_shape[0] != 1:
        net[0] = nn.Conv2d(image_shape[0], 16, 3, 2, padding=1, bias=False)
    return net


# What builds a network for images of shape ``(channels, H, W)``.
MODELS: dict[str, Callable[[torch.Size], nn.Module]] = {
    "tiny": tiny_cnn,
    "small": residual_net,
    "resnet18": resnet18,
    "narrow-resnet18": narrow_resnet18,
}


class ImageModule(pl.LightningModule):
    """Cross-entropy, SGD with momentum, and a OneCycle schedule that ends with the run's own last update.

    Args:
        net: Images in, logits out.
        learning_rate: Peak of the schedule.
        channels_last: Lay images out with their channels last, as fast convolutions want them.
    """

    def __init__(self, net: nn.Module, learning_rate: float, channels_last: bool) -> None:
        super().__init__()
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.net = net.to(memory_format=self.layout)
        self.learning_rate = learning_rate

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images.contiguous(memory_format=self.layout))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self(images), labels)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        correct = (self(images).argmax(1) == labels).float()
        self.log("accuracy", correct.mean(), batch_size=len(labels))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(
            self.parameters(), self.learning_rate, momentum=0.9, weight_decay=5e-4, nesterov=True
        )
        num_steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.learning_rate, total_steps=num_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def run_job(
    job: ImageJob, train: Images, held_out: Images, *, channels_last: bool = False, num_workers: int = 0
) -> dict[str, Any]:
    """Train once.

    Args:
        job: What to run.
        train: To train on.
        held_out: To measure accuracy on.
        channels_last: See :class:`ImageModule`.
        num_workers: Processes that load images.

    Returns:
        The row: the job's own fields, and what came out.
    """
    torch.manual_seed(job.seed)
    images = ImageData(train, held_out, job.batch_size, job.augment, num_workers)
    module = ImageModule(MODELS[job.model](train.images.shape[1:]), job.learning_rate, channels_last)
    return {
        **fit(job, module, images),
        "train_instances": len(train.labels),
        "held_out_instances": len(held_out.labels),
        "channels_last": channels_last,
        "workers": num_workers,
        "schedule": "OneCycle over the run's own updates",
        "instances_loaded": images.train.loads.total,
    }
