"""The demo's images, as tensors, and where they come from.

Shapes: N instances, H and W height and width in pixels.
"""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

# The command line reads the folders below for its help; numpy and torch are imported where data are read.
if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch.utils.data import TensorDataset

DEFAULT_DATA_DIR = Path("~/.cache/lightning-autoassist")
DEFAULT_OUT = Path("autoassist-demo")
DEBIAN_DIR = Path("/usr/share/datasets/fashion-mnist")
IDX_UNSIGNED_BYTE = 8
PIXEL_MAX = 255
NUM_DIGITS = 10
# Of each digit, of which there are 174 or more: to test on, and to choose learning rates on.
NUM_TEST_DIGITS, NUM_HELD_OUT_DIGITS = 40, 24
# Of the most frequent digit, and how many times as frequent it is as the rarest.
MOST_DIGITS, IMBALANCE = 112, 20


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


def long_tailed_digits(data_dir: Path, *, choosing: bool = False) -> Split:
    r"""377 of scikit-learn's digits, 112 zeros to 5 nines: digit k has :math:`112 \cdot 20^{-k/9}` images.

    The measured images are balanced, and the same always: 400 to test on, or 240 others to choose settings on. The
    tail is exponential, as the benchmarks' of Fashion-MNIST; an imbalance of 100 would leave one image of the rarest.

    Args:
        data_dir: Not used, nothing is downloaded.
        choosing: Whether learning rates and the like are being chosen: then the test images are left alone.
    """
    import numpy as np
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    by_digit = [rng.permutation(np.flatnonzero(labels == digit)) for digit in range(NUM_DIGITS)]
    parts = [np.split(rows, [NUM_TEST_DIGITS, NUM_TEST_DIGITS + NUM_HELD_OUT_DIGITS]) for rows in by_digit]
    train = [rest[: _num_of(digit)] for digit, (_, _, rest) in enumerate(parts)]
    measured = [held_out if choosing else test for test, held_out, _ in parts]
    return Split(_digit_rows(images, labels, train), _digit_rows(images, labels, measured))


def _num_of(digit: int) -> int:
    return int(MOST_DIGITS * IMBALANCE ** (-digit / (NUM_DIGITS - 1)) + 1e-9)


def _digit_rows(images: Any, labels: Any, rows: list[npt.NDArray[np.int64]]) -> TensorDataset:
    import numpy as np
    import torch
    from torch.utils.data import TensorDataset

    chosen = np.sort(np.concatenate(rows))
    pixels = torch.tensor(images[chosen], dtype=torch.float32).view(-1, 1, 8, 8) / 16
    return TensorDataset(pixels, torch.tensor(labels[chosen]))


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
