"""Reads the runs that a command line names; a run that is named twice is counted once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_autoassist.compare.logged_runs import LoggedRun
from lightning_autoassist.compare.readers import read_runs
from lightning_autoassist.compare.run_files import name_of


def read_all(words: Sequence[str]) -> list[LoggedRun]:
    """Read the runs that several words name.

    Args:
        words: Each is ``RUN`` or ``NAME=RUN``, see :func:`~lightning_autoassist.compare.readers.read_runs`.

    Returns:
        Each run once; a run that was named again has a note that says so.

    Raises:
        RunError: If there is no run at a place, or a run cannot be read.
    """
    named = [_name_and_place(word) for word in words]
    labels = labels_of([place for _, place in named])
    runs: list[LoggedRun] = []
    for (name, place), label in zip(named, labels, strict=True):
        found = read_runs(place, label)
        runs += [replace(run, name=name) for run in found] if name else found
    return _each_once(runs)


def labels_of(places: Sequence[str]) -> list[str | None]:
    """Labels for folders: relative paths as they are written, absolute paths cut to what tells them from the others.

    Args:
        places: Folders, files in folders, or W&B projects. The label of a W&B project is None.

    Example:
        >>> labels_of(["/somewhere/logs/a", "logs/b"])  # neither exists
        [None, None]
    """
    folders = [_folder_of(Path(place)) if Path(place).exists() else None for place in places]
    return [None if folder is None else _label(folder, folders) for folder in folders]


def _name_and_place(word: str) -> tuple[str, str]:
    name, equals, place = word.partition("=")
    return (name, place) if equals and name and not Path(word).exists() else ("", word)


def _folder_of(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _label(folder: Path, folders: Iterable[Path | None]) -> str:
    if not folder.is_absolute() and ".." not in folder.parts:
        return str(folder)
    if folder.resolve() == Path.home().resolve():
        return name_of(folder)
    parts = folder.resolve().parts
    others = {other.resolve() for other in folders if other is not None} - {folder.resolve()}
    for length in range(1, len(parts)):
        if all(other.parts[-length:] != parts[-length:] for other in others):
            return str(Path(*parts[-length:]))
    return name_of(folder)


def _each_once(runs: Iterable[LoggedRun]) -> list[LoggedRun]:
    kept: list[LoggedRun] = []
    places: dict[Any, int] = {}
    for run in runs:
        known = next((places[part] for part in run.origin if part in places), None)
        if known is None:
            places.update(dict.fromkeys(run.origin, len(kept)))
            kept.append(run)
            continue
        first = kept[known]
        again = "" if first.name == run.name else f", the second time as {run.name}"
        note = f"This run was named twice{again}, and is counted once."
        kept[known] = replace(first, notes=tuple(dict.fromkeys([*first.notes, note])))
    return kept
