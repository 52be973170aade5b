"""Tables of the image benchmark, from its rows."""

from __future__ import annotations

from benchmarks.common.accuracy_report import Benchmark, Row, accuracy_table

MODEL_TITLES = {
    "tiny": "convolutional network of 1,030 parameters",
    "small": "small residual network",
    "resnet18": "ResNet-18",
    "narrow-resnet18": "ResNet-18 with an eighth of the channels",
}


def image_tables() -> str:
    """One table for each setting."""
    return "\n\n".join(accuracy_table(IMAGES, group) for group in IMAGES.groups())


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
