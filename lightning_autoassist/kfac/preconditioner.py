"""K-FAC of the layers of one optimizer: from calls of layers to preconditioned gradients. Knows no Trainer."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_autoassist.capture.layers import LayerCall
from lightning_autoassist.kfac.assignment import Assignment, FactorSizes, num_grad_workers
from lightning_autoassist.kfac.communication import Communicator, Reduction
from lightning_autoassist.kfac.factors import Factor, merge
from lightning_autoassist.kfac.inverses import LayerInverse, SideInverse, damping_of, inverted_side
from lightning_autoassist.kfac.layer_kinds import LayerKind
from lightning_autoassist.kfac.options import KFACOptions, UpdateClock
from lightning_autoassist.kfac.step_sizes import cosine, scaled


def factor_sizes(kind: LayerKind, max_factor_size: int) -> FactorSizes:
    """How large a layer's factors are; a side above ``max_factor_size`` gets a diagonal."""
    is_diagonal = kind.has_diagonal_inputs or kind.num_inputs > max_factor_size, kind.num_outputs > max_factor_size
    return FactorSizes(kind.num_blocks, kind.num_inputs, kind.num_outputs, is_diagonal)


class LayerState:
    """What is kept of one layer.

    Args:
        kind: How it is preconditioned.
        sizes: Of its factors.

    Attributes:
        factors: Of inputs and of outputs.
        inverse: None before the first inversion, and in processes that do not precondition the layer.
        is_ready: Whether it is inverted, here or elsewhere.
    """

    def __init__(self, kind: LayerKind, sizes: FactorSizes) -> None:
        self.kind = kind
        self.sizes = sizes
        widths = (sizes.num_inputs, sizes.num_outputs)
        self.factors = tuple(
            Factor(sizes.num_blocks, width, is_diagonal, kind.weight.detach())
            for width, is_diagonal in zip(widths, sizes.is_diagonal, strict=True)
        )
        self.inverse: LayerInverse | None = None
        self.is_ready = False

    def add(self, call: LayerCall) -> None:
        """Add a call's rows to this step's."""
        self.kind.add_inputs(call, self.factors[0])
        self.kind.add_gradients(call, self.factors[1])

    def empty_side(self, side: int, *, is_eigen: bool) -> SideInverse:
        """A side's inverse that changes nothing as it stands: where it is applied, the gradient comes back."""
        total = self.factors[side].total
        shape = total.shape[:2] if is_eigen else total.shape
        vectors = torch.zeros_like(total) if is_eigen and not self.sizes.is_diagonal[side] else None
        return SideInverse(total.new_full(shape, float("nan")), vectors)


class Preconditioner:
    """Keeps factors and inverses of layers, and preconditions their gradients, each process its share.

    Args:
        layers: By name, the same in every process.
        options: The settings.
        rank: Of this process.
        world_size: Of the run.

    Attributes:
        layers: What is kept of each layer.
        num_steps: Steps so far.
        figures: Of the latest step, by name: ``step_scale``, ``cosine``, ``damping``; empty where they were not wanted,
            or nothing was preconditioned. They stay on the device.
        seconds: Spent so far, by ``factors``, ``inversions``, ``preconditioning`` and ``communication``; on devices
            that work beside the host, the host's.

    Raises:
        ValueError: If ``grad_worker_fraction`` does not suit the number of processes.
    """

    def __init__(
        self, layers: Mapping[str, LayerKind], options: KFACOptions, rank: int = 0, world_size: int = 1
    ) -> None:
        self.options = options
        sizes = {name: factor_sizes(kind, options.max_factor_size) for name, kind in layers.items()}
        self.layers = {name: LayerState(kind, sizes[name]) for name, kind in layers.items()}
        self.num_steps = 0
        self.figures: dict[str, Tensor] = {}
        self.factor_clock = UpdateClock(options.factor_update_steps, has_early=options.early_updates)
        self.inverse_clock = UpdateClock(options.inv_update_steps, has_early=options.early_updates)
        self.assignment = Assignment(
            sizes,
            world_size,
            num_grad_workers(options.grad_worker_fraction, world_size),
            options.assignment_strategy,
            colocate_factors=options.colocate_factors,
        )
        self.communicator = Communicator(
            rank, self.assignment, is_packed=options.symmetry_aware, bucket_bytes=options.bucket_cap_mb * 2**20
        )
        self.rank = rank
        self._seconds = {"factors": 0.0, "inversions": 0.0, "preconditioning": 0.0}
        self._reduction: Reduction | None = None
        self._is_merging = False
        self._is_eigen = options.compute_method == "eigen"

    # ---- what others ask

    @property
    def wants_calls(self) -> bool:
        """Whether the next step updates the factors."""
        return self.factor_clock.is_due(self.num_steps + 1)

    @property
    def seconds(self) -> dict[str, float]:
        """See above."""
        return {**self._seconds, "communication": self.communicator.seconds}

    @property
    def bytes_of_factors(self) -> int:
        """Bytes of the running means."""
        return sum(factor.total.numel() * factor.total.element_size() for factor in self._factors())

    @property
    def bytes_of_inverses(self) -> int:
        """Bytes of the inverses that this process holds."""
        found = [tensor for layer in self.layers.values() for tensor in _tensors_of(layer.inverse)]
        return sum(tensor.numel() * tensor.element_size() for tensor in found)

    # ---- a step

    @torch.no_grad()
    def add(self, name: str, call: LayerCall) -> None:
        """Add a call of a layer to this step's factors; ignored where the step does not update them."""
        if not self.wants_calls:
            return
        self._finish_merge()
        with self._timed("factors"):
            self.layers[name].add(call.thinned(round(1 / self.options.factor_share)))

    @torch.no_grad()
    def step(self, rates: Mapping[nn.Parameter, float | Tensor], *, with_figures: bool = True) -> None:
        """Precondition the gradients where they stand. All processes must call this at the same step.

        Args:
            rates: Learning rates of parameters; needed for ``step="kl_clip"`` alone.
            with_figures: Whether :attr:`figures` are wanted.
        """
        self.num_steps += 1
        if self.factor_clock.is_due(self.num_steps):
            self.factor_clock.note(self.num_steps)
            self._begin_merge()
        if self.inverse_clock.is_due(self.num_steps):
            self.inverse_clock.note(self.num_steps)
            self._finish_merge()
            with self._timed("inversions"):
                self._invert()
        with self._timed("preconditioning"):
            self._precondition(rates, with_figures)
        if self._reduction is None:
            self._finish_merge()

    def _begin_merge(self) -> None:
        self._finish_merge()
        self._is_merging = True
        self._reduction = self.communicator.reduce(list(self._factors()))

    def _finish_merge(self) -> None:
        """Take the step's rows into the running means, once the other processes' have come."""
        if not self._is_merging:
            return
        if self._reduction is not None:
            self.communicator.finish(self._reduction)
        with self._timed("factors"):
            merge(list(self._factors()), self.options.factor_decay)
        self._is_merging, self._reduction = False, None

    def _invert(self) -> None:
        if not self.layers:
            return
        # The one number that is waited for: which layers have been called at all.
        masses = torch.stack([factor.mass for factor in self._factors()]).reshape(-1, 2).amin(1).tolist()
        tensors: list[tuple[int, Tensor]] = []
        for (name, layer), mass in zip(self.layers.items(), masses, strict=True):
            if mass <= 0:
                continue
            layer.is_ready = True
            if self.assignment.is_grad_worker(self.rank, name):
                layer.inverse = self._inverted(name, layer)
                inverters = self.assignment.inverter_of[name]
                for inverter, side in zip(inverters, layer.inverse.sides, strict=True):
                    tensors += [(inverter, tensor) for tensor in side if tensor is not None]
        self.communicator.share_inverses(tensors)

    def _inverted(self, name: str, layer: LayerState) -> LayerInverse:
        """A layer's inverse; the sides that another process inverts are still the old ones, or empty."""
        options = self.options
        values = [factor.value() for factor in layer.factors]
        damping = damping_of(values[0], values[1], options.damping, options.damping_mode)
        sides = []
        for side, inverter in enumerate(self.assignment.inverter_of[name]):
            new: SideInverse | None = None
            if inverter == self.rank:
                new = inverted_side(values[side], values[1 - side], damping, options.compute_method)
            if new is None and layer.inverse is not None:
                new = layer.inverse.sides[side]
            sides.append(new or layer.empty_side(side, is_eigen=self._is_eigen))
        return LayerInverse(sides[0], sides[1], damping)

    def _precondition(self, rates: Mapping[nn.Parameter, float | Tensor], with_figures: bool) -> None:
        found = [(name, layer, layer.kind.matrix()) for name, layer in self.layers.items() if layer.is_ready]
        ready = [(name, layer, matrix) for name, layer, matrix in found if matrix is not None]
        self.figures = {}
        if not ready:
            return
        gradients = [matrix for _, _, matrix in ready]
        directions = [self._direction(name, layer, matrix) for name, layer, matrix in ready]
        senders = [self.assignment.sender_to(self.rank, name) for name, _, _ in ready]
        self.communicator.share_gradients(list(zip(senders, directions, strict=True)))
        layer_rates = [rates.get(layer.kind.weight, 0.0) for _, layer, _ in ready]
        directions, factor = scaled(gradients, directions, layer_rates, self.options.step, self.options.kl_clip)
        for (_, layer, _), direction in zip(ready, directions, strict=True):
            layer.kind.write(direction)
        if not with_figures:
            return
        self.figures = {"step_scale": factor, "cosine": cosine(gradients, directions)}
        dampings = [layer.inverse.damping.mean() for _, layer, _ in ready if layer.inverse is not None]
        if dampings:
            self.figures["damping"] = torch.stack(dampings).mean()

    def _direction(self, name: str, layer: LayerState, gradient: Tensor) -> Tensor:
        if layer.inverse is None:
            is_elsewhere = not self.assignment.is_grad_worker(self.rank, name)
            return torch.empty_like(gradient) if is_elsewhere else gradient.clone()
        return layer.inverse.apply(gradient.to(layer.factors[0].total.dtype), self.options.compute_method)

    def _factors(self) -> Iterator[Factor]:
        for layer in self.layers.values():
            yield from layer.factors

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        begun, waited = time.perf_counter(), self.communicator.seconds
        yield
        self._seconds[part] += time.perf_counter() - begun - (self.communicator.seconds - waited)

    # ---- checkpoints

    @torch.no_grad()
    def state_dict(self) -> dict[str, Any]:
        """Factors, inverses and counters. All processes must call this at the same step, as they save checkpoints."""
        self._finish_merge()
        inverses = self._all_inverses()
        layers = {
            name: {
                "factors": [factor.state_dict() for factor in layer.factors],
                "inverse": _as_builtins(inverses[name]),
            }
            for name, layer in self.layers.items()
        }
        return {
            "num_steps": self.num_steps,
            "last_updates": [self.factor_clock.last, self.inverse_clock.last],
            "method": self.options.compute_method,
            "layers": layers,
        }

    def _all_inverses(self) -> dict[str, LayerInverse | None]:
        """The inverses of all layers, with those that other processes hold."""
        inverses = {name: layer.inverse for name, layer in self.layers.items()}
        if self.assignment.num_columns == 1:
            return inverses
        tensors: list[tuple[int, Tensor]] = []
        for name, layer in self.layers.items():
            if layer.is_ready:
                whole = layer.inverse or self._empty_inverse(layer)
                inverses[name] = whole
                tensors += [
                    (self.assignment.column_of[name], tensor) for tensor in _tensors_of(whole, with_damping=True)
                ]
        self.communicator.share_with_all(tensors)
        return inverses

    def _empty_inverse(self, layer: LayerState) -> LayerInverse:
        sides = [layer.empty_side(side, is_eigen=self._is_eigen) for side in (0, 1)]
        return LayerInverse(sides[0], sides[1], layer.factors[0].total.new_zeros(layer.sizes.num_blocks, 1, 1))

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`, of a run with any number of processes. Layers that it lacks begin anew."""
        self.num_steps = state["num_steps"]
        self.factor_clock.last, self.inverse_clock.last = state["last_updates"]
        others = []
        for name, layer in self.layers.items():
            own = state["layers"].get(name)
            if own is None or not _fits(layer, own):
                others.append(name)
                continue
            for factor, saved in zip(layer.factors, own["factors"], strict=True):
                factor.load_state_dict(saved)
            layer.is_ready = own["inverse"] is not None and state["method"] == self.options.compute_method
            if layer.is_ready and self.assignment.is_grad_worker(self.rank, name):
                layer.inverse = _from_builtins(own["inverse"], layer.factors[0].total)
        if state["method"] != self.options.compute_method:
            self.inverse_clock.last = 0  # the factors are inverted anew
        if others:
            warnings.warn(
                f"The checkpoint holds no Kronecker factors of these sizes for {', '.join(others)}: K-FAC begins anew "
                "with these layers.",
                stacklevel=2,
            )


def _fits(layer: LayerState, saved: Mapping[str, Any]) -> bool:
    shapes = [factor.total.shape for factor in layer.factors]
    return shapes == [each["total"].shape for each in saved["factors"]]


def _tensors_of(inverse: LayerInverse | None, *, with_damping: bool = False) -> list[Tensor]:
    if inverse is None:
        return []
    found: Sequence[Tensor | None] = [*inverse.inputs, *inverse.outputs, inverse.damping if with_damping else None]
    return [tensor for tensor in found if tensor is not None]


def _as_builtins(inverse: LayerInverse | None) -> dict[str, Any] | None:
    if inverse is None:
        return None
    sides = [
        {"values": side.values.clone(), "vectors": None if side.vectors is None else side.vectors.clone()}
        for side in inverse.sides
    ]
    return {"sides": sides, "damping": inverse.damping.clone()}


def _from_builtins(saved: Mapping[str, Any], like: Tensor) -> LayerInverse:
    sides = [
        SideInverse(side["values"].to(like), None if side["vectors"] is None else side["vectors"].to(like))
        for side in saved["sides"]
    ]
    return LayerInverse(sides[0], sides[1], saved["damping"].to(like))
