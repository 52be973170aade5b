"""Fits with K-FAC on 1, 2 and 4 processes; what each of them has goes to a file, for test_distributed.py.

Run as ``python -m tests.kfac.processes FOLDER``: one process imports everything, and forks for each case.
"""

import faulthandler
import sys
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_autoassist import KFACCallback
from tests.helpers.ordinary import trainer
from tests.kfac.modules import CLASSES, Net, images, mlp, vector

TIME_LIMIT = 240
BATCH, STEPS = 16, 12
OFTEN = {"factor_update_steps": 2, "inv_update_steps": 5}


def equal_widths():
    """Eight layers of equal widths."""
    layers = [layer for _ in range(8) for layer in (nn.Linear(16, 16), nn.Tanh())]
    return nn.Sequential(*layers[:-1])


def own_data(net):
    if net is mlp:
        values, target = images(64).tensors
    else:
        values = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
        target = torch.arange(64) % CLASSES
    return TensorDataset(values.double(), target)


class ShardedNet(Net):
    """Its processes' batches are together those of one process, in the same order."""

    def train_dataloader(self):
        data, world = own_data(self.make), self.trainer.world_size
        sampler = DistributedSampler(data, world, self.global_rank, shuffle=False)
        return DataLoader(data, batch_size=BATCH // world, sampler=sampler)


class Report(pl.Callback):
    """Writes what a process has at the end."""

    def __init__(self, callback, path):
        self.callback = callback
        self.path = path

    def on_train_end(self, trainer, pl_module):
        [part] = self.callback.preconditioners
        clocks = part.factor_clock, part.inverse_clock
        seen = {
            "parameters": vector(pl_module),
            "held": part.bytes_of_inverses,
            "sent": part.communicator.sent,
            "factors": [factor.value() for factor in part._factors()],
            "last_updates": [clock.last for clock in clocks],
        }
        torch.save(seen, f"{self.path}-{trainer.global_rank}.pt")


# Net, processes, options of the callback.
CASES = {
    "comm_opt 1": (mlp, 1, {}),
    "comm_opt 2": (mlp, 2, {"grad_worker_fraction": "comm_opt"}),
    "mem_opt 2": (mlp, 2, {"grad_worker_fraction": "mem_opt"}),
    "comm_opt 4": (mlp, 4, {"grad_worker_fraction": "comm_opt"}),
    "hybrid_opt 4": (mlp, 4, {"grad_worker_fraction": "hybrid_opt"}),
    "mem_opt 4": (mlp, 4, {"grad_worker_fraction": "mem_opt"}),
    "variants 1": (mlp, 1, {"compute_method": "inverse", "step": "kl_clip"}),
    "variants 4": (
        mlp,
        4,
        {
            "compute_method": "inverse",
            "step": "kl_clip",
            "grad_worker_fraction": 0.5,
            "colocate_factors": False,
            "assignment_strategy": "memory",
            "symmetry_aware": False,
            "bucket_cap_mb": 0.01,
        },
    ),
    "equal comm_opt 4": (equal_widths, 4, {"grad_worker_fraction": "comm_opt"}),
    "equal mem_opt 4": (equal_widths, 4, {"grad_worker_fraction": "mem_opt"}),
}
# Resumed from which case's checkpoint, after how many steps.
RESUMED = {"resumed 4 to 1": ("mem_opt 4", 1), "resumed 2 to 4": ("mem_opt 2", 4)}
RESUMED_AT = 8


def ddp(*, has_views):
    """Processes that are forked; gradients are views of DDP's buckets, or tensors of their own."""
    return DDPStrategy(start_method="fork", gradient_as_bucket_view=has_views)


def run(folder, name, net, world, options, resume=None):
    pl.seed_everything(1, verbose=False)
    module, callback = ShardedNet(net).double(), KFACCallback(**OFTEN, **options)
    saving = pl.callbacks.ModelCheckpoint(folder / name, "{step}", every_n_train_steps=4, save_top_k=-1)
    strategy = {} if world == 1 else {"strategy": ddp(has_views="mem_opt" in name), "devices": world}
    callbacks = [callback, Report(callback, folder / name), saving]
    options = {"max_epochs": 3, "enable_checkpointing": True, "use_distributed_sampler": False, **strategy}
    trainer(callbacks=callbacks, **options).fit(module, ckpt_path=resume)


def main(folder):
    for name, (net, world, options) in CASES.items():
        run(folder, name, net, world, options)
    for name, (origin, world) in RESUMED.items():
        options = {"grad_worker_fraction": "hybrid_opt"}
        run(folder, name, mlp, world, options, folder / origin / f"step={RESUMED_AT}.ckpt")
    try:
        run(folder, "bad", mlp, 2, {"grad_worker_fraction": 0.3})
    except Exception as error:
        (folder / "bad.txt").write_text(str(error))


if __name__ == "__main__":
    faulthandler.dump_traceback_later(TIME_LIMIT, exit=True)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
