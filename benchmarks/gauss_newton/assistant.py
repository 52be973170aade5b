"""The MLP Assistant's two trainers: how well it ranks instances by their losses, and what an update costs.

A classifier of one hidden layer is trained by SGD on every batch, and an Assistant learns from the losses that it
shows. Thirty times a run the Assistant predicts the losses of instances that neither was given; the AUROC says how well
that ranks those whose loss is above the mean. The run is the same for each Assistant of a seed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.classification import binary_auroc

from benchmarks.common.jobs import TUNE_SEED, Row
from benchmarks.gauss_newton.data import Split, with_classes
from benchmarks.gauss_newton.runs import NewtonJob
from lightning_autoassist.assistants import MLPAssistant
from lightning_autoassist.filtering.memory.instances import Instances

STEPS = {"digits": 300, "fashion": 600, "clouds": 60}
BATCH = {"digits": 70, "fashion": 128, "clouds": 30}
NUM_POINTS, AT_ONCE = 30, 3
NUM_HIDDEN = 32
NUM_TIMED = 200
ADAM, NEWTON = "adam", "gauss_newton"
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
DAMPINGS = (1e-3, 1e-2, 1e-1, 1.0)
STEP_RATIOS = (0.1, 0.3, 1.0)


@dataclass(frozen=True)
class AssistantPlan:
    """What to run.

    Args:
        datasets: Names of data sets with classes.
        seeds: Of the final runs.
    """

    datasets: tuple[str, ...]
    seeds: tuple[int, ...]

    template = NewtonJob("assistant_final", "digits", ADAM, 1e-2, 70, NUM_HIDDEN, 0, 0)
    metric = "auroc"
    choices = ("setting", "n")

    def jobs(self, rows: dict[NewtonJob, Row]) -> Iterator[NewtonJob | None]:
        """All jobs in their order; None in place of those whose settings are not known yet."""
        for dataset in self.datasets:
            adams, newtons = self._tuning(dataset)
            yield from [*adams, *newtons]
            # Adam as it is best at the end of a run, and Gauss-Newton after a third of it.
            best = [_best(rows, adams, "auroc"), _best(rows, newtons, "auroc_third")]
            for seed in self.seeds:
                yield from (job and replace(job, phase="assistant_final", seed=seed) for job in best)
            yield from (job and replace(job, phase="assistant_time", seed=0) for job in best[1:])

    @staticmethod
    def _tuning(dataset: str) -> tuple[list[NewtonJob], list[NewtonJob]]:
        job = NewtonJob("assistant_tune", dataset, ADAM, 0.0, BATCH[dataset], NUM_HIDDEN, 0, TUNE_SEED)
        adams = [replace(job, setting=rate) for rate in RATES]
        methods = [f"{NEWTON}:{ratio:g}" for ratio in STEP_RATIOS]
        return adams, [replace(job, method=method, setting=damping) for method in methods for damping in DAMPINGS]


def run_assistant(job: NewtonJob, data_dir: Path) -> Row:
    """Run it; returns its row.

    Args:
        job: Of the plan's.
        data_dir: Of downloads.
    """
    data = with_classes(job.dataset, data_dir)
    found = _time_updates(job, data) if job.phase == "assistant_time" else _rank(job, data)
    return {**asdict(job), **found, "warnings": []}


def _best(rows: dict[NewtonJob, Row], jobs: list[NewtonJob], metric: str) -> NewtonJob | None:
    known = all(job in rows for job in jobs)
    return max(jobs, key=lambda job: rows[job][metric]) if known else None


def _assistant(job: NewtonJob, seed: int) -> MLPAssistant:
    if job.method == ADAM:
        return MLPAssistant(job.m, lr=job.setting, seed=seed, trainer="adam")
    ratio = float(job.method.partition(":")[2])
    return MLPAssistant(job.m, seed=seed, trainer="gauss_newton", damping=job.setting, step_ratio=ratio)


def _rank(job: NewtonJob, data: Split) -> Row:
    generator = torch.Generator().manual_seed(job.seed)
    net, optimizer = _classifier(data, job.seed)
    assistant, num_steps = _assistant(job, job.seed), STEPS[job.dataset]
    curve, spent, order = [], 0.0, torch.zeros(0, dtype=torch.long)
    for step in range(1, num_steps + 1):
        if len(order) < job.n:
            order = torch.randperm(len(data.targets), generator=generator)
        mine, order = order[: job.n], order[job.n :]
        losses = _train(net, optimizer, data.features[mine], data.targets[mine])
        began = time.process_time()
        assistant.update(Instances(data.features[mine], data.targets[mine]), losses)
        spent += time.process_time() - began
        if step * NUM_POINTS % num_steps < NUM_POINTS:
            curve.append((step, _auroc(assistant, net, data)))
    third = NUM_POINTS // 3
    return {
        "auroc_third": _mean(curve[third - AT_ONCE : third]),
        "auroc": _mean(curve[-AT_ONCE:]),
        "curve": curve,
        "update_ms": 1e3 * spent / num_steps,
        "seconds": spent,
        "updates": num_steps,
    }


def _time_updates(job: NewtonJob, data: Split) -> Row:
    """CPU milliseconds of both trainers' updates with the same batches, in turns."""
    assistants = [MLPAssistant(job.m, trainer="adam"), _assistant(job, 0)]
    batch, generator = Instances(data.features[: job.n], data.targets[: job.n]), torch.Generator().manual_seed(0)
    spent: list[list[float]] = [[], []]
    for _ in range(NUM_TIMED):
        scores = torch.rand(job.n, generator=generator)
        for assistant, times in zip(assistants, spent, strict=True):
            began = time.process_time()
            assistant.update(batch, scores)
            times.append(1e3 * (time.process_time() - began))
    adam_ms, newton_ms = (sorted(times)[len(times) // 2] for times in spent)
    return {
        "adam_ms": adam_ms,
        "newton_ms": newton_ms,
        "ratio": newton_ms / adam_ms,
        "auroc": 0.5,  # of scores that are drawn
        "seconds": sum(map(sum, spent)) / 1e3,
        "updates": NUM_TIMED,
    }


def _classifier(data: Split, seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        num_classes = int(data.targets.max()) + 1
        net = nn.Sequential(nn.Linear(data.features.shape[1], 64), nn.ReLU(), nn.Linear(64, num_classes))
    return net, torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)


def _train(net: nn.Module, optimizer: torch.optim.Optimizer, features: Tensor, labels: Tensor) -> Tensor:
    """A step of SGD; returns the losses that it showed."""
    losses = F.cross_entropy(net(features), labels, reduction="none")
    optimizer.zero_grad()
    losses.mean().backward()
    optimizer.step()
    return losses.detach()


@torch.no_grad()
def _auroc(assistant: MLPAssistant, net: nn.Module, data: Split) -> float:
    losses = F.cross_entropy(net(data.test_features), data.test_targets, reduction="none")
    predicted = assistant.predict(Instances(data.test_features, data.test_targets))
    # In [0, 1]: binary_auroc takes other numbers for logits.
    return float(binary_auroc(predicted / predicted.max().clamp(min=1e-12), (losses > losses.mean()).long()))


def _mean(points: list[tuple[int, float]]) -> float:
    return sum(value for _, value in points) / len(points)
