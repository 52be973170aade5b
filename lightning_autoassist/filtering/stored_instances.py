"""The instances of a data set: what the model answered is remembered of each of them.

Shapes: N data set, B batch, n candidates, F features.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lightning_autoassist.filtering.assistants.base import Assistant, BatchReader
from lightning_autoassist.filtering.instance_memory import InstanceMemory, columns_read
from lightning_autoassist.filtering.memory.dynamics import Visits
from lightning_autoassist.filtering.memory.feature_file import FeaturePlace
from lightning_autoassist.filtering.memory.instances import Instances
from lightning_autoassist.filtering.memory.store import InstanceStore, LabelSource
from lightning_autoassist.filtering.observed_visits import Candidates, visits_in, visits_of
from lightning_autoassist.filtering.policies.base import Policy
from lightning_autoassist.filtering.reporting.metrics import FilterReport
from lightning_autoassist.filtering.restored_memory import LabelComparison, drop_unfit, load_parts
from lightning_autoassist.filtering.sampling.selection import Probabilities
from lightning_autoassist.filtering.waiting_steps import PendingUpdate, WaitingSteps
from lightning_autoassist.trainer_support.arrays import IndexArray


class StoredInstances(InstanceMemory):
    """Remembers what the model answered of each instance of a data set.

    Args:
        assistant: Predicts scores.
        policy: Turns them into keep probabilities.
        reader: Takes from a batch what the Assistant reads of it.
        report: Counts what was learnt.
        waiting: Steps that are still to be learnt from.
        feature_memory: See ``InstanceStore``.
        keeps_dynamics: Whether training dynamics are kept, whatever the policy needs.

    Attributes:
        store: What is remembered; None before the first batch, and where neither scores nor dynamics are wanted.
    """

    where_classes_go = "Write AutoAssistDataModule(data, labels=...) to give the class of each instance"

    def __init__(
        self,
        assistant: Assistant,
        policy: Policy,
        reader: BatchReader,
        report: FilterReport,
        waiting: WaitingSteps,
        feature_memory: int,
        keeps_dynamics: bool = False,
    ) -> None:
        super().__init__(assistant, policy, reader, report)
        self.store: InstanceStore | None = None
        self._waiting = waiting
        self._feature_memory = feature_memory
        self._keeps_dynamics = keeps_dynamics
        self._candidates = Candidates()
        self._restored: dict[str, Any] | None = None
        self._labels = LabelComparison()
        # Of the Assistant and the policy before a checkpoint was restored, while its features are still to be compared.
        self._fresh: tuple[dict[str, Any], dict[str, Any]] | None = None

    # ---- state

    def state_dict(self) -> dict[str, Any] | None:
        """What is remembered of the instances, or what a checkpoint brought of it."""
        return self._restored if self.store is None else self.store.state_dict()

    def load_state_dict(
        self,
        state: dict[str, Any] | None,
        parts: tuple[dict[str, Any], dict[str, Any]],
        differing: Collection[str],
    ) -> list[str]:
        """Restore Assistant and policy; what is remembered of instances, in :meth:`prepare`.

        Args:
            state: See :meth:`state_dict`.
            parts: States of the Assistant and the policy.
            differing: Settings that are other ones now, of ``{"policy", "assistant", "score", "features"}``.

        Returns:
            The parts that do not fit this run, in words.
        """
        self._fresh = copy.deepcopy((self.assistant.state_dict(), self.policy.state_dict()))
        lost = load_parts(self.assistant, self.policy, parts, differing)
        self._restored, self.store = state, None
        return lost + drop_unfit(self._restored, self.assistant, differing)

    def lost_dynamics(self) -> list[str]:
        """What a checkpoint that was just loaded lacks of the dynamics that are wanted, in words."""
        lacks = self._restored is not None and self._restored.get("dynamics") is None
        return ["the instances' training dynamics"] if self._keeps_dynamics and lacks else []

    def prepare(self, num_instances: int, place: FeaturePlace, labels: LabelSource | None = None) -> None:
        """Make room for the data set, before its first batch is drawn.

        Args:
            num_instances: N.
            place: For a feature file.
            labels: Tells those of instances that the model has not seen.
        """
        restored, self._restored = self._restored, None
        if self.store is not None and self.store.num_instances == num_instances:
            return
        if restored is not None and restored["num_instances"] != num_instances:
            rank_zero_warn(
                f"the checkpoint remembers {restored['num_instances']} instances, and the data set has "
                f"{num_instances}: what was remembered is dropped, and every instance is kept until it was seen again"
            )
            self._waiting.clear()
            restored = None
        self.store = InstanceStore(num_instances, self._feature_memory, place, dynamics=self._keeps_dynamics)
        if restored is not None:
            self.store.load_state_dict(restored)
            self._labels.begin()
        if self.store.dynamics is not None:
            self.store.dynamics.unlearnt = self._unlearnt
        self.store.own("assistant", self.assistant.own_columns)
        self.store.own("policy", self.policy.own_columns)
        if labels is not None and self.store.labels_from is None:
            self._know_labels(self.store, labels)

    def _know_labels(self, store: InstanceStore, labels: LabelSource) -> None:
        reads = self.assistant.scores_unseen and "labels" in self.assistant.required_columns
        known = labels(self.policy.scores_unseen or reads)
        if known is not None:
            store.know_labels(known)

    # ---- the batch generator asks

    @property
    def scores_unseen(self) -> bool:
        """Whether instances are filtered that the model has not seen."""
        judges_by_class = self.policy.scores_unseen and self.store is not None and self.store.labels_from is not None
        return self.policy.needs_scores and (self.assistant.scores_unseen or judges_by_class)

    @property
    @override
    def is_ready(self) -> bool:
        return self.store is not None

    @override
    def keeps_pass(self, pass_index: int) -> bool:
        return pass_index == 0 and not self.scores_unseen

    @override
    def keep_probability(self, indices: IndexArray) -> Probabilities:
        everything = np.ones(len(indices), np.float32)
        if self.store is None:
            return everything
        rows = self.store.places(torch.from_numpy(indices))
        knows = self.store.holds if self.assistant.scores_unseen else self.store.knows
        known = knows(rows, self.assistant.required_columns)
        if known.all():
            return self._chances(self._predicted(self.store, rows), self._of_policy(self.store, rows))
        scores, judged = self._scores_of_some(self.store, rows, known.numpy())
        # Policies compare scores with each other, so that they get none of instances that have none.
        if judged.all():
            return self._chances(torch.from_numpy(scores), self._of_policy(self.store, rows))
        if judged.any():
            places = np.flatnonzero(judged)
            chosen = self._of_policy(self.store, torch.from_numpy(rows.numpy()[places]))
            everything[places] = self._chances(torch.from_numpy(scores[places]), chosen)
        return everything

    def _predicted(self, store: InstanceStore, rows: Tensor) -> Tensor:
        return self.assistant.predict(store.rows(rows, self.assistant.required_columns, "assistant"))

    def _scores_of_some(
        self, store: InstanceStore, rows: Tensor, known: npt.NDArray[np.bool_]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Scores of instances of which some have not been seen, and of which there is one; each of shape ``(n,)``."""
        scores, judged = np.full(len(rows), np.nan, np.float32), known.copy()
        seen, unseen = (np.flatnonzero(which) for which in (known, ~known))
        if len(seen):
            scores[seen] = self._predicted(store, torch.from_numpy(rows.numpy()[seen])).numpy()
        if self.policy.scores_unseen and store.labels is not None:
            of_class = self.policy.unseen_scores(self._of_policy(store, torch.from_numpy(rows.numpy()[unseen]))).numpy()
            scores[unseen], judged[unseen] = of_class, ~np.isnan(of_class)
        return scores, judged

    def _of_policy(self, store: InstanceStore, rows: Tensor) -> Instances:
        return store.rows(rows, columns_read(self.policy), "policy")

    def lacks_features(self, indices: IndexArray) -> bool:
        """Whether the Assistant reads features or tokens, and some of these instances have none yet."""
        if not self.assistant.needs_batches or self.store is None:
            return False
        places = self.store.places(torch.from_numpy(indices))
        return not self.store.knows(places, self.assistant.required_columns).all()

    # ---- the model answers

    def forget_labels(self) -> None:
        """Forget all labels: they turned out to be no property of the instances."""
        if self.store is not None:
            self.store.forget_labels()

    @override
    def learn(self, observed: PendingUpdate) -> None:
        assert self.store is not None
        store, indices = self.store, self.store.places(observed.indices)
        if observed.labels is not None:
            self._compare_labels(store, indices, observed.labels)
        self._count_unlabelled(is_labelled=observed.labels is not None or store.labels is not None)
        probs = torch.ones(len(indices)) if observed.probs is None else observed.probs
        are_numbers = np.isfinite(observed.losses.numpy()) & np.isfinite(observed.scores.numpy())
        are_finite, finite = bool(are_numbers.all()), torch.from_numpy(are_numbers)
        if store.dynamics is not None:
            store.dynamics.loss_source = observed.source
            store.dynamics.observe(visits_in(observed, indices, None if are_finite else finite))
        if not are_finite:
            # Neither learnt from nor dropped: kept again when it comes up, in the hope of a finite loss.
            store.forget(indices[~finite])
            self._report.count_nonfinite(int((~finite).sum()))
        if observed.features is not None:
            self._put_features(store, indices[finite], observed.features[finite])
        scores, labels = observed.scores, observed.labels
        if not are_finite or (self.assistant.needs_batches and self.policy.needs_scores):
            # A resumed run may have lost features of instances that the interrupted one was about to learn from.
            learnt = finite & store.holds(indices, self.assistant.required_columns)
            if not learnt.all():
                indices, scores, probs = indices[learnt], scores[learnt], probs[learnt]
                labels = None if labels is None else labels[learnt]
        if len(indices):
            if labels is not None and store.labels_from is None:  # others are there, and were compared with these
                store.put_labels(indices, labels)
            self._update(store, indices, scores, probs)

    def _update(self, store: InstanceStore, indices: Tensor, scores: Tensor, probs: Tensor) -> None:
        if not self.policy.needs_scores:  # somebody else wants to know of the losses
            store.put_scores(indices, scores)
            return
        # As remembered, before this batch.
        of_assistant = store.rows(indices, self.assistant.required_columns, "assistant")._replace(probs=probs)
        of_policy = self._of_policy(store, indices)._replace(probs=probs)
        store.put_scores(indices, scores)
        self._learn(of_assistant, of_policy, scores)

    # ---- dynamics

    def note_considered(self, indices: IndexArray, kept: npt.NDArray[np.bool_]) -> None:
        """Candidates of this process were kept or not; all of shape ``(n,)``."""
        if self.store is None or self.store.dynamics is None:
            return
        rows = self.store.places(torch.from_numpy(indices)).numpy()
        if self._waiting.is_alone:
            self.store.dynamics.count(rows, kept)
        else:
            self._candidates.add(rows, kept)

    def untold_candidates(self) -> dict[str, Tensor]:
        """Candidates of this process that the others have not been told of; they are, once they get this."""
        return self._candidates.packed()

    def note_told(self, told: Iterable[dict[str, Tensor]]) -> None:
        """All processes have told each other their :meth:`untold_candidates`."""
        self._candidates = Candidates()
        if self.store is None or self.store.dynamics is None:
            return
        for candidates in told:
            rows = self.store.places(candidates["rows"])
            self.store.dynamics.count(rows.numpy(), candidates["kept"].numpy())

    def _unlearnt(self) -> list[Visits]:
        """What steps showed that are still to be learnt from."""
        return [] if self.store is None else visits_of(self.store, self._waiting.known())

    def _put_features(self, store: InstanceStore, indices: Tensor, features: Tensor) -> None:
        if "tokens" in self.assistant.required_columns:
            store.put_tokens(indices, features)
            return
        if self._fresh is not None and store.features is not None and store.features.shape[1] != features.shape[1]:
            self._begin_features_anew(store, store.features.shape[1], features.shape[1])
        store.put_features(indices, features)

    def _begin_features_anew(self, store: InstanceStore, num_before: int, num_features: int) -> None:
        """Drop features of a checkpoint that another reduction has made, and what was learnt from them."""
        assert self._fresh is not None
        warnings.warn(
            f"an instance has {num_features} features, and had {num_before} in the checkpoint: the features, the "
            "Assistant and the policy's statistics begin anew, and everything else is restored",
            stacklevel=2,
        )
        store.forget_features()
        assistant, policy = copy.deepcopy(self._fresh)
        self.assistant.load_state_dict(assistant)
        self.policy.load_state_dict(policy)
        self._waiting.keep_features_of(num_features)

    def _compare_labels(self, store: InstanceStore, indices: Tensor, labels: Tensor) -> None:
        """Forget what a checkpoint or the data set tells of other labels than the loss has."""
        if store.labels_from == "given":
            return
        if store.labels_from == "data" and not store.has_labels(indices, labels):
            warnings.warn(
                "the labels in the data set are not the targets of the loss, so instances are kept until the model "
                "has seen them; write AutoAssistDataModule(data, labels=...) to give the class of each",
                stacklevel=2,
            )
            store.forget_unseen_labels()
        warning = self._labels.warning(store, indices, labels)
        if warning is not None:
            warnings.warn(warning, stacklevel=2)
            store.forget_everything()
