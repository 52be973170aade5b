"""The callback: connects the Boss's losses, the Assistant and the batch generator, and keeps their state.

Shapes: N data set, B batch, n candidates, F features.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_autoassist.capture.captured_step import CapturedStep
from lightning_autoassist.capture.loss_capture import InstanceLossCapture
from lightning_autoassist.capture.observation import Observation
from lightning_autoassist.filtering.assistants.base import Assistant
from lightning_autoassist.filtering.assistants.logistic import LogisticAssistant
from lightning_autoassist.filtering.assistants.registry import ASSISTANTS
from lightning_autoassist.filtering.checkpoint import (
    LAYOUT,
    OpenWindow,
    count_next_epoch,
    differences,
    fit_epoch_to_length,
    is_at_batch_end,
    is_readable,
    kind_of,
    warn_of_losses,
)
from lightning_autoassist.filtering.checks.run_length import Limits
from lightning_autoassist.filtering.checks.schedules import ScheduleCheck
from lightning_autoassist.filtering.data.arrivals import TransferOrder, hooks_of
from lightning_autoassist.filtering.data.carried import batch_rows
from lightning_autoassist.filtering.data.data_module import HOW_TO_USE, AutoAssistDataModule
from lightning_autoassist.filtering.learner import Learner, Observed, to_host
from lightning_autoassist.filtering.memory.feature_file import FeaturePlace
from lightning_autoassist.filtering.memory.features import MAX_FEATURES, FeatureFunction
from lightning_autoassist.filtering.memory.store import FEATURE_MEMORY, InstanceStore
from lightning_autoassist.filtering.names import GivenAssistantName, GivenPolicyName, ScoreName, UpdateName, WeightsName
from lightning_autoassist.filtering.policies.base import Policy
from lightning_autoassist.filtering.policies.registry import POLICIES
from lightning_autoassist.filtering.reporting.loggers import Decode, RunLog, summed
from lightning_autoassist.filtering.reporting.metrics import FilterReport, over_ranks, warn_about_limits
from lightning_autoassist.filtering.sampling.candidates import CandidateStream, Draw
from lightning_autoassist.filtering.selection import Selection
from lightning_autoassist.trainer_support.arguments import (
    check_choice,
    check_function,
    check_named,
    check_number,
    check_whole,
)
from lightning_autoassist.trainer_support.executors import Jobs, UpdateThread
from lightning_autoassist.trainer_support.process_group import Ranks
from lightning_autoassist.trainer_support.variants import CallbackBase, overrides

SCORE_NAMES: tuple[ScoreName | Literal["auto"], ...] = ("auto", *get_args(ScoreName))
WEIGHT_NAMES: tuple[WeightsName | Literal["auto"], ...] = ("auto", *get_args(WeightsName))
UPDATES: tuple[UpdateName | Literal["auto"], ...] = ("auto", *get_args(UpdateName))
# So many batches in a row pass unfiltered before filtering stops, where their rows cannot be told apart.
MOST_UNKNOWN = 16


class AutoAssistCallback(CallbackBase):
    """Trains an Assistant beside the Boss and lets it decide which instances are worth a place in a batch.

    Goes with an :class:`~lightning_autoassist.AutoAssistDataModule`; the module that is trained stays as it is. The
    first pass over the data keeps everything, as does anything that goes wrong later: then training goes on
    unfiltered, with one warning that says why.

    Source: Zhang, Yu & Dhillon, AutoAssist, NeurIPS 2019, arXiv:1905.03381.

    Args:
        assistant: What predicts scores: a name in ``ASSISTANTS``, an :class:`~lightning_autoassist.Assistant`, or
            ``"auto"``: the policy's own; on a stream ``"logistic"``, if the policy's own needs to remember instances.
        policy: What turns predicted scores into keep probabilities: a :class:`~lightning_autoassist.Policy`, or a name
            in ``POLICIES`` for one with the defaults that suit the budget.
        score: What the Assistant predicts: ``"gradient_norm"`` of the instance's loss at the loss's input,
            ``"loss"``, or ``"auto"``: what the policy's source uses.
        weights: What balances kept against dropped instances: ``"none"``, ``"sum"``, ``"mean"`` (see
            :class:`~lightning_autoassist.ShrinkingBatchSampler`), or ``"auto"``: the policy's own.
        features: Gets a batch and returns ``(B, F)`` features for the Assistant, or one or two ``(B, T)`` tensors of
            token ids for one that reads tokens; None takes them from the batch, see
            ``BatchFeatures`` and
            ``BatchTokens``.
        tail: Share of training at whose end every candidate is kept, in [0, 1); None: the policy's own.
        max_features: Most numbers that are remembered of an instance, or most tokens of each of its sequences.
        feature_memory: Most bytes that the remembered features may take in memory and in each checkpoint; more of them
            go to a file beside the checkpoints (named ``autoassist-features-...``), which a resumed run needs. Tokens
            beyond it are not remembered, and their instances always kept, with a warning.
        lag: Steps between a batch and the Assistant's learning from it; 0 learns at once. None: 0 on CPU, 4 on other
            devices, so that the device never waits. From 1 on each batch is also drawn one step before it is needed.
        update: Where the Assistant learns and batches are drawn: ``"sync"`` in the training loop, ``"async"`` in a
            thread beside it, which has something to do there where ``lag`` is 1 or more; ``"auto"``: ``"async"``, on
            CPU ``"sync"``. Runs of one seed and one lag are equal either way. With ``precision="bf16-true"`` and the
            like all is done in the training loop.
        exchange_every: Steps between two exchanges of what several processes saw; each learns from all.
        decode: Gets an instance as the data set gives it, returns text or a picture for the galleries that W&B and
            TensorBoard get; None takes the largest picture in it.

    Raises:
        ValueError: If a name is unknown or a number outside its range.
        TypeError: If something is of another type, as a class where an object is wanted.

    Example:
        >>> AutoAssistCallback(policy="uniform").weights
        'none'
    """

    def __init__(
        self,
        assistant: GivenAssistantName | Assistant = "auto",
        policy: GivenPolicyName | Policy = "proportional",
        *,
        score: ScoreName | Literal["auto"] = "auto",
        weights: WeightsName | Literal["auto"] = "auto",
        features: FeatureFunction | None = None,
        tail: float | None = None,
        max_features: int = MAX_FEATURES,
        feature_memory: int = FEATURE_MEMORY,
        lag: int | None = None,
        update: UpdateName | Literal["auto"] = "auto",
        exchange_every: int = 16,
        decode: Decode | None = None,
    ) -> None:
        self.policy: Policy = check_named("policy", policy, Policy, POLICIES, {"assistant": (ASSISTANTS, Assistant)})
        self._suits_data = isinstance(assistant, str) and assistant == "auto"
        self.assistant: Assistant = check_named(
            "assistant",
            self.policy.default_assistant if self._suits_data else assistant,
            Assistant,
            ASSISTANTS,
            {"policy": (POLICIES, Policy)},
        )
        score, weights = check_choice("score", score, SCORE_NAMES), check_choice("weights", weights, WEIGHT_NAMES)
        self.score = self.policy.default_score if score == "auto" else score
        self.weights = self.policy.default_weights if weights == "auto" else weights
        if features is not None:
            check_function("features", features, "lambda batch: batch[0]")
        if decode is not None:
            check_function("decode", decode, "lambda instance: str(instance)")
        lag = None if lag is None else check_whole("lag", lag, "[0, inf)", "None suits every device")
        self.tail = self.policy.default_tail
        if tail is not None:
            self.tail = check_number("tail", tail, "[0, 1)", "0.125 leaves the last eighth unfiltered")
        max_features = check_whole("max_features", max_features, "[1, inf)", f"{MAX_FEATURES} is the default")
        feature_memory = check_whole("feature_memory", feature_memory, "[0, inf)", "0 keeps features in a file")
        exchange_every = check_whole("exchange_every", exchange_every, "[1, inf)", "16 is the default")
        update = check_choice("update", update, UPDATES)
        given = {"assistant": not self._suits_data, "score": score != "auto", "features": features is not None}
        self._unread = [f"{name}=" for name, is_given in given.items() if is_given]
        self.lag = lag
        self.features = features
        self.max_features = max_features
        self.feature_memory = feature_memory
        self.update = update
        self.exchange_every = exchange_every
        self.decode = decode
        # Weights other than 1 enter the backward pass at the captured losses, whether or not anyone wants scores.
        self._watches_losses = self.policy.needs_scores or (self.weights != "none" and not self.policy.keeps_everything)
        self.report = FilterReport()
        self._log = RunLog(self)
        self._capture = InstanceLossCapture(score=self.score)
        self._ranks = Ranks()
        self._jobs = Jobs()
        self._learner = Learner(
            self.assistant,
            self.policy,
            self.assistant.reader(features, max_features),
            self.report,
            tail=self.tail,
            feature_memory=feature_memory,
            exchange_every=exchange_every,
            watches_losses=self._watches_losses,
        )
        self._schedules = ScheduleCheck()
        self._knows_length = False
        self._has_begun = self._is_on_stream = False
        self._stage = "fit"
        self._data: AutoAssistDataModule | None = None
        self._step: tuple[Draw, Observation, Tensor | None] | None = None
        self._unwrap: Callable[[], None] | None = None
        self._transfers = TransferOrder([])
        self._num_unknown = 0  # batches in a row
        self._num_passed_on = 0  # instances of the current batch, where it was not drawn here
        self._val_loop: Any = None
        self._gradients = OpenWindow()
        self._num_ended = 0

    # ---- connecting to the Trainer

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._stage = stage
        if stage != "fit":
            return
        count = sum(isinstance(callback, AutoAssistCallback) for callback in trainer.callbacks)
        if count > 1:
            raise MisconfigurationException(
                f"the Trainer has {count} AutoAssistCallbacks; write one: callbacks=[AutoAssistCallback(...)]"
            )
        self._data = _data_module_of(trainer)
        if self._ranks.world_size != trainer.world_size:
            self._ranks = Ranks(trainer.global_rank, trainer.world_size)
        self.report.num_ranks = self._ranks.world_size
        self._learner.join(self._ranks)
        is_on_cpu = trainer.strategy.root_device.type == "cpu"
        if self.lag is None:
            self.lag = 0 if is_on_cpu else 4
        self._jobs.close()
        is_beside = self.update == "async" or (self.update == "auto" and not is_on_cpu)
        # Such precisions change torch's default data type while a step runs, and all threads share that.
        is_beside &= trainer.precision == "32-true" or not trainer.precision.endswith("-true")
        # Wherever the jobs are done, their order is the same for the same lag, and so is what is drawn.
        draws_ahead = min(self.lag, 1)
        self._learner.jobs = self._jobs = UpdateThread(draws_ahead) if is_beside else Jobs(draws_ahead)
        if overrides(pl_module, "on_before_batch_transfer"):
            # Lightning would say that the module's hook is ignored; the data module calls it.
            warnings.filterwarnings("ignore", "You have overridden `on_before_batch_transfer` in both")
        self._log.connect(trainer)
        selection = Selection(
            self._learner.keep_probability,
            self.policy.keeps_everything,
            self.weights,
            self._prepare_store,
            self._prepare_rows,
            self._learner.keep_rows,
            self._learner.row_features,
            self._log.count,
            self._learner.lacks_features,
            self._jobs,
        )
        self._data.select_by(selection, self._ranks, restart=not self._has_begun)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        if "dataloader_iter" in inspect.signature(pl_module.training_step).parameters:
            raise MisconfigurationException(
                "training_step(dataloader_iter) takes its batches by itself, so that AutoAssist cannot tell which "
                "instances they hold; write training_step(batch, batch_idx)"
            )
        self._warn_of_unread_settings()
        self._knows_length = False
        self._schedules = ScheduleCheck(built_from_length=trainer.train_dataloader is not None)
        if self._watches_losses:
            self._wrap_training_step(trainer, pl_module)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        assert self._data is not None
        self._has_begun, self._num_ended = True, 0
        count_next_epoch(trainer.fit_loop)
        fit_epoch_to_length(trainer.fit_loop.epoch_loop, self._data.restored_length, trainer.num_training_batches)
        self._data.restored_length = None
        self._isolate_validation(trainer.fit_loop.epoch_loop.val_loop)
        self._gradients.begin(trainer, pl_module)
        _check_equal_epochs(self._ranks.gather(trainer.num_training_batches))
        if trainer.global_step == 0:  # later iterations begin at their first batch, in plain Lightning too
            self._data.start_fetching()
        stream = self._data.candidate_stream
        self.report.limits = Limits.of(trainer)
        if stream is not None:
            self._check_length(trainer, stream)
        self.report.start_epoch(stream)
        self._log.start(trainer)
        self.report.training.run()

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        assert self._data is not None
        if self._data.candidate_stream is not None:
            self._schedules.start_epoch(trainer, self._data.candidate_stream)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        assert self._data is not None
        self._num_passed_on = batch_rows(batch) if self._data.current_draw is None else 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._end_batch(trainer, batch_idx)
        self._log.end_step(trainer)

    def _end_batch(self, trainer: Any, batch_idx: int) -> None:
        """The Boss was trained on a batch; once a batch, at its end or where somebody saves a checkpoint before us."""
        assert self._data is not None
        number = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        if number == self._num_ended:
            return
        self._num_ended = number
        self._gradients.end_batch(trainer.global_step)
        draw = self._data.confirm_draw()
        self.report.count_batch(self._num_passed_on if draw is None else len(draw.indices), trainer.global_step)
        if not self._knows_length and self._data.candidate_stream is not None:  # after a resume it begins here
            self._check_length(trainer, self._data.candidate_stream)
        step, self._step = self._step, None
        with self.report.timed():
            observed = None
            with self._learner.unfiltered_on_error():
                observed = None if step is None else to_host(*step)
            progress = _progress(trainer, batch_idx)
            told = self._capture.has_other_terms, self._capture.own_labels.is_refused
            self._jobs.submit(functools.partial(self._end_step, observed, progress, *told))

    def _warn_of_unread_settings(self) -> None:
        if self._unread and not self.policy.needs_scores:
            rank_zero_warn(
                f"{type(self.policy).__name__} needs no scores, so that {', '.join(self._unread)} are not used: leave "
                "them out"
            )

    def _check_length(self, trainer: Any, stream: CandidateStream) -> None:
        """Warn of settings that do not suit the run's length."""
        self._knows_length = True
        warn_about_limits(trainer, stream, keeps_first_pass=not self._learner.judges_unseen)
        self._schedules.start(trainer, stream)

    def _end_step(
        self, observed: Observed | None, progress: float, has_other_terms: bool, refuses_labels: bool
    ) -> None:
        """The job at the end of a step, wherever it is done."""
        assert self.lag is not None
        with self._learner.unfiltered_on_error():
            self._learner.end_step(
                observed,
                lag=self.lag,
                progress=progress,
                has_other_terms=has_other_terms,
                refuses_labels=refuses_labels,
            )
        if self._learner.has_other_terms and self.weights != "mean":
            self._fall_to_mean_weights()

    def _isolate_validation(self, val_loop: Any) -> None:
        """Give back what validations in a filtered run draw from the generators.

        A run that is resumed at a validation's step skips that validation, and must go on with the same draws.
        """
        self._val_loop, run = val_loop, val_loop.run

        def isolated_run() -> Any:
            assert self._data is not None
            self._jobs.settle()  # validation's workers are forked, and a thread had better be at rest then
            with self._data.rng_given_back():
                return run()

        val_loop.run = isolated_run  # on the instance: its iterators draw before any hook is called

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self.report.training.stop()

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if _is_within_fit(trainer):  # beside the metrics of validation, for whatever they are plotted against
            self._log.log_metrics(pl_module, self.report.axes(), sync_dist=True)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if _is_within_fit(trainer):
            self.report.training.run()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        assert self._data is not None
        self._learner.settle()
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

    def summary(self) -> dict[str, float]:
        """Totals of the run so far: Boss updates, instances, rates, and what the plug-in cost.

        Returns:
            ``boss_updates``, ``instances_seen``, ``seconds`` (of training, without validation), ``saved_ratio`` (of an
            unfiltered run's Boss updates), ``candidates_seen``, ``keep_rate``, ``mean_keep_prob``,
            ``nonfinite_instances``, ``overhead_ms`` (milliseconds a step), and with an Assistant ``assistant_loss``
            (nats) and ``assistant_auroc`` of the last epoch.
        """
        self._learner.settle()
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
        self._learner.settle()
        return self._learner.keep_probability(np.fromiter(indices, np.int64), pass_index=1)

    @property
    def instances(self) -> InstanceStore | None:
        """What is remembered of each instance; None before the first batch, and where the policy needs no scores."""
        self._learner.settle()
        return self._learner.store

    @property
    def filter_settings(self) -> dict[str, Any]:
        """The settings in force beside policy and Assistant, as loggers get them."""
        names = (
            "score",
            "weights",
            "features",
            "tail",
            "max_features",
            "feature_memory",
            "lag",
            "update",
            "exchange_every",
            "decode",
        )
        return {name: getattr(self, name) for name in names}

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        trainer = None if self._data is None else self._data.trainer
        if trainer is not None and is_at_batch_end(trainer):
            self._end_batch(trainer, trainer.fit_loop.epoch_loop.batch_idx)
        stream = None if self._data is None else self._data.candidate_stream
        return {
            "layout": LAYOUT,
            "settings": self._kinds(),
            "learner": self._learner.state_dict(),
            "is_on_stream": self._is_on_stream,
            "reports": self._ranks.gather(self.report.state_dict(stream)),
            "counts": self._log.state_dict(),
            "labels": self._ranks.gather(self._capture.own_labels.state_dict()),
            "gradients": None if trainer is None else self._gradients.state_dict(trainer, self._ranks),
            "capture": self._capture.state_dict(),
        }

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        if self.state_key in checkpoint.get("callbacks", {}):
            return
        if isinstance(trainer.datamodule, AutoAssistDataModule):
            trainer.datamodule.load_plain_checkpoint(checkpoint)
        if self._stage == "fit":
            rank_zero_warn(
                "the checkpoint was written without AutoAssist: your module, optimizer and loops are restored, and "
                "filtering begins with a first pass that keeps everything"
            )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self._stage != "fit" or not is_readable(state_dict):
            return  # test, validate and predict read a checkpoint, too, and continue no training
        if state_dict["is_on_stream"]:
            self._suit_stream()
        differing = differences(state_dict["settings"], self._kinds())
        lost = self._learner.load_state_dict(state_dict["learner"], differing.keys())
        warn_of_losses(differing, [*([] if self._data is None else self._data.lost), *lost])
        reports = state_dict["reports"]
        self.report.load_state_dict(reports[self._ranks.rank % len(reports)])
        self._log.load_state_dict(state_dict["counts"])
        labels = state_dict.get("labels", [{}])
        self._capture.own_labels.load_state_dict(labels[self._ranks.rank % len(labels)])
        self._gradients.load_state_dict(state_dict["gradients"], self._ranks)
        self._capture.load_state_dict(state_dict["capture"])
        self._has_begun = True
        if self._learner.has_other_terms and self.weights != "mean":
            self._fall_to_mean_weights()

    def _kinds(self) -> dict[str, str]:
        """What decides whether a checkpoint's state fits, in words."""
        return {
            "policy": kind_of(self.policy),
            "assistant": kind_of(self.assistant),
            "score": self.score,
            "features": "from the batch" if self.features is None else kind_of(self.features),
        }

    def _prepare_store(self, num_instances: int) -> None:
        """Make room for the data set, before its first batch is drawn."""
        assert self._data is not None
        self._log.prepare(num_instances)
        if self.policy.needs_scores:
            self._learner.prepare(num_instances, _feature_place(self._data.trainer))

    def _prepare_rows(self) -> None:
        """Be ready for a stream, or refuse it, before its first row is judged."""
        self._suit_stream()
        refusal = self._learner.rows.refusal
        if refusal is not None:
            raise MisconfigurationException(refusal)

    def _suit_stream(self) -> None:
        self._is_on_stream = True
        if self._suits_data and self._learner.rows.refusal is not None:
            self.assistant = LogisticAssistant()
            self._learner.use(self.assistant, self.assistant.reader(self.features, self.max_features))

    # ---- the Boss answers

    def _wrap_training_step(self, trainer: Any, pl_module: Any) -> None:
        strategy = trainer.strategy
        training_step = strategy.training_step
        self._transfers = TransferOrder(hooks_of(pl_module, getattr(self._data, "wrapped", None)))

        def observed_training_step(*args: Any, **kwargs: Any) -> Any:
            draw = None if self._data is None else self._data.current_draw
            batch = args[0] if args else next(iter(kwargs.values()), None)
            if draw is None or not self._learner.is_filtering or not self._knows_rows(draw, batch):
                return training_step(*args, **kwargs)
            with self.report.timed():
                features = self._learner.new_features(draw, batch)
                weights = None if draw.weights is None else torch.from_numpy(draw.weights).to(pl_module.device)
                captured = self._capture.step(batch, len(draw.indices), weights=weights, module=pl_module)
            with captured:
                output = training_step(*args, **kwargs)
            with self.report.timed():
                self._observe(captured, output, pl_module.automatic_optimization, draw, features)
            return output

        # On the instance: the class, and every other Trainer, stay as they are.
        others = strategy.__dict__.get("training_step")  # somebody else's wrapper
        strategy.training_step = observed_training_step

        def unwrap() -> None:
            if strategy.training_step is observed_training_step:
                del strategy.training_step
                if others is not None:
                    strategy.training_step = others

        self._unwrap = unwrap

    def _knows_rows(self, draw: Draw, batch: Any) -> bool:
        """Whether the rows of the batch are the draw's instances."""
        self._num_unknown = 0 if draw.knows_rows else self._num_unknown + 1
        refusal = self._transfers.refusal(draw, batch) if draw.knows_rows else None
        if self._num_unknown == MOST_UNKNOWN:
            refusal = (
                f"In {MOST_UNKNOWN} batches in a row the loader's collate_fn reordered instances or left some out, and "
                "the values of the batch do not tell which of its rows is which instance."
            )
        if refusal is not None:
            self._learner.stop_filtering(refusal)
        return draw.knows_rows and refusal is None

    def _observe(
        self, captured: CapturedStep, output: Any, is_automatic: bool, draw: Draw, features: Tensor | None
    ) -> None:
        observation = captured.observe(output)
        if output is None and is_automatic:
            return  # Lightning skips the batch, and so do we
        if observation is None:
            give_up = self._learner.stop_filtering if captured.is_final else self._learner.pass_unfiltered
            give_up(captured.reason or "no per-instance loss was found in training_step")
            return
        self._learner.note_told()
        self.report.captured_share = self._capture.share.ratio
        note = self._capture.note_on_share()
        if note is not None:
            rank_zero_warn(note if self.weights in ("none", "mean") else f"{note}. {self._why_mean_weights()}")
        if self.policy.needs_scores:
            self._step = draw, observation, features

    def _fall_to_mean_weights(self) -> None:
        """Keep the balance between the instances' losses and terms of the loss that have no instances."""
        missed = "; ".join(self._capture.share.missed)
        terms = missed or "which depend on the parameters alone, as a penalty on the weights does"
        if not (missed and self._capture.is_share_told):
            rank_zero_warn(f"the loss has terms beside the instances' own ({terms}). {self._why_mean_weights()}")
        self.weights = "mean"
        if self._data is not None:
            self._data.weigh_by("mean")

    def _why_mean_weights(self) -> str:
        return (
            f'With weights="{self.weights}" filtering would shift the balance between them and the instances\' losses, '
            'so weights="mean" are used'
        )

    def _disconnect(self) -> None:
        self._log.disconnect()
        if self._unwrap is not None:
            self._unwrap()
            self._unwrap = None
        if self._val_loop is not None:
            self._val_loop.__dict__.pop("run", None)
            self._val_loop = None
        self._jobs.close()
        if self._data is not None:
            self._data.select_by(None)
        self._step = None
        self.report.training.stop()


def _check_equal_epochs(num_batches: list[int | float]) -> None:
    if len(set(num_batches)) > 1:
        raise MisconfigurationException(
            f"the processes would train on {', '.join(map(str, num_batches))} batches an epoch and wait for each other "
            "for ever; give every process as many instances, or leave sharding to the Trainer (use_distributed_sampler)"
        )


def _progress(trainer: Any, batch_idx: int) -> float:
    """Share of training that is done, where its length is known."""
    if trainer.max_epochs <= 0:
        return 0.0
    return float((trainer.current_epoch + (batch_idx + 1) / trainer.num_training_batches) / trainer.max_epochs)


def _is_within_fit(trainer: Any) -> bool:
    """Whether a validation is one between training steps."""
    return trainer.state.fn == "fit" and not trainer.sanity_checking


def _feature_place(trainer: Any) -> FeaturePlace:
    """Beside the checkpoints, or else where the run logs; on every rank at once, as ``log_dir`` asks for."""
    folders = (getattr(trainer.checkpoint_callback, "dirpath", None), trainer.log_dir, trainer.default_root_dir)
    local = (str(folder) for folder in folders if folder and "://" not in str(folder))
    return FeaturePlace(next(local, None), trainer.global_rank, trainer.ckpt_path)


def _data_module_of(trainer: Any) -> AutoAssistDataModule:
    # A Trainer keeps the data module of an earlier fit; what this fit trains on is its loop's source.
    source = getattr(getattr(trainer.fit_loop, "_data_source", None), "instance", trainer.datamodule)
    if isinstance(source, AutoAssistDataModule):
        return source
    raise MisconfigurationException(
        f"AutoAssistCallback needs an AutoAssistDataModule, this fit trains on a {type(source).__name__}. "
        f"Write:{HOW_TO_USE}"
    )
