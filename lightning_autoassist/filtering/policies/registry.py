"""The policies that go by a name."""

from __future__ import annotations

from lightning_autoassist.filtering.policies.autoassist import AutoAssistPolicy
from lightning_autoassist.filtering.policies.base import Policy
from lightning_autoassist.filtering.policies.class_quota import ClassQuotaPolicy
from lightning_autoassist.filtering.policies.infobatch import InfoBatchPolicy
from lightning_autoassist.filtering.policies.prioritized import PrioritizedPolicy
from lightning_autoassist.filtering.policies.proportional import ProportionalPolicy
from lightning_autoassist.filtering.policies.random_drop import RandomPolicy
from lightning_autoassist.filtering.policies.selective_backprop import SelectiveBackpropPolicy
from lightning_autoassist.filtering.policies.uniform import UniformPolicy

POLICIES: dict[str, type[Policy]] = {
    "autoassist": AutoAssistPolicy,
    "proportional": ProportionalPolicy,
    "prioritized": PrioritizedPolicy,
    "infobatch": InfoBatchPolicy,
    "selective_backprop": SelectiveBackpropPolicy,
    "class_quota": ClassQuotaPolicy,
    "uniform": UniformPolicy,
    "random": RandomPolicy,
}
