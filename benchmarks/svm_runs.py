"""One run of the linear SVM's benchmark: the Boss, Assistants that know its weights, and what is measured.

Shapes: N data set, B batch, n candidates, F features.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from runs import Row, filter_warnings, settings_of
from svm_data import TwoClasses
from svm_optimum import Objective, Optimum
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from lightning_autoassist import Assistant, AutoAssistCallback, AutoAssistDataModule, MemoryAssistant
from lightning_autoassist.filtering.assistants.base import Outcome
from lightning_autoassist.filtering.memory.instances import Instances
from lightning_autoassist.filtering.policies.autoassist import AutoAssistPolicy
from lightning_autoassist.filtering.policies.base import Policy
from lightning_autoassist.filtering.policies.proportional import ProportionalPolicy

BATCH_SIZE = 32
# Of importance sampling: mean chance of the candidates, less the floor. So little that chances follow the scores, and
# are not cut at 1 wherever there is a gradient.
ABOVE_FLOOR = 0.2
# Eta of Shamir & Zhang's average.
AVERAGE_DECAY = 3
# Points of the curve, each 4 % after the one before.
FIRST_POINT = 20
POINT_RATIO = 1.04


@dataclass(frozen=True)
class SvmJob:
    """One run: what makes it the run it is, and nothing else.

    Args:
        phase: ``"tune"``: chooses a floor; ``"final"``: is reported.
        dataset: In ``SVM_SETS``.
        l2: Lambda.
        epochs: Of ceil(N / B) updates each; the last may be a part of one.
        method: In ``METHODS``.
        floor: Least chance of a candidate; the paper's gamma for AutoAssist, 1 for SGD.
        seed: Of the order and of the selection; the weights begin at 0.
    """

    phase: str
    dataset: str
    l2: float
    epochs: float
    method: str
    floor: float
    seed: int


class LinearSVM(pl.LightningModule):
    """Hinge loss and L2, by SGD with steps of 1 / (lambda t).

    Args:
        num_features: F.
        l2: Lambda.
    """

    def __init__(self, num_features: int, l2: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_features))
        self.l2 = l2

    def forward(self, features: Tensor) -> Tensor:
        return features @ self.weight

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        features, labels = batch
        scores = self(features)
        # The hinge is the ranking loss of a score against 0, with a margin of 1.
        hinge = F.margin_ranking_loss(scores, torch.zeros_like(scores), labels, margin=1)
        return hinge + self.l2 / 2 * self.weight.dot(self.weight)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 1 / self.l2)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class SVMData(pl.LightningDataModule):
    """A shuffled train loader, which reads whole batches at once.

    Args:
        data: The instances.
    """

    def __init__(self, data: TwoClasses) -> None:
        super().__init__()
        self.rows = _Rows(data)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.rows, BATCH_SIZE, shuffle=True, collate_fn=_as_it_is)


class _Rows(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, data: TwoClasses) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.data.features[index], self.data.labels[index]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        rows = torch.tensor(indices)
        return self.data.features[rows], self.data.labels[rows]


def _as_it_is(batch: Any) -> Any:
    return batch


# ---- Assistants


class CurrentMargins(Assistant):
    """Base of rules on a candidate's margin under the Boss's current weights: exact, nothing is learnt.

    Args:
        boss: The module that is trained.
        data: The very instances of its data set.

    Attributes:
        num_margins: Margins of candidates that were computed.
    """

    reads = ("indices",)
    judges_unseen = True

    def __init__(self, boss: LinearSVM, data: TwoClasses) -> None:
        self.boss = boss
        self.data = data
        self.num_margins = 0

    def scores(self, rows: Tensor, margins: Tensor) -> Tensor:
        """The rule.

        Args:
            rows: Positions of the candidates, shape ``(n,)``.
            margins: Label times score, shape ``(n,)``.
        """
        raise NotImplementedError

    def predict(self, instances: Instances) -> Tensor:
        assert instances.indices is not None
        self.num_margins += len(instances.indices)
        return self._scores(instances.indices)

    def update(self, instances: Instances, scores: Tensor) -> Outcome:
        assert instances.indices is not None
        predictions = self._scores(instances.indices)  # after the Boss's step: for the reports, no candidates
        return Outcome(float((predictions - scores).abs().mean()), predictions, scores > 0)

    def state_dict(self) -> dict[str, Any]:
        return {"num_margins": self.num_margins}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.num_margins = state["num_margins"]

    @torch.no_grad()
    def _scores(self, rows: Tensor) -> Tensor:
        features, labels = self.data.features[rows], self.data.labels[rows]
        return self.scores(rows, labels * self.boss(features.to(self.boss.device)).to(labels.device))


class MarginRule(CurrentMargins):
    r"""The paper's rule for linear SVMs, :math:`a_i = \|x_i\|\,1[\text{margin} < 1]`, with norms of at most 1.

    It is the norm of the gradient of the instance's hinge loss, which is 0 where the margin is kept.

    Source: Zhang, Yu & Dhillon, AutoAssist, NeurIPS 2019, arXiv:1905.03381.
    """

    def __init__(self, boss: LinearSVM, data: TwoClasses) -> None:
        super().__init__(boss, data)
        self.norms = data.norms

    def scores(self, rows: Tensor, margins: Tensor) -> Tensor:
        return self.norms[rows] * (margins < 1)


class CurrentLoss(CurrentMargins):
    """The hinge loss of a candidate under the current weights: importance sampling by loss that nothing makes old."""

    def scores(self, rows: Tensor, margins: Tensor) -> Tensor:
        return (1 - margins).clamp(min=0)


class RememberedGradient(MemoryAssistant):
    """The norm of the gradient that an instance had when it was last seen: its own norm, where its loss was not 0.

    Args:
        boss: Not used.
        data: The instances of the data set.
    """

    reads = ("indices", "scores")

    def __init__(self, boss: LinearSVM, data: TwoClasses) -> None:
        super().__init__()
        self.norms = data.norms

    def predict(self, instances: Instances) -> Tensor:
        return self._norms(instances, super().predict(instances))

    def update(self, instances: Instances, scores: Tensor) -> Outcome:
        return super().update(instances, self._norms(instances, scores))

    def _norms(self, instances: Instances, losses: Tensor) -> Tensor:
        assert instances.indices is not None
        return self.norms[instances.indices] * (losses > 0)


class RememberedLoss(MemoryAssistant):
    """The loss that an instance had when it was last seen.

    Args:
        boss: Not used.
        data: Not used.
    """

    def __init__(self, boss: LinearSVM, data: TwoClasses) -> None:
        super().__init__()


@dataclass(frozen=True)
class Method:
    """What chooses the instances of a run.

    Args:
        name: For the tables.
        assistant: Gets the Boss and its data.
        policy: Gets the floor.
    """

    name: str
    assistant: Callable[[LinearSVM, TwoClasses], Assistant]
    policy: Callable[[float], Policy]

    def callback(self, boss: LinearSVM, data: TwoClasses, floor: float) -> AutoAssistCallback:
        """The callback, whose weights leave the objective as it is, in step with the Boss."""
        return AutoAssistCallback(
            self.assistant(boss, data), self.policy(floor), score="loss", weights="mean", tail=0, update="sync"
        )


def _proportional(floor: float) -> Policy:
    return ProportionalPolicy(floor + ABOVE_FLOOR, floor)


SGD = "sgd"
METHODS: dict[str, Method | None] = {
    SGD: None,
    "importance-loss": Method("importance sampling by loss", RememberedLoss, _proportional),
    "importance-gradient": Method("importance sampling by gradient norm", RememberedGradient, _proportional),
    "autoassist": Method("AutoAssist", MarginRule, AutoAssistPolicy),
    "current-loss": Method("importance sampling by current loss", CurrentLoss, _proportional),
    "current-gradient": Method("importance sampling by current gradient norm", MarginRule, _proportional),
}


# ---- a run


class Curve(pl.Callback):
    r"""Suboptimality of the average and of the last weights against what was spent on them.

    The average is :math:`\bar w_t = (1 - a_t) \bar w_{t-1} + a_t w_t` with :math:`a_t = (\eta + 1) / (t + \eta)`, which
    is O(1/t) from the minimum with steps of 1 / (lambda t); for the last weights O(log t / t) is known.

    Source: Shamir & Zhang, Stochastic Gradient Descent for Non-smooth Optimization, ICML 2013, arXiv:1212.1824.

    Args:
        objective: P.
        minimum: Its minimum.
        assistant: Whose margins are counted, if any.
    """

    def __init__(self, objective: Objective, minimum: float, assistant: Assistant | None) -> None:
        self.objective = objective
        self.minimum = minimum
        self.assistant = assistant
        self.average = torch.zeros(0)
        self.num_evaluations = 0
        self.seconds = 0.0
        # (updates, gradient evaluations, margins of candidates, seconds, suboptimality of the average, of the last)
        self.points: list[tuple[int, int, int, float, float, float]] = []
        self._since = 0.0
        self._last_step = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.average = pl_module.weight.detach().clone()
        self._last_step = int(trainer.estimated_stepping_batches)
        self._since = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        self.num_evaluations += len(batch[1])
        self.average.lerp_(pl_module.weight.detach(), (AVERAGE_DECAY + 1) / (step + AVERAGE_DECAY))
        next_point = FIRST_POINT if not self.points else self.points[-1][0] * POINT_RATIO
        if step >= next_point or step == self._last_step:
            self._measure(step, pl_module)

    def _measure(self, step: int, module: LinearSVM) -> None:
        self.seconds += time.perf_counter() - self._since
        margins = getattr(self.assistant, "num_margins", 0)
        weights = torch.stack([self.average, module.weight.detach()]).cpu().numpy()
        average, last = (float(f"{value - self.minimum:.5e}") for value in self.objective.values(weights))
        self.points.append((step, self.num_evaluations, margins, round(self.seconds, 3), average, last))
        self._since = time.perf_counter()


def run_job(job: SvmJob, data: TwoClasses, objective: Objective, best: Optimum) -> Row:
    """Train once.

    Args:
        job: What to run.
        data: To train on.
        objective: P.
        best: Its minimum.

    Returns:
        The row: the job's own fields, and what came out.
    """
    torch.manual_seed(job.seed)
    boss = LinearSVM(data.features.shape[1], job.l2)
    method = METHODS[job.method]
    callback = None if method is None else method.callback(boss, data, job.floor)
    curve = Curve(objective, best.objective, None if callback is None else callback.assistant)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=math.ceil(job.epochs),
        limit_train_batches=job.epochs / math.ceil(job.epochs),
        callbacks=[curve] if callback is None else [callback, curve],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    rows = SVMData(data)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(boss, datamodule=rows if callback is None else AutoAssistDataModule(rows, budget=1))
    summary = {} if callback is None else callback.summary()
    return {
        **asdict(job),
        "train_instances": len(data.labels),
        "features": data.features.shape[1],
        "batch_size": BATCH_SIZE,
        "schedule": "1 / (lambda t)",
        "average": f"Shamir & Zhang, eta {AVERAGE_DECAY}",
        "settings": {} if callback is None else settings_of(callback),
        "minimum": best.objective,
        "minimum_gap": best.gap,
        "suboptimality": curve.points[-1][-2],
        "updates": trainer.global_step,
        "gradient_evaluations": curve.num_evaluations,
        "candidates": int(summary["candidates_seen"]) if summary else curve.num_evaluations,
        "candidate_margins": curve.points[-1][2],
        "seconds": round(curve.seconds, 2),
        "keep_rate": round(summary["keep_rate"], 4) if summary else None,
        "overhead_ms": round(summary["overhead_ms"], 4) if summary else None,
        "curve": curve.points,
        "warnings": filter_warnings(caught),
    }


def is_valid(points: list[Any]) -> bool:
    """Whether a curve holds numbers only, none of them below the minimum by more than its last digits."""
    return all(np.isfinite(point).all() and min(point[-2:]) > -1e-9 for point in points)
