"""Instance filtering for PyTorch Lightning: train on the instances that still teach the model something.

Public names are imported when they are first used, so that a command that needs no torch starts at once.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from lightning_autoassist.assistant_registry import ASSISTANTS
    from lightning_autoassist.assistants import Assistant, LogisticAssistant, MemoryAssistant, Outcome
    from lightning_autoassist.callback import AutoAssistCallback
    from lightning_autoassist.datamodule import AutoAssistDataModule
    from lightning_autoassist.diagnosis import Diagnosis, diagnose
    from lightning_autoassist.features import Instances
    from lightning_autoassist.learned_assistants import HybridAssistant, MLPAssistant
    from lightning_autoassist.loss_capture import InstanceLossCapture, Observation
    from lightning_autoassist.names import AssistantName, PolicyName, ScoreName, UpdateName, WeightsName
    from lightning_autoassist.policies import (
        POLICIES,
        AutoAssistPolicy,
        ClassQuotaPolicy,
        InfoBatchPolicy,
        Policy,
        ProportionalPolicy,
        RandomPolicy,
        SelectiveBackpropPolicy,
        UniformPolicy,
    )
    from lightning_autoassist.sampler import ShrinkingBatchSampler
    from lightning_autoassist.text_assistant import TextAssistant
    from lightning_autoassist.token_batches import TokenBatchSampler

__version__ = "0.1.0"

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
    "HybridAssistant",
    "InfoBatchPolicy",
    "InstanceLossCapture",
    "Instances",
    "LogisticAssistant",
    "MLPAssistant",
    "MemoryAssistant",
    "Observation",
    "Outcome",
    "Policy",
    "PolicyName",
    "ProportionalPolicy",
    "RandomPolicy",
    "ScoreName",
    "SelectiveBackpropPolicy",
    "ShrinkingBatchSampler",
    "TextAssistant",
    "TokenBatchSampler",
    "UniformPolicy",
    "UpdateName",
    "WeightsName",
    "diagnose",
]

_PLACES = {
    "assistant_registry": ("ASSISTANTS",),
    "assistants": ("Assistant", "LogisticAssistant", "MemoryAssistant", "Outcome"),
    "callback": ("AutoAssistCallback",),
    "datamodule": ("AutoAssistDataModule",),
    "diagnosis": ("Diagnosis", "diagnose"),
    "features": ("Instances",),
    "learned_assistants": ("HybridAssistant", "MLPAssistant"),
    "loss_capture": ("InstanceLossCapture", "Observation"),
    "names": ("AssistantName", "PolicyName", "ScoreName", "UpdateName", "WeightsName"),
    "policies": (
        "POLICIES",
        "AutoAssistPolicy",
        "ClassQuotaPolicy",
        "InfoBatchPolicy",
        "Policy",
        "ProportionalPolicy",
        "RandomPolicy",
        "SelectiveBackpropPolicy",
        "UniformPolicy",
    ),
    "sampler": ("ShrinkingBatchSampler",),
    "text_assistant": ("TextAssistant",),
    "token_batches": ("TokenBatchSampler",),
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
