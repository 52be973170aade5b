"""What the processes of layer-parallel training agree on: metrics, when to stop, what each has learnt."""

from __future__ import annotations

from typing import Any

from typing_extensions import override

from lightning_autoassist.trainer_support.internals import (
    forget_results,
    set_callback_metrics,
    steps_between_checkpoints,
)
from lightning_autoassist.trainer_support.variants import STEP_OUTPUT, CallbackBase, LightningModule, Trainer


def check_run(trainer: Any, window: int) -> None:
    """Refuse what layers cannot be trained in parallel with.

    Raises:
        ValueError: If there is such a thing.
    """
    strategy = trainer.strategy
    problem = None
    if window > 1:
        problem = "mode='overlapping' sends gradients backward; use mode='chunked'"
    elif trainer.gradient_clip_val and not strategy.clip_by_block and not clips_values(trainer):
        problem = (
            "gradient_clip_val clips by the norm over all blocks, which no process knows; use "
            "gradient_clip_algorithm='value', or LayerParallelStrategy(clip_by_block=True) to clip each process's "
            "blocks by their own norm"
        )
    names = [type(callback).__name__ for callback in trainer.callbacks]
    if "AutoAssistCallback" in names:
        problem = "AutoAssistCallback learns from losses that one process alone has; filter on one device or with ddp"
    if problem is not None:
        raise ValueError(f"Layers cannot be trained in parallel so: {problem}.")


def clips_values(trainer: Trainer) -> bool:
    """Whether the Trainer clips gradients number by number."""
    return str(trainer.gradient_clip_algorithm).endswith("value")


def put_first_and_last(trainer: Any, first: Any) -> None:
    """Let a callback be asked before all others, and one that holds back stops after them.

    Args:
        trainer: The Trainer.
        first: The callback.
    """
    others = [each for each in trainer.callbacks if each is not first and not isinstance(each, StopTogether)]
    trainer.callbacks[:] = [first, *others, StopTogether()]


class StopTogether(CallbackBase):
    """Holds back what one process alone decides, that training shall stop, until all processes can stop with it."""

    def __init__(self) -> None:
        self._is_wished = False

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        if trainer.should_stop:
            self._is_wished, trainer.should_stop = True, False

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._agree(trainer)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._agree(trainer)

    def _agree(self, trainer: Any) -> None:
        wishes = trainer.strategy.layer_link.groups.gather_object(self._is_wished or trainer.should_stop)
        self._is_wished, trainer.should_stop = False, any(wishes)


def share_metrics(trainer: Any) -> None:
    """Give all processes the metrics of the one that ends the step, for whatever monitors them."""
    groups = trainer.strategy.layer_link.groups
    metrics = {name: value.detach().cpu() for name, value in trainer.callback_metrics.items()}
    known = groups.broadcast_object(metrics if groups.rank == 0 else None)
    if groups.rank != 0:
        forget_results(trainer)
        set_callback_metrics(trainer, known)


def is_checkpoint_due(trainer: Any) -> bool:
    """Whether a checkpoint may be saved after this batch, by a metric that one process alone has."""
    every = [steps_between_checkpoints(callback) for callback in trainer.callbacks]
    monitored = [getattr(callback, "monitor", None) is not None for callback in trainer.callbacks]
    due = [steps > 0 and trainer.global_step % steps == 0 for steps in every]
    return any(is_due and is_monitored for is_due, is_monitored in zip(due, monitored, strict=True))
