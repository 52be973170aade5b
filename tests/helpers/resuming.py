"""Small runs that save at every step and are resumed from there, for the tests of what resumes exactly."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule
from tests.helpers.ordinary import Classifier, CountingDataset, trainer

N, B, EPOCHS = 60, 10, 3  # at budget 0.6: 4 batches an epoch, 12 in all


class Drawing(Sampler):
    """Orders by a generator of its own, of one of the kinds that Python's libraries have."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.rng: Any = {
            "numpy Generator": lambda: np.random.default_rng(3),
            "numpy MT19937": lambda: np.random.Generator(np.random.MT19937(3)),
            "numpy RandomState": lambda: np.random.RandomState(3),
            "random.Random": lambda: random.Random(3),
        }[kind]()

    def __len__(self) -> int:
        return N

    def __iter__(self):
        if self.kind == "random.Random":
            return (self.rng.randrange(N) for _ in range(N))  # one by one
        return iter(self.rng.permutation(N).tolist())


class ByEpoch(Sampler):
    """Orders by the number that ``set_epoch`` got last."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return N

    def __iter__(self):
        return iter(torch.randperm(N, generator=torch.Generator().manual_seed(self.epoch)).tolist())


class Augmented(Dataset):
    """Adds noise of a generator of its own."""

    def __init__(self) -> None:
        self.instances = CountingDataset(N)
        self.generator = torch.Generator().manual_seed(1)

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int):
        features, label = self.instances[index]
        return features + 0.1 * torch.randn(8, generator=self.generator), label


def loader(kind: str, **options: Any) -> DataLoader:
    """A train loader of its own randomness."""
    data = Augmented() if kind == "augmented" else CountingDataset(N)
    generator = torch.Generator().manual_seed(5)
    if kind == "batch sampler":
        return DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data, generator=generator), B, False))
    samplers = {
        "weighted": lambda: WeightedRandomSampler(torch.arange(1.0, N + 1), N, generator=generator),
        "replacement": lambda: RandomSampler(data, replacement=True, generator=generator),
        "subset": lambda: SubsetRandomSampler(range(N), generator=generator),
        "by epoch": ByEpoch,
    }
    if kind in {"global", "augmented"}:
        return DataLoader(data, B, shuffle=True, **options)
    if kind == "loader":
        return DataLoader(data, B, shuffle=True, generator=generator, **options)
    return DataLoader(data, B, sampler=samplers.get(kind, lambda: Drawing(kind))(), **options)


class DrawingClassifier(Classifier):
    """Draws from every global generator while it validates; notes which epochs began."""

    def __init__(self, every: int | None = None) -> None:
        super().__init__()
        self.every = every
        self.automatic_optimization = every is None
        self.begun: list[tuple[int, int]] = []

    def on_train_epoch_start(self) -> None:
        self.begun.append((self.current_epoch, self.global_step))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        if self.every is not None:
            self.manual_backward(loss)
            if (batch_idx + 1) % self.every == 0:
                self.optimizers().step()
                self.optimizers().zero_grad()
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        torch.rand(3), np.random.rand(2), random.random()  # noqa: NPY002
        super().validation_step(batch, batch_idx)


class SaveEvery(pl.Callback):
    """Saves at every batch, before whatever comes after it in the list of callbacks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, run: Any, module: Any, *args: Any) -> None:
        run.save_checkpoint(self.folder / f"{run.fit_loop.total_batch_idx + 1}.ckpt")


class Fit:
    """One fit, and what of it a resumed one must share.

    Args:
        folder: Gets a checkpoint at each batch, named by the batches so far.
        resume: A checkpoint.
        data: A train loader's kind.
        budget: Of the data module.
        val: A validation loader; True for a plain one.
        every: Batches between the optimizer steps of a module that makes them itself.
        callbacks: Beside AutoAssist's and the one that saves.
        saves_first: Whether the one that saves comes first.
        settings: Of the callback.
        options: Of the Trainer.
    """

    def __init__(
        self,
        folder: Path,
        resume: Path | None = None,
        *,
        data: str | DataLoader = "global",
        budget: float = 0.6,
        val: Any = True,
        every: int | None = None,
        callbacks: tuple[Any, ...] = (),
        saves_first: bool = False,
        settings: dict[str, Any] | None = None,
        workers: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        pl.seed_everything(1 if resume is None else 99, verbose=False)
        self.module = DrawingClassifier(every)
        train = loader(data, **(workers or {})) if isinstance(data, str) else data
        held_out = CountingDataset(30)
        if val is True:
            val = DataLoader(TensorDataset(held_out.features, held_out.labels), 10)
        self.data = AutoAssistDataModule(train, budget=budget, seed=11, val_dataloaders=val or None)
        self.callback = AutoAssistCallback(**(settings or {}))
        saving = SaveEvery(folder)
        ours = (saving, self.callback) if saves_first else (self.callback, saving)
        self.run = trainer(
            **{"max_epochs": EPOCHS, "callbacks": [*ours, *callbacks], "default_root_dir": folder, **options}
        )
        self.run.fit(self.module, datamodule=self.data, ckpt_path=resume)

    @property
    def result(self) -> dict[str, Any]:
        summary = self.callback.summary()
        counted = ("optimizer_steps", "instances_seen", "candidates_seen", "keep_rate", "saved_ratio")
        return {
            **self.module.state_dict(),
            "lr": torch.tensor(self.run.optimizers[0].param_groups[0]["lr"]),
            "batches": torch.tensor(self.run.fit_loop.total_batch_idx),
            **{name: torch.tensor(summary[name]) for name in counted},
        }


def assert_same(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(right[name], value, rtol=0, atol=0, equal_nan=True, msg=name)


def assert_resumes(tmp_path: Path, steps: tuple[int, ...], **options: Any) -> None:
    """A run that is resumed from any of some batches equals the uninterrupted one."""
    whole = Fit(tmp_path / "whole", **options)
    for step in steps:
        resumed = Fit(tmp_path / f"from {step}", tmp_path / "whole" / f"{step}.ckpt", **options)
        assert_same(whole.result, resumed.result)
