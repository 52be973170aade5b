"""One optimizer step's batches, and the Gauss-Newton step that is made of them.

Shapes: n instances of all batches and processes, C outputs of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from lightning_autoassist.gauss_newton.gathering import gathered, joined
from lightning_autoassist.gauss_newton.instance_rows import CannotSolveError, InstanceRows
from lightning_autoassist.gauss_newton.jacobian import Jacobian
from lightning_autoassist.gauss_newton.solvers import SolverOptions, solve
from lightning_autoassist.gauss_newton.step_tape import LinearCall, StepTape
from lightning_autoassist.trainer_support.process_group import Ranks

Steps = dict[Tensor, Tensor]


class MicroBatch(NamedTuple):
    """One batch's forward pass.

    Attributes:
        rows: Of the system.
        loss: What the step returned, detached from nothing: the tape knows it by what it is.
        tape: Of the step.
    """

    rows: InstanceRows
    loss: Tensor
    tape: StepTape


class System(NamedTuple):
    r"""The least squares problem of one optimizer step.

    Attributes:
        calls: Of the linear layers, those of the last batch.
        rows: Of all batches and processes.
        jacobian: :math:`\tilde J`.
        scale: The mean of the diagonal of K, which damping is relative to.
    """

    calls: Sequence[LinearCall]
    rows: InstanceRows
    jacobian: Jacobian
    scale: Tensor


def system_of(window: Sequence[MicroBatch], ranks: Ranks) -> System:
    """Put the rows of an optimizer step's batches together.

    Args:
        window: The batches of this process.
        ranks: The processes.

    Raises:
        CannotSolveError: If the batches did not call the same layers.
    """
    calls = window[-1].tape.linear_calls
    orders = {tuple(id(call.weight) for call in batch.tape.linear_calls) for batch in window}
    if len(orders) > 1:
        raise CannotSolveError(
            "the batches that are accumulated call different linear layers; Gauss-Newton needs the same"
        )
    rows = gathered(joined([batch.rows for batch in window]), ranks)
    jacobian = Jacobian(rows.layers)
    diagonal = jacobian.gram_diagonal()
    return System(calls, rows, jacobian, diagonal.sum() / (diagonal > 0).sum().clamp(min=1))


def steps_of(system: System, damping: Tensor, options: SolverOptions, generator: Generator) -> tuple[Steps, int]:
    """The step of each parameter, to be subtracted, and the iterations that its solution took.

    Args:
        system: What to solve.
        damping: Relative to the mean of K's diagonal.
        options: How.
        generator: Of sketches.
    """
    found = solve(system.jacobian, system.rows.residual, damping * system.scale, options, generator)
    by_layer = system.jacobian.transposed_times(found.rows)
    return _by_parameter(system.calls, by_layer), found.num_iterations


def gradients_of(system: System) -> Steps:
    """The loss's gradient at each parameter, by the system's own rows: what backward has computed, too."""
    return _by_parameter(system.calls, system.jacobian.transposed_times(system.rows.residual))


def predicted_reduction(system: System, changes: Steps) -> Tensor:
    """By how much the quadratic model of the returned loss falls.

    Args:
        system: With the model.
        changes: Of the parameters, as they are subtracted.
    """
    image = system.jacobian.times([_by_layer(call, changes) for call in system.calls])
    return (system.rows.shares.unsqueeze(1) * (system.rows.residual * image - 0.5 * image.square())).sum()


def changes_by_sgd(steps: Steps, optimizer: Any) -> Steps:
    """What SGD without momentum subtracts from the parameters whose gradients are these steps."""
    settings = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    changes = {}
    for parameter, step in steps.items():
        group = settings.get(id(parameter), {"lr": 0.0, "weight_decay": 0.0})
        changes[parameter] = group["lr"] * (step + group["weight_decay"] * parameter.detach())
    return changes


def losses_before_and_after(window: Sequence[MicroBatch], changes: Steps) -> Tensor:
    """The returned losses' mean over this process's batches, as it was and with changed parameters, shape ``(2,)``."""
    trial = {parameter: parameter.detach() - change.to(parameter) for parameter, change in changes.items()}
    before = torch.stack([batch.loss.detach().float() for batch in window]).mean()
    after = torch.stack([batch.tape.replay(batch.loss, trial).float() for batch in window]).mean()
    return torch.stack([before, after])


def _by_parameter(calls: Sequence[LinearCall], by_layer: Sequence[Tensor]) -> Steps:
    steps: Steps = {}
    for call, step in zip(calls, by_layer, strict=True):
        if call.weight.requires_grad:
            steps[call.weight] = step[:, : call.weight.shape[1]]
        if call.bias is not None and call.bias.requires_grad:
            steps[call.bias] = step[:, -1]
    return steps


def _by_layer(call: LinearCall, values: Mapping[Tensor, Tensor]) -> Tensor:
    parts = [values[call.weight]] if call.weight in values else []
    if call.bias is not None and call.bias in values:
        parts.append(values[call.bias].unsqueeze(1))
    return torch.cat(parts, 1)
