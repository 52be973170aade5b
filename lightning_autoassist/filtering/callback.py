"""The callback: connects the model's losses, the Assistant and the batch generator at the Trainer's hooks.

Shapes: N data set, n candidates.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_autoassist.capture.loss_capture import InstanceLossCapture
from lightning_autoassist.filtering.assistants.base import Assistant, BatchReader
from lightning_autoassist.filtering.checkpoint import OpenWindow, is_at_batch_end, is_readable, kinds_of
from lightning_autoassist.filtering.checks.run_length import Limits
from lightning_autoassist.filtering.data.data_module import AutoAssistDataModule
from lightning_autoassist.filtering.fit_checks import (
    LengthChecks,
    check_equal_epochs,
    check_is_alone,
    check_takes_batches,
    data_module_of,
    warn_of_stale_weights,
    warn_of_unread_settings,
)
from lightning_autoassist.filtering.memory.feature_file import FeaturePlace
from lightning_autoassist.filtering.memory.features import MAX_FEATURES, FeatureFunction
from lightning_autoassist.filtering.memory.store import FEATURE_MEMORY, InstanceStore
from lightning_autoassist.filtering.names import (
    GivenAssistantName,
    GivenPolicyName,
    ReweightingName,
    ScoreName,
    UpdateName,
)
from lightning_autoassist.filtering.observed_steps import ObservedSteps, warn_of_normalized_weights
from lightning_autoassist.filtering.options import (
    LOGGED_SETTINGS,
    UPDATES,
    ResolvedOptions,
    check_functions,
    chosen_reweighting,
    chosen_score,
    chosen_unfiltered_tail,
    is_auto,
    made_assistant,
    made_policy,
    resolve,
)
from lightning_autoassist.filtering.policies.base import Policy
from lightning_autoassist.filtering.reporting.loggers import Decode, RunLog, summed
from lightning_autoassist.filtering.reporting.metrics import FilterReport, over_ranks
from lightning_autoassist.filtering.run_state import RunState, continue_epoch, load_plain_checkpoint
from lightning_autoassist.filtering.selector import InstanceSelector
from lightning_autoassist.filtering.trained_batches import TrainedBatches
from lightning_autoassist.filtering.validation import IsolatedValidation, is_within_fit
from lightning_autoassist.trainer_support.arguments import check_choice, check_whole
from lightning_autoassist.trainer_support.executors import InlineExecutor
from lightning_autoassist.trainer_support.muted_warning import MutedWarning
from lightning_autoassist.trainer_support.process_group import Ranks
from lightning_autoassist.trainer_support.variants import CallbackBase, overrides


class AutoAssistCallback(CallbackBase):
    """Trains an Assistant beside the model and lets it decide which instances are worth a place in a batch.

    Goes with an :class:`~lightning_autoassist.AutoAssistDataModule`; the module that is trained stays as it is. The
    first pass over the data keeps everything, as does anything that goes wrong later: then training goes on
    unfiltered, with one warning that says why.

    Source: Zhang, Yu & Dhillon, AutoAssist, NeurIPS 2019, arXiv:1905.03381.

    Args:
        policy: What turns predicted scores into keep probabilities: a ``Policy``, or a name in ``POLICIES`` for one
            with the defaults that suit the budget.
        assistant: What predicts scores: a name in ``ASSISTANTS``, an
            :class:`~lightning_autoassist.assistants.Assistant`, or ``"auto"``: the policy's own; on a stream
            ``"logistic"``, if the policy's own needs to remember instances.
        score: What the Assistant predicts: ``"gradient_norm"`` of the instance's loss at the loss's input,
            ``"loss"``, or ``"auto"``: what the policy's source uses.
        reweighting: What balances kept against dropped instances: ``"none"``, ``"inverse_probability"``,
            ``"normalized"`` (see :class:`~lightning_autoassist.ShrinkingBatchSampler`); ``"auto"``: the policy's own.
        features: Gets a batch and returns ``(B, F)`` features for the Assistant, or one or two ``(B, T)`` tensors of
            token ids for one that reads tokens; None takes them from the batch (``BatchFeatures``, ``BatchTokens``).
        unfiltered_tail: Share of training at whose end every candidate is kept, in [0, 1); None: the policy's own.
        max_features: Most numbers that are remembered of an instance, or most tokens of each of its sequences.
        decode: Gets an instance as the data set gives it, returns text or a picture for the galleries that W&B and
            TensorBoard get; None takes the largest picture in it.
        lag: A setting of the system, as are the three below: they decide when and where the method's work is done.
            Steps between a batch and the Assistant's learning from it; 0 learns at once. None: 0 on CPU, 4 on other
            devices, so that the device never waits. From 1 on each batch is also drawn one step before it is needed.
        update: Where the Assistant learns and batches are drawn: ``"sync"`` in the training loop, ``"async"`` in a
            thread beside it, which has something to do there where ``lag`` is 1 or more; ``"auto"``: ``"async"``, on
            CPU ``"sync"``. Runs of one seed and one lag are equal either way. With ``precision="bf16-true"`` and the
            like all is done in the training loop.
        exchange_every: Steps between two exchanges of what several processes saw; each learns from all.
        feature_memory: Most bytes that the remembered features may take in memory and in each checkpoint; more of them
            go to a file beside the checkpoints (named ``autoassist-features-...``), which a resumed run needs. Tokens
            beyond it are not remembered, and their instances always kept, with a warning.

    Raises:
        ValueError: If a name is unknown or a number outside its range.
        TypeError: If something is of another type, as a class where an object is wanted.

    Example:
        >>> AutoAssistCallback(policy="uniform").reweighting
        'none'
    """

    def __init__(
        self,
        policy: GivenPolicyName | Policy = "proportional",
        assistant: GivenAssistantName | Assistant = "auto",
        *,
        score: ScoreName | Literal["auto"] = "auto",
        reweighting: ReweightingName | Literal["auto"] = "auto",
        features: FeatureFunction | None = None,
        unfiltered_tail: float | None = None,
        max_features: int = MAX_FEATURES,
        decode: Decode | None = None,
        lag: int | None = None,
        update: UpdateName | Literal["auto"] = "auto",
        exchange_every: int = 16,
        feature_memory: int = FEATURE_MEMORY,
    ) -> None:
        self.policy = made_policy(policy)
        self._suits_data = is_auto(assistant)
        self.score = chosen_score(score, self.policy)
        check_functions(features, decode)
        self.features, self.decode = features, decode
        self.lag = None if lag is None else check_whole("lag", lag, "[0, inf)", "None suits every device")
        self.unfiltered_tail = chosen_unfiltered_tail(unfiltered_tail, self.policy)
        self.max_features = check_whole("max_features", max_features, "[1, inf)", f"{MAX_FEATURES} is the default")
        self.feature_memory = check_whole("feature_memory", feature_memory, "[0, inf)", "0 keeps features in a file")
        self.exchange_every = check_whole("exchange_every", exchange_every, "[1, inf)", "16 is the default")
        self.update = check_choice("update", update, UPDATES)
        self._in_force = ResolvedOptions(self.lag or 0)
        self._given = {"assistant": not self._suits_data, "score": not is_auto(score), "features": features is not None}
        self._build_parts(made_assistant(assistant, self.policy), chosen_reweighting(reweighting, self.policy))

    def _build_parts(self, assistant: Assistant, reweighting: ReweightingName) -> None:
        # Weights other than 1 enter the backward pass at the captured losses, whether or not anyone wants scores.
        self._watches_losses = self.policy.needs_scores or (reweighting != "none" and not self.policy.keeps_everything)
        self.report = FilterReport()
        self.report.has_gradient_norms = self.score == "gradient_norm"
        self._log = RunLog(self)
        self._ranks = Ranks()
        self._jobs = InlineExecutor()
        self._learner = InstanceSelector(
            assistant,
            self.policy,
            self._feature_extractor,  # no lambda: spawned processes get the callback pickled
            self.report,
            self._log,
            reweighting=reweighting,
            suits_data=self._suits_data,
            unfiltered_tail=self.unfiltered_tail,
            feature_memory=self.feature_memory,
            exchange_every=self.exchange_every,
            watches_losses=self._watches_losses,
        )
        self._steps = ObservedSteps(
            InstanceLossCapture(score=self.score),
            self._learner,
            self.report,
            keeps_answers=self.policy.needs_scores,
        )
        self._gradients = OpenWindow()
        self._state = RunState(self._learner, self._steps, self.report, self._log, self._gradients)
        self._batches = TrainedBatches(
            self._learner, self._steps, self.report, self._gradients, self._fall_to_mean_weights
        )
        self._length_checks = LengthChecks()
        self._validation = IsolatedValidation()
        # Lightning would say that the module's hook is ignored; the data module calls it.
        self._hook_warning = MutedWarning("You have overridden `on_before_batch_transfer` in both")
        self._data: AutoAssistDataModule | None = None
        self._stage = "fit"
        self._has_begun = False

    def _feature_extractor(self, assistant: Assistant) -> BatchReader:
        return assistant.feature_extractor(self.features, self.max_features)

    @property
    def assistant(self) -> Assistant:
        """The given Assistant, or the one that suits the data."""
        return self._learner.assistant

    @property
    def reweighting(self) -> ReweightingName:
        """What is in force, the given one or the policy's own; ``"normalized"`` once no other suits the loss."""
        return self._learner.reweighting

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._stage = stage
        if stage != "fit":
            return
        check_is_alone(AutoAssistCallback, trainer.callbacks)
        self._data = data_module_of(trainer)
        if self._ranks.world_size != trainer.world_size:
            self._ranks = Ranks(trainer.global_rank, trainer.world_size)
        self.report.num_ranks = self._ranks.world_size
        self._learner.join(self._ranks, functools.partial(FeaturePlace.of, trainer))
        self._in_force = resolve(self.lag, self.update, trainer)
        self._jobs.close()
        self._jobs = self._in_force.executor()
        self._learner.work_in(self._jobs)
        if overrides(pl_module, "on_before_batch_transfer"):
            self._hook_warning.begin()
        self._log.connect(trainer)
        self._data.connect(self._learner, self._steps.start_batch, self._ranks, restart=not self._has_begun)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        assert self._data is not None
        check_takes_batches(pl_module)
        warn_of_unread_settings(self.policy, self._given)
        warn_of_stale_weights(self.policy, self.assistant, self.reweighting)
        self._length_checks.begin(trainer)
        if self._watches_losses:
            self._steps.begin(trainer.strategy, pl_module, self._data.wrapped)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        assert self._data is not None
        self._has_begun = True
        self._batches.begin()
        continue_epoch(trainer, self._data)
        self._validation.begin(trainer.fit_loop.epoch_loop.val_loop, self._data, self._jobs)
        self._gradients.begin(trainer, pl_module)
        check_equal_epochs(self._ranks.gather(trainer.num_training_batches))
        if trainer.global_step == 0:  # later iterations begin at their first batch, in plain Lightning too
            self._data.start_fetching()
        stream = self._data.candidate_stream
        self.report.limits = Limits.of(trainer)
        self._length_checks.check(trainer, stream, self._learner.scores_unseen)
        self.report.start_epoch(stream)
        self._log.start(trainer)
        self.report.training.run()

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        assert self._data is not None
        self._length_checks.start_epoch(trainer, self._data.candidate_stream)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._batches.start_batch(batch)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._end_batch(trainer, batch_idx)
        self._log.end_step(trainer)

    def _end_batch(self, trainer: Any, batch_idx: int) -> None:
        assert self._data is not None
        # After a resume, a stream is there from here on.
        self._length_checks.check(trainer, self._data.candidate_stream, self._learner.scores_unseen)
        self._batches.end_batch(trainer, self._data, batch_idx, self._jobs, self._in_force.lag)

    def _fall_to_mean_weights(self) -> None:
        """Keep the balance between the instances' losses and terms of the loss that have no instances."""
        if self.reweighting == "normalized":
            return
        warn_of_normalized_weights(self._steps.capture, self.reweighting)
        self._learner.reweighting = "normalized"

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self.report.training.stop()

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if is_within_fit(trainer):  # beside the metrics of validation, for whatever they are plotted against
            self._log.log_metrics(pl_module, self.report.axes(), sync_dist=True)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if is_within_fit(trainer):
            self.report.training.run()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        assert self._data is not None
        self._learner.wait_all()
        classes = summed(self._ranks.gather(self._log.class_counts()))
        self._log.end_epoch(trainer, pl_module, classes)
        metrics = self._ranks.gather(self.report.end_epoch(self._data.candidate_stream))
        self._log.log_metrics(pl_module, over_ranks(metrics), sync_dist=True)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.report.training.stop()
        self._log.finish(trainer)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            self._disconnect()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._disconnect()

    def summary(self) -> dict[str, Any]:
        """Totals of the run so far: optimizer steps, instances, rates, and what the plug-in cost.

        Returns:
            ``optimizer_steps``, ``instances_seen``, ``seconds`` (of training), ``saved_ratio`` (of an unfiltered run's
            optimizer steps), ``candidates_seen``, ``keep_rate``, ``mean_keep_prob``, ``nonfinite_instances``,
            ``overhead_ms`` (a step), and with an Assistant ``assistant_loss`` (nats) and ``assistant_auroc`` of the
            last epoch, and ``advice``: whether filtering is worth it here.
        """
        self._learner.wait_all()
        return self.report.summary(None if self._data is None else self._data.candidate_stream)

    def keep_probability(self, indices: Iterable[int]) -> npt.NDArray[np.floating[Any]]:
        """The chance that each of some instances would be kept if it were a candidate now, after a first pass.

        Args:
            indices: Positions in the train data set, shape ``(n,)``.
        """
        if self.report.is_of_other_process:
            rank_zero_warn(
                "the Trainer trained in processes of its own, and what they remember of instances is not in this one, "
                "so the chances are those of instances that were never seen: load a checkpoint of the run to have them"
            )
        self._learner.wait_all()
        return self._learner.keep_probability(np.fromiter(indices, np.int64), pass_index=1)

    @property
    def instances(self) -> InstanceStore | None:
        """What is remembered of each instance; None before the first batch, and where the policy needs no scores."""
        self._learner.wait_all()
        return self._learner.store

    @property
    def filter_settings(self) -> dict[str, Any]:
        """The settings in force beside policy and Assistant, as loggers get them."""
        return {name: getattr(self, name) for name in LOGGED_SETTINGS} | {"lag": self._in_force.lag}

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        trainer = None if self._data is None else self._data.trainer
        if trainer is not None and is_at_batch_end(trainer):
            self._end_batch(trainer, trainer.fit_loop.epoch_loop.batch_idx)
        state = self._state.state_dict(self._kinds(), self._data, self._ranks)
        return {**state, "is_on_stream": self._learner.is_on_stream}

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        if self.state_key not in checkpoint.get("callbacks", {}):
            load_plain_checkpoint(trainer, checkpoint, is_fit=self._stage == "fit")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self._stage != "fit" or not is_readable(state_dict):
            return  # test, validate and predict read a checkpoint, too, and continue no training
        if state_dict["is_on_stream"]:
            self._learner.suit_stream()
        self._state.load_state_dict(state_dict, self._kinds(), self._data, self._ranks)
        self._has_begun = True
        if self._learner.has_other_terms:
            self._fall_to_mean_weights()

    def _kinds(self) -> dict[str, str]:
        return kinds_of(self.policy, self.assistant, self.score, self.features)

    def _disconnect(self) -> None:
        self._log.disconnect()
        self._steps.end()
        self._validation.end()
        self._hook_warning.end()
        self._jobs.close()
        if self._data is not None:
            self._data.disconnect()
        self.report.training.stop()
