"""What filtering adds to a step on the device: milliseconds, the device's idle share, and bytes on it.

Runs of each method and plain ones take turns, each from its second pass on, in which instances are filtered; the clock
is read where the device has done everything. The data lie on the device, so that a step is as short as it can be. Rows
are written for each round: the report takes medians.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.gpu.data import DeviceData, OnDevice
from benchmarks.gpu.part import Part, default_policy, part_of
from benchmarks.images.runs import resnet18, tiny_cnn
from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule

NUM_CLASSES = 10
PLAIN = "plain"
# Where the Assistant learns; what is drawn is the same.
UPDATES = ("sync", "async")
NUM_ROUNDS = 3
# After the first pass, until everything goes its way.
WARM_STEPS = 4
PROFILED_STEPS = 6


@dataclass(frozen=True)
class Case:
    """What a step trains.

    Args:
        name: For the report.
        make_net: Builds the network.
        make_data: Builds N instances on a device.
        batch_size: B.
        num_batches: In a pass; the second pass is measured.
        precision: Of the Trainer.
        is_compiled: Whether the network is compiled, without CUDA graphs.
    """

    name: str
    make_net: Callable[[], nn.Module]
    make_data: Callable[[int, str], OnDevice]
    batch_size: int
    num_batches: int
    precision: str = "bf16-mixed"
    is_compiled: bool = False


class ResNet(nn.Module):
    """ResNet-18 with the stem for small images, whose channels lie last in memory."""

    def __init__(self, shape: tuple[int, ...] = (3, 32, 32)) -> None:
        super().__init__()
        self.net = resnet18(torch.Size(shape)).to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images.contiguous(memory_format=torch.channels_last))


class Transformer(nn.Module):
    """A language model: causal Transformer encoder with one matrix for input and output, 20 million parameters.

    Args:
        vocabulary_size: V.
        width: D.
        num_layers: Of the encoder.
        num_heads: Of each attention.
    """

    def __init__(self, vocabulary_size: int = 8192, width: int = 384, num_layers: int = 10, num_heads: int = 6) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        layer = nn.TransformerEncoderLayer(width, num_heads, 4 * width, 0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, num_layers, nn.LayerNorm(width), enable_nested_tensor=False)

    def forward(self, tokens: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], device=tokens.device)
        hidden = self.layers(self.embedding(tokens), mask=mask, is_causal=True)
        return F.linear(hidden, self.embedding.weight)


def mlp() -> nn.Module:
    """A step that takes next to nothing, so that what is added shows."""
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, NUM_CLASSES))


def images_of(*shape: int) -> Callable[[int, str], OnDevice]:
    """What makes images of a shape."""

    def made(count: int, device: str) -> OnDevice:
        generator = torch.Generator().manual_seed(0)
        labels = torch.randint(0, NUM_CLASSES, (count,), generator=generator)
        images = torch.rand(count, *shape, generator=generator) + labels[:, None, None, None] / NUM_CLASSES
        return OnDevice(images.to(device), labels.to(device))

    return made


def sentences_of(length: int, vocabulary_size: int) -> Callable[[int, str], OnDevice]:
    """What makes sequences of tokens."""

    def made(count: int, device: str) -> OnDevice:
        generator = torch.Generator().manual_seed(0)
        rare = torch.rand(count, length, generator=generator) ** 3  # few tokens are frequent
        return OnDevice((vocabulary_size * rare).long().to(device))

    return made


def cases() -> tuple[Case, ...]:
    """All, in the order of their worth."""
    images, sentences = images_of(3, 32, 32), sentences_of(129, 8192)
    eager = (
        Case("ResNet-18, 3x32x32", ResNet, images, 512, 16),
        Case("MLP, F=256", mlp, images_of(1, 16, 16), 128, 150, "32-true"),
        Case("ResNet-18, 3x32x32", ResNet, images, 128, 40),
        Case("Transformer, 20M parameters, 64x128 tokens", Transformer, sentences, 64, 20),
    )
    compiled = (
        Case("ResNet-18, 3x32x32", ResNet, images, 512, 16, is_compiled=True),
        Case("MLP, F=256", mlp, images_of(1, 16, 16), 128, 150, "32-true", is_compiled=True),
        Case("Transformer, 20M parameters, 64x128 tokens", Transformer, sentences, 64, 20, is_compiled=True),
    )
    return eager + compiled


def quick_cases() -> tuple[Case, ...]:
    """Small ones, which show that each kind runs."""
    return (
        Case("convolutions, 3x8x8", lambda: tiny_cnn(torch.Size((3, 8, 8))), images_of(3, 8, 8), 4, 12),
        Case("MLP, F=256", mlp, images_of(1, 16, 16), 16, 12, "32-true", is_compiled=True),
        Case("Transformer", lambda: Transformer(64, 32, 1, 2), sentences_of(9, 64), 4, 12),
    )


class Model(pl.LightningModule):
    """Cross-entropy of images' labels, or of the next tokens.

    Args:
        net: The network.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        if len(batch) == 1:
            tokens = batch[0]
            return F.cross_entropy(self.net(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        images, labels = batch
        return F.cross_entropy(self.net(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-3, momentum=0.9)


class Clock(pl.Callback):
    """Seconds of the steps from one on, to the end of training, and what the device did in some steps.

    Args:
        first_step: That is measured.
        last_step: That is measured.
    """

    def __init__(self, first_step: int, last_step: int) -> None:
        self.first_step, self.last_step = first_step, last_step
        self.seconds = 0.0

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        if trainer.fit_loop.total_batch_idx == self.first_step:
            self.seconds = -_now(trainer)

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.fit_loop.total_batch_idx == self.last_step:
            self.seconds += _now(trainer)

    @property
    def step_ms(self) -> float:
        """Milliseconds of a step."""
        return 1e3 * self.seconds / (self.last_step - self.first_step + 1)


class DeviceWork(pl.Callback):
    """Milliseconds that the device works in a step, and the kernels that it runs.

    Args:
        first_step: From which so many are profiled.
    """

    def __init__(self, first_step: int) -> None:
        self.first_step = first_step
        self.found: dict[str, Any] = {}
        self._profile: Any = None

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        if trainer.fit_loop.total_batch_idx == self.first_step:
            _now(trainer)
            kinds = torch.profiler.ProfilerActivity
            is_on_cuda = trainer.strategy.root_device.type == "cuda"
            with contextlib.suppress(RuntimeError):  # not every machine lets its device be profiled
                profile = torch.profiler.profile(activities=[kinds.CUDA if is_on_cuda else kinds.CPU])
                profile.start()
                self._profile = profile

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.fit_loop.total_batch_idx == self.first_step + PROFILED_STEPS - 1 and self._profile is not None:
            _now(trainer)
            self._profile.stop()
            kernels = [each for each in self._profile.key_averages() if each.self_device_time_total]
            self.found = {
                "device_ms": round(sum(each.self_device_time_total for each in kernels) / 1e3 / PROFILED_STEPS, 4),
                "kernels": round(sum(each.count for each in kernels) / PROFILED_STEPS, 1),
            }


def _now(trainer: Any) -> float:
    """The time when the device has done everything."""
    if trainer.strategy.root_device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def time_steps(
    part: Part, case: Case, net: nn.Module, data: OnDevice, method: str, *watches: pl.Callback
) -> dict[str, Any]:
    """Two passes of a method: ``"plain"``, ``POLICY`` or ``POLICY:update=sync``."""
    torch.manual_seed(0)
    source = DeviceData(data, None, case.batch_size)
    policy, _, update = method.partition(":update=")
    callback = None if method == PLAIN else AutoAssistCallback(policy=policy, update=update or "auto")
    if part.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    trainer = part.trainer(
        max_epochs=2,
        precision=case.precision,
        callbacks=[*([] if callback is None else [callback]), *watches],
    )
    trainer.fit(Model(net), datamodule=source if callback is None else AutoAssistDataModule(source, budget=1.0))
    row: dict[str, Any] = {"keep_rate": None, "reported_ms": None, "peak_bytes": None}
    if callback is not None:
        summary = callback.summary()
        row |= {"keep_rate": round(summary["keep_rate"], 3), "reported_ms": round(summary["overhead_ms"], 4)}
    if part.device == "cuda":
        row["peak_bytes"] = torch.cuda.max_memory_allocated()
    return row


def network_of(part: Part, case: Case) -> nn.Module:
    """The network of a case, the same for all of its runs."""
    torch.manual_seed(0)
    net = case.make_net()
    if case.is_compiled:
        net = torch.compile(net, backend="inductor" if part.device == "cuda" else "aot_eager")
    return net


def measure(part: Part, case: Case, methods: tuple[str, ...]) -> None:
    """The rows of a case: a round after the other, as many as there is time for."""
    net, data = network_of(part, case), case.make_data(case.num_batches * case.batch_size, part.device)
    first, last = case.num_batches + WARM_STEPS, 2 * case.num_batches - 1
    common = {
        "case": case.name,
        "batch_size": case.batch_size,
        "precision": case.precision,
        "is_compiled": case.is_compiled,
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "steps": last - first + 1,
    }
    for method in methods:  # warm-up: kernels are chosen, graphs compiled; and what the device does
        started, work = time.monotonic(), DeviceWork(first)
        time_steps(part, case, net, data, method, work)
        row = {**common, "method": method, "round": None, **work.found}
        part.keep(**row, warm_up_seconds=round(time.monotonic() - started, 2))
    for number in range(1 if part.is_quick else NUM_ROUNDS):
        started = time.monotonic()
        for method in methods:
            clock = Clock(first, last)
            row = time_steps(part, case, net, data, method, clock)
            part.keep(**common, method=method, round=number, step_ms=round(clock.step_ms, 4), **row)
            print(f"{case.name:46s} B={case.batch_size} {method:14s} {clock.step_ms:9.3f} ms", flush=True)
        if part.seconds_left < 1.2 * (time.monotonic() - started):
            break


def main() -> None:
    """Measure all cases that there is time for; one that fails costs the others nothing."""
    part = part_of("cost")
    default = default_policy()
    both = [f"{policy}:update={update}" for policy in (default, "autoassist") for update in UPDATES]
    methods = (PLAIN, "uniform", *both)
    failed = []
    for case in quick_cases() if part.is_quick else cases():
        if part.seconds_left < 10:
            part.keep(case=case.name, batch_size=case.batch_size, is_compiled=case.is_compiled, outcome="no time")
            continue
        try:
            measure(part, case, methods)
        except Exception as error:
            part.keep(case=case.name, batch_size=case.batch_size, is_compiled=case.is_compiled, outcome=_said(error))
            failed.append(case.name)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:2000]


if __name__ == "__main__":
    main()
