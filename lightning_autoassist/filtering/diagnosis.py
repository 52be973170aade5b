"""Shows whether a module's training can be filtered: which losses of a step are captured, and what that costs."""

from __future__ import annotations

import copy
import math
import statistics
import time
import warnings
from dataclasses import dataclass, field
from typing import Any

from typing_extensions import override

from lightning_autoassist.capture.captured_loss import Explanation
from lightning_autoassist.filtering.callback import AutoAssistCallback
from lightning_autoassist.filtering.data.data_module import AutoAssistDataModule
from lightning_autoassist.filtering.reporting.advice import early_advice
from lightning_autoassist.trainer_support.arguments import check_flag, check_whole, received
from lightning_autoassist.trainer_support.batch_parts import tensors_in
from lightning_autoassist.trainer_support.variants import (
    FLAVOURS,
    STEP_OUTPUT,
    CallbackBase,
    LightningModule,
    Trainer,
    overrides,
)

WARM_UP = 2
COLUMNS = ("loss", "reduction", "folding to instances", "coefficient")


@dataclass
class Diagnosis:
    """What one training step showed.

    Attributes:
        module: Name of the module's class.
        losses: The captured losses; empty where training would be unfiltered.
        reason: Why training would be unfiltered, with the ways out; None where it is filtered.
        plain_ms: Median milliseconds of a step without capture.
        captured_ms: Median milliseconds of a step with capture and with what the Assistant learns from it. Candidates
            are judged and batches drawn after the first pass alone, so that this is not in it.
        captured_share: How much of the loss's gradient comes from the captured losses, in [0, 1].
        missed: The parts of the loss whose instances are not known.
        advice: Whether filtering can pay, as far as so few steps tell; None where no gradient's norm was captured.
        left_out: What was left out of the check for the default settings: an AutoAssistCallback of the user's own.
    """

    module: str
    losses: list[Explanation] = field(default_factory=list)
    reason: str | None = None
    plain_ms: float = float("nan")
    captured_ms: float = float("nan")
    captured_share: float = 1.0
    missed: tuple[str, ...] = ()
    advice: str | None = None
    left_out: str | None = None

    @property
    def is_filtered(self) -> bool:
        """Whether a callback with the default settings filters the module's training."""
        return self.reason is None

    @override
    def __str__(self) -> str:
        if not self.is_filtered:
            return f"{self.module}: AutoAssistCallback would train it unfiltered. {self.reason}"
        rows = [COLUMNS] + [
            (loss.source, loss.reduction, loss.folding, f"{loss.coefficient:.4g}") for loss in self.losses
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines.insert(1, "  ".join("-" * width for width in widths))
        cost = (
            f"a step takes {self.plain_ms:.2f} ms, {self.captured_ms:.2f} ms with capture and Assistant; judging "
            "candidates begins after the first pass and is not in it"
        )
        if math.isnan(self.plain_ms + self.captured_ms):
            cost = f"an epoch has too few batches to time its steps; at least {WARM_UP + 2} are needed"
        share = f"the captured losses give {self.captured_share:.0%} of the loss's gradient"
        missed = [f"missed: {part}" for part in self.missed]
        said = [each for each in (self.advice, self.left_out) if each is not None]
        can = f"{self.module}: AutoAssistCallback can filter its training, as losses of single instances were found."
        return "\n".join([can, *lines, share, *missed, cost, *said])


def diagnose(
    module: Any, data: Any = None, *, num_steps: int = 12, quiet: bool = False, **trainer_options: Any
) -> Diagnosis:
    """Train a copy of ``module`` for a few steps, print what is captured, and leave ``module`` as it is.

    Training stops before its first epoch ends. Validation runs only where training fails without it.

    Args:
        module: The LightningModule.
        data: What :class:`~lightning_autoassist.AutoAssistDataModule` takes, or one, as a stream without a length needs
            it for its ``steps_per_epoch``; None: the module's own loaders.
        num_steps: Training steps, at most those of one epoch; capture is off in every second one, for the comparison of
            times.
        quiet: Only return, do not print.
        trainer_options: For the Trainer, ``accelerator="gpu"`` for one.

    Returns:
        What was printed, as an object.

    Raises:
        TypeError: If ``module`` is no LightningModule, or ``data`` nothing to train on.
        ValueError: If ``num_steps`` is below 1.

    Example:
        >>> diagnosis = diagnose(MyModule(), MyDataModule())  # doctest: +SKIP
        MyModule: AutoAssistCallback can filter its training, as losses of single instances were found.
        loss                          reduction  folding to instances  coefficient
        ----------------------------  ---------  --------------------  -----------
        cross_entropy at train.py:31  mean       one row each          1
        the captured losses give 100% of the loss's gradient
        a step takes 21.40 ms, 21.72 ms with capture and Assistant; judging candidates begins after the first pass ...
        Filtering can pay: after these few steps the gradient's concentration is 3.4 already.
    """
    flavour = _flavour_of(module)
    num_steps = check_whole("num_steps", num_steps, "[1, inf)", "12 is the default")
    quiet = check_flag("quiet", quiet)
    diagnosis = _watched(flavour, module, data, num_steps + WARM_UP, trainer_options).diagnosis(type(module).__name__)
    if not quiet:
        print(diagnosis)
    return diagnosis


def _flavour_of(module: Any) -> Any:
    flavour = next((each for each in FLAVOURS if isinstance(module, each.LightningModule)), None)
    if flavour is None:
        remedy = (
            f"diagnose({module.__name__}(...))" if isinstance(module, type) else "diagnose(MyModule(), MyDataModule())"
        )
        raise TypeError(f"module must be a LightningModule, got {received(module)}; write {remedy}")
    return flavour


def _watched(flavour: Any, module: Any, data: Any, num_steps: int, trainer_options: dict[str, Any]) -> _Watching:
    """Train without validation, and with it where training fails without it."""
    try:
        return _train(flavour, module, data, num_steps, dict(trainer_options))
    except Exception as error:
        options = {"num_sanity_val_steps": 2, "limit_val_batches": 1, **trainer_options}
        try:
            return _train(flavour, module, data, num_steps, options)
        except Exception:  # what training itself says is what the user has to know
            raise error from None


def has_train_data(module: Any) -> bool:
    """Whether a LightningModule has a train loader of its own."""
    return overrides(module, "train_dataloader")


def _train(flavour: Any, module: Any, data: Any, num_steps: int, options: dict[str, Any]) -> _Watching:
    """Train a copy of ``module`` for some steps of its first epoch."""
    module = _copy_of(module)
    watching = _Watching()
    timer = _StepTimer(watching, num_steps, flavour.callbacks.Checkpoint)
    callbacks = options.pop("callbacks", None) or []
    callbacks = [callbacks] if isinstance(callbacks, flavour.Callback) else list(callbacks)
    settings = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
        "max_epochs": 1_000_000,
        "max_steps": num_steps,
        **options,
    }
    if not isinstance(data, AutoAssistDataModule):
        data = AutoAssistDataModule(module if data is None else data, budget=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they say of so short a run is no news
        trainer = flavour.Trainer(callbacks=[watching, timer, *callbacks], **settings)
        try:
            trainer.fit(module, datamodule=data)
        except _SeenEnoughError:  # an error ends a fit without its teardown
            data.teardown("fit")
            module.teardown("fit")
    return watching


def _copy_of(module: Any) -> Any:
    """A deep copy, also of a module that keeps results of its last step: torch copies no tensors of a graph."""
    kept = tensors_in([list(vars(part).values()) for part in module.modules()])
    return copy.deepcopy(module, {id(value): value.detach() for value in kept if not value.is_leaf})


class _Watching(AutoAssistCallback):
    """The callback, switched off in every second step, with an eye on what the capture finds."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[Explanation] = []
        self.left_out: str | None = None
        self.milliseconds: tuple[list[float], list[float]] = ([], [])  # without and with capture
        self._steps.capture.explain = self._remember

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._take_the_place_of_others(trainer)
        super().setup(trainer, pl_module, stage)

    def _take_the_place_of_others(self, trainer: Any) -> None:
        """Leave out callbacks of the user's own, in ``callbacks=`` or of the module's ``configure_callbacks``."""
        others = [each for each in trainer.callbacks if isinstance(each, AutoAssistCallback) and each is not self]
        self.left_out = _left_out(others[0]) if others else None
        # In place: the Trainer is on its way through this list, and has not come to those of the user.
        trainer.callbacks[:] = [each for each in trainer.callbacks if each not in others]

    def _remember(self, losses: list[Explanation]) -> None:
        self.losses = losses

    def switch(self, step: int) -> None:
        """Capture in even steps only."""
        if self._learner.reason is None:
            self._learner.status.is_filtering = step % 2 == 0

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._learner.is_filtering:
            self._learner.wait_all()  # else several batches wait to be learnt from together, most of them to the end

    def diagnosis(self, module: str) -> Diagnosis:
        """The diagnosis of the steps that were watched."""
        reason = self._learner.reason or self._fit.unfiltered_because
        if reason is not None or not self.losses:
            return Diagnosis(module, reason=reason or self._steps.reason, left_out=self.left_out)
        plain, captured = (statistics.median(times) if times else float("nan") for times in self.milliseconds)
        share = self._steps.capture.share
        self.switch(0)  # what waits is learnt from in a step with capture only
        self._learner.wait_all()
        advice = early_advice(self.report.spread)
        return Diagnosis(
            module, self.losses, None, plain, captured, share.ratio, share.missed, advice, left_out=self.left_out
        )


def _left_out(callback: AutoAssistCallback) -> str:
    """A sentence on a callback of the user's own that the check leaves out."""
    policy = callback.policy
    does = "It keeps every candidate, and filters nothing." if policy.keeps_everything else ""
    if not does and not policy.needs_scores:
        does = "It chooses without the losses."
    return f"The check left out the AutoAssistCallback with {type(policy).__name__}. {does}".rstrip()


def _leave_out(callback_type: type, trainer: Any) -> None:
    trainer.callbacks = [each for each in trainer.callbacks if not isinstance(each, callback_type)]


class _SeenEnoughError(Exception):
    """Ends training in the middle of an epoch: at an epoch's end, schedulers and callbacks ask for validation."""


class _StepTimer(CallbackBase):
    """Times the steps from outside of the other callback, and ends training before the epoch ends."""

    def __init__(self, watching: _Watching, num_steps: int, checkpoint_type: type) -> None:
        self.watching = watching
        self.num_steps = num_steps
        self.checkpoint_type = checkpoint_type
        self.step = 0
        self.started = 0.0

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Those of the module's configure_callbacks would leave files.
        _leave_out(self.checkpoint_type, trainer)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for config in trainer.lr_scheduler_configs:
            config.strict = False  # one that watches a metric of validation waits for it

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.watching.switch(self.step)
        self.started = time.perf_counter()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        if self.step >= WARM_UP:
            is_captured = self.step % 2 == 0
            self.watching.milliseconds[is_captured].append(1e3 * (time.perf_counter() - self.started))
        self.step += 1
        if self.step >= self.num_steps or trainer.is_last_batch or trainer.global_step >= trainer.max_steps > 0:
            raise _SeenEnoughError
