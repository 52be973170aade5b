"""Stands between the Trainer and a logger, so that this plug-in's own figures never cost the user the run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_autoassist.filtering.reporting.metric_names import PREFIX

_LIGHTNING = ("pytorch_lightning.", "lightning.", "lightning_fabric.")


class GuardedLogger:
    """Replaces ``log_metrics`` of one logger.

    The logger gets the user's metrics as in plain Lightning, and what it raises over them comes through. It loses this
    plug-in's figures once it raises over those. Lightning's own loggers get both in one call, which is one row of their
    log; any other logger gets them one after the other, so that the user's call is the one it would have had.

    Args:
        logger: The logger.
    """

    def __init__(self, logger: Any) -> None:
        self.logger = logger
        self.is_lost = False
        self._log_metrics: Callable[..., Any] = logger.log_metrics
        own_method = getattr(type(logger), "log_metrics", None)
        is_replaced = "log_metrics" in vars(logger)
        self._takes_both = not is_replaced and getattr(own_method, "__module__", "").startswith(_LIGHTNING)

    def __call__(self, metrics: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        """Log metrics, see ``Logger.log_metrics``."""
        users = {name: value for name, value in metrics.items() if not name.startswith(PREFIX)}
        if len(users) == len(metrics):
            self._log_metrics(metrics, *args, **kwargs)
            return
        has_users = bool(users.keys() - {"epoch"})  # which Lightning adds to whatever is logged
        if self._takes_both and not self.is_lost:
            error = self._try(metrics, *args, **kwargs)
            if error is None:
                return
            if has_users:
                self._log_metrics(users, *args, **kwargs)
        else:
            if has_users:
                self._log_metrics(users, *args, **kwargs)
            own = {name: value for name, value in metrics.items() if name.startswith(PREFIX) or name == "epoch"}
            error = None if self.is_lost else self._try(own, *args, **kwargs)
        if error is not None:
            self._lose(error)

    def _try(self, metrics: Mapping[str, Any], *args: Any, **kwargs: Any) -> Exception | None:
        try:
            self._log_metrics(metrics, *args, **kwargs)
        except Exception as error:  # of any type: it is a stranger's logger
            return error
        return None

    def _lose(self, error: Exception) -> None:
        self.is_lost = True
        rank_zero_warn(
            f"{type(self.logger).__name__} cannot log AutoAssist's metrics, so it gets no more of them; it gets your "
            f"own metrics as before, and training goes on. {type(error).__name__}: {error}"
        )


def guard(loggers: Iterable[Any]) -> None:
    """Guard loggers that are not guarded yet."""
    for logger in loggers:
        if not isinstance(getattr(logger, "log_metrics", None), GuardedLogger):
            try:
                logger.log_metrics = GuardedLogger(logger)
            except AttributeError:  # a logger with fixed attributes stays as it is
                continue


def unguard(loggers: Iterable[Any]) -> None:
    """Give loggers back as they were."""
    for logger in loggers:
        guarded = vars(logger).get("log_metrics") if hasattr(logger, "__dict__") else None
        if isinstance(guarded, GuardedLogger):
            del logger.log_metrics
            if guarded._log_metrics != logger.log_metrics:  # somebody else's replacement
                logger.log_metrics = guarded._log_metrics
