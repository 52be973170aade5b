"""What is refused at the start of a fit, with what to do instead; what is only warned of."""

from __future__ import annotations

from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import nn, optim
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_autoassist.gauss_newton.instance_rows import CannotSolveError
from lightning_autoassist.trainer_support.class_names import class_names
from lightning_autoassist.trainer_support.variants import LightningModule, Trainer

_STRATEGIES = {"SingleDeviceStrategy", "DDPStrategy"}


def check_fit(trainer: Trainer, module: LightningModule) -> None:
    """Raise where Gauss-Newton cannot train the module.

    Args:
        trainer: With its optimizers.
        module: The module, in the mode in which it is trained.

    Raises:
        CannotSolveError: Which says why, and what to do instead.
    """
    _check_module(module)
    if not module.automatic_optimization:
        raise CannotSolveError(
            "the module optimizes by hand (automatic_optimization=False), and GaussNewtonCallback writes its step "
            "between Lightning's backward and the optimizer's step; use automatic optimization"
        )
    if not _STRATEGIES & class_names(trainer.strategy):
        raise CannotSolveError(
            f"the strategy is {type(trainer.strategy).__name__}, under which a process need not hold whole parameters; "
            'use one device or strategy="ddp"'
        )
    _check_optimizer(trainer.optimizers)


def warn_of_settings(trainer: Trainer) -> None:
    """Warn of settings under which a step is not what was solved for."""
    groups = trainer.optimizers[0].param_groups
    if any(group["momentum"] for group in groups):
        rank_zero_warn(
            "SGD has momentum, which adds earlier Gauss-Newton steps to each step; momentum=0 is what is meant"
        )
    if trainer.gradient_clip_val:
        rank_zero_warn(
            f"gradient_clip_val={trainer.gradient_clip_val} shortens Gauss-Newton steps, which are longer than "
            "gradients; leave it out, and raise damping if steps are too long"
        )


def _check_module(module: nn.Module) -> None:
    for name, layer in module.named_modules():
        if isinstance(layer, _BatchNorm) and layer.training:
            raise CannotSolveError(
                f"{name} is a {type(layer).__name__} in training mode, which makes each instance's output depend on "
                "the others of its batch, so that Gauss-Newton's rows are not those of instances; leave it out, use "
                "LayerNorm(elementwise_affine=False), or use KFACCallback"
            )
        own = [parameter for parameter in layer.parameters(recurse=False) if parameter.requires_grad]
        if own and not isinstance(layer, nn.Linear):
            raise CannotSolveError(
                f"{name or 'the module'} ({type(layer).__name__}) has trained parameters, and GaussNewtonCallback "
                "trains Linear layers only; freeze them (requires_grad=False), or use KFACCallback, which has "
                "convolutions, or an optimizer such as AdamW without this callback"
            )


def _check_optimizer(optimizers: list[Any]) -> None:
    names = ", ".join(type(optimizer).__name__ for optimizer in optimizers) or "none"
    if len(optimizers) != 1 or not isinstance(optimizers[0], optim.SGD):
        raise CannotSolveError(
            f"the optimizer is {names}, which would rescale the Gauss-Newton step; let configure_optimizers return "
            "torch.optim.SGD(self.parameters(), lr=1.0)"
        )
    if any(group.get("maximize") for group in optimizers[0].param_groups):
        raise CannotSolveError(
            "SGD has maximize=True, and Gauss-Newton minimizes; return the loss with its sign turned"
        )
