"""Prioritized sampling: its formula, its relation to ``proportional``, class statistics and the first pass."""

from __future__ import annotations

import math

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule, Instances
from lightning_autoassist.filtering.policies.class_statistics import ClassMeanSquares
from lightning_autoassist.filtering.policies.prioritized import PrioritizedPolicy
from lightning_autoassist.filtering.policies.proportional import ProportionalPolicy
from lightning_autoassist.filtering.policies.schedules import GeometricSchedule, LinearSchedule, OscillatingSchedule
from lightning_autoassist.filtering.sampling.index_batches import ShrinkingBatchSampler
from tests.helpers.ordinary import Classifier, ClustersData, trainer

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")


class Reference:
    """One instance at a time, with lambda found by halving."""

    def __init__(self, keep_rate, floor, exponent, class_mix):
        self.keep_rate, self.floor, self.exponent, self.class_mix = keep_rate, floor, exponent, class_mix
        self.classes = {}

    def update(self, labels, scores, probs):
        for statistics in self.classes.values():
            statistics[:2] = statistics[0] * 0.99, statistics[1] * 0.99
        for label, score, prob in zip(labels, scores, probs, strict=True):
            statistics = self.classes.setdefault(label, [0.0, 0.0, 0])
            statistics[0] += score**2 / prob
            statistics[1] += 1 / prob
            statistics[2] += 1

    def mean_square(self, label):
        total, weight, count = self.classes.get(label, (0, 0, 0))
        return total / weight if count >= 8 else None

    def judge(self, scores, labels):
        priorities = []
        for score, label in zip(scores, labels, strict=True):
            square = self.mean_square(label)
            if square is not None:
                score = math.sqrt((1 - self.class_mix) * score**2 + self.class_mix * square)
            priorities.append(score**self.exponent)
        rate = self.keep_rate
        if rate == "auto":
            rate = sum(priorities) ** 2 / (len(priorities) * sum(value**2 for value in priorities))
            rate = min(max(rate, 0.1), 0.5)
        low, high = 1e-9, max(priorities) / self.floor
        for _ in range(200):
            scale = (low + high) / 2
            mean = sum(self.clipped(value / scale) for value in priorities) / len(priorities)
            low, high = (scale, high) if mean > rate else (low, scale)
        return [self.clipped(value / scale) for value in priorities]

    def clipped(self, prob):
        return min(max(prob, self.floor), 1.0)


@pytest.mark.parametrize(
    ("keep_rate", "floor", "exponent", "class_mix"), [(0.15, 0.03, 1, 0.2), (0.4, 0.1, 0.5, 0), ("auto", 0.05, 2, 0.5)]
)
def test_prioritized_equals_the_per_instance_reference(keep_rate, floor, exponent, class_mix):
    policy = PrioritizedPolicy(keep_rate, floor, exponent=exponent, class_mix=class_mix)
    reference, generator = Reference(keep_rate, floor, exponent, class_mix), torch.Generator().manual_seed(0)
    for _ in range(6):
        labels, scores, probs = torch.randint(-1, 4, (64,), generator=generator), *torch.rand(2, 64) + 0.1
        policy.update(Instances(labels=labels, probs=probs.clamp(max=1)), scores)
        known = labels >= 0
        reference.update(labels[known].tolist(), scores[known].tolist(), probs.clamp(max=1)[known].tolist())
    scores, labels = torch.rand(300, generator=generator) ** 3, torch.randint(-1, 5, (300,), generator=generator)
    probs = policy.judge(scores, Instances(labels=labels))
    assert probs.tolist() == pytest.approx(reference.judge(scores.tolist(), labels.tolist()), rel=1e-4)
    assert policy.unseen_scores(Instances(labels=torch.tensor([2, 4]))).isnan().tolist() == [False, True]


def parameters_after(callback, data):
    pl.seed_everything(0, verbose=False)
    module = Classifier()
    trainer(max_epochs=8, callbacks=[callback]).fit(module, datamodule=AutoAssistDataModule(data, budget=0.5))
    return torch.nn.utils.parameters_to_vector(module.parameters())


def test_with_full_correction_and_no_mix_it_is_proportional():
    today = {"exponent": 1, "correction": 1, "class_mix": 0, "first_pass": "keep"}
    callback = AutoAssistCallback(
        PrioritizedPolicy(0.5, 0.2, **today), reweighting="inverse_probability", unfiltered_tail=0.125
    )
    expected = parameters_after(AutoAssistCallback(ProportionalPolicy()), ClustersData(300, 10))
    assert torch.equal(parameters_after(callback, ClustersData(300, 10)), expected)
    assert callback.summary()["keep_rate"] < 0.9


def test_the_mean_square_of_a_class_is_not_that_of_what_is_kept_of_it():
    means, generator = ClassMeanSquares(decay=0.99), torch.Generator().manual_seed(0)
    for _ in range(400):
        scores = torch.rand(256, generator=generator)
        probs = scores.clamp(0.05, 1)
        kept = torch.rand(256, generator=generator) < probs
        means.update(torch.zeros(int(kept.sum()), dtype=torch.int64), scores[kept], probs[kept])
    assert means.of(torch.tensor([0])).item() == pytest.approx(1 / 3, rel=0.05)


def test_the_keep_rate_follows_a_schedule():
    policy = PrioritizedPolicy(LinearSchedule(0.6, 0.2), 0.05)
    for progress, expected in ((0.0, 0.6), (0.5, 0.4), (1.0, 0.2)):
        policy.note_progress(progress, 1)
        policy.recent.values, policy._num_new = torch.zeros(0), 0
        probs = policy.keep_probability(torch.rand(2000, generator=torch.Generator().manual_seed(0)))
        assert probs.mean().item() == pytest.approx(expected, abs=1e-3)
    policy = PrioritizedPolicy(correction=GeometricSchedule(0.25, 1))
    policy.note_progress(0.5, 1)
    assert policy.current_correction() == pytest.approx(0.5)


def test_auto_keeps_few_where_few_have_most_of_the_gradient():
    alike, rare = torch.ones(1000), torch.where(torch.arange(1000) < 10, 1.0, 0.01)
    assert PrioritizedPolicy("auto").keep_probability(alike).mean().item() == pytest.approx(0.5, abs=1e-3)
    assert PrioritizedPolicy("auto", 0.03).keep_probability(rare).mean().item() == pytest.approx(0.1, abs=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PrioritizedPolicy(0.02, 0.03), r"keep_rate must be in \[0.03, 1\), got 0.02"),
        (
            lambda: PrioritizedPolicy("often"),
            "keep_rate must be a number, a schedule or 'auto', got the",
        ),
        (lambda: PrioritizedPolicy(lambda progress: progress), r"keep_rate at 0% of training must be in \[0.02, 1\)"),
        (lambda: PrioritizedPolicy(exponent=-1), "exponent must not be negative"),
        (
            lambda: PrioritizedPolicy(correction=OscillatingSchedule(0.5, 1.5)),
            "correction at 9% of training must be in",
        ),
        (lambda: PrioritizedPolicy(correction=2), r"correction must be in \[0, 1\], got 2"),
        (lambda: PrioritizedPolicy(class_mix=2), "class_mix must be in"),
        (lambda: PrioritizedPolicy(first_pass="drop"), "first_pass must be one of class_prior, keep, got 'drop'"),
    ],
)
def test_arguments_outside_their_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def keep_rates(data, **options):
    """Of each pass but the last, and the callback."""
    callback, considered = AutoAssistCallback(PrioritizedPolicy(0.25, **options)), {}
    wrapped = AutoAssistDataModule(data, budget=1.0)

    class Watching(pl.Callback):
        def on_train_batch_end(self, *args):
            stream = wrapped.candidate_stream
            considered[stream.pass_index] = stream.num_considered, stream.num_kept

    pl.seed_everything(0, verbose=False)
    trainer(max_epochs=4, callbacks=[callback, Watching()]).fit(Classifier(), datamodule=wrapped)
    return considered[0][1] / considered[0][0], callback


class NoLabels(torch.utils.data.Dataset):
    """Gives the same instances, and tells nothing beforehand."""

    def __init__(self, dataset):
        self._hidden = dataset

    def __len__(self):
        return len(self._hidden)

    def __getitem__(self, index):
        return self._hidden[index]


def loader_of(dataset):
    return torch.utils.data.DataLoader(dataset, 10, shuffle=True)


def test_the_first_pass_is_filtered_by_class_where_the_data_set_tells_the_classes():
    dataset = ClustersData(1000, 10).train_dataloader().dataset
    rate, callback = keep_rates(loader_of(dataset))
    assert rate < 0.7
    assert (callback.instances.labels >= 0).all()
    assert keep_rates(loader_of(dataset), first_pass="keep")[0] == 1
    assert keep_rates(loader_of(NoLabels(dataset)))[0] == 1


def test_labels_that_the_user_gives_need_not_be_the_losses():
    dataset = NoLabels(ClustersData(1000, 10).train_dataloader().dataset)
    groups = torch.arange(1000) % 5
    callback = AutoAssistCallback(PrioritizedPolicy(0.1))
    data = AutoAssistDataModule(loader_of(dataset), budget=0.5, labels=groups)
    trainer(max_epochs=2, callbacks=[callback]).fit(Classifier(), datamodule=data)
    assert torch.equal(callback.instances.labels.long(), groups)
    assert len(callback.policy.classes.state_dict()["counts"]) == 5


def test_with_full_correction_the_weights_of_a_pass_add_up():
    """Over many passes the weights of a group of instances add up to how often it was a candidate, whatever its p."""
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(3000, generator=generator) < 0.1).long()
    scores = torch.rand(3000, generator=generator) ** 3 + labels * 0.5
    policy = PrioritizedPolicy(0.3, 0.05, correction=1)
    policy.update(Instances(labels=labels, probs=torch.ones(3000)), scores)

    def keep_probability(indices, pass_index):
        chosen = torch.from_numpy(indices)
        return policy.judge(scores[chosen], Instances(labels=labels[chosen])).numpy()

    sampler = ShrinkingBatchSampler(
        range(3000), 50, budget=1.0, reweighting="inverse_probability", keep_probability=keep_probability
    )
    groups, totals = (2 * labels + (scores > scores.median())).numpy(), np.zeros(4)
    for _ in range(20):
        for draw in sampler.draws():
            sampler.mark_consumed(draw)
            np.add.at(totals, groups[draw.indices], draw.weights)
    assert sampler.recent_keep_rate == pytest.approx(0.3, abs=0.01)
    expected = np.bincount(groups, minlength=4) / 3000
    assert totals / sampler.num_considered == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(
    ("policy", "floor", "class_mix", "first_pass"),
    [
        (PrioritizedPolicy(), 0.2, 0, "keep"),
        (PrioritizedPolicy(0.3), 0.12, 0, "keep"),
        (PrioritizedPolicy(0.1), 0.02, 0.2, "class_prior"),
        (PrioritizedPolicy("auto"), 0.02, 0.2, "class_prior"),
        (PrioritizedPolicy(LinearSchedule(0.6, 0.2)), 0.02, 0.2, "class_prior"),
        (PrioritizedPolicy(0.1, 0.05, class_mix=0, first_pass="keep"), 0.05, 0, "keep"),
    ],
    ids=["half", "at the limit", "few", "auto", "schedule", "given"],
)
def test_what_is_not_given_follows_the_keep_rate(policy, floor, class_mix, first_pass):
    assert policy.floor == pytest.approx(floor)
    assert (policy.class_mix, policy.first_pass) == (class_mix, first_pass)
    assert policy.required_columns == (("labels",) if class_mix else ())
