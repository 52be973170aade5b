"""Contents of W&B's offline files that the plug-in does not read, for tests."""

import json
from collections.abc import Iterator
from typing import Any

from lightning_autoassist.compare.readers import _wandb_records


def records_of(folder: Any) -> Iterator[Any]:
    """All records of the only run below ``folder``."""
    from wandb.proto import wandb_internal_pb2  # not everywhere where tests are collected

    (path,) = folder.rglob("*.wandb")
    for content in _wandb_records(path):
        yield wandb_internal_pb2.Record.FromString(content)


def summary_of(folder: Any) -> dict[str, Any]:
    """The summary of a run as of its end."""
    items = [item for record in records_of(folder) for item in record.summary.update]
    return {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def history_of(folder: Any, name: str) -> list[dict[str, Any]]:
    """What was logged under a name that has parts, one entry a row."""
    rows = []
    for record in records_of(folder):
        items = [item for item in record.history.item if (list(item.nested_key) or [item.key])[0] == name]
        entry: dict[str, Any] = {}
        for item in items:
            value = json.loads(item.value_json)
            if len(item.nested_key) > 1:
                entry[".".join(item.nested_key[1:])] = value
            else:
                entry.update(value)
        if entry:
            rows.append(entry)
    return rows
