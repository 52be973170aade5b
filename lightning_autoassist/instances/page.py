"""The page of instances: the map, what stands out, and a table to search and sort.

Names of classes, and texts of the data, may be strangers': they are shown as text only, see ``pages``.

Shapes: N data set, H and W height and width in pixels.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lightning_autoassist.filtering.memory.frame import COLUMNS, columns_of
from lightning_autoassist.filtering.memory.store import InstanceStore
from lightning_autoassist.filtering.reporting.pictures import Picture, picture_of
from lightning_autoassist.instances.findings import (
    Columns,
    Findings,
    by_loss,
    class_lines,
    findings,
    name_of,
    sentences,
)
from lightning_autoassist.pages.html import write_html
from lightning_autoassist.pages.terminal import printable, shortened

MAX_ROWS = 3000  # of each kind a third
MAX_SHOWN = 120  # pictures or texts
MAX_SIDE, MAX_TEXT = 96, 300
# Losses whose exponential of minus is the probability of the label.
PROBABILITIES = ("cross_entropy", "nll_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits")
KINDS = ("suspected wrong label", "hardest", "learnt at once", "other")

# Gets a position in the data set, returns the instance.
InstanceAt = Callable[[int], Any]


class Names(NamedTuple):
    """What a page calls things.

    Attributes:
        source: Where the dynamics are from.
        classes: Names of the classes, by their number; may be fewer.
    """

    source: str
    classes: list[str]


def write_page(path: Path, store: InstanceStore, names: Names, instance_at: InstanceAt | None = None) -> None:
    """Write one HTML file.

    Args:
        path: The file.
        store: What is known of the instances, with training dynamics.
        names: What the page calls them.
        instance_at: Gives instances to be shown, as pictures or text; None shows none.
    """
    write_html(path, "lightning_autoassist.instances", "instances_page", page_data(store, names, instance_at))


def page_data(store: InstanceStore, names: Names, instance_at: InstanceAt | None = None) -> dict[str, Any]:
    """What the page shows; see :func:`write_page`."""
    assert store.dynamics is not None
    columns = _known(columns_of(store))
    found = findings(columns)
    kinds = _kinds(found)
    places = _chosen(columns, found, kinds)
    shown_names = [printable(name) for name in names.classes]
    loss, call = store.dynamics.loss_source, store.dynamics.loss_source.partition(" ")[0]
    return {
        "source": printable(names.source),
        "loss": printable(loss),
        "is_probability": call in PROBABILITIES,
        "findings": sentences(columns, found),
        "classes": class_lines(columns, found, shown_names),
        "kinds": KINDS,
        "counts": [int((kinds == number).sum()) for number in range(len(KINDS))],
        "columns": {name: COLUMNS[name] for name in columns if name != "label"},
        "rows": _rows(columns, kinds, places, shown_names),
        "num_instances": len(store),
        "shown": {} if instance_at is None else _shown(places[:MAX_SHOWN], instance_at),
    }


def _known(columns: Columns) -> Columns:
    """The columns, without margins and suggested labels where no instance has any."""
    is_known = {
        "area_under_margin": np.isfinite(columns["area_under_margin"]).any(),
        "suggested_label": (columns["suggested_label"] >= 0).any(),
    }
    return {name: column for name, column in columns.items() if is_known.get(name, True)}


def _kinds(found: Findings) -> npt.NDArray[np.int64]:
    """The number of each instance's kind in ``KINDS``, shape ``(N,)``; -1 where it was never seen."""
    kinds = np.full(len(found.is_seen), -1)
    for number, which in ((3, found.is_seen), (2, found.is_redundant), (1, found.is_hardest), (0, found.is_suspect)):
        kinds[which] = number
    return kinds


def _chosen(columns: Columns, found: Findings, kinds: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Places of the rows on the page, those with the highest mean loss first: of many, some of each kind."""
    order = by_loss(columns)
    if len(order) <= MAX_ROWS:
        return order
    chosen = np.zeros(len(kinds), bool)
    most = MAX_ROWS // 4
    for number in range(len(KINDS)):
        of_kind = order[kinds[order] == number]
        # The hardest of what stands out; evenly of the others.
        even = of_kind[np.linspace(0, len(of_kind) - 1, min(most, len(of_kind))).astype(int)]
        chosen[of_kind[:most] if number < 2 else even] = True
    return order[chosen[order]]


def _rows(
    columns: Columns, kinds: npt.NDArray[np.int64], places: npt.NDArray[np.int64], names: list[str]
) -> list[list[Any]]:
    """Index, kind, class and the other columns of each row."""

    def classes_of(labels: npt.NDArray[Any]) -> list[str]:
        return [shortened(name_of(label, names)) for label in labels[places].tolist()]

    cells = [
        classes_of(column) if name == "suggested_label" else [_brief(cell) for cell in column[places].tolist()]
        for name, column in columns.items()
        if name != "label"
    ]
    classes = classes_of(columns.get("label", np.full(len(kinds), -1)))
    return [list(row) for row in zip(places.tolist(), kinds[places].tolist(), classes, *cells, strict=True)]


def _brief(cell: Any) -> Any:
    return float(f"{cell:.5g}") if isinstance(cell, float) else cell


def _shown(places: npt.NDArray[np.int64], instance_at: InstanceAt) -> dict[str, dict[str, str]]:
    """Pictures or texts of instances, by their index."""
    shown = {}
    for index in places.tolist():
        instance = instance_at(index)
        text, picture = _text_of(instance), picture_of(instance)
        if text is not None:
            shown[str(index)] = {"text": shortened(text, MAX_TEXT)}
        elif picture is not None:
            shown[str(index)] = {"picture": "data:image/png;base64," + base64.b64encode(png(picture)).decode()}
    return shown


def _text_of(value: Any) -> str | None:
    """The longest text in an instance; None where there is none."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return max((text for text in map(_text_of, value) if text is not None), key=len, default=None)
    return value if isinstance(value, str) else None


def png(picture: Picture) -> bytes:
    r"""A PNG of a picture, shape ``(H, W)`` or ``(H, W, 3 or 4)``; of large ones every k-th pixel.

    Example:
        >>> png(np.zeros((2, 2), np.uint8))[:4]
        b'\x89PNG'
    """
    stride = -(-max(picture.shape[:2]) // MAX_SIDE)
    pixels = np.ascontiguousarray(picture[::stride, ::stride])
    height, width = pixels.shape[:2]
    kind = {1: 0, 3: 2, 4: 6}[1 if pixels.ndim == 2 else pixels.shape[2]]
    lines = b"".join(b"\0" + line.tobytes() for line in pixels)
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(lines)) + _chunk(b"IEND", b"")


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
