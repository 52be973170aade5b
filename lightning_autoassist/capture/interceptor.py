"""One interceptor of the training step for each Trainer: whoever wants to see its steps registers an observer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

# Where the interceptor that is in use stands on its strategy, beside the method that it wraps.
_PLACE = "_intercepted_training_step"


class TrainingStep(NamedTuple):
    """One call of the training step, as an observer gets it.

    Attributes:
        args: Positional arguments of the call: the batch first.
        kwargs: Its keyword arguments.
        run: Makes the step, with the observers after this one around it, and returns its output. To be called once.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    run: Callable[[], Any]

    @property
    def batch(self) -> Any:
        """The batch of the step; None for a step without arguments."""
        return self.args[0] if self.args else next(iter(self.kwargs.values()), None)


StepObserver = Callable[[TrainingStep], Any]


def observe_training_steps(strategy: Any, observer: StepObserver) -> Callable[[], None]:
    """Let ``observer`` see every training step from now on.

    The observer is called in place of the step. It does what is to be done before the step, calls ``step.run()``,
    inside a context manager of its own where it wants one, does what is to be done after, and returns the output. The
    observer that registered first is the outermost. An exception passes through all of them.

    Args:
        strategy: The Trainer's ``strategy``. Its class stays as it is, and so does every other Trainer.
        observer: Gets each step, returns its output.

    Returns:
        Removes the observer. Observers may be removed in any order; a second call does nothing. With the last observer
        the strategy is as it was, unless somebody else has wrapped the method since: then that wrapper stays, and what
        it wraps passes every call on.

    Example:
        >>> class Strategy:
        ...     def training_step(self, batch):
        ...         return 2 * batch
        >>> def observer(step):
        ...     print("batch", step.batch)
        ...     return step.run()
        >>> strategy = Strategy()
        >>> remove = observe_training_steps(strategy, observer)
        >>> strategy.training_step(21)
        batch 21
        42
        >>> remove()
        >>> strategy.training_step(21)
        42
    """
    interceptor = vars(strategy).get(_PLACE)
    if interceptor is None or "training_step" not in vars(strategy):  # somebody has taken it away with his own
        interceptor = _outermost(strategy)
        setattr(strategy, _PLACE, interceptor)
    key = object()
    interceptor.observers[key] = observer
    return functools.partial(interceptor.remove, strategy, key)


def _outermost(strategy: Any) -> _Interceptor:
    """The interceptor that wraps all others; one that somebody else's wrapper has put back is used again."""
    found = vars(strategy).get("training_step")
    return found if isinstance(found, _Interceptor) else _Interceptor(strategy)


class _Interceptor:
    """Stands for ``strategy.training_step``, on the instance, as long as anybody observes it."""

    def __init__(self, strategy: Any) -> None:
        self.observers: dict[object, StepObserver] = {}  # by what registered them, in that order
        self._others = vars(strategy).get("training_step")  # somebody else's wrapper
        self._training_step = strategy.training_step
        strategy.training_step = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        run: Callable[[], Any] = functools.partial(self._training_step, *args, **kwargs)
        for observer in reversed(self.observers.values()):
            run = functools.partial(observer, TrainingStep(args, kwargs, run))
        return run()

    def remove(self, strategy: Any, key: object) -> None:
        self.observers.pop(key, None)
        if not self.observers and vars(strategy).get(_PLACE) is self:
            delattr(strategy, _PLACE)
            self._unwrap(strategy)

    def _unwrap(self, strategy: Any) -> None:
        if vars(strategy).get("training_step") is not self:
            return
        del strategy.training_step
        if self._others is not None:
            strategy.training_step = self._others
