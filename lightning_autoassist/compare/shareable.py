"""Makes a run's texts and settings fit for a page that is shared: bounded in size, and without a machine's paths."""

from __future__ import annotations

import getpass
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning_autoassist.pages.html import finite
from lightning_autoassist.pages.terminal import shortened

MAX_DEPTH, MAX_TEXT = 20, 1_000
_STOP = r"\s\"'`,;:=()\[\]{}<>|"
_URL = r"(?P<url>\b[A-Za-z][\w+.-]+://[^\s/]\S*)"
_POSIX = rf"(?:(?<![\w./])|(?<=\s-[A-Za-z]))(?:~[\w.-]*|\.\.)?/+(?:[^{_STOP}/]+/+)+[^{_STOP}/]*"
_WINDOWS = rf"(?<!\w)(?:[A-Za-z]:[\\/]|\\\\)(?:[^{_STOP}\\/]+[\\/]+)*[^{_STOP}\\/]*"
_PLACES = re.compile(f"{_URL}|{_POSIX}|{_WINDOWS}")
_WHOLE = re.compile(r"(?:~[^/\\\s]*|\.\.)?[/\\](?!$)[^\n]*|[A-Za-z]:[/\\][^\n]*")
_HOMES = {"home", "Users"}


def without_paths(text: str) -> str:
    r"""Cut the paths in a text to their last part; addresses on the web stay as they are.

    Args:
        text: Of a run.

    Example:
        >>> without_paths("/home/alice/data/cifar10")
        '…/cifar10'
        >>> without_paths("train.py --data=/mnt/disk/cifar10 --from https://host/a/b")
        'train.py --data=…/cifar10 --from https://host/a/b'
        >>> without_paths("C:\\Users\\alice")
        '~'
    """
    if _WHOLE.fullmatch(text):
        text = _last_part(text)
    else:
        text = _PLACES.sub(lambda found: found[0] if found["url"] else _last_part(found[0]), text)
    user = _user()
    return re.sub(rf"(?<=[/\\]){user}(?=[/\\]|$)|^{user}(?=[/\\])", "user", text)


def bounded(value: Any, left: list[int], depth: int = 0, shown: Callable[[str], str] = without_paths) -> Any:
    """Cut settings to what a page can show; they may refer to themselves, or to one part a thousand times.

    Args:
        value: The settings.
        left: How many parts may still be shown. It is counted down, and is below 0 once a part was left out.
        depth: How deep ``value`` lies in the settings.
        shown: A function that is applied to all texts and names.
    """
    left[0] -= 1
    if left[0] < 0 or depth > MAX_DEPTH:
        return "…"
    if isinstance(value, dict):
        items = itertools.islice(value.items(), left[0] + 1)
        return {shortened(shown(_text(name))): bounded(inner, left, depth + 1, shown) for name, inner in items}
    if isinstance(value, (list, tuple)):
        return [bounded(inner, left, depth + 1, shown) for inner in value[: left[0] + 1]]
    if value is None or isinstance(value, (bool, int, float)):
        return finite(value)
    return shown(_text(value))


def _text(value: Any) -> str:
    return (value if isinstance(value, str) else str(value))[:MAX_TEXT]


def _last_part(path: str) -> str:
    parts = [part for part in re.split(r"[/\\]+", path) if part]
    if not parts:
        return path
    is_home = len(parts) > 1 and parts[-2] in _HOMES
    if is_home or parts[-1].startswith("~") or path.rstrip("/\\") == str(Path.home()):
        return "~"
    return f"…/{parts[-1]}"


def _user() -> str:
    """A pattern that matches the user's name, or nothing where the name is not known."""
    try:
        return re.escape(getpass.getuser())
    except (OSError, KeyError, ImportError):  # the user may have no name, as in a container
        return "(?!)"
