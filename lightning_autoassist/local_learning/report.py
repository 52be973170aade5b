"""Where a network would be cut, what its blocks would keep, or why it cannot be: for ``autoassist check --local``."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

from lightning_autoassist.local_learning.callback import LocalLearningCallback
from lightning_autoassist.local_learning.cuts import CutError
from lightning_autoassist.trainer_support.variants import FLAVOURS

_NUM_STEPS = 3


def local_report(module: Any, data: Any = None, blocks: int | Sequence[str] = 4) -> str:
    """Train a copy of a module in blocks for a few steps, and say where it is cut.

    Args:
        module: A LightningModule; stays as it is.
        data: A data module or a train loader; None: the module's own loader.
        blocks: See :class:`LocalLearningCallback`.

    Returns:
        A table with a row for each block: the submodule that ends it, the bytes that backpropagation saves in it, those
        that it saves with its head, and its parameters.

    Raises:
        CutError: A ValueError; if the module cannot be cut so. The message says what leaks, or where it can be cut.
    """
    flavour = next(each for each in FLAVOURS if isinstance(module, each.LightningModule))
    callback = LocalLearningCallback(blocks)
    trainer = flavour.Trainer(
        accelerator="cpu",
        max_steps=_NUM_STEPS,
        limit_val_batches=0,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of training that is to end at once
        if isinstance(data, flavour.LightningDataModule):
            trainer.fit(copy.deepcopy(module), datamodule=data)
        else:
            trainer.fit(copy.deepcopy(module), data)
    if callback.plan is None:
        raise CutError("No training step returned a loss, so it cannot be told where the network can be cut.")
    return _table(type(module).__name__, callback)


def _table(name: str, callback: LocalLearningCallback) -> str:
    rows, saved = callback.describe(), callback.saved_bytes
    total = sum(row["saved_bytes"] for row in rows)
    most = max(saved.values(), default=max(row["saved_bytes"] for row in rows))
    width = max(len(str(row["ends_after"])) for row in rows)
    lines = [
        f"{name} in {len(rows)} blocks:",
        f"block  {'ends after':{width}}  bytes by backprop  bytes with head  parameters",
    ]
    for row in rows:
        with_head = saved.get(row["block"] - 1)
        lines.append(
            f"{row['block']:5d}  {row['ends_after']!s:{width}}  {row['saved_bytes']:17,}  "
            f"{'' if with_head is None else format(with_head, ','):>15}  {row['parameters']:10,}"
        )
    lines.append(f"largest block {most:,} of {total:,} bytes saved for backward ({most / max(total, 1):.0%})")
    assert callback.plan is not None
    shared = callback.plan.blocks.shared
    if shared:
        lines.append(f"blocks share parameters, so that layers cannot be trained in parallel: {', '.join(shared)}")
    return "\n".join(lines)
