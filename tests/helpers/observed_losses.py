"""A module that logs every instance's loss, and the training dynamics of such a log, in full precision.

Run as ``python -m tests.helpers.observed_losses FOLDER``: a fit on two processes, and one that is resumed from its
middle; what each process logged goes to files. Lightning starts the second process itself.
"""

from __future__ import annotations

import faulthandler
import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from torch.nn import functional as F

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule
from lightning_autoassist.filtering.memory.frame import columns_of
from tests.helpers.ordinary import Classifier, ClustersData, index_of

# What is weighted is as precise as the weights; what is in half precision, to a thousandth.
CLOSE = {"loss_mean": 5e-4, "confidence": 2e-4, "variability": 2e-4, "loss_spread": 2e-3, "area_under_margin": 4e-3}
EVERY, SAVED_AT, EPOCHS, TIME_LIMIT = 5, 14, 4, 200  # 200 instances, 2 processes, budget 0.6: 6 steps an epoch


class Line(NamedTuple):
    """What a log has of one instance in one step."""

    step: int
    index: int
    loss: float
    prob: float
    index_pass: int
    margin: float
    other: int


class LossLog(Classifier):
    """Logs index, loss, p and margin of each instance that it is trained on, with its pass: one line an instance."""

    def __init__(self, callback: AutoAssistCallback) -> None:
        super().__init__()
        self.callback = [callback]  # in a list: no part of the module
        self.lines: list[Line] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        features, labels = batch
        logits = self.net(features)
        with torch.no_grad():
            losses = F.cross_entropy(logits, labels, reduction="none").tolist()
            margins, others = margins_by_hand(logits, labels)
        draw = self.callback[0]._steps.draw
        probs = [1.0] * len(losses) if draw.probs is None else draw.probs.tolist()
        step = self.trainer.global_step
        for index, loss, prob, margin, other in zip(
            index_of(features).tolist(), losses, probs, margins, others, strict=True
        ):
            self.lines.append(Line(step, index, loss, prob, draw.pass_index, margin, other))
        return F.cross_entropy(logits, labels)


def margins_by_hand(logits: torch.Tensor, labels: torch.Tensor) -> tuple[list[float], list[int]]:
    """Each label's logit less the largest other one, and whose that is."""
    margins, others = [], []
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        logit, other = max((logit, number) for number, logit in enumerate(row) if number != label)
        margins.append(row[label] - logit)
        others.append(other)
    return margins, others


def by_hand(lines: list[Line], num_instances: int) -> dict[str, np.ndarray]:
    """What ``to_frame()`` should hold, by the formulas of its documentation."""
    rows = [_row([line for line in lines if line.index == number]) for number in range(num_instances)]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def _row(visits: list[Line]) -> dict[str, float]:
    learnt = [visit.loss < math.log(2) for visit in visits]
    turns = list(zip([False, *learnt], learnt, strict=False))
    passes = [visit.index_pass for visit, is_learnt in zip(visits, learnt, strict=True) if is_learnt]
    losses, weights = [visit.loss for visit in visits], [1 / visit.prob for visit in visits]
    loss_mean, loss_spread = _moments(losses, weights)
    confidence, variability = _moments([math.exp(-loss) for loss in losses], weights)
    return {
        "times_seen": len(visits),
        "loss_mean": loss_mean,
        "loss_spread": loss_spread,
        "confidence": confidence,
        "variability": variability,
        "area_under_margin": _moments([visit.margin for visit in visits], weights)[0],
        "suggested_label": _candidate([visit.other for visit in visits]),
        "times_learnt": turns.count((False, True)),
        "times_forgotten": turns.count((True, False)),
        "first_pass_learnt": passes[0] if passes else -1,
    }


def _moments(values: list[float], weights: list[float]) -> tuple[float, float]:
    if not values:
        return math.nan, math.nan
    mean = np.average(values, weights=weights)
    return mean, math.sqrt(np.average((np.array(values) - mean) ** 2, weights=weights))


def _candidate(votes: list[int]) -> int:
    """Who has the majority, or who is left where pairs of different votes leave together."""
    left: list[int] = []
    candidate = -1
    for vote in votes:
        if left and left[-1] != vote:
            left.pop()
        else:
            left.append(vote)
            candidate = vote
    if votes and 2 * votes.count(max(votes, key=votes.count)) > len(votes):
        assert candidate == max(votes, key=votes.count)
    return candidate


def assert_are(columns: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """The columns of a run against those by hand: counts and votes exactly, the others to what their bits hold."""
    for name, values in expected.items():
        close = CLOSE.get(name, 0)
        np.testing.assert_allclose(columns[name], values, rtol=close, atol=close, err_msg=name)


def fit(folder: Path, *, resume: Path | None = None, devices: int = 1, **settings: Any) -> dict[str, Any]:
    """One fit of 200 instances; returns what this process logged, and what it knows at the end."""
    pl.seed_everything(0 if resume is None else 99, verbose=False)
    budget, epochs = settings.pop("budget", 0.6), settings.pop("max_epochs", EPOCHS)
    data = ClustersData(200, 10, **settings.pop("loader", {}))
    callback = AutoAssistCallback(**settings)
    module = LossLog(callback)
    saving = pl.callbacks.ModelCheckpoint(folder, "{step}", every_n_train_steps=SAVED_AT, save_top_k=-1)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=epochs,
        callbacks=[callback, saving],
        logger=CSVLogger(folder.with_name(f"{folder.name}-csv"), "", ""),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        log_every_n_steps=1,
    )
    trainer.fit(module, datamodule=AutoAssistDataModule(data, budget=budget, seed=3), ckpt_path=resume)
    counts = callback._log.counts
    return {
        "lines": module.lines,
        "columns": columns_of(callback.instances),
        "kept": counts.kept,
        "dropped": counts.dropped,
    }


def main(folder: Path) -> None:
    """Both fits, in whichever process this is; lines are saved as tuples, as ``Line`` is in no module here."""
    whole = fit(folder / "whole", devices=2, exchange_every=EVERY)
    resumed = fit(
        folder / "resumed", devices=2, exchange_every=EVERY, resume=folder / "whole" / f"step={SAVED_AT}.ckpt"
    )
    for seen in (whole, resumed):
        seen["lines"] = [tuple(line) for line in seen["lines"]]
    torch.save((whole, resumed), folder / f"{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(TIME_LIMIT, exit=True)  # two processes that wait for each other say where
    main(Path(sys.argv[1]))
