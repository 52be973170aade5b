"""Small runs on a device, and what waits for it, for the tests that go over devices."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

import lightning_autoassist
from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule, ShrinkingBatchSampler
from lightning_autoassist.losses import functional
from tests.helpers.ordinary import NUM_CLASSES, Classifier, CountingDataset, trainer

PACKAGE = str(Path(lightning_autoassist.__file__).parent)
NUM_INSTANCES, BATCH_SIZE = 120, 10


class Convolutional(Classifier):
    """Convolutions over images whose channels lie last in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, stride=2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, NUM_CLASSES),
        ).to(memory_format=torch.channels_last)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self.net(images.contiguous(memory_format=torch.channels_last)), labels)


class LanguageModel(Classifier):
    """Predicts the next token; each instance has as many losses as tokens, and some of them are padding."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Embedding(20, 8), nn.Dropout(0.1), nn.Linear(8, 20))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (tokens,) = batch
        logits = self.net(tokens[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), ignore_index=0)


def clusters() -> Dataset[Any]:
    instances = CountingDataset(NUM_INSTANCES)
    return TensorDataset(instances.features, instances.labels)


def images() -> Dataset[Any]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(NUM_INSTANCES) % NUM_CLASSES
    return TensorDataset(
        torch.randn(NUM_INSTANCES, 3, 12, 12, generator=generator) + labels[:, None, None, None], labels
    )


def sentences() -> Dataset[Any]:
    tokens = torch.randint(1, 20, (NUM_INSTANCES, 12), generator=torch.Generator().manual_seed(0))
    tokens[::3, 9:] = 0
    return TensorDataset(tokens)


TASKS = {
    "clusters": (Classifier, clusters),
    "images": (Convolutional, images),
    "sentences": (LanguageModel, sentences),
}


def on_device_options(device: str) -> dict[str, Any]:
    """The Trainer's options for a type of device."""
    return {"accelerator": "gpu" if device == "cuda" else "cpu", "devices": 1}


def fit(
    device: str,
    task: str | tuple[Any, Any],
    *callbacks: Any,
    filtering: dict[str, Any] | None = None,
    budget: float = 0.6,
    **options: Any,
) -> tuple[pl.LightningModule, AutoAssistCallback | None, pl.Trainer]:
    """One run.

    Args:
        device: Of the Trainer.
        task: In ``TASKS``, or what makes a module, and what makes a data set.
        callbacks: Beside ours.
        filtering: Arguments of the callback; None: plain Lightning.
        budget: Where it filters.
        options: Of the Trainer.
    """
    make_module, make_data = TASKS[task] if isinstance(task, str) else task
    pl.seed_everything(0, verbose=False)
    module: pl.LightningModule = make_module()
    data: Any = DataLoader(make_data(), BATCH_SIZE, shuffle=True)
    callback = None if filtering is None else AutoAssistCallback(**filtering)
    run = trainer(
        **{
            "max_epochs": 3,
            "limit_val_batches": 0,
            "callbacks": [*([] if callback is None else [callback]), *callbacks],
            **on_device_options(device),
            **options,
        }
    )
    if callback is None:
        run.fit(module, data)
    else:
        run.fit(module, datamodule=AutoAssistDataModule(data, budget=budget, seed=1))
    return module, callback, run


def assert_equal_modules(left: nn.Module, right: nn.Module) -> None:
    expected = right.state_dict()
    for name, value in left.state_dict().items():
        assert torch.equal(value, expected[name]), name


# What waits for a device where the tensor lies on one.
LOOKS = ("to", "item", "cpu", "tolist", "numpy", "nonzero", "equal", "__bool__", "__int__", "__float__", "__index__")


def _is_drawing(frame: Any) -> bool:
    """Whether a batch is being drawn, as happens in the training loop when a pass begins: of the CPU's tensors only."""
    while frame is not None and frame.f_code is not ShrinkingBatchSampler.draws.__code__:
        frame = frame.f_back
    return frame is not None


class NoWaiting(pl.Callback):
    """Lets nothing wait for the device while steps run, once the first of them have found out about the loss.

    On CUDA torch raises where anything waits. On the CPU, where nothing does, what would wait for another device is
    counted: blocking copies to a device, and looking at values, by this package's code in the training loop.

    Args:
        device: A type.
        monkeypatch: Of pytest.
        first_steps: So many may wait.
    """

    def __init__(self, device: str, monkeypatch: Any, first_steps: int = 24) -> None:
        self.device, self.first_steps = device, first_steps
        self.waited = Counter[str]()
        self.num_watched = 0
        self._is_watching = False
        if device != "cuda":
            monkeypatch.setattr(functional, "answers_at_once", lambda values: False)  # as on a device
            for name in LOOKS:
                monkeypatch.setattr(Tensor, name, self._counted(name, getattr(Tensor, name)))

    def _counted(self, name: str, function: Any) -> Any:
        def call(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            caller = sys._getframe(1)
            is_ours = self._is_watching and caller.f_code.co_filename.startswith(PACKAGE)
            if is_ours and threading.current_thread() is threading.main_thread() and not _is_drawing(caller):
                moves = any(isinstance(each, (torch.device, str)) for each in [*args, *kwargs.values()])
                # arrays.on_device alone knows when a copy need not be waited for.
                if name != "to" or (moves and caller.f_code.co_name != "on_device"):
                    self.waited[f"{name} at {Path(caller.f_code.co_filename).name}:{caller.f_lineno}"] += 1
            return function(tensor, *args, **kwargs)

        return call

    def _watch(self, is_watching: bool) -> None:
        self._is_watching = is_watching
        if self.device == "cuda":
            torch.cuda.set_sync_debug_mode("error" if is_watching else "default")

    def on_train_batch_start(self, run: Any, *args: Any) -> None:
        if run.fit_loop.total_batch_idx >= self.first_steps:
            self.num_watched += 1
            self._watch(True)

    def on_train_batch_end(self, run: Any, *args: Any) -> None:
        if run.is_last_batch:  # when an epoch's metrics are logged, waiting is allowed
            self._watch(False)

    def on_train_end(self, *args: Any) -> None:
        self._watch(False)

    def on_exception(self, *args: Any) -> None:
        self._watch(False)
