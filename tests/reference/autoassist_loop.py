"""AutoAssist as one plain loop: candidates, keep, train, learn. No Lightning, and one instance at a time.

To be read beside the paper (Zhang, Yu & Dhillon, NeurIPS 2019, arXiv:1905.03381): ``test_autoassist_loop.py`` holds the
package equal to it. The policies' rules are in ``policy_rules.py``.
"""

import math

import numpy as np
import torch
from torch.nn import functional as F


def autoassist(model, optimizer, data, sampler, rule, assistant, batch_size, num_epochs, seed, budget=0.6):
    """Train ``model`` on ``data[i] = (features, label)``; returns the indices of each batch."""
    rng, num_steps = np.random.default_rng(seed), num_epochs * math.ceil(budget * len(data) / batch_size)
    candidates, num_passes = [], 0
    kept, recent = [], []  # (index, chance) of kept instances that wait for a batch; chances of the last candidates
    batches, seen = [], set()
    for step in range(num_steps):
        while len(kept) < batch_size:
            if not candidates:
                candidates, num_passes = list(sampler), num_passes + 1
            count = num_judged_at_once(batch_size, len(kept), recent)
            judged, candidates = candidates[:count], candidates[count:]

            # All are kept at the end, in the first pass and where never seen, unless the rule knows a score of these.
            chances, rule.progress, rule.pass_index = dict.fromkeys(judged, 1.0), step / num_steps, num_passes - 1
            if (num_passes > 1 or rule.filters_first_pass) and step / num_steps <= 1 - rule.unfiltered_tail:
                scores = {i: assistant.predict(i, *data[i]) if i in seen else rule.unseen(data[i]) for i in judged}
                known = [i for i in judged if scores[i] is not None]
                chances |= rule.keep_probability(known, [scores[i] for i in known], data)
            kept += [(i, chances[i]) for i in judged if rng.random() < chances[i]]
            recent.append(list(chances.values()))
            while sum(map(len, recent[1:])) >= len(data):
                del recent[0]
        batch, kept = kept[:batch_size], kept[batch_size:]

        losses, scores, scale = [], [], rule.scale(recent)
        for i, chance in batch:
            features, label = data[i]
            logits = model(features)
            loss = F.cross_entropy(logits, label)
            losses.append(loss * scale / chance**rule.correction)
            gradient = logits.detach().softmax(0) - F.one_hot(label, len(logits))
            scores.append((loss.detach() if rule.score == "loss" else gradient.norm()).item())
        optimizer.zero_grad()
        (sum(losses) / batch_size).backward()
        optimizer.step()

        batches.append([i for i, _ in batch])
        seen.update(batches[-1])
        assistant.learn([(i, *data[i], score) for i, score in zip(batches[-1], scores, strict=True)])
        rule.learn([(i, int(data[i][1]), score, p) for (i, p), score in zip(batch, scores, strict=True)])
    return batches


def num_judged_at_once(batch_size, num_waiting, recent):
    """As many candidates as the next four batches are likely to need; in the beginning, one batch."""
    if not recent:
        return batch_size
    keep_rate = np.mean([chance for chances in recent for chance in chances])
    return max(batch_size, math.ceil((4 * batch_size - num_waiting) / keep_rate))


class Memory:
    """Predicts the score that an instance had when the model saw it last."""

    def __init__(self):
        self.scores = {}

    def predict(self, index, features, label):
        return self.scores.get(index)

    def learn(self, batch):
        self.scores.update({index: score for index, _, _, score in batch})


class Logistic:
    """Predicts from features and class whether the score is above its running mean: the paper's Assistant."""

    def __init__(self, lr=0.01, weight_decay=1e-3, mean_decay=0.75):
        self.lr, self.weight_decay, self.mean_decay = lr, weight_decay, mean_decay
        self.mean, self.weight, self.bias = None, 0.0, {}

    def predict(self, index, features, label):
        return float(torch.sigmoid((self.weight * features).sum() + self.bias.get(int(label), 0.0)))

    def learn(self, batch):
        batch_mean = np.mean([score for *_, score in batch])
        self.mean = (
            batch_mean if self.mean is None else self.mean_decay * self.mean + (1 - self.mean_decay) * batch_mean
        )
        errors = [self.predict(*instance) - (score > self.mean) for *instance, score in batch]
        self.weight *= 1 - self.lr * self.weight_decay
        self.bias = {label: (1 - self.lr * self.weight_decay) * bias for label, bias in self.bias.items()}
        for error, (_, features, label, _) in zip(errors, batch, strict=True):
            self.weight = self.weight - self.lr * error / len(batch) * features
            self.bias[int(label)] = self.bias.get(int(label), 0.0) - self.lr * error / len(batch)
