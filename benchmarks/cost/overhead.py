"""What AutoAssist adds to a training step, beside plain Lightning in the same process.

Plain and filtered runs take turns; a step is timed from one ``on_train_batch_end`` to the next, so it holds the loader,
the batch generator, the capture and the Assistant. Steps of the first pass, which keeps everything, are left out.

    python -m benchmarks.cost.overhead            # appends rows to benchmarks/results/overhead.jsonl
    python -m benchmarks.cost.overhead --assistants    # only what an update and a prediction of each Assistant take
    python -m benchmarks.cost.overhead --layers    # only steps with score="layer_gradient_norm", beside plain ones
    python -m benchmarks.cost.overhead --quick    # under a minute, writes no rows
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.common.rows import append_row
from lightning_autoassist import (
    ASSISTANTS,
    AutoAssistCallback,
    AutoAssistDataModule,
    AutoAssistPolicy,
    InstanceLossCapture,
    LogisticAssistant,
)
from lightning_autoassist.filtering.memory.dynamics import ROW
from lightning_autoassist.filtering.memory.instances import Instances
from lightning_autoassist.filtering.memory.store import InstanceStore
from lightning_autoassist.filtering.observed_visits import visits_in
from lightning_autoassist.filtering.sampling.index_batches import ShrinkingBatchSampler
from lightning_autoassist.filtering.waiting_steps import PendingUpdate
from lightning_autoassist.losses.margins import row_margins

BATCH_SIZE = 128
NUM_CLASSES = 10
# Candidates are judged and batches learnt from every few steps: a median of single steps would leave that out.
WINDOW = 8
IN_A_ROW = 5


class Classifier(pl.LightningModule):
    """An ordinary classifier around any network."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self.net(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class StepTimer(pl.Callback):
    """Milliseconds from one batch's end to the next's."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self._last: float | None = None

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        now = time.perf_counter()
        if self._last is not None:
            self.steps.append(1e3 * (now - self._last))
        self._last = now

    def on_train_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        self._last = None


def mlp() -> nn.Module:
    """A tiny model: its step costs little, so that what is added shows."""
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, NUM_CLASSES))


def resnet18() -> nn.Module:
    """ResNet-18 as torchvision builds it."""
    from torchvision.models import resnet18 as build

    return build(num_classes=NUM_CLASSES)


# What is trained, on which inputs, with which policy and score.
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str, str]] = {
    "mlp, F=256, prioritized (the default)": (mlp, (1, 16, 16), "prioritized", "auto"),
    "mlp, F=256, infobatch": (mlp, (1, 16, 16), "infobatch", "auto"),
    "mlp, F=256": (mlp, (1, 16, 16), "autoassist", "auto"),
    "resnet18, 3x64x64": (resnet18, (3, 64, 64), "autoassist", "auto"),
    "mlp, F=256, layer_gradient_norm": (mlp, (1, 16, 16), "proportional", "layer_gradient_norm"),
    "resnet18, 3x64x64, layer_gradient_norm": (resnet18, (3, 64, 64), "proportional", "layer_gradient_norm"),
}


LOSSES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "cross-entropy, 32x64 tokens of 8000 logits": (nn.Identity, (32 * 64, 8000), 8000),
    "cross-entropy, 128 rows of 1000 logits": (nn.Identity, (128, 1000), 1000),
    "resnet18, 32x3x64x64, forward and backward": (resnet18, (32, 3, 64, 64), NUM_CLASSES),
}


# Rows and classes.
MARGINS = {
    "128 rows of 10 logits": (BATCH_SIZE, 10),
    "128 rows of 1000 logits": (BATCH_SIZE, 1000),
    "32x64 tokens of 8000 logits": (32 * 64, 8000),
}


def time_steps(
    net: nn.Module, shape: tuple[int, ...], policy: str | None, passes: int, batches: int, score: Any = "auto"
) -> dict[str, float]:
    """Milliseconds of a step after the first pass, and what the callback says it cost; policy None is plain Lightning.

    The median over windows of several steps, see ``WINDOW``.
    """
    count = batches * BATCH_SIZE
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, *shape, generator=generator)
    labels = torch.randint(0, NUM_CLASSES, (count,), generator=generator)
    loader = DataLoader(TensorDataset(images, labels), batch_size=BATCH_SIZE, shuffle=True)
    timer, callback = StepTimer(), AutoAssistCallback(policy=policy or "uniform", score=score if policy else "auto")
    trainer = pl.Trainer(
        max_epochs=passes,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[timer] if policy is None else [callback, timer],
    )
    if policy is not None:
        trainer.fit(Classifier(net), datamodule=AutoAssistDataModule(loader, budget=1.0))
    else:
        trainer.fit(Classifier(net), train_dataloaders=loader)
    steps = timer.steps[batches - 1 :]
    result = {"ms": statistics.median(_mean(steps[start : start + WINDOW]) for start in range(0, len(steps), WINDOW))}
    if policy is not None:
        summary = callback.summary()
        result |= {name: summary[name] for name in ("overhead_ms", "keep_rate")}
    return result


def compare(case: str, rounds: int, passes: int, batches: int) -> dict[str, Any]:
    """Plain and filtered runs in turns; medians over the rounds."""
    make_net, shape, policy, score = CASES[case]
    torch.manual_seed(0)
    net = make_net()
    time_steps(net, shape, policy, 2, 2, score)  # warm-up
    pairs = [
        (time_steps(net, shape, None, passes, batches), time_steps(net, shape, policy, passes, batches, score))
        for _ in range(rounds)
    ]
    plain = statistics.median(plain["ms"] for plain, _ in pairs)
    filtered = statistics.median(filtered["ms"] for _, filtered in pairs)
    return {
        "case": case,
        "batch_size": BATCH_SIZE,
        "rounds": rounds,
        "steps_a_round": (passes - 1) * batches,
        "plain_ms": round(plain, 3),
        "filtered_ms": round(filtered, 3),
        "added_ms": round(statistics.median(f["ms"] - p["ms"] for p, f in pairs), 3),
        "ratio": round(statistics.median(f["ms"] / p["ms"] for p, f in pairs), 4),
        "reported_overhead_ms": round(statistics.median(f["overhead_ms"] for _, f in pairs), 3),
        "keep_rate": round(statistics.median(f["keep_rate"] for _, f in pairs), 3),
    }


def candidates_a_second(num_instances: int) -> dict[str, Any]:
    """Candidates scored and drawn a second, on one core, for 256 features in half precision."""
    jobs = _scoring_jobs(num_instances)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {name: round(num_instances / _best_of(3, job)) for name, job in jobs.items()}
    finally:
        torch.set_num_threads(threads)


def _scoring_jobs(num_instances: int) -> dict[str, Callable[[], None]]:
    """What scores or draws every instance once."""
    rows = torch.arange(num_instances)
    store = InstanceStore(num_instances)
    store.put_features(rows, torch.randn(num_instances, 256))
    store.put_labels(rows, torch.randint(0, NUM_CLASSES, (num_instances,)))
    store.put_scores(rows, torch.rand(num_instances))
    assistant, policy = LogisticAssistant(), AutoAssistPolicy()
    assistant.update(store.rows(rows[:BATCH_SIZE]), torch.rand(BATCH_SIZE))
    shuffled, half = torch.randperm(num_instances), np.full(num_instances, 0.5)

    def score(chunks: tuple[Tensor, ...]) -> None:
        for chunk in chunks:
            policy.keep_probability(assistant.predict(store.rows(chunk, assistant.required_columns)))

    def score_in_order() -> None:
        columns = (column.split(8192) for column in (store.features, store.labels) if column is not None)
        for features, labels in zip(*columns, strict=True):
            policy.keep_probability(assistant.predict(Instances(features, labels)))

    def read_memory() -> None:
        for chunk in shuffled.split(8192):
            scores = store.rows(chunk, ("scores",)).scores
            assert scores is not None
            policy.keep_probability(scores)

    def draw() -> None:
        sampler = ShrinkingBatchSampler(
            shuffled.tolist(), BATCH_SIZE, budget=0.5, keep_probability=lambda indices, _: half[: len(indices)]
        )
        for _ in sampler:
            pass

    return {
        "logistic, random order, chunks of 128": lambda: score(shuffled.split(BATCH_SIZE)),
        "logistic, random order, chunks of 8192": lambda: score(shuffled.split(8192)),
        "logistic, whole store in order": score_in_order,
        "remembered score, random order": read_memory,
        "batch generator alone": draw,
    }


def assistant_cost(name: str, num_features: int, rounds: int) -> dict[str, Any]:
    """Fastest milliseconds of an update with a batch, and microseconds to predict a candidate, on one core."""
    count = 20_000
    generator = torch.Generator().manual_seed(0)
    store, assistant = InstanceStore(count), ASSISTANTS[name]()
    everything = torch.arange(count)
    if "tokens" in assistant.required_columns:
        rows = (10_000 * torch.rand(count, num_features, generator=generator) ** 3).long()  # few of them frequent
        store.put_tokens(everything, 2 * rows)
    else:
        store.put_features(everything, torch.rand(count, num_features, generator=generator))
    store.put_labels(everything, torch.randint(0, NUM_CLASSES, (count,), generator=generator))
    store.put_scores(everything, torch.rand(count, generator=generator))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    updates, predictions = [], []
    for _ in range(rounds):
        order = torch.randperm(count, generator=generator)
        batch, candidates = order[:BATCH_SIZE], order[: 8 * BATCH_SIZE]
        started = time.perf_counter()
        assistant.update(store.rows(batch, assistant.required_columns), torch.rand(BATCH_SIZE, generator=generator))
        updated = time.perf_counter()
        assistant.predict(store.rows(candidates, assistant.required_columns))
        updates.append(updated - started)
        predictions.append(time.perf_counter() - updated)
    torch.set_num_threads(threads)
    unit = "tokens" if "tokens" in assistant.required_columns else "features"
    return {
        "case": f"Assistant {name}, {num_features} {unit}, batch {BATCH_SIZE}",
        "update_ms": round(1e3 * min(updates), 3),
        "predict_us": round(1e6 * min(predictions) / (8 * BATCH_SIZE), 3),
    }


def dynamics_cost(num_instances: int, rounds: int) -> dict[str, Any]:
    """CPU microseconds, at the fastest, of a batch's dynamics: its visits, and candidates at a keep rate of 0.6.

    The losses' margins are known; what it takes to compute them is a part of capture.
    """
    rng = np.random.default_rng(0)
    store = InstanceStore(num_instances, dynamics=True)
    assert store.dynamics is not None
    order = torch.from_numpy(rng.permutation(num_instances))
    losses = torch.from_numpy(rng.exponential(1, num_instances).astype(np.float32))
    probs = torch.from_numpy(rng.uniform(0.2, 1, num_instances).astype(np.float32))
    others = torch.from_numpy(rng.integers(0, NUM_CLASSES, num_instances))

    def step(rows: Tensor) -> PendingUpdate:
        told = {"probs": probs[rows], "margins": -losses[rows], "others": others[rows]}
        return PendingUpdate(rows, losses[rows], losses[rows], None, None, None, None, **told)

    batches = [(step(rows), rows) for rows in order.split(BATCH_SIZE)]
    chunks = [(rows.numpy(), rng.random(len(rows)) < 0.6) for rows in order.split(int(BATCH_SIZE / 0.6))]
    batches_of_chunks = 0.6 * num_instances / BATCH_SIZE
    seconds = []
    for _ in range(rounds):
        started = time.process_time()
        for batch, rows in batches:
            store.dynamics.observe(visits_in(batch, rows, None))  # the rows are known
        between = time.process_time()
        for candidates, kept in chunks:
            store.dynamics.count(store.places(torch.from_numpy(candidates)).numpy(), kept)
        ended = time.process_time()
        seconds.append((between - started) / len(batches) + (ended - between) / batches_of_chunks)
    return {
        "case": f"training dynamics, batch {BATCH_SIZE}, {num_instances:,} instances",
        "dynamics_us": round(1e6 * min(seconds), 1),
        "dynamics_bytes": ROW.itemsize,
    }


def margin_cost(name: str, rounds: int) -> dict[str, Any]:
    """CPU microseconds, at the fastest, of a batch's margins; of one row an instance with the strongest other class."""
    num_rows, num_classes = MARGINS[name]
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(num_rows, num_classes, generator=generator)
    arguments = {"input": logits, "target": torch.randint(0, num_classes, (num_rows,), generator=generator)}
    threads, seconds = torch.get_num_threads(), []
    torch.set_num_threads(1)
    for _ in range(rounds):
        started = time.process_time()
        for _ in range(IN_A_ROW):
            row_margins(F.cross_entropy, arguments, None, with_others=num_rows == BATCH_SIZE)
        seconds.append((time.process_time() - started) / IN_A_ROW)
    torch.set_num_threads(threads)
    return {"case": f"margins of a batch: {name}", "dynamics_us": round(1e6 * min(seconds), 1)}


def capture_cost(name: str, rounds: int) -> dict[str, Any]:
    """Forward and backward of a loss, or of a network with it, with capture (score and weights) against without."""
    pairs = _capture_times(name, rounds)
    return {
        "case": f"capture: {name}",
        "rounds": rounds,
        "fastest_of": IN_A_ROW,
        "plain_ms": round(statistics.median(plain for plain, _ in pairs), 3),
        "captured_ms": round(statistics.median(captured for _, captured in pairs), 3),
        "added_ms": round(statistics.median(captured - plain for plain, captured in pairs), 3),
        "ratio": round(statistics.median(captured / plain for plain, captured in pairs), 4),
    }


def _capture_times(name: str, rounds: int) -> list[tuple[float, float]]:
    """Milliseconds without and with capture, in turns."""
    make_net, shape, num_classes = LOSSES[name]
    generator = torch.Generator().manual_seed(0)
    net = make_net()
    values = torch.randn(shape, generator=generator).requires_grad_()
    target = torch.randint(0, num_classes, (shape[0],), generator=generator)
    weights = torch.rand(shape[0], generator=generator) + 0.5
    capture = InstanceLossCapture()

    def plain() -> None:
        F.cross_entropy(net(values), target).backward()

    def captured() -> None:
        with capture.step((values, target), shape[0], weights=weights) as step:
            loss = F.cross_entropy(net(values), target)
        observation = step.observe(loss)
        loss.backward()
        assert observation is not None

    def timed(job: Callable[[], None]) -> float:
        values.grad = None
        net.zero_grad()
        started = time.perf_counter()
        job()
        return 1e3 * (time.perf_counter() - started)

    # Several of a kind in a row, and the fastest of them: what the other kind left in the allocator tells in the first
    # (64 MB of fresh pages take longer than the loss).
    return [
        (min(timed(plain) for _ in range(IN_A_ROW)), min(timed(captured) for _ in range(IN_A_ROW)))
        for _ in range(rounds)
    ]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _best_of(times: int, job: Callable[[], None]) -> float:
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        job()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _assistants(quick: bool) -> None:
    for name in ASSISTANTS:
        for num_features in (64, 256):
            row = assistant_cost(name, num_features, 5 if quick else 200)
            print(f"{row['case']:52s} {row['update_ms']:8.2f} ms an update, {row['predict_us']:.2f} us a candidate")
            _keep(row, quick)


def _dynamics(quick: bool) -> None:
    for num_instances in (20_000,) if quick else (20_000, 1_000_000):
        row = dynamics_cost(num_instances, 3 if quick else 15)
        print(f"{row['case']:52s} {row['dynamics_us']:8.1f} us of CPU a batch")
        _keep(row, quick)
    for name in MARGINS:
        row = margin_cost(name, 3 if quick else 30)
        print(f"{row['case']:52s} {row['dynamics_us']:8.1f} us of CPU a batch")
        _keep(row, quick)


def _candidates(quick: bool) -> None:
    speeds = candidates_a_second(20_000 if quick else 200_000)
    for name, speed in speeds.items():
        print(f"{name:42s} {speed:>13,d} candidates/s")
    _keep({"case": "candidates a second", "features": 256, **speeds}, quick)


def _captures(quick: bool) -> None:
    for name in LOSSES:
        row = capture_cost(name, 1 if quick else 100 if "128 rows" in name else 9)
        print(
            f"{row['case']:52s} {row['plain_ms']:8.2f} ms, captured {row['captured_ms']:8.2f} ms: "
            f"{row['added_ms']:+.2f} ms, {row['ratio']:.3f}x"
        )
        _keep(row, quick)


def _layers(quick: bool) -> None:
    _steps(quick, [case for case, (*_, score) in CASES.items() if score == "layer_gradient_norm"])


def _steps(quick: bool, cases: Iterable[str] = CASES) -> None:
    for case in cases:
        sizes = {"rounds": 1, "passes": 3, "batches": 4} if quick else {"rounds": 5, "passes": 9, "batches": 10}
        if case.startswith("resnet"):
            sizes = {"rounds": 1, "passes": 2, "batches": 2} if quick else {"rounds": 5, "passes": 4, "batches": 6}
        row = compare(case, **sizes)
        print(
            f"{case:42s} plain {row['plain_ms']:8.2f} ms, filtered {row['filtered_ms']:8.2f} ms: "
            f"{row['added_ms']:+.2f} ms, {row['ratio']:.3f}x"
        )
        _keep(row, quick)


def _keep(row: dict[str, Any], quick: bool) -> None:
    if not quick:
        append_row("overhead", row)


def main() -> None:
    """Measure, print, and append rows."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cost.overhead",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="small and short, writes no rows")
    parser.add_argument("--assistants", action="store_true", help="the cost of the Assistants only")
    parser.add_argument("--dynamics", action="store_true", help="the cost of training dynamics only")
    parser.add_argument("--layers", action="store_true", help="the cost of the score layer_gradient_norm only")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    for flavour in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(flavour).setLevel(logging.ERROR)
    asked = ((_assistants, args.assistants), (_dynamics, args.dynamics), (_layers, args.layers))
    parts = [part for part, is_asked in asked if is_asked]
    for measure in parts or (_assistants, _dynamics, _candidates, _captures, _steps):
        measure(args.quick)


if __name__ == "__main__":
    main()
