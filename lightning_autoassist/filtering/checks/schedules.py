"""Whether learning-rate schedules end where they would have without filtering: found by running a copy of each.

A run on a budget has fewer steps, so that a schedule whose length was written for the full run stops early. Nothing is
read off a schedule's attributes; a copy of it is stepped as often as each of the two runs would.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import math
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from typing_extensions import override

from lightning_autoassist.filtering.checks.run_length import Limits, RunLength
from lightning_autoassist.filtering.sampling.candidates import CandidateStream
from lightning_autoassist.trainer_support.internals import mark_as_stepped, parts_of_schedule
from lightning_autoassist.trainer_support.rng import restore_rng_state, rng_state
from lightning_autoassist.trainer_support.variants import Trainer, overrides

# Two rates differ where this share of the highest rate lies between them,
MIN_GAP = 0.02
# or where one is twice the other and at least this share of the highest rate.
MIN_COMPARED = 0.005
# A rate is low, or has come to rest, within this share of the schedule's range.
LOW = 0.05
# How far beyond the full run a schedule is followed, to see whether it has an end.
BEYOND = 0.1
# A step of a schedule takes about 5 us, so that a million of them are simulated.
MAX_SECONDS = 5.0


@dataclass(frozen=True)
class Calls:
    """How often a run steps a schedule.

    Attributes:
        before_last: Before the run's last optimizer step.
        total: In the whole run.
    """

    before_last: int
    total: int

    def after(self, done: int) -> Calls:
        """Those that are left when ``done`` were made."""
        return Calls(max(0, self.before_last - done), max(0, self.total - done))


@dataclass(frozen=True)
class WrongEnd:
    """A schedule that ends elsewhere than over the full run.

    Attributes:
        scheduler: Its class and the whole numbers that it was given.
        interval: ``"step"`` or ``"epoch"``: what it is counted in.
        length: This run's steps or epochs.
        full_length: The full run's.
        rate: The learning rate that it ends at.
        full_rate: What it would have ended at.
    """

    scheduler: str
    interval: str
    length: int
    full_length: int
    rate: float
    full_rate: float

    @override
    def __str__(self) -> str:
        comparison = "longer" if self.length < self.full_length else "shorter"
        return (
            f"{self.scheduler} is {comparison} than this run's {self.length} {self.interval}s: the learning rate will "
            f"end at {self.rate:.3g}, and would end at {self.full_rate:.3g} after the {self.full_length} "
            f"{self.interval}s of a run without filtering"
        )


class Simulation:
    """The learning rates that a scheduler gives, from where it stands; the scheduler itself is left as it is.

    Args:
        scheduler: A scheduler of ``torch.optim.lr_scheduler``, or one that is stepped like them.
        shared: What the copy may hold as it is: the module and what belongs to it.

    Attributes:
        rates: For each number of calls of ``step`` from 0 the rates of the parameter groups, as far as it got.
        has_ended: Whether ``step`` refused to go on.
    """

    def __init__(self, scheduler: Any, shared: dict[int, Any]) -> None:
        optimizer = scheduler.optimizer
        self._optimizer = _stand_in(optimizer)
        self._scheduler = copy.deepcopy(scheduler, {**shared, id(optimizer): self._optimizer})
        self.rates = [self._now()]
        self.has_ended = False

    def run(self, num_calls: int, deadline: float) -> bool:
        """Go on to so many calls, or to the scheduler's own end; False where the time, in seconds, is over before."""
        while len(self.rates) <= num_calls and not self.has_ended:
            try:
                self._scheduler.step()
            except Exception:  # OneCycleLR raises behind its last step
                self.has_ended = True
            else:
                self.rates.append(self._now())
            if not len(self.rates) % 1024 and time.perf_counter() > deadline:
                return False
        return True

    def _now(self) -> list[float]:
        return [float(group["lr"]) for group in self._optimizer.param_groups]


class ScheduleCheck:
    """Warns once a run of its schedules that end elsewhere than over the full run.

    Those that the Trainer steps are looked at before the first step; those that the module steps, once an epoch has
    shown how often it does.

    Args:
        built_from_length: Whether the user's code asked the Trainer for the run's length before it made the schedules;
            then those that never come to rest are taken to suit it.
    """

    def __init__(self, *, built_from_length: bool = False) -> None:
        self._built_from_length = built_from_length
        self._waits = False
        self._positions: dict[int, int] | None = None

    def start(self, trainer: Any, stream: CandidateStream) -> None:
        """Training begins, or goes on after a resume."""
        self._positions = None
        self._waits = not trainer.fast_dev_run and bool(trainer.lr_scheduler_configs)
        if self._waits and steps_by_itself(trainer):
            self._warn(trainer, stream, None)

    def start_epoch(self, trainer: Trainer, stream: CandidateStream) -> None:
        """An epoch begins, with its first batch."""
        if not self._waits:
            return
        before = self._positions
        schedulers = (config.scheduler for config in trainer.lr_scheduler_configs)
        self._positions = {id(each): position for each in schedulers if (position := _position(each)) is not None}
        if before is not None:
            self._warn(trainer, stream, {key: now - before.get(key, now) for key, now in self._positions.items()})

    def _warn(self, trainer: Trainer, stream: CandidateStream, stepped: Mapping[int, float] | None) -> None:
        self._waits = False
        ends = []
        with contextlib.suppress(Exception):  # a warning must not cost the run
            ends = wrong_ends(trainer, stream, built_from_length=self._built_from_length, stepped=stepped)
        if ends:
            rank_zero_warn(_message(ends))


def _message(ends: list[WrongEnd]) -> str:
    if ends[0].interval == "epoch":
        remedy = "give the Trainer max_epochs instead of max_steps, or the schedule as many epochs as this run has"
    else:
        remedy = f"let the schedule take its length from trainer.estimated_stepping_batches, here {ends[0].length}"
    return f"{'; '.join(map(str, ends))}. To let it end with this run, {remedy}"


def _position(scheduler: Any) -> int | None:
    """How often a scheduler was stepped; a chained one counts in its parts."""
    own = getattr(scheduler, "last_epoch", None)
    parts = parts_of_schedule(scheduler)
    return own if isinstance(own, int) or not parts else _position(parts[0])


def wrong_ends(
    trainer: Any, stream: CandidateStream, *, built_from_length: bool, stepped: Mapping[int, float] | None = None
) -> list[WrongEnd]:
    """The trainer's schedules that end elsewhere than over the full run.

    Args:
        trainer: The Trainer, at the start of training or of an epoch.
        stream: The candidate stream.
        built_from_length: Whether the user's code asked the Trainer for the run's length before it made the schedules;
            then those that never come to rest are taken to suit it.
        stepped: How often each scheduler is stepped in an epoch, by its id, where the module steps them itself.
    """
    own, full = Limits.of(trainer).lengths(stream)
    if not (own.is_known and full.is_known) or own == full:
        return []
    module = trainer.lightning_module
    held = chain([trainer, module, trainer.datamodule], module.modules(), module.parameters(), module.buffers())
    shared = {id(one): one for one in held}
    deadline = time.perf_counter() + MAX_SECONDS
    found = []
    with _undisturbed():
        for config in trainer.lr_scheduler_configs:
            if config.reduce_on_plateau or isinstance(config.scheduler, ReduceLROnPlateau):
                continue
            calls = _calls_left(trainer, config, own, full, stepped)
            ends = None
            with contextlib.suppress(Exception):  # what cannot be copied is not simulated
                ends = _ends(config.scheduler, *calls, shared, deadline, built_from_length)
            if ends is not None:
                unit = "epoch" if config.interval == "epoch" and stepped is None else "step"
                length, full_length = (
                    (own.num_epochs, full.num_epochs) if unit == "epoch" else (own.num_steps, full.num_steps)
                )
                found.append(WrongEnd(describe(config.scheduler), unit, int(length), int(full_length), *ends))
    return found


def steps_by_itself(trainer: Trainer) -> bool:
    """Whether the Trainer steps the schedules; else the module does, at times that only it knows."""
    module = trainer.lightning_module
    return bool(module.automatic_optimization) and not overrides(module, "lr_scheduler_step")


def describe(scheduler: Any) -> str:
    """A scheduler's class and the whole numbers that it was given, as "StepLR(step_size=30)".

    Example:
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        >>> describe(torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40))
        'CosineAnnealingLR(T_max=40)'
    """
    name, given = type(scheduler).__name__, []
    for parameter in inspect.signature(type(scheduler).__init__).parameters.values():
        value = vars(scheduler).get(parameter.name)
        if type(value) is int and value != parameter.default and parameter.name != "last_epoch":
            given.append(f"{parameter.name}={value}")
    return f"{name}({', '.join(given)})" if given else name


def _ends(
    scheduler: Any, own: Calls, full: Calls, shared: dict[int, Any], deadline: float, built_from_length: bool
) -> tuple[float, float] | None:
    """The rates at the end of this run and of the full one; None where this run's is right, or is unknown."""
    if own == full:
        return None
    simulation = Simulation(scheduler, shared)
    longest = max(own.total, full.total)
    if not simulation.run(longest + max(2, int(BEYOND * longest)), deadline):
        return None
    for group, rates in zip(scheduler.optimizer.param_groups, zip(*simulation.rates, strict=True), strict=True):
        initial = float(group.get("initial_lr", 0.0))
        if _ends_wrongly(rates, own, full, initial, simulation.has_ended, built_from_length):
            return _end(rates, own), _end(rates, full)
    return None


def _ends_wrongly(
    rates: tuple[float, ...], own: Calls, full: Calls, initial: float, has_ended: bool, built_from_length: bool
) -> bool:
    """Whether a run ends at another rate than the full one.

    A schedule that refuses to go as far as the full run was made for this one. Where the full run would not end at the
    schedule's lowest, as in the middle of a cycle, the end was not planned, and none is missed.
    """
    if len(rates) <= max(own.total, full.total):
        return False
    rate, full_rate = _end(rates, own), _end(rates, full)
    run = rates[: full.total + 1]
    highest = max(*run, initial)
    if not _differ(rate, full_rate, highest):
        return False
    top = run.index(max(run))
    lowest = min(run[top:])
    tolerance = LOW * (max(run) - lowest)
    if rate < full_rate:
        return rate >= max(rates[: own.total + 1]) - LOW * (max(run) - min(run))  # still on its way up
    if full_rate > lowest + tolerance:
        return False
    comes_to_rest = has_ended or min(rates[full.total :]) >= full_rate - MIN_GAP * full_rate
    return comes_to_rest or not built_from_length


def _end(rates: tuple[float, ...], calls: Calls) -> float:
    """The rate of the last step, or the one after it: schedules differ in which of them is their end."""
    return min(rates[calls.before_last], rates[calls.total])


def _differ(rate: float, other: float, highest: float) -> bool:
    low, high = sorted((rate, other))
    if high - low > MIN_GAP * highest:
        return True
    return high > 2 * low and high > MIN_COMPARED * highest


def _calls_left(
    trainer: Trainer, config: Any, own: RunLength, full: RunLength, stepped: Mapping[int, float] | None
) -> tuple[Calls, Calls]:
    if stepped is not None:
        in_epoch = stepped.get(id(config.scheduler), 0.0)
        done = round(in_epoch * trainer.current_epoch)
        return _counted(in_epoch, own, own).after(done), _counted(in_epoch, own, full).after(done)
    accumulated = trainer.accumulate_grad_batches
    so_far = RunLength(own.num_batches, trainer.current_epoch, trainer.global_step)
    done = _calls(config, so_far, accumulated).total
    return _calls(config, own, accumulated).after(done), _calls(config, full, accumulated).after(done)


def _calls(config: Any, length: RunLength, accumulated: int) -> Calls:
    """How often the Trainer steps a schedule."""
    if config.interval == "epoch":
        epochs = int(length.num_epochs)
        return Calls(max(0, epochs - 1) // config.frequency, epochs // config.frequency)
    total = int(length.num_steps)
    if config.frequency > 1:  # counted in batches, anew each epoch, and only where the optimizer is stepped
        every, batches = math.lcm(accumulated, config.frequency), length.num_batches
        in_epoch = batches // every + (batches % every != 0 and batches % config.frequency == 0)
        total = int(in_epoch * length.num_steps / math.ceil(batches / accumulated))
    return Calls(max(0, total - 1), total)


def _counted(in_epoch: float, own: RunLength, length: RunLength) -> Calls:
    """How often the module steps a schedule: once an epoch, or in proportion to the batches."""
    factor = 1.0 if in_epoch <= 1 else length.num_batches / own.num_batches
    total = round(in_epoch * factor * length.num_epochs)
    return Calls(max(0, total - 1), total)


def _stand_in(optimizer: Any) -> torch.optim.Optimizer:
    """An optimizer with the same groups, but for their parameters, which it has none of."""
    groups = []
    for group in optimizer.param_groups:
        settings = {name: _plain(value) for name, value in group.items() if name != "params"}
        groups.append({"params": [torch.zeros((), requires_grad=True)], **settings})
    stand_in = torch.optim.SGD(groups, lr=0.0)
    stand_in.defaults = {**stand_in.defaults, **optimizer.defaults}
    mark_as_stepped(stand_in)
    return stand_in


def _plain(value: Any) -> Any:
    """A learning rate may be a tensor, on a device."""
    return value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else copy.copy(value)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Discard what a simulated schedule draws from the RNG, prints or warns of."""
    state = rng_state()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        restore_rng_state(state)
