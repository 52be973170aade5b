"""The settings of K-FAC, checked, and when something is due."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lightning_autoassist.trainer_support.arguments import check_choice, check_flag, check_number, check_whole, received

DampingMode = Literal["relative", "absolute"]
StepName = Literal["graft", "kl_clip", "none"]
ComputeMethod = Literal["eigen", "inverse"]
FisherName = Literal["empirical", "monte_carlo"]
SharingName = Literal["expand", "reduce"]
StrategyName = Literal["compute", "memory"]
ModeName = Literal["comm_opt", "hybrid_opt", "mem_opt"]
Interval = int | Callable[[int], int]


@dataclass(frozen=True)
class KFACOptions:
    """What :class:`~lightning_autoassist.KFACCallback` was given; its docstring explains each.

    Raises:
        ValueError: If a number is outside its range, or a name unknown.
        TypeError: If something is of another type.
    """

    damping: float = 0.1
    damping_mode: DampingMode = "relative"
    step: StepName = "graft"
    kl_clip: float = 1e-3
    factor_decay: float = 0.95
    factor_update_steps: Interval = 10
    factor_share: float = 1.0
    inv_update_steps: Interval = 100
    early_updates: bool = True
    compute_method: ComputeMethod = "eigen"
    fisher: FisherName = "empirical"
    weight_sharing: SharingName = "expand"
    skip_layers: tuple[str, ...] = ()
    max_factor_size: int = 4096
    grad_worker_fraction: float | ModeName = "comm_opt"
    assignment_strategy: StrategyName = "compute"
    colocate_factors: bool = True
    symmetry_aware: bool = True
    bucket_cap_mb: float = 25.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_number("damping", self.damping, "(0, inf)", "0.1 is the default")
        check_number("kl_clip", self.kl_clip, "(0, inf)", "0.001 is the default")
        check_number("factor_decay", self.factor_decay, "[0, 1)", "0.95 is the default")
        check_number("factor_share", self.factor_share, "(0, 1]", "1 is the default, 0.125 saves most of the time")
        check_number("bucket_cap_mb", self.bucket_cap_mb, "(0, inf)", "25 is the default")
        check_whole("max_factor_size", self.max_factor_size, "[1, inf)", "4096 is the default")
        check_whole("seed", self.seed, "[0, inf)", "0 is the default")
        choices = {
            "damping_mode": DampingMode,
            "step": StepName,
            "compute_method": ComputeMethod,
            "fisher": FisherName,
            "weight_sharing": SharingName,
            "assignment_strategy": StrategyName,
        }
        for name, kind in choices.items():
            check_choice(name, getattr(self, name), get_args(kind))
        for name in ("early_updates", "colocate_factors", "symmetry_aware"):
            check_flag(name, getattr(self, name))
        for name in ("factor_update_steps", "inv_update_steps"):
            if not callable(getattr(self, name)):
                check_whole(name, getattr(self, name), "[1, inf)", "write a whole number, or a function of the step")
        self._check_fraction()
        self._check_patterns()

    def _check_fraction(self) -> None:
        if isinstance(self.grad_worker_fraction, str):
            check_choice("grad_worker_fraction", self.grad_worker_fraction, get_args(ModeName))
        else:
            check_number("grad_worker_fraction", self.grad_worker_fraction, "(0, 1]", 'try "comm_opt" or 0.5')

    def _check_patterns(self) -> None:
        if isinstance(self.skip_layers, str) or not all(isinstance(each, str) for each in self.skip_layers):
            raise TypeError(
                f"skip_layers must be a list of regular expressions, got {received(self.skip_layers)}; "
                'write skip_layers=["head", "Embedding"]'
            )
        for pattern in self.skip_layers:
            _check_pattern(pattern)


def _check_pattern(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"skip_layers must hold regular expressions, got {pattern!r}, which is none: {error}"
        ) from error


class UpdateClock:
    """Counts the steps from one update to the next.

    Args:
        interval: Steps between two updates, a number or a function of the step, which begins at 1.
        has_early: Whether steps 1, 2, 4, 8 and so on have an update of their own until the interval is reached: the
            first statistics are poor.

    Attributes:
        last: Step of the latest update; 0 before the first.

    Example:
        >>> interval = UpdateClock(10)
        >>> [step for step in range(1, 31) if interval.is_due(step) and interval.note(step)]
        [1, 2, 4, 8, 18, 28]
    """

    def __init__(self, interval: Interval, *, has_early: bool = True) -> None:
        self.last = 0
        self._interval = interval
        self._has_early = has_early

    def is_due(self, step: int) -> bool:
        """Whether an update is due in a step."""
        if self.last == 0:
            return True
        steps = max(1, int(self._interval(step))) if callable(self._interval) else self._interval
        is_early = self._has_early and step < steps and step & (step - 1) == 0
        return is_early or step - self.last >= steps

    def note(self, step: int) -> bool:
        """An update has been made in a step. Returns True."""
        self.last = step
        return True


def kaisa_settings(**changed: Any) -> dict[str, Any]:
    """The settings of KAISA's published experiments with ResNet-50, other settings as in ``changed``."""
    published = {
        "damping": 1e-3,
        "damping_mode": "absolute",
        "step": "kl_clip",
        "kl_clip": 1e-3,
        "factor_decay": 0.95,
        "factor_update_steps": 10,
        "inv_update_steps": 100,
        "early_updates": False,
        "compute_method": "eigen",
    }
    return {**published, **changed}
