"""What is remembered of the instances, what the Assistant makes of it, and what it learns.

Shapes: N data set, B batch, n candidates, F features.
"""

from __future__ import annotations

import functools
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_autoassist.assistants import Assistant, BatchReader
from lightning_autoassist.candidates import Draw, IndexArray, Rows
from lightning_autoassist.distributed import Ranks
from lightning_autoassist.feature_file import FeaturePlace
from lightning_autoassist.features import InstanceStore
from lightning_autoassist.jobs import Jobs
from lightning_autoassist.loss_capture import Observation
from lightning_autoassist.policies import Policy
from lightning_autoassist.report import FilterReport
from lightning_autoassist.row_learner import RowLearner

# Labels that tell whether a checkpoint is of this data set.
MIN_COMPARED = 64
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
        feature_memory: See :class:`~lightning_autoassist.features.InstanceStore`.
        exchange_every: Steps between two exchanges with the other processes, where there are any.

    Attributes:
        jobs: Where it learns; whatever is asked in the training loop waits for what was submitted before.
        store: What is remembered; None before the first batch, and where the policy needs no scores.
        rows: The same for streams, of whose instances nothing is remembered.
        is_filtering: False once something went wrong.
        reason: What went wrong; of losses that cannot be told apart, until some can be.
        progress: Share of training that is done.
        has_other_terms: Whether some process's loss has terms beside the instances' own.
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
    ) -> None:
        self.assistant = assistant
        self.policy = policy
        self.report = report
        self.tail = tail
        self.store: InstanceStore | None = None
        self.rows = RowLearner(assistant, policy, features)
        self.jobs = Jobs()
        self.is_filtering = policy.needs_scores
        self.reason: str | None = None
        self.progress = 0.0
        self.has_other_terms = False
        self.exchange_every = exchange_every
        self._ranks = Ranks()
        self._num_untold = 0  # steps in a row
        self._has_told = self._is_untold_warned = False
        self._num_steps = 0
        self._pass_index = 0  # of the batch that was learnt from last
        self._features = features
        self._feature_memory = feature_memory
        self._pending: deque[Observed] = deque()  # younger than the lag
        self._ready: list[Observed] = []  # to be learnt from at the next exchange
        self._restored: dict[str, Any] | None = None
        # Instances of a restored store whose labels were looked at, and of these those that have another; None: enough.
        self._compared: tuple[int, int] | None = None

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
        self.jobs.settle()
        own = {
            "pending": [on_host(observed)._asdict() for observed in self._pending],
            "ready": [on_host(observed)._asdict() for observed in self._ready],
            "is_filtering": self.is_filtering,
            "num_untold": self._num_untold,
            "has_told": self._has_told,
            "policy": self.policy.state_dict(),  # some policies compare the candidates that they are asked for
        }
        return {
            "assistant": self.assistant.state_dict(),
            "store": None if self.store is None else self.store.state_dict(),
            "label_column": self.rows.label_column.paths,
            "progress": self.progress,
            "num_steps": self._num_steps,
            "pass_index": self._pass_index,
            "ranks": self._ranks.gather(own),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`; what it remembers of instances, in :meth:`prepare`."""
        self.assistant.load_state_dict(state["assistant"])
        self.rows.label_column.paths = state["label_column"]
        self.progress = state["progress"]
        self._num_steps = state["num_steps"]
        self._pass_index = state["pass_index"]
        ranks = state["ranks"]
        own = ranks[self._ranks.rank % len(ranks)]
        self.is_filtering = own["is_filtering"]
        self._num_untold, self._has_told = own.get("num_untold", 0), own.get("has_told", False)
        self.policy.load_state_dict(own["policy"])
        self._forget_pending()
        if len(ranks) == self._ranks.world_size:
            self._pending.extend(Observed(**parts) for parts in own["pending"])
            self._ready.extend(Observed(**parts) for parts in own["ready"])
        self._restored, self.store = state["store"], None

    def prepare(self, num_instances: int, place: FeaturePlace) -> None:
        """Make room for the data set, before its first batch is drawn.

        Args:
            num_instances: N.
            place: For a feature file.
        """
        restored, self._restored = self._restored, None
        if self.store is not None and len(self.store) == num_instances:
            return
        if restored is not None and len(restored["seen"]) != num_instances:
            rank_zero_warn(
                f"the checkpoint remembers {len(restored['seen'])} instances, the data set has {num_instances}: "
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
        if not self.policy.needs_scores:
            return self.policy.keep_probability(torch.from_numpy(everything)).numpy()
        if not self.is_filtering or self.store is None:
            return everything
        with self.unfiltered_on_error():
            rows = torch.from_numpy(indices)
            knows = self.store.holds if self.judges_unseen else self.store.knows
            known = knows(rows, self.assistant.reads)
            if not known.any():
                return everything
            candidates = self.store.rows(rows, self.assistant.reads)
            probs = self.policy.keep_probability(self.assistant.predict(candidates))
            if self.policy.reads_labels and self.store.labels is not None:
                probs = self.policy.balance(probs, self.store.labels[rows])
            # A prediction that is not a number says nothing against the instance.
            return probs.where(known & ~probs.isnan(), 1.0).numpy()
        return everything

    def keep_rows(self, rows: Rows, pass_index: int) -> npt.NDArray[np.floating[Any]]:
        """Chances of a stream's rows, shape ``(n,)``; there is no unseen one to be kept."""
        self.jobs.settle()
        if self.progress <= 1 - self.tail and (self.is_filtering or not self.policy.needs_scores):
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
        if not self.assistant.reads_batches or self.store is None:
            return False
        return not self.store.knows(torch.from_numpy(indices), self.assistant.reads).all()

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

    def end_step(self, observed: Observed | None, *, lag: int, progress: float, has_other_terms: bool) -> None:
        """Let the Assistant learn from what is older than ``lag`` steps; all processes must call this at every step.

        Args:
            observed: This step's answer; None where there is none.
            lag: In steps.
            progress: Share of training that is done.
            has_other_terms: Whether the loss had terms beside the instances' own.
        """
        self.progress = progress
        if not self.policy.needs_scores:
            return
        self.has_other_terms |= has_other_terms
        self._num_steps += 1
        if observed is not None:
            self._pending.append(observed)
            while len(self._pending) > lag:
                self._ready.append(self._pending.popleft())
        if self._ranks.world_size > 1 and self._num_steps % self.exchange_every:
            return
        ready, self._ready = [on_host(observed) for observed in self._ready], []
        told = self._ranks.gather((ready, self.has_other_terms))
        self.has_other_terms = any(others for _, others in told)
        for by_rank, _ in told:
            for one in by_rank:
                if self.is_filtering:
                    self._learn(one)

    def _learn(self, observed: Observed) -> None:
        """Let the Assistant learn from one batch of the Boss."""
        if observed.pass_index > self._pass_index:  # of several processes, the first to get there
            self._pass_index = observed.pass_index
            self.assistant.begin_pass()
        if observed.integers is not None:
            self._learn_from_rows(observed, observed.integers)
            return
        assert self.store is not None
        indices, losses, scores = observed.indices, observed.losses, observed.scores
        if observed.labels is not None:
            self._compare_labels(self.store, indices, observed.labels)
        finite = losses.isfinite() & scores.isfinite()
        if not finite.all():
            # Neither learnt from nor dropped: kept again when it comes up, in the hope of a finite loss.
            self.store.forget(indices[~finite])
            self.report.count_nonfinite(int((~finite).sum()))
        if observed.features is not None:
            put = self.store.put_tokens if "tokens" in self.assistant.reads else self.store.put_features
            put(indices[finite], observed.features[finite])
        # A resumed run may have lost features of instances that the interrupted one was about to learn from.
        learnt = finite & self.store.holds(indices, self.assistant.reads)
        indices, scores = indices[learnt], scores[learnt]
        if not len(indices):
            return
        if observed.labels is not None:
            self.store.put_labels(indices, observed.labels[learnt])
        instances = self.store.rows(indices, self.assistant.reads)  # as remembered, before this batch
        self.store.put_scores(indices, scores)
        outcome = self.assistant.update(instances, scores)
        self.policy.observe(outcome.predictions, outcome.targets)
        self.report.count_outcome(outcome)

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

    @contextmanager
    def unfiltered_on_error(self) -> Iterator[None]:
        """Go on unfiltered, with a warning, where what is inside fails."""
        try:
            yield
        except Exception as error:  # whatever it is, it must not cost the user the run
            self.stop_filtering(f"{type(error).__name__}: {error}")

    def note_told(self) -> None:
        """The losses of a step were told apart by instances."""
        self._num_untold, self._has_told, self.reason = 0, True, None

    def pass_unfiltered(self, reason: str) -> None:
        """Learn nothing from a step whose losses cannot be told apart; after many in a row, stop filtering.

        Args:
            reason: Why they cannot be told apart, with the ways out.
        """
        self._num_untold += 1
        count = self._num_untold
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


def to_host(draw: Draw, observation: Observation, features: Tensor | None) -> Observed:
    """Start the copies to the CPU; on CUDA none of them is waited for."""
    on_cuda = observation.losses.is_cuda

    def started(tensor: Tensor) -> Tensor:
        return tensor.to("cpu", non_blocking=on_cuda)

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
    if observed.arrived is not None:
        observed.arrived.synchronize()
    return observed._replace(arrived=None)
