"""Fits on two processes: what every one of them saw goes to a file of its own, for test_distributed.py.

Run as ``python -m tests.helpers.two_processes FOLDER CASE...``; Lightning starts the second process itself.
"""

import faulthandler
import inspect
import sys
import warnings
from datetime import timedelta
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger, WandbLogger
from pytorch_lightning.strategies import DDPStrategy
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, Sampler, WeightedRandomSampler

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule, LogisticAssistant, PrioritizedPolicy
from tests.helpers.ordinary import Classifier, CountingDataset, index_of
from tests.helpers.texts import BagOfWords, TextSet, collate

N, EPOCHS = 203, 5
TIME_LIMIT = 400  # seconds; a tenth of it is usual on two idle cores


class Recorder(pl.Callback):
    """Which instances a process was trained on, batch by batch; for plain loaders, too."""

    def __init__(self):
        self.batches = []
        self.num_validations = 0

    def on_validation_end(self, trainer, pl_module):
        self.num_validations += not trainer.sanity_checking

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        features = batch[0]
        # Texts tell no more than their index modulo 32.
        self.batches.append((index_of(features) if features.is_floating_point() else features[:, 0]).tolist())


class Backwards(Sampler):
    """No sampler of torch's."""

    def __len__(self):
        return N

    def __iter__(self):
        return iter(range(N - 1, -1, -1))


class Uneven(Backwards):
    """Another length in each process."""

    def __len__(self):
        return N - 100 * torch.distributed.get_rank() if torch.distributed.is_initialized() else N


class FailsInOne(LogisticAssistant):
    """Fails in the second process, in the middle of the run."""

    num_updates = 0

    def update(self, instances, scores):
        self.num_updates += 1
        if torch.distributed.get_rank() == 1 and self.num_updates > 20:
            raise ArithmeticError("no second opinion")
        return super().update(instances, scores)


class RandomStart(LogisticAssistant):
    """Begins elsewhere in each process."""

    def __init__(self):
        super().__init__()
        self.bias += torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


class Loaders(pl.LightningDataModule):
    def __init__(self, sampler=RandomSampler, num_workers=0):
        super().__init__()
        self.sampler = sampler
        self.num_workers = num_workers

    def train_dataloader(self):
        data = CountingDataset(N)
        return DataLoader(data, batch_size=10, sampler=self.sampler(data), num_workers=self.num_workers)

    def val_dataloader(self):
        return DataLoader(CountingDataset(N), batch_size=50)


class TextLoaders(Loaders):
    def train_dataloader(self):
        data = TextSet(N)
        return DataLoader(data, batch_size=10, sampler=self.sampler(data), collate_fn=collate)

    def val_dataloader(self):
        return DataLoader(TextSet(N), batch_size=50, collate_fn=collate)


def fit(
    folder,
    *,
    budget=0.6,
    plain=False,
    resume=None,
    strategy="ddp",
    shards=True,
    sampler=RandomSampler,
    workers=0,
    tokens=None,
    logs=False,
    **options,
):
    """One fit; returns what this process saw and has."""
    pl.seed_everything(7, verbose=False)
    reads_text = options.get("assistant") == "text"
    module, recorder, callback = BagOfWords() if reads_text else Classifier(), Recorder(), None
    callbacks = [recorder, pl.callbacks.ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)]
    data = TextLoaders(sampler) if reads_text else Loaders(sampler, workers)
    if isinstance(options.get("assistant"), type):
        options["assistant"] = options["assistant"]()
    if inspect.isfunction(options.get("policy")):
        options["policy"] = options["policy"]()
    if not plain:
        callback = AutoAssistCallback(**{"policy": "autoassist", "exchange_every": 4, **options})
        callbacks.append(callback)
        data = AutoAssistDataModule(data, budget=budget, **(tokens or {}))
    if strategy == "ddp":  # a process that never arrives is noticed at once
        strategy = DDPStrategy(timeout=timedelta(seconds=120))
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=strategy,
        max_epochs=EPOCHS,
        callbacks=callbacks,
        logger=loggers(folder) if logs else False,
        log_every_n_steps=5,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=shards,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, datamodule=data, ckpt_path=resume)
    seen = {
        "batches": recorder.batches,
        "module": module.state_dict(),
        "warnings": [str(one.message) for one in caught if "AutoAssist" in str(one.message)],
        "metrics": dict(trainer.callback_metrics),
        "num_validations": recorder.num_validations,
    }
    if callback is not None:
        seen["assistant"] = callback.assistant.state_dict()
        seen["policy"] = callback.policy.state_dict()
        seen["store"] = None if callback.instances is None else callback.instances.state_dict()
        seen["considered"] = getattr(data.candidate_stream, "num_considered", None)
        seen["is_filtering"] = callback._learner.is_filtering
        seen["summary"] = callback.summary()
        counts = callback._log.counts
        seen["counts"] = (
            None if counts is None else {name: getattr(counts, name) for name in ("kept", "dropped", "probs")}
        )
    return seen


def loggers(folder):
    import wandb  # not everywhere where these tests are collected

    quiet = wandb.Settings(silent=True, console="off")
    return [CSVLogger(folder, "csv", ""), WandbLogger(save_dir=folder, mode="offline", settings=quiet)]


def weighted(data):
    return WeightedRandomSampler([0.1 + (i % 3) for i in range(N)], 150)


TOKENS = {"max_tokens": 100, "lengths": [1 + i % 17 for i in range(N)]}

CASES = {
    "filtered": {},
    "workers": {"workers": 2},
    "proportional": {"policy": "proportional"},
    "prioritized": {"policy": lambda: PrioritizedPolicy(0.15)},
    "layers": {"policy": "proportional", "score": "layer_gradient_norm"},
    "file": {"feature_memory": 0},
    "logged": {"policy": "proportional", "logs": True},
    "backwards": {"sampler": lambda data: Backwards()},
    "weighted": {"sampler": weighted},
    "distributed": {"sampler": DistributedSampler},
    "unsharded": {"shards": False},
    "uneven": {"sampler": lambda data: Uneven(), "shards": False},
    "tokens": {"policy": "proportional", "tokens": TOKENS},
    "tokens async": {"policy": "proportional", "tokens": TOKENS, "update": "async"},
    "async": {"update": "async", "lag": 2, "workers": 1},
    "failing": {"assistant": FailsInOne},
    "failing async": {"assistant": FailsInOne, "update": "async"},
    "random start": {"assistant": RandomStart},
    "text": {"assistant": "text"},
    "text async": {"assistant": "text", "update": "async", "lag": 2},
    "plain": {"plain": True},
    "unfiltered": {"policy": "uniform", "budget": 1.0},
}


def main(folder, names):
    for name in names:
        name, _, step = name.partition("@")
        own = folder / (f"{name}@{step}" if step else name)
        resume = folder / name / f"step={step}.ckpt" if step else None
        try:
            seen = fit(own, resume=resume, **CASES[name])
        except pl.utilities.exceptions.MisconfigurationException as error:
            seen = {"error": str(error)}
        if "wandb" in sys.modules:
            sys.modules["wandb"].finish()
        torch.save(seen, folder / f"{own.name}-{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(TIME_LIMIT, exit=True)  # two processes that wait for each other say where
    main(Path(sys.argv[1]), sys.argv[2:])
