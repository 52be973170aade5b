"""Validation in the middle of a filtered run draws nothing from the run's random generators."""

from __future__ import annotations

from typing import Any

from lightning_autoassist.filtering.data.data_module import AutoAssistDataModule
from lightning_autoassist.trainer_support.executors import InlineExecutor
from lightning_autoassist.trainer_support.variants import Trainer


class IsolatedValidation:
    """Gives back what validations in a filtered run draw from the generators.

    A run that is resumed at a validation's step skips that validation, and must go on with the same draws.
    """

    def __init__(self) -> None:
        self._loop: Any = None

    def begin(self, loop: Any, data: AutoAssistDataModule, jobs: InlineExecutor) -> None:
        """Isolate the validations of a fit, until :meth:`end`.

        Args:
            loop: The fit's loop of validation.
            data: Keeps the generators.
            jobs: What is at work beside the training loop.
        """
        self._loop, run = loop, loop.run

        def isolated_run() -> Any:
            jobs.wait_all()  # validation's workers are forked, and a thread had better be at rest then
            with data.train_position.rng_given_back():
                return run()

        loop.run = isolated_run  # on the instance: its iterators draw before any hook is called

    def end(self) -> None:
        """Leave the loop as it was."""
        if self._loop is not None:
            vars(self._loop).pop("run", None)
            self._loop = None


def is_within_fit(trainer: Trainer) -> bool:
    """Whether a validation is one between training steps."""
    return trainer.state.fn == "fit" and not trainer.sanity_checking
