"""Groups of runs that count as seeds of one another."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from lightning_autoassist.compare.logged_runs import MAX_NAME, LoggedRun
from lightning_autoassist.compare.shareable import bounded

ATTRIBUTES = ("name", "group", "job_type")
MAX_PARTS = 2_000  # of a setting that groups are told apart by


class CompareError(Exception):
    """The runs cannot be compared in this way; the message says what is possible."""


def grouped(runs: Iterable[LoggedRun], keys: Sequence[str]) -> dict[str, list[LoggedRun]]:
    """Runs by what they have under all keys; runs of different policies or budgets are always in different groups.

    Args:
        runs: The runs.
        keys: Each is ``"name"``, ``"group"``, ``"job_type"``, or the path of a setting, whose parts are joined by dots.

    Raises:
        CompareError: If a run has no such setting.
    """
    groups: dict[str, list[LoggedRun]] = {}
    for values, alike in _alike(runs, keys).items():
        name = ", ".join(values)
        for suffix, members in _apart(alike):
            full = name + suffix
            # Names can hold a comma: two groups may have one name, and stay two groups.
            groups[full if full not in groups else f"{full} #{len(groups) + 1}"] = members
    return groups


def settings_apart(runs: Iterable[LoggedRun], keys: Sequence[str]) -> Iterator[str]:
    """A note for each group by ``keys`` that is shown in parts, since its runs differ in policy or budget.

    Args:
        runs: The runs.
        keys: See :func:`grouped`.
    """
    for values, alike in _alike(runs, keys).items():
        if len(_apart(alike)) > 1:
            yield (
                f"The runs of {', '.join(values)} differ in policy or budget, so they do not count as seeds of one "
                "another and are shown apart."
            )


def listed(names: Iterable[str], most: int = 12, *, quoted: bool = False) -> str:
    """Names in one line; of many names the first ones.

    Args:
        names: The names.
        most: The most that are listed.
        quoted: Put names with a comma into quotes.
    """
    names = [f'"{name}"' if quoted and "," in name else name for name in names]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "") or "none"


def setting_text(setting: Any, left: list[int] | None = None) -> str:
    """A setting as text, which ends with an ellipsis where the setting is too long.

    Args:
        setting: The setting.
        left: How many parts of lists and of dictionaries may still be shown, which is counted down; None: 2,000.

    Example:
        >>> setting_text([1, None])
        '[1, null]'
    """
    if setting is None or isinstance(setting, (bool, int, float, str, dt.date)):
        text = str(setting)
    else:
        left = [MAX_PARTS] if left is None else left
        text = json.dumps(bounded(setting, left, shown=str))
        text += "…" if left[0] < 0 else ""
    return text if len(text) <= MAX_NAME else text[:MAX_NAME] + "…"


def _alike(runs: Iterable[LoggedRun], keys: Sequence[str]) -> dict[tuple[str, ...], list[LoggedRun]]:
    groups: dict[tuple[str, ...], list[LoggedRun]] = {}
    for run in runs:
        groups.setdefault(tuple(_value(run, key) for key in keys), []).append(run)
    return groups


def _apart(runs: Iterable[LoggedRun]) -> list[tuple[str, list[LoggedRun]]]:
    """Runs of one policy and budget, each with a suffix for their name, which is empty where all runs are alike."""
    kinds: dict[tuple[str, str], list[LoggedRun]] = {}
    for run in runs:
        kinds.setdefault(_policy_and_budget(run), []).append(run)
    if len(kinds) == 1:
        return [("", members) for members in kinds.values()]
    differ = [len({kind[number] for kind in kinds}) > 1 for number in range(2)]
    return [
        ("".join(f", {part}" for part, differs in zip(kind, differ, strict=True) if differs and part), members)
        for kind, members in kinds.items()
    ]


def _policy_and_budget(run: LoggedRun) -> tuple[str, str]:
    settings = run.config.get("autoassist")
    if not isinstance(settings, dict):
        return "without AutoAssist", ""
    policy = settings.get("policy")
    name = policy.get("name") if isinstance(policy, dict) else policy
    return setting_text(name), f"budget {setting_text(settings.get('budget'))}"


def _value(run: LoggedRun, key: str) -> str:
    if key in ATTRIBUTES:
        return str(getattr(run, key)) or "(none)"
    found: Any = run.config
    for part in key.split("."):
        found = found[part] if isinstance(found, dict) and part in found else ...
    if found is ...:
        found = run.config.get(key, ...)
    if found is ...:
        raise CompareError(f"{run.source} has no setting {key}; it has {listed(sorted(map(setting_text, run.config)))}")
    text = setting_text(found)
    if text.endswith("…"):
        raise CompareError(f"the setting {key} of {run.source} is too long to tell groups apart: name a part of it")
    return text
