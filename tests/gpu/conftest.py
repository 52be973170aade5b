"""The core promises on every device: the CPU always, CUDA where torch sees a device.

``pytest -m gpu`` runs these tests alone; ``python -m benchmarks.gpu`` does so on a machine with a GPU.
"""

from __future__ import annotations

import pytest
import torch

CUDA = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here")
)


@pytest.fixture(params=["cpu", CUDA])
def device(request, monkeypatch):
    """A type of device, on which equal runs give equal bits."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    # Read when cuBLAS is first used.
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return request.param
