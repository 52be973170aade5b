"""The Assistants: each predicts how much an instance would still teach the model.

============ ===================== ==========================================================================
name         class                 predicts the score from
============ ===================== ==========================================================================
``logistic`` ``LogisticAssistant`` the instance's features and class, by logistic regression (the paper's)
``memory``   ``MemoryAssistant``   the score that was observed last; no model
``hybrid``   ``HybridAssistant``   features, class and the remembered score with its age, by ridge regression
``mlp``      ``MLPAssistant``      features and class, by a network with one hidden layer
``text``     ``TextAssistant``     the tokens of one or two sequences, by logistic regression (the paper's)
============ ===================== ==========================================================================

``AutoAssistCallback(assistant="mlp")`` takes the name, ``AutoAssistCallback(assistant=MLPAssistant(...))`` an object
with settings; ``"auto"`` takes the policy's own. An Assistant of your own is a subclass of :class:`Assistant`, whose
``predict`` gets :class:`Instances` and whose ``update`` returns an :class:`UpdateResult`.

Example:
    >>> from lightning_autoassist.assistants import ASSISTANTS, LogisticAssistant
    >>> ASSISTANTS["logistic"] is LogisticAssistant
    True
"""

from __future__ import annotations

from lightning_autoassist.filtering.assistants.base import Assistant, UpdateResult
from lightning_autoassist.filtering.assistants.hybrid import HybridAssistant
from lightning_autoassist.filtering.assistants.logistic import LogisticAssistant
from lightning_autoassist.filtering.assistants.memory import MemoryAssistant
from lightning_autoassist.filtering.assistants.mlp import MLPAssistant
from lightning_autoassist.filtering.assistants.registry import ASSISTANTS
from lightning_autoassist.filtering.assistants.text import TextAssistant
from lightning_autoassist.filtering.memory.instances import Instances

__all__ = [
    "ASSISTANTS",
    "Assistant",
    "HybridAssistant",
    "Instances",
    "LogisticAssistant",
    "MLPAssistant",
    "MemoryAssistant",
    "TextAssistant",
    "UpdateResult",
]
