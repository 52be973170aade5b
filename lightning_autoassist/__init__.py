"""Instance filtering for PyTorch Lightning: train on the instances that still teach the model something.

Public names are imported when they are first used, so that a command that needs no torch starts at once.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING

from lightning_autoassist._version import __version__ as __version__

if TYPE_CHECKING:
    from typing import Any

    from lightning_autoassist.capture.loss_capture import InstanceLossCapture
    from lightning_autoassist.capture.observation import InstanceLosses
    from lightning_autoassist.filtering.assistants.base import Assistant, UpdateResult
    from lightning_autoassist.filtering.assistants.hybrid import HybridAssistant
    from lightning_autoassist.filtering.assistants.logistic import LogisticAssistant
    from lightning_autoassist.filtering.assistants.memory import MemoryAssistant
    from lightning_autoassist.filtering.assistants.mlp import MLPAssistant
    from lightning_autoassist.filtering.assistants.registry import ASSISTANTS
    from lightning_autoassist.filtering.assistants.text import TextAssistant
    from lightning_autoassist.filtering.callback import AutoAssistCallback
    from lightning_autoassist.filtering.data.data_module import AutoAssistDataModule
    from lightning_autoassist.filtering.diagnosis import Diagnosis, diagnose
    from lightning_autoassist.filtering.memory.instances import Instances
    from lightning_autoassist.filtering.names import AssistantName, PolicyName, ReweightingName, ScoreName, UpdateName
    from lightning_autoassist.filtering.policies.autoassist import AutoAssistPolicy
    from lightning_autoassist.filtering.policies.base import Policy
    from lightning_autoassist.filtering.policies.class_quota import ClassQuotaPolicy
    from lightning_autoassist.filtering.policies.infobatch import InfoBatchPolicy
    from lightning_autoassist.filtering.policies.prioritized import PrioritizedPolicy
    from lightning_autoassist.filtering.policies.proportional import ProportionalPolicy
    from lightning_autoassist.filtering.policies.random_drop import RandomPolicy
    from lightning_autoassist.filtering.policies.registry import POLICIES
    from lightning_autoassist.filtering.policies.selective_backprop import SelectiveBackpropPolicy
    from lightning_autoassist.filtering.policies.uniform import UniformPolicy
    from lightning_autoassist.filtering.sampling.index_batches import ShrinkingBatchSampler
    from lightning_autoassist.filtering.sampling.token_batches import TokenBatchSampler
    from lightning_autoassist.gauss_newton.callback import GaussNewtonCallback
    from lightning_autoassist.gauss_newton.two_layer import TwoLayerGaussNewton
    from lightning_autoassist.kfac.callback import KFACCallback
    from lightning_autoassist.local_learning.callback import LocalLearningCallback


__all__ = [
    "ASSISTANTS",
    "POLICIES",
    "Assistant",
    "AssistantName",
    "AutoAssistCallback",
    "AutoAssistDataModule",
    "AutoAssistPolicy",
    "ClassQuotaPolicy",
    "Diagnosis",
    "GaussNewtonCallback",
    "HybridAssistant",
    "InfoBatchPolicy",
    "InstanceLossCapture",
    "InstanceLosses",
    "Instances",
    "KFACCallback",
    "LocalLearningCallback",
    "LogisticAssistant",
    "MLPAssistant",
    "MemoryAssistant",
    "Policy",
    "PolicyName",
    "PrioritizedPolicy",
    "ProportionalPolicy",
    "RandomPolicy",
    "ReweightingName",
    "ScoreName",
    "SelectiveBackpropPolicy",
    "ShrinkingBatchSampler",
    "TextAssistant",
    "TokenBatchSampler",
    "TwoLayerGaussNewton",
    "UniformPolicy",
    "UpdateName",
    "UpdateResult",
    "diagnose",
]

_PLACES = {
    "capture.loss_capture": ("InstanceLossCapture",),
    "capture.observation": ("InstanceLosses",),
    "filtering.assistants.base": (
        "Assistant",
        "UpdateResult",
    ),
    "filtering.assistants.hybrid": ("HybridAssistant",),
    "filtering.assistants.logistic": ("LogisticAssistant",),
    "filtering.assistants.memory": ("MemoryAssistant",),
    "filtering.assistants.mlp": ("MLPAssistant",),
    "filtering.assistants.registry": ("ASSISTANTS",),
    "filtering.assistants.text": ("TextAssistant",),
    "filtering.callback": ("AutoAssistCallback",),
    "filtering.data.data_module": ("AutoAssistDataModule",),
    "filtering.diagnosis": (
        "Diagnosis",
        "diagnose",
    ),
    "filtering.memory.instances": ("Instances",),
    "filtering.names": (
        "AssistantName",
        "PolicyName",
        "ScoreName",
        "UpdateName",
        "ReweightingName",
    ),
    "filtering.policies.autoassist": ("AutoAssistPolicy",),
    "filtering.policies.base": ("Policy",),
    "filtering.policies.class_quota": ("ClassQuotaPolicy",),
    "filtering.policies.infobatch": ("InfoBatchPolicy",),
    "filtering.policies.prioritized": ("PrioritizedPolicy",),
    "filtering.policies.proportional": ("ProportionalPolicy",),
    "filtering.policies.random_drop": ("RandomPolicy",),
    "filtering.policies.registry": ("POLICIES",),
    "filtering.policies.selective_backprop": ("SelectiveBackpropPolicy",),
    "filtering.policies.uniform": ("UniformPolicy",),
    "filtering.sampling.index_batches": ("ShrinkingBatchSampler",),
    "filtering.sampling.token_batches": ("TokenBatchSampler",),
    "gauss_newton.callback": ("GaussNewtonCallback",),
    "gauss_newton.two_layer": ("TwoLayerGaussNewton",),
    "kfac.callback": ("KFACCallback",),
    "local_learning.callback": ("LocalLearningCallback",),
}
_MODULE_OF = {name: module for module, names in _PLACES.items() for name in names}

# A type checker would take any name for granted if it saw this function.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name in _MODULE_OF:
            found = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
            globals()[name] = found
            return found
        # Submodules were there after `import lightning_autoassist` alone, and still are.
        if name.isidentifier() and not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
