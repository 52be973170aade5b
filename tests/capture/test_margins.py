"""Margins of captured classifications are those of the logits, and to look at them changes nothing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_autoassist.capture.loss_capture import InstanceLossCapture
from lightning_autoassist.losses import margins as margins_module
from tests.capture.test_loss_capture_steps import needs_compiled_capture
from tests.helpers.observed_losses import margins_by_hand

B, C, T = 6, 5, 4

pytestmark = pytest.mark.filterwarnings("ignore:hand-written loss .* is taken for the mean of one loss an instance")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def logits_and_labels(*shape):
    return torch.randn(*shape).mul(3).requires_grad_(), torch.randint(0, C, shape[:1] + shape[2:])


def observed(compute, batch, **options):
    with InstanceLossCapture(**options).step(batch, B, margins=True) as step:
        output = compute()
    observation = step.observe(output)
    assert observation is not None, step.reason
    return observation


SINGLE = {
    "cross-entropy": F.cross_entropy,
    "a module": lambda logits, labels: nn.CrossEntropyLoss(weight=torch.arange(1.0, C + 1))(logits, labels),
    "smoothed": lambda logits, labels: F.cross_entropy(logits, labels, label_smoothing=0.2),
    "log-probabilities": lambda logits, labels: F.nll_loss(logits.log_softmax(1), labels),
    "user's own factors": lambda logits, labels: (
        F.cross_entropy(logits, labels, reduction="none") * torch.arange(1.0, B + 1)
    ).mean(),
    "a focal loss": lambda logits, labels: (
        (1 - logits.softmax(1).gather(1, labels[:, None])[:, 0]) ** 2
        * F.cross_entropy(logits, labels, reduction="none")
    ).mean(),
    "beside another loss": lambda logits, labels: (
        F.cross_entropy(logits, labels) + 0.1 * F.mse_loss(logits[:, 0], labels.float())
    ),
}


@pytest.mark.parametrize("compute", SINGLE.values(), ids=SINGLE)
def test_a_margin_is_the_labels_logit_less_the_largest_other(compute):
    logits, labels = logits_and_labels(B, C)
    observation = observed(lambda: compute(logits, labels), (logits, labels))
    margins, others = margins_by_hand(logits.detach(), labels)
    assert observation.margins.tolist() == pytest.approx(margins, abs=1e-5)
    assert observation.others.tolist() == others
    assert not observation.margins.requires_grad


@pytest.mark.parametrize("ignored", [[], [1, 4]])
def test_of_two_classes_the_other_one_is_the_strongest(ignored):
    logits, labels = torch.randn(B, 2).requires_grad_(), torch.randint(0, 2, (B,))
    labels[ignored] = -100
    observation = observed(lambda: F.cross_entropy(logits, labels), (logits, labels))
    margins, others = margins_by_hand(logits.detach(), labels.clamp(min=0))
    counts = (labels >= 0).tolist()
    told = [margin if is_counted else math.nan for margin, is_counted in zip(margins, counts, strict=True)]
    assert observation.margins.tolist() == pytest.approx(told, abs=1e-6, nan_ok=True)
    assert observation.others.tolist() == [
        other if is_counted else -1 for other, is_counted in zip(others, counts, strict=True)
    ]


NONE = {
    "probabilities": lambda logits, labels: F.cross_entropy(logits, logits.detach().softmax(1)),
    "two classifications": lambda logits, labels: F.cross_entropy(logits, labels) + F.cross_entropy(-logits, labels),
    "mixed labels": lambda logits, labels: (
        0.3 * F.cross_entropy(logits, labels) + 0.7 * F.cross_entropy(logits, labels.flip(0))
    ),
    "a regression": lambda logits, labels: F.mse_loss(logits[:, 0], labels.float()),
    "binary": lambda logits, labels: F.binary_cross_entropy_with_logits(logits, F.one_hot(labels, C).float()),
    "one class": lambda logits, labels: (
        F.cross_entropy(logits[:, :1], torch.zeros_like(labels)) + F.l1_loss(logits[:, 0], labels.float())
    ),
}


@pytest.mark.parametrize("compute", NONE.values(), ids=NONE)
def test_without_one_label_of_one_classification_there_is_no_margin(compute):
    logits, labels = logits_and_labels(B, C)
    observation = observed(lambda: compute(logits, labels), (logits, labels))
    assert (observation.margins, observation.others) == (None, None)


def test_nobody_is_told_who_does_not_ask():
    logits, labels = logits_and_labels(B, C)
    with InstanceLossCapture().step((logits, labels), B) as step:
        loss = F.cross_entropy(logits, labels)
    observation = step.observe(loss)
    assert (observation.margins, observation.others) == (None, None)


def test_a_target_that_does_not_count_has_no_margin():
    logits, labels = logits_and_labels(B, C)
    labels[2] = -100
    observation = observed(lambda: F.cross_entropy(logits, labels), (logits, labels))
    assert observation.margins.isnan().tolist() == [number == 2 for number in range(B)]
    assert observation.others[2] == -1


def mean_by_hand(logits, labels, counts):
    """Of each instance's rows that count; logits of shape (B, T, C)."""
    means = []
    for number in range(B):
        margins, _ = margins_by_hand(logits[number].detach(), labels[number])
        kept = [margin for margin, is_counted in zip(margins, counts[number], strict=True) if is_counted]
        means.append(sum(kept) / len(kept) if kept else math.nan)
    return pytest.approx(means, abs=1e-5, nan_ok=True)


@pytest.mark.parametrize("how", ["flattened", "second axis", "own mask", "time first"])
def test_of_several_rows_the_margin_is_the_mean_of_those_that_count(how):
    values, labels = torch.randn(B, T, C).mul(3).requires_grad_(), torch.randint(0, C, (B, T))
    counts = torch.rand(B, T) < 0.6
    counts[0], counts[1] = True, False
    ignored = labels.where(counts, -100)

    def compute():
        if how == "flattened":
            return F.cross_entropy(values.reshape(-1, C), ignored.reshape(-1))
        if how == "second axis":
            return F.cross_entropy(values.transpose(1, 2), ignored)
        if how == "time first":
            return F.cross_entropy(values.transpose(0, 1).reshape(-1, C), ignored.t().reshape(-1))
        rows = F.cross_entropy(values.reshape(-1, C), labels.reshape(-1), reduction="none")
        return (rows * counts.reshape(-1)).sum() / counts.sum()

    order = {"row_order": "time_major"} if how == "time first" else {}
    observation = observed(compute, (values, labels), **order)
    assert observation.margins.tolist() == mean_by_hand(values, labels, counts)
    assert observation.others is None


@pytest.mark.parametrize("shape", [(B, C), (B, C, 3, 2)])
def test_many_logits_are_looked_at_piece_by_piece(shape, monkeypatch):
    logits, labels = logits_and_labels(*shape)
    whole = observed(lambda: F.cross_entropy(logits, labels), (logits, labels))
    monkeypatch.setattr(margins_module, "_CACHED_NUMBERS", 2 * logits[:1].numel())
    pieces = observed(lambda: F.cross_entropy(logits, labels), (logits, labels))
    assert torch.equal(whole.margins, pieces.margins)
    assert (whole.others is None and pieces.others is None) or torch.equal(whole.others, pieces.others)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_asking_for_margins_changes_nothing(dtype, smoothing):
    logits, labels = logits_and_labels(B, C)
    logits, weights = logits.detach().to(dtype).requires_grad_(), torch.rand(B)
    ends = []
    for asks in (False, True):
        capture = InstanceLossCapture()
        with capture.step((logits, labels), B, weights=weights, margins=asks) as step:
            loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        observation = step.observe(loss)
        ends.append((loss, *torch.autograd.grad(loss, logits), observation.losses, observation.scores))
    assert all(map(torch.equal, *ends))
    assert observation.margins.dtype == torch.float32


def test_nothing_waits_for_the_device():
    """On the device "meta" nothing has a value that could be waited for."""
    logits, labels = (values.detach().to("meta") for values in logits_and_labels(B, C))
    logits.requires_grad_()
    with InstanceLossCapture().step([], B, margins=True) as step:
        loss = F.cross_entropy(logits, labels)
    observation = step.observe(loss)
    assert (observation.margins.shape, observation.margins.device.type) == ((B,), "meta")


def test_labels_that_are_no_property_of_the_instances_suggest_none():
    """As in contrastive losses, whose classes are the batch's own rows."""
    capture = InstanceLossCapture()
    for _ in range(20):
        logits, features = torch.randn(B, B).requires_grad_(), torch.randn(B, 3)
        with capture.step((features,), B, margins=True) as step:
            loss = F.cross_entropy(logits, torch.arange(B))
        observation = step.observe(loss)
    assert observation.others is None
    assert observation.margins.tolist() == pytest.approx(margins_by_hand(logits.detach(), torch.arange(B))[0], abs=1e-5)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_margins_of_scripted_losses():
    @torch.jit.script
    def scripted(logits, labels):
        return F.cross_entropy(logits, labels)

    logits, labels = logits_and_labels(B, C)
    observation = observed(lambda: scripted(logits, labels), (logits, labels))
    margins, others = margins_by_hand(logits.detach(), labels)
    assert observation.margins.tolist() == pytest.approx(margins, abs=1e-5)
    assert observation.others.tolist() == others


@needs_compiled_capture
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(B, C), (B, C, 3)])
def test_in_compiled_code_margins_are_the_same(shape, smoothing):
    logits, labels = logits_and_labels(*shape)

    def compute(logits, labels):
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)

    compiled = torch.compile(compute, backend="aot_eager", fullgraph=True)
    expected = observed(lambda: compute(logits, labels), (logits, labels))
    observation = observed(lambda: compiled(logits, labels), (logits, labels))
    torch.testing.assert_close(observation.margins, expected.margins)
    assert expected.margins.isfinite().all()
    if len(shape) == 2:
        assert torch.equal(observation.others, expected.others)
