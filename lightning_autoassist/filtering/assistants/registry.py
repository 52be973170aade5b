"""The Assistants that go by a name."""

from __future__ import annotations

from lightning_autoassist.filtering.assistants.base import Assistant, LogisticAssistant, MemoryAssistant
from lightning_autoassist.filtering.assistants.learned import HybridAssistant, MLPAssistant
from lightning_autoassist.filtering.assistants.text import TextAssistant

ASSISTANTS: dict[str, type[Assistant]] = {
    "logistic": LogisticAssistant,
    "memory": MemoryAssistant,
    "hybrid": HybridAssistant,
    "mlp": MLPAssistant,
    "text": TextAssistant,
}
