"""Forest cover types: 581,012 instances of 54 features and 7 classes, read from a wheel that is not installed.

Source: Blackard & Dean, 1999; the file is the one that the wheel of scikit-multiflow holds.

Shapes: N instances, F features.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

WHEEL = "scikit-multiflow==0.4.1"
COVTYPE_IN_WHEEL = "skmultiflow/data/datasets/covtype.csv"


class CoverTypes(NamedTuple):
    """The data set.

    Attributes:
        features: Shape ``(N, F)``, float32, as they were measured.
        classes: Shape ``(N,)``, int64: 1 to 7.
    """

    features: npt.NDArray[np.float32]
    classes: npt.NDArray[np.int64]


def cover_types(data_dir: Path) -> CoverTypes:
    """The instances, in the order of the file; they are parsed once, and then read from ``covtype.npy``.

    Args:
        data_dir: Where the wheel is, or is downloaded to.

    Raises:
        FileNotFoundError: If it is not there and cannot be downloaded.
    """
    data_dir = data_dir.expanduser()
    parsed = data_dir / "covtype.npy"
    if parsed.exists():
        values = np.load(parsed)
    else:
        with zipfile.ZipFile(_wheel(data_dir)) as archive, archive.open(COVTYPE_IN_WHEEL) as file:
            values = np.loadtxt(file, np.float32, delimiter=",", skiprows=1)
        new = data_dir / f"covtype-{os.getpid()}.npy"  # several processes may begin together
        np.save(new, values)
        new.replace(parsed)
    return CoverTypes(values[:, :-1], values[:, -1].astype(np.int64))


def _wheel(data_dir: Path) -> Path:
    wheels = sorted(data_dir.glob("scikit_multiflow-0.4.1-*.whl"))
    if wheels:
        return wheels[-1]
    # Any platform's wheel holds the file; the last Python that there are wheels for is 3.7.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--python-version", "3.7", "--platform", "manylinux1_x86_64"]
    command += ["--dest", str(data_dir), WHEEL]
    data_dir.mkdir(parents=True, exist_ok=True)
    pip = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(data_dir.glob("scikit_multiflow-0.4.1-*.whl"))
    if pip.returncode or not wheels:
        reason = " ".join(pip.stderr.split()) or "pip gave no reason"
        by_hand = " ".join(["python", *command[1:]])
        raise FileNotFoundError(
            f"covtype is read from the wheel of {WHEEL}, which is not in {data_dir} and could not be downloaded: "
            f"{reason}. Where PyPI can be reached, run `{by_hand}` and copy the .whl file to {data_dir}, or name its "
            "folder by --data-dir"
        )
    return wheels[-1]
