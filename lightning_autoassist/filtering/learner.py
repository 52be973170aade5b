"""What is remembered of the instances, what the Assistant makes of it, and what it learns.

Shapes: N data set, B batch, n candidates, F features.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections import deque
from collections.abc import Collection
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_autoassist.capture.observation import Observation
from lightning_autoassist.filtering.assistants.base import Assistant, BatchReader
from lightning_autoassist.filtering.guard import Guard
from lightning_autoassist.filtering.memory.feature_file import FeaturePlace
from lightning_autoassist.filtering.memory.store import InstanceStore
from lightning_autoassist.filtering.policies.base import Policy
from lightning_autoassist.filtering.reporting.metrics import FilterReport
from lightning_autoassist.filtering.row_learner import RowLearner
from lightning_autoassist.filtering.sampling.candidates import Draw, Rows
from lightning_autoassist.trainer_support.arrays import IndexArray
from lightning_autoassist.trainer_support.executors import Jobs
from lightning_autoassist.trainer_support.process_group import Ranks

# Labels that tell whether a checkpoint is of this data set.
MIN_COMPARED = 64
# Most batches that wait to be learnt from together, where no other process waits for what they showed: one after the
# other takes half as long as one a step. Nobody can tell the difference: who asks has them learnt from before.
LEARNT_TOGETHER = 8
# So many steps in a row whose losses cannot be told apart end filtering; so many at the start are reported.
MAX_UNTOLD, FIRST_UNTOLD = 50, 3


class Observed(NamedTuple):
    """One step's observation on its way from the Boss's device to the Assistant."""

    indices: Tensor
    losses: Tensor
    scores: Tensor
    labels: Tensor | None
    features: Tensor | None
    integers: dict[str, Tensor] | None  # of a stream's batch, whose indices name no instances
    arrived: torch.cuda.Event | None  # None: the tensors are on the CPU
    pass_index: int = 0


class Learner:
    """Remembers the Boss's answers, lets the Assistant learn from them, and turns its predictions into chances.

    Args:
        assistant: Predicts scores.
        policy: Turns them into keep probabilities.
        features: Takes from a batch what the Assistant reads of it.
        report: Counts what was learnt.
        tail: Share of training at whose end every candidate is kept.
        feature_memory: See ``InstanceStore``.
        exchange_every: Steps between two exchanges with the other processes, where there are any.
        watches_losses: Whether the Boss's losses are captured, for scores or for weights.

    Attributes:
        jobs: Where it learns; whatever is asked in the training loop waits for what was submitted before.
        store: What is remembered; None before the first batch, and where the policy needs no scores.
        rows: The same for streams, of whose instances nothing is remembered.
        is_filtering: False once something went wrong.
        reason: What went wrong; of losses that cannot be told apart, until some can be.
        progress: Share of training that is done.
        has_other_terms: Whether some process's loss has terms beside the instances' own.
        refuses_labels: Whether some process's targets are no property of the instances.
    """

    def __init__(
        self,
        assistant: Assistant,
        policy: Policy,
        features: BatchReader,
        report: FilterReport,
        *,
        tail: float,
        feature_memory: int,
        exchange_every: int,
        watches_losses: bool = True,
    ) -> None:
        self.assistant = assistant
        self.policy = policy
        self.report = report
        self.tail = tail
        self.store: InstanceStore | None = None
        self.rows = RowLearner(assistant, policy, features)
        self.jobs = Jobs()
        self.watches_losses = watches_losses
        self.is_filtering = watches_losses
        self.reason: str | None = None
        self.progress = 0.0
        self.has_other_terms = False
        self.refuses_labels = False
        self.exchange_every = exchange_every
        self._ranks = Ranks()
        self._guard = Guard(self.stop_filtering)
        self._num_untold = 0  # steps in a row
        self._has_told = self._is_untold_warned = False
        self._is_told = True  # False while no step's losses could be told apart: nothing is weighted then, nor dropped
        self._num_steps = 0
        self._pass_index = 0  # of the batch that was learnt from last
        self._features = features
        self._feature_memory = feature_memory
        self._pending: deque[Observed] = deque()  # younger than the lag
        self._ready: list[Observed] = []  # to be learnt from at the next exchange
        self._restored: dict[str, Any] | None = None
        # Instances of a restored store whose labels were looked at, and of these those that have another; None: enough.
        self._compared: tuple[int, int] | None = None
        # Of the Assistant and the policy before a checkpoint was restored, while its features are still to be compared.
        self._fresh: tuple[dict[str, Any], dict[str, Any]] | None = None

    def use(self, assistant: Assistant, features: BatchReader) -> None:
        """Take another Assistant than at first, before anything was asked."""
        self.assistant, self._features = assistant, features
        self.rows = RowLearner(assistant, self.policy, features)

    def join(self, ranks: Ranks) -> None:
        """Learn from what all of ``ranks`` see, beginning with one Assistant; all processes must call this."""
        self._ranks = ranks
        if ranks.world_size > 1:
            self.assistant.load_state_dict(ranks.shared(self.assistant.state_dict()))

    def state_dict(self) -> dict[str, Any]:
        """State of all processes, which must all call this, as tensors and builtins."""
        self.settle()
        own = {
            "pending": [on_host(observed)._asdict() for observed in self._pending],
            "ready": [on_host(observed)._asdict() for observed in self._ready],
            "is_filtering": self.is_filtering,
            "watches_losses": self.watches_losses,
            "reason": self.reason,
            "num_untold": self._num_untold,
            "is_told": self._is_told,
            "has_told": self._has_told,
            "policy": self.policy.state_dict(),  # some policies compare the candidates that they are asked for
        }
        return {
            "assistant": self.assistant.state_dict(),
            "store": self._restored if self.store is None else self.store.state_dict(),
            "label_column": self.rows.label_column.paths,
            "progress": self.progress,
            "num_steps": self._num_steps,
            "pass_index": self._pass_index,
            "has_other_terms": self.has_other_terms,
            "ranks": self._ranks.gather(own),
        }

    def load_state_dict(self, state: dict[str, Any], differing: Collection[str] = ()) -> list[str]:
        """Restore :meth:`state_dict`; what it remembers of instances, in :meth:`prepare`.

        Args:
            state: What was saved.
            differing: Settings that are other ones now, of ``{"policy", "assistant", "score", "features"}``.

        Returns:
            What of the state does not fit them, in words.
        """
        self.rows.label_column.paths = state["label_column"]
        self.progress = state["progress"]
        self._num_steps = state["num_steps"]
        self._pass_index = state["pass_index"]
        self.has_other_terms = state["has_other_terms"]
        ranks = state["ranks"]
        own = ranks[self._ranks.rank % len(ranks)]
        lost = self._load_parts(state["assistant"], own["policy"], differing)
        # A run whose losses were not watched says nothing about whether they can be.
        if own["watches_losses"] and not {"policy", "assistant", "features"} & set(differing):
            self.is_filtering, self.reason = own["is_filtering"], own["reason"]
            self._num_untold, self._has_told, self._is_told = (
                own[name] for name in ("num_untold", "has_told", "is_told")
            )
        self._forget_pending()
        self._restored, self.store = state["store"], None
        lost += self._drop_unfit(differing)
        if len(ranks) == self._ranks.world_size and self.policy.needs_scores and not lost:
            self._pending.extend(Observed(**parts) for parts in own["pending"])
            self._ready.extend(Observed(**parts) for parts in own["ready"])
        return lost

    def _load_parts(self, assistant: Any, policy: Any, differing: Collection[str]) -> list[str]:
        """Restore Assistant and policy, each if it is of the kind that it was; returns which are not."""
        self._fresh = copy.deepcopy((self.assistant.state_dict(), self.policy.state_dict()))
        lost = []
        fits = not {"assistant", "score", "features"} & set(differing)
        if not (fits and _is_loaded(self.assistant, assistant)):
            fits = False
            lost.append("the Assistant")
        if not (fits and "policy" not in differing and _is_loaded(self.policy, policy)):
            lost.append("the policy's statistics")
        return lost if self.policy.needs_scores else []

    def _drop_unfit(self, differing: Collection[str]) -> list[str]:
        """Drop what a checkpoint remembers of instances and this run cannot read; returns what that was."""
        restored = self._restored
        lost: list[str] = []
        if restored is None:
            return lost
        if "score" in differing:
            restored["seen"].zero_()
            restored["observed_at"].fill_(-1)
            restored["scores"].zero_()
            lost.append("the instances' scores")
        has_tokens = restored["tokens"] is not None
        is_other_kind = self.assistant.reads_batches and has_tokens != ("tokens" in self.assistant.reads)
        if restored["has_features"].any() and ("features" in differing or is_other_kind):
            restored["has_features"].zero_()
            restored.update(features=None, feature_file=None, tokens=None)
            lost.append("the instances' features")
        return lost

    def prepare(self, num_instances: int, place: FeaturePlace) -> None:
        """Make room for the data set, before its first batch is drawn.

        Args:
            num_instances: N.
            place: For a feature file.
        """
        restored, self._restored = self._restored, None
        self.policy.prepare(-(-num_instances // self._ranks.world_size))
        if self.store is not None and self.store.num_instances == num_instances:
            return
        if restored is not None and restored["num_instances"] != num_instances:
            rank_zero_warn(
                f"the checkpoint remembers {restored['num_instances']} instances, the data set has {num_instances}: "
                "what was remembered of them is dropped, every instance is kept until it was seen again"
            )
            self._forget_pending()
            restored = None
        self.store = InstanceStore(num_instances, self._feature_memory, place)
        if restored is not None:
            self.store.load_state_dict(restored)
            self._compared = 0, 0

    # ---- the batch generator asks

    @property
    def judges_unseen(self) -> bool:
        """Whether instances are filtered that the Boss has not seen."""
        return self.policy.needs_scores and self.assistant.judges_unseen

    def keep_probability(self, indices: IndexArray, pass_index: int) -> npt.NDArray[np.floating[Any]]:
        """Chances of candidates, shape ``(n,)``: 1 in the first pass, for unseen instances, when not filtering.

        Where the Assistant judges unseen instances, the first pass is one like the others.
        """
        everything = np.ones(len(indices), np.float32)
        if (pass_index == 0 and not self.judges_unseen) or self.progress > 1 - self.tail:
            return everything
        if self.watches_losses and not (self.is_filtering and self._is_told):
            return everything
        if not self.policy.needs_scores:
            return self.policy.keep_probability(torch.from_numpy(everything)).numpy()
        if self.store is None:
            return everything
        self.settle()
        with self.unfiltered_on_error():
            rows = self.store.places(torch.from_numpy(indices))
            knows = self.store.holds if self.judges_unseen else self.store.knows
            known = knows(rows, self.assistant.reads)
            if known.all():
                return self._chances(self.store, rows).numpy()
            # Policies compare scores with each other, so that they get none of instances that have none.
            if known.any():
                everything[known.numpy()] = self._chances(self.store, rows[known]).numpy()
        return everything

    def _chances(self, store: InstanceStore, rows: Tensor) -> Tensor:
        """What Assistant and policy make of instances that are known, shape ``(n,)``."""
        probs = self.policy.keep_probability(self.assistant.predict(store.rows(rows, self.assistant.reads)))
        if self.policy.reads_labels and store.labels is not None:
            probs = self.policy.balance(probs, store.labels[rows])
        # A prediction that is not a number says nothing against the instance.
        return probs.where(~probs.isnan(), 1.0)

    def keep_rows(self, rows: Rows, pass_index: int) -> npt.NDArray[np.floating[Any]]:
        """Chances of a stream's rows, shape ``(n,)``; there is no unseen one to be kept."""
        self.settle()
        if self.progress <= 1 - self.tail and ((self.is_filtering and self._is_told) or not self.watches_losses):
            with self.unfiltered_on_error():
                return self.rows.keep_probability(rows)
        return np.ones(rows.size, np.float32)

    def row_features(self, batch: Any, num_rows: int) -> Tensor | None:
        """Features of a stream's batch, shape ``(n, F)``; None where nobody reads them."""
        if self.is_filtering and self.rows.reads_features:
            with self.unfiltered_on_error():
                return self.rows.features(batch, num_rows)
        return None

    # ---- the Boss answers

    def lacks_features(self, indices: IndexArray) -> bool:
        """Whether the Assistant reads features or tokens, and some of these instances have none yet."""
        if not self.assistant.reads_batches or self.store is None or not self.is_filtering:
            return False
        with self.unfiltered_on_error():
            places = self.store.places(torch.from_numpy(indices))
            return not self.store.knows(places, self.assistant.reads).all()
        return False

    def new_features(self, draw: Draw, batch: Any) -> Tensor | None:
        """Features of the batch, where they are still to be had."""
        if draw.rows is not None:
            return draw.rows.features
        if not draw.lacks_features or not self.assistant.reads_batches:
            return None
        with self.unfiltered_on_error():
            features = self._features(batch, len(draw.indices))
            if features is None:
                raise ValueError("the batch holds no tensor with one row an instance; pass features=")
            return features
        return None

    def end_step(
        self,
        observed: Observed | None,
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
            self._pending.append(observed)
            while len(self._pending) > lag:
                self._ready.append(self._pending.popleft())
        if self._ranks.world_size == 1:
            self._drop_refused_labels()
            if len(self._ready) >= LEARNT_TOGETHER:
                self._catch_up()
        elif self._num_steps % self.exchange_every == 0:
            self._exchange()

    def settle(self) -> None:
        """Have everything learnt that is due, before somebody looks."""
        self.jobs.submit(self._catch_up)
        self.jobs.settle()

    def _catch_up(self) -> None:
        """Learn from the batches that wait; several processes do so when they exchange them."""
        if self._ranks.world_size == 1 and self._ready:
            with self.unfiltered_on_error():
                self._learn_in_turn([self._ready])

    def _exchange(self) -> None:
        ready = [on_host(observed) for observed in self._ready]
        told = self._ranks.gather((ready, self.has_other_terms, self.refuses_labels))
        self.has_other_terms = any(others for _, others, _ in told)
        self.refuses_labels = any(refuses for _, _, refuses in told)
        self._drop_refused_labels()
        self._learn_in_turn([by_rank for by_rank, *_ in told])

    def _drop_refused_labels(self) -> None:
        if self.refuses_labels and self.store is not None:
            self.store.labels = None

    def _learn_in_turn(self, ready: list[list[Observed]]) -> None:
        self._ready = []
        for observed in chain.from_iterable(ready):
            if self.is_filtering:
                self._learn(on_host(observed))

    def _learn(self, observed: Observed) -> None:
        """Let the Assistant learn from one batch of the Boss."""
        if self.refuses_labels:
            observed = observed._replace(labels=None)
        if observed.pass_index > self._pass_index:  # of several processes, the first to get there
            self._pass_index = observed.pass_index
            self.assistant.begin_pass()
        if observed.integers is not None:
            self._learn_from_rows(observed, observed.integers)
            return
        assert self.store is not None
        indices, losses, scores = self.store.places(observed.indices), observed.losses, observed.scores
        if observed.labels is not None and self._compared is not None:
            self._compare_labels(self.store, indices, observed.labels)
        finite = torch.from_numpy(np.isfinite(losses.numpy()) & np.isfinite(scores.numpy()))
        are_finite = bool(finite.all())
        if not are_finite:
            # Neither learnt from nor dropped: kept again when it comes up, in the hope of a finite loss.
            self.store.forget(indices[~finite])
            self.report.count_nonfinite(int((~finite).sum()))
        if observed.features is not None:
            self._put_features(self.store, indices[finite], observed.features[finite])
        labels = observed.labels
        if not are_finite or self.assistant.reads_batches:
            # A resumed run may have lost features of instances that the interrupted one was about to learn from.
            learnt = finite & self.store.holds(indices, self.assistant.reads)
            if not learnt.all():
                indices, scores = indices[learnt], scores[learnt]
                labels = None if labels is None else labels[learnt]
        if not len(indices):
            return
        if labels is not None:
            self.store.put_labels(indices, labels)
        instances = self.store.rows(indices, self.assistant.reads)  # as remembered, before this batch
        self.store.put_scores(indices, scores)
        outcome = self.assistant.update(instances, scores)
        self.policy.observe(outcome.predictions, outcome.targets)
        self.report.count_outcome(outcome)

    def _put_features(self, store: InstanceStore, indices: Tensor, features: Tensor) -> None:
        if "tokens" in self.assistant.reads:
            store.put_tokens(indices, features)
            return
        if self._fresh is not None and store.features is not None and store.features.shape[1] != features.shape[1]:
            self._begin_features_anew(store, features.shape[1])
        store.put_features(indices, features)

    def _begin_features_anew(self, store: InstanceStore, num_features: int) -> None:
        """Drop features of a checkpoint that another reduction has made, and what was learnt from them."""
        assert self._fresh is not None
        assert store.features is not None
        warnings.warn(
            f"an instance has {num_features} features, and had {store.features.shape[1]} in the checkpoint: the "
            "features, the Assistant and the policy's statistics begin anew, all else of the checkpoint is restored",
            stacklevel=2,
        )
        store.forget_features()
        assistant, policy = copy.deepcopy(self._fresh)
        self.assistant.load_state_dict(assistant)
        self.policy.load_state_dict(policy)
        for waiting in (self._pending, self._ready):
            fitting = [one for one in waiting if one.features is None or one.features.shape[1] == num_features]
            waiting.clear()
            waiting.extend(fitting)

    def _compare_labels(self, store: InstanceStore, indices: Tensor, labels: Tensor) -> None:
        """Forget what a checkpoint remembers of another data set, which its labels give away."""
        if self._compared is None or store.labels is None:
            return
        seen = store.seen[indices]
        differ = (store.labels[indices] != labels) & seen
        num_compared, num_differing = self._compared[0] + int(seen.sum()), self._compared[1] + int(differ.sum())
        self._compared = num_compared, num_differing
        if num_compared < MIN_COMPARED:
            return
        self._compared = None
        if num_differing > num_compared / 4:
            warnings.warn(
                f"of {num_compared} instances that the checkpoint remembers {num_differing} have another label now: it "
                "is of another data set, or of another order of it. What was remembered is dropped, every instance is "
                "kept until it was seen again",
                stacklevel=2,
            )
            store.forget_everything()

    def _learn_from_rows(self, observed: Observed, integers: dict[str, Tensor]) -> None:
        """The same for a stream's batch."""
        scores = observed.scores.where(observed.losses.isfinite(), torch.nan)
        self.report.count_nonfinite(int((~scores.isfinite()).sum()))
        outcome = self.rows.learn(observed.features, integers, observed.labels, scores)
        if outcome is not None:
            self.report.count_outcome(outcome)

    # ---- when something goes wrong

    def unfiltered_on_error(self) -> Guard:
        """Go on unfiltered, with a warning, where what is inside fails."""
        return self._guard

    def note_told(self) -> None:
        """The losses of a step were told apart by instances."""
        if self._num_untold and not self._has_told:
            self.jobs.submit(functools.partial(self._set_told, True))
        self._num_untold, self._has_told = 0, True
        if self.is_filtering:
            self.reason = None

    def _set_told(self, is_told: bool) -> None:
        self._is_told = is_told

    def pass_unfiltered(self, reason: str) -> None:
        """Learn nothing from a step whose losses cannot be told apart; after many in a row, stop filtering.

        Args:
            reason: Why they cannot be told apart, with the ways out.
        """
        self._num_untold += 1
        count = self._num_untold
        if count == 1 and not self._has_told:
            self.jobs.submit(functools.partial(self._set_told, False))
        if self._has_told:
            if count == MAX_UNTOLD:
                self.stop_filtering(f"The losses of {count} steps in a row could not be told apart. {reason}")
            elif not self._is_untold_warned:
                self._is_untold_warned = True
                warnings.warn(
                    "the losses of a step could not be told apart by instances. Such steps are trained on and nothing "
                    f"is learnt from them; filtering goes on, and stops after {MAX_UNTOLD} of them in a row. {reason}",
                    stacklevel=2,
                )
        elif count == MAX_UNTOLD:
            self.jobs.submit(self._give_up)
        elif count == FIRST_UNTOLD:
            self.reason, self._is_untold_warned = reason, True
            _warn_of_stop(
                f"The losses of the first {count} steps could not be told apart by instances; filtering begins if this "
                f"changes within {MAX_UNTOLD} steps. {reason}"
            )

    def stop_filtering(self, reason: str) -> None:
        """Keep every instance from now on, with one warning."""
        self.jobs.submit(functools.partial(self._stop_filtering, reason))

    def _stop_filtering(self, reason: str) -> None:
        if self.is_filtering:
            self._give_up()
            self.reason = reason
            _warn_of_stop(reason)

    def _give_up(self) -> None:
        self.is_filtering = False
        self._forget_pending()

    def _forget_pending(self) -> None:
        self._pending.clear()
        self._ready.clear()


def _warn_of_stop(reason: str) -> None:
    # Not on rank zero alone: it may be another process that fails.
    warnings.warn(f"AutoAssist stopped filtering, training goes on with every instance. {reason}", stacklevel=2)


def _is_loaded(part: Assistant | Policy, state: dict[str, Any]) -> bool:
    """Whether an Assistant or a policy takes a state; it is what it was where it does not."""
    before = copy.deepcopy(part.state_dict())
    try:
        part.load_state_dict(state)
    except Exception:  # whatever it is, it must not cost the user the run
        part.load_state_dict(before)
        return False
    return True


def to_host(draw: Draw, observation: Observation, features: Tensor | None) -> Observed:
    """Start the copies to the CPU; on CUDA none of them is waited for."""
    on_cuda = observation.losses.is_cuda

    def started(tensor: Tensor) -> Tensor:
        return tensor if tensor.device.type == "cpu" else tensor.to("cpu", non_blocking=on_cuda)

    return Observed(
        indices=torch.from_numpy(draw.indices),
        losses=started(observation.losses),
        scores=started(observation.scores),
        labels=None if observation.labels is None else started(observation.labels),
        features=None if features is None else started(features),
        integers=None if draw.rows is None else draw.rows.integers,
        arrived=torch.cuda.current_stream(observation.losses.device).record_event() if on_cuda else None,
        pass_index=draw.pass_index,
    )


def on_host(observed: Observed) -> Observed:
    """The same with its copies arrived."""
    if observed.arrived is None:
        return observed
    observed.arrived.synchronize()
    return observed._replace(arrived=None)
