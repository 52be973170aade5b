"""The layout of what AutoAssist leaves in a checkpoint, what of it fits another run, and what Lightning leaves out."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_autoassist.filtering.policies.base import Policy
from lightning_autoassist.trainer_support.internals import is_about_to_validate
from lightning_autoassist.trainer_support.process_group import Ranks
from lightning_autoassist.trainer_support.variants import LightningModule, Trainer

# To be counted up by whoever changes what a state_dict of the callback or of the data module holds.
LAYOUT = 7
# Those that are read: 6 had no margins of instances.
_READ_LAYOUTS = (6, LAYOUT)

# Several processes send their gradients to the one that saves; more bytes than this might cost the run its memory.
MAX_GATHERED = 2**30


def is_readable(state: Mapping[str, Any], *, warns: bool = True) -> bool:
    """Whether a state is of a layout that is read; warns where it is of another version's.

    Args:
        state: What a ``state_dict`` gave, with its ``"layout"``.
        warns: Whether to warn.

    Example:
        >>> is_readable({"layout": LAYOUT})
        True
    """
    if state.get("layout") in _READ_LAYOUTS:
        return True
    if warns:
        rank_zero_warn(
            f"the checkpoint was written by another version of AutoAssist (layout {state.get('layout')}, and this one "
            f"reads {LAYOUT}). Your module, optimizer and loops are restored, and filtering begins anew with a first "
            "pass that keeps everything. To go on exactly, resume with the version that wrote it"
        )
    return False


def kind_of(value: Any) -> str:
    """Name of a policy's, an Assistant's or a function's kind, with the kinds of the policies inside a policy.

    Example:
        >>> from lightning_autoassist.filtering.policies.class_quota import ClassQuotaPolicy
        >>> kind_of(ClassQuotaPolicy("infobatch"))
        'ClassQuotaPolicy(InfoBatchPolicy)'
    """
    inner = [kind_of(part) for part in vars(value).values() if isinstance(part, Policy)] if _has_parts(value) else []
    name = str(getattr(value, "__qualname__", type(value).__qualname__))
    return f"{name}({', '.join(inner)})" if inner else name


def _has_parts(value: Any) -> bool:
    return isinstance(value, Policy) and hasattr(value, "__dict__")


def kinds_of(policy: Policy, assistant: object, score: str, features: object) -> dict[str, str]:
    """What decides whether a checkpoint's state fits a run, in words, for :func:`differences`."""
    return {
        "policy": kind_of(policy),
        "assistant": kind_of(assistant),
        "score": score,
        "features": "from the batch" if features is None else kind_of(features),
    }


def differences(saved: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    """Which settings of a checkpoint differ from this run's, each with both in words.

    Example:
        >>> differences({"score": "loss"}, {"score": "gradient_norm"})
        {'score': 'score=loss in the checkpoint, gradient_norm now'}
    """
    return {
        name: f"{name}={saved[name]} in the checkpoint, {value} now"
        for name, value in now.items()
        if name in saved and saved[name] != value
    }


def warn_of_losses(differing: Mapping[str, str], lost: list[str]) -> None:
    """Warn once of what of a checkpoint does not fit this run, where anything does not."""
    if not lost:
        return
    reasons = f" ({'; '.join(differing.values())})" if differing else ""
    rank_zero_warn(
        f"the checkpoint is of another kind of run{reasons}: {', '.join(lost)} begin anew, and everything else is "
        "restored. To go on exactly, resume with the settings of the interrupted run"
    )


def is_at_batch_end(trainer: Any) -> bool:
    """Whether the Trainer has finished a batch of the fit whose ``on_train_batch_end`` hooks are still to be called."""
    batches = trainer.fit_loop.epoch_loop.batch_progress.current
    return bool(trainer.training and batches.ready == batches.processed != batches.completed)


def count_next_epoch(fit_loop: Any) -> None:
    """Let Lightning count the epoch after one from whose last batch a run is resumed.

    Lightning takes such a run to be in the middle of that next epoch: it neither calls ``on_train_epoch_start`` nor
    counts the epoch as begun, so that checkpoints in it are read as of an epoch's end, and train on it anew.
    """
    epochs = fit_loop.epoch_progress.current
    if getattr(fit_loop, "restarted_mid_epoch", False) and epochs.ready == epochs.processed:
        fit_loop.reset_restart_stage()


def fit_epoch_to_length(epoch_loop: Any, num_before: int | None, num_now: float) -> None:
    """Let an interrupted epoch go on at the same share of its batches where epochs have another number of them now.

    That is so on another number of processes, with another budget or batch size. Lightning would go on at the same
    batch, which may lie beyond the epoch's end.

    Args:
        epoch_loop: Of the Trainer's fit loop, restored and not yet running.
        num_before: Batches an epoch in the interrupted run; None where nothing tells.
        num_now: Batches an epoch in this run.
    """
    batches = epoch_loop.batch_progress
    num_done = batches.current.processed
    if not num_before or num_now in (num_before, float("inf")) or not num_done or not epoch_loop.restarting:
        return
    is_complete = num_done >= num_before or batches.is_last_batch
    shift = num_done - (int(num_now) if is_complete else num_done * int(num_now) // num_before)
    for count in ("ready", "started", "processed", "completed"):
        setattr(batches.current, count, getattr(batches.current, count) - shift)


def _zeroes_next(trainer: Trainer) -> bool:
    """Whether Lightning is about to clear the gradients of a module that makes its own steps: it does to validate."""
    if trainer.lightning_module.automatic_optimization or not is_at_batch_end(trainer):
        return False
    return is_about_to_validate(trainer)


class OpenWindow:
    """Gradients that were accumulated, and that no optimizer step has used: they are in no checkpoint of Lightning's.

    A window is open where the last batch made no optimizer step.
    """

    def __init__(self) -> None:
        self._is_open = False
        self._global_step = 0
        self._restored: dict[str, Tensor] | None = None

    def begin(self, trainer: Trainer, module: LightningModule) -> None:
        """Training begins, or goes on: give the module the gradients that a checkpoint brought."""
        restored, self._restored = self._restored, None
        self._global_step, self._is_open = trainer.global_step, bool(restored)
        if restored:
            for name, parameter in module.named_parameters():
                if name in restored and restored[name].shape == parameter.shape:
                    parameter.grad = restored[name].to(parameter.device)

    def end_batch(self, global_step: int) -> None:
        """A batch has ended, with the Trainer's count of optimizer steps after it."""
        self._is_open, self._global_step = global_step == self._global_step, global_step

    def state_dict(self, trainer: Trainer, ranks: Ranks) -> list[dict[str, Tensor]] | None:
        """The gradients of all processes, by names of parameters; all processes must call this.

        Returns:
            None where no window is open, or where they are too many.
        """
        own = self._own_gradients(trainer.lightning_module) if self._is_open and not _zeroes_next(trainer) else {}
        if ranks.world_size > 1:
            num_bytes = sum(ranks.gather(sum(gradient.nbytes for gradient in own.values())))
            if num_bytes > MAX_GATHERED:
                warnings.warn(
                    f"this checkpoint lies between two optimizer steps, and the {num_bytes:,} bytes of gradients that "
                    "the processes have accumulated are too many to save: a run that is resumed from it loses them. "
                    "Save checkpoints after an optimizer step, as ModelCheckpoint(every_n_train_steps=...) does",
                    stacklevel=2,
                )
                return None
            own = {name: gradient.cpu() for name, gradient in own.items()}
        gathered = ranks.gather(own)
        return [{name: gradient.detach().cpu().clone() for name, gradient in part.items()} for part in gathered]

    def load_state_dict(self, state: list[dict[str, Tensor]] | None, ranks: Ranks) -> None:
        """Keep this process's part of :meth:`state_dict` until training begins."""
        fits = state is not None and len(state) == ranks.world_size
        self._restored = state[ranks.rank] if state is not None and fits else None

    @staticmethod
    def _own_gradients(module: LightningModule) -> dict[str, Tensor]:
        return {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}
