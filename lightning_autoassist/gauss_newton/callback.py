"""The callback: turns the gradients of an unmodified module into Gauss-Newton steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_autoassist.capture.interceptor import TrainingStep, observe_training_steps
from lightning_autoassist.capture.loss_weights import weights_in_force
from lightning_autoassist.gauss_newton.damping import judge
from lightning_autoassist.gauss_newton.fit_checks import check_fit, warn_of_settings
from lightning_autoassist.gauss_newton.gathering import mean_over
from lightning_autoassist.gauss_newton.instance_rows import NO_CURVATURE, CannotSolveError, instance_rows
from lightning_autoassist.gauss_newton.solvers import SKETCH_NAMES, SketchName, SolverName, SolverOptions
from lightning_autoassist.gauss_newton.step_tape import StepTape
from lightning_autoassist.gauss_newton.window import (
    MicroBatch,
    Steps,
    System,
    changes_by_sgd,
    gradients_of,
    losses_before_and_after,
    predicted_reduction,
    steps_of,
    system_of,
)
from lightning_autoassist.trainer_support.arguments import check_choice, check_number, check_whole
from lightning_autoassist.trainer_support.process_group import Ranks
from lightning_autoassist.trainer_support.variants import CallbackBase, LightningModule, Trainer

CallbackSolver = Literal["auto", "gram", "cg", "sketch", "nystrom"]
Schedule = Literal["lm", "constant"]
# Most rows of a system that solver="auto" solves exactly.
EXACT_ROWS = 2048
# How far the gradient by the system's rows may be from backward's, relative to its norm.
TOLERANCE, HALF_TOLERANCE = 1e-2, 0.2


class GaussNewtonCallback(CallbackBase):
    r"""Replaces each gradient by a Gauss-Newton step, :math:`(J^T H J + \lambda I)^{-1} J^T g`, of the batch.

    For modules whose trained parameters are those of Linear layers, with few outputs, trained by ``torch.optim.SGD``,
    best with ``lr=1.0`` and no momentum. The system is solved over the instances of the batch, where it has as many
    rows as the batch has instances times outputs, and the Jacobian is never formed. The module stays as it is.

    Between Linear layers anything may stand that treats instances apart. The loss may be any sum over instances that
    is twice differentiable at the last Linear layer's outputs. In the first step the gradient that follows from the
    rows is compared with that of backward, so that what breaks these rules is refused.

    Source: Cai et al., Gram-Gauss-Newton Method, arXiv:1905.11675; Brand, Peng, Song & Weinstein, ITCS 2021,
    arXiv:2006.11648; damping: Marquardt, 1963.

    Args:
        damping: :math:`\lambda`, relative to the mean of the Gram matrix's diagonal; where it begins, if it is adapted.
        damping_schedule: ``"lm"``: as Levenberg and Marquardt have it, by the actual over the predicted reduction of
            the batch's loss; a step that would raise it is not made. ``"constant"``: stays as it is.
        solver: ``"gram"``: exact, by Cholesky's decomposition; ``"sketch"``, ``"nystrom"``, ``"cg"``: conjugate
            gradients with that preconditioner or none; ``"auto"``: exact up to 2,048 rows, Nyström beyond.
        max_outputs: Most outputs of the network; each costs a backward pass, and rows.
        cg_tol: Of conjugate gradients: norm of the residual, relative to that of the right-hand side.
        max_cg_iter: Most iterations of conjugate gradients.
        sketch: ``"tensor_srht"`` or ``"tensor_sketch"``.
        sketch_ratio: Rows of the sketch for each row of the system.
        rank: Of Nyström's approximation.
        seed: Of sketches; the global RNG stays untouched.

    Attributes:
        num_steps: Optimizer steps so far.
        num_cg_iterations: Of the latest step; 0 where it was solved exactly.

    Raises:
        ValueError: If an argument lies outside its range; at the fit's start or in its first step, if the module, its
            optimizer or its loss are none that Gauss-Newton can train.

    Example:
        >>> GaussNewtonCallback(damping=0.1).damping_in_force
        0.1
    """

    def __init__(
        self,
        damping: float = 1e-2,
        *,
        damping_schedule: Schedule = "lm",
        solver: CallbackSolver = "auto",
        max_outputs: int = 10,
        cg_tol: float = 0.1,
        max_cg_iter: int = 50,
        sketch: SketchName = "tensor_sketch",
        sketch_ratio: float = 4.0,
        rank: int = 256,
        seed: int = 0,
    ) -> None:
        self.damping = check_number("damping", damping, "(0, inf)", "try 1e-2")
        self.damping_schedule: Schedule = check_choice("damping_schedule", damping_schedule, ("lm", "constant"))
        self.solver: CallbackSolver = check_choice("solver", solver, ("auto", "gram", "cg", "sketch", "nystrom"))
        self.max_outputs = check_whole("max_outputs", max_outputs, "[1, inf)", "10 is the default")
        self.seed = check_whole("seed", seed, "[0, inf)", "0 is the default")
        self._options = SolverOptions(
            "gram",
            check_number("cg_tol", cg_tol, "(0, 1)", "try 0.1"),
            check_whole("max_cg_iter", max_cg_iter, "[1, inf)", "50 is the default"),
            check_choice("sketch", sketch, SKETCH_NAMES),
            check_number("sketch_ratio", sketch_ratio, "[1, inf)", "4 is the default"),
            check_whole("rank", rank, "[1, inf)", "256 is the default"),
        )
        self.num_steps = 0
        self.num_cg_iterations = 0
        self._damping = torch.tensor(self.damping, dtype=torch.float64)
        self._ranks = Ranks()
        self._remove: Callable[[], None] | None = None
        self._parameters: list[Tensor] = []
        self._running: tuple[StepTape, Tensor, Tensor | None] | None = None
        self._window: list[MicroBatch] = []
        self._is_checked = False
        self._adapts = self.damping_schedule == "lm"

    @property
    def damping_in_force(self) -> float:
        """The damping of the next step; waits for the device."""
        return float(self._damping)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and self._ranks.world_size != trainer.world_size:
            self._ranks = Ranks(trainer.global_rank, trainer.world_size)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_fit(trainer, pl_module)
        warn_of_settings(trainer)
        self._parameters = [parameter for parameter in pl_module.parameters() if parameter.requires_grad]
        self._damping = self._damping.to(
            pl_module.device, torch.promote_types(cast("torch.dtype", pl_module.dtype), torch.float32)
        )
        self._is_checked, self._adapts = False, self.damping_schedule == "lm"
        # The last to register is the innermost: it sees the weights that others let enter.
        self._remove = observe_training_steps(trainer.strategy, self._observe)

    def _observe(self, step: TrainingStep) -> Any:
        is_weighted = weights_in_force() is not None
        with StepTape(self._parameters, keeps_calls=self._adapts or is_weighted) as tape:
            output = step.run()
        loss = output.get("loss") if isinstance(output, Mapping) else output
        self._running = (tape, loss, weights_in_force()) if isinstance(loss, Tensor) else None
        return output

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        running, self._running = self._running, None
        if running is None:
            return
        # The loss as the step returned it, and not ``loss``, which is divided by the accumulated batches and scaled.
        tape, returned, weights = running
        if not tape.linear_calls:
            raise CannotSolveError(
                "no call of a trained Linear layer was seen in training_step; compiled code hides them: give "
                "GaussNewtonCallback the module as it was before torch.compile"
            )
        rows = instance_rows(tape, returned, self.max_outputs, weights)
        self._window.append(MicroBatch(rows, returned, tape))

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        window, self._window = self._window, []
        if not window:
            return
        system = system_of(window, self._ranks)
        if not self._is_checked:
            self._check(system, window)
        steps, self.num_cg_iterations = steps_of(system, self._damping, self._options_for(system), self._generator())
        is_accepted = _are_finite(steps)
        if self._adapts:
            is_accepted = is_accepted & self._judge(system, window, changes_by_sgd(steps, optimizer))
        for parameter, step in steps.items():
            assert parameter.grad is not None
            parameter.grad.copy_(torch.where(is_accepted, step, 0.0))
        self.num_steps += 1

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._disconnect()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._disconnect()

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"damping": self.damping_in_force, "num_steps": self.num_steps}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._damping = torch.tensor(state_dict["damping"], dtype=torch.float64)
        self.num_steps = state_dict["num_steps"]

    def _judge(self, system: System, window: list[MicroBatch], changes: Steps) -> Tensor:
        """Adapt the damping; returns whether the step is to be made."""
        before, after, failure = self._losses(window, changes)
        if failure is not None:  # the step itself is solved for
            self._stop_adapting(failure)
            return torch.ones((), dtype=torch.bool, device=self._damping.device)
        predicted = predicted_reduction(system, changes).to(before)
        self._damping, is_accepted = judge(self._damping, before, after, predicted)
        return is_accepted

    def _check(self, system: System, window: list[MicroBatch]) -> None:
        """In the first step only, as it waits for the device."""
        ours = gradients_of(system)
        others = [each for each in self._parameters if each not in ours and each.grad is not None]
        if any(bool(each.grad.any()) for each in others if each.grad is not None):
            raise CannotSolveError(
                "the loss depends on parameters whose layers were not seen as Linear layers in training_step, of "
                f"shapes {', '.join(str(tuple(each.shape)) for each in others)}; freeze them, or use KFACCallback"
            )
        distance = _distance(ours)
        if distance is None:
            return
        if not any(self._ranks.gather(bool(system.rows.has_curvature))):
            raise CannotSolveError(NO_CURVATURE)
        self._is_checked = True
        is_half = window[-1].tape.linear_calls[-1].output.dtype in (torch.float16, torch.bfloat16)
        if distance > (HALF_TOLERANCE if is_half else TOLERANCE):
            raise CannotSolveError(
                f"the gradient that follows from the instances' rows differs from that of backward by {distance:.0%}: "
                "the loss depends on the parameters in another way than through the last Linear layer's outputs, as "
                "by a penalty (pass it to SGD as weight_decay) or by a second head, or an instance's outputs depend "
                "on other instances or positions, as with attention and batch statistics. Use KFACCallback for such "
                "a network"
            )
        if self._adapts:
            self._check_tape(window)

    def _check_tape(self, window: list[MicroBatch]) -> None:
        before, again, failure = self._losses(window, {})
        if failure is None and not bool(torch.isclose(before, again, rtol=1e-3, atol=1e-6)):
            failure = f"it comes to {float(again):.4g} where the step's was {float(before):.4g}"
        if failure is not None:
            self._stop_adapting(failure)

    def _losses(self, window: list[MicroBatch], changes: Steps) -> tuple[Tensor, Tensor, str | None]:
        """Before and after; in words, why they cannot be had in some process."""
        failure = None
        try:
            losses = losses_before_and_after(window, changes)
        except Exception as error:
            losses = torch.full((2,), torch.nan, device=self._damping.device)
            failure = f"{type(error).__name__}: {error}"
        failures = [each for each in self._ranks.gather(failure) if each is not None]
        before, after = mean_over(losses, self._ranks)
        return before, after, failures[0] if failures else None

    def _stop_adapting(self, why: str) -> None:
        self._adapts = False
        rank_zero_warn(
            f"the step's loss cannot be computed again with other parameters ({why}), so that damping stays at "
            f'{self.damping_in_force:g} from now on; damping_schedule="constant" says the same without this warning'
        )

    def _options_for(self, system: System) -> SolverOptions:
        suited: SolverName = "gram" if system.jacobian.num_rows <= EXACT_ROWS else "nystrom"
        chosen: SolverName = suited if self.solver == "auto" else self.solver
        return replace(self._options, solver=chosen)

    def _generator(self) -> torch.Generator:
        """New for each step, so that a resumed run needs nothing but the step's number."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + self.num_steps)

    def _disconnect(self) -> None:
        if self._remove is not None:
            self._remove()
        self._remove = self._running = None
        self._window, self._parameters = [], []


def _are_finite(steps: Steps) -> Tensor:
    return torch.stack([torch.isfinite(step).all() for step in steps.values()]).all()


def _distance(ours: Steps) -> float | None:
    """Of two gradients up to a factor, relative to the norm of backward's; None where there is nothing to compare."""
    pairs = [(step, parameter.grad) for parameter, step in ours.items() if parameter.grad is not None]
    first = torch.cat([step.flatten() for step, _ in pairs])
    second = torch.cat([grad.flatten().to(first) for _, grad in pairs])
    norm, square = float(second.norm()), float(first.square().sum())
    if not 0 < norm < float("inf") or not 0 < square < float("inf"):
        return None
    return float((second - first * ((first @ second) / square)).norm()) / norm
