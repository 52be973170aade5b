"""Finished runs, from where their loggers left them: W&B folders and projects, CSVLogger and TensorBoard folders.

Runs may be strangers': nothing is unpickled, no code of theirs runs, and names are returned as they are, to be escaped
where they are shown.
"""

from __future__ import annotations

import csv
import functools
import json
import re
import struct
import sys
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

WANDB_STEP = "trainer/global_step"
# The W&B file: after a header of 7 bytes, blocks of 32 KiB with records of (checksum, length, type), as LevelDB's logs.
_WANDB_HEADER = b":W&B"
_HEADER_SIZE, _BLOCK_SIZE, _RECORD_HEADER_SIZE = 7, 32_768, 7
_RECORD_HEADER = struct.Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_PROJECT = re.compile(r"[\w.-]+/[\w.-]+(/[\w.-]+)?")


class RunError(Exception):
    """A run cannot be read; the message says why and what can be."""


class Row(NamedTuple):
    """What was logged at once.

    Attributes:
        step: The Trainer's step, counted from 0, where the logger got one.
        wall_seconds: Since the run's start, validation included, where the logger notes the time.
        values: Metrics.
    """

    step: float | None
    wall_seconds: float | None
    values: dict[str, float]


class Column(NamedTuple):
    """One metric of a run.

    Attributes:
        rows: In which rows it was logged, shape ``(n,)``.
        values: Shape ``(n,)``.
    """

    rows: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]


@dataclass(frozen=True)
class LoggedRun:
    """One run, as its logger left it.

    Args:
        name: Its own, or the folder it was found in.
        source: Where it was read from.
        rows: In the order of logging.
        config: Its settings, nested.
        group: W&B's, where it has one.
        job_type: Likewise.
    """

    name: str
    source: str
    rows: tuple[Row, ...]
    config: dict[str, Any] = field(default_factory=dict)
    group: str = ""
    job_type: str = ""

    @functools.cached_property
    def columns(self) -> dict[str, Column]:
        """Everything that was logged, by its name."""
        found: dict[str, tuple[list[int], list[float]]] = {}
        for number, row in enumerate(self.rows):
            for name, value in row.values.items():
                numbers, values = found.setdefault(name, ([], []))
                numbers.append(number)
                values.append(value)
        return {
            name: Column(np.array(numbers, np.int64), np.array(values, np.float64))
            for name, (numbers, values) in found.items()
        }

    @functools.cached_property
    def steps(self) -> npt.NDArray[np.float64]:
        """The step of each row, NaN where there is none."""
        return np.array([np.nan if row.step is None else row.step for row in self.rows], np.float64)

    @functools.cached_property
    def wall_seconds(self) -> npt.NDArray[np.float64]:
        """The time of each row, NaN where it was not noted."""
        return np.array([np.nan if row.wall_seconds is None else row.wall_seconds for row in self.rows], np.float64)


def read_runs(place: str) -> list[LoggedRun]:
    """All runs at a place.

    Args:
        place: A W&B offline folder or ``.wandb`` file, a folder of ``CSVLogger`` or ``TensorBoardLogger``, a folder
            with such folders at any depth, a W&B project ``entity/project``, or one run of it ``entity/project/id``.

    Raises:
        RunError: If there is no run, or one cannot be read.
    """
    path = Path(place)
    if path.exists():
        runs = [run for folder in _folders(path) for run in _runs_in(folder)]
        if not runs:
            raise RunError(
                f"{place} holds no run: neither run-*.wandb, metrics.csv nor events.out.tfevents.* at any depth"
            )
        return runs
    if not _PROJECT.fullmatch(place) or place.startswith("."):
        raise RunError(f"{place} is not there, and is no W&B project (entity/project)")
    return _read_wandb_project(place)


def _folders(path: Path) -> list[Path]:
    """``path``, if it is a file; else the folders below it, itself included, links not followed."""
    if path.is_file():
        return [path]
    found, waiting = [], [path]
    while waiting:
        folder = waiting.pop()
        found.append(folder)
        waiting += (child for child in folder.iterdir() if child.is_dir() and not child.is_symlink())
    return sorted(found)


def _runs_in(path: Path) -> Iterator[LoggedRun]:
    """The runs whose files are ``path`` or lie in the folder ``path`` itself."""
    files = [path] if path.is_file() else sorted(child for child in path.iterdir() if child.is_file())
    for file in files:
        if file.suffix == ".wandb":
            yield read_wandb_file(file)
        elif file.name == "metrics.csv":
            yield read_csv(file)
    events = [file for file in files if "tfevents" in file.name]
    if events:
        yield read_tensorboard(events)


# ---- W&B


def read_wandb_file(path: Path) -> LoggedRun:
    """One run from the file that W&B writes offline (and online, beside uploading it).

    What a crash left unfinished at the end is left out; damage before it is an error, since the figures would be wrong.

    Args:
        path: ``run-*.wandb``.

    Raises:
        RunError: If it is no such file, or damaged, or wandb is not installed.
    """
    try:
        from wandb.proto import wandb_internal_pb2

        record_type: Any = wandb_internal_pb2.Record  # type: ignore[attr-defined]  # made when it is imported
    except ImportError as error:
        raise RunError(f"{path}: reading W&B runs needs wandb: pip install wandb ({error})") from error
    from google.protobuf.message import DecodeError

    name, group, job_type = path.stem, "", ""
    config: dict[str, Any] = {}
    rows = []
    for content in _wandb_records(path):
        try:
            record = record_type.FromString(content)
        except DecodeError as error:
            raise RunError(f"{path} is damaged: {error}") from error
        kind = record.WhichOneof("record_type")
        if kind == "run":
            name = record.run.display_name or record.run.run_id or name
            group, job_type = record.run.run_group, record.run.job_type
            _update_config(config, record.run.config.update)
        elif kind == "config":
            _update_config(config, record.config.update)
        elif kind == "history":
            rows.append(_wandb_row(dict(_flat_items(record.history.item))))
    config.pop("_wandb", None)
    return LoggedRun(name, str(path), _with_steps(rows), config, group, job_type)


def _wandb_records(path: Path) -> Iterator[bytes]:
    """The file's records, block by block: it may be larger than memory."""
    with path.open("rb") as file:
        header = file.read(_HEADER_SIZE)
        if not header.startswith(_WANDB_HEADER):
            raise RunError(f"{path} is no W&B run: it begins with {header[:4]!r}")
        parts: list[bytes] = []
        block = file.read(_BLOCK_SIZE - _HEADER_SIZE)
        while block:
            following = file.read(_BLOCK_SIZE)
            position = 0
            while position + _RECORD_HEADER_SIZE <= len(block):  # what is left is too little for a record: zeros
                checksum, length, kind = _RECORD_HEADER.unpack_from(block, position)
                start = position + _RECORD_HEADER_SIZE
                part = block[start : start + length]
                if len(part) < length and not following:
                    return  # what a crash left
                if zlib.crc32(part, zlib.crc32(bytes([kind]))) != checksum:
                    if not following and not any(block[position:]):
                        return  # likewise, of a file system that had made room
                    raise RunError(f"{path} is damaged, within its first {file.tell():,} bytes")
                if kind in {_FULL, _FIRST}:
                    parts.clear()
                parts.append(part)
                if kind in {_FULL, _LAST}:
                    yield b"".join(parts)
                position = start + length
            block = following


def _update_config(config: dict[str, Any], items: Iterable[Any]) -> None:
    for item in items:
        *above, last = list(item.nested_key) or [item.key]
        place = config
        for name in above:
            inner = place.get(name)
            place[name] = inner if isinstance(inner, dict) else {}
            place = place[name]
        place[last] = _from_json(item.value_json)


def _flat_items(items: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    for item in items:
        # Interned: a name is in memory once, not once a row.
        yield sys.intern(".".join(item.nested_key) or item.key), _from_json(item.value_json)


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # of a crash, or a stranger's thousand brackets
        return text


def _wandb_row(values: dict[str, Any]) -> Row:
    numbers = {name: number for name, value in values.items() if (number := _number(value)) is not None}
    step, wall = numbers.pop(WANDB_STEP, None), numbers.pop("_runtime", None)
    return Row(step, wall, {name: number for name, number in numbers.items() if not name.startswith("_")})


def _with_steps(rows: list[Row]) -> tuple[Row, ...]:
    """Rows that the user logged without a step have that of the row before them."""
    last: float | None = None
    filled = []
    for row in rows:
        last = last if row.step is None else row.step
        filled.append(row._replace(step=last))
    return tuple(filled)


def _read_wandb_project(place: str) -> list[LoggedRun]:
    """Runs of a project, or one run, through W&B's public interface."""
    try:
        import wandb
        from requests import RequestException
    except ImportError as error:
        raise RunError(f"{place}: reading W&B projects needs wandb: pip install wandb ({error})") from error
    try:
        api = wandb.Api(timeout=60)
        runs = [api.run(place)] if place.count("/") == 2 else list(api.runs(place))
        read = [
            LoggedRun(
                name=str(run.name),
                source=f"{place}/{run.id}" if place.count("/") == 1 else place,
                rows=_with_steps([_wandb_row(_flat(values)) for values in run.scan_history()]),
                config={name: value for name, value in dict(run.config).items() if name != "_wandb"},
                group=str(run.group or ""),
                job_type=str(run.job_type or ""),
            )
            for run in runs
        ]
    # wandb's errors, of an account that is missing as of a project; its requests'; and its own checks'.
    except (wandb.Error, RequestException, OSError, ValueError, TypeError) as error:
        raise RunError(f"{place} is no folder here, and W&B could not be asked for it: {error}") from error
    if not read:
        raise RunError(f"the W&B project {place} has no runs")
    return read


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


# ---- CSVLogger


def read_csv(path: Path) -> LoggedRun:
    """One run of Lightning's ``CSVLogger``.

    Args:
        path: Its ``metrics.csv``; settings are read from ``hparams.yaml`` beside it.

    Raises:
        RunError: If it is no table with a ``step`` column.
    """
    rows = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            table = csv.DictReader(file)
            if "step" not in (table.fieldnames or ()):
                raise RunError(f"{path} has no column step: it is not CSVLogger's")
            for line in table:
                numbers = {
                    name: number for name, text in line.items() if name and (number := _number(text)) is not None
                }
                rows.append(Row(numbers.pop("step", None), None, numbers))
    except (UnicodeDecodeError, csv.Error) as error:
        raise RunError(f"{path} is no CSV file: {error}") from error
    return LoggedRun(str(path.parent), str(path), tuple(rows), _hparams(path.parent))


# ---- TensorBoard


def read_tensorboard(paths: list[Path]) -> LoggedRun:
    """One run from TensorBoard's event files.

    Args:
        paths: The files of one folder, in the order of writing; settings are read from ``hparams.yaml`` beside them.

    Raises:
        RunError: If tensorboard is not installed.
    """
    try:
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    except ImportError as error:
        raise RunError(
            f"{paths[0]}: reading TensorBoard runs needs tensorboard: pip install tensorboard ({error})"
        ) from error

    rows: list[Row] = []
    start: float | None = None
    for path in paths:
        for event in EventFileLoader(str(path)).Load():
            start = event.wall_time if start is None else start
            values = {value.tag: number for value in event.summary.value if (number := _scalar(value)) is not None}
            values.pop("epoch", None)
            if not values:
                continue
            # One event holds one metric; those of one step belong together.
            if rows and rows[-1].step == event.step and not values.keys() & rows[-1].values.keys():
                rows[-1].values.update(values)
            else:
                rows.append(Row(float(event.step), event.wall_time - start, values))
    folder = paths[0].parent
    return LoggedRun(str(folder), str(folder), tuple(rows), _hparams(folder))


def _scalar(value: Any) -> float | None:
    """A scalar summary, which TensorBoard's loader gives as a tensor of one number."""
    if value.HasField("simple_value"):
        return float(value.simple_value)
    if value.metadata.plugin_data.plugin_name != "scalars":
        return None
    from tensorboard.util import tensor_util

    number = tensor_util.make_ndarray(value.tensor)
    return float(number) if number.ndim == 0 and number.dtype.kind in "fiu" else None


def _hparams(folder: Path) -> dict[str, Any]:
    """Settings from Lightning's ``hparams.yaml``; those that are objects of Python's are left out, not built."""
    import yaml

    Loader: Any = type("Loader", (yaml.SafeLoader,), {})  # noqa: N806
    Loader.add_multi_constructor("", lambda *_: None)
    path = folder / "hparams.yaml"
    try:
        settings = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except FileNotFoundError:
        return {}
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise RunError(f"{path} is no YAML file: {error}") from error
    return settings if isinstance(settings, dict) else {}


def _number(value: Any) -> float | None:
    """A number (NaN and infinity too), or one written as text; None for everything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None
