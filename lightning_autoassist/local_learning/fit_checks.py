"""What local learning cannot train, said before training begins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lightning_autoassist.local_learning.heads import HEADS, HeadFunction
from lightning_autoassist.trainer_support.arguments import check_choice, check_function, check_whole, received
from lightning_autoassist.trainer_support.class_names import class_names
from lightning_autoassist.trainer_support.variants import LightningModule, Trainer

MODES = ("chunked", "greedy", "overlapping")
DEFAULT_BLOCKS = 4
_SHARDED = ("FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy", "XLAStrategy", "SingleDeviceXLAStrategy")


def check_blocks(blocks: Any, mode: str) -> int | tuple[str, ...] | None:
    """What ``blocks`` asks for: a number, names, or None for as many as there can be.

    Raises:
        ValueError: If it is fewer than two, or given where each layer is a block.
        TypeError: If it is neither a number nor names.
    """
    if mode == "greedy":
        if blocks is not None:
            raise ValueError(f"mode='greedy' makes a block of each layer, got blocks={blocks!r}; leave blocks out")
        return None
    if blocks is None:
        return DEFAULT_BLOCKS
    if isinstance(blocks, str):
        raise TypeError(f"blocks must be a number or a list of names, got {received(blocks)}; write [{blocks!r}]")
    if isinstance(blocks, Sequence):
        if not all(isinstance(name, str) for name in blocks):
            raise TypeError("blocks must be a number or a list of names of submodules, got a list of other things")
        return tuple(blocks)
    return check_whole("blocks", blocks, "[2, inf)", "one block is plain training, which needs no callback")


def check_heads(heads: Any) -> str | HeadFunction:
    """What ``heads`` asks for.

    Raises:
        ValueError: If it is no head's name.
        TypeError: If it is neither a name nor a function.
    """
    if isinstance(heads, str):
        return check_choice("heads", heads, HEADS)
    function: HeadFunction = check_function("heads", heads, "lambda shape, out_shape: torch.nn.Linear(...)")
    return function


def check_trainer(trainer: Trainer, module: LightningModule) -> None:
    """Refuse what cannot be trained in blocks.

    Raises:
        ValueError: If the module optimizes by itself, or the strategy splits parameters.
    """
    if not module.automatic_optimization:
        raise ValueError(
            f"Local learning needs Lightning's automatic optimization, and {type(module).__name__} has "
            "automatic_optimization=False; leave the backward pass and the optimizer's step to Lightning."
        )
    names = class_names(trainer.strategy)
    if names.intersection(_SHARDED):
        raise ValueError(
            f"Local learning works on one device, with strategy='ddp' and with strategy='layer_parallel', got "
            f"{type(trainer.strategy).__name__}, which splits parameters."
        )


def check_optimizers(trainer: Trainer) -> None:
    """Refuse a run without an optimizer, and one whose optimizer asks several times for a step's gradients.

    Raises:
        ValueError: If the module has none, or such a one.
    """
    if not trainer.optimizers:
        raise ValueError("Local learning needs an optimizer: configure_optimizers must return one, got none.")
    if "LBFGS" in class_names(trainer.optimizers[0]):
        raise ValueError(
            f"Local learning does not work with {type(trainer.optimizers[0]).__name__}, which searches along the "
            "gradient of one loss, and blocks have one each. Use another optimizer, as torch.optim.AdamW."
        )


def fine_tuning_start(trainer: Trainer, share: float) -> float:
    """The optimizer step from which on training is plain backpropagation; infinity: none.

    Raises:
        ValueError: If there is to be one, and the length of training is not known.
    """
    if share == 0:
        return math.inf
    total = trainer.estimated_stepping_batches
    if not math.isfinite(total):
        raise ValueError(
            f"fine_tune={share} is a share of training, whose length is not known; set max_epochs or max_steps."
        )
    return float(math.floor(total * (1 - share)))
