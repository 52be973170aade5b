"""The layout of what AutoAssist leaves in a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn

# To be counted up by whoever changes what a state_dict of the callback or of the data module holds.
LAYOUT = 3


def is_readable(state: Mapping[str, Any]) -> bool:
    """Whether a state is of this layout; warns where it is of another version's.

    Args:
        state: What a ``state_dict`` gave, with its ``"layout"``.

    Example:
        >>> is_readable({"layout": LAYOUT})
        True
    """
    if state.get("layout") == LAYOUT:
        return True
    rank_zero_warn(
        f"the checkpoint was written by another version of AutoAssist (layout {state.get('layout')}, this one reads "
        f"{LAYOUT}): your module, optimizer and loops are restored, filtering begins anew with a first pass that keeps "
        "everything; resume with the version that wrote it to go on exactly"
    )
    return False
