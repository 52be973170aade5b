"""A fit in two processes, of batches of different sizes: ``python -m tests.gauss_newton.two_processes FOLDER``."""

import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from lightning_autoassist import GaussNewtonCallback
from tests.gauss_newton.modules import Perceptron, parameters_of, rows
from tests.helpers.ordinary import trainer

# Of 23 instances the first process has 12 and the second 11: with a sum over instances nothing is counted twice.
N = 23


class Shares(torch.utils.data.Sampler):
    """Every second instance, without any that is there twice."""

    def __iter__(self):
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        return iter(range(rank, N, 2))

    def __len__(self):
        return len(list(iter(self)))


def main(folder):
    for loss in ("half_sum", "cross_entropy_sum"):
        module, callback = Perceptron(loss), GaussNewtonCallback(0.1)
        run = trainer(max_epochs=4, devices=2, strategy="ddp", callbacks=[callback], use_distributed_sampler=False)
        run.fit(module, DataLoader(rows(N), batch_size=12, sampler=Shares()))
        seen = {"parameters": parameters_of(module), "damping": callback.damping_in_force}
        torch.save(seen, folder / f"{loss}-{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
