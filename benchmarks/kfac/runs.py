"""One run: a case, a method, its learning rate and damping, a seed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.common.jobs import Row
from benchmarks.common.training import train
from benchmarks.images.data import Images, load_images
from benchmarks.kfac.networks import Trained, autoencoder, mlp, residual
from lightning_autoassist import KFACCallback

NUM_HELD_OUT = 2000
EIGHTH = "kfac_eighth"
CLIPPED = "kfac_clipped"
# Of 0.001, 0.003, 0.01, 0.03, 0.1, 1 and 10 on held-out images of both autoencoders.
KL_CLIP = 0.03


@dataclass(frozen=True)
class Case:
    """What is trained.

    Args:
        net: Makes the network.
        dataset: Of the images.
        size: Height and width that images are scaled to; None: as they are.
        batch_size: B.
        epochs: Over ``num_instances`` images.
        rates: Grid of learning rates, by method.
        dampings: Grid of relative dampings, for K-FAC.
        absolute: Grid of absolute dampings, for KAISA's rule.
        intervals: Updates between two of the factors, and between two inversions.
        reference: The method whose end is to be reached.
        bar: Share of its updates in which K-FAC is to reach it.
        title: Says what it is.
        check_every: Updates between two measurements.
        num_instances: To train on.
    """

    net: Callable[[], nn.Module]
    dataset: str
    size: int | None
    batch_size: int
    epochs: int
    rates: dict[str, tuple[float, ...]]
    dampings: tuple[float, ...]
    absolute: tuple[float, ...]
    intervals: tuple[int, int]
    reference: str
    bar: float
    title: str
    check_every: int = 10
    num_instances: int = 10_240

    @property
    def is_autoencoder(self) -> bool:
        """Whether images are to be given back."""
        return isinstance(self.net, partial) and self.net.func is autoencoder

    @property
    def num_updates(self) -> int:
        """Of a run; the last batch of an epoch is whole."""
        return self.epochs * (self.num_instances // self.batch_size)


@dataclass(frozen=True, kw_only=True)
class KFACJob:
    """What makes a run the run it is.

    Args:
        phase: ``"tune"``: measured on images that are held out of the training images; ``"final"``: on test images.
        dataset: Name of the case.
        epochs: Of the Trainer.
        device: ``"cpu"`` or ``"cuda"``.
        precision: Of the Trainer.
        method: ``"sgd"``, ``"adamw"``, or over SGD ``"kfac"`` (the default rule), ``"kfac_eighth"`` (the same with
            factors of an eighth of the instances), ``"kfac_clipped"`` (relative damping and ``step="kl_clip"``) or
            ``"kaisa"`` (KAISA's rule).
        learning_rate: At the beginning.
        damping: Of K-FAC; 0 for the others.
        seed: Of parameters and order.
    """

    phase: str
    dataset: str
    epochs: int
    device: str = "cpu"
    precision: str = "32-true"
    method: str
    learning_rate: float
    damping: float = 0.0
    seed: int = 0


class ImagesInBatches(pl.LightningDataModule):
    """Shuffled whole batches to train on, and images to measure on."""

    def __init__(self, train_images: Images, held_out: Images, batch_size: int) -> None:
        super().__init__()
        self.train_images, self.held_out, self.batch_size = train_images, held_out, batch_size

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(*self.train_images), self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(*self.held_out), 500)


def run_job(job: KFACJob, case: Case, data_dir: Path) -> Row:
    """Train once; returns the job's fields and what came out."""
    is_choosing = job.phase == "tune"
    train_images, held_out = load_images(
        case.dataset, data_dir, choosing=is_choosing, num_instances=case.num_instances, size=case.size
    )
    held_out = Images(*(tensor[:NUM_HELD_OUT] for tensor in held_out))
    pl.seed_everything(job.seed, verbose=False)
    module = Trained(
        case.net(),
        is_autoencoder=case.is_autoencoder,
        optimizer="adamw" if job.method == "adamw" else "sgd",
        learning_rate=job.learning_rate,
        num_updates=case.num_updates,
    )
    check_every = case.num_updates if is_choosing else case.check_every
    callback = callback_of(job, case)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        row = train(
            job,
            module,
            ImagesInBatches(train_images, held_out, case.batch_size),
            "score",
            [] if callback is None else [callback],
            val_check_interval=check_every,
            check_val_every_n_epoch=None,
        )
    seconds = {}
    if callback is not None:
        [part] = callback.preconditioners
        seconds = {name: round(value, 2) for name, value in part.seconds.items()}
    told = sorted({str(one.message) for one in caught if "K-FAC" in str(one.message)})
    return {**row, "intervals": case.intervals, "kfac_seconds": seconds, "warnings": told}


def score_of(row: Row) -> float:
    """What a run reached; less than what any other did where it diverged and has no number."""
    score: float = row["score"]
    return score if score == score else -1e9


def callback_of(job: KFACJob, case: Case) -> KFACCallback | None:
    """What is beside the optimizer; None for SGD and AdamW alone."""
    factors, inverses = case.intervals
    if job.method in ("kfac", EIGHTH):
        share = 0.125 if job.method == EIGHTH else 1.0
        return KFACCallback(job.damping, factor_update_steps=factors, factor_share=share, inv_update_steps=inverses)
    if job.method == CLIPPED:
        return KFACCallback(
            job.damping, step="kl_clip", kl_clip=KL_CLIP, factor_update_steps=factors, inv_update_steps=inverses
        )
    if job.method == "kaisa":
        return KFACCallback.kaisa(damping=job.damping, factor_update_steps=factors, inv_update_steps=inverses)
    return None


_SGD_RATES = (0.01, 0.03, 0.1, 0.3, 1.0)
_RATES = {"sgd": _SGD_RATES, "adamw": (0.001, 0.003, 0.01, 0.03), "kfac": (0.03, 0.1, 0.3), "kaisa": (0.1, 0.3)}
_AUTOENCODER_RATES = {
    "sgd": (0.003, 0.01, 0.03, 0.1, 0.3),
    "adamw": (0.001, 0.003, 0.01, 0.03, 0.1),
    "kfac": (0.03, 0.1, 0.3),
    CLIPPED: (0.1,),
    "kaisa": (0.1, 0.3),
}
_LARGE_AUTOENCODER_RATES = {
    "sgd": (0.003, 0.01, 0.03, 0.1, 0.3),
    "adamw": (0.001, 0.003, 0.01),
    "kfac": (0.003, 0.01, 0.03, 0.1),
    CLIPPED: (0.1,),
    "kaisa": (0.1,),
}
_RESIDUAL_RATES = {
    "sgd": (0.03, 0.1, 0.2, 0.3),
    "adamw": (0.003, 0.01),
    "kfac": (0.03, 0.1),
    EIGHTH: (0.03, 0.1),
    "kaisa": (0.1,),
}

CASES = {
    "mlp": Case(
        partial(mlp, (196, 128, 64, 10)),
        "fashion-mnist", 14, 128, 4, _RATES, (0.03, 0.1, 1.0), (1e-2, 1e-1), (5, 20), "sgd", 0.6,
        "MLP 196-128-64-10, Fashion-MNIST at 14x14",
    ),
    "autoencoder": Case(
        partial(autoencoder, (196, 128, 64, 16)),
        "fashion-mnist", 14, 256, 6, _AUTOENCODER_RATES, (0.03, 0.1, 1.0), (1e-2, 1e-1), (5, 20), "adamw", 0.6,
        "autoencoder 196-128-64-16 and back, Fashion-MNIST at 14x14",
    ),
    "residual": Case(
        partial(residual, has_norm=False),
        "fashion-mnist", 14, 128, 6, _RESIDUAL_RATES, (0.1, 1.0), (1e-2, 1e-1), (10, 100), "sgd", 0.75,
        "residual network without BatchNorm, Fashion-MNIST at 14x14",
        check_every=20,
    ),
    "residual-norm": Case(
        partial(residual, has_norm=True),
        "fashion-mnist", 14, 128, 6, _RESIDUAL_RATES, (0.1, 1.0), (1e-2, 1e-1), (10, 100), "sgd", 0.75,
        "residual network with BatchNorm, Fashion-MNIST at 14x14",
        check_every=20,
    ),
    "autoencoder-784": Case(
        partial(autoencoder, (784, 500, 250, 30)),
        "fashion-mnist", None, 256, 6,
        _LARGE_AUTOENCODER_RATES,
        (0.03, 0.1, 0.3), (1e-2, 1e-1), (10, 100), "adamw", 0.6,
        "autoencoder 784-500-250-30 and back, Fashion-MNIST",
    ),
    "digits": Case(
        partial(mlp, (64, 32, 10)),
        "digits", None, 64, 2, {"sgd": (0.1,), "adamw": (0.003,), "kfac": (0.1,), "kaisa": (0.1,)},
        (0.1,), (1e-2,), (2, 5), "sgd", 1.0, "digits", num_instances=1000,
    ),
}  # fmt: skip
