"""The callback: connects the model's losses, the Assistant and the batch generator at the Trainer's hooks."""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import override

from lightning_autoassist.filtering.assistants.base import Assistant
from lightning_autoassist.filtering.checkpoint import is_at_batch_end, is_readable
from lightning_autoassist.filtering.checks.run_length import Limits
from lightning_autoassist.filtering.checks.weights import WeightChecks
from lightning_autoassist.filtering.fit_checks import (
    LengthChecks,
    check_is_alone,
    check_takes_batches,
    warn_of_unread_settings,
)
from lightning_autoassist.filtering.fit_connection import FitConnection
from lightning_autoassist.filtering.memory.features import MAX_FEATURES, FeatureFunction
from lightning_autoassist.filtering.memory.store import FEATURE_MEMORY
from lightning_autoassist.filtering.names import (
    GivenAssistantName,
    GivenPolicyName,
    ReweightingName,
    ScoreName,
    UpdateName,
)
from lightning_autoassist.filtering.options import (
    UPDATES,
    ResolvedOptions,
    check_functions,
    chosen_dynamics,
    chosen_interval,
    chosen_reweighting,
    chosen_score,
    chosen_tail,
    is_auto,
    made_assistant,
    made_policy,
    resolve,
)
from lightning_autoassist.filtering.parts import FilteringParts
from lightning_autoassist.filtering.policies.base import Policy
from lightning_autoassist.filtering.reporting.gallery import Decode
from lightning_autoassist.filtering.reporting.loggers import summed
from lightning_autoassist.filtering.reporting.metrics import over_ranks
from lightning_autoassist.filtering.run_answers import RunAnswers
from lightning_autoassist.filtering.run_state import load_plain_checkpoint
from lightning_autoassist.filtering.validation import is_within_fit
from lightning_autoassist.trainer_support.arguments import check_choice, check_flag, check_whole
from lightning_autoassist.trainer_support.variants import STEP_OUTPUT, CallbackBase, LightningModule, Trainer


class AutoAssistCallback(RunAnswers, CallbackBase, takes_settings=True):
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
            ``"layer_gradient_norm"``: at the parameters of Linear and convolution layers, which takes time in backward;
            ``"loss"``; ``"auto"``: what the policy's source uses.
        reweighting: What balances kept against dropped instances: ``"none"``, ``"inverse_probability"``,
            ``"normalized"`` (see :class:`~lightning_autoassist.ShrinkingBatchSampler`); ``"auto"``: the policy's own.
        features: Gets a batch and returns ``(B, F)`` features for the Assistant, or one or two ``(B, T)`` tensors of
            token ids for one that reads tokens; None takes them from the batch (``BatchFeatures``, ``BatchTokens``).
        unfiltered_tail: Share of training at whose end every candidate is kept, in [0, 1); None: the policy's own.
        max_features: Most numbers that are remembered of an instance, or most tokens of each of its sequences.
        decode: Gets an instance as the data set gives it, returns text or a picture for the galleries that W&B and
            TensorBoard get; None takes the largest picture in it.
        gallery: Whether W&B and TensorBoard get galleries: the instances that were kept least and most.
        gallery_every_n_epochs: Epochs between two galleries, and between two tables of classes and of the Assistant's
            reliability; None: the first epoch in which anything was dropped, the middle one and the last one, so that
            the files of a run do not grow with its epochs.
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
        dynamics: Whether it is kept how each instance's loss went, for ``instances.to_frame()``. None: where the policy
            looks at losses anyway; True: also where nobody does, as ``policy="uniform"``, which then only observes.

    Raises:
        ValueError: If a name is unknown, a number outside its range, or a policy that reads losses would get none.
        TypeError: If something is of another type, as a class where an object is wanted.

    Example:
        >>> AutoAssistCallback(policy="uniform").reweighting
        'none'
    """

    def __init__(
        self,
        policy: GivenPolicyName | Policy = "prioritized",
        assistant: GivenAssistantName | Assistant = "auto",
        *,
        score: ScoreName | Literal["auto"] = "auto",
        reweighting: ReweightingName | Literal["auto"] = "auto",
        features: FeatureFunction | None = None,
        unfiltered_tail: float | None = None,
        max_features: int = MAX_FEATURES,
        decode: Decode | None = None,
        gallery: bool = True,
        gallery_every_n_epochs: int | None = None,
        lag: int | None = None,
        update: UpdateName | Literal["auto"] = "auto",
        exchange_every: int = 16,
        feature_memory: int = FEATURE_MEMORY,
        dynamics: bool | None = None,
    ) -> None:
        self.policy = made_policy(policy)
        self.score, self.unfiltered_tail = chosen_score(score, self.policy), chosen_tail(unfiltered_tail, self.policy)
        check_functions(features, decode)
        self.features, self.decode = features, decode
        self.gallery, self.dynamics = check_flag("gallery", gallery), chosen_dynamics(dynamics)
        self.gallery_every_n_epochs = chosen_interval(gallery_every_n_epochs)
        self.lag = None if lag is None else check_whole("lag", lag, "[0, inf)", "None suits every device")
        self.max_features = check_whole("max_features", max_features, "[1, inf)", f"{MAX_FEATURES} is the default")
        self.feature_memory = check_whole("feature_memory", feature_memory, "[0, inf)", "0 keeps features in a file")
        self.exchange_every = check_whole("exchange_every", exchange_every, "[1, inf)", "16 is the default")
        self.update = check_choice("update", update, UPDATES)
        suits_data = is_auto(assistant)
        self._given = {"assistant": not suits_data, "score": not is_auto(score), "features": features is not None}
        suited, weighted = made_assistant(assistant, self.policy), chosen_reweighting(reweighting, self.policy)
        parts = FilteringParts(self, suited, weighted, suits_data=suits_data)
        self.report = parts.report
        self._learner, self._steps, self._log = parts.selector, parts.steps, parts.log
        self._gradients, self._batches, self._state = parts.gradients, parts.batches, parts.state
        self._fit = FitConnection(parts, ResolvedOptions(self.lag or 0))
        self._length_checks, self._weight_checks = LengthChecks(), WeightChecks()
        self._stage = "fit"

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stage = stage
        if stage == "fit":
            check_is_alone(AutoAssistCallback, trainer)
            self._fit.connect(trainer, pl_module, resolve(self.lag, self.update, trainer))

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_takes_batches(pl_module)
        warn_of_unread_settings(self.policy, self._given)
        self._weight_checks.begin(self.policy, self.assistant, self.reweighting, self.report.instances_seen)
        self._length_checks.begin(trainer)
        self._fit.observe_steps(trainer, pl_module)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._batches.begin()
        self._gradients.begin(trainer, pl_module)
        self._fit.begin_training(trainer)
        self.report.limits = Limits.of(trainer)
        self._length_checks.check(trainer, self._fit.stream, self._learner.scores_unseen)
        self.report.start_epoch(self._fit.stream)
        self._log.start(trainer)
        self.report.training.run()

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._length_checks.start_epoch(trainer, self._fit.stream)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._batches.start_batch(batch)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        self._end_batch(trainer, batch_idx)
        self._log.end_step(trainer)

    def _end_batch(self, trainer: Trainer, batch_idx: int) -> None:
        # After a resume, a stream is there from here on.
        self._length_checks.check(trainer, self._fit.stream, self._learner.scores_unseen)
        self._batches.end_batch(trainer, self._fit.fitted_data, batch_idx, self._fit.jobs, self._fit.in_force.lag)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.report.training.stop()

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if is_within_fit(trainer):  # beside the metrics of validation, for whatever they are plotted against
            self._log.log_metrics(pl_module, self.report.axes(), sync_dist=True)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if is_within_fit(trainer):
            self.report.training.run()

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._learner.wait_all()
        self._log.end_epoch(trainer, pl_module, summed(self._fit.ranks.gather(self._log.class_counts())))
        metrics = over_ranks(self._fit.ranks.gather(self.report.end_epoch(self._fit.stream)))
        self._weight_checks.end_epoch(self.report.last_epoch)
        self._log.log_metrics(pl_module, metrics, sync_dist=True)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.report.training.stop()
        self._learner.end_fit()
        self._log.finish(trainer)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._fit.disconnect()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._fit.disconnect()

    @override
    def state_dict(self) -> dict[str, Any]:
        trainer = self._fit.trainer
        if trainer is not None and is_at_batch_end(trainer):
            self._end_batch(trainer, trainer.fit_loop.epoch_loop.batch_idx)
        return self._state.state_dict(self._fit.data, self._fit.ranks)

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.state_key not in checkpoint.get("callbacks", {}):
            load_plain_checkpoint(trainer, checkpoint, is_fit=self._stage == "fit")

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Test, validate and predict read a checkpoint, too, and continue no training.
        if self._stage == "fit" and is_readable(state_dict):
            self._state.load_state_dict(state_dict, self._fit.data, self._fit.ranks)
            self._fit.has_begun = True
