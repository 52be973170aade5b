"""What a checkpoint remembers of instances, and whether it fits the run that goes on.

Shapes: B batch.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

from torch import Tensor

from lightning_autoassist.filtering.assistants.base import Assistant
from lightning_autoassist.filtering.memory.store import InstanceStore
from lightning_autoassist.filtering.policies.base import Policy

# Labels that tell whether a checkpoint is of this data set.
MIN_COMPARED = 64


def load_parts(
    assistant: Assistant, policy: Policy, states: tuple[dict[str, Any], dict[str, Any]], differing: Collection[str]
) -> list[str]:
    """Restore Assistant and policy, each if it is of the kind that it was.

    Args:
        assistant: Of the run.
        policy: Of the run.
        states: Their states in the checkpoint.
        differing: Settings that are other ones now, of ``{"policy", "assistant", "score", "features"}``.

    Returns:
        The parts that were not restored, in words.
    """
    lost = []
    fits = not {"assistant", "score", "features"} & set(differing)
    if not (fits and _is_loaded(assistant, states[0])):
        fits = False
        lost.append("the Assistant")
    if not (fits and "policy" not in differing and _is_loaded(policy, states[1])):
        lost.append("the policy's statistics")
    return lost if policy.needs_scores else []


def _is_loaded(part: Assistant | Policy, state: dict[str, Any]) -> bool:
    """Whether an Assistant or a policy takes a state; it is what it was where it does not."""
    before = copy.deepcopy(part.state_dict())
    try:
        part.load_state_dict(state)
    except Exception:  # whatever it is, it must not cost the user the run
        part.load_state_dict(before)
        return False
    return True


def drop_unfit(restored: dict[str, Any] | None, assistant: Assistant, differing: Collection[str]) -> list[str]:
    """Drop what a checkpoint remembers of instances and this run cannot read.

    Args:
        restored: State of the checkpoint's store; None where it has none.
        assistant: Of the run.
        differing: See :func:`load_parts`.

    Returns:
        What was dropped, in words.
    """
    lost: list[str] = []
    if restored is None:
        return lost
    if "score" in differing:
        restored["seen"].zero_()
        restored["observed_at"].fill_(-1)
        restored["scores"].zero_()
        restored["owned"] = {}
        lost.append("the instances' scores")
    for part in {"policy", "assistant"} & set(differing):
        restored["owned"].pop(part, None)
    has_tokens = restored["tokens"] is not None
    is_other_kind = assistant.needs_batches and has_tokens != ("tokens" in assistant.required_columns)
    if restored["has_features"].any() and ("features" in differing or is_other_kind):
        restored["has_features"].zero_()
        restored.update(features=None, feature_file=None, tokens=None)
        lost.append("the instances' features")
    return lost


class LabelComparison:
    """Compares labels that a checkpoint remembers with those of this run's first batches."""

    def __init__(self) -> None:
        self._num_compared = self._num_differing = 0
        self._is_done = True

    def begin(self) -> None:
        """Compare the first batches from now on: a store was restored."""
        self._num_compared = self._num_differing = 0
        self._is_done = False

    def warning(self, store: InstanceStore, indices: Tensor, labels: Tensor) -> str | None:
        """The warning that the checkpoint is of another data set; None where the labels do not show it, or not yet.

        Args:
            store: Restored.
            indices: Places of instances in it, shape ``(B,)``.
            labels: The labels that these instances have now.
        """
        if self._is_done or store.labels is None:
            return None
        seen = store.seen[indices]
        differ = (store.labels[indices] != labels) & seen
        self._num_compared += int(seen.sum())
        self._num_differing += int(differ.sum())
        self._is_done = self._num_compared >= MIN_COMPARED
        if not self._is_done or self._num_differing <= self._num_compared / 4:
            return None
        return (
            f"{self._num_differing} of {self._num_compared} instances that the checkpoint remembers have another label "
            "now, so it is of another data set, or of another order of it. What was remembered is dropped, and every "
            "instance is kept until it was seen again"
        )
