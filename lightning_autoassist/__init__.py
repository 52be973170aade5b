"""Instance filtering for PyTorch Lightning: train on the instances that still teach the model something.

Concrete policies and Assistants are in ``lightning_autoassist.policies`` and ``lightning_autoassist.assistants``.

Names are imported when they are first used, so that a command that needs no torch starts at once.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING

from lightning_autoassist._version import __version__ as __version__
from lightning_autoassist.trainer_support.strategy_names import register as _register_strategies

if TYPE_CHECKING:
    from typing import Any

    from lightning_autoassist.assistants import *  # noqa: F403
    from lightning_autoassist.capture.loss_capture import InstanceLossCapture as InstanceLossCapture
    from lightning_autoassist.capture.observation import InstanceLosses as InstanceLosses
    from lightning_autoassist.filtering.assistants.base import Assistant
    from lightning_autoassist.filtering.callback import AutoAssistCallback
    from lightning_autoassist.filtering.data.data_module import AutoAssistDataModule
    from lightning_autoassist.filtering.diagnosis import Diagnosis as Diagnosis
    from lightning_autoassist.filtering.diagnosis import diagnose
    from lightning_autoassist.filtering.names import *  # noqa: F403
    from lightning_autoassist.filtering.policies.base import Policy
    from lightning_autoassist.filtering.sampling.index_batches import ShrinkingBatchSampler as ShrinkingBatchSampler
    from lightning_autoassist.filtering.sampling.token_batches import TokenBatchSampler as TokenBatchSampler
    from lightning_autoassist.gauss_newton.callback import GaussNewtonCallback
    from lightning_autoassist.gauss_newton.two_layer import TwoLayerGaussNewton
    from lightning_autoassist.kfac.callback import KFACCallback
    from lightning_autoassist.local_learning.callback import LocalLearningCallback
    from lightning_autoassist.local_learning.strategy import LayerParallelStrategy
    from lightning_autoassist.policies import *  # noqa: F403


__all__ = [
    "Assistant",
    "AutoAssistCallback",
    "AutoAssistDataModule",
    "GaussNewtonCallback",
    "KFACCallback",
    "LayerParallelStrategy",
    "LocalLearningCallback",
    "Policy",
    "TwoLayerGaussNewton",
    "diagnose",
]

_PLACES = {
    "filtering.assistants.base": ("Assistant",),
    "filtering.callback": ("AutoAssistCallback",),
    "filtering.data.data_module": ("AutoAssistDataModule",),
    "filtering.diagnosis": ("Diagnosis", "diagnose"),
    "filtering.policies.base": ("Policy",),
    "gauss_newton.callback": ("GaussNewtonCallback",),
    "gauss_newton.two_layer": ("TwoLayerGaussNewton",),
    "kfac.callback": ("KFACCallback",),
    "local_learning.callback": ("LocalLearningCallback",),
    "local_learning.strategy": ("LayerParallelStrategy",),
    "capture.loss_capture": ("InstanceLossCapture",),
    "capture.observation": ("InstanceLosses",),
    "filtering.sampling.index_batches": ("ShrinkingBatchSampler",),
    "filtering.sampling.token_batches": ("TokenBatchSampler",),
}
_MODULE_OF = {name: module for module, names in _PLACES.items() for name in names}
# What belongs to these modules can be imported from here, too.
_FACES = ("policies", "assistants", "filtering.names")

_register_strategies()

# A type checker would take any name for granted if it saw this function.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name in _MODULE_OF:
            found = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
            globals()[name] = found
            return found
        if name.isidentifier() and not name.startswith("_"):
            # Submodules were there after `import lightning_autoassist` alone, and still are.
            if find_spec(f"{__name__}.{name}") is not None:
                return importlib.import_module(f"{__name__}.{name}")
            for face in _FACES:
                module = importlib.import_module(f"{__name__}.{face}")
                if name in module.__all__:
                    return getattr(module, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
