"""What filtering did and what it cost: counters of a run, and warnings about settings that defeat it.

Shapes: B batch.
"""

from __future__ import annotations

import time
from itertools import chain
from typing import Any, NamedTuple

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc
from typing_extensions import override

from lightning_autoassist.filtering.assistants.base import UpdateResult
from lightning_autoassist.filtering.checks.run_length import Limits
from lightning_autoassist.filtering.reporting.advice import GRADIENT_SPREAD, GradientSpread, advice
from lightning_autoassist.filtering.reporting.metric_names import AXES, PREFIX
from lightning_autoassist.filtering.reporting.shared_totals import SharedTotals
from lightning_autoassist.filtering.sampling.candidates import CandidateStream

# Predictions of an epoch that are kept to be ranked.
MAX_RANKED = 1_000_000
# Spread evenly over those: sorting takes time, and so many tell an area under the curve to 0.003 or better.
MAX_SORTED = 2**15
# Batches whose predictions are kept apart; a tensor takes hundreds of bytes, however few numbers it holds.
MAX_PARTS = 1024


class ShownCount(int):
    """A whole number that progress bars show as one, whatever number of decimals they give to metrics.

    Example:
        >>> f"{ShownCount(1200):.3f}"
        '1200'
    """

    @override
    def __format__(self, form: str) -> str:
        return str(int(self))


class Stopwatch:
    """Seconds that pass while it runs."""

    def __init__(self) -> None:
        self._before = 0.0
        self._started: float | None = None

    def run(self) -> None:
        """Go on, unless it runs already."""
        if self._started is None:
            self._started = time.perf_counter()

    def stop(self) -> None:
        """Stop, unless it stands already."""
        self._before, self._started = self.seconds, None

    @property
    def seconds(self) -> float:
        """All seconds so far."""
        return self._before + (0.0 if self._started is None else time.perf_counter() - self._started)

    @seconds.setter
    def seconds(self, seconds: float) -> None:
        self._before = seconds
        self._started = None if self._started is None else time.perf_counter()


class _Timed:
    """Adds the seconds spent inside to a report. No generator: this is entered several times a step."""

    def __init__(self, report: FilterReport) -> None:
        self._report = report

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self._report.overhead_seconds += time.perf_counter() - self._started


class PastStream(NamedTuple):
    """Figures of a checkpoint's candidate stream, for a run that has nothing left to train; see ``CandidateStream``."""

    num_considered: int
    num_kept: int
    prob_sum: float
    seconds: float
    saved_ratio: float


class FilterReport:
    """Counters over a run and over its current epoch.

    Attributes:
        num_ranks: Processes that train, each on as many instances; what this one counts stands for all.
        limits: What ends the run; None before training.
        captured_share: Share of the loss's gradient that comes from losses whose instances are known; None: not known.
        has_gradient_norms: Whether scores are norms of gradients at the loss's input, on which advice rests.
        training: Runs while the model is trained, and stands during validation.
    """

    def __init__(self) -> None:
        self.num_ranks = 1
        self.limits: Limits | None = None
        self.optimizer_steps = 0
        self.instances_seen = 0
        self.nonfinite_instances = 0
        self.captured_share: float | None = None
        self.num_batches = 0
        self.overhead_seconds = 0.0
        self.has_gradient_norms = False
        self.training = Stopwatch()
        self.last_epoch: dict[str, float] = {}
        self._shared = SharedTotals()
        self._num_outcomes = 0
        self._loss_sum = 0.0
        self._ranked: list[tuple[Tensor, Tensor]] = []
        self._num_ranked = 0
        self._spread = GradientSpread()
        self._epoch_start = self._totals(None)
        self._past: PastStream | None = None

    def timed(self) -> _Timed:
        """Count the time spent inside as overhead."""
        return _Timed(self)

    @property
    def seconds(self) -> float:
        """Seconds of training, loading included and validation left out; goes on after a resume."""
        return self.training.seconds

    @seconds.setter
    def seconds(self, seconds: float) -> None:
        self.training.seconds = seconds

    def axes(self) -> dict[str, float]:
        """Optimizer steps, instances and seconds so far, under ``autoassist/``."""
        return {PREFIX + name: float(getattr(self, name)) for name in AXES}

    def count_batch(self, num_instances: int, optimizer_steps: int) -> None:
        """One more batch of the model; ``optimizer_steps`` is the Trainer's own count of optimizer steps."""
        self.num_batches += 1
        self.instances_seen += num_instances * self.num_ranks
        self.optimizer_steps = optimizer_steps

    def count_nonfinite(self, num_instances: int) -> None:
        """Instances whose loss was NaN or infinite."""
        self.nonfinite_instances += num_instances

    def count_outcome(self, outcome: UpdateResult) -> None:
        """One more update of the Assistant."""
        self._num_outcomes += 1
        self._loss_sum += outcome.loss
        if self._num_ranked < MAX_RANKED:
            self._num_ranked += len(outcome.predictions)
            self._ranked.append((outcome.predictions, outcome.targets))
        if len(self._ranked) > MAX_PARTS:
            self._ranked = [_joined(self._ranked)]

    def count_scores(self, scores: Tensor, probs: Tensor) -> None:
        """What a batch showed, and what its instances were kept with, each of shape ``(B,)``."""
        if self.has_gradient_norms:
            self._spread.add(scores, probs)

    @property
    def spread(self) -> dict[str, float]:
        """How unevenly the gradient is spread over instances in the epoch so far, see ``GradientSpread.figures``."""
        return self._spread.figures()

    def start_epoch(self, sampler: CandidateStream | None) -> None:
        """Count what follows as a new epoch."""
        self._epoch_start = self._totals(sampler)
        self._num_outcomes, self._loss_sum = 0, 0.0
        self._ranked, self._num_ranked = [], 0
        self._spread = GradientSpread()

    def end_epoch(self, sampler: CandidateStream | None) -> dict[str, float]:
        """The epoch's metrics under ``autoassist/``; what is no rate is counted from the run's start."""
        metrics = self._rates(self._epoch_start, self._totals(sampler))
        metrics.update({name: float(getattr(self, name)) for name in AXES})
        metrics["saved_ratio"] = self.saved_ratio(sampler)
        metrics["candidates_seen"] = self._candidates_seen(sampler)
        metrics["nonfinite_instances"] = float(self.nonfinite_instances)
        metrics.update(self._spread.figures())
        if self.captured_share is not None:
            metrics["captured_share"] = self.captured_share
        ranked = self.ranked()
        if ranked is not None:
            metrics["assistant_loss"] = self._loss_sum / self._num_outcomes
            metrics.update(_auroc(*ranked))
        self.last_epoch = metrics
        self.start_epoch(sampler)
        return {PREFIX + name: value for name, value in metrics.items()}

    def ranked(self) -> tuple[Tensor, Tensor] | None:
        """The Assistant's predictions in this epoch, and whether each instance was informative: of at most 32,768."""
        if not self._ranked:
            return None
        predictions, targets = _joined(self._ranked)
        every = -(-len(predictions) // MAX_SORTED)
        return predictions[::every], targets[::every]

    def epoch_keep_rate(self, sampler: CandidateStream | None) -> float:
        """Share of the current epoch's candidates that were kept so far."""
        return self._rates(self._epoch_start, self._totals(sampler))["keep_rate"]

    def _past_of(self, sampler: CandidateStream) -> PastStream:
        counts = sampler.num_considered, sampler.num_kept, sampler.prob_sum, sampler.seconds
        return PastStream(*counts, self.saved_ratio(sampler))

    def saved_ratio(self, sampler: CandidateStream | PastStream | None) -> float:
        """Share of an unfiltered run's optimizer steps that this one does without, in [0, 1); 0 before training."""
        if isinstance(sampler, PastStream):
            return sampler.saved_ratio
        if sampler is None or not sampler.batch_size or self.limits is None:
            return 0.0
        return self.limits.saved_ratio(sampler)

    def summary(self, sampler: CandidateStream | None) -> dict[str, Any]:
        """Totals of the run, and the last epoch's figures of the Assistant; of other processes if they trained last."""
        if self.is_of_other_process:
            return self._shared.read()
        zero = dict.fromkeys(self._totals(None), 0.0)
        stream = self._past if sampler is None else sampler
        said = advice(self.last_epoch)
        of_last_epoch = (*GRADIENT_SPREAD, "assistant_loss", "assistant_auroc")
        return {
            **{name: float(getattr(self, name)) for name in AXES},
            "saved_ratio": self.saved_ratio(stream),
            "candidates_seen": self._candidates_seen(stream),
            "nonfinite_instances": float(self.nonfinite_instances),
            **self._rates(zero, self._totals(stream)),
            **{name: self.last_epoch[name] for name in of_last_epoch if name in self.last_epoch},
            **({} if said is None else {"advice": said}),
        }

    def share(self, sampler: CandidateStream | None) -> None:
        """Leave the totals to the process that started this one, if one did."""
        self._shared.write(self.summary(sampler))

    def claim(self) -> None:
        """From here on this process trains, and its totals count."""
        self._shared.claim()

    @property
    def is_of_other_process(self) -> bool:
        """Whether processes that the Trainer started trained last, on copies of what this one has."""
        return self._shared.is_of_other_process

    def state_dict(self, sampler: CandidateStream | None = None) -> dict[str, Any]:
        """Counters that go on after a resume."""
        past = self._past if sampler is None else self._past_of(sampler)
        names = (
            "optimizer_steps",
            "instances_seen",
            "nonfinite_instances",
            "num_batches",
            "overhead_seconds",
            "seconds",
            "last_epoch",
        )
        return {"past": None if past is None else list(past), **{name: getattr(self, name) for name in names}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        counters = dict(state)
        past = counters.pop("past")
        self._past = None if past is None else PastStream(*past)
        for name, value in counters.items():
            setattr(self, name, value)

    def _totals(self, sampler: CandidateStream | PastStream | None) -> dict[str, float]:
        drawing = {
            "considered": 0 if sampler is None else sampler.num_considered,
            "kept": 0 if sampler is None else sampler.num_kept,
            "prob_sum": 0.0 if sampler is None else sampler.prob_sum,
            "drawing": 0.0 if sampler is None else sampler.seconds,
        }
        return {**drawing, "batches": self.num_batches, "seconds": self.overhead_seconds}

    def _rates(self, start: dict[str, float], end: dict[str, float]) -> dict[str, float]:
        # A stream that began anew counts from zero.
        if end["considered"] < start["considered"]:
            start = {**start, "considered": 0, "kept": 0, "prob_sum": 0.0, "drawing": 0.0}
        spent = {name: end[name] - start[name] for name in end}
        considered, batches = spent["considered"], max(spent["batches"], 1)
        return {
            "keep_rate": spent["kept"] / considered if considered else 1.0,
            "mean_keep_prob": spent["prob_sum"] / considered if considered else 1.0,
            "overhead_ms": 1e3 * (spent["seconds"] + spent["drawing"]) / batches,
        }

    def _candidates_seen(self, sampler: CandidateStream | PastStream | None) -> float:
        return float(self.instances_seen if sampler is None else sampler.num_considered * self.num_ranks)


def _joined(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    predictions, targets = zip(*parts, strict=True)
    return torch.cat(predictions), torch.cat(targets)


def over_ranks(metrics: list[dict[str, float]]) -> dict[str, float]:
    """Each metric's mean over the processes that have it."""
    values = {name: [own[name] for own in metrics if name in own] for name in dict.fromkeys(chain(*metrics))}
    return {name: sum(known) / len(known) for name, known in values.items()}


def _auroc(predictions: Tensor, targets: Tensor) -> dict[str, float]:
    """How well the Assistant ranked informative instances first; nothing where all or none were."""
    if targets.all() or not targets.any():
        return {}
    return {"assistant_auroc": float(binary_auroc(predictions, targets.long()))}


def warn_about_limits(trainer: Any, stream: CandidateStream, *, keeps_first_pass: bool = True) -> None:
    """Warn of Trainer settings with which filtering saves nothing.

    Args:
        trainer: The Trainer, at the start of fit.
        stream: The candidate stream.
        keeps_first_pass: Whether the first pass keeps everything.
    """
    if trainer.fast_dev_run:
        return
    limits = Limits.of(trainer)
    own, full = limits.lengths(stream)
    if own.num_steps == full.num_steps == trainer.max_steps:
        rank_zero_warn(
            f"max_steps={trainer.max_steps} fixes the number of optimizer steps, so filtering saves none: give the "
            "Trainer max_epochs instead"
        )
    if limits.has_time_limit:
        rank_zero_warn("max_time ends this run, so filtering saves no time: give the Trainer max_epochs instead")
    if isinstance(trainer.limit_train_batches, int) and own.num_batches == full.num_batches:
        rank_zero_warn(
            f"limit_train_batches={trainer.limit_train_batches} fixes the number of training batches, so filtering "
            "saves none: lower it yourself, or use a fraction"
        )
    epochs = trainer.max_epochs or -1
    trained = epochs * trainer.num_training_batches * stream.batch_size
    is_short = 0 < trained < 2 * stream.num_instances
    if keeps_first_pass and not stream.selector.keeps_everything and is_short:
        rank_zero_warn(
            f"this run trains on {trained} instances, less than two passes over {stream.num_instances}: the first pass "
            "keeps everything, so hardly anything will be filtered"
        )
