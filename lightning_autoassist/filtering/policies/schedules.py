"""Settings that change with training: a number, or a function of the share of training that is done."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lightning_autoassist.trainer_support.arguments import check_number

Schedule = Callable[[float], float]


@dataclass(frozen=True)
class LinearSchedule:
    """From one number to another, evenly.

    Attributes:
        start: At the beginning of training.
        end: At its end.

    Example:
        >>> LinearSchedule(0.5, 0.1)(0.25)
        0.4
    """

    start: float
    end: float

    def __call__(self, progress: float) -> float:
        """The number when a share of training is done, in [0, 1]."""
        return self.start + (self.end - self.start) * progress


@dataclass(frozen=True)
class GeometricSchedule:
    """From one positive number to another, by the same factor in equal times.

    Attributes:
        start: At the beginning of training.
        end: At its end.

    Example:
        >>> round(GeometricSchedule(0.4, 0.1)(0.5), 6)
        0.2
    """

    start: float
    end: float

    def __call__(self, progress: float) -> float:
        """The number when a share of training is done, in [0, 1]."""
        return float(self.start * (self.end / self.start) ** progress)


@dataclass(frozen=True)
class OscillatingSchedule:
    """Back and forth between two numbers, beginning with the first; their mean is that of the whole.

    Attributes:
        start: At the beginning of each period.
        middle: In its middle.
        num_periods: In all of training.

    Example:
        >>> [round(OscillatingSchedule(0.2, 0.6, num_periods=2)(share), 6) for share in (0, 0.125, 0.25, 0.5)]
        [0.2, 0.4, 0.6, 0.2]
    """

    start: float
    middle: float
    num_periods: int = 4

    def __call__(self, progress: float) -> float:
        """The number when a share of training is done, in [0, 1]."""
        wave = (1 - math.cos(2 * math.pi * self.num_periods * progress)) / 2
        return self.start + (self.middle - self.start) * wave


def check_schedule(name: str, value: Any, interval: str, hint: str) -> float | Schedule:
    """``value``, a number or a schedule whose values during training are in the interval: at 33 of its points.

    Args:
        name: Of the argument.
        value: What was given.
        interval: What is allowed, as ``"(0, 1]"``.
        hint: What to write.

    Raises:
        TypeError: If it is, or gives, no number.
        ValueError: If it is, or gives, a number outside the interval.
    """
    if not callable(value):
        return check_number(name, value, interval, hint)
    for progress in (0.0, 1.0, *(number / 32 for number in range(1, 32))):
        check_number(f"{name} at {progress:.0%} of training", value(progress), interval, hint)
    schedule: Schedule = value
    return schedule


def value_at(setting: float | Schedule, progress: float) -> float:
    """The value of a number or a schedule when a share of training is done."""
    return float(setting(progress)) if callable(setting) else setting
