"""What is tried of other people's packages: a case each, registered by name without importing its package."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

NUM_INSTANCES, BATCH_SIZE = 40, 8
FEW = 16  # instances, where the network is a large one
# Where the cases of each package are; the distributions' names are the packages' own.
CASE_FILES = {
    "lightly": "of_lightly",
    "monai": "of_monai",
    "pytorch-forecasting": "of_pytorch_forecasting",
    "pytorch-metric-learning": "of_pytorch_metric_learning",
    "segmentation-models-pytorch": "of_segmentation_models_pytorch",
    "timm": "of_timm",
    "torch-geometric": "of_torch_geometric",
    "torchgeo": "of_torchgeo",
    "torchmetrics": "of_torchmetrics",
    "torchvision": "of_torchvision",
    "transformers": "of_transformers",
}


class Setup(NamedTuple):
    """How to train one module or loss.

    Attributes:
        make_module: The LightningModule, of either flavour; called under a seed.
        make_loader: Gets a batch size and whether to shuffle, returns the train loader, or a data module.
        by_hand: Gets the module, which it leaves as it is, and a batch before its step; returns the losses of its
            instances, shape ``(B,)``: where they depend on the other instances of the batch, or on earlier ones, so
            that one alone tells nothing. None: each instance is computed alone.
        eval_mode: Whether the module can compute its losses in ``eval()``; else only its dropout and BatchNorm do.
        validates: Whether the module's schedule needs a validation loop.
        num_instances: N of the loader's data set.
    """

    make_module: Callable[[], Any]
    make_loader: Callable[[int, bool], Any]
    by_hand: Callable[[Any, Any], Tensor] | None = None
    eval_mode: bool = True
    validates: bool = False
    num_instances: int = NUM_INSTANCES


class Case(NamedTuple):
    """One module or loss.

    Attributes:
        package: The distribution that has it.
        name: Its class or function there.
        kind: ``"module"`` or ``"loss"``.
        build: Imports the package and returns the setup.
    """

    package: str
    name: str
    kind: str
    build: Callable[[], Setup]

    @property
    def key(self) -> tuple[str, str]:
        """What rows know it by."""
        return self.package, self.name


_CASES: dict[tuple[str, str], Case] = {}


def case(package: str, name: str, kind: str) -> Callable[[Callable[[], Setup]], Callable[[], Setup]]:
    """Register what the decorated function builds.

    Args:
        package: See :class:`Case`.
        name: See :class:`Case`.
        kind: See :class:`Case`.

    Raises:
        ValueError: If the name is taken.
    """
    if (package, name) in _CASES:
        raise ValueError(f"{package} has two cases named {name}")

    def register(build: Callable[[], Setup]) -> Callable[[], Setup]:
        _CASES[package, name] = Case(package, name, kind, build)
        return build

    return register


def cases(package: str, names: Iterable[str], kind: str) -> Callable[[Callable[[str], Setup]], Callable[[str], Setup]]:
    """Register one case a name, each built by the decorated function from its name."""

    def register(build: Callable[[str], Setup]) -> Callable[[str], Setup]:
        for name in names:
            case(package, name, kind)(functools.partial(build, name))
        return build

    return register


def all_cases() -> dict[tuple[str, str], Case]:
    """Every case by package and name; needs none of the packages."""
    for module in CASE_FILES.values():
        importlib.import_module(f"benchmarks.outside.{module}")
    return dict(_CASES)


# ---- data


class Columns(Dataset):
    """Instances from columns: a tuple of each row, or a dict where the columns have names."""

    def __init__(self, columns: tuple[Tensor, ...] | dict[str, Tensor]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        columns = self.columns.values() if isinstance(self.columns, dict) else self.columns
        return len(next(iter(columns)))

    def __getitem__(self, index: int) -> Any:
        if isinstance(self.columns, dict):
            return {name: column[index] for name, column in self.columns.items()}
        return tuple(column[index] for column in self.columns)


def loaders(columns: tuple[Tensor, ...] | dict[str, Tensor] | Dataset, **options: Any) -> Callable[[int, bool], Any]:
    """``make_loader`` of a :class:`Setup`, by torch's own DataLoader with further ``options``."""
    dataset = columns if isinstance(columns, Dataset) else Columns(columns)

    def make_loader(batch_size: int, shuffle: bool) -> DataLoader:
        return DataLoader(dataset, batch_size=batch_size, shuffle=shuffle, **options)

    return make_loader


def generator() -> torch.Generator:
    """Draws the data of a case."""
    return torch.Generator().manual_seed(7)


def normal(*shape: int, num: int = NUM_INSTANCES) -> Tensor:
    """Standard normal numbers, shape ``(N, *shape)``; equal shapes give equal numbers."""
    return torch.randn(num, *shape, generator=generator())


def integers(high: int, *shape: int, num: int = NUM_INSTANCES) -> Tensor:
    """Integers below ``high``, shape ``(N, *shape)``."""
    return torch.randint(high, (num, *shape), generator=generator())
