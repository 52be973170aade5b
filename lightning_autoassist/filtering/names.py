"""The names that settings take, as types: a type checker sees a wrong one before the run does.

Policies and Assistants of a user's own are given as objects, which a type checker knows; a name that was added to
``POLICIES`` or ``ASSISTANTS`` works as well, but no type checker can know it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

__all__ = ["AssistantName", "PolicyName", "ReweightingName", "ScoreName", "UpdateName"]

PolicyName = Literal[
    "autoassist",
    "proportional",
    "prioritized",
    "infobatch",
    "selective_backprop",
    "threshold",
    "seta",
    "ies",
    "class_budget",
    "class_quota",
    "scheduled",
    "uniform",
    "random",
    "class_balanced",
]
AssistantName = Literal["logistic", "memory", "hybrid", "mlp", "text"]
ScoreName = Literal["gradient_norm", "layer_gradient_norm", "loss"]
ReweightingName = Literal["none", "inverse_probability", "normalized"]
UpdateName = Literal["sync", "async"]

if TYPE_CHECKING:
    GivenPolicyName = PolicyName
    GivenAssistantName = AssistantName | Literal["auto"]
else:
    # LightningCLI takes from a signature what may stand in YAML: there every registered name may.
    GivenPolicyName = GivenAssistantName = str
