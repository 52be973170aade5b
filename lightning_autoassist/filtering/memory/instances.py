"""What Assistants get of instances."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from lightning_autoassist.filtering.memory.own_columns import InstanceMemory
from lightning_autoassist.filtering.memory.tokens import Tokens

# What is taken from batches: an Assistant reads one or the other.
FROM_BATCHES = ("features", "tokens")


class Instances(NamedTuple):
    """Rows of the instance store. Columns that were not asked for, or that do not exist, are None.

    Attributes:
        features: Shape ``(n, F)``, half precision from the store.
        labels: Class labels, shape ``(n,)``, integer; -1 where none is known yet, other negative ones are no class.
        scores: The last score observed, shape ``(n,)``, float32.
        ages: Batches learnt from since that score was observed, shape ``(n,)``, int32; -1 where none ever was.
        tokens: Their bags of tokens.
        indices: Positions in the data set, shape ``(n,)``, int64: for Assistants that know the data by themselves.
        probs: What they were kept with, shape ``(n,)``, float32: for what learns from a batch; None of candidates.
        memory: What the Assistant or policy that gets this remembers of them in its ``own_columns``.
    """

    features: Tensor | None = None
    labels: Tensor | None = None
    scores: Tensor | None = None
    ages: Tensor | None = None
    tokens: Tokens | None = None
    indices: Tensor | None = None
    probs: Tensor | None = None
    memory: InstanceMemory | None = None
