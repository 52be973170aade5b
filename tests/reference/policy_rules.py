"""The policies' rules with their defaults, one candidate at a time."""


class Rule:
    """One policy: the candidates' scores in, their keep probabilities out.

    Args:
        name: In ``POLICIES``.
        num_instances: N; scores are compared with those of the last N candidates, anew after each N / 8.
    """

    def __init__(self, name, num_instances):
        self.compared_with, self.score, self.is_reweighted = RULES[name]
        self.is_blind = name in ("uniform", "random")
        self.unfiltered_tail = 0.125 if self.is_reweighted else 0.0
        self.quota = Quota() if name == "class_quota" else None
        self.num_instances, self.recent, self.num_new, self.chance = num_instances, [], 0, None

    def keep_probability(self, indices, scores, data):
        """By index; ``data[i]`` has the class."""
        is_due = not self.recent or self.num_new + len(scores) >= self.num_instances // 8
        self.recent = (self.recent + scores)[-self.num_instances :]
        self.num_new = 0 if is_due else self.num_new + len(scores)
        if is_due and scores:
            self.chance = self.compared_with(self.recent)
        chances = {i: self.chance(score) for i, score in zip(indices, scores, strict=True)}
        return chances if self.quota is None else self.quota.raised(chances, data)


class Quota:
    """Raises the chances of classes whose mean chance is below ``min_rate``."""

    def __init__(self, min_rate=0.4, decay=0.99):
        self.min_rate, self.decay, self.sums, self.counts = min_rate, decay, {}, {}

    def raised(self, chances, data):
        if not chances:
            return chances
        classes = {i: int(data[i][1]) for i in chances}
        for totals, added in ((self.sums, chances), (self.counts, dict.fromkeys(chances, 1))):
            for each in totals:
                totals[each] *= self.decay
            for i, amount in added.items():
                totals[classes[i]] = totals.get(classes[i], 0.0) + amount
        means = {i: self.sums[classes[i]] / self.counts[classes[i]] for i in chances}
        missing = {i: max(self.min_rate - means[i], 0.0) for i in chances}
        return {i: p + (1 - p) * missing[i] / (1 - means[i]) if missing[i] else p for i, p in chances.items()}


def keep_all(recent):
    return lambda score: 1.0


def keep_half(recent):
    return lambda score: 0.5


def autoassist(recent, gamma=0.3):
    return lambda score: gamma + (1 - gamma) * score


def proportional(recent, keep_rate=0.5, floor=0.2):
    def chance(score, scale):
        return min(max(score / scale, floor), 1.0)

    low, high = 0.0, max(recent) / floor
    for _ in range(100):
        scale = (low + high) / 2
        mean = sum(chance(score, scale) for score in recent) / len(recent)
        low, high = (scale, high) if mean > keep_rate else (low, scale)
    return lambda score: chance(score, high)


def infobatch(recent, prune_ratio=0.5):
    mean = sum(recent) / len(recent)
    return lambda score: 1 - prune_ratio if score < mean else 1.0


def selective_backprop(recent, floor=0.05):
    return lambda score: max(sum(other <= score for other in recent) / len(recent), floor)


# The rule, the score that it reads, and whether kept instances weigh 1 / p.
RULES = {
    "autoassist": (autoassist, "loss", False),
    "proportional": (proportional, "gradient_norm", True),
    "infobatch": (infobatch, "loss", True),
    "selective_backprop": (selective_backprop, "loss", False),
    "class_quota": (proportional, "gradient_norm", True),
    "uniform": (keep_all, "gradient_norm", False),
    "random": (keep_half, "gradient_norm", False),
}
