from __future__ import annotations

import io
import math
from dataclasses import replace
from itertools import islice

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
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
)

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule, TokenBatchSampler
from lightning_autoassist.filtering.sampling.sharding import OwnedCandidates
from lightning_autoassist.filtering.sampling.token_batches import padded_tokens, tokens_per_pass
from lightning_autoassist.filtering.sampling.token_budget import TokenBudget
from lightning_autoassist.filtering.sampling.token_lengths import longest_sequence
from tests.helpers.ordinary import trainer


def random_lengths(rng, num_columns=1):
    """Lengths of many kinds: all alike, uniform, long-tailed."""
    num_instances = int(rng.integers(20, 400))
    kind = rng.integers(3)
    shape = (num_instances, num_columns)
    if kind == 0:
        return np.full(shape, rng.integers(1, 20))
    if kind == 1:
        return rng.integers(1, 60, shape)
    return np.minimum(np.ceil(rng.pareto(1.2, shape) * 5), 200).astype(np.int64) + 1


def rounds(indices, pass_index):
    """p of 1 for every third instance, 0.25 for the others; everything in the first pass."""
    return np.where((indices % 3 == 0) | (pass_index == 0), 1.0, 0.25)


def drawn(sampler, count):
    """Batches and weights, through as many epochs as they take."""
    taken = []
    while len(taken) < count:
        for draw in islice(sampler.draws(), count - len(taken)):
            sampler.confirm(draw)
            taken.append(draw)
    return taken


# ---- the packing


@pytest.mark.parametrize("num_columns", [1, 2, 3])
def test_no_batch_exceeds_its_tokens_and_every_epoch_has_k(num_columns):
    for seed in range(60):
        rng = np.random.default_rng(seed)
        lengths = random_lengths(rng, num_columns)
        total = int(lengths.sum())
        longest = int(lengths.sum(1).max())
        max_tokens = int(rng.integers(longest, max(longest + 1, total // 3)))
        if total <= max_tokens:
            continue
        budget = float(rng.uniform(0.2, 1.0))
        sampler = TokenBatchSampler(
            RandomSampler(range(len(lengths)), generator=torch.Generator().manual_seed(seed)),
            max_tokens,
            lengths,
            budget=budget,
            keep_probability=rounds,
            seed=seed,
            pool_batches=int(rng.integers(2, 20)),
        )
        for _ in range(3):
            batches = list(sampler)
            assert len(batches) == len(sampler) == max(1, math.ceil(budget * total / max_tokens - 1e-9))
            for batch in batches:
                assert 0 < len(batch) * lengths[batch].max(0).sum() <= max_tokens
                assert padded_tokens(lengths[batch]) == len(batch) * lengths[batch].max(0).sum()


def test_no_kept_instance_is_lost_or_given_twice():
    """With everything kept, n passes' instances are those drawn, those cut, those in the pool, and no others."""
    for seed in range(30):
        lengths = random_lengths(np.random.default_rng(seed))
        max_tokens = int(max(lengths.max(), lengths.sum() // 7))
        if lengths.sum() <= max_tokens:
            continue
        sampler = TokenBatchSampler(range(len(lengths)), max_tokens, lengths, budget=1.0, seed=seed)
        seen = [draw.indices for draw in drawn(sampler, 40)]
        out = np.concatenate([*seen, *(indices for indices, _ in sampler._ready), sampler._kept_indices])
        times = np.bincount(out, minlength=len(lengths))
        whole_passes, rest = divmod(sampler.num_considered, len(lengths))
        assert times.tolist() == [whole_passes + (index < rest) for index in range(len(lengths))]


def test_the_longest_and_the_shortest_do_not_wait_for_ever():
    lengths = np.array([1] + [10] * 300 + [50])
    sampler = TokenBatchSampler(range(302), 100, lengths, budget=1.0)
    batches = [draw.indices for draw in drawn(sampler, 20 * 31)]
    times = np.bincount(np.concatenate(batches), minlength=302)
    assert abs(times[0] - times[1]) <= 3
    assert abs(times[301] - times[1]) <= 3


def test_instances_of_similar_length_share_a_batch():
    """Sentences' lengths: few tokens are padding, an epoch is hardly less than a pass, and batches are full."""
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.lognormal(2.7, 0.6, 20_000).astype(np.int64) + 2, 100)
    sampler = TokenBatchSampler(RandomSampler(range(20_000)), 4096, lengths, budget=1.0)
    batches = list(sampler)
    trained = sum(lengths[batch].sum() for batch in batches)
    padded = sum(padded_tokens(lengths[batch, None]) for batch in batches)
    assert trained / padded > 0.95
    assert padded / (4096 * len(batches)) > 0.98
    assert 0.94 < trained / lengths.sum() <= 1
    at_random = rng.permutation(20_000)[: len(batches[0]) * 20].reshape(20, -1)
    assert (
        sum(lengths[batch].sum() for batch in at_random) / sum(padded_tokens(lengths[b, None]) for b in at_random) < 0.4
    )


def test_batches_come_in_random_order():
    lengths = np.arange(1, 1001)
    sampler = TokenBatchSampler(range(1000), 4000, lengths, budget=1.0)
    first = [lengths[draw.indices].mean() for draw in drawn(sampler, 30)]
    assert first != sorted(first)
    assert first != sorted(first, reverse=True)


# ---- what filters have to hold with batches of any size


def test_keep_rate_lies_in_its_binomial_bound():
    lengths = np.random.default_rng(0).integers(1, 50, 5000)
    sampler = TokenBatchSampler(
        range(5000), 500, lengths, budget=1.0, keep_probability=lambda i, k: np.full(len(i), 0.3)
    )
    drawn(sampler, 3 * len(sampler))
    considered, kept = sampler.num_considered, sampler.num_kept
    assert abs(kept - 0.3 * considered) < 4 * np.sqrt(considered * 0.3 * 0.7)


def test_sum_weights_make_a_pass_add_up_and_mean_weights_have_mean_one():
    lengths = np.random.default_rng(0).integers(1, 50, 3000)
    for weights in ("sum", "mean"):
        sampler = TokenBatchSampler(
            range(3000), 600, lengths, budget=1.0, weights=weights, keep_probability=lambda i, k: rounds(i, k + 1)
        )
        draws = drawn(sampler, 20 * len(sampler))
        indices, given = (np.concatenate(parts) for parts in zip(*((d.indices, d.weights) for d in draws), strict=True))
        if weights == "mean":
            assert given.mean() == pytest.approx(1.0, abs=0.02)
        else:
            totals = np.bincount(indices % 3, given)
            assert totals / sampler.num_considered == pytest.approx([1 / 3] * 3, abs=0.01)


@pytest.mark.parametrize("interrupted_after", [0, 1, 5, 9, 17, 23])
@pytest.mark.parametrize("weights", ["none", "mean"])
def test_an_interrupted_stream_continues_exactly(interrupted_after, weights):
    """Batches drawn three ahead, in the middle of a pool or at its end, go through a checkpoint as they are."""
    lengths = np.random.default_rng(1).integers(1, 30, (300, 2))

    def stream(seed):
        generator = torch.Generator().manual_seed(1)
        source = RandomSampler(range(300), generator=generator)
        options = {"budget": 1.0, "weights": weights, "keep_probability": rounds, "pool_batches": 4}
        return TokenBatchSampler(source, 400, lengths, seed=seed, **options), generator

    def plain(draw):
        return draw.indices.tolist(), None if draw.weights is None else draw.weights.tolist()

    whole, _ = stream(5)
    expected = [plain(draw) for draw in drawn(whole, 60)]
    first, generator = stream(5)
    found = [plain(draw) for draw in drawn(first, interrupted_after)]
    list(islice(first.draws(), 3))  # asked ahead, never confirmed
    file = io.BytesIO()
    torch.save((first.state_dict(), generator.get_state()), file)
    file.seek(0)
    state, generator_state = torch.load(file, weights_only=True)
    second, generator = stream(99)
    assert second.can_continue(state)
    second.load_state_dict(state)
    generator.set_state(generator_state)
    found += [plain(draw) for draw in drawn(second, 60 - interrupted_after)]
    assert found == expected


def test_a_state_of_other_batches_is_not_taken_for_its_own():
    state = TokenBatchSampler(range(100), 50, [5] * 100).state_dict()
    assert not TokenBatchSampler(range(100), 60, [5] * 100).can_continue(state)
    assert not TokenBatchSampler(range(100), 50, [6] * 100).can_continue(state)
    assert TokenBatchSampler(range(100), 50, [5] * 100).can_continue(state)


def test_shares_of_processes_have_equal_numbers_of_batches():
    """However unlucky a process is with the lengths of its instances."""
    lengths = np.where(np.arange(301) % 2, 1, 40)
    budget = TokenBudget(200, lengths)
    dataset, ks = range(301), set()
    for seed in range(20):
        shares = [OwnedCandidates(dataset, 301, rank, world_size=3, seed=seed) for rank in range(3)]
        streams = [budget.sampler_maker(dataset, dataset, share, budget=0.7)() for share in shares]
        ks |= {len(list(stream)) for stream in streams}
    assert ks == {math.ceil(0.7 * lengths.sum() * 101 / 301 / 200)}


def test_tokens_of_a_pass_are_those_of_the_named_instances():
    lengths = np.arange(1, 101)[:, None]
    assert tokens_per_pass(range(100), lengths) == 5050
    assert tokens_per_pass(SubsetRandomSampler([0, 1, 99]), lengths) == 103
    assert tokens_per_pass(range(50), lengths) == 2525  # half a pass of a sampler that does not say which half
    with pytest.raises(
        ValueError, match="1 of the instances are longer than max_tokens=60, the first of them at index 99"
    ):
        TokenBatchSampler(SubsetRandomSampler([*range(50), 99]), 60, lengths)
    assert len(TokenBatchSampler(SubsetRandomSampler(range(50)), 60, lengths, budget=1.0)) == math.ceil(1275 / 60)


@pytest.mark.parametrize(
    ("lengths", "max_tokens", "message"),
    [
        (
            [1, 2, 900, 3],
            100,
            "1 of the instances are longer than max_tokens=100, the first of them at index 2 with 900",
        ),
        ([1, 2, 3], 100, r"a pass has 6 tokens, no more than one batch of max_tokens=100; use max_tokens=3 or less"),
        ([1.5, 2.0], 2, "lengths must be whole numbers"),
        ([1, -2, 3], 2, "lengths must not be negative, got -2"),
        ([1, 2, 3], 0, "max_tokens must be at least 1, got 0"),
    ],
)
def test_wrong_lengths_are_refused(lengths, max_tokens, message):
    with pytest.raises(ValueError, match=message):
        TokenBatchSampler(range(len(lengths)), max_tokens, lengths)


@pytest.mark.parametrize(
    ("instance", "length"),
    [
        ((torch.zeros(7, dtype=torch.long), torch.zeros(9)), 9),
        ({"input_ids": [1, 2, 3], "label": 1, "text": "longer than that"}, 3),
        ([[1, 2], [3, 4, 5]], 3),
        (np.zeros((5, 80)), 5),
    ],
)
def test_the_longest_sequence_is_the_length(instance, length):
    assert longest_sequence(instance) == length


# ---- in a Trainer

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
    with pytest.raises(MisconfigurationException, match="lengths are of 7 instances, the data set has 300"):
        fit(text, lengths=[3] * 7)
    with pytest.raises(ValueError, match="give max_tokens= as well"):
        AutoAssistDataModule(text, lengths=[3] * 300)
    with pytest.raises(ValueError, match="max_tokens must be at least 1, got -1"):
        AutoAssistDataModule(text, max_tokens=-1)

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(range(100))

    data = AutoAssistDataModule(DataLoader(Stream(), batch_size=10), max_tokens=100, steps_per_epoch=3)
    run = trainer(max_epochs=1, callbacks=[AutoAssistCallback()])
    with pytest.raises(MisconfigurationException, match="max_tokens=100 is for data sets whose instances have indices"):
        run.fit(LanguageModel(), datamodule=data)


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
