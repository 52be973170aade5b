"""An Assistant on the rows of a stream: it judges what was never seen, and nothing of an instance is remembered.

Shapes: B batch, n rows of a fetched batch, F features.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_autoassist.filtering.assistants.base import Assistant, BatchReader, UpdateResult
from lightning_autoassist.filtering.judging import chances, columns_read, features_of, learn
from lightning_autoassist.filtering.memory.features import bounded
from lightning_autoassist.filtering.memory.instances import Instances
from lightning_autoassist.filtering.memory.tokens import tokens_of
from lightning_autoassist.filtering.policies.base import Policy
from lightning_autoassist.filtering.sampling.selection import Rows


class LabelColumn:
    """The integer column of a stream's batches that the captured loss has as its target.

    It is asked for before the model sees a batch, and told by the loss only after: so it is the place in the batch at
    which the target of earlier steps stood. A column that once differs from the target is not it; where none is left
    (the step computes its target), labels are used neither to predict nor to learn.

    Example:
        >>> column = LabelColumn()
        >>> batch = {"id": torch.tensor([7, 8]), "label": torch.tensor([0, 1])}
        >>> column.observe(batch, torch.tensor([0, 1]))
        >>> column.of({"id": torch.tensor([9]), "label": torch.tensor([2])})
        tensor([2])
    """

    def __init__(self) -> None:
        self.paths: list[str] | None = None  # what may be it; None: not asked yet

    def observe(self, integers: Mapping[str, Tensor], target: Tensor | None) -> None:
        """Compare a batch's columns with the target of its loss.

        Args:
            integers: Columns of shape ``(B,)``, by their place in the batch.
            target: Shape ``(B,)``, int64; None where the loss has no such target.
        """
        paths = [path for path in (integers if self.paths is None else self.paths) if path in integers]
        self.paths = [] if target is None else [path for path in paths if torch.equal(integers[path].long(), target)]

    def of(self, integers: Mapping[str, Tensor]) -> Tensor | None:
        """The labels among a batch's columns; None where none is known."""
        return integers.get(self.paths[0]) if self.paths else None


class RowLearner:
    """Turns rows of a stream into keep probabilities, and the model's answers into a better Assistant.

    Args:
        assistant: Predicts scores.
        policy: Turns them into keep probabilities.
        features: Reduces a batch to features.

    Attributes:
        label_column: Where a batch's labels stand.
    """

    def __init__(self, assistant: Assistant, policy: Policy, features: BatchReader) -> None:
        self.assistant = assistant
        self.policy = policy
        self.label_column = LabelColumn()
        self._features = features
        self._width: int | None = None  # F

    @property
    def reads_features(self) -> bool:
        """Whether rows are judged by their features or tokens."""
        return self.policy.needs_scores and self.assistant.needs_batches

    @property
    def refusal(self) -> str | None:
        """Why streams cannot be filtered by this Assistant, and what to write; None where they can."""
        read = _of_data_sets(self.assistant.required_columns, self.assistant.own_columns)
        if not self.policy.needs_scores or not read:
            return None
        return (
            f"{type(self.assistant).__name__} reads an instance's {read[0]}, and a stream does not tell which "
            'instance came before; write AutoAssistCallback(policy=..., assistant="logistic")'
        )

    def _check_policy(self) -> None:
        read = _of_data_sets(self.policy.required_columns, self.policy.own_columns)
        if read:
            raise MisconfigurationException(
                f"{type(self.policy).__name__} reads an instance's {read[0]}, and a stream does not tell which "
                'instance came before; write AutoAssistCallback(policy="proportional")'
            )

    def check_can_judge(self) -> None:
        """Refuse an Assistant that cannot judge a stream's rows.

        Raises:
            MisconfigurationException: See :attr:`refusal`; also where the policy cannot.
        """
        self._check_policy()
        if self.refusal is not None:
            raise MisconfigurationException(self.refusal)

    def features(self, batch: Any, num_rows: int) -> Tensor:
        """Features of a batch as the loader gave it, shape ``(n, F)``, in half precision on the CPU, or its tokens.

        Raises:
            ValueError: If the batch has none, or another number than earlier ones.
        """
        features = features_of(self._features, batch, num_rows)
        if "tokens" in self.assistant.required_columns:
            return features.cpu()
        self._width = self._width or features.shape[1]
        if features.shape[1] != self._width:
            raise ValueError(
                f"an instance has {features.shape[1]} features where earlier ones had {self._width}; pass features= "
                "to give every batch the same number"
            )
        return bounded(features).cpu()

    def keep_probability(self, rows: Rows) -> npt.NDArray[np.floating[Any]]:
        """Chances of rows, shape ``(n,)``."""
        if not self.policy.needs_scores:
            return self.policy.keep_probability(torch.ones(rows.size)).numpy()
        instances = self._instances(rows.features, self.label_column.of(rows.integers))
        return chances(self.policy, self.assistant.predict(instances), self._of_policy(instances)).numpy()

    def _of_policy(self, instances: Instances) -> Instances:
        # What is in a batch's labels is an unknown column until some steps have shown it.
        columns = columns_read(self.policy)
        return Instances(labels=instances.labels if "labels" in columns else None, probs=instances.probs)

    def learn(
        self,
        features: Tensor | None,
        integers: Mapping[str, Tensor],
        target: Tensor | None,
        scores: Tensor,
        probs: Tensor | None = None,
    ) -> UpdateResult | None:
        """Learn from a batch of the model.

        Args:
            features: What :meth:`features` gave for its rows, shape ``(B, F)``.
            integers: See ``Rows``.
            target: Of the captured loss, see :class:`LabelColumn`.
            scores: Shape ``(B,)``; rows with one that is no finite number are not learnt from.
            probs: What the rows were kept with, shape ``(B,)``; None: all were certain to be.

        Returns:
            The Assistant's outcome; None where there was nothing to learn.
        """
        self.label_column.observe(integers, target)
        finite = scores.isfinite()
        if not finite.any() or (self.reads_features and features is None):
            return None
        labels = self.label_column.of(integers)
        probs = torch.ones(len(scores)) if probs is None else probs
        columns = (None if column is None else column[finite] for column in (features, labels))
        instances = self._instances(*columns)._replace(probs=probs[finite])
        return learn(self.assistant, self.policy, (instances, self._of_policy(instances)), scores[finite])

    def _instances(self, features: Tensor | None, labels: Tensor | None) -> Instances:
        if features is not None and "tokens" in self.assistant.required_columns:
            return Instances(labels=labels, tokens=tokens_of(features))
        return Instances(features, labels)


def _of_data_sets(columns: Collection[str], own_columns: Collection[str]) -> list[str]:
    """Which of the columns there are of data sets alone, in words."""
    names = {"scores": "last score", "ages": "last score's age", "indices": "position in the data set"}
    return [name for column, name in names.items() if column in columns] + [f"own {name!r}" for name in own_columns]
