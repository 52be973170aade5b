"""The rows of a stream: each is judged though it was never seen, and nothing of it is remembered.

Shapes: B batch, n rows of a fetched batch, F features.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lightning_autoassist.filtering.assistants.base import Assistant, BatchReader
from lightning_autoassist.filtering.instance_memory import InstanceMemory, check_reads_losses, columns_read
from lightning_autoassist.filtering.memory.features import bounded
from lightning_autoassist.filtering.memory.instances import Instances
from lightning_autoassist.filtering.memory.tokens import tokens_of
from lightning_autoassist.filtering.policies.base import Policy
from lightning_autoassist.filtering.reporting.metrics import FilterReport
from lightning_autoassist.filtering.sampling.selection import Probabilities, Rows
from lightning_autoassist.filtering.waiting_steps import PendingUpdate


def warn_of_no_dynamics(dynamics: bool | None) -> None:
    """Warn where ``dynamics=True``: a stream has none."""
    if dynamics:
        rank_zero_warn(
            "dynamics=True keeps nothing on a stream, which does not tell which instance came before: leave it out, or "
            "give the loader a data set with indices"
        )


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


class StreamedInstances(InstanceMemory):
    """Judges rows of a stream by what they are: nothing is remembered of them.

    Args:
        assistant: Predicts scores.
        policy: Turns them into keep probabilities.
        reader: Takes from a batch what the Assistant reads of it.
        report: Counts what was learnt.

    Attributes:
        label_column: Where a batch's labels stand.
    """

    where_classes_go = "On a stream they are the integers in the batch that the loss has as its target, unchanged"

    def __init__(self, assistant: Assistant, policy: Policy, reader: BatchReader, report: FilterReport) -> None:
        super().__init__(assistant, policy, reader, report)
        self.label_column = LabelColumn()
        self._width: int | None = None  # F

    @property
    def refusal(self) -> str | None:
        """Why streams cannot be filtered by this Assistant, and what to write; None where they can."""
        # Ages it can do without: every row is new.
        read = _of_data_sets(set(self.assistant.required_columns) - {"ages"}, self.assistant.own_columns)
        if not self.policy.needs_scores or not read:
            return None
        return (
            f"{type(self.assistant).__name__} reads an instance's {read[0]}, and the instances of a stream cannot be "
            'recognised; write AutoAssistCallback(policy=..., assistant="logistic")'
        )

    def _check_policy(self) -> None:
        read = _of_data_sets(self.policy.required_columns, self.policy.own_columns)
        if read:
            raise MisconfigurationException(
                f"{type(self.policy).__name__} reads an instance's {read[0]}, and the instances of a stream cannot be "
                'recognised; write AutoAssistCallback(policy="proportional")'
            )

    def check_can_judge(self) -> None:
        """Refuse an Assistant that cannot judge a stream's rows.

        Raises:
            MisconfigurationException: See :attr:`refusal`; also where the policy cannot.
            ValueError: If the policy reads losses, and the Assistant predicts others.
        """
        self._check_policy()
        check_reads_losses(self.policy, self.assistant)
        if self.refusal is not None:
            raise MisconfigurationException(self.refusal)

    @override
    def features(self, batch: Any, num_rows: int) -> Tensor | None:
        """Features of a batch as the loader gave it, shape ``(n, F)``, in half precision on the CPU, or its tokens.

        Raises:
            ValueError: If the batch has none, or another number than earlier ones.
        """
        features = super().features(batch, num_rows)
        if features is None:
            return None
        if "tokens" in self.assistant.required_columns:
            return features.cpu()
        self._width = self._width or features.shape[1]
        if features.shape[1] != self._width:
            raise ValueError(
                f"an instance has {features.shape[1]} features where earlier ones had {self._width}; pass features= "
                "to give every batch the same number"
            )
        return bounded(features).cpu()

    @override
    def keep_probability(self, rows: Rows) -> Probabilities:
        instances = self._instances(rows.features, self.label_column.of(rows.integers))
        return self._chances(self.assistant.predict(instances), self._of_policy(instances))

    def _of_policy(self, instances: Instances) -> Instances:
        # What is in a batch's labels is an unknown column until some steps have shown it.
        columns = columns_read(self.policy)
        return Instances(labels=instances.labels if "labels" in columns else None, probs=instances.probs)

    @override
    def learn(self, observed: PendingUpdate) -> None:
        assert observed.integers is not None
        if not self.policy.needs_scores:
            return
        self.label_column.observe(observed.integers, observed.labels)
        labels, features = self.label_column.of(observed.integers), observed.features
        self._count_unlabelled(is_labelled=labels is not None)
        finite = observed.scores.isfinite() & observed.losses.isfinite()
        self._report.count_nonfinite(int((~finite).sum()))
        if not finite.any() or (self.assistant.needs_batches and features is None):
            return
        probs = torch.ones(len(finite)) if observed.probs is None else observed.probs
        columns = (None if column is None else column[finite] for column in (features, labels))
        instances = self._instances(*columns)._replace(probs=probs[finite])
        self._learn(instances, self._of_policy(instances), observed.scores[finite])

    def _instances(self, features: Tensor | None, labels: Tensor | None) -> Instances:
        if features is not None and "tokens" in self.assistant.required_columns:
            return Instances(labels=labels, tokens=tokens_of(features))
        return Instances(features, labels)


def _of_data_sets(columns: Collection[str], own_columns: Collection[str]) -> list[str]:
    """Which of the columns there are of data sets alone, in words."""
    names = {"scores": "last score", "ages": "last score's age", "indices": "position in the data set"}
    return [name for column, name in names.items() if column in columns] + [f"own {name!r}" for name in own_columns]
