"""The callback: connects layers, optimizers and K-FAC at the Trainer's hooks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_autoassist.capture.interceptor import TrainingStep, observe_training_steps
from lightning_autoassist.capture.layers import LayerCall, LayerCapture
from lightning_autoassist.kfac.fit_checks import check_optimizers, check_strategy
from lightning_autoassist.kfac.layer_choice import choose_layers
from lightning_autoassist.kfac.layer_kinds import LayerKind
from lightning_autoassist.kfac.options import (
    ComputeMethod,
    DampingMode,
    FisherName,
    Interval,
    KFACOptions,
    ModeName,
    SharingName,
    StepName,
    StrategyName,
    kaisa_settings,
)
from lightning_autoassist.kfac.preconditioner import Preconditioner
from lightning_autoassist.losses.functional import Arguments
from lightning_autoassist.losses.sampled_targets import sampled_gradient
from lightning_autoassist.trainer_support.internals import early_factor, is_logging_step, loss_factor
from lightning_autoassist.trainer_support.variants import CallbackBase, LightningModule, Trainer


class KFACCallback(CallbackBase):
    r"""Preconditions the gradients of Linear, convolution and Embedding layers with K-FAC, as KAISA distributes it.

    The module, its optimizer (SGD with momentum is recommended) and its learning rate stay as they are. After backward
    and before clipping a layer's gradient :math:`\nabla` is replaced by :math:`(A \otimes G + \gamma I)^{-1} \nabla`,
    brought to the length that ``step`` says. Parameters of other layers, as of BatchNorm, keep their gradients.

    Sources: Martens & Grosse, ICML 2015, arXiv:1503.05671; Pauloski et al., KAISA, SC 2021, arXiv:2107.01739.

    Args:
        damping: :math:`\gamma`.
        damping_mode: ``"relative"``: in units of the mean eigenvalue of A⊗G of each layer; ``"absolute"``: as it is.
        step: ``"graft"``: each layer's step is as long as its gradient, so that the learning rate keeps its meaning;
            ``"kl_clip"``: KAISA's rule; ``"none"``: as K-FAC gives it.
        kl_clip: :math:`\kappa` of ``step="kl_clip"``.
        factor_decay: Of the running means of A and G, in [0, 1).
        factor_update_steps: Optimizer steps between two updates of A and G; or a function of the step.
        factor_share: Share of a batch's instances from which A and G are updated: every n-th one, with n the nearest
            to 1 / share. 0.125 saves most of the time that this takes with convolutions (Martens & Grosse, section 8).
        inv_update_steps: Optimizer steps between two inversions; or a function of the step.
        early_updates: Whether both are done at steps 1, 2, 4, 8, ... as well, until their interval is reached.
        compute_method: ``"eigen"``: exact damping by eigenvectors; ``"inverse"``: factored Tikhonov damping.
        fisher: ``"empirical"``: gradients of the true targets; ``"monte_carlo"``: of targets drawn from the model's
            predictions, for one more backward pass at each update of the factors.
        weight_sharing: ``"expand"`` or ``"reduce"``, for weights that are used at many positions (arXiv:2311.00636).
        skip_layers: Regular expressions; layers are left out whose name or class has a match.
        max_factor_size: A side with more features gets a diagonal factor.
        grad_worker_fraction: Share of the processes that hold a layer's inverses and precondition its gradient:
            ``"comm_opt"`` (all), ``"hybrid_opt"`` (half), ``"mem_opt"`` (one), or a number.
        assignment_strategy: What is balanced over processes: ``"compute"`` or ``"memory"`` of inversions.
        colocate_factors: Whether one process inverts both factors of a layer.
        symmetry_aware: Whether triangles of factors are sent instead of squares.
        bucket_cap_mb: Most MiB of factors in one collective.
        seed: Of the targets that ``fisher="monte_carlo"`` draws.

    Raises:
        ValueError: If a number is outside its range, or a name unknown.
        TypeError: If something is of another type.

    Example:
        >>> KFACCallback(damping=0.03).options.damping
        0.03
    """

    def __init__(
        self,
        damping: float = 0.1,
        *,
        damping_mode: DampingMode = "relative",
        step: StepName = "graft",
        kl_clip: float = 1e-3,
        factor_decay: float = 0.95,
        factor_update_steps: Interval = 10,
        factor_share: float = 1.0,
        inv_update_steps: Interval = 100,
        early_updates: bool = True,
        compute_method: ComputeMethod = "eigen",
        fisher: FisherName = "empirical",
        weight_sharing: SharingName = "expand",
        skip_layers: Sequence[str] = (),
        max_factor_size: int = 4096,
        grad_worker_fraction: float | ModeName = "comm_opt",
        assignment_strategy: StrategyName = "compute",
        colocate_factors: bool = True,
        symmetry_aware: bool = True,
        bucket_cap_mb: float = 25.0,
        seed: int = 0,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        if not isinstance(skip_layers, str):
            given["skip_layers"] = tuple(skip_layers)
        self.options = KFACOptions(**given)
        self._parts: list[tuple[Any, Preconditioner]] = []  # of each optimizer with layers
        self._part_of: dict[str, Preconditioner] = {}  # of each layer
        self._state: list[dict[str, Any]] | None = None  # to be restored, or of a fit that has ended
        self._capture: LayerCapture | None = None
        self._remove: Callable[[], None] | None = None
        self._warned: set[str] = set()
        self._generator: torch.Generator | None = None
        self._num_drawn = 0  # training steps with drawn targets

    @classmethod
    def kaisa(cls, **changed: Any) -> KFACCallback:
        """The rule and the numbers of KAISA's experiments: absolute damping 1e-3, KL clip 1e-3, intervals 10 and 100.

        They are meant in the scale of the Fisher matrix of the mean loss; kfac-pytorch's factors are smaller by the
        square of the batch's size, so that the same numbers damp much less here.

        Args:
            changed: Other arguments of the class.

        Example:
            >>> KFACCallback.kaisa(grad_worker_fraction="mem_opt").options.step
            'kl_clip'
        """
        return cls(**kaisa_settings(**changed))

    @property
    def preconditioners(self) -> list[Preconditioner]:
        """One for each optimizer that has layers, while a fit runs."""
        return [part for _, part in self._parts]

    # ---- connecting to the Trainer

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_strategy(trainer)
        check_optimizers(trainer, trainer.optimizers)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # After every callback's on_fit_start: who weights the loss's instances is outside of this capture.
        choice = choose_layers(pl_module, self.options)
        self._close()
        self._parts, self._part_of = [], {}
        for optimizer in trainer.optimizers:
            self._add_part(trainer, optimizer, choice.chosen)
        if not self._part_of:
            reasons = "; ".join(f"{name or type(pl_module).__name__}: {why}" for name, why in choice.skipped.items())
            rank_zero_warn(
                f"KFACCallback has no layer to precondition, and training is the optimizer's alone. {reasons}"
            )
            return
        self._restore()
        self._watch(trainer, pl_module, choice.chosen)

    def _add_part(self, trainer: Trainer, optimizer: Optimizer, chosen: dict[str, LayerKind]) -> None:
        own = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        layers = {name: kind for name, kind in chosen.items() if own.issuperset(kind.parameters)}
        if not layers:
            return
        try:
            part = Preconditioner(layers, self.options, trainer.global_rank, trainer.world_size)
        except ValueError as error:
            raise MisconfigurationException(str(error)) from error
        self._parts.append((optimizer, part))
        self._part_of.update(dict.fromkeys(layers, part))

    def _watch(self, trainer: Trainer, pl_module: LightningModule, chosen: dict[str, LayerKind]) -> None:
        if self.options.fisher == "monte_carlo":
            self._generator = torch.Generator(pl_module.device)
        self._capture = LayerCapture(
            {name: chosen[name].layer for name in self._part_of},
            self._add,
            loss_factor=functools.partial(loss_factor, trainer, pl_module),
            early_factor=functools.partial(early_factor, trainer),
            sampler=None if self._generator is None else self._sample,
        )
        self._remove = observe_training_steps(trainer.strategy, functools.partial(self._observe, trainer))

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        for number, (own, part) in enumerate(self._parts):
            if own is not optimizer:
                continue
            rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
            is_logging = bool(trainer.loggers) and is_logging_step(trainer)
            with _without_autocast(pl_module.device):
                part.step(rates, with_figures=is_logging)
            if is_logging:
                suffix = f"_{number}" if len(self._parts) > 1 else ""
                pl_module.log_dict({f"kfac/{name}{suffix}": value for name, value in _figures(part).items()})

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._state = self._states()
        self._close()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._close()

    def _close(self) -> None:
        """Remove every hook."""
        if self._remove is not None:
            self._remove()
        if self._capture is not None:
            self._capture.close()
        self._remove = self._capture = self._generator = None

    # ---- a training step

    def _observe(self, trainer: Trainer, step: TrainingStep) -> Any:
        assert self._capture is not None
        self._capture.is_on = any(part.wants_calls for _, part in self._parts)
        if self._generator is not None and self._capture.is_on:
            # One seed for each step and process: nothing has to be remembered but the number of the step.
            number = (self.options.seed * 1_000_003 + self._num_drawn) * trainer.world_size + trainer.global_rank
            self._generator.manual_seed(number % 2**63)
            self._num_drawn += 1
        output = self._capture.observe(step)
        if self._capture.is_on:
            self._warn_of_unknown(self._capture)
        return output

    def _add(self, call: LayerCall) -> None:
        with _without_autocast(call.gradients.device):
            self._part_of[call.name].add(call.name, call)

    def _sample(self, function: Callable[..., Any], arguments: Arguments) -> tuple[Tensor, Tensor] | None:
        assert self._generator is not None
        return sampled_gradient(function, arguments, self._generator)

    def _warn_of_unknown(self, capture: LayerCapture) -> None:
        """Say once what has to be assumed of the loss."""
        if capture.unknown_scale is not None and self.options.damping_mode == "absolute":
            self._warn(
                "scale",
                f"K-FAC does not know how the training step reduces its loss ({capture.unknown_scale}) and assumes a "
                "mean over the batch. The absolute damping may be meant in another scale; damping_mode='relative' does "
                "not depend on it.",
            )
        if capture.unsampled is not None:
            self._warn(
                "sampled",
                f"K-FAC cannot draw targets for {capture.unsampled}, which is no likelihood that it knows, and uses "
                "the gradients of the true targets instead.",
            )

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            rank_zero_warn(message)

    # ---- checkpoints

    @override
    def state_dict(self) -> dict[str, Any]:
        parts = self._states() if self._state is None and self._parts else self._state
        return {"parts": parts, "num_drawn": self._num_drawn}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = state_dict["parts"]
        self._num_drawn = state_dict["num_drawn"]
        if self._capture is not None:
            self._restore()

    def _states(self) -> list[dict[str, Any]]:
        return [part.state_dict() for _, part in self._parts]

    def _restore(self) -> None:
        states, self._state = self._state, None
        if states is None:
            return
        if len(states) != len(self._parts):
            rank_zero_warn(
                f"The checkpoint has Kronecker factors of {len(states)} optimizers with layers, and this run has "
                f"{len(self._parts)} of these: K-FAC begins anew with all layers."
            )
            return
        for (_, part), state in zip(self._parts, states, strict=True):
            part.load_state_dict(state)


def _figures(part: Preconditioner) -> dict[str, Any]:
    """What is logged."""
    sent = {f"bytes_sent_{kind}": float(value) for kind, value in part.communicator.sent.items()}
    return {
        **part.figures,
        **{f"seconds_{name}": value for name, value in part.seconds.items()},
        "bytes_factors": float(part.bytes_of_factors),
        "bytes_inverses": float(part.bytes_of_inverses),
        **sent,
    }


def _without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, enabled=False)
