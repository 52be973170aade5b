"""The callback's options: what they may be, and what is in force in one run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lightning_autoassist.filtering.assistants.base import Assistant
from lightning_autoassist.filtering.assistants.registry import ASSISTANTS
from lightning_autoassist.filtering.names import (
    GivenAssistantName,
    GivenPolicyName,
    ReweightingName,
    ScoreName,
    UpdateName,
)
from lightning_autoassist.filtering.policies.base import Policy
from lightning_autoassist.filtering.policies.registry import POLICIES
from lightning_autoassist.trainer_support.arguments import (
    check_choice,
    check_flag,
    check_function,
    check_named,
    check_number,
    check_whole,
)
from lightning_autoassist.trainer_support.executors import InlineExecutor, UpdateThread

SCORE_NAMES: tuple[ScoreName | Literal["auto"], ...] = ("auto", *get_args(ScoreName))
REWEIGHTING_NAMES: tuple[ReweightingName | Literal["auto"], ...] = ("auto", *get_args(ReweightingName))
UPDATES: tuple[UpdateName | Literal["auto"], ...] = ("auto", *get_args(UpdateName))
# Beside policy and Assistant, in the order in which loggers get them.
LOGGED_SETTINGS = (
    "score",
    "reweighting",
    "features",
    "unfiltered_tail",
    "max_features",
    "feature_memory",
    "lag",
    "update",
    "exchange_every",
    "decode",
    "gallery",
    "gallery_every_n_epochs",
    "dynamics",
)


@dataclass(frozen=True)
class ResolvedOptions:
    """What is in force in one run, where the user leaves it open.

    Attributes:
        lag: Steps between a batch and the Assistant's learning from it.
        is_beside: Whether the Assistant learns, and batches are drawn, in a thread beside the training loop.
    """

    lag: int = 0
    is_beside: bool = False

    @property
    def update(self) -> UpdateName:
        """``"async"`` where the Assistant learns in a thread of its own, else ``"sync"``."""
        return "async" if self.is_beside else "sync"

    def executor(self) -> InlineExecutor:
        """Where the Assistant learns and batches are drawn; a thread has begun."""
        # Wherever the jobs are done, their order is the same for the same lag, and so is what is drawn.
        draws_ahead = min(self.lag, 1)
        return UpdateThread(draws_ahead) if self.is_beside else InlineExecutor(draws_ahead)


def resolve(lag: int | None, update: UpdateName | Literal["auto"], trainer: Any) -> ResolvedOptions:
    """What is in force in a run of ``trainer``.

    Args:
        lag: In steps; None: what suits the Trainer's device.
        update: ``"sync"``, ``"async"`` or ``"auto"``.
        trainer: Has its strategy.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> resolve(None, "auto", Trainer(accelerator="cpu", logger=False))
        ResolvedOptions(lag=0, is_beside=False)
    """
    is_on_cpu = trainer.strategy.root_device.type == "cpu"
    is_beside = update == "async" or (update == "auto" and not is_on_cpu)
    # Such precisions change torch's default data type while a step runs, and all threads share that.
    is_beside &= trainer.precision == "32-true" or not trainer.precision.endswith("-true")
    return ResolvedOptions((0 if is_on_cpu else 4) if lag is None else lag, is_beside)


def is_auto(option: object) -> bool:
    """Whether an option is left to what suits the others."""
    return isinstance(option, str) and option == "auto"


def made_policy(policy: GivenPolicyName | Policy) -> Policy:
    """The policy that is given, or named."""
    made: Policy = check_named("policy", policy, Policy, POLICIES, {"assistant": (ASSISTANTS, Assistant)})
    return made


def made_assistant(assistant: GivenAssistantName | Assistant, policy: Policy) -> Assistant:
    """The Assistant that is given, or named, or the policy's own for ``"auto"``."""
    given = policy.default_assistant if is_auto(assistant) else assistant
    made: Assistant = check_named("assistant", given, Assistant, ASSISTANTS, {"policy": (POLICIES, Policy)})
    return made


def chosen_score(score: ScoreName | Literal["auto"], policy: Policy) -> ScoreName:
    """The score that is given, or the policy's own for ``"auto"``."""
    score = check_choice("score", score, SCORE_NAMES)
    return policy.default_score if score == "auto" else score


def chosen_reweighting(reweighting: ReweightingName | Literal["auto"], policy: Policy) -> ReweightingName:
    """The reweighting that is given, or the policy's own for ``"auto"``."""
    reweighting = check_choice("reweighting", reweighting, REWEIGHTING_NAMES)
    return policy.default_reweighting if reweighting == "auto" else reweighting


def chosen_tail(unfiltered_tail: float | None, policy: Policy) -> float:
    """The tail that is given, or the policy's own for None."""
    if unfiltered_tail is None:
        return policy.default_unfiltered_tail
    return check_number("unfiltered_tail", unfiltered_tail, "[0, 1)", "0.125 leaves the last eighth unfiltered")


def chosen_dynamics(dynamics: bool | None) -> bool | None:
    """Whether training dynamics are kept; None where the policy looks at losses."""
    return None if dynamics is None else check_flag("dynamics", dynamics)


def chosen_interval(every_n_epochs: int | None) -> int | None:
    """Epochs between two galleries, or None for three galleries a run."""
    if every_n_epochs is None:
        return None
    return check_whole("gallery_every_n_epochs", every_n_epochs, "[1, inf)", "None gives three galleries a run")


def check_functions(features: Callable[..., Any] | None, decode: Callable[..., Any] | None) -> None:
    """Refuse functions of the user's that cannot be called with one argument."""
    if features is not None:
        check_function("features", features, "lambda batch: batch[0]")
    if decode is not None:
        check_function("decode", decode, "lambda instance: str(instance)")
