"""When the Assistant is asked and when it learns, in one process or several.

Shapes: N data set, B batch, n candidates, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from lightning_autoassist.filtering.assistants.base import Assistant, BatchReader
from lightning_autoassist.filtering.assistants.logistic import LogisticAssistant
from lightning_autoassist.filtering.filter_status import FilterStatus
from lightning_autoassist.filtering.instance_memory import InstanceMemory
from lightning_autoassist.filtering.memory.feature_file import FeaturePlace
from lightning_autoassist.filtering.memory.store import InstanceStore, LabelSource
from lightning_autoassist.filtering.names import ReweightingName
from lightning_autoassist.filtering.policies.base import Policy
from lightning_autoassist.filtering.reporting.loggers import RunLog
from lightning_autoassist.filtering.reporting.metrics import FilterReport
from lightning_autoassist.filtering.sampling.candidates import SelectedBatch
from lightning_autoassist.filtering.sampling.selection import Probabilities, Rows, Selector
from lightning_autoassist.filtering.stored_instances import StoredInstances
from lightning_autoassist.filtering.streamed_instances import StreamedInstances, warn_of_no_dynamics
from lightning_autoassist.filtering.waiting_steps import PendingUpdate, WaitingSteps, on_host
from lightning_autoassist.trainer_support.arrays import IndexArray
from lightning_autoassist.trainer_support.executors import InlineExecutor
from lightning_autoassist.trainer_support.process_group import Ranks

# Most batches that wait to be learnt from together, where no other process waits for what they showed: one after the
# other takes half as long as one a step. Nobody can tell the difference: who asks has them learnt from before.
LEARNT_TOGETHER = 8


class InstanceSelector(Selector):
    """Keeps instances by what the Assistant predicts, and lets it learn from the model's answers.

    Args:
        assistant: Predicts scores.
        policy: Turns them into keep probabilities.
        extractor: Gets an Assistant, returns the function that takes from a batch what that Assistant reads.
        report: Counts what was learnt.
        log: Counts what was considered.
        unfiltered_tail: Share of training at whose end every candidate is kept.
        feature_memory: See ``InstanceStore``.
        exchange_every: Steps between two exchanges with the other processes, where there are any.
        reweighting: See ``Selector``.
        suits_data: Whether a stream gets another Assistant, where this one cannot judge its rows.
        watches_losses: Whether the model's losses are captured, for scores, for weights or for training dynamics.
        dynamics: Whether training dynamics are kept; None: where the policy needs scores.

    Attributes:
        status: Whether there is any filtering, and why not.
        is_on_stream: Whether the candidates have no indices, so that nothing is remembered of them.
        progress: Share of training that is done.
        has_other_terms: Whether some process's loss has terms beside the instances' own.
        refuses_labels: Whether some process's targets are no property of the instances.
    """

    def __init__(
        self,
        assistant: Assistant,
        policy: Policy,
        extractor: Callable[[Assistant], BatchReader],
        report: FilterReport,
        log: RunLog,
        *,
        reweighting: ReweightingName,
        suits_data: bool = False,
        unfiltered_tail: float,
        feature_memory: int,
        exchange_every: int,
        watches_losses: bool = True,
        dynamics: bool | None = False,
    ) -> None:
        super().__init__(reweighting)
        self.assistant = assistant
        self.policy = policy
        self.keeps_everything = policy.keeps_everything
        self.report = report
        self.log = log
        self.unfiltered_tail = unfiltered_tail
        self.exchange_every = exchange_every
        self.watches_losses = watches_losses
        self.progress = 0.0
        self.has_other_terms = False
        self.refuses_labels = False
        self._waiting = WaitingSteps()
        self.status = FilterStatus(watches_losses, self._waiting.clear, only_observes=self._is_blind)
        self._dynamics = dynamics
        parts = assistant, policy, extractor(assistant), report
        self._stored = StoredInstances(*parts, self._waiting, feature_memory, self.keeps_dynamics)
        self._streamed = StreamedInstances(*parts)
        self.is_on_stream = False
        self._extractor, self._suits_data = extractor, suits_data
        self._ranks = Ranks()
        self._feature_place: Callable[[], FeaturePlace] = FeaturePlace
        self._num_steps = 0
        self._pass_index = 0  # of the batch that was learnt from last

    @property
    def is_filtering(self) -> bool:
        """False once something went wrong."""
        return self.status.is_filtering

    @property
    def reason(self) -> str | None:
        """What went wrong; where losses could not be assigned to instances, until some can be."""
        return self.status.reason

    @property
    def store(self) -> InstanceStore | None:
        """What is remembered; None before the first batch, and where the policy needs no scores."""
        return self._stored.store

    def suit_stream(self) -> None:
        """Take an Assistant that can judge a stream's rows, before anything was asked, unless the user chose one."""
        self.is_on_stream = True
        if self._suits_data and self._streamed.refusal is not None:
            self.assistant = LogisticAssistant()
            for memory in (self._stored, self._streamed):
                memory.use(self.assistant, self._extractor(self.assistant))

    def join(self, ranks: Ranks, feature_place: Callable[[], FeaturePlace]) -> None:
        """Learn from what all of ``ranks`` see, beginning with one Assistant; all processes must call this.

        Args:
            ranks: The processes.
            feature_place: Says where a feature file may lie, once training has begun.
        """
        self._ranks, self._feature_place = ranks, feature_place
        self._waiting.is_alone = ranks.world_size == 1
        if ranks.world_size > 1:
            self.assistant.load_state_dict(ranks.broadcast_object(self.assistant.state_dict()))

    def work_in(self, jobs: InlineExecutor) -> None:
        """Learn in ``jobs``; whatever is asked in the training loop waits for what was submitted there before."""
        self.status.jobs = jobs

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        """State of all processes, which must all call this, as tensors and builtins."""
        self.wait_all()
        self._tell_candidates()
        own = {
            **self._waiting.state_dict(),
            **self.status.state_dict(),
            "watches_losses": self.watches_losses,
            "policy": self.policy.state_dict(),  # some policies compare the candidates that they are asked for
        }
        return {
            "assistant": self.assistant.state_dict(),
            "store": self._stored.state_dict(),
            "label_column": self._streamed.label_column.paths,
            "progress": self.progress,
            "num_steps": self._num_steps,
            "pass_index": self._pass_index,
            "has_other_terms": self.has_other_terms,
            "ranks": self._ranks.gather(own),
        }

    def load_state_dict(self, state: dict[str, Any], differing: Collection[str] = ()) -> list[str]:
        """Restore :meth:`state_dict`; what it remembers of instances, in :meth:`begin`.

        Args:
            state: What was saved.
            differing: Settings that are other ones now, of ``{"policy", "assistant", "score", "features"}``.

        Returns:
            What of the state does not fit them, in words.
        """
        self._streamed.label_column.paths = state["label_column"]
        self.progress = state["progress"]
        self._num_steps = state["num_steps"]
        self._pass_index = state["pass_index"]
        self.has_other_terms = state["has_other_terms"]
        ranks = state["ranks"]
        own = ranks[self._ranks.rank % len(ranks)]
        lost = self._stored.load_state_dict(state["store"], (state["assistant"], own["policy"]), differing)
        # A run whose losses were not watched says nothing about whether they can be.
        if own["watches_losses"] and not {"policy", "assistant", "features"} & set(differing):
            self.status.load_state_dict(own)
        self._waiting.clear()
        if len(ranks) == self._ranks.world_size and self._remembers and not lost:
            self._waiting.load_state_dict(own)
        return lost + self._stored.lost_dynamics()

    # ---- the batch generator asks

    @property
    @override
    def jobs(self) -> InlineExecutor:
        return self.status.jobs

    @property
    @override
    def correction(self) -> float:  # type: ignore[override]
        return self.policy.current_correction()

    @override
    def begin(self, num_instances: int | None, labels: LabelSource | None = None) -> None:
        if num_instances is None:
            if not self.is_on_stream:
                warn_of_no_dynamics(self._dynamics)
            self.suit_stream()
            self._streamed.check_can_judge()
            return
        self.is_on_stream = False
        self.log.prepare(num_instances)
        if self.policy.needs_scores:
            self.policy.num_processes = self._ranks.world_size
            self.policy.prepare(-(-num_instances // self._ranks.world_size))
        if self._remembers:
            self._stored.prepare(num_instances, self._feature_place(), labels)

    @property
    def _is_blind(self) -> bool:
        """Whether what is kept and how it is weighted does not depend on losses."""
        return not self.policy.needs_scores and (self.keeps_everything or self.reweighting == "none")

    @property
    def keeps_dynamics(self) -> bool:
        """Whether training dynamics are kept of a data set's instances."""
        return self.policy.needs_scores if self._dynamics is None else self._dynamics

    @property
    def _remembers(self) -> bool:
        """Whether anything is remembered of the instances of a data set."""
        return self.policy.needs_scores or self.keeps_dynamics

    @property
    def scores_unseen(self) -> bool:
        """Whether instances are filtered that the model has not seen."""
        return self._stored.scores_unseen

    @override
    def keep_probability(self, candidates: IndexArray | Rows, pass_index: int) -> Probabilities:
        """Chances of candidates, shape ``(n,)``: 1 in the first pass, for unseen instances, when not filtering.

        Where the Assistant judges unseen instances, the first pass is one like the others. A stream's rows are judged
        as they are: there is no unseen one to be kept.
        """
        memory: InstanceMemory = self._stored
        if isinstance(candidates, Rows):  # judged in the training loop, wherever batches are learnt from
            memory = self._streamed
            self.wait_all()
        self._note_progress(self.progress, pass_index)
        everything = np.ones(candidates.size, np.float32)
        if memory.keeps_pass(pass_index) or not self._judges_now():
            return everything
        with self.status.unfiltered_on_error:
            if not self.policy.needs_scores:
                return self.policy.keep_probability(torch.from_numpy(everything)).numpy()
            if memory.is_ready:
                self.wait_all()
                self._note_progress(self.progress, pass_index)  # again: what was learnt from is of earlier steps
                return memory.keep_probability(candidates)
        return everything

    def _note_progress(self, progress: float, pass_index: int) -> None:
        for part in (self.assistant, self.policy):
            part.note_progress(progress, pass_index)

    def _judges_now(self) -> bool:
        """Whether training is before its tail, and nothing has gone wrong."""
        is_on = self._is_blind or (self.status.is_filtering and self.status.is_told)
        return is_on and self.progress <= 1 - self.unfiltered_tail

    @override
    def row_features(self, batch: Any, num_rows: int) -> Tensor | None:
        if self.is_filtering:
            with self.status.unfiltered_on_error:
                return self._streamed.features(batch, num_rows)
        return None

    @override
    def lacks_features(self, indices: IndexArray) -> bool:
        if self.is_filtering:
            with self.status.unfiltered_on_error:
                return self._stored.lacks_features(indices)
        return False

    @override
    def note_considered(self, indices: IndexArray, probs: Any, kept: Any) -> None:
        self.log.count(indices, probs, kept)
        if self.keeps_dynamics and self.is_filtering:
            with self.status.unfiltered_on_error:
                self._stored.note_considered(indices, kept)

    # ---- the model answers

    def new_features(self, draw: SelectedBatch, batch: Any) -> Tensor | None:
        """Features of the batch, where they are still to be had."""
        if draw.rows is not None:
            return draw.rows.features
        if draw.lacks_features:
            with self.status.unfiltered_on_error:
                return self._stored.features(batch, len(draw.indices))
        return None

    def end_step(
        self,
        observed: PendingUpdate | None,
        *,
        lag: int,
        progress: float,
        has_other_terms: bool,
        refuses_labels: bool = False,
    ) -> None:
        """Let the Assistant learn from what is older than ``lag`` steps; all processes must call this at every step.

        Args:
            observed: This step's answer; None where there is none.
            lag: In steps.
            progress: Share of training that is done.
            has_other_terms: Whether the loss had terms beside the instances' own.
            refuses_labels: Whether the losses' targets are no property of the instances.
        """
        self.progress = progress
        if not self.watches_losses:
            return
        self.has_other_terms |= has_other_terms
        self.refuses_labels |= refuses_labels
        self._num_steps += 1
        if observed is not None:
            self._waiting.add(observed, lag)
        if self._ranks.world_size == 1:
            self._drop_refused_labels()
            if len(self._waiting.ready) >= LEARNT_TOGETHER:
                self._catch_up()
        elif self._num_steps % self.exchange_every == 0:
            self._exchange()

    def wait_all(self) -> None:
        """Have everything learnt that is due, before somebody looks."""
        self.status.jobs.submit(self._catch_up)
        self.status.jobs.wait_all()

    def _catch_up(self) -> None:
        """Learn from the batches that wait; several processes do so when they exchange them."""
        if self._ranks.world_size == 1 and self._waiting.ready:
            with self.status.unfiltered_on_error:
                self._learn_in_turn([self._waiting.take_ready()])

    def _exchange(self) -> None:
        # Taken only once they are exchanged: an exchange that fails leaves them waiting.
        ready = [on_host(observed) for observed in self._waiting.ready]
        candidates = self._stored.untold_candidates()
        told = self._ranks.gather((ready, self.has_other_terms, self.refuses_labels, candidates))
        self.has_other_terms = any(others for _, others, *_ in told)
        self.refuses_labels = any(refuses for _, _, refuses, _ in told)
        self._stored.note_told(candidates for *_, candidates in told)
        self._drop_refused_labels()
        self._waiting.take_ready()
        self._learn_in_turn([by_rank for by_rank, *_ in told])

    def _tell_candidates(self) -> None:
        if self.keeps_dynamics and self._ranks.world_size > 1:
            self._stored.note_told(self._ranks.gather(self._stored.untold_candidates()))

    def end_fit(self) -> None:
        """Training has ended: who looks now gets to know of all steps of all processes, which must all call this."""
        self.wait_all()
        self._tell_candidates()
        if self.keeps_dynamics and self._ranks.world_size > 1:
            self._waiting.of_all = list(chain.from_iterable(self._ranks.gather(self._waiting.all())))

    def _drop_refused_labels(self) -> None:
        if self.refuses_labels:
            self._stored.forget_labels()

    def _learn_in_turn(self, ready: list[list[PendingUpdate]]) -> None:
        for observed in chain.from_iterable(ready):
            if self.is_filtering:
                self._learn(on_host(observed))

    def _learn(self, observed: PendingUpdate) -> None:
        """Let the Assistant learn from one batch of the model."""
        if self.refuses_labels:
            observed = observed._replace(labels=None, others=None)
        if observed.pass_index > self._pass_index:  # of several processes, the first to get there
            self._pass_index = observed.pass_index
            self.assistant.begin_pass()
        self._note_progress(observed.progress, observed.pass_index)
        memory: InstanceMemory = self._stored if observed.integers is None else self._streamed
        memory.learn(observed)
