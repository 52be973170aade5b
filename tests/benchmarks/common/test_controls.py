from __future__ import annotations

import math

import pytest
import torch

from benchmarks.common.controls import ControlledData, PassesSampler, logit_correction, undersampled
from benchmarks.common.jobs import Method
from benchmarks.rare_events.data import EventData
from lightning_autoassist.demo.rare_events import Events, EventSplit


def events(num, num_rare):
    labels = torch.zeros(num, dtype=torch.int64)
    labels[:num_rare] = 1
    return Events(torch.arange(float(num))[:, None], labels)


def data_of(num, num_rare, batch_size):
    return EventData(EventSplit(events(num, num_rare), events(num, num_rare)), batch_size)


@pytest.mark.parametrize("name", ["class_balanced_sampler", "undersampled"])
def test_an_epoch_has_the_batches_of_the_budget_and_each_of_them_is_full(name):
    data = ControlledData(data_of(1000, 50, 32), Method(name), budget=0.25)
    for _ in range(2):
        assert [len(labels) for _, labels in data.train_dataloader()] == [32] * math.ceil(0.25 * 1000 / 32)


def test_the_balanced_sampler_draws_classes_equally_often():
    torch.manual_seed(0)
    loader = ControlledData(data_of(20_000, 200, 100), Method("class_balanced_sampler"), 1.0).train_dataloader()
    share = torch.cat([labels for _, labels in loader]).float().mean().item()
    assert share == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(20_000))


def test_undersampling_keeps_every_positive_and_ten_others_for_each():
    torch.manual_seed(0)
    labels = events(5000, 40).labels
    rows = undersampled(labels, ratio=10)
    assert len(rows.unique()) == len(rows) == 440
    assert labels[rows].sum() == 40
    assert len(undersampled(labels, ratio=1000)) == 5000  # there are no more


def test_passes_go_on_over_epochs():
    sampler = PassesSampler(torch.arange(5), num_draws=3)
    draws = [index for _ in range(5) for index in sampler]
    assert [sorted(draws[i : i + 5]) for i in (0, 5, 10)] == [[0, 1, 2, 3, 4]] * 3


def test_the_correction_gives_the_true_odds_back():
    labels = events(5000, 40).labels
    correction = logit_correction(Method("undersampled:ratio=10"), labels)
    odds_of_sample = 40 / 400
    assert odds_of_sample * math.exp(correction) == pytest.approx(40 / 4960)
    assert logit_correction(Method("class_balanced_sampler"), labels) == 0
    assert logit_correction(Method("full"), labels) == 0
    assert logit_correction(Method("undersampled:ratio=1000"), labels) == 0
