"""Fits with layers in parallel: what every process has at the end goes to a file of its own.

Run as ``python -m tests.helpers.layer_processes FOLDER NUM_PROCESSES CASE...``; Lightning starts the other processes.
``dropout@4.6`` goes on from the checkpoint that four processes saved after six steps.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch

from lightning_autoassist import LayerParallelStrategy, LocalLearningCallback
from tests.helpers.local_learning import BLOCKS, Blocks, fit, made

EPOCHS = 2


class Killed(pl.Callback):
    """Ends a process in the middle of the run, without a word."""

    def __init__(self, rank):
        self.rank = rank

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        (Path(sys.argv[1]) / f"process {trainer.global_rank}").write_text(str(os.getpid()))
        if trainer.global_step == 4 and trainer.global_rank == self.rank:
            (Path(sys.argv[1]) / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)


class StopsAlone(pl.Callback):
    """One process wants to stop."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 3 and trainer.global_rank == 0:
            trainer.should_stop = True


class OtherBatches(pl.Callback):
    """One process changes its batches."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 4 and trainer.global_rank == 0:
            batch[1].add_(1).remainder_(4)


class Bypassed(Blocks):
    """Something that needs no gradient passes a cut."""

    def forward(self, pictures):
        first = self.block1(pictures)
        third = self.block3(self.block2(first))
        return self.classifier(third.mean((2, 3)) + first.detach().mean())


CASES = {
    "sgd": {},
    "adamw": {"module": {"optimizer": "adamw"}, "stop": True},
    "dropout": {"module": {"dropout": 0.2}, "save": True, "shuffle": False},
    "accumulated": {"accumulate_grad_batches": 2},
    "bf16": {"precision": "bf16-mixed"},
    "fine_tune": {"callback": {"fine_tune": 0.5}, "module": {"optimizer": "adamw"}},
    "monitored": {"monitor": "train_loss"},
    "stops alone": {"extra": [StopsAlone]},
    "ddp": {"strategy": "ddp_find_unused_parameters_true"},
    "clipped": {"gradient_clip_val": 0.1},
    "bypassed": {"kind": Bypassed},
    "other batches": {"extra": [OtherBatches]},
    "killed": {"extra": [lambda: Killed(1)]},
    "first killed": {"extra": [lambda: Killed(0)]},
}


def run(folder: Path, name: str, num_processes: int, resume: Path | None = None) -> dict:
    """One fit; returns what this process has."""
    options = dict(CASES[name])
    callback = LocalLearningCallback(**{"blocks": BLOCKS, "heads": "linear", **options.pop("callback", {})})
    module = made(**options.pop("module", {})) if "kind" not in options else options.pop("kind")()
    callbacks = [each() for each in options.pop("extra", [])]
    if options.pop("save", False):
        saved = folder / f"saved by {num_processes}"
        callbacks.append(pl.callbacks.ModelCheckpoint(saved, "{step}", every_n_train_steps=3, save_top_k=-1))
        options["enable_checkpointing"] = True
    if options.pop("stop", False):
        callbacks.append(pl.callbacks.EarlyStopping("val_loss", patience=10))
    if "monitor" in options:
        callbacks.append(pl.callbacks.EarlyStopping(options.pop("monitor"), patience=10, check_on_train_epoch_end=True))
    if num_processes > 1:
        options = {"devices": num_processes, "strategy": LayerParallelStrategy(timeout=200), **options}
        if name == "sgd":
            options["strategy"] = "layer_parallel"
    pl.seed_everything(11, verbose=False)
    trainer = fit(module, callback, *callbacks, resume=resume, epochs=EPOCHS, **options)
    return {
        "module": module.state_dict(),
        "optimizer": trainer.optimizers[0].state_dict(),
        "heads": callback.state_dict()["heads"],
        "metrics": dict(trainer.callback_metrics),
        "losses": module.losses,
        "steps": trainer.global_step,
        "keys": sorted(callback.saved_bytes),
        "rank": trainer.global_rank,
    }


def main(folder: Path, num_processes: int, names: list[str]) -> None:
    for name in names:
        name, _, origin = name.partition("@")
        saved, _, step = origin.partition(".")
        resume = folder / f"saved by {saved}" / f"step={step}.ckpt" if step else None
        # Each fit starts processes of its own, which run this file with the same words.
        try:
            seen = run(folder, name, num_processes, resume)
        except (ValueError, RuntimeError) as error:
            traceback.print_exc()
            seen = {"error": str(error)}
        rank = int(os.environ.get("LOCAL_RANK", 0))
        torch.save(seen, folder / f"{name}@{origin}-{num_processes}-{rank}.pt")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
