"""Logged runs that are made by hand, for tests of what is shown of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_autoassist.compare.logged_runs import LoggedRun, Row

NASTY = '</script><script>document.title="taken"</script> $\\frac$ _<b>'


def run_of(
    name: str,
    values: Sequence[float],
    *,
    group: str = "",
    config: dict[str, Any] | None = None,
    seconds: float = 10.0,
    metric: str = "acc",
) -> LoggedRun:
    """A run that logged a metric every ten updates."""
    rows = tuple(
        Row(10.0 * epoch + 9, None, {metric: value, "autoassist/seconds": seconds * (epoch + 1)})
        for epoch, value in enumerate(values)
    )
    return LoggedRun(name, f"folder of {name}", rows, config or {}, group)


def seeded(name: str, finals: dict[Any, float], **settings: Any) -> list[LoggedRun]:
    """Runs of one name, by their seeds: what each has at its end."""
    return [run_of(name, [0.1, final], config={"seed": seed, **settings}) for seed, final in finals.items()]


def nasty_runs() -> list[LoggedRun]:
    """Two runs, one with a name and settings that would be markup."""
    return [run_of(name, [0.5, 0.7, 0.9], config={NASTY: NASTY}) for name in (NASTY, "plain")]
