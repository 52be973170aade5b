from __future__ import annotations

import io
from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.data import (
    DataLoader,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lightning_autoassist.filtering.sampling.candidates import MIN_RECENT, batches_per_epoch
from lightning_autoassist.filtering.sampling.index_batches import ShrinkingBatchSampler
from lightning_autoassist.filtering.sampling.pass_orders import pass_order
from lightning_autoassist.trainer_support.rng import rng_state


def thirds(indices, pass_index):
    """p of 1 for every third instance, 0.25 for the others; everything in the first pass."""
    return np.where((indices % 3 == 0) | (pass_index == 0), 1.0, 0.25)


def reference_batches(orders, batch_size, num_batches, keep_probability, seed):
    """The batch generator, one candidate at a time."""
    rng = np.random.Generator(np.random.PCG64(seed))
    batches, batch, weights = [], [], []
    for pass_index, order in enumerate(orders):
        for index in order:
            p = float(keep_probability(np.array([index]), pass_index)[0])
            if rng.random() < p:
                batch.append(index)
                weights.append(1 / p)
            if len(batch) == batch_size:
                batches.append((batch, weights))
                batch, weights = [], []
            if len(batches) == num_batches:
                return batches
    raise AssertionError("give the reference more passes")


@pytest.mark.parametrize("chunk_size", [1, 7, None, 64])
def test_equals_the_per_instance_reference(chunk_size):
    orders = [np.random.default_rng(number).permutation(50).tolist() for number in range(12)]

    class Orders:
        def __init__(self):
            self.passes = iter(orders)

        def __iter__(self):
            return iter(next(self.passes))

        def __len__(self):
            return 50

    sampler = ShrinkingBatchSampler(
        Orders(),
        8,
        budget=1.0,
        keep_probability=thirds,
        reweighting="inverse_probability",
        seed=3,
        chunk_size=chunk_size,
    )
    drawn = []
    for _ in range(4):
        for draw in sampler.draws():
            sampler.mark_consumed(draw)
            drawn.append((draw.indices.tolist(), draw.weights.tolist()))
    expected = reference_batches(orders, 8, 4 * 7, thirds, seed=3)
    assert [indices for indices, _ in drawn] == [indices for indices, _ in expected]
    assert [weights for _, weights in drawn] == [weights for _, weights in expected]


@pytest.mark.parametrize(
    ("num_instances", "batch_size", "budget", "drop_last", "expected"),
    [
        (60_000, 128, 0.6, False, 282),
        (60_000, 128, 0.6, True, 281),
        (50, 10, 0.6, False, 3),
        (50, 10, 0.6, True, 3),
        (103, 10, 1.0, False, 11),
        (103, 10, 1.0, True, 10),
        (10, 10, 0.01, True, 1),
    ],
)
def test_batches_per_epoch(num_instances, batch_size, budget, drop_last, expected):
    assert batches_per_epoch(num_instances, batch_size, budget, drop_last) == expected


def test_every_epoch_has_k_full_batches_and_the_stream_runs_on():
    sampler = ShrinkingBatchSampler(SequentialSampler(range(25)), 10, budget=0.8)
    epochs = [list(sampler) for _ in range(5)]
    assert [len(batches) for batches in epochs] == [2] * 5
    assert [len(batch) for batches in epochs for batch in batches] == [10] * 10
    assert [index for batches in epochs for batch in batches for index in batch] == list(range(25)) * 4


def test_keep_rate_lies_in_its_binomial_bound():
    sampler = ShrinkingBatchSampler(range(10_000), 100, budget=1.0, keep_probability=lambda i, k: np.full(len(i), 0.3))
    list(sampler)
    considered, kept = sampler.num_considered, sampler.num_kept
    assert abs(kept - 0.3 * considered) < 4 * np.sqrt(considered * 0.3 * 0.7)
    assert sampler.prob_sum == pytest.approx(0.3 * considered)


def test_informative_instances_are_kept_more_often():
    sampler = ShrinkingBatchSampler(range(3000), 50, budget=1.0, keep_probability=lambda i, k: thirds(i, k + 1))
    kept = np.concatenate([np.array(batch) for _ in range(4) for batch in sampler])
    assert (kept % 3 == 0).mean() == pytest.approx((1 / 3) / (1 / 3 + 2 / 3 * 0.25), abs=0.03)


def test_sum_weights_make_a_pass_add_up():
    """Over many passes the weights of a group of instances add up to how often it was a candidate."""
    sampler = ShrinkingBatchSampler(
        range(3000), 50, budget=1.0, reweighting="inverse_probability", keep_probability=thirds
    )
    totals = np.zeros(3)
    for _ in range(20):
        for draw in sampler.draws():
            sampler.mark_consumed(draw)
            np.add.at(totals, draw.indices % 3, draw.weights)
    assert totals / sampler.num_considered == pytest.approx([1 / 3] * 3, abs=0.01)


@pytest.mark.parametrize("correction", [1.0, 0.5, 0.3, 0.0])
def test_mean_weights_have_mean_one(correction):
    sampler = ShrinkingBatchSampler(
        range(3000), 50, budget=1.0, reweighting="normalized", correction=correction, keep_probability=thirds
    )
    weights = []
    for _ in range(20):
        for draw in sampler.draws():
            sampler.mark_consumed(draw)
            weights.append(draw.weights)
    assert np.mean(weights[200:]) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("reweighting", ["inverse_probability", "normalized"])
def test_weights_are_the_power_of_p_that_the_correction_says(reweighting):
    sampler = ShrinkingBatchSampler(
        range(3000), 50, budget=1.0, reweighting=reweighting, correction=0.5, keep_probability=thirds
    )
    for _ in range(20):
        for draw in sampler.draws():
            sampler.mark_consumed(draw)
    products = draw.weights * np.sqrt(draw.probs)
    assert draw.probs.min() < draw.probs.max()
    assert products == pytest.approx([products[0]] * 50)
    assert reweighting == "normalized" or products[0] == pytest.approx(1)


def test_unconfirmed_batches_come_first_in_the_next_epoch():
    sampler = ShrinkingBatchSampler(range(40), 10, budget=1.0)
    first = [draw.indices.tolist() for draw in sampler.draws()]  # asked ahead, none reached the model
    assert [draw.indices.tolist() for draw in sampler.draws()] == first


@pytest.mark.parametrize("interrupted_after", [0, 1, 5, 9, 10, 13])
@pytest.mark.parametrize("reweighting", ["none", "inverse_probability", "normalized", "normalized by half"])
def test_an_interrupted_stream_continues_exactly(interrupted_after, reweighting):
    """Two epochs' worth of batches, drawn three ahead, equal before and after going through a checkpoint."""

    def stream():
        generator = torch.Generator().manual_seed(1)
        source = RandomSampler(range(100), generator=generator)
        options = {"reweighting": reweighting.split()[0], "correction": 0.5 if "half" in reweighting else 1.0}
        return ShrinkingBatchSampler(source, 10, budget=1.0, keep_probability=thirds, seed=5, **options), generator

    def take(sampler, count):
        taken = []
        while len(taken) < count:
            for draw in sampler.draws():
                sampler.mark_consumed(draw)
                taken.append((draw.indices.tolist(), None if draw.weights is None else draw.weights.tolist()))
                if len(taken) == count:
                    break
        return taken

    whole, _ = stream()
    expected = take(whole, 30)

    sampler, generator = stream()
    before = take(sampler, interrupted_after)
    ahead = sampler.draws()
    for _ in range(3):
        next(ahead)
    file = io.BytesIO()
    torch.save((sampler.state_dict(), generator.get_state()), file)
    file.seek(0)
    state, generator_state = torch.load(file, weights_only=True)
    resumed, generator = stream()
    generator.set_state(generator_state)
    resumed.load_state_dict(state)
    assert before + take(resumed, 30 - interrupted_after) == expected


class Backwards(SequentialSampler):
    """A user's subclass of a sampler whose order is taken as a whole."""

    def __iter__(self):
        return reversed(range(len(self.data_source)))


SAMPLERS = {
    "random": lambda generator: RandomSampler(range(1000), generator=generator),
    "fewer": lambda generator: RandomSampler(range(1000), num_samples=300, generator=generator),
    "more": lambda generator: RandomSampler(range(1000), num_samples=2300, generator=generator),
    "replacement": lambda generator: RandomSampler(range(1000), replacement=True, generator=generator),
    "sequential": lambda generator: SequentialSampler(range(1000)),
    "subset": lambda generator: SubsetRandomSampler(list(range(5, 995, 2)), generator=generator),
    "tensor": lambda generator: SubsetRandomSampler(torch.arange(5, 995, 2), generator=generator),
    "weighted": lambda generator: WeightedRandomSampler(torch.rand(50), 1000, generator=generator),
    "subclass": lambda generator: Backwards(range(1000)),
}


@pytest.mark.parametrize("own", [False, True], ids=["global generator", "own generator"])
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_a_pass_is_what_iterating_the_sampler_gives(sampler, own):
    """The same indices from the same draws, so that every later draw is the same too."""
    found, expected = [], []
    for orders, order in ((found, pass_order), (expected, lambda sampler, count: [*islice(iter(sampler), count)])):
        torch.manual_seed(3)
        generator = torch.Generator().manual_seed(4) if own else None
        candidates = sampler(generator)
        orders += [list(map(int, order(candidates, len(candidates)))) for _ in range(3)]
        orders.append(torch.get_rng_state().tolist())
        orders.append(own and generator.get_state().tolist())
    assert found == expected


def test_orders_are_arrays_of_int64():
    for sampler in SAMPLERS.values():
        assert pass_order(sampler(None), 300).dtype == np.int64
        assert len(pass_order(sampler(None), 300)) == 300


def test_the_memory_of_the_mean_does_not_grow_with_the_number_of_chunks():
    """Weights stay those of the last N candidates."""
    n = 20 * MIN_RECENT
    probs = np.random.default_rng(1).uniform(0.1, 1, 3 * n)
    place = iter(range(3 * n))
    sampler = ShrinkingBatchSampler(
        range(n),
        1,
        budget=1.0,
        reweighting="normalized",
        keep_probability=lambda i, k: probs[[next(place) for _ in i]],
        chunk_size=1,
    )
    for draw in sampler.draws():
        sampler.mark_consumed(draw)
    assert sampler.num_considered > n
    assert len(sampler.state_dict()["recent"]) < 2 * MIN_RECENT
    expected = probs[sampler.num_considered - n : sampler.num_considered].mean()
    p = probs[sampler.num_considered - 1]
    assert draw.weights[0] == pytest.approx(expected / p, rel=1e-3)


def test_state_of_another_data_set_is_refused():
    state = ShrinkingBatchSampler(range(40), 10).state_dict()
    with pytest.raises(ValueError, match="40 candidates a pass, and this stream has 50"):
        ShrinkingBatchSampler(range(50), 10).load_state_dict(state)


def test_works_alone_as_a_batch_sampler_and_keeps_the_users_distribution():
    dataset = TensorDataset(torch.arange(20))
    weights = [1.0] * 10 + [0.0] * 10
    source = WeightedRandomSampler(weights, 20, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(dataset, batch_sampler=ShrinkingBatchSampler(source, 5, budget=0.5))
    batches = [batch[0] for batch in loader]
    assert len(batches) == 2
    assert torch.cat(batches).max() < 10


def test_set_epoch_counts_passes():
    seen = []

    class Epochs(list):
        def set_epoch(self, epoch):
            seen.append(epoch)

    source = Epochs(range(20))
    sampler = ShrinkingBatchSampler(source, 10, budget=0.5)
    for _ in range(5):
        list(sampler)
    assert seen == [0, 1, 2]


def test_global_rngs_stay_untouched():
    before = rng_state()
    list(ShrinkingBatchSampler(range(100), 10, keep_probability=thirds))
    after = rng_state()
    assert torch.equal(after["torch"], before["torch"])
    assert torch.equal(after["numpy"]["state"]["key"], before["numpy"]["state"]["key"])
    assert after["python"] == before["python"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget": 0.0}, r"budget must be in \(0, 1\], got 0.0"),
        ({"budget": 1.5}, r"budget must be in \(0, 1\], got 1.5"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        (
            {"batch_size": 101},
            "gives 100 instances a pass, fewer than one batch of 101; use batch_size=100 or less",
        ),
        ({"sampler": []}, "the data set is empty"),
        ({"sampler": iter([])}, "must have a length, and list_iterator has none"),
        ({"reweighting": "both"}, "reweighting must be one of none, inverse_probability, normalized, got 'both'"),
        ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ShrinkingBatchSampler(**{"sampler": range(100), "batch_size": 10, **arguments})


def test_indices_must_be_integers():
    with pytest.raises(TypeError, match="a sampler that yields integer indices"):
        list(ShrinkingBatchSampler(["a", "b"], 1))


def test_keeping_nothing_is_an_error_not_a_hang():
    sampler = ShrinkingBatchSampler(range(10), 5, keep_probability=lambda i, k: np.zeros(len(i)))
    with pytest.raises(RuntimeError, match="must return p in \\(0, 1\\] with a floor"):
        list(sampler)
