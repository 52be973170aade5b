"""Opens files in strangers' folders: only ordinary files of a bounded size, and none outside the folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from lightning_autoassist.compare.logged_runs import RunError

MAX_FOLDERS = 100_000
_KINDS = {
    stat.S_IFLNK: "a link, and links inside a folder are not followed; name its target as a run of its own",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def open_file(path: Path, max_bytes: int) -> IO[bytes]:
    """Open an ordinary file for reading; the path itself must not be a link.

    Args:
        path: The file.
        max_bytes: The largest size that is accepted.

    Raises:
        RunError: If it is a link, a pipe, a socket or a device, or if it is larger.
        OSError: If it does not exist, or may not be read.
    """
    check_file(path, max_bytes)
    # A stranger's process may have replaced the file since the check: what it put there must not block or be read.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    file = os.fdopen(os.open(path, flags), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise RunError(f"{path} is not an ordinary file")
    return file


def check_file(path: Path, max_bytes: int) -> None:
    """Check that a path leads to an ordinary file of at most ``max_bytes`` bytes.

    Args:
        path: The file.
        max_bytes: The largest size that is accepted.

    Raises:
        RunError: If it does not.
        OSError: If there is nothing at the path.
    """
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "not an ordinary file")
        raise RunError(f"{path} is {kind}")
    if found.st_size > max_bytes:
        raise RunError(f"{path} has {found.st_size:,} bytes, and at most {max_bytes:,} bytes are read")


def identity(path: Path) -> Any:
    """A value that is the same for all paths to one file, hard links included."""
    found = path.stat()
    return (found.st_dev, found.st_ino) if found.st_ino else str(path.resolve())


def name_of(folder: Path) -> str:
    """The name of a folder; a home folder is called ``"home"``, since its name is the user's."""
    folder = folder.resolve()
    return "home" if folder == Path.home().resolve() else folder.name or "root"


def folders_below(path: Path) -> list[Path]:
    """The folder ``path`` and all folders below it, sorted; links are not followed.

    Args:
        path: A folder.

    Raises:
        RunError: If there are more than 100,000 folders.
    """
    found, waiting = [], [path]
    while waiting:
        folder = waiting.pop()
        found.append(folder)
        if len(found) > MAX_FOLDERS:
            raise RunError(
                f"{path} has more than {MAX_FOLDERS:,} folders below it; name the folder that holds the runs"
            )
        waiting += (child for child in folder.iterdir() if child.is_dir() and not child.is_symlink())
    return sorted(found)


def lines_of(file: IO[str], path: Path, max_length: int) -> Iterator[str]:
    """Yield the lines of a text file.

    Args:
        file: The file, open for reading.
        path: The file's path, as the error names it.
        max_length: The most characters that a line may have.

    Raises:
        RunError: If a line is longer.
    """
    while line := file.readline(max_length + 1):
        if len(line) > max_length:
            raise RunError(f"{path} has a line of more than {max_length:,} characters")
        yield line
