"""One row of the benchmark of wrong labels: how well a ranking of the training images finds them.

Shapes: N instances, C classes.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torchmetrics.functional.classification import binary_auroc

from benchmarks.common.jobs import Method, Row
from benchmarks.common.training import filter_warnings, filtering_of, train
from benchmarks.images.data import ImageData, Images
from benchmarks.images.runs import MODELS, ImageJob, ImageModule
from lightning_autoassist import AutoAssistDataModule
from lightning_autoassist.filtering.memory.frame import columns_of

FOLDS = 3
# Of to_frame(): where a higher value speaks for a wrong label, and -1 where a lower one does.
STATISTICS = {
    "loss_mean": 1,
    "confidence": -1,
    "loss_spread": 1,
    "variability": 1,
    "area_under_margin": -1,
    "times_forgotten": 1,
    "score": 1,
}
CLEANLAB_METHODS = ("self_confidence", "normalized_margin", "confidence_weighted_entropy")
CLEANLAB = "cleanlab"

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class LabelErrorJob(ImageJob):
    """One row.

    Args:
        method: A policy, whose run's dynamics rank the images; or ``"cleanlab"``, whose scores do, of what unfiltered
            runs on the other folds predict.
        folds: Of the cross-validation, each of which takes a run; 1 for a policy.
    """

    dataset: str = "label-noise"
    folds: int = 1


def run_job(job: LabelErrorJob, train_set: Images, true_labels: npt.NDArray[np.int64]) -> Row:
    """Train, once or once a fold, and rank.

    Args:
        job: What to run.
        train_set: With wrong labels.
        true_labels: Of the images, shape ``(N,)``.

    Returns:
        The row: the job's own fields, the AUROC of each ranking, and of ours the share of wrong labels for which the
        true one is suggested.
    """
    torch.manual_seed(job.seed)
    is_wrong = train_set.labels.numpy() != true_labels
    if job.method == CLEANLAB:
        row, rankings = _by_cleanlab(job, train_set)
    else:
        row, rankings, suggested = _by_dynamics(job, train_set)
        row["suggested_right"] = round(float((suggested == true_labels)[is_wrong].mean()), 5)
    aurocs = {name: round(auroc(scores, is_wrong), 5) for name, scores in rankings.items()}
    return {**row, "train_instances": len(is_wrong), "wrong_labels": int(is_wrong.sum()), "auroc": aurocs}


def auroc(scores: Scores, is_wrong: npt.NDArray[np.bool_]) -> float:
    """The chance that a wrong label has a higher score than a right one.

    Example:
        >>> auroc(np.array([0.9, 0.1, 0.8]), np.array([True, False, True]))
        1.0
    """
    ranks = np.unique(scores, return_inverse=True)[1]  # torchmetrics takes scores outside of [0, 1] for logits
    return float(binary_auroc(torch.from_numpy(ranks / max(ranks.max(), 1)), torch.from_numpy(is_wrong).long()))


def _boss(job: LabelErrorJob, images: Images) -> ImageModule:
    return ImageModule(MODELS[job.model](images.images.shape[1:]), job.learning_rate, channels_last=True)


def _by_dynamics(job: LabelErrorJob, train_set: Images) -> tuple[Row, dict[str, Scores], npt.NDArray[np.int32]]:
    callback = Method(job.method).callback()
    assert callback is not None
    # What is validated on is not looked at: a thousand images, which cost next to nothing.
    images = ImageData(train_set, Images(*(part[:1000] for part in train_set)), job.batch_size)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = AutoAssistDataModule(images, budget=job.budget)
        row = train(job, _boss(job, train_set), data, "accuracy", [callback])
    assert callback.instances is not None
    columns = columns_of(callback.instances)
    rankings = {name: sign * columns[name].astype(np.float64) for name, sign in STATISTICS.items()}
    row = {**row, **filtering_of(callback), "runs": 1, "warnings": filter_warnings(caught)}
    return row, rankings, columns["suggested_label"]


def _by_cleanlab(job: LabelErrorJob, train_set: Images) -> tuple[Row, dict[str, Scores]]:
    from cleanlab.rank import get_label_quality_scores

    labels = train_set.labels.numpy()
    folds = np.random.default_rng(job.seed).permutation(len(labels)) % job.folds
    probs = np.zeros((len(labels), int(labels.max()) + 1))
    rows: list[Row] = []
    for fold in range(job.folds):
        held_out = torch.from_numpy(folds == fold)
        inside = Images(*(part[~held_out] for part in train_set))
        outside = Images(*(part[held_out] for part in train_set))
        boss = _boss(job, inside)
        rows.append(train(job, boss, ImageData(inside, outside, job.batch_size), "accuracy"))
        probs[held_out.numpy()] = _probs(boss, outside)
    totals: dict[str, Any] = {name: round(sum(row[name] for row in rows), 2) for name in ("updates", "seconds")}
    totals["accuracy"] = round(float(np.mean([row["accuracy"] for row in rows])), 5)
    scores = {method: -get_label_quality_scores(labels, probs, method=method) for method in CLEANLAB_METHODS}
    return {**rows[0], **totals, "runs": job.folds, "warnings": []}, scores


def _probs(boss: ImageModule, images: Images) -> npt.NDArray[np.float32]:
    boss.eval()
    with torch.no_grad():
        return torch.cat([boss(part).softmax(1) for part in images.images.split(500)]).numpy()
