"""What is warned of where dropped instances are made up for by weights 1/p, and these do harm."""

from __future__ import annotations

from collections.abc import Mapping

from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_autoassist.filtering.assistants.base import Assistant
from lightning_autoassist.filtering.policies.base import Policy
from lightning_autoassist.filtering.policies.prioritized import LOW_RATE

# Weights of an exponent above it count as weights 1/p.
FULL_CORRECTION = 0.75
# Random batches of as many instances have 1. In trials at a high learning rate, epochs after which a run ended below a
# shorter schedule had 1.5 and 1.6, those of runs that ended above it at most 1.2.
NOISY = 1.3
# Of fewer instances in an epoch the ratio is too uncertain.
MIN_INSTANCES = 5000


class WeightChecks:
    """Warns of weights 1/p: when a fit starts, and once after an epoch in which they did more harm than good."""

    def __init__(self) -> None:
        self._policy: Policy | None = None  # one whose weights are to be looked at
        self._num_before = 0.0  # instances that were trained on before the epoch

    def begin(self, policy: Policy, assistant: Assistant, reweighting: str, num_seen: int) -> None:
        """A fit starts.

        Args:
            policy: Of the run.
            assistant: Of the run.
            reweighting: In force.
            num_seen: Instances that were trained on before, as in a run that goes on.
        """
        self._num_before = num_seen
        self._policy = policy if policy.needs_scores and reweighting != "none" else None
        if self._policy is not None and not policy.steadies_scores and "scores" in assistant.required_columns:
            _warn_of_stale_weights(policy)

    def end_epoch(self, metrics: Mapping[str, float]) -> None:
        """Look at an epoch's metrics."""
        policy, ratio = self._policy, metrics.get("variance_ratio", 0.0)
        num, self._num_before = metrics["instances_seen"] - self._num_before, metrics["instances_seen"]
        is_telling = num >= MIN_INSTANCES and metrics["keep_rate"] < 1
        if policy is None or not is_telling or ratio < NOISY or policy.current_correction() <= FULL_CORRECTION:
            return
        self._policy = None
        rank_zero_warn(
            f"The gradients of this epoch's filtered batches had {ratio:.1f} times the variance of random batches: "
            f"{type(policy).__name__} weighs instances by 1/p, with p from scores that have changed since. In our "
            'trials such runs ended below a shorter schedule. Use policy="prioritized", whose weights are smaller, or '
            'lower the learning rate; compare with policy="uniform"'
        )


def _warn_of_stale_weights(policy: Policy) -> None:
    """Warn of a low keep rate with full weights 1/p where p comes from scores of long ago.

    In trials such runs ended below a shortened schedule: the weights of what was wrongly thought easy are large.
    """
    rate = _rate_with_full_weights(policy)
    if rate is not None:
        rank_zero_warn(
            f"{type(policy).__name__} keeps {rate:.0%} of the candidates, judges them by scores that are passes old, "
            "and weighs them by 1/p. In our trials such runs ended below a shorter schedule. Write "
            f"PrioritizedPolicy(keep_rate={rate:g}), which corrects by half and mixes in the score of the class, or "
            "keep more"
        )


def _rate_with_full_weights(policy: Policy) -> float | None:
    """The lowest of a policy's keep rates that are low while it corrects in full; None where none is ever."""
    before, rates = policy.progress, []
    for number in range(9):  # both may be schedules
        policy.note_progress(number / 8, policy.pass_index)
        if policy.current_correction() > FULL_CORRECTION and policy.expected_keep_rate is not None:
            rates.append(policy.expected_keep_rate)
    policy.note_progress(before, policy.pass_index)
    rate = min(rates, default=1.0)
    return rate if rate < LOW_RATE else None
