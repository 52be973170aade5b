"""The README's box on when filtering pays and when it does not, its figures from the rows of other benchmarks."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.common.accuracy_report import Row, differences, full_runs, with_error
from benchmarks.common.jobs import FULL
from benchmarks.cost.report import last_rows
from benchmarks.gpu.report import gpu_rows
from benchmarks.images.report import IMAGES
from benchmarks.rare_events.data import COVTYPE_SETS, SECTION_SETS
from benchmarks.rare_events.plans import PRIORITIZED
from benchmarks.rare_events.report import SHOWN_EPOCHS
from benchmarks.rare_events.report import settings as rare_settings
from benchmarks.rare_events.runs import METRIC

RESIDUAL, UNIFORM = "small", "uniform"


def pays_box() -> str:
    """Cases in which filtering pays, each beside one in which it does not."""
    lines = ["| it pays when (points are against the full run) | it does not when |", "|---|---|"]
    return "\n".join(
        [*lines, *(f"| {pays} | {pays_not} |" for pays, pays_not in zip(_pays(), _pays_not(), strict=True))]
    )


def _pays() -> Iterator[str]:
    groups = [group for group in rare_settings() if group[0]["epochs"] == SHOWN_EPOCHS]
    tables = [group for group in groups if group[0]["dataset"] in COVTYPE_SETS]
    known = [gain for gain in (_mean(group, PRIORITIZED, 0.25, METRIC) for group in tables) if gain is not None]
    texts = next(group for group in groups if group[0]["dataset"] in SECTION_SETS)
    on_texts = [f"{_mean(texts, method, 0.25, METRIC):+.1f}" for method in (PRIORITIZED, UNIFORM)]
    yield (
        "events are rare, data are many, and average precision or the like is what counts "
        f"(`PrioritizedPolicy(keep_rate=0.1)`, `budget=0.25`): {min(known):+.1f} to {max(known):+.1f} points at a "
        f"quarter of the steps; on only {texts[0]['train_instances']:,} texts {on_texts[0]}, `uniform` {on_texts[1]}"
    )
    yield (
        'classes are unbalanced and the test set is balanced: by class alone, `policy="class_balanced"`, '
        f"{_points('long-tail', RESIDUAL, True, 'class_balanced', 0.4)} points at 40 % of the steps"
    )
    resnet = _cost("resnet18, 3x64x64")
    yield (
        "a step of the model takes tens of milliseconds or more, to which filtering adds one or two: ResNet-18 on two "
        f"cores takes {100 * (resnet['ratio'] - 1):.1f} % longer"
    )
    yield "data are redundant: frames of videos, crops of scans, logs (not measured)"


def _pays_not() -> Iterator[str]:
    fits = [_points("fashion-mnist", RESIDUAL, False, method, 0.6) for method in ("prioritized", UNIFORM)]
    yield f"the network fits its training data long before the end: {fits[0]} points at 60 %, `uniform` {fits[1]}"
    wrong = [_points("label-noise", RESIDUAL, True, method, 0.6) for method in ("prioritized", UNIFORM)]
    yield f"a fifth of the labels is wrong: {wrong[0]} points at 60 %, `uniform` {wrong[1]}"
    small = _cost("mlp, F=256, prioritized (the default)")
    yield (
        "steps of one or two milliseconds are to take less time: steps are saved, seconds hardly; "
        f"{small['plain_ms']:.1f} ms become {small['filtered_ms']:.1f}"
    )
    yield (
        "training is so short that every update still counts: a large network, up to some 15 epochs, or "
        "translation that ends before it converges; on the former " + _large_network()
    )


def _large_network() -> str:
    rows = [row for row in gpu_rows("accuracy") if row["case"] == "run" and row["phase"] == "final"]
    epochs = max(row["epochs"] for row in rows)
    group = [row for row in rows if row["epochs"] == epochs]
    budget = max(row["budget"] for row in group if row["method"] != FULL)
    gains = {row["method"]: _mean(group, row["method"], budget, "accuracy") for row in group if row["method"] != FULL}
    uniform = gains.pop(UNIFORM)
    worst = min((gain, method) for method, gain in gains.items() if gain is not None)
    return f"`{worst[1]}` {worst[0]:+.1f} points at {100 * budget:.0f} %, `uniform` {uniform:+.1f}"


def _points(dataset: str, model: str, augment: bool, method: str, budget: float) -> str:
    """Points of accuracy that a method is above the full run, in words."""
    setting = {"dataset": dataset, "model": model, "augment": augment}
    group = next(group for group in IMAGES.groups() if all(group[0][name] == value for name, value in setting.items()))
    return with_error(_gains(group, method, budget, "accuracy"), "+")


def _mean(group: list[Row], method: str, budget: float, metric: str) -> float | None:
    gains = _gains(group, method, budget, metric)
    return sum(gains) / len(gains) if gains else None


def _gains(group: list[Row], method: str, budget: float, metric: str) -> list[float]:
    """How far runs are above the full runs of their seeds, in points."""
    rows = [row for row in group if row["method"] == method and row["budget"] == budget]
    return [100 * gain for gain in differences(rows, full_runs(group), metric)]


def _cost(case: str) -> Row:
    return next(row for row in last_rows("overhead") if row["case"] == case)
