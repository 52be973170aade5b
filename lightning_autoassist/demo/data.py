"""The demo's images, as tensors, and where they come from.

Shapes: N instances, H and W height and width in pixels.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

# The command line reads the settings below for its help; numpy and torch are imported where data are read.
if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch.utils.data import TensorDataset

DEFAULT_DATA_DIR = Path("~/.cache/lightning-autoassist")
DEFAULT_OUT = Path("autoassist-demo")
DEBIAN_DIR = Path("/usr/share/datasets/fashion-mnist")
IDX_UNSIGNED_BYTE = 8
PIXEL_MAX = 255


class Split(NamedTuple):
    """Images, shape ``(N, 1, H, W)`` in [0, 1], and labels, shape ``(N,)``: to train on, and held out."""

    train: TensorDataset
    held_out: TensorDataset


def digits(data_dir: Path) -> Split:
    """scikit-learn's 1,797 digits of 8x8 pixels; a fifth is held out, the same one always.

    Args:
        data_dir: Not used, nothing is downloaded.
    """
    import torch
    from sklearn.datasets import load_digits
    from torch.utils.data import TensorDataset

    images, labels = load_digits(return_X_y=True)
    pixels = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    num_train = len(labels) * 4 // 5
    everything = TensorDataset(pixels[order], torch.tensor(labels)[order])
    return Split(TensorDataset(*everything[:num_train]), TensorDataset(*everything[num_train:]))


def fashion_mnist(data_dir: Path) -> Split:
    """Fashion-MNIST: 60,000 images of 28x28 pixels to train on, 10,000 held out.

    From the Debian package's folder, or from ``data_dir``, or downloaded into ``data_dir`` by torchvision.

    Args:
        data_dir: Where downloads are kept.

    Raises:
        FileNotFoundError: If it is in neither place and cannot be downloaded.
    """
    downloads = data_dir.expanduser() / "FashionMNIST" / "raw"
    for folder in (DEBIAN_DIR, downloads):
        if _has_fashion_mnist(folder):
            return _read_fashion_mnist(folder)
    _download_fashion_mnist(data_dir.expanduser())
    return _read_fashion_mnist(downloads)


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """Read a gzipped file of the idx format, of unsigned bytes.

    Two zero bytes, the type (8: unsigned byte), the number of dimensions, each dimension as four bytes, big end first;
    then the values in C order.

    Args:
        path: The ``.gz`` file.

    Returns:
        Its values, in the shape that the file names.

    Raises:
        OSError: If the file is no such file, or is cut short.
    """
    import numpy as np

    try:
        with gzip.open(path) as file:
            content = file.read()
    except EOFError as error:
        raise OSError(f"{path} is cut short; remove it and get it again") from error
    if len(content) < 4 or content[:3] != bytes([0, 0, IDX_UNSIGNED_BYTE]):
        raise OSError(f"{path} is not an idx file of unsigned bytes: it begins with {content[:4].hex(' ')}")
    header = 4 + 4 * content[3]
    shape = tuple(int(size) for size in np.frombuffer(content[4:header], ">u4"))
    if len(content) != header + math.prod(shape):
        raise OSError(f"{path} should hold {math.prod(shape)} values after its header, not {len(content) - header}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


@dataclass(frozen=True)
class DemoData:
    """A data set of the demo, and the settings that suit it.

    Args:
        load: Reads it; gets the folder for downloads.
        batch_size: B.
        num_epochs: Epochs of a run.
        learning_rate: Peak of the OneCycle schedule.
        stem_stride: Stride of the network's first convolution.
        num_threads: Of torch on the CPU; None: torch's own choice.
        caveat: What its figures do not show.
    """

    load: Callable[[Path], Split]
    batch_size: int
    num_epochs: int
    learning_rate: float
    stem_stride: int
    num_threads: int | None
    caveat: str


DEMO_DATA = {
    "digits": DemoData(
        load=digits,
        batch_size=32,
        num_epochs=12,
        learning_rate=0.05,
        stem_stride=1,
        # So little work that a second thread gains nothing, and waits many times longer once its core is taken.
        num_threads=1,
        caveat="Digits are tiny: they show the mechanism, and prove nothing about speed or accuracy.",
    ),
    "fashion-mnist": DemoData(
        load=fashion_mnist,
        batch_size=128,
        num_epochs=8,
        learning_rate=0.2,
        stem_stride=2,
        num_threads=None,
        caveat="One seed, one learning rate and a short schedule: an illustration, not a comparison.",
    ),
}


def _idx_files(folder: Path) -> list[Path]:
    parts = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return [folder / f"{part}-ubyte.gz" for part in parts]


def _has_fashion_mnist(folder: Path) -> bool:
    return all(path.is_file() for path in _idx_files(folder))


def _read_fashion_mnist(folder: Path) -> Split:
    train_images, train_labels, held_out_images, held_out_labels = map(read_idx, _idx_files(folder))
    return Split(_as_data_set(train_images, train_labels), _as_data_set(held_out_images, held_out_labels))


def _as_data_set(images: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8]) -> TensorDataset:
    import torch
    from torch.utils.data import TensorDataset

    return TensorDataset(torch.tensor(images)[:, None] / PIXEL_MAX, torch.tensor(labels).long())


def _download_fashion_mnist(data_dir: Path) -> None:
    try:
        from torchvision.datasets import FashionMNIST

        FashionMNIST(str(data_dir), download=True)
    # torchvision reports a failed download as a RuntimeError.
    except (ImportError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise FileNotFoundError(
            f"Fashion-MNIST is neither in {DEBIAN_DIR} (install the Debian package dataset-fashion-mnist) nor could "
            f"torchvision download it to {data_dir} (needs torchvision and internet access): {reason}"
        ) from error
