"""The Assistants that go by a name."""

from __future__ import annotations

from lightning_autoassist.assistants import Assistant, LogisticAssistant, MemoryAssistant
from lightning_autoassist.learned_assistants import HybridAssistant, MLPAssistant
from lightning_autoassist.text_assistant import TextAssistant

ASSISTANTS: dict[str, type[Assistant]] = {
    "logistic": LogisticAssistant,
    "memory": MemoryAssistant,
    "hybrid": HybridAssistant,
    "mlp": MLPAssistant,
    "text": TextAssistant,
}
