"""The policies that go by a name."""

from __future__ import annotations

from lightning_autoassist.filtering.policies.autoassist import AutoAssistPolicy
from lightning_autoassist.filtering.policies.base import Policy
from lightning_autoassist.filtering.policies.class_balanced import ClassBalancedPolicy
from lightning_autoassist.filtering.policies.class_budget import ClassBudgetPolicy
from lightning_autoassist.filtering.policies.class_quota import ClassQuotaPolicy
from lightning_autoassist.filtering.policies.ies import IESPolicy
from lightning_autoassist.filtering.policies.infobatch import InfoBatchPolicy
from lightning_autoassist.filtering.policies.prioritized import PrioritizedPolicy
from lightning_autoassist.filtering.policies.proportional import ProportionalPolicy
from lightning_autoassist.filtering.policies.random_drop import RandomPolicy
from lightning_autoassist.filtering.policies.scheduled import ScheduledPolicy
from lightning_autoassist.filtering.policies.selective_backprop import SelectiveBackpropPolicy
from lightning_autoassist.filtering.policies.seta import SeTaPolicy
from lightning_autoassist.filtering.policies.threshold import ThresholdPolicy
from lightning_autoassist.filtering.policies.uniform import UniformPolicy

POLICIES: dict[str, type[Policy]] = {
    "autoassist": AutoAssistPolicy,
    "proportional": ProportionalPolicy,
    "prioritized": PrioritizedPolicy,
    "infobatch": InfoBatchPolicy,
    "selective_backprop": SelectiveBackpropPolicy,
    "threshold": ThresholdPolicy,
    "seta": SeTaPolicy,
    "ies": IESPolicy,
    "class_budget": ClassBudgetPolicy,
    "class_quota": ClassQuotaPolicy,
    "scheduled": ScheduledPolicy,
    "uniform": UniformPolicy,
    "random": RandomPolicy,
    "class_balanced": ClassBalancedPolicy,
}
