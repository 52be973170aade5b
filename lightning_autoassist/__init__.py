"""Instance filtering for PyTorch Lightning: train on the instances that still teach the model something."""

from lightning_autoassist.assistants import ASSISTANTS, Assistant, LogisticAssistant, MemoryAssistant, Outcome
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
