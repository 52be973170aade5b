"""What is known of each instance as a table: the columns, and what they mean.

Shapes: N data set.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pandas as pd

    from lightning_autoassist.filtering.memory.store import InstanceStore

# In their order. A visit is a batch with the instance that the model was trained on.
COLUMNS = MappingProxyType(
    {
        "label": "class label; -1 where none is known",
        "times_seen": "visits that were learnt from",
        "times_kept": "times that the instance was a candidate and was kept",
        "times_dropped": "times that it was a candidate and was dropped",
        "loss_mean": "mean loss over the visits, weighted by 1/p, in the loss's own unit: nats of a cross-entropy",
        "loss_spread": "standard deviation of the loss over the visits, weighted by 1/p, in the same unit",
        "confidence": "mean of exp(-loss), weighted by 1/p, in [0, 1]: of a cross-entropy the label's probability",
        "variability": "standard deviation of exp(-loss), weighted by 1/p, in [0, 0.5]",
        "area_under_margin": "mean of the label's logit less the largest other one, weighted by 1/p; NaN: not known at "
        "every visit",
        "suggested_label": "the class with the largest other logit at the majority of visits; -1: not known",
        "times_learnt": "times that the loss fell below ln 2 (0.693), or was below at the first visit",
        "times_forgotten": "times that the loss was ln 2 or more at a visit after one below",
        "first_pass_learnt": "number of the pass, from 0, in which the loss was first below ln 2; -1: in none",
        "score": "what the Assistant was to predict, at the last visit: see score= of the callback",
    }
)


def columns_of(store: InstanceStore) -> dict[str, npt.NDArray[Any]]:
    """The columns that there are, by name, each of shape ``(N,)``; NaN where an instance was never seen."""
    found = {} if store.dynamics is None else store.dynamics.columns()
    if store.labels is not None:
        found["label"] = store.labels.numpy().copy()
    elif store.dynamics is not None:
        found["suggested_label"].fill(-1)  # of classes that are no property of the instances
    if store.seen.any():
        found["score"] = np.where(store.seen.numpy(), store.scores.numpy(), np.float32(np.nan))
    return {name: found[name] for name in COLUMNS if name in found}


def frame_of(store: InstanceStore) -> pd.DataFrame:
    """The columns as a frame, whose index is the position in the data set.

    Raises:
        ModuleNotFoundError: If pandas is missing.
    """
    try:
        import pandas as pd
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error}; a frame needs pandas: pip install 'lightning-autoassist[instances]'", name=error.name
        ) from error
    frame = pd.DataFrame(columns_of(store), index=pd.RangeIndex(len(store), name="index"))
    if store.dynamics is not None:
        frame.attrs["loss"] = store.dynamics.loss_source
    return frame
