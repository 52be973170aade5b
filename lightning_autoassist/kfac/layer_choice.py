"""Which layers of a module are preconditioned, and why the others are not."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

from torch import Tensor, nn

from lightning_autoassist.kfac.layer_kinds import KINDS, LayerKind, kind_of
from lightning_autoassist.kfac.options import KFACOptions

# Layers with parameters of their own that K-FAC has no factors for; their gradients stay as they are.
_SUPPORTED = ", ".join(base.__name__ for base in KINDS)


class LayerChoice(NamedTuple):
    """Layers by their names in the module.

    Attributes:
        chosen: How each is preconditioned.
        skipped: Why each other layer with parameters is not.
    """

    chosen: dict[str, LayerKind]
    skipped: dict[str, str]


def choose_layers(module: nn.Module, options: KFACOptions) -> LayerChoice:
    """Choose the layers of a module that K-FAC preconditions.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
        >>> choice = choose_layers(net, KFACOptions(skip_layers=("^2$",)))
        >>> list(choice.chosen), choice.skipped["2"]
        (['0'], "it matches '^2$' of skip_layers")
    """
    owners = _owners(module)
    chosen: dict[str, LayerKind] = {}
    skipped: dict[str, str] = {}
    for name, layer in module.named_modules():
        if not any(True for _ in layer.parameters(recurse=False)) and not isinstance(layer, tuple(KINDS)):
            continue
        reason = _why_not(name, layer, options, owners)
        kind = kind_of(layer, options.weight_sharing) if reason is None else None
        if kind is None:
            skipped[name] = reason or ""
        else:
            chosen[name] = kind
    return LayerChoice(chosen, skipped)


def _why_not(name: str, layer: nn.Module, options: KFACOptions, owners: dict[Tensor, list[str]]) -> str | None:
    """Why a layer is not preconditioned; None where it is."""
    for pattern in options.skip_layers:
        if re.search(pattern, name) or re.search(pattern, type(layer).__name__):
            return f"it matches {pattern!r} of skip_layers"
    if isinstance(layer, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return "MultiheadAttention uses its weight without calling it"
    if not isinstance(layer, tuple(KINDS)):
        return f"a {type(layer).__name__} is none of {_SUPPORTED}"
    return _why_not_its_weight(name, layer, owners)


def _why_not_its_weight(name: str, layer: nn.Module, owners: dict[Tensor, list[str]]) -> str | None:
    weight = layer._parameters.get("weight")
    if weight is None:
        return "its weight is computed from other parameters"
    if type(weight).__name__ == "UninitializedParameter":
        return "its parameters have no sizes before its first batch"
    if not weight.requires_grad:
        return "its weight is frozen"
    if not weight.is_floating_point():
        return f"its weight is of type {weight.dtype}"
    if getattr(layer, "sparse", False):
        return "its gradients are sparse"
    sharers = [other for parameter in layer._parameters.values() for other in _others(parameter, name, owners)]
    return f"it shares a parameter with {', '.join(dict.fromkeys(sharers))}" if sharers else None


def _others(parameter: Tensor | None, name: str, owners: dict[Tensor, list[str]]) -> Collection[str]:
    return [] if parameter is None else [owner for owner in owners.get(parameter, ()) if owner != name]


def _owners(module: nn.Module) -> dict[Tensor, list[str]]:
    """The names of the modules that each parameter belongs to."""
    owners: dict[Tensor, list[str]] = {}
    for name, layer in module.named_modules():
        for parameter in layer.parameters(recurse=False):
            owners.setdefault(parameter, []).append(name)
    return owners
