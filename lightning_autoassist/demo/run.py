"""The demo: one small ResNet, trained in full, uniformly at the budget, and with AutoAssist at the budget."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger, WandbLogger
from rich.console import Console

from lightning_autoassist.demo.data import DEFAULT_DATA_DIR, DEFAULT_OUT, DEMO_DATA, DemoData, Split
from lightning_autoassist.demo.progress import RunProgress, progress_bars
from lightning_autoassist.demo.project import ImageClassifier, ImageData, small_resnet
from lightning_autoassist.demo.results import Recorder, RunResult, as_table, draw
from lightning_autoassist.filtering.callback import AutoAssistCallback
from lightning_autoassist.filtering.data.data_module import AutoAssistDataModule
from lightning_autoassist.trainer_support.variants import quiet

PLOT_NAME = "accuracy.png"

WandbMode = Literal["online", "offline", "off"]


def run_demo(
    data: str = "digits",
    *,
    budget: float = 0.6,
    num_epochs: int | None = None,
    seed: int = 0,
    wandb_mode: WandbMode | None = None,
    data_dir: Path = DEFAULT_DATA_DIR,
    out: Path = DEFAULT_OUT,
) -> list[RunResult]:
    """Train three times from the same seed; print a table, draw the accuracies, leave W&B runs.

    Args:
        data: A name in ``DEMO_DATA``.
        budget: Share of the full run's optimizer steps that the other two get, in (0, 1].
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
    console, settings = Console(), DEMO_DATA[data]
    split = settings.load(data_dir)
    out.mkdir(parents=True, exist_ok=True)
    mode = wandb_mode or _mode_without_account(console)
    epochs, results = num_epochs or settings.num_epochs, []
    with _quiet(), _threads(settings.num_threads):
        for name, (callback, share) in _runs(budget).items():
            project = _project(settings, split, share, seed)
            with _logging_to_wandb(f"{data}, {name}", mode, out) as logger:
                results.append(_train(name, *project, callback, console, max_epochs=epochs, logger=logger))
    _report(console, results, settings.caveat, out, mode)
    return results


def _mode_without_account(console: Console) -> WandbMode:
    if importlib.util.find_spec("wandb"):
        return "offline"
    console.print("W&B is not installed, so no runs are logged; pip install wandb brings them.")
    return "off"


def _runs(budget: float) -> dict[str, tuple[AutoAssistCallback, float]]:
    """Each run's callback and share of the full run's updates.

    The full run is plain Lightning bit for bit; the callback logs what the runs are compared by.
    """
    return {
        "full": (AutoAssistCallback(policy="uniform"), 1.0),
        f"uniform {budget:.0%}": (AutoAssistCallback(policy="uniform"), budget),
        f"AutoAssist {budget:.0%}": (AutoAssistCallback(), budget),
    }


def _project(settings: DemoData, split: Split, share: float, seed: int) -> tuple[ImageClassifier, AutoAssistDataModule]:
    data_module = AutoAssistDataModule(ImageData(split, settings.batch_size), budget=share)
    torch.manual_seed(seed)
    return ImageClassifier(small_resnet(settings.stem_stride), settings.learning_rate), data_module


def _report(console: Console, results: list[RunResult], caveat: str, out: Path, mode: WandbMode) -> None:
    draw(results, out / PLOT_NAME)
    console.print(
        as_table(results),
        "Seconds are of training, without validation; they compare on an otherwise idle machine only.",
        caveat,
        sep="\n",
    )
    console.print(f"Accuracy against optimizer steps: {out / PLOT_NAME}", soft_wrap=True)
    if mode != "off":
        console.print(f"W&B runs ({mode}): {out / 'wandb'}", soft_wrap=True)


def _train(
    name: str,
    module: pl.LightningModule,
    data_module: pl.LightningDataModule,
    callback: AutoAssistCallback,
    console: Console,
    **trainer_options: Any,
) -> RunResult:
    recorder = Recorder()
    with progress_bars(console) as progress:
        trainer = pl.Trainer(
            devices=1,
            callbacks=[callback, recorder, RunProgress(progress, name)],
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
        optimizer_steps=trainer.global_step,
        instances_seen=recorder.instances_seen,
        seconds=recorder.seconds,
        accuracy=recorder.curve[-1][1],
        keep_rate=callback.summary()["keep_rate"] if callback.policy.needs_scores else None,
        curve=tuple(recorder.curve),
    )


@contextmanager
def _logging_to_wandb(name: str, mode: WandbMode, out: Path) -> Iterator[Logger | bool]:
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
