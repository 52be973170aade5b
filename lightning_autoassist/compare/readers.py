"""Reads finished runs: W&B folders and projects, and folders of ``CSVLogger`` and ``TensorBoardLogger``.

Runs may be strangers'. Nothing is unpickled, none of their code runs, nothing outside the named place is read, and
memory is bounded. Names are returned as they are; whoever shows them has to escape them.
"""

from __future__ import annotations

import csv
import io
import json
import re
import struct
import sys
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_autoassist.compare.logged_runs import MAX_NAME, MAX_VALUES, LoggedRun, Row, Rows, RunError, number_of
from lightning_autoassist.compare.run_files import check_file, folders_below, identity, lines_of, name_of, open_file
from lightning_autoassist.compare.run_settings import read_settings

MAX_CSV_BYTES, MAX_CSV_LINE = 2**30, 2**22
MAX_LOG_BYTES = 2**34  # of a W&B or TensorBoard file, which hold pictures too
MAX_RECORD_BYTES = 2**28
MAX_JSON, MAX_CONFIG_VALUES = 2**20, 100_000
WANDB_STEP = "trainer/global_step"
# The W&B file: after a header of 7 bytes, blocks of 32 KiB with records of (checksum, length, type), as LevelDB's logs.
_WANDB_HEADER = b":W&B"
_HEADER_SIZE, _BLOCK_SIZE, _RECORD_HEADER_SIZE = 7, 32_768, 7
_RECORD_HEADER = struct.Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
# TensorBoard's: records of a length, its checksum, the content, its checksum.
_EVENT_HEADER, _EVENT_CHECKSUMS = struct.Struct("<Q"), 8
_PROJECT = re.compile(r"[\w.-]+/[\w.-]+(/[\w.-]+)?")


def read_runs(place: str, label: str | None = None) -> list[LoggedRun]:
    """Read all runs at a place.

    Args:
        place: A W&B offline folder or ``.wandb`` file, a folder of ``CSVLogger`` or ``TensorBoardLogger``, a folder
            with such folders at any depth, a W&B project ``entity/project``, or one run ``entity/project/id`` of it.
        label: Stands for the folder in the runs' names and sources; None: the folder as it is written in ``place``.

    Raises:
        RunError: If there is no run, or a run cannot be read.
    """
    path = Path(place)
    if path.exists():
        return _read_path(path, label)
    if not _PROJECT.fullmatch(place) or place.startswith("."):
        raise RunError(f"{place} does not exist, and it is no W&B project (entity/project)")
    return _read_wandb_project(place)


def _read_path(path: Path, label: str | None) -> list[LoggedRun]:
    # A link that the user names is followed; links inside a folder are not.
    root = path.resolve() if path.is_symlink() and path.is_file() else path
    base = root if root.is_dir() else root.parent
    shown = Path(label or (path if path.is_dir() else path.parent))
    links: list[Path] = []
    runs = []
    for folder in folders_below(root) if root.is_dir() else [root]:
        for run in _runs_in(folder, root, links):
            place = str(shown / Path(run.source).relative_to(base))
            folder_name = str(Path(place).parent if run.source.endswith(".csv") else place)
            name = run.name or (name_of(base) if folder_name == "." else folder_name)
            runs.append(replace(run, name=name[:MAX_NAME], source=place))
    if not runs:
        raise RunError(
            f"{path} holds no run: it has no run-*.wandb, metrics.csv or events.out.tfevents.* at any depth"
            + (f"; {links[0]} is a link, and links inside a folder are not followed" if links else "")
        )
    return runs


def _is_run_file(path: Path) -> bool:
    return path.suffix == ".wandb" or path.name == "metrics.csv" or "tfevents" in path.name


def _runs_in(path: Path, root: Path, links: list[Path]) -> Iterator[LoggedRun]:
    """The runs whose file is ``path``, or that lie in the folder ``path``; adds linked folders to ``links``."""
    files = [path]
    if path.is_dir():
        found = sorted(child for child in path.iterdir() if child.is_symlink() or not child.is_dir())
        links += (child for child in found if child.is_symlink() and child.is_dir())
        files = [file for file in found if _is_run_file(file) and not _is_link_within(file, root)]
    for file in files:
        if file.suffix == ".wandb":
            yield replace(read_wandb_file(file), origin=frozenset([identity(file)]))
        elif file.name == "metrics.csv":
            yield replace(read_csv(file), origin=frozenset([identity(file)]))
    events = [file for file in files if "tfevents" in file.name]
    if events:
        yield replace(read_tensorboard(events), origin=frozenset(map(identity, events)))


def _is_link_within(path: Path, root: Path) -> bool:
    """Whether a path is a link to something below ``root``, which is read there."""
    return path.is_symlink() and path.resolve().is_relative_to(root.resolve())


# ---- W&B


def read_wandb_file(path: Path) -> LoggedRun:
    """Read one run from the file that W&B writes, offline and online.

    A record that a crash left unfinished at the end is left out. Damage before the end is an error.

    Args:
        path: The file ``run-*.wandb``.

    Raises:
        RunError: If it is not such a file, if it is damaged, or if wandb is not installed.
    """
    try:
        from wandb.proto import wandb_internal_pb2

        record_type: Any = wandb_internal_pb2.Record  # type: ignore[attr-defined]  # made when it is imported
    except ImportError as error:
        raise RunError(f"{path}: reading W&B runs needs wandb: pip install wandb ({error})") from error
    from google.protobuf.message import DecodeError

    name, group, job_type = path.stem, "", ""
    config: dict[str, Any] = {}
    rows, num_settings = Rows(path), 0
    for content in _wandb_records(path):
        try:
            record = record_type.FromString(content)
        except DecodeError as error:
            raise RunError(f"{path} is damaged: {error}") from error
        kind = record.WhichOneof("record_type")
        if kind == "run":
            name = record.run.display_name or record.run.run_id or name
            group, job_type = record.run.run_group[:MAX_NAME], record.run.job_type[:MAX_NAME]
            num_settings += _update_config(config, record.run.config.update)
        elif kind == "config":
            num_settings += _update_config(config, record.config.update)
        elif kind == "history":
            rows.add(_wandb_row(dict(_flat_items(record.history.item))))
        if num_settings > MAX_CONFIG_VALUES:
            raise RunError(f"{path} has more than {MAX_CONFIG_VALUES:,} settings, and no more can be compared")
    config.pop("_wandb", None)
    return LoggedRun(name[:MAX_NAME], str(path), _with_steps(rows.rows), config, group, job_type)


def _wandb_records(path: Path) -> Iterator[bytes]:
    """Yield the records of a file, which may be larger than memory."""
    with open_file(path, MAX_LOG_BYTES) as file:
        header = file.read(_HEADER_SIZE)
        if not header.startswith(_WANDB_HEADER):
            raise RunError(f"{path} is not a W&B run: it begins with {header[:4]!r}")
        parts: list[bytes] = []
        size = 0
        block = file.read(_BLOCK_SIZE - _HEADER_SIZE)
        while block:
            following = file.read(_BLOCK_SIZE)
            position = 0
            while position + _RECORD_HEADER_SIZE <= len(
                block
            ):  # too little for a record is left, which is filled with zeros
                checksum, length, kind = _RECORD_HEADER.unpack_from(block, position)
                start = position + _RECORD_HEADER_SIZE
                part = block[start : start + length]
                if len(part) < length and not following:
                    return  # a crash left the record unfinished
                if zlib.crc32(part, zlib.crc32(bytes([kind]))) != checksum:
                    if not following and not any(block[position:]):
                        return  # a crash left it unwritten, and the file system had made room for it
                    raise RunError(f"{path} is damaged, within its first {file.tell():,} bytes")
                if kind in {_FULL, _FIRST}:
                    parts.clear()
                    size = 0
                parts.append(part)
                size += len(part)
                if size > MAX_RECORD_BYTES:
                    raise RunError(f"{path} holds a record of more than {MAX_RECORD_BYTES:,} bytes")
                if kind in {_FULL, _LAST}:
                    yield b"".join(parts)
                position = start + length
            block = following


def _update_config(config: dict[str, Any], items: Iterable[Any]) -> int:
    """Put settings into the nested ``config``; returns how many there were."""
    number = 0
    for number, item in enumerate(items, start=1):  # noqa: B007
        *above, last = list(item.nested_key) or [item.key]
        place = config
        for name in above:
            inner = place.get(name)
            place[name] = inner if isinstance(inner, dict) else {}
            place = place[name]
        place[last] = _from_json(item.value_json[:MAX_JSON])
    return number


def _flat_items(items: Iterable[Any]) -> Iterator[tuple[str, float]]:
    """Names and values of the numbers in a row; each name is in memory once for all rows."""
    for item in items:
        name = ".".join(item.nested_key) or item.key
        number = number_of(_from_json(item.value_json)) if len(item.value_json) <= MAX_NAME else None
        if number is not None:
            yield sys.intern(name), number


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # after a crash, or of a stranger who wrote a thousand brackets
        return text


def _wandb_row(values: dict[str, Any]) -> Row:
    numbers = {name: number for name, value in values.items() if (number := number_of(value)) is not None}
    step, wall = numbers.pop(WANDB_STEP, None), numbers.pop("_runtime", None)
    return Row(step, wall, {name: number for name, number in numbers.items() if not name.startswith("_")})


def _with_steps(rows: list[Row]) -> tuple[Row, ...]:
    """Give rows that the user logged without a step the step of the row before."""
    last: float | None = None
    filled = []
    for row in rows:
        last = last if row.step is None else row.step
        filled.append(row._replace(step=last))
    return tuple(filled)


def _read_wandb_project(place: str) -> list[LoggedRun]:
    """Read the runs of a project, or one run, through W&B's public interface."""
    try:
        import wandb
        from requests import RequestException
    except ImportError as error:
        raise RunError(f"{place}: reading W&B projects needs wandb: pip install wandb ({error})") from error
    try:
        api = wandb.Api(timeout=60)
        runs = [api.run(place)] if place.count("/") == 2 else list(api.runs(place))
        read = [_read_wandb_run(run, f"{place}/{run.id}" if place.count("/") == 1 else place) for run in runs]
    # wandb raises its own errors where an account or a project is missing, and those of its requests and checks.
    except (wandb.Error, RequestException, OSError, ValueError, TypeError, RecursionError) as error:
        raise RunError(f"{place} is no folder here, and W&B did not give it: {error}") from error
    if not read:
        raise RunError(f"the W&B project {place} has no runs")
    return read


def _read_wandb_run(run: Any, source: str) -> LoggedRun:
    rows = Rows(source)
    for values in run.scan_history():
        rows.add(_wandb_row(_flat(values)))
    return LoggedRun(
        name=str(run.name)[:MAX_NAME],
        source=source,
        rows=_with_steps(rows.rows),
        config={name: value for name, value in dict(run.config).items() if name != "_wandb"},
        group=str(run.group or "")[:MAX_NAME],
        job_type=str(run.job_type or "")[:MAX_NAME],
        origin=frozenset([source]),
    )


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
    """Read one run of Lightning's ``CSVLogger``.

    Args:
        path: The run's ``metrics.csv``; settings are read from ``hparams.yaml`` beside it.

    Raises:
        RunError: If the file is no table with a column ``step``.
    """
    rows = Rows(path)
    try:
        with io.TextIOWrapper(open_file(path, MAX_CSV_BYTES), encoding="utf-8", newline="") as file:
            table = csv.reader(lines_of(file, path, MAX_CSV_LINE))
            names = [sys.intern(name) for name in next(table, [])]
            if "step" not in names:
                raise RunError(f"{path} has no column step, so CSVLogger did not write it")
            for line in table:
                numbers = {
                    name: number
                    for name, text in zip(names, line, strict=False)
                    if name and (number := number_of(text)) is not None
                }
                rows.add(Row(numbers.pop("step", None), None, numbers))
    except (UnicodeDecodeError, csv.Error) as error:
        raise RunError(f"{path} is not a CSV file: {error}") from error
    config, notes = read_settings(path.parent)
    return LoggedRun("", str(path), tuple(rows.rows), config, notes=notes)


# ---- TensorBoard


def read_tensorboard(paths: list[Path]) -> LoggedRun:
    """Read one run from TensorBoard's event files.

    Args:
        paths: The event files of one folder, in the order of writing; settings are read from ``hparams.yaml`` beside
            them.

    Raises:
        RunError: If a file is damaged, or if tensorboard is not installed.
    """
    try:
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    except ImportError as error:
        raise RunError(
            f"{paths[0]}: reading TensorBoard runs needs tensorboard: pip install tensorboard ({error})"
        ) from error

    rows = Rows(paths[0].parent)
    start: float | None = None
    for path in paths:
        _check_event_file(path)
        try:
            for event in EventFileLoader(str(path)).Load():
                start = event.wall_time if start is None else start
                _add_event(rows, event, start)
        except RunError:
            raise
        except Exception as error:  # a stranger's bytes make tensorboard raise errors of many types
            raise RunError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    folder = paths[0].parent
    config, notes = read_settings(folder)
    return LoggedRun("", str(folder), tuple(rows.rows), config, notes=notes)


def _add_event(rows: Rows, event: Any, start: float) -> None:
    """Add an event, which holds one metric, to the row of its step."""
    values = {
        sys.intern(value.tag): number
        for value in event.summary.value
        if len(value.tag) <= MAX_NAME and (number := _scalar(value)) is not None
    }
    values.pop("epoch", None)
    if not values:
        return
    last = rows.rows[-1] if rows.rows else None
    if last is not None and last.step == event.step and not values.keys() & last.values.keys():
        rows.count(len(values))
        last.values.update(values)
    else:
        rows.add(Row(float(event.step), event.wall_time - start, values))


def _check_event_file(path: Path) -> None:
    """Refuse a file with too many or too large records, since tensorboard reads each record into memory whole."""
    check_file(path, MAX_LOG_BYTES)
    with open_file(path, MAX_LOG_BYTES) as file:
        size, num_records = path.stat().st_size, 0
        while len(header := file.read(_EVENT_HEADER.size)) == _EVENT_HEADER.size:
            (length,) = _EVENT_HEADER.unpack(header)
            num_records += 1
            if min(length, size) > MAX_RECORD_BYTES or num_records > MAX_VALUES:
                raise RunError(f"{path} holds records that are too large or too many for the log of a run")
            if file.tell() + length > size:
                return  # a crash left the record unfinished
            file.seek(length + _EVENT_CHECKSUMS, io.SEEK_CUR)


def _scalar(value: Any) -> float | None:
    """The number of a scalar summary, which TensorBoard's loader returns as a tensor; None for other summaries."""
    if value.HasField("simple_value"):
        return float(value.simple_value)
    if value.metadata.plugin_data.plugin_name != "scalars":
        return None
    # A stranger's shape can ask for any number of copies of one value.
    if value.tensor.tensor_shape.dim:
        return None
    from tensorboard.util import tensor_util

    number = tensor_util.make_ndarray(value.tensor)
    return float(number) if number.ndim == 0 and number.dtype.kind in "fiu" else None
