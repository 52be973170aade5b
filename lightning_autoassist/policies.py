"""The policies: each turns predicted scores into keep probabilities.

====================== ============================ ===========================================================
name                   class                        keeps a candidate
====================== ============================ ===========================================================
``autoassist``         ``AutoAssistPolicy``         with the score as its chance, above a floor
``proportional``       ``ProportionalPolicy``       in proportion to its score, at a mean rate
``prioritized``        ``PrioritizedPolicy``        in proportion to a power of it, corrected by half; the default
``infobatch``          ``InfoBatchPolicy``          always above the mean loss, with one chance below it
``selective_backprop`` ``SelectiveBackpropPolicy``  by its score's rank among recent ones, to a power
``threshold``          ``ThresholdPolicy``          where the loss exceeds a threshold (Progressive Data Dropout)
``seta``               ``SeTaPolicy``               in a window over groups of losses that moves on with each pass
``ies``                ``IESPolicy``                as long as its loss still bends
``class_budget``       ``ClassBudgetPolicy``        by budgets of the classes, hard ones first (RCAP)
``class_quota``        ``ClassQuotaPolicy``         by another policy, with equal shares for the classes
``scheduled``          ``ScheduledPolicy``          by another policy, at a keep rate that changes with training
``uniform``            ``UniformPolicy``            always: the budget alone shortens training
``random``             ``RandomPolicy``             with one chance for all, as a baseline
``class_balanced``     ``ClassBalancedPolicy``      by its class alone, as a baseline
====================== ============================ ===========================================================

``AutoAssistCallback(policy="prioritized")`` takes the name, ``AutoAssistCallback(policy=PrioritizedPolicy(...))`` an
object with settings. A policy of your own is a subclass of :class:`Policy`.

Example:
    >>> from lightning_autoassist.policies import POLICIES, ProportionalPolicy
    >>> POLICIES["proportional"] is ProportionalPolicy
    True
"""

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
from lightning_autoassist.filtering.policies.registry import POLICIES
from lightning_autoassist.filtering.policies.scheduled import ScheduledPolicy
from lightning_autoassist.filtering.policies.schedules import GeometricSchedule, LinearSchedule, OscillatingSchedule
from lightning_autoassist.filtering.policies.selective_backprop import SelectiveBackpropPolicy
from lightning_autoassist.filtering.policies.seta import SeTaPolicy
from lightning_autoassist.filtering.policies.threshold import ThresholdPolicy
from lightning_autoassist.filtering.policies.uniform import UniformPolicy

__all__ = [
    "POLICIES",
    "AutoAssistPolicy",
    "ClassBalancedPolicy",
    "ClassBudgetPolicy",
    "ClassQuotaPolicy",
    "GeometricSchedule",
    "IESPolicy",
    "InfoBatchPolicy",
    "LinearSchedule",
    "OscillatingSchedule",
    "Policy",
    "PrioritizedPolicy",
    "ProportionalPolicy",
    "RandomPolicy",
    "ScheduledPolicy",
    "SeTaPolicy",
    "SelectiveBackpropPolicy",
    "ThresholdPolicy",
    "UniformPolicy",
]
