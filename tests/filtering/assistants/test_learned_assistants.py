from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_autoassist import HybridAssistant, MLPAssistant
from lightning_autoassist.filtering.memory.classes import ClassMeans
from lightning_autoassist.filtering.memory.instances import Instances


def batches(num_batches, num_features=6, batch_size=16):
    generator = torch.Generator().manual_seed(0)
    for _ in range(num_batches):
        yield (
            Instances(
                features=torch.randn(batch_size, num_features, generator=generator).half(),
                labels=torch.randint(0, 4, (batch_size,), generator=generator),
                scores=torch.rand(batch_size, generator=generator),
                ages=torch.randint(-1, 30, (batch_size,), generator=generator, dtype=torch.int32),
            ),
            torch.rand(batch_size, generator=generator),
        )


class ReferenceHybrid:
    """Keeps every instance it ever saw and solves the weighted ridge regression anew each time."""

    def __init__(self, decay=0.99, ridge=1.0):
        self.decay, self.ridge = decay, ridge
        self.rows, self.weight, self.classes = [], None, {}

    def class_mean(self, label):
        total, count = self.classes.get(label, (0.0, 0.0))
        if count == 0:
            total, count = (
                (sum(parts) for parts in zip(*self.classes.values(), strict=True)) if self.classes else (0, 1)
            )
        return total / count

    def inputs(self, instances):
        rows = zip(*(column.tolist() for column in instances[:4]), strict=True)
        for features, label, score, age in rows:
            log_age = math.log1p(max(age, 0))
            yield [*features, 1.0, self.class_mean(label), score, log_age, score * log_age]

    def predict(self, instances):
        inputs = list(self.inputs(instances))
        if self.weight is None:
            return [row[-3] for row in inputs]
        return [max(sum(w * x for w, x in zip(self.weight, row, strict=True)), 0) for row in inputs]

    def update(self, instances, scores):
        self.rows = [(x, y, importance * self.decay) for x, y, importance in self.rows]
        ages = instances.ages.tolist()
        for x, y, age in zip(list(self.inputs(instances)), scores.tolist(), ages, strict=True):
            if age >= 0:
                self.rows.append((x, y, 1.0))
        x, y, importance = (np.array(column) for column in zip(*self.rows, strict=True))
        prior = np.zeros(x.shape[1])
        prior[-3] = 1
        gram = x.T @ (importance[:, None] * x) + self.ridge * np.eye(len(prior))
        self.weight = np.linalg.solve(gram, x.T @ (importance * y) + self.ridge * prior)
        self.classes = {label: (0.99 * total, 0.99 * count) for label, (total, count) in self.classes.items()}
        for label, score in zip(instances.labels.tolist(), scores.tolist(), strict=True):
            total, count = self.classes.get(label, (0.0, 0.0))
            self.classes[label] = (total + score, count + 1)


@pytest.mark.parametrize(("decay", "ridge"), [(0.99, 1.0), (0.7, 0.1)])
def test_hybrid_equals_ridge_regression_on_all_it_saw(decay, ridge):
    assistant, reference = HybridAssistant(decay, ridge), ReferenceHybrid(decay, ridge)
    for instances, scores in batches(12):
        expected = reference.predict(instances)
        assert assistant.predict(instances).tolist() == pytest.approx(expected, abs=1e-4)
        outcome = assistant.update(instances, scores)
        reference.update(instances, scores)
        assert outcome.predictions.tolist() == pytest.approx(expected, abs=1e-4)
    assert assistant.weight.tolist() == pytest.approx(list(reference.weight), abs=1e-4)


def test_hybrid_that_learnt_nothing_predicts_the_remembered_score():
    instances, scores = next(batches(1))
    assistant = HybridAssistant()
    assert torch.equal(assistant.predict(instances), instances.scores)
    assistant.update(instances._replace(ages=torch.full((16,), -1)), scores)  # a first pass: nothing is remembered
    assert torch.equal(assistant.predict(instances), instances.scores)


def test_hybrid_learns_that_old_scores_have_fallen():
    generator = torch.Generator().manual_seed(0)
    hybrid, errors = HybridAssistant(), []
    for _ in range(60):
        remembered = torch.rand(64, generator=generator)
        ages = torch.randint(0, 100, (64,), generator=generator)
        scores = remembered * (1 - torch.log1p(ages.float()) / 6)
        errors.append(hybrid.update(Instances(torch.zeros(64, 2), None, remembered, ages), scores).loss)
    assert errors[-1] < 0.02 < 0.1 < errors[0]


def test_hybrid_takes_at_most_64_numbers_from_features_whatever_the_classes():
    assistant = HybridAssistant()
    for instances, scores in batches(2, num_features=256):
        labels = instances.labels * 1000
        assistant.update(instances._replace(labels=labels), scores)
    assert assistant.gram.shape == (69, 69)


def test_hybrid_works_without_features_and_labels():
    assistant = HybridAssistant()
    for instances, scores in batches(5):
        assistant.update(instances._replace(features=None, labels=None), scores)
    assert assistant.gram.shape == (5, 5)


def test_class_means_of_unseen_classes_are_the_mean_of_all():
    assert ClassMeans(0.9).of(torch.tensor([3])).tolist() == [0.0]


class ReferenceMLP(nn.Module):
    """The same network, learnt by autograd and torch's Adam."""

    def __init__(self, mine):
        super().__init__()
        self.W, self.E, self.c, self.v = (nn.Parameter(mine.weights[name].clone()) for name in "WEcv")

    def forward(self, scaled, classes):
        return F.relu(scaled @ self.W + self.E[classes] + self.c) @ self.v


def test_mlp_equals_autograd_and_torchs_adam():
    assistant, reference, optimizer, mean = MLPAssistant(num_hidden=8), None, None, None
    centre = square = 0.0
    for step, (instances, scores) in enumerate(batches(30)):
        if step == 0:
            assistant._begin(instances.features.float())
            reference = ReferenceMLP(assistant)
            optimizer = torch.optim.Adam(reference.parameters(), lr=3e-3)
        assistant.update(instances, scores)

        features = instances.features.float()
        decay = 0.95 if step else 0.0
        mean = decay * (mean or 0.0) + (1 - decay) * scores.mean().item()
        centre = decay * centre + (1 - decay) * features.mean(0)
        square = decay * square + (1 - decay) * features.square().mean(0)
        scaled = (features - centre) / (square - centre.square() + 1e-6).sqrt()
        optimizer.zero_grad()
        F.mse_loss(reference(scaled, instances.labels), scores / mean).backward()
        optimizer.step()
        for name in "WEcv":
            torch.testing.assert_close(assistant.weights[name], getattr(reference, name).data, atol=1e-6, rtol=1e-5)
        expected = (reference(scaled, instances.labels) * mean).clamp(min=0)
        torch.testing.assert_close(assistant.predict(instances), expected.detach(), atol=1e-6, rtol=1e-5)


def test_mlp_goes_on_from_a_checkpoint_exactly_and_learns_in_inference_mode_too():
    """Steps that were put off are learnt from when validation begins, within ``torch.inference_mode``."""
    given, assistant, restored = list(batches(12)), MLPAssistant(num_hidden=8), MLPAssistant(num_hidden=8)
    for instances, scores in given[:6]:
        assistant.update(instances, scores)
    saved = io.BytesIO()
    torch.save(assistant.state_dict(), saved)
    saved.seek(0)
    restored.load_state_dict(torch.load(saved, weights_only=True))
    for instances, scores in given[6:]:
        assistant.update(instances, scores)
        with torch.inference_mode():
            outcome = restored.update(Instances(*(None if x is None else x.clone() for x in instances)), scores.clone())
    assert not outcome.predictions.requires_grad
    assert torch.equal(assistant.predict(given[0][0]), restored.predict(given[0][0]))
    assert all(torch.equal(assistant.weights[name], restored.weights[name]) for name in "WEcv")


def test_mlp_learns_what_no_linear_model_can():
    generator = torch.Generator().manual_seed(0)
    assistant = MLPAssistant(lr=1e-2)
    for _ in range(400):
        features = torch.randint(0, 2, (64, 2), generator=generator).float()
        scores = (features[:, 0] != features[:, 1]).float()
        outcome = assistant.update(Instances(features, torch.zeros(64, dtype=torch.long)), scores)
    assert outcome.loss < 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HybridAssistant(decay=0), "decay must be in"),
        (lambda: HybridAssistant(ridge=0), "ridge must be positive"),
        (lambda: HybridAssistant(max_inputs=0), "max_inputs must be at least 1"),
        (lambda: MLPAssistant(num_hidden=0), "num_hidden must be at least 1"),
        (lambda: MLPAssistant(lr=0), "lr must be positive"),
        (lambda: MLPAssistant(mean_decay=1), "mean_decay must be in"),
        (lambda: HybridAssistant().predict(Instances(torch.rand(2, 2))), "needs remembered scores"),
        (lambda: MLPAssistant().predict(Instances(scores=torch.rand(2))), "pass features="),
    ],
)
def test_what_cannot_work_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
