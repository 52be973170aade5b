"""Settings in which runs differ, and the seed among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lightning_autoassist.compare.groups import setting_text
from lightning_autoassist.compare.logged_runs import LoggedRun
from lightning_autoassist.compare.shareable import MAX_DEPTH

MAX_SETTINGS = 2_000  # of a run
MAX_PARTS = 20_000  # of lists among them
MISSING = "-"
# The user's own come first: what seeds torch need not be all that a run's seed decides.
SEED_KEYS = ("seed", "seed_everything", "random_seed", "autoassist.seed")

# By setting and group: the values in the group's runs, each once.
DifferingSettings = dict[str, dict[str, tuple[str, ...]]]


def seed_of(run: LoggedRun) -> str | None:
    """The seed in a run's settings; None where they name none.

    Example:
        >>> seed_of(LoggedRun("a", "a", (), {"autoassist": {"seed": 3}}))
        '3'
    """
    for key in SEED_KEYS:
        found: Any = run.config
        for part in key.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        if isinstance(found, float) and found.is_integer():
            found = int(found)
        if isinstance(found, (int, str)) and not isinstance(found, bool):
            return setting_text(found)
    return None


def differing_settings(groups: Mapping[str, Sequence[LoggedRun]]) -> DifferingSettings:
    """The settings that are not alike in all runs, and their values in each group.

    Args:
        groups: Runs by the name of their group.

    Returns:
        By the setting's path, whose parts are joined by dots, sorted; a run without the setting counts as the value
        ``"-"``. Of runs with very many settings only the first are compared, see :class:`FlatSettings`.
    """
    flat = {name: [FlatSettings.of(run).values for run in runs] for name, runs in groups.items()}
    every = [settings for members in flat.values() for settings in members]
    keys = sorted({key for settings in every for key in settings})
    return {
        key: {
            name: tuple(dict.fromkeys(settings.get(key, MISSING) for settings in members))
            for name, members in flat.items()
        }
        for key in keys
        if len({settings.get(key) for settings in every}) > 1
    }


class FlatSettings(NamedTuple):
    """A run's settings by their paths.

    Attributes:
        values: Values as text, by paths whose parts are joined by dots.
        is_cut: Whether the run has more or deeper settings than are compared.
    """

    values: dict[str, str]
    is_cut: bool

    @classmethod
    def of(cls, run: LoggedRun) -> FlatSettings:
        """The settings of a run.

        Args:
            run: The run; its settings may refer to themselves.

        Example:
            >>> FlatSettings.of(LoggedRun("a", "a", (), {"lr": 0.1, "policy": {"name": "uniform"}})).values
            {'lr': '0.1', 'policy.name': 'uniform'}
        """
        found: dict[str, str] = {}
        left, is_too_deep = [MAX_PARTS], False
        waiting: list[tuple[str, Any, int]] = [("", run.config, 0)]
        while waiting and len(found) < MAX_SETTINGS:
            path, value, depth = waiting.pop()
            if not isinstance(value, Mapping) or not value:
                found[path] = setting_text(value, left)
            elif depth < MAX_DEPTH:
                parts = [(f"{path}.{name}" if path else str(name), inner, depth + 1) for name, inner in value.items()]
                waiting += reversed(parts)
            else:
                is_too_deep, found[path] = True, "…"
        found.pop("", None)  # of a run without settings
        return cls(found, is_too_deep or bool(waiting) or left[0] < 0)
