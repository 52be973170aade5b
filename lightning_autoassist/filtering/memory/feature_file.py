"""Features that are too many for memory: a matrix in a file of the run's own, mapped into memory.

Shapes: N data set, F features.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import warnings
import weakref
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

if sys.platform != "win32":
    import fcntl

FORMAT = "lightning-autoassist features 2"
HEADER_BYTES = 4096  # a page, so that rows begin at a page's start
_CHUNK_BYTES = 2**24

# What a row's flag says: nothing was written to it, something was, or a checkpoint counts on it.
EMPTY, WRITTEN, SAVED = 0, 1, 2


class FeaturePlace(NamedTuple):
    """Where a run's feature file lies.

    Attributes:
        folder: Of a new file; None: there is none, and features stay in memory.
        rank: Of the process. Every process has a file of its own.
        resumed_from: The checkpoint that the run continues; its folder is looked in first.
    """

    folder: str | None = None
    rank: int = 0
    resumed_from: str | None = None

    @classmethod
    def of(cls, trainer: Any) -> FeaturePlace:
        """Beside the checkpoints, or else where the run logs; on every rank at once, as ``log_dir`` asks for."""
        folders = (getattr(trainer.checkpoint_callback, "dirpath", None), trainer.log_dir, trainer.default_root_dir)
        local = (str(folder) for folder in folders if folder and "://" not in str(folder))
        return cls(next(local, None), trainer.global_rank, trainer.ckpt_path)


class FeatureFile:
    """Rows of features in half precision, shape ``(N, F)``, zero until written.

    The file starts with a header that names the run it belongs to, and ends with a flag a row. Its space is reserved
    when it is made: a disk that ran full under a mapped file would end the process with SIGBUS. A file that no
    checkpoint refers to (see
    :meth:`state_dict`) is removed with this object.

    Attributes:
        path: The file.
        values: Its rows; writing to them writes to the file.
        is_ours: Whether ``values`` may be written to: not where another process has the file, or it is read-only.
    """

    def __init__(self, path: Path, file: BinaryIO, shape: tuple[int, int], run: str, is_writable: bool = True) -> None:
        self.path = path
        self._run = run
        # "c", copy on write, needs no right to write, and torch takes such an array without a complaint.
        mode: Literal["r+", "c"] = "r+" if is_writable else "c"
        self._map: Any = np.memmap(file, np.float16, mode, HEADER_BYTES, shape)
        self._flags: Any = np.memmap(file, np.uint8, mode, HEADER_BYTES + self._map.nbytes, shape[0])
        self.values = torch.from_numpy(self._map)
        weakref.finalize(self, file.close)
        # After mapping: a process loses its lock on a file whenever it closes any descriptor of it.
        self.is_ours = is_writable and _lock(file)
        self._removal: weakref.finalize[Any, Any] | None = None

    @classmethod
    def create(cls, place: FeaturePlace, shape: tuple[int, int]) -> FeatureFile:
        """A new file of zeros.

        Raises:
            OSError: If there is no folder for it, or no space.
        """
        if place.folder is None:
            raise OSError("the run has no folder on this machine")
        run = secrets.token_hex(8)  # not from the global RNGs, which stay untouched
        path = Path(place.folder).absolute() / f"autoassist-features-{run}-rank{place.rank}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("x+b")
        try:
            _reserve(file, _size(shape))
            header = json.dumps({"format": FORMAT, "run": run, "shape": shape}).encode()
            file.seek(0)
            file.write(header.ljust(HEADER_BYTES))
            file.flush()
            created = cls(path, file, shape, run)
        except BaseException:
            file.close()
            path.unlink()
            raise
        created._removal = weakref.finalize(created, _remove, path, os.getpid())
        return created

    @classmethod
    def find(cls, state: dict[str, Any], place: FeaturePlace) -> FeatureFile:
        """The file that :meth:`state_dict` refers to: beside the checkpoint that is resumed, or where it was.

        Raises:
            OSError: If it is in neither place, or what is there belongs to another run; names both.
        """
        path, shape, run = Path(state["path"]), tuple(state["shape"]), state["run"]
        beside = [] if place.resumed_from is None else [Path(place.resumed_from).absolute().parent / path.name]
        problems = []
        for candidate in dict.fromkeys([*beside, path]):
            problem = _problem_with(candidate, shape, run)
            if problem is None:
                return cls._open(candidate, shape, run)
            problems.append(problem)
        raise OSError("; ".join(problems))

    @classmethod
    def _open(cls, path: Path, shape: tuple[int, int], run: str) -> FeatureFile:
        try:
            return cls(path, path.open("r+b"), shape, run)
        except OSError:
            return cls(path, path.open("rb"), shape, run, is_writable=False)

    def mark(self, rows: Tensor) -> None:
        """Take note that features were written to some rows, shape ``(n,)``."""
        self._flags[rows.numpy()] = WRITTEN

    def holds(self, rows: Tensor) -> bool:
        """Whether the rows that a mask names, shape ``(N,)``, were all written."""
        return bool((self._flags[rows.numpy()] != EMPTY).all())

    def is_shared(self, rows: Tensor) -> bool:
        """Whether a checkpoint counts on rows beside those that a mask names, shape ``(N,)``: a later one's."""
        return bool((self._flags[~rows.numpy()] == SAVED).any())

    def keep(self, rows: Tensor) -> None:
        """Empty all rows but those that a mask names, shape ``(N,)``."""
        others = np.flatnonzero((self._flags != EMPTY) & ~rows.numpy())
        self._map[others] = 0
        self._flags[others] = EMPTY

    def state_dict(self) -> dict[str, Any]:
        """Path and fingerprint, for a checkpoint; the rows are on disk afterwards, and the file stays for good."""
        if self._removal is not None:
            self._removal.detach()
        self._flags[self._flags == WRITTEN] = SAVED
        try:
            self._map.flush()
            self._flags.flush()
        except OSError as error:
            warnings.warn(f"{self.path} could not be written to the disk in full: {error}", stacklevel=2)
        return {"path": str(self.path), "run": self._run, "shape": list(self.values.shape)}


def _size(shape: tuple[int, int]) -> int:
    return HEADER_BYTES + 2 * shape[0] * shape[1] + shape[0]


def _reserve(file: BinaryIO, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    file.writelines(bytes(min(_CHUNK_BYTES, size - start)) for start in range(0, size, _CHUNK_BYTES))


def _problem_with(path: Path, shape: tuple[int, int], run: str) -> str | None:
    """What is wrong with a file that a checkpoint refers to; None where it is that file, and whole."""
    try:
        with path.open("rb") as file:
            header = file.read(HEADER_BYTES)
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        return f"{path} does not exist"
    except OSError as error:
        return str(error)
    try:
        found = json.loads(header)
    except ValueError:
        found = None
    if found != {"format": FORMAT, "run": run, "shape": list(shape)}:
        return f"{path} belongs to another run"
    return None if size == _size(shape) else f"{path} is cut off"


def _lock(file: BinaryIO) -> bool:
    """Whether no other process has the file; from now on it is ours until we end, however that comes about."""
    if sys.platform == "win32":
        return True
    try:
        # lockf, not flock: loader workers that outlive a killed run do not inherit it.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True  # a file system without locks
    return True


def _remove(path: Path, process: int) -> None:
    if os.getpid() == process:  # not a forked loader worker
        path.unlink(missing_ok=True)
