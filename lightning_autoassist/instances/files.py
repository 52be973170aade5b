"""The table of instances as a file."""

from __future__ import annotations

import csv
from pathlib import Path

from lightning_autoassist.filtering.memory.frame import columns_of
from lightning_autoassist.filtering.memory.store import InstanceStore


def write_table(path: Path, store: InstanceStore) -> None:
    """Write ``to_frame()``, as its suffix says: ``.csv``, which needs no further package, or ``.parquet``.

    Args:
        path: The file.
        store: What is known of the instances.

    Raises:
        ModuleNotFoundError: If pandas is missing, or what it writes the file with.
    """
    if path.suffix == ".csv":
        _write_csv(path, store)
        return
    frame = store.to_frame()
    try:
        frame.to_parquet(path)
    except ImportError as error:  # pandas names several packages, in many lines
        raise ModuleNotFoundError(
            "pandas has nothing to write .parquet with: pip install 'lightning-autoassist[instances]', or name a .csv "
            "file"
        ) from error


def _write_csv(path: Path, store: InstanceStore) -> None:
    columns = columns_of(store)
    rows = zip(range(len(store)), *(column.tolist() for column in columns.values()), strict=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["index", *columns])
        for row in rows:
            writer.writerow(
                ["" if cell != cell else f"{cell:.7g}" if isinstance(cell, float) else cell for cell in row]
            )
