"""One run of the image benchmark: the Boss, what is measured of it, and the method that chooses its instances.

Shapes: B batch, C classes.
"""

from __future__ import annotations

import ast
import re
import time
import warnings
from dataclasses import asdict, dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from image_data import NUM_CLASSES, ImageData, Images
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule
from lightning_autoassist.demo import small_resnet
from lightning_autoassist.policies import POLICIES

FULL = "full"
CALLBACK_OPTIONS = ("assistant", "score", "weights", "tail", "max_features")
NUM_CURVE_POINTS = 6


class Method:
    """What chooses the instances: ``full`` (plain Lightning) or a policy, with options of it or of the callback.

    Args:
        spec: ``"NAME"`` or ``"NAME:KEY=VALUE,..."``, as in ``"proportional:cap_quantile=0.95,weights=mean"``.

    Raises:
        ValueError: If the name is not in ``POLICIES``.
    """

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self.name, _, options = spec.partition(":")
        if self.name != FULL and self.name not in POLICIES:
            raise ValueError(
                f"a method is one of {', '.join([FULL, *POLICIES])}, with options after a colon; got {spec!r}"
            )
        self.options = dict(_option(text) for text in options.split(",") if text)

    @property
    def is_full(self) -> bool:
        """Whether it is plain Lightning."""
        return self.name == FULL

    def callback(self, budget: float) -> AutoAssistCallback | None:
        """The callback of a run at a budget, None for the full run."""
        if self.is_full:
            return None
        of_callback = {key: value for key, value in self.options.items() if key in CALLBACK_OPTIONS}
        of_policy = {key: value for key, value in self.options.items() if key not in CALLBACK_OPTIONS}
        policy = POLICIES[self.name].for_budget(budget, **of_policy)
        return AutoAssistCallback(policy=policy, **of_callback)


def _option(text: str) -> tuple[str, Any]:
    key, _, value = text.partition("=")
    try:
        return key, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return key, value


@dataclass(frozen=True)
class Job:
    """One run: what makes it the run it is, and nothing else.

    Args:
        phase: ``"tune"``: measured on a part of the training images; ``"final"``: on the test images.
        dataset: In ``IMAGE_SETS``.
        instances: Training images, 0 for all, None for the data set's own number.
        image_size: Height and width they are scaled to, None as they are.
        model: ``"small"`` or ``"resnet18"``.
        batch_size: B.
        epochs: Of the Trainer.
        augment: Whether training images are flipped and shifted.
        device: ``"cpu"`` or ``"cuda"``.
        precision: Of the Trainer.
        method: See :class:`Method`.
        budget: Share of the full run's Boss updates.
        learning_rate: Peak of the schedule.
        seed: Of the parameters and the order of the instances.
    """

    phase: str
    dataset: str
    instances: int | None
    image_size: int | None
    model: str
    batch_size: int
    epochs: int
    augment: bool
    device: str
    precision: str
    method: str
    budget: float
    learning_rate: float
    seed: int


def resnet18(num_channels: int) -> nn.Module:
    """ResNet-18 of torchvision with the stem that suits images of 32x32: 3x3, no stride, no pooling."""
    from torchvision.models import resnet18 as build

    net = build(num_classes=NUM_CLASSES)
    net.conv1 = nn.Conv2d(num_channels, 64, 3, padding=1, bias=False)
    net.maxpool = nn.Identity()
    return net


def make_net(model: str, image_shape: torch.Size) -> nn.Module:
    """A network for images of shape ``(channels, H, W)``."""
    if model == "resnet18":
        return resnet18(image_shape[0])
    net = small_resnet(stem_stride=2 if image_shape[-1] > 16 else 1)
    if image_shape[0] != 1:
        net[0] = nn.Conv2d(image_shape[0], 16, 3, 2, padding=1, bias=False)
    return net


class ImageBoss(pl.LightningModule):
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


class Stopwatch(pl.Callback):
    """Seconds of training and of validation, each without the other, and accuracy against Boss updates."""

    def __init__(self) -> None:
        self.train_seconds = 0.0
        self.validation_seconds = 0.0
        self.curve: list[tuple[int, float]] = []
        self._since = 0.0

    def _lap(self, trainer: Any) -> float:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        lap, self._since = now - self._since, now
        return lap

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._lap(trainer)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self.train_seconds += self._lap(trainer)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.validation_seconds += self._lap(trainer)
        self.curve.append((trainer.global_step, round(float(trainer.callback_metrics["accuracy"]), 5)))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.train_seconds += self._lap(trainer)


def run_job(
    job: Job, train: Images, held_out: Images, *, channels_last: bool = False, num_workers: int = 0
) -> dict[str, Any]:
    """Train once.

    Args:
        job: What to run.
        train: To train on.
        held_out: To measure accuracy on.
        channels_last: See :class:`ImageBoss`.
        num_workers: Processes that load images.

    Returns:
        The row: the job's own fields, and what came out.
    """
    torch.manual_seed(job.seed)
    images = ImageData(train, held_out, job.batch_size, job.augment, num_workers)
    callback = Method(job.method).callback(job.budget)
    data = images if callback is None else AutoAssistDataModule(images, budget=job.budget)
    module = ImageBoss(make_net(job.model, train.images.shape[1:]), job.learning_rate, channels_last)
    stopwatch = Stopwatch()
    trainer = pl.Trainer(
        accelerator="gpu" if job.device == "cuda" else "cpu",
        devices=1,
        precision=job.precision,  # type: ignore[arg-type]
        max_epochs=job.epochs,
        check_val_every_n_epoch=_validation_interval(job.epochs),
        callbacks=[stopwatch] if callback is None else [callback, stopwatch],
        logger=False,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, datamodule=data)
    summary = {} if callback is None else callback.summary()
    return {
        **asdict(job),
        "train_instances": len(train.labels),
        "held_out_instances": len(held_out.labels),
        "channels_last": channels_last,
        "workers": num_workers,
        "schedule": "OneCycle over the run's own updates",
        "settings": {} if callback is None else _settings(callback),
        "accuracy": stopwatch.curve[-1][1],
        "updates": trainer.global_step,
        "instances_loaded": images.train.num_loaded,
        "seconds": round(stopwatch.train_seconds, 2),
        "validation_seconds": round(stopwatch.validation_seconds, 2),
        "keep_rate": round(summary["keep_rate"], 4) if summary else None,
        "overhead_ms": round(summary["overhead_ms"], 4) if summary else None,
        "curve": stopwatch.curve,
        "warnings": sorted({str(one.message) for one in caught if re.search("AutoAssist|filter", str(one.message))}),
    }


def _validation_interval(epochs: int) -> int:
    """Epochs between two points of the curve, the last of them at the end of training."""
    return next(n for n in range(max(1, epochs // NUM_CURVE_POINTS), 0, -1) if epochs % n == 0)


def _settings(callback: AutoAssistCallback) -> dict[str, Any]:
    """What the method was, in full."""
    policy = {key: value for key, value in vars(callback.policy).items() if isinstance(value, (int, float, str))}
    return {
        "policy": {key: value for key, value in policy.items() if not key.startswith("_")},
        "assistant": type(callback.assistant).__name__,
        "score": callback.score,
        "weights": callback.weights,
        "tail": callback.tail,
    }
