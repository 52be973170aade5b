from __future__ import annotations

import io
import math

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F

from lightning_autoassist import HybridAssistant, MLPAssistant
from lightning_autoassist.filtering.memory.classes import ClassMeans
from lightning_autoassist.filtering.memory.instances import Instances
from tests.helpers.resuming import Fit, assert_same


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


@pytest.mark.parametrize(("batch_size", "num_steps"), [(16, 1), (300, 2)])
def test_mlp_equals_the_explicit_jacobians_gauss_newton_steps(batch_size, num_steps):
    """Rows of the Jacobian by autograd, in pieces of at most 256 instances."""
    assistant = MLPAssistant(num_hidden=8, trainer="gauss_newton", damping=0.1, step_ratio=0.5)
    for instances, scores in batches(4, batch_size=batch_size):
        if not assistant.weights:
            assistant._begin(instances.features.float())
        before, mean = ReferenceMLP(assistant).double(), assistant.mean_score.value
        assistant.update(instances, scores)
        scaled = assistant._scaled(instances.features.float()).double()
        targets = scores.double() / assistant.mean_score.value
        assert mean is None or mean != assistant.mean_score.value
        for piece in range(num_steps):
            mine = slice(256 * piece, 256 * (piece + 1))
            take_step(before, scaled[mine], instances.labels[mine], targets[mine])
        for name in "WEcv":
            expected = getattr(before, name).data.float()
            torch.testing.assert_close(assistant.weights[name], expected, atol=1e-5, rtol=1e-3)


def take_step(reference, scaled, labels, targets, damping=0.1, step_ratio=0.5):
    parameters = list(reference.parameters())
    outputs = reference(scaled, labels)
    rows = [torch.autograd.grad(each, parameters, retain_graph=True) for each in outputs]
    jacobian = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
    gram = jacobian @ jacobian.T
    damped = gram + damping * gram.diagonal().mean() * torch.eye(len(gram)).double()
    step = step_ratio * jacobian.T @ torch.linalg.solve(damped, (outputs - targets).detach())
    for parameter, part in zip(parameters, step.split([p.numel() for p in parameters]), strict=True):
        parameter.data -= part.view_as(parameter)


def test_auto_is_the_trainer_that_was_measured_to_be_better():
    assert MLPAssistant().trainer == MLPAssistant(trainer="auto").trainer == "adam"


def test_a_state_of_another_trainer_gives_its_weights():
    given, adam, newton = (
        list(batches(8)),
        MLPAssistant(num_hidden=8),
        MLPAssistant(num_hidden=8, trainer="gauss_newton"),
    )
    for instances, scores in given[:4]:
        adam.update(instances, scores)
    newton.load_state_dict(adam.state_dict())
    assert torch.equal(adam.predict(given[0][0]), newton.predict(given[0][0]))
    newton.update(*given[4])
    adam.load_state_dict(newton.state_dict())
    assert torch.equal(adam.predict(given[0][0]), newton.predict(given[0][0]))
    adam.update(*given[5])


def test_a_batch_that_is_not_finite_leaves_gauss_newtons_weights_alone():
    (instances, scores), assistant = next(batches(1)), MLPAssistant(num_hidden=8, trainer="gauss_newton")
    assistant.update(instances, scores)
    before = {name: values.clone() for name, values in assistant.weights.items()}
    assistant._trainer.step(torch.full((4, 6), torch.nan), torch.zeros(4, dtype=torch.long), torch.ones(4))
    assert all(torch.equal(assistant.weights[name], before[name]) for name in before)


@pytest.mark.parametrize("trainer", ["adam", "gauss_newton"])
def test_mlp_goes_on_from_a_checkpoint_exactly_and_learns_in_inference_mode_too(trainer):
    """Steps that were put off are learnt from when validation begins, within ``torch.inference_mode``."""
    given = list(batches(12))
    assistant, restored = (MLPAssistant(num_hidden=8, trainer=trainer) for _ in range(2))
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


@pytest.mark.skipif(pl.__version__ < "2.5", reason="Lightning 2.4 trains on one batch too many after a resume")
@pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:Checkpoint directory .* exists")
def test_a_run_whose_mlp_learns_by_gauss_newton_resumes_exactly(tmp_path):
    def settings():
        return {"settings": {"assistant": MLPAssistant(trainer="gauss_newton"), "policy": "proportional"}}

    whole = Fit(tmp_path, **settings())
    assert whole.callback.assistant.weights
    for step in (5, 10):
        resumed = Fit(tmp_path / "resumed", tmp_path / f"{step}.ckpt", **settings())
        assert_same(whole.result, resumed.result)
        learnt = resumed.callback.assistant.weights
        assert all(torch.equal(values, learnt[name]) for name, values in whole.callback.assistant.weights.items())


@pytest.mark.parametrize("trainer", ["adam", "gauss_newton"])
def test_mlp_learns_what_no_linear_model_can(trainer):
    generator = torch.Generator().manual_seed(0)
    assistant = MLPAssistant(lr=1e-2, trainer=trainer)
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
        (lambda: MLPAssistant(trainer="sgd"), "trainer must be one of auto, adam, gauss_newton, got 'sgd'"),
        (lambda: MLPAssistant(damping=0), "damping must be positive"),
        (lambda: MLPAssistant(step_ratio=2), "step_ratio must be in"),
        (lambda: HybridAssistant().predict(Instances(torch.rand(2, 2))), "needs remembered scores"),
        (lambda: MLPAssistant().predict(Instances(scores=torch.rand(2))), "pass features="),
    ],
)
def test_what_cannot_work_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
