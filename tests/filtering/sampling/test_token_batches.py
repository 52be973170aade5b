from __future__ import annotations

import io
import math
from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.data import (
    RandomSampler,
    SubsetRandomSampler,
)

from lightning_autoassist import TokenBatchSampler
from lightning_autoassist.filtering.sampling.sharding import OwnedCandidates
from lightning_autoassist.filtering.sampling.token_batches import tokens_per_pass
from lightning_autoassist.filtering.sampling.token_budget import TokenBudget
from lightning_autoassist.filtering.sampling.token_lengths import longest_sequence


def padded_tokens(lengths):
    """Tokens of a batch with its padding: B times the sum of the longest of each of the C lengths, shape ``(B, C)``."""
    return len(lengths) * int(lengths.max(0).sum())


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
            sampler.mark_consumed(draw)
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
        out = np.concatenate([*seen, sampler.waiting])
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
    for reweighting in ("inverse_probability", "normalized"):
        sampler = TokenBatchSampler(
            range(3000),
            600,
            lengths,
            budget=1.0,
            reweighting=reweighting,
            keep_probability=lambda i, k: rounds(i, k + 1),
        )
        draws = drawn(sampler, 20 * len(sampler))
        indices, given = (np.concatenate(parts) for parts in zip(*((d.indices, d.weights) for d in draws), strict=True))
        if reweighting == "normalized":
            assert given.mean() == pytest.approx(1.0, abs=0.02)
        else:
            totals = np.bincount(indices % 3, given)
            assert totals / sampler.num_considered == pytest.approx([1 / 3] * 3, abs=0.01)


@pytest.mark.parametrize("interrupted_after", [0, 1, 5, 9, 17, 23])
@pytest.mark.parametrize("reweighting", ["none", "normalized"])
def test_an_interrupted_stream_continues_exactly(interrupted_after, reweighting):
    """Batches drawn three ahead, in the middle of a pool or at its end, go through a checkpoint as they are."""
    lengths = np.random.default_rng(1).integers(1, 30, (300, 2))

    def stream(seed):
        generator = torch.Generator().manual_seed(1)
        source = RandomSampler(range(300), generator=generator)
        options = {"budget": 1.0, "reweighting": reweighting, "keep_probability": rounds, "pool_batches": 4}
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
