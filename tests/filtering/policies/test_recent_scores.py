"""What a policy compares a score with: the scores of one pass at most, and a threshold that equals its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_autoassist.filtering.policies.infobatch import InfoBatchPolicy
from lightning_autoassist.filtering.policies.proportional import ProportionalPolicy
from lightning_autoassist.filtering.policies.recent_scores import MAX_RECENT, RecentScores, proportional_scale
from lightning_autoassist.filtering.policies.registry import POLICIES

RELATIVE = ("proportional", "infobatch", "selective_backprop", "class_quota")


def bisected_scale(scores, keep_rate, floor):
    """The same by trying."""
    low, high = 0.0, max(float(scores.max()) / floor, 1e-30)
    for _ in range(200):
        middle = (low + high) / 2
        mean = np.clip(scores.astype(np.float64) / middle, floor, 1).mean()
        low, high = (middle, high) if mean > keep_rate else (low, middle)
    return high


SCORES = {
    "even": lambda rng: rng.random(3000),
    "log-normal": lambda rng: np.exp(rng.normal(0, 1.5, 8192)),
    "half are zero": lambda rng: rng.random(1000) * (rng.random(1000) < 0.5),
    "two values": lambda rng: np.where(rng.random(500) < 0.3, 5.0, 0.01),
    "all alike": lambda rng: np.full(100, 2.0),
    "one": lambda rng: np.array([0.7]),
    "tiny": lambda rng: rng.random(300) * 1e-20,
    "some below zero": lambda rng: rng.normal(0.3, 1, 2000),
}


@pytest.mark.parametrize(("keep_rate", "floor"), [(0.5, 0.2), (0.35, 0.1), (0.1, 0.02), (0.9, 0.3)])
@pytest.mark.parametrize("make", SCORES.values(), ids=SCORES)
def test_the_scale_is_the_one_that_bisection_finds(make, keep_rate, floor):
    scores = make(np.random.default_rng(0)).astype(np.float32)
    scale = proportional_scale(scores, keep_rate, floor)
    mean = np.clip(scores.astype(np.float64) / scale, floor, 1).mean()
    reference = bisected_scale(scores, keep_rate, floor)
    assert mean == pytest.approx(np.clip(scores.astype(np.float64) / reference, floor, 1).mean(), abs=1e-6)
    if keep_rate - 0.01 < mean < keep_rate + 0.01:
        assert scale == pytest.approx(reference, rel=1e-4)


def test_scores_that_are_all_zero_are_kept_at_the_floor():
    assert ProportionalPolicy().keep_probability(torch.zeros(50)).tolist() == pytest.approx([0.2] * 50)


def test_recent_scores_are_the_last_ones():
    recent, values = RecentScores(size=100), torch.rand(777, generator=torch.Generator().manual_seed(0))
    for part in values.split(30):
        recent.add(part)
        assert len(recent) <= 100
    assert torch.equal(recent.values, values[-100:])


@pytest.mark.parametrize("name", RELATIVE)
def test_a_prediction_that_is_no_finite_number_spoils_no_comparison(name):
    clean, spoilt = POLICIES[name](), POLICIES[name]()
    assert torch.isfinite(spoilt.keep_probability(torch.tensor([float("nan"), float("inf"), 0.5, 1.0]))[2:]).all()
    clean.keep_probability(torch.tensor([0.5, 1.0]))
    scores = torch.rand(2000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(clean.keep_probability(scores), spoilt.keep_probability(scores))
    POLICIES[name]().keep_probability(torch.tensor([float("nan")]))


@pytest.mark.parametrize("name", RELATIVE)
@pytest.mark.parametrize("num_candidates", [1, 5, 1437, 10**6])
def test_the_window_is_one_pass_at_most(name, num_candidates):
    policy = POLICIES[name]()
    policy.prepare(num_candidates)
    scores = torch.rand(3 * MAX_RECENT)
    for part in scores.split(500):
        policy.keep_probability(part)
    recent = getattr(policy, "policy", policy).recent
    assert torch.equal(recent.values, scores[-min(num_candidates, MAX_RECENT) :])


def share_kept(num_instances, policy, chunk, num_passes=9):
    """Of each pass but the first, where losses fall by a quarter a pass and only those that are kept are seen anew."""
    rng = np.random.default_rng(0)
    losses = np.exp(rng.normal(0, 1, num_instances)).astype(np.float32)
    remembered, shares = losses.copy(), []
    for number in range(1, num_passes):
        num_kept, order = 0, rng.permutation(num_instances)
        for start in range(0, num_instances, chunk):
            candidates = order[start : start + chunk]
            probs = policy(remembered[candidates], remembered)
            kept = candidates[rng.random(len(candidates)) < probs]
            remembered[kept] = losses[kept] * 0.75**number
            num_kept += len(kept)
        shares.append(num_kept / num_instances)
    return np.mean(shares[1:])


@pytest.mark.parametrize("num_instances", [1437, 5000])
def test_infobatch_keeps_as_much_of_small_data_as_its_source_does_while_losses_fall(num_instances):
    # The source compares with the mean of all losses when a pass begins.
    source = share_kept(num_instances, lambda scores, every: np.where(scores < every.mean(), 0.5, 1), num_instances)
    policy = InfoBatchPolicy()
    policy.prepare(num_instances)
    ours = share_kept(num_instances, lambda scores, _: policy.keep_probability(torch.from_numpy(scores)).numpy(), 500)
    assert source == pytest.approx(0.67, abs=0.01)
    assert ours == pytest.approx(source, abs=0.03)
    unprepared = InfoBatchPolicy()
    before = share_kept(
        num_instances, lambda scores, _: unprepared.keep_probability(torch.from_numpy(scores)).numpy(), 500
    )
    assert before < source - 0.03
