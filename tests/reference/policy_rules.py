"""The policies' rules with their defaults, one candidate at a time."""


class Rule:
    """One policy: the candidates' scores in, their keep probabilities out.

    Args:
        name: In ``POLICIES``.
        num_instances: N; scores are compared with those of the last N candidates, anew after each N / 8.
    """

    def __init__(self, name, num_instances):
        self.compared_with, self.score, self.correction = RULES[name]
        self.unfiltered_tail = 0.125 if self.correction else 0.0
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
        """From class, score and chance of each instance that was trained on."""

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

    def __init__(self, name, num_instances, class_mix=0.2, decay=0.99):
        super().__init__(name, num_instances)
        self.class_mix, self.decay, self.classes, self.num_learnt = class_mix, decay, {}, 0
        self.unfiltered_tail, self.filters_first_pass = 0.0, True

    def mean_square(self, label):
        squares, weights, count = self.classes.get(int(label), (0.0, 0.0, 0))
        return squares / weights if count >= 8 else None

    def unseen(self, instance):
        square = self.mean_square(instance[1]) if self.num_learnt >= self.num_instances / 10 else None
        return None if square is None else square**0.5

    def keep_probability(self, indices, scores, data):
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
        for label, score, chance in batch:
            squares, weights, count = self.classes.get(label, (0.0, 0.0, 0))
            self.classes[label] = squares + score**2 / chance, weights + 1 / chance, count + 1


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


def prioritized(recent):
    return proportional(recent, keep_rate=0.15, floor=0.03)


def infobatch(recent, prune_ratio=0.5):
    mean = sum(recent) / len(recent)
    return lambda score: 1 - prune_ratio if score < mean else 1.0


def selective_backprop(recent, floor=0.05):
    return lambda score: max(sum(other <= score for other in recent) / len(recent), floor)


# The rule, the score that it reads, and the exponent of the weights of kept instances.
RULES = {
    "autoassist": (autoassist, "loss", 0),
    "proportional": (proportional, "gradient_norm", 1),
    "prioritized": (prioritized, "gradient_norm", 0.5),
    "infobatch": (infobatch, "loss", 1),
    "selective_backprop": (selective_backprop, "loss", 0),
    "class_quota": (proportional, "gradient_norm", 1),
    "uniform": (keep_all, "gradient_norm", 0),
    "random": (keep_half, "gradient_norm", 0),
}


def rule_of(name, num_instances):
    """The rule of a policy."""
    return (Prioritized if name == "prioritized" else Rule)(name, num_instances)
