"""The callback: connects the Boss's losses, the Assistant and the batch generator, and keeps their state.

Shapes: N data set, B batch, n candidates, F features.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_autoassist.assistants import ASSISTANTS, Assistant, LogisticAssistant
from lightning_autoassist.candidates import WEIGHT_MODES, Draw
from lightning_autoassist.checkpoint import LAYOUT, is_readable
from lightning_autoassist.datamodule import HOW_TO_USE, AutoAssistDataModule
from lightning_autoassist.distributed import Ranks
from lightning_autoassist.feature_file import FeaturePlace
from lightning_autoassist.features import (
    FEATURE_MEMORY,
    MAX_FEATURES,
    FeatureFunction,
    InstanceStore,
)
from lightning_autoassist.flavours import CallbackBase, overrides
from lightning_autoassist.jobs import Jobs, UpdateThread
from lightning_autoassist.learner import Learner, Observed, to_host
from lightning_autoassist.loss_capture import SCORES, CapturedStep, InstanceLossCapture, Observation
from lightning_autoassist.policies import POLICIES, Policy
from lightning_autoassist.report import FilterReport, over_ranks, warn_about_limits
from lightning_autoassist.rng import restore_rng_state, rng_state
from lightning_autoassist.run_log import Decode, RunLog, summed
from lightning_autoassist.selection import Selection

UPDATES = ("auto", "sync", "async")


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
            :class:`~lightning_autoassist.features.BatchFeatures` and
            :class:`~lightning_autoassist.text_features.BatchTokens`.
        tail: Share of training at whose end every candidate is kept, in [0, 1); None: the policy's own.
        max_features: Most numbers that are remembered of an instance, or most tokens of each of its sequences.
        feature_memory: Most bytes that the remembered features may take in memory and in each checkpoint; more of them
            go to a file beside the checkpoints (named ``autoassist-features-...``), which a resumed run needs. Tokens
            beyond it are not remembered, and their instances always kept, with a warning.
        lag: Steps between a batch and the Assistant's learning from it; 0 learns at once. None: 0 on CPU, 4 on other
            devices, so that the device never waits.
        update: Where the Assistant learns and batches are drawn: ``"sync"`` in the training loop, ``"async"`` in a
            thread beside it, which draws each batch one step ahead; ``"auto"``: ``"async"``, on CPU ``"sync"``. Runs
            of one seed are equal either way.
        exchange_every: Steps between two exchanges of what several processes saw; each learns from all.
        decode: Gets an instance as the data set gives it, returns text or a picture for the galleries that W&B and
            TensorBoard get; None takes the largest picture in it.

    Raises:
        ValueError: If a name is unknown or a number outside its range.

    Example:
        >>> AutoAssistCallback(policy="uniform").weights
        'none'
    """

    def __init__(
        self,
        assistant: str | Assistant = "auto",
        policy: str | Policy = "proportional",
        *,
        score: str = "auto",
        weights: str = "auto",
        features: FeatureFunction | None = None,
        tail: float | None = None,
        max_features: int = MAX_FEATURES,
        feature_memory: int = FEATURE_MEMORY,
        lag: int | None = None,
        update: str = "auto",
        exchange_every: int = 16,
        decode: Decode | None = None,
    ) -> None:
        self.policy: Policy = _named(policy, POLICIES, "policy")
        self._suits_data = assistant == "auto"
        self.assistant: Assistant = _named(
            self.policy.default_assistant if assistant == "auto" else assistant, ASSISTANTS, "assistant"
        )
        self.score = _choice(score, ("auto", *SCORES), "score", auto=self.policy.default_score)
        self.weights = _choice(weights, ("auto", *WEIGHT_MODES), "weights", auto=self.policy.default_weights)
        if lag is not None and lag < 0:
            raise ValueError(f"lag must not be negative, got {lag}; None suits every device")
        self.tail = self.policy.default_tail if tail is None else tail
        if not 0 <= self.tail < 1:
            raise ValueError(f"tail must be in [0, 1), got {tail}; 0.125 leaves the last eighth unfiltered")
        if feature_memory < 0:
            raise ValueError(f"feature_memory must not be negative, got {feature_memory}; 0 keeps features in a file")
        if exchange_every < 1:
            raise ValueError(f"exchange_every must be at least 1, got {exchange_every}; 16 is the default")
        if update not in UPDATES:
            raise ValueError(f"update must be one of {', '.join(UPDATES)}, got {update!r}")
        self.lag = lag
        self.features = features
        self.max_features = max_features
        self.feature_memory = feature_memory
        self.update = update
        self.exchange_every = exchange_every
        self.decode = decode
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
        )
        self._has_begun = self._is_on_stream = False
        self._rng_before_validation: dict[str, Any] | None = None
        self._data: AutoAssistDataModule | None = None
        self._step: tuple[Draw, Observation, Tensor | None] | None = None
        self._unwrap: Callable[[], None] | None = None

    # ---- connecting to the Trainer

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage != "fit":
            return
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
        self._learner.jobs = self._jobs = UpdateThread() if is_beside else Jobs()
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
        if self.policy.needs_scores:
            self._wrap_training_step(trainer, pl_module)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        assert self._data is not None
        self._has_begun = True
        _check_equal_epochs(self._ranks.gather(trainer.num_training_batches))
        if trainer.global_step == 0:  # later iterations begin at their first batch, in plain Lightning too
            self._data.start_fetching()
        stream = self._data.candidate_stream
        if stream is not None:
            warn_about_limits(trainer, stream, keeps_first_pass=not self._learner.judges_unseen)
        self.report.start_epoch(stream)
        self._log.start(trainer)
        self.report.training.run()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert self._data is not None
        draw = self._data.confirm_draw()
        self.report.count_batch(0 if draw is None else len(draw.indices), trainer.global_step)
        step, self._step = self._step, None
        with self.report.timed():
            observed = None
            with self._learner.unfiltered_on_error():
                observed = None if step is None else to_host(*step)
            progress = _progress(trainer, batch_idx)
            self._jobs.submit(functools.partial(self._end_step, observed, progress, self._capture.has_other_terms))
        self._log.end_step(trainer, pl_module, batch_idx)

        self._rng_before_validation = None
        if self._may_validate_next(trainer):
            self._jobs.settle()  # validation's workers are forked, and a thread had better be at rest then
            self._rng_before_validation = rng_state()

    def _end_step(self, observed: Observed | None, progress: float, has_other_terms: bool) -> None:
        """The job at the end of a step, wherever it is done."""
        assert self.lag is not None
        with self._learner.unfiltered_on_error():
            self._learner.end_step(observed, lag=self.lag, progress=progress, has_other_terms=has_other_terms)
        if self._learner.has_other_terms and self.weights != "mean":
            self._fall_to_mean_weights()

    def _may_validate_next(self, trainer: Any) -> bool:
        """Whether validation may follow this batch of a filtered run."""
        assert self._data is not None
        if self._data.candidate_stream is None or not trainer.enable_validation:
            return False
        interval = trainer.val_check_batch
        return bool(
            trainer.is_last_batch or trainer.should_stop or interval is None or interval < trainer.num_training_batches
        )

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self.report.training.stop()

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if _is_within_fit(trainer):  # beside the metrics of validation, for whatever they are plotted against
            pl_module.log_dict(self.report.axes(), sync_dist=True)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if _is_within_fit(trainer):
            self.report.training.run()
        # What validation drew from the global RNGs is given back: a run resumed from an epoch's last batch skips that
        # epoch's validation, and must go on with the same draws.
        if self._rng_before_validation is not None:
            restore_rng_state(self._rng_before_validation)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        assert self._data is not None
        self._jobs.settle()
        classes = summed(self._ranks.gather(self._log.class_counts()))
        self._log.end_epoch(trainer, pl_module, classes)
        metrics = self._ranks.gather(self.report.end_epoch(self._data.candidate_stream))
        pl_module.log_dict(over_ranks(metrics), sync_dist=True)

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
        self._jobs.settle()
        return self.report.summary(None if self._data is None else self._data.candidate_stream)

    def keep_probability(self, indices: Iterable[int]) -> npt.NDArray[np.floating[Any]]:
        """The chance that each of some instances would be kept if it were a candidate now, after a first pass.

        Args:
            indices: Positions in the train data set, shape ``(n,)``.
        """
        self._jobs.settle()
        return self._learner.keep_probability(np.fromiter(indices, np.int64), pass_index=1)

    @property
    def instances(self) -> InstanceStore | None:
        """What is remembered of each instance; None before the first batch, and where the policy needs no scores."""
        self._jobs.settle()
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
        return {
            "layout": LAYOUT,
            "learner": self._learner.state_dict(),
            "is_on_stream": self._is_on_stream,
            "reports": self._ranks.gather(self.report.state_dict()),
            "counts": self._log.state_dict(),
            "capture": self._capture.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not is_readable(state_dict):
            return
        if state_dict["is_on_stream"]:
            self._suit_stream()
        self._learner.load_state_dict(state_dict["learner"])
        reports = state_dict["reports"]
        self.report.load_state_dict(reports[self._ranks.rank % len(reports)])
        self._log.load_state_dict(state_dict["counts"])
        if "capture" in state_dict:
            self._capture.load_state_dict(state_dict["capture"])
        self._has_begun = True

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

        def observed_training_step(*args: Any, **kwargs: Any) -> Any:
            draw = None if self._data is None else self._data.current_draw
            if draw is None or not self._learner.is_filtering:
                return training_step(*args, **kwargs)
            batch = args[0] if args else next(iter(kwargs.values()), None)
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

    def _observe(
        self, captured: CapturedStep, output: Any, is_automatic: bool, draw: Draw, features: Tensor | None
    ) -> None:
        observation = captured.observe(output)
        if output is None and is_automatic:
            return  # Lightning skips the batch, and so do we
        if observation is None:
            self._learner.pass_unfiltered(captured.reason or "no per-instance loss was found in training_step")
            return
        self._learner.note_told()
        self.report.captured_share = self._capture.share.ratio
        note = self._capture.note_on_share()
        if note is not None:
            rank_zero_warn(note if self.weights in ("none", "mean") else f"{note}. {self._why_mean_weights()}")
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
        if self._unwrap is not None:
            self._unwrap()
            self._unwrap = None
        self._jobs.close()
        if self._data is not None:
            self._data.select_by(None)
        self._step = None
        self.report.training.stop()


def _named(choice: Any, registry: dict[str, type], what: str) -> Any:
    if not isinstance(choice, str):
        return choice
    if choice not in registry:
        raise ValueError(f"{what} must be one of {', '.join(registry)} or an object, got {choice!r}")
    return registry[choice]()


def _choice(choice: str, allowed: tuple[str, ...], what: str, auto: str) -> str:
    if choice not in allowed:
        raise ValueError(f"{what} must be one of {', '.join(allowed)}, got {choice!r}")
    return auto if choice == "auto" else choice


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
