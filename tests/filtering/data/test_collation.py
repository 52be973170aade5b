"""Collate functions that sort instances or leave some out: each row's loss goes to its own instance."""

from __future__ import annotations

import random

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence, pad_sequence
from torch.utils.data import DataLoader, Dataset, default_collate

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule
from lightning_autoassist.capture.row_matching import columns_of, columns_of_instances, match
from lightning_autoassist.filtering.data.collation import WatchedCollate
from tests.helpers.loaders import current_draw
from tests.helpers.ordinary import trainer
from tests.helpers.versions import resumes_exactly

pytestmark = pytest.mark.filterwarnings("ignore:this run trains on")

N, D, C = 60, 4, 3
UNREADABLE = (7, 8, 31)


class Sequences(Dataset):
    """Sequences of different lengths, with labels; ``text`` gives them as strings, ``equal`` each one twice."""

    def __init__(self, kind="tensors"):
        generator = torch.Generator().manual_seed(0)
        self.kind = kind
        self.lengths = torch.randint(2, 9, (N,), generator=generator).tolist()
        self.sequences = [torch.randn(length, D, generator=generator) for length in self.lengths]

    def __len__(self):
        return N

    def __getitem__(self, index):
        if self.kind == "unreadable" and index in UNREADABLE:
            return None
        label = index % C
        if self.kind == "text":
            return f"{'a ' * self.lengths[index]}{index}", str(label)
        if self.kind == "fixed":
            return {"x": self.sequences[index][0], "y": label, "index": index}
        return self.sequences[index], label, index


def drawn():
    return random.random() + np.random.rand()  # noqa: NPY002, as users do


def padded(instances):
    x, y, index = zip(*instances, strict=True)
    return pad_sequence(x, batch_first=True), torch.tensor(y), torch.tensor(index)


def sorted_by_length(instances):
    return padded(sorted(instances, key=lambda each: len(each[0]), reverse=True))


def sorted_in_place(instances):
    instances.sort(key=lambda each: len(each[0]), reverse=True)
    return padded(instances)


def readable(instances):
    return padded([each for each in instances if each is not None])


def readable_and_sorted(instances):
    return sorted_by_length([each for each in instances if each is not None])


def longer_than_three(instances):
    """Leaves out instances that are there."""
    return padded([each for each in instances if len(each[0]) > 3] or instances[:1])


def shuffled(instances):
    return padded([instances[place] for place in torch.randperm(len(instances)).tolist()])


def sorted_dicts(instances):
    return default_collate(sorted(instances, key=lambda each: -each["x"][0].item()))


def time_major(instances):
    x, y, index = zip(*sorted(instances, key=lambda each: -len(each[0])), strict=True)
    return pad_sequence(x), torch.tensor(y), torch.tensor(index)


def tokenised(instances):
    """Nothing of what it is given comes out as it was."""
    rows = sorted(instances, key=lambda each: -len(each[0]))
    tokens = [torch.tensor([ord(letter) / 100 for letter in text]) for text, _ in rows]
    index = torch.tensor([int(text.split()[-1]) for text, _ in rows])
    x = pad_sequence(tokens, batch_first=True).unsqueeze(2).expand(-1, -1, D)
    return x, torch.tensor([int(label) + 5 for _, label in rows]) - 5, index + 1000


def packed(instances):
    return pack_sequence([each[0] for each in instances], enforce_sorted=False), *padded(instances)[1:]


def noisy(instances):
    x, y, index = sorted_by_length(instances)
    return x + torch.randn_like(x) + drawn(), y, index


class Watching(pl.LightningModule):
    """Notes which instances the draw says the rows are, and which they are."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(D, C)
        self.said, self.are, self.sizes = [], [], []

    def training_step(self, batch, batch_idx):
        x, y, index = batch.values() if isinstance(batch, dict) else batch
        if not isinstance(x, torch.Tensor):
            x = pad_packed_sequence(x, batch_first=True)[0]
        draw = current_draw(self.trainer)
        if draw is not None and draw.knows_rows:
            self.said.append(draw.indices.tolist())
            self.are.append((index % 1000).tolist())
        self.sizes.append(len(y))
        x = x if x.ndim == 2 else x.sum(1 if x.shape[0] == len(y) else 0)
        return F.cross_entropy(self.net(x), y % C)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def run(collate, kind="tensors", *, batch_size=6, max_epochs=4, policy="proportional", budget=0.6, **options):
    pl.seed_everything(0, verbose=False)
    module = Watching()
    loader = DataLoader(Sequences(kind), batch_size, shuffle=True, collate_fn=collate, **options)
    callback = AutoAssistCallback(policy=policy)
    data = AutoAssistDataModule(loader, budget=budget)
    trainer(max_epochs=max_epochs, callbacks=[callback]).fit(module, datamodule=data)
    return module, callback, loader


def rotated(instances):
    """Labels drawn anew are, now and then, a permutation of those of the instances."""
    x, y, index = padded(instances)
    turns = torch.randint(0, C, y.shape)
    return x + 1 + turns[:, None, None], turns, index + 1000


COLLATES = {
    "rotated": (rotated, "tensors"),
    "in order": (padded, "tensors"),
    "sorted": (sorted_by_length, "tensors"),
    "sorted in place": (sorted_in_place, "tensors"),
    "shuffled": (shuffled, "tensors"),
    "dictionaries": (sorted_dicts, "fixed"),
    "time-major": (time_major, "tensors"),
    "tokenised": (tokenised, "text"),
    "packed": (packed, "tensors"),
    "noisy": (noisy, "tensors"),
    "unreadable": (readable, "unreadable"),
    "unreadable and sorted": (readable_and_sorted, "unreadable"),
    "some left out": (longer_than_three, "tensors"),
}


@pytest.mark.parametrize("name", COLLATES)
@pytest.mark.parametrize("batch_size", [2, 6])
def test_each_row_is_the_instance_that_the_draw_says(name, batch_size):
    module, callback, loader = run(*COLLATES[name], batch_size=batch_size)
    assert module.said == module.are
    assert len(module.said) == len(module.sizes)
    assert loader.collate_fn is COLLATES[name][0]
    assert callback.summary()["keep_rate"] < 1
    assert callback.summary()["instances_seen"] == sum(module.sizes)


@pytest.mark.parametrize("name", ["sorted in place", "tokenised", "unreadable and sorted"])
@pytest.mark.parametrize("persistent_workers", [True, False])
def test_workers_tell_the_order_too(name, persistent_workers):
    module, *_ = run(*COLLATES[name], num_workers=2, persistent_workers=persistent_workers, max_epochs=2)
    assert module.said == module.are
    assert module.sizes


def test_unreadable_instances_are_never_learnt_from():
    _, callback, _ = run(readable, "unreadable", max_epochs=6)
    seen = callback.instances.seen
    assert not seen[list(UNREADABLE)].any()
    assert seen.sum() == N - len(UNREADABLE)


def test_scores_and_weights_follow_a_sort():
    """Equal to a run whose collate function keeps the order, as the step does not depend on it."""
    _, kept, _ = run(padded, policy="infobatch", max_epochs=3)
    module, followed, _ = run(sorted_by_length, policy="infobatch", max_epochs=3)
    torch.testing.assert_close(followed.instances.scores, kept.instances.scores)
    assert torch.equal(followed.instances.labels, torch.arange(N, dtype=torch.int32) % C)
    assert module.said == module.are


def test_the_users_hooks_see_the_batch_of_the_collate_function():
    seen = []

    class Hooked(Watching):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            seen.append(type(batch))
            return batch

    pl.seed_everything(0, verbose=False)
    loader = DataLoader(Sequences(), 6, collate_fn=sorted_by_length)
    run_of_it = trainer(max_epochs=1, callbacks=[AutoAssistCallback()])
    run_of_it.fit(Hooked(), datamodule=AutoAssistDataModule(loader, budget=0.6))
    assert set(seen) == {tuple}


class Unwatched(AutoAssistDataModule):
    needs_order = False


def augmented(instances):
    """Nothing comes out as it went in, and all global random generators are drawn from."""
    x, y, index = padded(instances)
    return x + torch.randn_like(x) + drawn(), y + 0 * index, index + 1000


@pytest.mark.parametrize("num_workers", [0, 2])
def test_looking_draws_from_no_global_random_generator(num_workers):
    def parameters(data_module):
        pl.seed_everything(0, workers=True, verbose=False)
        module = Watching()
        loader = DataLoader(Sequences(), 6, shuffle=True, collate_fn=only_augmented, num_workers=num_workers)
        run_of_it = trainer(max_epochs=3, callbacks=[AutoAssistCallback()])
        run_of_it.fit(module, datamodule=data_module(loader, budget=0.6))
        return torch.cat([values.flatten() for values in module.parameters()])

    assert torch.equal(parameters(AutoAssistDataModule), parameters(Unwatched))


def only_augmented(instances):
    x, y, index = augmented(instances)
    return x, y + 300, index + torch.randint(0, 2, (1,)) * 1000


@pytest.mark.parametrize("collate", [augmented, sorted_by_length])
def test_unfiltered_runs_equal_plain_ones(collate):
    def plain():
        pl.seed_everything(0, verbose=False)
        module = Plain()
        loader = DataLoader(Sequences(), 6, shuffle=True, collate_fn=collate)
        trainer(max_epochs=2).fit(module, loader)
        return module

    class Plain(Watching):
        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.net(batch[0].sum(1)), batch[1])

    module, *_ = run(collate, policy="uniform", budget=1, max_epochs=2)
    assert all(map(torch.equal, module.parameters(), plain().parameters()))


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@resumes_exactly
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize(("collate", "kind"), [(sorted_by_length, "tensors"), (readable_and_sorted, "unreadable")])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, collate, kind):
    def fit(folder, ckpt_path=None):
        pl.seed_everything(0, verbose=False)
        module = Watching()
        saving = pl.callbacks.ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        loader = DataLoader(Sequences(kind), 6, shuffle=True, collate_fn=collate)
        callback = AutoAssistCallback(policy="infobatch")
        run = trainer(max_epochs=5, callbacks=[callback, saving], enable_checkpointing=True)
        run.fit(module, datamodule=AutoAssistDataModule(loader, budget=0.6), ckpt_path=ckpt_path)
        return module, callback.instances

    whole, remembered = fit(tmp_path)
    for step in (3, 15):
        resumed, again = fit(tmp_path / f"from {step}", tmp_path / f"step={step}.ckpt")
        assert all(map(torch.equal, whole.parameters(), resumed.parameters()))
        assert torch.equal(remembered.scores, again.scores)


# ---- matching


def told(instances, batch, num_rows=None):
    num_rows = len(instances) if num_rows is None else num_rows
    return match(columns_of(batch, num_rows), columns_of_instances(instances))


def test_equal_labels_fool_neither_way():
    x = torch.arange(12.0).view(6, 2)
    instances = [(x[place], label) for place, label in enumerate([0, 0, 1, 1, 0, 1])]
    swapped = default_collate([instances[place] for place in (1, 0, 2, 3, 4, 5)])
    assert told(instances, swapped).rows.tolist() == [1, 0, 2, 3, 4, 5]
    assert told(instances, default_collate(instances)).is_identity
    assert told(instances, [swapped[1]]).is_identity  # all that can be seen is in order
    assert told(instances, torch.tensor([1, 0, 0, 1, 0, 1])).rows is None  # and here it is not, but which it is?
    assert told(instances, torch.zeros(6)) is None


def test_equal_instances_take_their_places_in_turn():
    instances = [(torch.zeros(2), 0), (torch.ones(2), 1), (torch.zeros(2), 0), (torch.ones(2) * 2, 1)]
    batch = default_collate([instances[place] for place in (3, 0, 2, 1)])
    assert told(instances, batch).rows.tolist() == [3, 0, 2, 1]


def test_mixed_pairs_are_in_order():
    instances = [(torch.randn(3), label) for label in range(6)]
    x, y = default_collate(instances)
    order = torch.tensor([1, 0, 3, 2, 5, 4])
    assert told(instances, (0.7 * x + 0.3 * x[order], y, y[order], 0.7)).is_identity
    assert told(instances, (0.7 * x + 0.3 * x[order], y[order], y, 0.7)).is_identity
    assert told(instances, (x, x[order])).is_identity


def test_random_columns_say_nothing():
    instances = [(torch.randn(3), place % 3) for place in range(12)]
    x, _ = default_collate(instances)
    drawn = torch.tensor([0, 0, 0, 2, 2, 2, 2, 2, 1, 1, 0, 0])
    assert told(instances, (x * 2, drawn)) is None


def test_a_collate_function_that_fails_on_one_instance_is_not_asked_again():
    def pairs(instances):
        if len(instances) < 2:
            raise ValueError("a batch norm needs two")
        return torch.stack([torch.tensor(len(each) * 2.0) for each in instances])

    collated = WatchedCollate(pairs)(["a", "bb", "ccc"])
    assert collated.rows is None
    assert collated.batch.tolist() == [2, 4, 6]


def test_the_users_error_comes_through():
    def broken(instances):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        WatchedCollate(broken)([1, 2])


def test_looking_ends():
    collate = WatchedCollate(default_collate)
    for number in range(20):
        collate([(torch.randn(3), number), (torch.randn(3), number + 1)])
        if collate.is_settled:
            break
    assert number == 15  # two instances tell one bit a batch
    wide = WatchedCollate(default_collate)
    settled = [wide([(torch.randn(3), each) for each in range(32)]).is_settled for _ in range(4)]
    assert settled == [False, False, True, True]
