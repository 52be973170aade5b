"""Policies: from an Assistant's predicted scores to the probability that a candidate is kept.

A policy is a pure rule over the scores of the candidates plus, where the rule says so, a little state that
:meth:`Policy.observe` updates. Adding one takes a class here and a line in :data:`POLICIES`.

Shapes: n candidates, B batch.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from lightning_autoassist.filtering.memory.instances import Instances
from lightning_autoassist.filtering.memory.own_columns import ColumnStarts
from lightning_autoassist.filtering.names import ReweightingName, ScoreName
from lightning_autoassist.filtering.policies.schedules import Schedule, value_at

NO_FLOOR = "with no floor an instance can vanish for good"


class Policy:
    """Base class of the policies.

    The simplest policy defines :meth:`keep_probability`. One that reads more than scores names ``required_columns`` and
    defines :meth:`judge`; one that learns from the model's batches defines :meth:`update`; one that filters instances
    which the model has not seen sets ``scores_unseen`` and defines :meth:`unseen_scores`.

    Attributes:
        needs_scores: Whether the rule reads predicted scores. Where it does not, no Assistant is trained, and losses
            are captured only for weights to enter there.
        keeps_everything: Whether p is 1 for every candidate, always.
        reads_labels: Whether :meth:`balance` wants the candidates' labels.
        default_assistant: What predicts the scores when the user does not say: a name in ``ASSISTANTS``.
        default_score: What the Assistant learns to predict when the user does not say:
            ``"loss"``, ``"gradient_norm"`` or ``"layer_gradient_norm"``.
        default_reweighting: ``"none"``, ``"inverse_probability"`` or ``"normalized"``, see
            :class:`~lightning_autoassist.ShrinkingBatchSampler`.
        default_unfiltered_tail: Share of training at whose end everything is kept.
        correction: The exponent of the weights, in [0, 1], a number or a schedule over progress: an instance that was
            kept with p is weighted by :math:`p^{-correction}`, if reweighting is on at all.
        required_columns: What :meth:`judge`, :meth:`update` and :meth:`unseen_scores` read of instances beside scores,
            a subset of ``{"labels", "scores", "ages", "indices"}``; see
            :class:`~lightning_autoassist.assistants.Instances`.
        scores_unseen: Whether :meth:`unseen_scores` knows something of instances that the model has not seen: then
            labels are looked for in the data set, and the first pass is filtered, too.
        reads_losses: Whether the rule reads scores as losses in their own unit, and not by comparison with each other.
            Then the score must be ``"loss"``, and the Assistant's predictions losses, too.
        needs_labels: Whether the rule does nothing of its own where no classes are known; a run warns of that.
        own_columns: What it remembers of each instance by itself: names, and the number (or the numbers) that an
            instance has at first, and again once it was forgotten. ``instances.memory[name]`` reads and writes them.
            Data sets only: a stream does not tell which instance came before.
        progress: Share of training that is done, in [0, 1], when it is asked or learns.
        pass_index: Number of the pass over the data, from 0, alike.
        num_processes: Processes that train; :meth:`update` gets the batches of all of them.
    """

    needs_scores: bool = True
    keeps_everything: bool = False
    reads_labels: bool = False
    default_assistant: str = "memory"
    default_score: ScoreName = "gradient_norm"
    default_reweighting: ReweightingName = "none"
    default_unfiltered_tail: float = 0.0
    correction: float | Schedule = 1.0
    required_columns: tuple[str, ...] = ()
    scores_unseen: bool = False
    reads_losses: bool = False
    needs_labels: bool = False
    own_columns: ColumnStarts = MappingProxyType({})
    progress: float = 0.0
    pass_index: int = 0
    num_processes: int = 1

    def prepare(self, num_candidates: int) -> None:
        """Learn how many candidates make a pass, before the first one is judged; streams do not tell.

        Args:
            num_candidates: N, of this process.
        """

    @property
    def expected_keep_rate(self) -> float | None:
        """The mean of p that it aims at; None where it aims at none."""
        return None

    @property
    def steadies_scores(self) -> bool:
        """Whether what it makes of scores depends little on how old they are."""
        return False

    def note_progress(self, progress: float, pass_index: int) -> None:
        """Training has come so far; called before candidates are judged, and before a batch is learnt from."""
        self.progress, self.pass_index = progress, pass_index

    def current_correction(self) -> float:
        """The exponent of the weights that is in force."""
        return value_at(self.correction, self.progress)

    def judge(self, scores: Tensor, instances: Instances) -> Tensor:
        """Chance that each candidate enters a batch: :meth:`keep_probability`, balanced where ``reads_labels``.

        Args:
            scores: The Assistant's predictions, or :meth:`unseen_scores`, shape ``(n,)``, float32.
            instances: The ``required_columns`` of the candidates.

        Returns:
            Probabilities in (0, 1], shape ``(n,)``, float32.
        """
        probs = self.keep_probability(scores)
        return self.balance(probs, instances.labels) if self.reads_labels and instances.labels is not None else probs

    def unseen_scores(self, instances: Instances) -> Tensor:
        """Scores of instances that the model has not seen; those that get NaN are kept.

        Args:
            instances: The ``required_columns`` of them.

        Returns:
            Shape ``(n,)``, float32.
        """
        assert instances.labels is not None
        return torch.full((len(instances.labels),), torch.nan)

    def update(self, instances: Instances, scores: Tensor) -> None:
        """Learn from a batch of the model.

        Args:
            instances: The ``required_columns`` of the batch, as they were remembered before it, but for its labels;
                ``probs`` are what the instances were kept with.
            scores: What the model showed, shape ``(B,)``, float32, finite; 1 or 0 for informative or not, where the
                Assistant predicts probabilities.
        """

    def keep_probability(self, scores: Tensor) -> Tensor:
        """Chance that each candidate enters a batch.

        Args:
            scores: The Assistant's predictions, shape ``(n,)``, float32.

        Returns:
            Probabilities in (0, 1], shape ``(n,)``, float32.
        """
        raise NotImplementedError

    def balance(self, probs: Tensor, labels: Tensor) -> Tensor:
        """The chances, balanced over classes; called where ``reads_labels`` says so and there are labels.

        Args:
            probs: What :meth:`keep_probability` gave, shape ``(n,)``.
            labels: Class labels, shape ``(n,)``, integer; negative where an instance has no class, or none is known.
        """
        return probs

    def observe(self, predictions: Tensor, targets: Tensor) -> None:
        """Learn from what the model's batch turned out to be.

        Args:
            predictions: What the Assistant had predicted for the batch, shape ``(B,)``.
            targets: Whether each instance was informative, bool, shape ``(B,)``.
        """

    def state_dict(self) -> dict[str, Any]:
        """State as tensors and builtins."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
