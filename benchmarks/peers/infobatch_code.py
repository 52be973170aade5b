"""InfoBatch's own code in a Lightning project, from a checkout of its repository; nothing of it is part of this one.

Source: Qin et al., InfoBatch, ICLR 2024, arXiv:2303.04947; https://github.com/NUS-HPC-AI-Lab/InfoBatch.

Its sampler resets itself each time that it is asked for an iterator. Today's torch asks anew for every batch, so that
an epoch of ``DataLoader(..., sampler=pruned.sampler)`` never ends, and pruning is soon over. What its authors meant is
had by one line: hand the loader the indices that ``reset`` chose, once an epoch.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytorch_lightning as pl
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _BaseDataLoaderIter

from benchmarks.images.data import ImageData
from benchmarks.peers.schedule import ProgressModule

REPOSITORY = "https://github.com/NUS-HPC-AI-Lab/InfoBatch"
FILE = Path("infobatch/infobatch.py")


@contextmanager
def infobatch_code(checkout: Path) -> Iterator[ModuleType]:
    """The authors' module. It replaces a method of torch's loaders while it is in use.

    Args:
        checkout: Folder of a clone.

    Raises:
        FileNotFoundError: If it is not there.
    """
    path = checkout.expanduser() / FILE
    if not path.exists():
        raise FileNotFoundError(
            f"InfoBatch's own code is not part of this project, and there is no {path}: run "
            f"`git clone {REPOSITORY}` and name the folder by --infobatch"
        )
    before = _BaseDataLoaderIter.__next__
    spec = importlib.util.spec_from_file_location("infobatch_of_its_authors", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        _BaseDataLoaderIter.__next__ = before  # type: ignore[method-assign]


class InfoBatchData(pl.LightningDataModule):
    """The images, pruned anew each epoch.

    Args:
        code: The authors' module.
        data: The images.
        num_epochs: Of the run.
    """

    def __init__(self, code: ModuleType, data: ImageData, num_epochs: int) -> None:
        super().__init__()
        self.data = data
        self.pruned: Dataset[Any] = code.InfoBatch(data.train, num_epochs)
        self.order = self.pruned.sampler  # type: ignore[attr-defined]

    def train_dataloader(self) -> DataLoader[Any]:
        self.order.reset()
        return DataLoader(self.pruned, self.data.batch_size, sampler=self.order.sample_indices)

    def val_dataloader(self) -> DataLoader[Any]:
        return self.data.val_dataloader()


class InfoBatchModule(ProgressModule):
    """The module, with the losses of the instances handed to the data set.

    Args:
        data: What is trained on.
        options: Of :class:`~benchmarks.peers.schedule.ProgressModule`.
    """

    def __init__(self, data: InfoBatchData, **options: Any) -> None:
        super().__init__(**options)
        self.pruned = data.pruned

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        losses = F.cross_entropy(self(images), labels, reduction="none")
        return self.pruned.update(losses)  # type: ignore[attr-defined, no-any-return]
