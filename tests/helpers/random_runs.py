"""Runs of random configurations: interrupted and resumed anywhere, they equal the run that nobody interrupted.

    python -m tests.helpers.random_runs --count 200 --first 1000    # prints what fails, and the configuration of it

Each configuration is drawn from its number alone. A run is made in a forked process, which may be killed.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    WeightedRandomSampler,
)

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule
from tests.end_to_end.test_streaming_runs import StatefulLoader
from tests.helpers.ordinary import INDEX_SCALE, trainer

NUM_CLASSES = 3
MAX_SECONDS = 120
PRECISIONS = ("32-true", "32-true", "bf16-mixed", "64-true", "bf16-true")
# What the two ways of scoring remember of an instance is compared within the precision of the logits.
TOLERANCES = {"32-true": 1e-4, "64-true": 1e-4, "bf16-mixed": 0.05, "bf16-true": 0.05}


@dataclass(frozen=True)
class Configuration:
    """One random configuration; its fields are what the command line prints of it."""

    number: int
    data: str
    num_instances: int
    batch_size: int
    drop_last: bool
    order: str
    num_workers: int
    persistent_workers: bool
    budget: float
    policy: str
    assistant: str
    score: str
    reweighting: str
    unfiltered_tail: float | None
    update: str
    lag: int
    feature_memory: int
    precision: str
    accumulate: int
    max_epochs: int
    validation: dict[str, Any]
    interruptions: tuple[tuple[str, float], ...]
    resume_from: str


def configuration(number: int) -> Configuration:
    """The configuration that ``number`` names."""
    draw = random.Random(number)
    data = draw.choices(("index", "tokens", "stream"), (6, 1, 1))[0]
    policies = (
        "proportional",
        "proportional",
        "autoassist",
        "infobatch",
        "selective_backprop",
        "class_quota",
        "uniform",
    )
    policy = draw.choice((*policies, "random"))
    assistants = (
        ("auto", "auto", "logistic", "mlp")
        if data == "stream"
        else ("auto", "auto", "memory", "logistic", "hybrid", "mlp")
    )
    num_workers = draw.choice((0, 0, 0, 2))
    kinds = ("SIGKILL", "SIGTERM", "exception")
    interruptions = sorted((draw.random(), draw.choice(kinds)) for _ in range(draw.choice((1, 1, 2))))
    return Configuration(
        number=number,
        data=data,
        num_instances=draw.randint(40, 160),
        batch_size=draw.randint(2, 12),
        drop_last=draw.random() < 0.3,
        order=draw.choice(("shuffle", "shuffle", "generator", "replacement", "weighted", "sequential", "subset")),
        num_workers=num_workers,
        persistent_workers=num_workers > 0 and draw.random() < 0.5,
        budget=draw.choice((0.3, 0.5, 0.6, 0.75, 1.0)),
        policy=policy,
        assistant=draw.choice(assistants),
        score=draw.choice(("auto", "loss", "gradient_norm")),
        reweighting=draw.choice(("auto", "none", "inverse_probability", "normalized")),
        unfiltered_tail=draw.choice((None, 0.0, 0.25)),
        update=draw.choice(("sync", "sync", "async")),
        lag=draw.choice((0, 0, 1, 4)),
        feature_memory=draw.choice((2**28, 2**28, 0)),
        precision=draw.choice(PRECISIONS),
        accumulate=draw.choice((1, 1, 1, 2, 3)),
        max_epochs=draw.randint(3, 5),
        validation=draw.choice(
            (
                {"limit_val_batches": 0},
                {},
                {"val_check_interval": 0.5},
                {"check_val_every_n_epoch": 2},
                {"check_val_every_n_epoch": None, "val_check_interval": 7},
            )
        ),
        interruptions=tuple((kind, share) for share, kind in interruptions),
        resume_from=draw.choice(("last", "any")),
    )


# ---- data and module: every instance carries its index in its first feature


class Instances(Dataset):
    """Vectors, or texts of different lengths, with the index in front."""

    def __init__(self, num_instances: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.arange(num_instances) % NUM_CLASSES
        self.features = torch.randn(num_instances, 6, generator=generator) + self.labels[:, None]
        self.features[:, 0] = torch.arange(num_instances) / INDEX_SCALE
        self.lengths = torch.randint(2, 9, (num_instances,), generator=generator).tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"features": self.features[index], "label": self.labels[index], "index": torch.tensor(index)}


class Stream(IterableDataset):
    """The same instances, one after the other."""

    def __init__(self, data: Instances) -> None:
        self.data = data

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return (self.data[index] for index in range(len(self.data)))


class Module(pl.LightningModule):
    """Dropout draws from the global generator; losses and norms are remembered by the index that the data carry."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, NUM_CLASSES))
        self.batches: list[list[int]] = []
        self.last: dict[str, dict[int, float]] = {"loss": {}, "gradient_norm": {}}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        logits = self.net(batch["features"])
        self._remember(logits.detach().float(), batch)
        return F.cross_entropy(logits, batch["label"])

    def _remember(self, logits: Tensor, batch: Any) -> None:
        indices = batch["index"].tolist()
        self.batches.append(indices)
        losses = F.cross_entropy(logits, batch["label"], reduction="none")
        norms = (logits.softmax(1) - F.one_hot(batch["label"], NUM_CLASSES)).norm(dim=1)
        self.last["loss"].update(zip(indices, losses.tolist(), strict=True))
        self.last["gradient_norm"].update(zip(indices, norms.tolist(), strict=True))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self.net(batch["features"]), batch["label"]) + 0 * torch.rand(()).item())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def loader_of(config: Configuration) -> DataLoader:
    data: Any = Instances(config.num_instances)
    options: dict[str, Any] = {
        "batch_size": config.batch_size,
        "drop_last": config.drop_last,
        "num_workers": config.num_workers,
        "persistent_workers": config.persistent_workers,
    }
    if config.data == "stream":
        return StatefulLoader(Stream(data), batch_size=config.batch_size, drop_last=config.drop_last)
    if config.order == "subset":
        data, options["shuffle"] = Subset(data, range(0, config.num_instances, 2)), True
    elif config.order == "replacement":
        options["sampler"] = RandomSampler(data, replacement=True)
    elif config.order == "weighted":
        options["sampler"] = WeightedRandomSampler(torch.rand(len(data)) + 0.1, len(data))
    elif config.order == "sequential":
        options["sampler"] = SequentialSampler(data)
    else:
        options["shuffle"] = True
    if config.order == "generator":
        options["generator"] = torch.Generator().manual_seed(5)
    return DataLoader(data, **options)


def data_module_of(config: Configuration) -> AutoAssistDataModule:
    options: dict[str, Any] = {"budget": config.budget, "seed": 11}
    if config.data == "tokens":
        options |= {"max_tokens": 9 * config.batch_size, "lengths": lengths_of(config)}
    if config.data == "stream":
        options["steps_per_epoch"] = max(2, int(config.budget * config.num_instances / config.batch_size))
    held_out = DataLoader(Instances(20), batch_size=10)
    return AutoAssistDataModule(loader_of(config), val_dataloaders=held_out, **options)


def lengths_of(config: Configuration) -> list[int]:
    lengths = Instances(config.num_instances).lengths
    return lengths[::2] if config.order == "subset" else lengths


# ---- one run


class Interrupt(pl.Callback):
    """Ends the run after an optimizer step, in one of three ways."""

    def __init__(self, kind: str, step: int) -> None:
        self.kind, self.step = kind, step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step < self.step:
            return
        if self.kind == "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == "SIGTERM":
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            raise KeyError("the user's own")


def fit(
    config: Configuration, folder: Path, ckpt: str | None, interrupt: Interrupt | None, plain: bool = False
) -> None:
    """Train, and leave what has to be compared in ``folder``."""
    pl.seed_everything(config.number, verbose=False)
    saver = ModelCheckpoint(
        folder, filename="{step}", auto_insert_metric_name=False, every_n_train_steps=1, save_top_k=-1, save_last=True
    )
    callback = AutoAssistCallback(
        config.policy,
        config.assistant,
        score=config.score,
        reweighting=config.reweighting,
        unfiltered_tail=config.unfiltered_tail,
        update=config.update,
        lag=config.lag,
        feature_memory=config.feature_memory,
    )
    callbacks = [saver] if plain else [callback, saver]
    run = trainer(
        callbacks=[*callbacks, *([interrupt] if interrupt else [])],
        max_epochs=config.max_epochs,
        precision=config.precision,
        accumulate_grad_batches=config.accumulate,
        enable_checkpointing=True,
        default_root_dir=folder,
        **config.validation,
    )
    # Made in its precision: Lightning reads a checkpoint before it converts the module, and would round what it reads.
    with run.init_module():
        module = Module()
    if plain:
        run.fit(module, loader_of(config), data_module_of(config).val_dataloader(), ckpt_path=ckpt)
        remembered = None
    else:
        run.fit(module, datamodule=data_module_of(config), ckpt_path=ckpt)
        remembered = _remembered(callback, module, 2 if config.order == "subset" and config.data != "stream" else 1)
    outcome = {
        "steps": run.global_step,
        "epoch_batches": run.num_training_batches,
        "parameters": [parameter.detach().clone() for parameter in module.parameters()],
        "batches": module.batches,
        "remembered": remembered,
        "is_filtering": None if plain else callback._learner.is_filtering,
        "score": callback.score,
    }
    torch.save(outcome, folder / "outcome.pt")


def _remembered(callback: AutoAssistCallback, module: Module, step: int) -> list[tuple[int, float, float]]:
    """Index, remembered score, and the score that the step had for it, of the instances that were learnt from.

    Args:
        callback: Remembers.
        module: Was trained.
        step: Between the indices that neighbours in the data set carry.
    """
    store = callback.instances
    if store is None:
        return []
    late = {
        index // step
        for index in itertools.chain.from_iterable(module.batches[len(module.batches) - (callback.lag or 0) :])
    }
    seen = [index for index in store.seen.nonzero().flatten().tolist() if index not in late]
    own = {index * step: index for index in seen}
    expected = module.last[callback.score]
    return [(index, float(store.scores[row]), expected[index]) for index, row in own.items() if index in expected]


def in_process(config: Configuration, folder: Path, ckpt: str | None = None, **options: Any) -> dict[str, Any] | None:
    """The outcome of a run in a process of its own; None where it was interrupted.

    Raises:
        RuntimeError: If the run failed by itself.
    """
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_quiet_fit, args=(config, folder, ckpt), kwargs=options)
    process.start()
    process.join(MAX_SECONDS)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise RuntimeError(f"the run did not end within {MAX_SECONDS} seconds")
    if (folder / "outcome.pt").exists():
        return torch.load(folder / "outcome.pt", weights_only=True)
    if options.get("interrupt") is None:
        last_words = (folder / "log.txt").read_text().strip().splitlines()[-1:]
        raise RuntimeError(f"the run ended with exit code {process.exitcode}: {''.join(last_words)}")
    return None


def _quiet_fit(config: Configuration, folder: Path, ckpt: str | None, **options: Any) -> None:
    with (folder / "log.txt").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        fit(config, folder, ckpt, **options)


# ---- what has to hold


def problems(config: Configuration) -> list[str]:
    """What does not hold for a configuration; an empty list where all does."""
    with tempfile.TemporaryDirectory() as root:
        whole = in_process(config, Path(root) / "whole", interrupt=None)
        assert whole is not None
        found = [*_counts(config, whole), *_pairs(config, whole)]
        if config.policy == "uniform" and config.budget == 1 and config.data == "index":
            plain = in_process(config, Path(root) / "plain", interrupt=None, plain=True)
            assert plain is not None
            found += [] if _same(plain, whole) else ["it differs from plain Lightning"]
        return [*found, *_resumed(config, Path(root), whole)]


def _counts(config: Configuration, whole: dict[str, Any]) -> Iterator[str]:
    num_batches = config.max_epochs * whole["epoch_batches"]
    if len(whole["batches"]) != num_batches:
        yield f"there were {len(whole['batches'])} batches instead of {num_batches}"
    if whole["steps"] != config.max_epochs * -(-whole["epoch_batches"] // config.accumulate):
        yield f"there were {whole['steps']} optimizer steps"
    if config.data == "tokens" or (config.policy == "uniform" and config.budget == 1):
        return
    if any(len(batch) != config.batch_size for batch in whole["batches"]):
        yield "a batch is not full"


def _pairs(config: Configuration, whole: dict[str, Any]) -> Iterator[str]:
    tolerance = TOLERANCES[config.precision]
    wrong = [entry for entry in whole["remembered"] if not np.isclose(*entry[1:], rtol=tolerance, atol=tolerance)]
    if wrong:
        yield f"{len(wrong)} of {len(whole['remembered'])} remembered scores are of other instances: {wrong[:3]}"
    if whole["is_filtering"] is False and config.policy not in {"uniform", "random"}:
        yield "filtering has stopped"


def _resumed(config: Configuration, root: Path, whole: dict[str, Any]) -> Iterator[str]:
    ckpt, done = None, 0
    for number, (kind, share) in enumerate(config.interruptions):
        step = done + 1 + int(share * (whole["steps"] - done - 1))
        folder = root / f"part{number}"
        if in_process(config, folder, ckpt, interrupt=Interrupt(kind, step)) is not None:
            yield f"the run was not interrupted by {kind} at step {step}"
            return
        left = _left_by(folder, config)
        if left is None:
            continue  # interrupted before its first checkpoint
        ckpt, done = str(left), _num_steps(left)
        if not _same_weights(left, root / "whole" / f"{done}.ckpt"):
            yield f"until step {done} the run differs from another one with the same seed"
    resumed = in_process(config, root / "resumed", ckpt, interrupt=None)
    assert resumed is not None
    if resumed["steps"] != whole["steps"]:
        yield f"resumed after step {done} it makes {resumed['steps']} steps instead of {whole['steps']}"
    elif not _same(resumed, whole):
        yield f"resumed after step {done} it differs from the uninterrupted run"


def _left_by(folder: Path, config: Configuration) -> Path | None:
    """The checkpoint to go on from; None where the run left none."""
    if config.resume_from == "last":
        last = folder / "last.ckpt"
        return last if last.exists() else None
    steps = sorted((path for path in folder.glob("*.ckpt") if path.stem != "last"), key=lambda path: int(path.stem))
    return random.Random(config.number).choice(steps) if steps else None


def _num_steps(checkpoint: Path) -> int:
    return int(torch.load(checkpoint, weights_only=True)["global_step"])


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(map(torch.equal, one["parameters"], other["parameters"]))


def _same_weights(one: Path, other: Path) -> bool:
    first, second = (torch.load(path, weights_only=True)["state_dict"] for path in (one, other))
    return all(torch.equal(first[name], second[name]) for name in first)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--first", type=int, default=0)
    arguments = parser.parse_args()
    num_failed = 0
    for number in range(arguments.first, arguments.first + arguments.count):
        config = configuration(number)
        try:
            found = problems(config)
        except Exception as error:
            found = [f"{type(error).__name__}: {error}"]
        num_failed += bool(found)
        print(f"{number}: {'ok' if not found else '; '.join(found)}", flush=True)
        if found:
            print(f"    {asdict(config)}", flush=True)
    print(f"{num_failed} of {arguments.count} configurations failed")
    return int(num_failed > 0)


if __name__ == "__main__":
    sys.exit(main())
