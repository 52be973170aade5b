"""Where a run's checkpoint is; needs no torch."""

from __future__ import annotations

from pathlib import Path


class InstancesError(Exception):
    """A place holds no training dynamics; the message says what to do."""


def newest_checkpoint(place: Path) -> Path:
    """The checkpoint that is named, or the newest one in a folder and the folders in it.

    Raises:
        InstancesError: If there is none.
    """
    if place.is_file():
        return place
    if not place.is_dir():
        raise InstancesError(f"{place} does not exist; name a checkpoint, or a folder with checkpoints in it")
    found = [path for path in place.rglob("*.ckpt") if path.is_file()]
    if not found:
        raise InstancesError(
            f"{place} has no checkpoint (*.ckpt) in it: training dynamics are in the run's checkpoints, which "
            "ModelCheckpoint saves"
        )
    return max(found, key=lambda path: path.stat().st_mtime)
