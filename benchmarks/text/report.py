"""Tables of the text benchmark, from its rows."""

from __future__ import annotations

from benchmarks.common.accuracy_report import Benchmark, Row, accuracy_table

MODEL_TITLES = {"bag": "embeddings, mean and maximum", "transformer": "small Transformer"}


def text_tables() -> str:
    """One table for each setting."""
    tables = [accuracy_table(TEXTS, group) for group in TEXTS.groups()]
    return "\n\n".join(tables) or "Not measured yet: `python -m benchmarks.text`."


def _title(row: Row) -> str:
    parts = [
        f"Debian's package descriptions by section, {row['train_instances']:,} training texts",
        MODEL_TITLES[row["model"]],
        f"batch {row['batch_size']}",
        f"{row['epochs']} epochs",
        row["precision"] if row["precision"] != "32-true" else "",
    ]
    return ", ".join(part for part in parts if part)


def _case(row: Row) -> str:
    return f"Debian's descriptions, {MODEL_TITLES[row['model']]}"


def _stem(row: Row) -> str:
    parts = ["text", row["dataset"], row["model"], row["max_length"], row["epochs"], row["device"]]
    return "-".join(str(part) for part in parts)


TEXTS = Benchmark(
    "text",
    ("dataset", "max_length", "model", "batch_size", "epochs", "device", "precision", "train_instances"),
    _title,
    _case,
    _stem,
)
