"""The callback: connects the Boss's losses, the Assistant and the batch generator, and keeps their state.

Shapes: N data set, B batch, n candidates, F features.
"""

from __future__ import annotations

import inspect
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_autoassist.assistants import ASSISTANTS, Assistant
from lightning_autoassist.candidates import WEIGHT_MODES, Draw, IndexArray, Rows
from lightning_autoassist.datamodule import HOW_TO_USE, AutoAssistDataModule
from lightning_autoassist.feature_file import FeaturePlace
from lightning_autoassist.features import (
    FEATURE_MEMORY,
    MAX_FEATURES,
    BatchFeatures,
    FeatureFunction,
    InstanceStore,
)
from lightning_autoassist.flavours import CallbackBase, overrides
from lightning_autoassist.loss_capture import SCORES, CapturedStep, InstanceLossCapture, Observation
from lightning_autoassist.policies import POLICIES, Policy
from lightning_autoassist.report import FilterReport, warn_about_limits
from lightning_autoassist.rng import restore_rng_state, rng_state
from lightning_autoassist.row_learner import RowLearner
from lightning_autoassist.run_log import Decode, RunLog
from lightning_autoassist.selection import Selection


class _Observed(NamedTuple):
    """One step's observation on its way from the Boss's device to the Assistant."""

    indices: Tensor
    losses: Tensor
    scores: Tensor
    labels: Tensor | None
    features: Tensor | None
    integers: dict[str, Tensor] | None  # of a stream's batch, whose indices name no instances
    arrived: torch.cuda.Event | None  # None: the tensors are on the CPU


class AutoAssistCallback(CallbackBase):
    """Trains an Assistant beside the Boss and lets it decide which instances are worth a place in a batch.

    Goes with an :class:`~lightning_autoassist.AutoAssistDataModule`; the module that is trained stays as it is. The
    first pass over the data keeps everything, as does anything that goes wrong later: then training goes on
    unfiltered, with one warning that says why.

    Source: Zhang, Yu & Dhillon, AutoAssist, NeurIPS 2019, arXiv:1905.03381.

    Args:
        assistant: What predicts scores: a name in ``ASSISTANTS``, an :class:`~lightning_autoassist.Assistant`, or
            ``"auto"``: the policy's own (``"logistic"`` for the paper's).
        policy: What turns predicted scores into keep probabilities: a name in ``POLICIES`` or a
            :class:`~lightning_autoassist.Policy`.
        score: What the Assistant predicts: ``"gradient_norm"`` of the instance's loss at the loss's input,
            ``"loss"``, or ``"auto"``: what the policy's source uses.
        weights: What balances kept against dropped instances: ``"none"``, ``"sum"``, ``"mean"`` (see
            :class:`~lightning_autoassist.ShrinkingBatchSampler`), or ``"auto"``: the policy's own.
        features: Gets a batch and returns ``(B, F)`` features for the Assistant; None takes them from the batch, see
            :class:`~lightning_autoassist.features.BatchFeatures`.
        tail: Share of training at whose end every candidate is kept, in [0, 1); None: the policy's own.
        max_features: Most numbers that are remembered of an instance.
        feature_memory: Most bytes that the remembered features may take in memory and in each checkpoint; more of them
            go to a file beside the checkpoints (named ``autoassist-features-...``), which a resumed run needs.
        lag: Steps between a batch and the Assistant's learning from it; 0 learns at once. None: 0 on CPU, 4 on other
            devices, so that the device never waits.
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
        policy: str | Policy = "autoassist",
        *,
        score: str = "auto",
        weights: str = "auto",
        features: FeatureFunction | None = None,
        tail: float | None = None,
        max_features: int = MAX_FEATURES,
        feature_memory: int = FEATURE_MEMORY,
        lag: int | None = None,
        decode: Decode | None = None,
    ) -> None:
        self.policy: Policy = _named(policy, POLICIES, "policy")
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
        self.lag = lag
        self._feature_memory = feature_memory
        self.report = FilterReport()
        self._log = RunLog(self, decode)
        self._features = BatchFeatures(features, max_features)
        self._capture = InstanceLossCapture(score=self.score)
        self._store: InstanceStore | None = None
        self._rows = RowLearner(self.assistant, self.policy, self._features)
        self._restored: dict[str, Any] | None = None
        self._has_begun = False
        self._progress = 0.0
        self._rng_before_validation: dict[str, Any] | None = None
        self._is_filtering = self.policy.needs_scores
        self._data: AutoAssistDataModule | None = None
        self._step: tuple[Draw, Observation, Tensor | None] | None = None
        self._pending: deque[_Observed] = deque()
        self._unwrap: Callable[[], None] | None = None

    # ---- connecting to the Trainer

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage != "fit":
            return
        _check_devices(trainer)
        self._data = _data_module_of(trainer)
        if overrides(pl_module, "on_before_batch_transfer"):
            # Lightning would say that the module's hook is ignored; the data module calls it.
            warnings.filterwarnings("ignore", "You have overridden `on_before_batch_transfer` in both")
        self._log.connect(trainer)
        selection = Selection(
            self._keep_probability,
            self.policy.keeps_everything,
            self.weights,
            self._prepare_store,
            self._keep_rows,
            self._row_features if self._rows.reads_features else None,
            self._rows.refusal,
            self._log.count,
        )
        self._data.select_by(selection, restart=not self._has_begun)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        if "dataloader_iter" in inspect.signature(pl_module.training_step).parameters:
            raise MisconfigurationException(
                "training_step(dataloader_iter) takes its batches by itself, so that AutoAssist cannot tell which "
                "instances they hold; write training_step(batch, batch_idx)"
            )
        if self.policy.needs_scores:
            self._wrap_training_step(trainer, pl_module)
        if self.lag is None:
            self.lag = 0 if pl_module.device.type == "cpu" else 4

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        assert self._data is not None
        self._has_begun = True
        if trainer.global_step == 0:  # later iterations begin at their first batch, in plain Lightning too
            self._data.start_fetching()
        stream = self._data.candidate_stream
        if stream is not None:
            warn_about_limits(trainer, stream)
        self.report.start_epoch(stream)
        self._log.start(trainer)
        self.report.training.run()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert self._data is not None
        assert self.lag is not None
        draw = self._data.confirm_draw()
        self.report.count_batch(0 if draw is None else len(draw.indices), trainer.global_step)
        if trainer.max_epochs > 0:
            self._progress = (
                trainer.current_epoch + (batch_idx + 1) / trainer.num_training_batches
            ) / trainer.max_epochs
        step, self._step = self._step, None
        with self.report.timed(), self._unfiltered_on_error():
            if step is not None:
                self._pending.append(_to_host(*step))
            while len(self._pending) > self.lag:
                self._learn(self._pending.popleft())
        self._log.end_step(trainer, pl_module, batch_idx)

        self._rng_before_validation = rng_state() if self._may_validate_next(trainer) else None

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
        self._log.end_epoch(trainer, pl_module)
        pl_module.log_dict(self.report.end_epoch(self._data.candidate_stream), sync_dist=True)

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
        return self.report.summary(None if self._data is None else self._data.candidate_stream)

    def keep_probability(self, indices: Iterable[int]) -> npt.NDArray[np.floating[Any]]:
        """The chance that each of some instances would be kept if it were a candidate now, after a first pass.

        Args:
            indices: Positions in the train data set, shape ``(n,)``.
        """
        return self._keep_probability(np.fromiter(indices, np.int64), pass_index=1)

    @property
    def instances(self) -> InstanceStore | None:
        """What is remembered of each instance; None before the first batch, and where the policy needs no scores."""
        return self._store

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        return {
            "assistant": self.assistant.state_dict(),
            "policy": self.policy.state_dict(),
            "store": None if self._store is None else self._store.state_dict(),
            "pending": [_on_host(observed)._asdict() for observed in self._pending],
            "report": self.report.state_dict(),
            "label_column": self._rows.label_column.paths,
            "is_filtering": self._is_filtering,
            "progress": self._progress,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.assistant.load_state_dict(state_dict["assistant"])
        self.policy.load_state_dict(state_dict["policy"])
        self.report.load_state_dict(state_dict["report"])
        self._pending = deque(_Observed(**parts) for parts in state_dict["pending"])
        self._is_filtering = state_dict["is_filtering"]
        self._progress = state_dict["progress"]
        self._rows.label_column.paths = state_dict["label_column"]
        self._restored = state_dict["store"]
        self._store = None
        self._has_begun = True

    def _prepare_store(self, num_instances: int) -> None:
        """Make room for the data set, before its first batch is drawn."""
        self._log.prepare(num_instances)
        if not self.policy.needs_scores:
            return
        restored, self._restored = self._restored, None
        if self._store is not None and len(self._store) == num_instances:
            return
        if restored is not None and len(restored["seen"]) != num_instances:
            rank_zero_warn(
                f"the checkpoint remembers {len(restored['seen'])} instances, the data set has {num_instances}: "
                "what was remembered of them is dropped, every instance is kept until it was seen again"
            )
            self._pending.clear()
            restored = None
        assert self._data is not None
        self._store = InstanceStore(num_instances, self._feature_memory, _feature_place(self._data.trainer))
        if restored is not None:
            self._store.load_state_dict(restored)

    # ---- the batch generator asks

    def _keep_probability(self, indices: IndexArray, pass_index: int) -> npt.NDArray[np.floating[Any]]:
        """Chances of candidates, shape ``(n,)``: 1 in the first pass, for unseen instances, when not filtering."""
        everything = np.ones(len(indices), np.float32)
        if pass_index == 0 or self._progress > 1 - self.tail:
            return everything
        if not self.policy.needs_scores:
            return self.policy.keep_probability(torch.from_numpy(everything)).numpy()
        if not self._is_filtering or self._store is None:
            return everything
        with self._unfiltered_on_error():
            rows = torch.from_numpy(indices)
            known = self._store.knows(rows, self.assistant.reads)
            if not known.any():
                return everything
            candidates = self._store.rows(rows, self.assistant.reads)
            probs = self.policy.keep_probability(self.assistant.predict(candidates))
            if self.policy.reads_labels and self._store.labels is not None:
                probs = self.policy.balance(probs, self._store.labels[rows])
            # A prediction that is not a number says nothing against the instance.
            return probs.where(known & ~probs.isnan(), 1.0).numpy()
        return everything

    def _keep_rows(self, rows: Rows, pass_index: int) -> npt.NDArray[np.floating[Any]]:
        """Chances of a stream's rows, shape ``(n,)``; there is no unseen one to be kept."""
        if self._progress <= 1 - self.tail and (self._is_filtering or not self.policy.needs_scores):
            with self._unfiltered_on_error():
                return self._rows.keep_probability(rows)
        return np.ones(rows.size, np.float32)

    def _row_features(self, batch: Any, num_rows: int) -> Tensor | None:
        if self._is_filtering:
            with self._unfiltered_on_error():
                return self._rows.features(batch, num_rows)
        return None

    # ---- the Boss answers

    def _wrap_training_step(self, trainer: Any, pl_module: Any) -> None:
        strategy = trainer.strategy
        training_step = strategy.training_step

        def observed_training_step(*args: Any, **kwargs: Any) -> Any:
            draw = None if self._data is None else self._data.current_draw
            if draw is None or not self._is_filtering:
                return training_step(*args, **kwargs)
            batch = args[0] if args else next(iter(kwargs.values()), None)
            with self.report.timed():
                features = self._new_features(draw, batch)
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
            self._stop_filtering(captured.reason or "no per-instance loss was found in training_step")
            return
        self._step = draw, observation, features
        if self._capture.has_other_terms and self.weights != "mean":
            self._fall_to_mean_weights()

    def _fall_to_mean_weights(self) -> None:
        """Keep the balance between the instances' losses and terms of the loss that have no instances."""
        rank_zero_warn(
            f'the loss has terms beside the instances\' own, as L2 or KL by hand are: with weights="{self.weights}" '
            'filtering would shift the balance between them, so weights="mean" are used'
        )
        self.weights = "mean"
        if self._data is not None:
            self._data.weigh_by("mean")

    def _new_features(self, draw: Draw, batch: Any) -> Tensor | None:
        """Features of the batch, where the Assistant reads them and some instance has none yet."""
        if draw.rows is not None:
            return draw.rows.features
        if "features" not in self.assistant.reads or self._store is None:
            return None
        if self._store.knows(torch.from_numpy(draw.indices), self.assistant.reads).all():
            return None
        with self._unfiltered_on_error():
            features = self._features(batch, len(draw.indices))
            if features is None:
                raise ValueError("the batch holds no tensor with one row an instance; pass features=")
            return features
        return None

    def _learn(self, observed: _Observed) -> None:
        """Let the Assistant learn from one batch of the Boss."""
        observed = _on_host(observed)
        if observed.integers is not None:
            self._learn_from_rows(observed, observed.integers)
            return
        assert self._store is not None
        indices, losses, scores = observed.indices, observed.losses, observed.scores
        finite = losses.isfinite() & scores.isfinite()
        if not finite.all():
            # Neither learnt from nor dropped: kept again when it comes up, in the hope of a finite loss.
            self._store.forget(indices[~finite])
            self.report.count_nonfinite(int((~finite).sum()))
        if observed.features is not None:
            self._store.put_features(indices[finite], observed.features[finite])
        # A resumed run may have lost features of instances that the interrupted one was about to learn from.
        learnt = finite & self._store.holds(indices, self.assistant.reads)
        indices, scores = indices[learnt], scores[learnt]
        if not len(indices):
            return
        if observed.labels is not None:
            self._store.put_labels(indices, observed.labels[learnt])
        instances = self._store.rows(indices, self.assistant.reads)  # as remembered, before this batch
        self._store.put_scores(indices, scores)
        outcome = self.assistant.update(instances, scores)
        self.policy.observe(outcome.predictions, outcome.targets)
        self.report.count_outcome(outcome)

    def _learn_from_rows(self, observed: _Observed, integers: dict[str, Tensor]) -> None:
        """The same for a stream's batch."""
        scores = observed.scores.where(observed.losses.isfinite(), torch.nan)
        self.report.count_nonfinite(int((~scores.isfinite()).sum()))
        outcome = self._rows.learn(observed.features, integers, observed.labels, scores)
        if outcome is not None:
            self.report.count_outcome(outcome)

    # ---- when something goes wrong

    @contextmanager
    def _unfiltered_on_error(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever it is, it must not cost the user the run
            self._stop_filtering(f"{type(error).__name__}: {error}")

    def _stop_filtering(self, reason: str) -> None:
        if self._is_filtering:
            self._is_filtering = False
            self._pending.clear()
            rank_zero_warn(f"AutoAssist stopped filtering, training goes on with every instance. {reason}")

    def _disconnect(self) -> None:
        if self._unwrap is not None:
            self._unwrap()
            self._unwrap = None
        if self._data is not None:
            self._data.select_by(None)
        self._step = None
        self.report.training.stop()


def _to_host(draw: Draw, observation: Observation, features: Tensor | None) -> _Observed:
    """Start the copies to the CPU; on CUDA none of them is waited for."""
    on_cuda = observation.losses.is_cuda

    def started(tensor: Tensor) -> Tensor:
        return tensor.to("cpu", non_blocking=on_cuda)

    return _Observed(
        indices=torch.from_numpy(draw.indices),
        losses=started(observation.losses),
        scores=started(observation.scores),
        labels=None if observation.labels is None else started(observation.labels),
        features=None if features is None else started(features),
        integers=None if draw.rows is None else draw.rows.integers,
        arrived=torch.cuda.current_stream(observation.losses.device).record_event() if on_cuda else None,
    )


def _on_host(observed: _Observed) -> _Observed:
    """The same with its copies arrived."""
    if observed.arrived is not None:
        observed.arrived.synchronize()
    return observed._replace(arrived=None)


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


def _is_within_fit(trainer: Any) -> bool:
    """Whether a validation is one between training steps."""
    return trainer.state.fn == "fit" and not trainer.sanity_checking


def _check_devices(trainer: Any) -> None:
    if trainer.world_size > 1:
        raise MisconfigurationException(
            f"AutoAssist filters on one device only so far, this Trainer has {trainer.world_size}; use devices=1"
        )


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
