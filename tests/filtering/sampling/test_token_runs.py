"""Batches by tokens in a Trainer."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import (
    DataLoader,
    Dataset,
    Subset,
)

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule
from lightning_autoassist.filtering.sampling.token_budget import TokenBudget
from tests.helpers.ordinary import trainer

VOCABULARY, PAD = 40, 0


class Sentences(Dataset):
    """Sequences of the tokens 1 to 39, of very different lengths; a token follows from the one before it, or not."""

    def __init__(self, num_instances=300, longest=31):
        generator = torch.Generator().manual_seed(0)
        self.sizes = (torch.rand(num_instances, generator=generator) ** 3 * (longest - 2)).long() + 3
        self.rows = []
        for number, size in enumerate(self.sizes.tolist()):
            start = int(torch.randint(1, VOCABULARY, (), generator=generator))
            chain = (start + torch.arange(size)) % (VOCABULARY - 1) + 1
            noise = torch.randint(1, VOCABULARY, (size,), generator=generator)
            self.rows.append(noise if number % 4 == 0 else chain)
        self.loads = []

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        self.loads.append(index)
        return index, self.rows[index]


def join(instances):
    indices, rows = zip(*instances, strict=True)
    return torch.tensor(indices), pad_sequence(list(rows), batch_first=True, padding_value=PAD)


class LanguageModel(pl.LightningModule):
    """The next token of each sequence, the loss over all tokens that are no padding."""

    def __init__(self, transposed=False):
        super().__init__()
        self.transposed = transposed
        self.embedding = nn.Embedding(VOCABULARY, 16, padding_idx=PAD)
        self.recurrent = nn.GRU(16, 16, batch_first=True)
        self.dropout = nn.Dropout(0.1)
        self.out = nn.Linear(16, VOCABULARY)

    def training_step(self, batch, batch_idx):
        _, tokens = batch
        hidden = self.dropout(self.recurrent(self.embedding(tokens[:, :-1]))[0])
        logits, target = self.out(hidden), tokens[:, 1:]
        if self.transposed:
            logits, target = logits.transpose(0, 1), target.t()
        return F.cross_entropy(
            logits.reshape(-1, VOCABULARY), target.reshape(-1), ignore_index=PAD, label_smoothing=0.1
        )

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.01)


class Text(pl.LightningDataModule):
    def __init__(self, dataset=None, **loader_options):
        super().__init__()
        self.dataset = Sentences() if dataset is None else dataset
        self.loader_options = {"batch_size": 32, "shuffle": True, "collate_fn": join, **loader_options}

    def train_dataloader(self):
        return DataLoader(self.dataset, **self.loader_options)


class Watch(pl.Callback):
    def __init__(self):
        self.batches = []
        self.num_epochs = 0

    def on_train_batch_end(self, run, module, outputs, batch, batch_idx):
        self.batches.append((batch[0].tolist(), batch[1].numel()))

    def on_train_epoch_end(self, run, module):
        self.num_epochs += 1


def fit(text, *, max_epochs=4, module=None, budget=0.6, max_tokens=200, lengths=None, plain=False, **options):
    pl.seed_everything(0, verbose=False)
    watch = Watch()
    callback = AutoAssistCallback(**{"policy": "proportional", **options})
    module = LanguageModel() if module is None else module
    data = AutoAssistDataModule(text, budget=budget, seed=0, max_tokens=max_tokens, lengths=lengths)
    run = trainer(max_epochs=max_epochs, callbacks=[callback, watch])
    run.fit(module, datamodule=data)
    return run, callback, watch, data


def sizes_of(instance):
    return len(instance[1])


@pytest.mark.parametrize("policy", ["uniform", "proportional", "infobatch", "autoassist"])
def test_real_runs_have_k_batches_within_the_budget(policy):
    text = Text()
    total = int(text.dataset.sizes.sum())
    run, callback, watch, _ = fit(text, policy=policy, lengths=text.dataset.sizes)
    k = math.ceil(0.6 * total / 200)
    assert run.num_training_batches == k
    assert run.global_step == 4 * k == len(watch.batches)
    assert max(numel for _, numel in watch.batches) <= 200
    assert len({len(indices) for indices, _ in watch.batches}) > 5
    summary = callback.summary()
    assert summary["instances_seen"] == sum(len(indices) for indices, _ in watch.batches)
    assert summary["saved_ratio"] == 1 - k / math.ceil(total / 200)
    assert (summary["keep_rate"] < 1) == (policy != "uniform")
    if policy != "uniform":
        assert callback.instances.seen.all()


def test_dropped_instances_are_not_loaded_and_chains_are_dropped():
    """What can be predicted is dropped more than noise, in batches of any size."""
    text = Text()
    *_, watch, _ = fit(text, lengths=text.dataset.sizes, max_epochs=25)
    trained = [index for indices, _ in watch.batches for index in indices]
    assert text.dataset.loads[: len(trained)] == trained
    late = np.bincount(trained[len(trained) // 2 :], minlength=300)
    short_enough = text.dataset.sizes.numpy() > 8
    noise = late[(np.arange(300) % 4 == 0) & short_enough].mean()
    chains = late[(np.arange(300) % 4 != 0) & short_enough].mean()
    assert noise > 1.3 * chains


def test_the_full_budget_keeps_to_the_tokens_too():
    text = Text()
    run, _, watch, _ = fit(text, policy="uniform", budget=1, lengths=text.dataset.sizes)
    assert run.num_training_batches == math.ceil(int(text.dataset.sizes.sum()) / 200)
    assert max(numel for _, numel in watch.batches) <= 200
    # An epoch is a little less than a pass, as padding takes its share.
    assert 0.8 < sum(len(indices) for indices, _ in watch.batches) / (4 * 300) < 1


@pytest.mark.parametrize("source", ["argument", "function", "attribute", "subset", "reading"])
def test_lengths_come_from_where_they_are(source, recwarn):
    dataset, lengths = Sentences(), None
    if source == "argument":
        lengths = dataset.sizes.numpy()
    elif source == "function":
        lengths = sizes_of
    elif source == "attribute":
        dataset.lengths = dataset.sizes.tolist()
    elif source == "subset":
        dataset.lengths = dataset.sizes
        dataset = Subset(dataset, range(0, 300, 2))
    inner = dataset.dataset if source == "subset" else dataset
    total = int(inner.sizes[::2].sum() if source == "subset" else inner.sizes.sum())
    pl.seed_everything(5, verbose=False)
    before = torch.get_rng_state()
    budget = TokenBudget(200, lengths)
    streams = [budget.sampler_maker(dataset, range(len(dataset)), range(len(dataset)))() for _ in range(2)]
    assert [len(stream) for stream in streams] == [math.ceil(0.6 * total / 200)] * 2
    assert torch.equal(torch.get_rng_state(), before)
    reads = source in ("function", "reading")
    assert len(inner.loads) == (300 if reads else 0)  # once, for two loaders
    said = [str(one.message) for one in recwarn if "are read once for their lengths" in str(one.message)]
    assert len(said) == reads
    recwarn.clear()


@pytest.mark.filterwarnings("ignore:all 300 instances of the data set are read once")
@pytest.mark.parametrize("transposed", [False, True])
def test_a_square_batch_is_told_apart(transposed):
    """As many instances as tokens: by its shape, rows of such a batch could be anybody's."""
    dataset = Sentences()
    dataset.sizes = torch.full((300,), 11)
    dataset.rows = [torch.randint(1, VOCABULARY, (11,)) for _ in range(300)]
    _, callback, watch, _ = fit(
        Text(dataset), module=LanguageModel(transposed), lengths=dataset.sizes, max_tokens=110, max_epochs=5
    )
    assert {(len(indices), numel) for indices, numel in watch.batches} == {(10, 110)}
    assert callback.summary()["keep_rate"] < 1


class Buckets:
    """A batch sampler of the user's own: batches of neighbours in length, in another order each epoch."""

    def __init__(self, sizes, batch_size=10):
        self.batches = sizes.argsort().split(batch_size)
        self.epochs = []

    def set_epoch(self, epoch):
        self.epochs.append(epoch)

    def __iter__(self):
        order = torch.randperm(len(self.batches), generator=torch.Generator().manual_seed(self.epochs[-1]))
        return iter(self.batches[number].tolist() for number in order)

    def __len__(self):
        return len(self.batches)


def test_a_batch_sampler_of_the_users_own_gives_the_candidates():
    dataset = Sentences()
    buckets = Buckets(dataset.sizes)
    text = Text(dataset, batch_size=1, shuffle=False, batch_sampler=buckets)
    buckets.epochs.append(0)  # plain Lightning tells batch samplers no epoch
    with pytest.warns(UserWarning, match="unfiltered.*pass max_tokens= to put instances of similar length together"):
        fit(text, max_tokens=None)
    buckets.epochs.clear()
    _, callback, watch, _ = fit(text, lengths=dataset.sizes)
    assert max(numel for _, numel in watch.batches) <= 200
    assert buckets.epochs == list(range(len(buckets.epochs)))
    assert len(buckets.epochs) > 2
    assert callback.summary()["keep_rate"] < 1


def test_what_cannot_be_packed_is_refused_before_training():
    text = Text()
    with pytest.raises(MisconfigurationException, match="are longer than max_tokens=20, the first of them at index"):
        fit(text, max_tokens=20, lengths=text.dataset.sizes)
    with pytest.raises(MisconfigurationException, match="holds 7 lengths, and the data set has 300"):
        fit(text, lengths=[3] * 7)
    with pytest.raises(ValueError, match="give max_tokens= as well"):
        AutoAssistDataModule(text, lengths=[3] * 300)
    with pytest.raises(ValueError, match="max_tokens must be at least 1, got -1"):
        AutoAssistDataModule(text, max_tokens=-1)


def test_a_loader_whose_batches_changed_begins_anew():
    text = Text()
    lengths = text.dataset.sizes
    data = AutoAssistDataModule(text, max_tokens=200, lengths=lengths, seed=0)
    watch, callback = Watch(), AutoAssistCallback(policy="uniform")
    run = trainer(max_epochs=2, callbacks=[callback, watch])
    run.fit(LanguageModel(), datamodule=data)
    stream = data.candidate_stream
    data._run.settings = replace(data._run.settings, tokens=TokenBudget(150, lengths))
    run.fit_loop.max_epochs = 3
    with pytest.warns(UserWarning, match="the train loader has changed, to 300 instances a pass"):
        run.fit(LanguageModel(), datamodule=data)
    assert data.candidate_stream is not stream
