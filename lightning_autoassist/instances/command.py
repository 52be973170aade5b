"""``autoassist instances``: a table and a page of what a run taught about its data."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lightning_autoassist.filtering.named_objects import NamingError, named
from lightning_autoassist.instances.places import InstancesError, newest_checkpoint
from lightning_autoassist.pages.terminal import printable

EXAMPLES = """\
RUN is a checkpoint of a run with AutoAssistCallback, or a folder with checkpoints in it, of which the newest is read.

examples:
  autoassist instances lightning_logs/version_0
  autoassist instances last.ckpt --out instances.parquet --classes names.txt
  autoassist instances last.ckpt --data train.py:train_set     # shows pictures or texts of what stands out

exits with 0, or with 2 where there is no checkpoint, or none with training dynamics
"""
SUFFIXES = (".csv", ".parquet")
DEFAULT_OUT = Path("autoassist-instances.csv")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("place", type=Path, metavar="RUN", help="a checkpoint, or a folder with checkpoints in it")
    parser.add_argument(
        "--out",
        type=Path,
        default=DEFAULT_OUT,
        metavar="FILE",
        help="table, .csv or .parquet; the page lies beside it as .html; default: %(default)s",
    )
    parser.add_argument(
        "--classes", type=Path, metavar="FILE", help="names of the classes, one a line, from class 0 on"
    )
    parser.add_argument(
        "--data",
        metavar="DATA",
        help="FILE.py:NAME or PACKAGE.MODULE:NAME of the train data set, to show pictures or texts of what stands out",
    )
    parser.add_argument(
        "--trust", action="store_true", help="read a checkpoint that holds more than tensors, which can run code"
    )


def write_instances(options: argparse.Namespace) -> list[str]:
    """Write table and page.

    Args:
        options: Of :func:`add_arguments`.

    Returns:
        Lines for the terminal.

    Raises:
        InstancesError: If there is nothing to be read.
        NamingError: If the data set is not there.
        ModuleNotFoundError: If a package is missing that the table needs.
    """
    if options.out.suffix not in SUFFIXES:
        raise InstancesError(f"--out must end with {' or '.join(SUFFIXES)}, got {options.out.name}")
    checkpoint = newest_checkpoint(options.place)
    from lightning_autoassist.filtering.memory.frame import columns_of
    from lightning_autoassist.instances.checkpoints import instances_in
    from lightning_autoassist.instances.files import write_table
    from lightning_autoassist.instances.findings import findings, sentences
    from lightning_autoassist.instances.page import Names, write_page

    store = instances_in(checkpoint, trusts=options.trust)
    classes = [] if options.classes is None else options.classes.read_text(encoding="utf-8").splitlines()
    data_set = None if options.data is None else _data_set(options.data, len(store))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_table(options.out, store)
    page = options.out.with_suffix(".html")
    instance_at = None if data_set is None else data_set.__getitem__
    write_page(page, store, Names(checkpoint.name, classes), instance_at)
    columns = columns_of(store)
    written = f"Written: {printable(str(options.out))}, {printable(str(page))}"
    return [f"From {printable(str(checkpoint))}", *sentences(columns, findings(columns)), written]


def _data_set(path: str, num_instances: int) -> Any:
    data_set = named(path)
    try:
        num_found = len(data_set)
    except TypeError:
        num_found = None
    if num_found is None or not hasattr(data_set, "__getitem__"):
        raise NamingError(f"{path} must be a data set with a length and indices, got {type(data_set).__name__}")
    if num_found < num_instances:
        raise NamingError(f"{path} has {num_found} instances, the run had {num_instances}")
    return data_set
