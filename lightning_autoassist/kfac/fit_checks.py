"""What K-FAC refuses, or warns of, when a fit starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_fabric.utilities.exceptions import MisconfigurationException
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import distributed

from lightning_autoassist.trainer_support.class_names import class_names
from lightning_autoassist.trainer_support.internals import steps_with_scaled_gradients
from lightning_autoassist.trainer_support.variants import Trainer

# Strategies whose processes hold parts of parameters or of gradients, and what they are called.
_SHARDED = {
    "FSDPStrategy": "FSDP",
    "DeepSpeedStrategy": "DeepSpeed",
    "ModelParallelStrategy": "tensor parallelism",
    "XLAFSDPStrategy": "FSDP",
}


def check_strategy(trainer: Trainer) -> None:
    """Refuse strategies under which a process does not have a layer's whole gradient.

    Raises:
        MisconfigurationException: With the reason.
    """
    names = class_names(trainer.strategy)
    for name, title in _SHARDED.items():
        if name in names:
            raise MisconfigurationException(
                f"KFACCallback does not work with {title} (strategy {type(trainer.strategy).__name__}): each process "
                "holds a part of each gradient, and K-FAC needs a layer's whole one. Use strategy='ddp', or one device."
            )
    if trainer.world_size > 1 and not (distributed.is_available() and distributed.is_initialized()):
        raise MisconfigurationException(
            f"KFACCallback needs torch.distributed in {trainer.world_size} processes, and the strategy "
            f"{type(trainer.strategy).__name__} does not set it up. Use strategy='ddp'."
        )


def check_optimizers(trainer: Trainer, optimizers: Sequence[Any]) -> None:
    """Refuse optimizers that get scaled gradients or compare them, and warn of those that normalise them themselves.

    Raises:
        MisconfigurationException: With the reason.
    """
    for optimizer in optimizers:
        name = type(optimizer).__name__
        if "LBFGS" in class_names(optimizer):
            raise MisconfigurationException(
                f"KFACCallback does not work with {name}: it takes a curvature of its own from differences of "
                "gradients, which preconditioning changes from one to the next. Use torch.optim.SGD with momentum."
            )
        if steps_with_scaled_gradients(trainer, optimizer):
            raise MisconfigurationException(
                f"KFACCallback does not work with a fused {name} and a GradScaler: the fused optimizer removes the "
                "loss scale inside its own step, so that the gradients are still scaled where they are preconditioned. "
                f"Write {name}(..., fused=False), or use precision='bf16-mixed'."
            )
        if "betas" in optimizer.defaults:
            rank_zero_warn(
                f"{name} divides each gradient by its own running size, which undoes most of what K-FAC does before. "
                "Use torch.optim.SGD with momentum under KFACCallback."
            )
