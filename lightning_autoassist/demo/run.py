"""The demo: one small ResNet, trained in full, uniformly at the budget, and with AutoAssist at the budget.

The first half is a project as a user has it; it knows nothing of AutoAssist. The second half runs it three times.

Shapes: B batch, H and W height and width in pixels, C classes.
"""

from __future__ import annotations

import importlib.util
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger, WandbLogger
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

from lightning_autoassist.demo.data import DEFAULT_DATA_DIR, DEFAULT_OUT, DEMO_DATA, Split
from lightning_autoassist.filtering.callback import AutoAssistCallback
from lightning_autoassist.filtering.data.data_module import AutoAssistDataModule
from lightning_autoassist.trainer_support.variants import quiet

NUM_CLASSES = 10
PLOT_NAME = "accuracy.png"

# ---- a project as a user has it


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, as in torchvision's ResNet-18.

    Args:
        num_inputs: Channels in.
        num_outputs: Channels out.
        stride: Of the first convolution, and of the shortcut.
    """

    def __init__(self, num_inputs: int, num_outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(num_inputs, num_outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(num_outputs),
            nn.ReLU(),
            nn.Conv2d(num_outputs, num_outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(num_outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or num_inputs != num_outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(num_inputs, num_outputs, 1, stride, bias=False), nn.BatchNorm2d(num_outputs)
            )

    def forward(self, features: Tensor) -> Tensor:
        return F.relu(self.residual(features) + self.shortcut(features))


def small_resnet(stem_stride: int) -> nn.Sequential:
    """A ResNet of three blocks: ``(B, 1, H, W)`` grey images in, ``(B, C)`` logits out.

    Args:
        stem_stride: Stride of the first convolution.
    """
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stem_stride, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        ResidualBlock(16, 16),
        ResidualBlock(16, 32, stride=2),
        ResidualBlock(32, 64, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, NUM_CLASSES),
    )


class ImageClassifier(pl.LightningModule):
    """Cross-entropy, SGD and a OneCycle schedule over all the Trainer's steps.

    Args:
        net: Images in, logits out.
        learning_rate: Peak of the schedule.
    """

    def __init__(self, net: nn.Module, learning_rate: float) -> None:
        super().__init__()
        self.net = net
        self.learning_rate = learning_rate
        self.accuracy = MulticlassAccuracy(NUM_CLASSES, average="micro")

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(self.net(images), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        self.accuracy(self.net(images), labels)
        self.log("val_accuracy", self.accuracy)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), self.learning_rate, momentum=0.9, weight_decay=5e-4)
        num_steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.learning_rate, total_steps=num_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class ImageData(pl.LightningDataModule):
    """A shuffled train loader, and one of the held-out images.

    Args:
        split: The data.
        batch_size: B.
    """

    def __init__(self, split: Split, batch_size: int) -> None:
        super().__init__()
        self.split = split
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.split.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.split.held_out, 500)


# ---- three runs of it


@dataclass(frozen=True)
class RunResult:
    """What a run cost and reached.

    Args:
        name: Of the run.
        boss_updates: Optimizer steps.
        instances_seen: Instances that the Boss was trained on, repeats included.
        seconds: Of training, without validation.
        accuracy: On the held-out instances at the end, in [0, 1].
        keep_rate: Share of the candidates that entered a batch; None where everything is kept.
        curve: Boss updates and held-out accuracy at the end of each epoch.
    """

    name: str
    boss_updates: int
    instances_seen: int
    seconds: float
    accuracy: float
    keep_rate: float | None
    curve: tuple[tuple[int, float], ...]


class Recorder(pl.Callback):
    """Keeps a run's figures: instances, seconds of training, accuracy after each epoch."""

    def __init__(self) -> None:
        self.instances_seen = 0
        self.seconds = 0.0
        self.curve: list[tuple[int, float]] = []
        self._started = 0.0

    def on_train_start(self, *args: Any) -> None:
        self._started = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.instances_seen += len(batch[1])

    def on_validation_start(self, *args: Any) -> None:
        self.seconds += time.perf_counter() - self._started

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.curve.append((trainer.global_step, float(trainer.callback_metrics["val_accuracy"])))
        self._started = time.perf_counter()

    def on_train_end(self, *args: Any) -> None:
        self.seconds += time.perf_counter() - self._started


class RunProgress(pl.Callback):
    """One bar for the whole of a run.

    Args:
        progress: Where it is drawn.
        name: Of the run.
    """

    def __init__(self, progress: Progress, name: str) -> None:
        self.progress = progress
        self.task = progress.add_task(name, start=False, total=None, accuracy="")

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.progress.update(self.task, total=trainer.estimated_stepping_batches)
        self.progress.start_task(self.task)

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self.progress.update(self.task, completed=trainer.global_step)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        accuracy = float(trainer.callback_metrics["val_accuracy"])
        self.progress.update(self.task, accuracy=f"accuracy {accuracy:.1%}")


def run_demo(
    data: str = "digits",
    *,
    budget: float = 0.6,
    num_epochs: int | None = None,
    seed: int = 0,
    wandb_mode: Literal["online", "offline", "off"] | None = None,
    data_dir: Path = DEFAULT_DATA_DIR,
    out: Path = DEFAULT_OUT,
) -> list[RunResult]:
    """Train three times from the same seed; print a table, draw the accuracies, leave W&B runs.

    Args:
        data: A name in ``DEMO_DATA``.
        budget: Share of the full run's Boss updates that the other two get, in (0, 1].
        num_epochs: Epochs of each run; None: what suits the data.
        seed: Of the network's parameters and the order of the instances.
        wandb_mode: ``"online"``, ``"offline"`` or ``"off"``; None: offline where W&B is installed.
        data_dir: Folder for downloads.
        out: Folder for the plot and the W&B runs.

    Returns:
        The full, the uniform and the AutoAssist run.

    Raises:
        OSError: If the data cannot be had, or ``out`` cannot be written to, or W&B cannot be reached.
        ModuleNotFoundError: If ``wandb_mode`` asks for W&B and it is not installed.
    """
    console = Console()
    settings = DEMO_DATA[data]
    split = settings.load(data_dir)
    out.mkdir(parents=True, exist_ok=True)
    if wandb_mode is None:
        wandb_mode = "offline" if importlib.util.find_spec("wandb") else "off"
        if wandb_mode == "off":
            console.print("W&B is not installed, so no runs are logged; pip install wandb brings them.")
    # The full run is plain Lightning bit for bit; the callback logs what the runs are compared by.
    runs = {
        "full": (AutoAssistCallback(policy="uniform"), 1.0),
        f"uniform {budget:.0%}": (AutoAssistCallback(policy="uniform"), budget),
        f"AutoAssist {budget:.0%}": (AutoAssistCallback(), budget),
    }
    results = []
    with _quiet(), _threads(settings.num_threads):
        for name, (callback, share) in runs.items():
            data_module = AutoAssistDataModule(ImageData(split, settings.batch_size), budget=share)
            torch.manual_seed(seed)
            module = ImageClassifier(small_resnet(settings.stem_stride), settings.learning_rate)
            with _logging_to_wandb(f"{data}, {name}", wandb_mode, out) as logger, _progress(console) as progress:
                bar = RunProgress(progress, name)
                max_epochs = num_epochs or settings.num_epochs
                results.append(_train(name, module, data_module, callback, bar, max_epochs=max_epochs, logger=logger))
    draw(results, out / PLOT_NAME)
    console.print(
        as_table(results),
        "Seconds are of training, without validation; they compare on an otherwise idle machine only.",
        settings.caveat,
        sep="\n",
    )
    console.print(f"Accuracy against Boss updates: {out / PLOT_NAME}", soft_wrap=True)
    if wandb_mode != "off":
        console.print(f"W&B runs ({wandb_mode}): {out / 'wandb'}", soft_wrap=True)
    return results


def as_table(results: list[RunResult]) -> Table:
    """The runs side by side.

    Args:
        results: One row each.
    """
    table = Table()
    table.add_column("run", no_wrap=True)
    for title in ("Boss updates", "instances seen", "seconds", "test accuracy", "keep rate"):
        table.add_column(title, justify="right")
    for result in results:
        table.add_row(
            result.name,
            f"{result.boss_updates:,}",
            f"{result.instances_seen:,}",
            f"{result.seconds:.1f}",
            f"{result.accuracy:.2%}",
            "-" if result.keep_rate is None else f"{result.keep_rate:.1%}",
        )
    return table


def draw(results: list[RunResult], path: Path) -> None:
    """Draw held-out accuracy against Boss updates.

    Args:
        results: One line each.
        path: The PNG to write.
    """
    from matplotlib.figure import Figure  # not pyplot, which keeps figures and a backend for the whole process

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="Boss updates", ylabel="test accuracy (%)")
    for result in results:
        updates, accuracies = zip(*result.curve, strict=True)
        axes.plot(updates, [100 * accuracy for accuracy in accuracies], marker="o", markersize=3, label=result.name)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, format="png", dpi=150)


def _train(
    name: str,
    module: pl.LightningModule,
    data_module: pl.LightningDataModule,
    callback: AutoAssistCallback,
    bar: RunProgress,
    **trainer_options: Any,
) -> RunResult:
    recorder = Recorder()
    trainer = pl.Trainer(
        devices=1,
        callbacks=[callback, recorder, bar],
        log_every_n_steps=10,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **trainer_options,
    )
    trainer.fit(module, datamodule=data_module)
    return RunResult(
        name=name,
        boss_updates=trainer.global_step,
        instances_seen=recorder.instances_seen,
        seconds=recorder.seconds,
        accuracy=recorder.curve[-1][1],
        keep_rate=callback.summary()["keep_rate"] if callback.policy.needs_scores else None,
        curve=tuple(recorder.curve),
    )


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:16}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("updates {task.fields[accuracy]}"),
        TimeElapsedColumn(),
        console=console,
    )


@contextmanager
def _logging_to_wandb(name: str, mode: Literal["online", "offline", "off"], out: Path) -> Iterator[Logger | bool]:
    """A logger for one run, which is finished afterwards; False where ``mode`` is ``"off"``."""
    if mode == "off":
        yield False
        return
    import wandb

    try:
        run = wandb.init(
            project="lightning-autoassist-demo",
            name=name,
            group=f"demo on {name.partition(',')[0]}",
            job_type=name.partition(", ")[2],
            dir=out,
            mode=mode,
            settings=wandb.Settings(silent=True, console="off"),
        )
    except wandb.Error as error:
        wandb.teardown()  # what it has read of the environment would decide over later runs
        raise ConnectionError(f"W&B is not available, --wandb offline needs no account: {error}") from error
    try:
        with run:
            yield WandbLogger(experiment=run)
    finally:
        wandb.teardown()  # ends its background process


@contextmanager
def _threads(num_threads: int | None) -> Iterator[None]:
    """Let torch use so many threads on the CPU; None: as many as it would."""
    own = torch.get_num_threads()
    torch.set_num_threads(num_threads or own)
    try:
        yield
    finally:
        torch.set_num_threads(own)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what Lightning says about devices, workers and its own use of torch."""
    with quiet(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers")  # tensors in memory: nothing for them to do
        warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated")
        yield
