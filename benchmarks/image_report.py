"""Tables of the image benchmark and of the wall clock, from their rows."""

from __future__ import annotations

from accuracy_report import Benchmark, Row, accuracy_table, measured_on
from rows import rows_of

MODEL_TITLES = {
    "tiny": "convolutional network of 1,030 parameters",
    "small": "small residual network",
    "resnet18": "ResNet-18",
}
GPU_COMMAND = (
    "python benchmarks/images.py --dataset fashion-mnist --instances 0 --image-size 32 --model resnet18 --augment "
    "--device cuda --precision bf16-mixed --channels-last --epochs 30 --workers 8"
)


def image_tables() -> str:
    """One table for each setting."""
    return "\n\n".join(accuracy_table(IMAGES, group) for group in IMAGES.groups())


def gpu_note() -> str:
    """Says that no row is of a GPU, and how to get some; nothing where there are such rows."""
    if any(group[0]["device"] == "cuda" for group in IMAGES.groups()):
        return ""
    return f"ResNet-18 on a GPU was not run yet. The command: `{GPU_COMMAND}`."


def wall_clock_table() -> str:
    """Seconds against those of the full run."""
    rows = list({row["case"]: row for row in rows_of("wall_clock")}.values())
    if not rows:
        return "Not measured yet: `python benchmarks/wall_clock.py`."
    lines = [
        "| case, policy | full run, s | at the budget, s | share of seconds | of updates | of instances loaded |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        loaded = row["budget_instances_loaded"] / row["full_instances_loaded"]
        case = f"{row['case']} ({row['full_step_ms']:.0f} ms a step), budget {row['budget']}"
        seconds = f"{row['full_seconds']:.1f} | {row['budget_seconds']:.1f} | {row['seconds_ratio']:.3f}"
        lines.append(f"| {case} | {seconds} | {row['updates_ratio']:.3f} | {loaded:.3f} |")
    return "\n".join([*lines, "", f"{measured_on(rows)} Fastest of {rows[0]['rounds']} runs of each kind, in turns."])


def _title(row: Row) -> str:
    parts = [
        f"{row['dataset']}, {row['train_instances']:,} training images",
        f"{row['image_size']}x{row['image_size']}" if row["image_size"] else "",
        MODEL_TITLES[row["model"]],
        f"batch {row['batch_size']}",
        f"{row['epochs']} epochs",
        "flips and shifts" if row["augment"] else "",
        row["precision"] if row["precision"] != "32-true" else "",
    ]
    return ", ".join(part for part in parts if part)


def _case(row: Row) -> str:
    return ", ".join([row["dataset"], MODEL_TITLES[row["model"]], *(["flips and shifts"] if row["augment"] else [])])


def _stem(row: Row) -> str:
    others = [row[name] for name in ("instances", "image_size", "model") if row[name] not in (None, "small")]
    augmented = ["augmented"] if row["augment"] else []
    parts = ["images", row["dataset"], *others, row["epochs"], *augmented, row["device"]]
    return "-".join(str(part) for part in parts)


IMAGES = Benchmark(
    "images",
    ("dataset", "instances", "image_size", "model", "batch_size", "epochs", "augment", "device", "precision"),
    _title,
    _case,
    _stem,
)
