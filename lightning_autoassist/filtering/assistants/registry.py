"""The Assistants that go by a name."""

from __future__ import annotations

from lightning_autoassist.filtering.assistants.base import Assistant
from lightning_autoassist.filtering.assistants.hybrid import HybridAssistant
from lightning_autoassist.filtering.assistants.logistic import LogisticAssistant
from lightning_autoassist.filtering.assistants.memory import MemoryAssistant
from lightning_autoassist.filtering.assistants.mlp import MLPAssistant
from lightning_autoassist.filtering.assistants.text import TextAssistant

ASSISTANTS: dict[str, type[Assistant]] = {
    "logistic": LogisticAssistant,
    "memory": MemoryAssistant,
    "hybrid": HybridAssistant,
    "mlp": MLPAssistant,
    "text": TextAssistant,
}
