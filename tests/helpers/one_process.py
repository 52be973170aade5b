"""Fits under a strategy for several processes, with one: ``python -m tests.helpers.one_process DEVICE STRATEGY``.

Fails where an unfiltered run is not plain Lightning's, bit for bit, or where a filtered run does not filter.
"""

from __future__ import annotations

import logging
import sys
import warnings

import torch

from lightning_autoassist import AutoAssistPolicy
from tests.helpers.device_runs import assert_equal_modules, fit


def main(device: str, strategy: str) -> None:
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    plain, *_ = fit(device, "clusters", strategy=strategy, max_epochs=2)
    unfiltered = {"policy": AutoAssistPolicy(gamma=1.0)}
    kept, *_ = fit(device, "clusters", filtering=unfiltered, budget=1.0, strategy=strategy, max_epochs=2)
    assert_equal_modules(kept, plain)
    _, callback, run = fit(device, "clusters", filtering={"policy": "proportional"}, strategy=strategy, max_epochs=5)
    rate = callback.summary()["keep_rate"]
    assert rate < 1, rate
    backend = torch.distributed.get_backend()
    print(f"{type(run.strategy).__name__} on {backend}: as plain Lightning; filtered, keep rate {rate:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
