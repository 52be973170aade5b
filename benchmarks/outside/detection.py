"""Pictures with boxes, different in number, as detection models want them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.outside.cases import NUM_INSTANCES, integers


def targets(size: int, num_classes: int, *, as_centres: bool = False) -> list[dict[str, Tensor]]:
    """One to three boxes for each picture, with labels.

    Args:
        size: Of the pictures, in pixels.
        num_classes: Labels are from 1 to it, or from 0 below it where boxes are given by centres.
        as_centres: Whether boxes are centre, width and height in shares of the picture, else corners in pixels.
    """
    starts, spans = integers(size // 2, 3, 2), 4 + integers(size // 2 - 4, 3, 2).flip(0)
    numbers, labels = 1 + integers(3), integers(num_classes, 3)
    found = []
    for index in range(NUM_INSTANCES):
        count = int(numbers[index])
        start, span = starts[index, :count].float(), spans[index, :count].float()
        if as_centres:
            boxes, classes = torch.cat([start + span / 2, span], 1) / size, labels[index, :count]
        else:
            boxes, classes = torch.cat([start, start + span], 1), 1 + labels[index, :count]
        found.append({"boxes": boxes, "labels": classes})
    return found


def collate_pairs(rows: list[Any]) -> tuple[list[Any], ...]:
    """Lists of pictures and of targets, as torchvision's references do it."""
    return tuple(list(column) for column in zip(*rows, strict=True))
