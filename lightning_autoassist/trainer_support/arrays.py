"""Types of arrays, and the way of small ones to a device."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

IndexArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device; the CPU does not wait for what a CUDA device was given to do before.

    CUDA takes what it copies from pageable memory before the call returns, so that the source may change afterwards.

    Args:
        tensor: Of any shape, on the CPU or on ``device`` already.
        device: Where to.
    """
    return tensor.to(device, non_blocking=device.type == "cuda")
