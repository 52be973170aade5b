"""Samplers that are long, endless or of no length."""

from __future__ import annotations

import random
from itertools import count

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import (
    DataLoader,
    RandomSampler,
    Sampler,
)

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule
from lightning_autoassist.filtering.sampling.index_batches import ShrinkingBatchSampler
from lightning_autoassist.filtering.sampling.order_pieces import OrderInPieces
from tests.helpers.loaders import Order, Remembering, Rows, fit, shuffled
from tests.helpers.ordinary import trainer
from tests.helpers.versions import resumes_exactly

pytestmark = pytest.mark.filterwarnings(
    "ignore:this run trains on", "ignore:max_steps=", "ignore:You defined a `validation_step` but have no"
)


class Uncountable(Sampler):
    """Never ends; draws each index as it is asked for, and counts how often it was."""

    def __init__(self, length, draw):
        self.length, self.draw, self.num_drawn = length, draw, 0

    def __iter__(self):
        while True:
            self.num_drawn += 1
            yield self.draw()

    def __len__(self):
        return self.length


@pytest.mark.parametrize("length", [10**6, 10**9, 10**12])
@pytest.mark.parametrize("update", ["sync", "async"])
def test_a_sampler_that_never_ends_is_read_as_far_as_it_is_needed(length, update):
    sampler = Uncountable(length, lambda: int(torch.randint(200, ())))
    loader = DataLoader(Rows(200), batch_size=10, sampler=sampler)
    run, module, data, callback = fit(loader, update=update, max_epochs=-1, max_steps=80)
    assert len(module.steps) == 80
    assert run.num_training_batches == -(-6 * length // 100)
    assert callback.summary()["keep_rate"] < 1
    stream = data.candidate_stream
    assert stream.pass_index == (stream.num_considered - 1) // 200
    assert sampler.num_drawn <= stream.num_considered + 200


def test_a_billion_draws_with_replacement():
    loader = DataLoader(
        Rows(200), batch_size=10, sampler=RandomSampler(range(200), replacement=True, num_samples=10**9)
    )
    _, module, _, callback = fit(loader, max_epochs=-1, max_steps=80)
    assert len(module.steps) == 80
    assert callback.summary()["keep_rate"] < 1


def test_a_sampler_without_a_length_is_filtered_where_the_steps_are_given():
    loader = DataLoader(Rows(200), batch_size=10, sampler=Order(shuffled(0, 200)))
    run, module, _, callback = fit(loader, data_options={"steps_per_epoch": 12})
    assert len(module.steps) == 5 * 12
    assert run.num_training_batches == 12
    assert sorted(index for step in module.steps[:20] for index in step) == list(range(200))  # the first pass
    assert callback.summary()["keep_rate"] < 1
    assert callback.summary()["saved_ratio"] == pytest.approx(0.4)


def test_an_iteration_that_is_shorter_than_n_is_a_pass():
    order = ShrinkingBatchSampler(Order(lambda: range(7)), 5, pass_size=100, num_batches=4)
    assert list(order) == [[0, 1, 2, 3, 4], [5, 6, 0, 1, 2], [3, 4, 5, 6, 0], [1, 2, 3, 4, 5]]
    assert order.pass_index == 2


RESUMABLE = {
    "own generator": lambda: RandomSampler(
        range(200), replacement=True, num_samples=10**9, generator=torch.Generator().manual_seed(5)
    ),
    "seeded from the global one": lambda: RandomSampler(range(200), replacement=True, num_samples=10**9),
    "the global one, at each index": lambda: Uncountable(10**9, lambda: int(torch.randint(200, ()))),
    "python's": lambda: Uncountable(10**9, lambda: random.randrange(200)),
    "no length": lambda: Order(shuffled(0, 200)),
    "its place": lambda: Order(lambda: (7 * index % 200 for index in count()), 10**9),
}


@resumes_exactly
@pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("make_sampler", RESUMABLE.values(), ids=RESUMABLE)
@pytest.mark.parametrize("update", ["sync", "async"])
def test_a_run_on_a_long_sampler_resumes_exactly(make_sampler, update, tmp_path):
    def run(folder, seed, **options):
        pl.seed_everything(seed, verbose=False)
        saving = pl.callbacks.ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
        sampler, module = make_sampler(), Remembering()
        steps = {"steps_per_epoch": 12} if getattr(sampler, "length", 1) is None else {}
        data = AutoAssistDataModule(DataLoader(Rows(200), 10, sampler=sampler), seed=3, **steps)
        callback = AutoAssistCallback(policy="autoassist", update=update)
        fitting = trainer(max_steps=90, max_epochs=-1, callbacks=[callback, saving], enable_checkpointing=True)
        fitting.fit(module, datamodule=data, **options)
        return module

    whole = run(tmp_path / "whole", 0)
    for step in (1, 33, 61):
        resumed = run(tmp_path / f"from {step}", 9, ckpt_path=tmp_path / "whole" / f"step={step}.ckpt")
        assert resumed.steps == whole.steps[step:]
        assert all(torch.equal(*pair) for pair in zip(resumed.parameters(), whole.parameters(), strict=True))


def test_too_long_a_replay_is_said(monkeypatch):
    monkeypatch.setattr("lightning_autoassist.filtering.sampling.order_pieces.MAX_READ_AGAIN", 10)
    order = OrderInPieces(range(100))
    order.read(20)
    resumed = OrderInPieces(range(100))
    resumed.load_state_dict(order.state_dict())
    with pytest.warns(UserWarning, match="had read 20 indices of range.*not the interrupted run's exact continuation"):
        assert resumed.read(2).tolist() == [0, 1]
