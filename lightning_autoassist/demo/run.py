"""The demo: a small network trained in full, on a shortened schedule, and filtered by policies, in several seeds."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger, WandbLogger
from rich.console import Console

from lightning_autoassist.demo.data import DEFAULT_DATA_DIR, DEFAULT_OUT, Split
from lightning_autoassist.demo.progress import RunProgress, progress_bars
from lightning_autoassist.demo.project import ImageClassifier, ImageData, small_resnet
from lightning_autoassist.demo.rare_events import EventClassifier, EventData, EventSplit, event_net
from lightning_autoassist.demo.results import Recorder, RunResult, as_table, draw
from lightning_autoassist.demo.settings import (
    CONTROL,
    DEFAULT_POLICY,
    DEMO_DATA,
    FULL,
    PAPERS_POLICY,
    UNIFORM,
    DemoData,
)
from lightning_autoassist.filtering.callback import AutoAssistCallback
from lightning_autoassist.filtering.data.data_module import AutoAssistDataModule
from lightning_autoassist.filtering.policies.registry import POLICIES
from lightning_autoassist.trainer_support.variants import quiet

PLOT_NAME = "demo.png"

WandbMode = Literal["online", "offline", "off"]


@dataclass(frozen=True)
class DemoRun:
    """One run of the demo.

    Args:
        method: ``"full"`` or a policy's name.
        budget: Share of the full run's optimizer steps, in (0, 1].
        learning_rate: Peak of the schedule.
        num_epochs: Of the Trainer.
        seed: Of the network's parameters and the order of the instances.
    """

    method: str
    budget: float
    learning_rate: float
    num_epochs: int
    seed: int

    @property
    def name(self) -> str:
        """What the method is called in tables and logs."""
        notes = {DEFAULT_POLICY: " (default)", PAPERS_POLICY: " (the paper's)", CONTROL: " (control)"}
        return FULL if self.method == FULL else f"{self.method}{notes.get(self.method, '')}, {self.budget:.0%}"


def run_demo(
    data: str = "digits",
    *,
    policies: Sequence[str] | None = None,
    num_seeds: int | None = None,
    budget: float | None = None,
    num_epochs: int | None = None,
    seed: int = 0,
    wandb_mode: WandbMode | None = None,
    data_dir: Path = DEFAULT_DATA_DIR,
    out: Path = DEFAULT_OUT,
) -> list[RunResult]:
    """Train in full, on a shortened schedule and by policies; print a table, draw the curves, leave W&B runs.

    Args:
        data: A name in ``DEMO_DATA``; what is None of the next four is what suits the data.
        policies: Names in ``POLICIES``, beside the full run and ``"uniform"``, which always run.
        num_seeds: Runs of each method.
        budget: Share of the full run's optimizer steps that the others get, in (0, 1].
        num_epochs: Epochs of each run.
        seed: The first of the seeds.
        wandb_mode: ``"online"``, ``"offline"`` or ``"off"``; None: offline where W&B is installed.
        data_dir: Folder for downloads.
        out: Folder for the plot and the W&B runs.

    Returns:
        The runs, the methods of a seed together: full, uniform and the policies in their order.

    Raises:
        OSError: If the data cannot be had, or ``out`` cannot be written to, or W&B cannot be reached.
        ModuleNotFoundError: If ``wandb_mode`` asks for W&B and it is not installed.
    """
    console, settings = Console(), DEMO_DATA[data]
    split = settings.load(data_dir)
    out.mkdir(parents=True, exist_ok=True)
    mode = wandb_mode or _mode_without_account(console)
    runs = _runs(settings, policies, budget, num_epochs, range(seed, seed + (num_seeds or settings.num_seeds)))
    results = _train_all(data, split, runs, console, mode, out)
    _report(console, results, data, runs, out, mode)
    return results


def _runs(
    settings: DemoData, policies: Sequence[str] | None, budget: float | None, num_epochs: int | None, seeds: range
) -> list[DemoRun]:
    budget, num_epochs = budget or settings.budget, num_epochs or settings.num_epochs
    methods = dict.fromkeys((FULL, UNIFORM, *(settings.policies if policies is None else policies)))
    return [
        DemoRun(method, 1.0 if method == FULL else budget, settings.learning_rate(method), num_epochs, seed)
        for seed in seeds
        for method in methods
    ]


def _train_all(
    data: str, split: Split | EventSplit, runs: Sequence[DemoRun], console: Console, mode: WandbMode, out: Path
) -> list[RunResult]:
    settings, results = DEMO_DATA[data], []
    with _quiet(), _threads(settings.num_threads), _wandb_ended(mode):
        for run in runs:
            with _logging_to_wandb(data, run, mode, out) as logger, progress_bars(console) as progress:
                bar = RunProgress(progress, f"{run.method}, seed {run.seed}", f"val_{settings.metric}")
                results.append(train(settings, split, run, callbacks=[bar], logger=logger))
    return results


def _mode_without_account(console: Console) -> WandbMode:
    if importlib.util.find_spec("wandb"):
        return "offline"
    console.print("W&B is not installed, so no runs are logged; pip install wandb brings them.")
    return "off"


def train(
    settings: DemoData,
    split: Split | EventSplit,
    run: DemoRun,
    *,
    callbacks: Sequence[pl.Callback] = (),
    logger: Logger | bool = False,
) -> RunResult:
    """Train once.

    Args:
        settings: Of the data.
        split: The data.
        run: What to train.
        callbacks: Further ones of the Trainer.
        logger: Of the Trainer.
    """
    torch.manual_seed(run.seed)
    module, data = _project(settings, split, run.learning_rate)
    callback, recorder = _callback(settings, run.method), Recorder(f"val_{settings.metric}")
    trainer = _trainer(settings, run, [callback, recorder, *callbacks], logger)
    trainer.fit(module, datamodule=AutoAssistDataModule(data, budget=run.budget))
    return RunResult(
        method=run.method,
        name=run.name,
        seed=run.seed,
        optimizer_steps=trainer.global_step,
        instances_seen=recorder.instances_seen,
        seconds=recorder.seconds,
        value=recorder.curve[-1][1],
        keep_rate=callback.summary()["keep_rate"] if callback.policy.needs_scores else None,
        curve=tuple(recorder.curve),
    )


def _trainer(
    settings: DemoData, run: DemoRun, callbacks: list[pl.Callback | AutoAssistCallback], logger: Logger | bool
) -> pl.Trainer:
    return pl.Trainer(
        devices=1,
        max_epochs=run.num_epochs,
        check_val_every_n_epoch=settings.curve_interval(run.num_epochs),
        callbacks=callbacks,
        logger=logger,
        log_every_n_steps=10,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _project(
    settings: DemoData, split: Split | EventSplit, learning_rate: float
) -> tuple[pl.LightningModule, pl.LightningDataModule]:
    if isinstance(split, EventSplit):
        net = event_net(split.train.features.shape[1])
        return EventClassifier(net, learning_rate), EventData(split, settings.batch_size)
    net = small_resnet(settings.stem_stride)
    return ImageClassifier(net, learning_rate), ImageData(split, settings.batch_size)


def _callback(settings: DemoData, method: str) -> AutoAssistCallback:
    """The callback of a method. The full run is plain Lightning bit for bit; its callback logs what it cost."""
    if method == FULL:
        return AutoAssistCallback(policy="uniform")
    options = settings.policy_options.get(method)
    # By its name a policy gets the defaults that suit the budget.
    return AutoAssistCallback(policy=POLICIES[method](**options) if options else method)  # type: ignore[arg-type]


def _report(
    console: Console, results: list[RunResult], data: str, runs: Sequence[DemoRun], out: Path, mode: WandbMode
) -> None:
    settings = DEMO_DATA[data]
    metric = f"test {settings.metric.replace('_', ' ')}"
    draw(results, out / PLOT_NAME, metric)
    console.print(
        as_table(results, metric),
        "Means and standard errors over seeds; differences to the shortened schedule are paired by seed, in points. "
        "Seconds are of training, without validation; they compare on an otherwise idle machine only.",
        settings.caveat,
        sep="\n",
    )
    _tell_of_rates(console, settings, runs)
    console.print(f"The {metric} against optimizer steps: {out / PLOT_NAME}", soft_wrap=True)
    if mode != "off":
        uniform = next(run.name for run in runs if run.method == UNIFORM)
        console.print(f"W&B runs ({mode}): {out / 'wandb'}", soft_wrap=True)
        console.print(
            f'Side by side, on a page: autoassist compare {out / "wandb"} --baseline "{data}, {uniform}"',
            soft_wrap=True,
        )


def _tell_of_rates(console: Console, settings: DemoData, runs: Sequence[DemoRun]) -> None:
    rates = {run.method: run.learning_rate for run in runs}
    shown = ", ".join(f"{method} {rate:g}" for method, rate in rates.items())
    console.print(f"Peak learning rates: {shown}. {settings.rates_from}")
    unknown = [method for method in rates if method not in settings.learning_rates]
    if unknown and len(settings.learning_rates) > 1:
        console.print(f"No rate was chosen for {', '.join(unknown)}, which took that of {UNIFORM}.")
    if any(run.num_epochs != settings.num_epochs or run.budget not in (1.0, settings.budget) for run in runs):
        console.print(f"They were chosen for {settings.num_epochs} epochs at a budget of {settings.budget:.0%}.")


@contextmanager
def _logging_to_wandb(data: str, run: DemoRun, mode: WandbMode, out: Path) -> Iterator[Logger | bool]:
    """A logger for one run, which is finished afterwards; False where ``mode`` is ``"off"``."""
    if mode == "off":
        yield False
        return
    import wandb

    try:
        logged = wandb.init(
            project="lightning-autoassist-demo",
            name=f"{data}, {run.name}",
            group=f"demo on {data}",
            job_type=run.name,
            config={"data": data, "seed": run.seed, "learning_rate": run.learning_rate},
            dir=out,
            mode=mode,
            settings=wandb.Settings(silent=True, console="off"),
        )
    except wandb.Error as error:
        raise ConnectionError(f"W&B is not available, --wandb offline needs no account: {error}") from error
    # The axes that WandbLogger gives to runs that it starts itself.
    logged.define_metric("trainer/global_step")
    logged.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    with logged:
        yield WandbLogger(experiment=logged)


@contextmanager
def _wandb_ended(mode: WandbMode) -> Iterator[None]:
    """End W&B's background process, also where it could not be reached."""
    try:
        yield
    finally:
        if mode != "off":
            import wandb

            wandb.teardown()  # also, what it has read of the environment would decide over later runs


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
        warnings.filterwarnings("ignore", ".*smaller than the logging interval")
        yield
