"""The policies' rules with their defaults, one candidate at a time."""

import math
from collections import Counter

import numpy as np

# PrioritizedPolicy(0.15)
FEW = "prioritized, few"


class Rule:
    """One policy: the candidates' scores in, their keep probabilities out.

    Args:
        name: In ``POLICIES``.
        num_instances: N; scores are compared with those of the last N candidates, anew after each N / 8.
    """

    def __init__(self, name, num_instances):
        self.compared_with, self.score, self.correction = RULES[name]
        self.unfiltered_tail = TAILS.get(name, 0.125 if self.correction else 0.0)
        self.progress, self.pass_index = 0.0, 0  # when candidates are judged
        self.is_blind, self.filters_first_pass = name in ("uniform", "random"), False
        self.quota = Quota() if name == "class_quota" else None
        self.num_instances, self.recent, self.num_new, self.chance = num_instances, [], 0, None

    def unseen(self, instance):
        """A score of what the model has never seen; None where it is to be kept."""
        return 0.0 if self.is_blind else None

    def scale(self, recent):
        """What weights are multiplied by; the chances of the last candidates are in lists, as they were judged."""
        return 1.0

    def learn(self, batch):
        """From index, class, score and chance of each instance that was trained on."""

    def keep_probability(self, indices, scores, data):
        """By index; ``data[i]`` has the class."""
        is_due = not self.recent or self.num_new + len(scores) >= self.num_instances // 8
        self.recent = (self.recent + scores)[-self.num_instances :]
        self.num_new = 0 if is_due else self.num_new + len(scores)
        if is_due and scores:
            self.chance = self.compared_with(self.recent)
        chances = {i: self.chance(score) for i, score in zip(indices, scores, strict=True)}
        return chances if self.quota is None else self.quota.raised(chances, data)


class Prioritized(Rule):
    """Scores are mixed with those of the class, weights are the inverse root of the chances with mean 1."""

    def __init__(self, name, num_instances, decay=0.99):
        super().__init__(name, num_instances)
        self.class_mix, self.filters_first_pass = (0.2, True) if name == FEW else (0.0, False)
        self.decay, self.classes, self.num_learnt = decay, {}, 0
        self.unfiltered_tail = 0.0

    def mean_square(self, label):
        squares, weights, count = self.classes.get(int(label), (0.0, 0.0, 0))
        return squares / weights if count >= 8 else None

    def unseen(self, instance):
        is_judged = self.filters_first_pass and self.num_learnt >= self.num_instances / 10
        square = self.mean_square(instance[1]) if is_judged else None
        return None if square is None else square**0.5

    def keep_probability(self, indices, scores, data):
        if not self.class_mix:
            return super().keep_probability(indices, scores, data)
        mixed = []
        for i, score in zip(indices, scores, strict=True):
            square = self.mean_square(data[i][1])
            mix = score if square is None else ((1 - self.class_mix) * score**2 + self.class_mix * square) ** 0.5
            mixed.append(mix)
        return super().keep_probability(indices, mixed, data)

    def scale(self, recent):
        chances = [chance for part in recent for chance in part]
        return sum(chances) / sum(chance ** (1 - self.correction) for chance in chances)

    def learn(self, batch):
        self.num_learnt += len(batch)
        self.classes = {
            label: (self.decay * squares, self.decay * weights, count)
            for label, (squares, weights, count) in self.classes.items()
        }
        for _, label, score, chance in batch:
            squares, weights, count = self.classes.get(label, (0.0, 0.0, 0))
            self.classes[label] = squares + score**2 / chance, weights + 1 / chance, count + 1


class Ies(Rule):
    """Drops an instance whose last five losses hardly bend."""

    def __init__(self, name, num_instances):
        super().__init__(name, num_instances)
        self.losses = {}

    def keep_probability(self, indices, scores, data):
        return {i: self.settled(self.losses[i]) for i in indices}

    def settled(self, losses, delta=1e-3, floor=0.1):
        last = losses[-5:]
        bends = [abs(last[t] - 2 * last[t - 1] + last[t - 2]) for t in range(2, len(last))]
        return floor if len(bends) == 3 and sum(bends) / 3 < delta else 1.0

    def learn(self, batch):
        for i, _, score, _ in batch:
            self.losses.setdefault(i, []).append(score)


class SeTa(Rule):
    """A window of three of five groups of losses, which moves on with each pass."""

    def keep_probability(self, indices, scores, data):
        super().keep_probability(indices, scores, data)  # renews the groups
        first = self.pass_index % 3
        return {
            i: 0.9 if first <= self.chance(score) < first + 3 else 0.05
            for i, score in zip(indices, scores, strict=True)
        }


class ClassBudget(Rule):
    """Classes in proportion to the root of mean loss times share, instances by the exponential of the loss."""

    def __init__(self, name, num_instances):
        super().__init__(name, num_instances)
        self.classes = {}

    def keep_probability(self, indices, scores, data):
        if not indices:
            return {}
        bound = math.log(max(2, len(self.classes)))
        shares = [math.exp(min(score, bound)) for score in scores]
        self.classes = {label: [0.99 * total for total in totals] for label, totals in self.classes.items()}
        for i, score, share in zip(indices, scores, shares, strict=True):
            totals = self.classes.setdefault(int(data[i][1]), [0.0, 0.0])
            totals[:] = totals[0] + score, totals[1] + share
        budgets = {label: math.sqrt(loss) / share for label, (loss, share) in self.classes.items()}
        wanted = [budgets[int(data[i][1])] * share for i, share in zip(indices, shares, strict=True)]
        return super().keep_probability(indices, wanted, data)


class ClassBalanced(Rule):
    """All classes as often, from the first candidate on."""

    def __init__(self, name, num_instances):
        super().__init__(name, num_instances)
        self.counts, self.filters_first_pass = Counter(), True

    def unseen(self, instance):
        return 0.0

    def keep_probability(self, indices, scores, data):
        self.counts.update(int(data[i][1]) for i in indices)
        return {i: min(self.counts.values()) / self.counts[int(data[i][1])] for i in indices}


class Scheduled(Rule):
    """Proportional, with chances scaled to a mean that falls from 0.7 to 0.3."""

    def __init__(self, name, num_instances):
        super().__init__(name, num_instances)
        self.own = []

    def keep_probability(self, indices, scores, data):
        chances = super().keep_probability(indices, scores, data)
        self.own = (self.own + list(chances.values()))[-self.num_instances :]
        if not self.own:
            return chances
        scaled = proportional(self.own, keep_rate=0.7 - 0.4 * self.progress, floor=0.02)
        return {i: scaled(p) for i, p in chances.items()}


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


def proportional_few(recent):
    return proportional(recent, keep_rate=0.15, floor=0.03)


def infobatch(recent, prune_ratio=0.5):
    mean = sum(recent) / len(recent)
    return lambda score: 1 - prune_ratio if score < mean else 1.0


def threshold(recent, tau=0.3, floor=0.05):
    return lambda score: 1.0 if score > -math.log(tau) else floor


def group(recent):
    edges = [float(np.quantile(recent, share)) for share in (0.2, 0.4, 0.6, 0.8)]
    return lambda score: sum(score > edge for edge in edges)


def class_budget(recent):
    return proportional(recent, keep_rate=0.3, floor=0.05)


def selective_backprop(recent, floor=0.05):
    return lambda score: max(sum(other <= score for other in recent) / len(recent), floor)


# The rule, the score that it reads, and the exponent of the weights of kept instances.
RULES = {
    "autoassist": (autoassist, "loss", 0),
    "proportional": (proportional, "gradient_norm", 1),
    "prioritized": (proportional, "gradient_norm", 0.5),
    FEW: (proportional_few, "gradient_norm", 0.5),
    "infobatch": (infobatch, "loss", 1),
    "selective_backprop": (selective_backprop, "loss", 0),
    "threshold": (threshold, "loss", 0),
    "seta": (group, "loss", 0),
    "ies": (keep_all, "loss", 0),
    "class_budget": (class_budget, "loss", 0),
    "scheduled": (proportional, "gradient_norm", 1),
    "class_balanced": (keep_all, "gradient_norm", 0),
    "class_quota": (proportional, "gradient_norm", 1),
    "uniform": (keep_all, "gradient_norm", 0),
    "random": (keep_half, "gradient_norm", 0),
}


KINDS = {
    "prioritized": Prioritized,
    FEW: Prioritized,
    "seta": SeTa,
    "ies": Ies,
    "class_budget": ClassBudget,
    "class_balanced": ClassBalanced,
    "scheduled": Scheduled,
}
TAILS = {"threshold": 0.03, "seta": 0.125}


def rule_of(name, num_instances):
    """The rule of a policy."""
    return KINDS.get(name, Rule)(name, num_instances)
