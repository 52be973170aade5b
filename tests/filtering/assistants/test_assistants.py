from __future__ import annotations

import math

import pytest
import torch

from lightning_autoassist.filtering.assistants.logistic import LogisticAssistant
from lightning_autoassist.filtering.assistants.memory import MemoryAssistant
from lightning_autoassist.filtering.assistants.registry import ASSISTANTS
from lightning_autoassist.filtering.memory.instances import Instances
from lightning_autoassist.filtering.memory.store import InstanceStore
from lightning_autoassist.filtering.memory.tokens import tokens_of


class ReferenceLogistic:
    """The paper's Assistant, one instance and one number at a time."""

    def __init__(self, num_features, num_classes, lr=0.01, weight_decay=1e-3, mean_decay=0.75):
        self.weight = [0.0] * num_features
        self.bias = [0.0] * num_classes
        self.lr, self.weight_decay, self.mean_decay = lr, weight_decay, mean_decay
        self.mean = None

    def predict(self, features, label):
        z = sum(w * x for w, x in zip(self.weight, features, strict=True)) + self.bias[label]
        return 1 / (1 + math.exp(-z))

    def update(self, rows, labels, losses):
        batch_mean = sum(losses) / len(losses)
        self.mean = (
            batch_mean if self.mean is None else self.mean_decay * self.mean + (1 - self.mean_decay) * batch_mean
        )
        weight_step = [self.weight_decay * w for w in self.weight]
        bias_step = [self.weight_decay * b for b in self.bias]
        for features, label, loss in zip(rows, labels, losses, strict=True):
            error = (self.predict(features, label) - (loss > self.mean)) / len(rows)
            for k, x in enumerate(features):
                weight_step[k] += error * x
            bias_step[label] += error
        self.weight = [w - self.lr * step for w, step in zip(self.weight, weight_step, strict=True)]
        self.bias = [b - self.lr * step for b, step in zip(self.bias, bias_step, strict=True)]


@pytest.mark.parametrize("lr", [0.01, 1.0])
def test_logistic_equals_the_per_instance_reference(lr):
    generator = torch.Generator().manual_seed(0)
    assistant, reference = LogisticAssistant(lr=lr), ReferenceLogistic(6, 4, lr=lr)
    for _ in range(20):
        features = torch.randn(16, 6, generator=generator).half()
        labels = torch.randint(0, 4, (16,), generator=generator)
        losses = torch.rand(16, generator=generator)
        expected = [reference.predict(x, y) for x, y in zip(features.tolist(), labels.tolist(), strict=True)]
        assert assistant.predict(Instances(features, labels)).tolist() == pytest.approx(expected, abs=1e-5)
        outcome = assistant.update(Instances(features, labels), losses)
        reference.update(features.tolist(), labels.tolist(), losses.tolist())
        assert outcome.predictions.tolist() == pytest.approx(expected, abs=1e-5)
        assert outcome.targets.tolist() == [loss > reference.mean for loss in losses.tolist()]
    assert assistant.weight.tolist() == pytest.approx(reference.weight, abs=1e-5)
    assert assistant.bias.tolist() == pytest.approx(reference.bias[: len(assistant.bias)], abs=1e-5)


def test_logistic_learns_which_instances_have_high_loss():
    generator = torch.Generator().manual_seed(0)
    assistant = LogisticAssistant(lr=1.0)
    features = torch.randn(400, 5, generator=generator)
    losses = (features[:, 0] > 0).float() + 0.1 * torch.rand(400, generator=generator)
    for rows in torch.arange(400).split(40) * 5:
        outcome = assistant.update(Instances(features[rows]), losses[rows])
    predictions = assistant.predict(Instances(features))
    assert predictions[losses > 0.5].mean() > predictions[losses < 0.5].mean() + 0.2
    assert outcome.loss < math.log(2)


def test_logistic_learns_classes_that_turn_up_later():
    assistant = LogisticAssistant(lr=1.0, weight_decay=0)
    features = torch.zeros(2, 3)
    assistant.update(Instances(features, torch.tensor([0, 1])), torch.tensor([0.0, 1.0]))
    before = assistant.predict(Instances(features, torch.tensor([7, 7])))
    assert before.tolist() == [0.5, 0.5]
    for _ in range(20):
        assistant.update(Instances(features, torch.tensor([7, 1])), torch.tensor([1.0, 0.0]))
    assert assistant.predict(Instances(features, torch.tensor([7, 1]))).diff() < -0.3


def test_labels_that_are_no_classes_share_the_first_bias():
    assistant = LogisticAssistant()
    features, labels = torch.zeros(3, 2), torch.tensor([-100, 10**9, 0])
    assistant.update(Instances(features, labels), torch.tensor([0.0, 1.0, 2.0]))
    assert len(assistant.bias) == 1


@pytest.mark.parametrize("name", ASSISTANTS)
def test_every_assistant_restores_its_state(name):
    assistant, restored = ASSISTANTS[name](), ASSISTANTS[name]()
    tokens = tokens_of(torch.randint(-1, 50, (8, 6)))
    instances = Instances(torch.rand(8, 3), torch.arange(8), torch.rand(8), torch.arange(8), tokens)
    assistant.update(instances, torch.rand(8))
    restored.load_state_dict(assistant.state_dict())
    scores = torch.rand(8)
    assert torch.equal(assistant.predict(instances), restored.predict(instances))
    assert assistant.update(instances, scores).loss == restored.update(instances, scores).loss
    assert torch.equal(assistant.predict(instances), restored.predict(instances))


@pytest.mark.parametrize("name", ASSISTANTS)
def test_every_assistant_predicts_finite_scores_and_leaves_the_global_rng(name):
    generator = torch.Generator().manual_seed(0)
    assistant = ASSISTANTS[name]()
    before = torch.get_rng_state()
    for age in (-1, 0, 5):
        features = torch.rand(16, 300, generator=generator) * 1e4
        labels = torch.randint(-100, 2000, (16,), generator=generator)
        scores = torch.rand(16, generator=generator) * 1e6
        tokens = tokens_of(torch.randint(-1, 2**21, (16, 300), generator=generator))
        instances = Instances(features.half(), labels, scores, torch.full((16,), age), tokens)
        outcome = assistant.update(instances, scores)
        predictions = assistant.predict(instances)
        assert predictions.shape == outcome.predictions.shape == outcome.targets.shape == (16,)
        assert predictions.dtype == torch.float32
        assert predictions.isfinite().all()
        assert (predictions >= 0).all()
    assert torch.equal(torch.get_rng_state(), before)


def test_an_assistant_that_has_seen_nothing_predicts_all_the_same():
    assert LogisticAssistant().predict(Instances(torch.rand(3, 2))).tolist() == [0.5] * 3


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"lr": 0}, "lr must be positive"),
        ({"weight_decay": -1}, "weight_decay must"),
        ({"mean_decay": 1}, "mean_decay"),
    ],
)
def test_bad_arguments_are_refused(argument, message):
    with pytest.raises(ValueError, match=message):
        LogisticAssistant(**argument)


def test_logistic_says_when_there_are_no_features():
    with pytest.raises(ValueError, match="pass features="):
        LogisticAssistant().predict(Instances(scores=torch.rand(3)))


def test_memory_with_decay_predicts_a_running_mean_that_forgetting_begins_anew():
    assistant, store = MemoryAssistant(decay=0.5), InstanceStore(4)
    store.own("assistant", assistant.own_columns)
    rows, mean = torch.tensor([1, 3]), None
    for scores in torch.rand(5, 2):
        instances = store.rows(rows, assistant.required_columns, "assistant")
        store.put_scores(rows, scores)
        assistant.update(instances, scores)
        mean = scores if mean is None else 0.5 * mean + 0.5 * scores
    predicted = assistant.predict(store.rows(rows, assistant.required_columns, "assistant"))
    torch.testing.assert_close(predicted, mean)
    store.forget(torch.tensor([1]))
    predicted = assistant.predict(store.rows(rows, assistant.required_columns, "assistant"))
    torch.testing.assert_close(predicted, torch.stack([store.scores[1], mean[1]]))
