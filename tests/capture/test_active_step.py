"""Others that compute losses of the same instances overlook the steps that are captured, and know their weights."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from lightning_autoassist import InstanceLossCapture
from lightning_autoassist.capture.active_step import active_steps, overlooked
from lightning_autoassist.capture.loss_scale import ScaledStep
from lightning_autoassist.capture.loss_weights import weights_in_force


def test_a_captured_step_overlooks_calls_where_it_is_told_to():
    assert active_steps() == []
    logits, target, weights = torch.zeros(2, 4, requires_grad=True), torch.tensor([0, 3]), torch.tensor([1.0, 3.0])
    with InstanceLossCapture(score="loss").step((logits, target), 2, weights=weights) as step:
        assert active_steps() == [step]
        assert weights_in_force() is weights
        with overlooked():
            plain = F.cross_entropy(logits, target)
        weighted = F.cross_entropy(logits, target)
    (of_plain,), (of_weighted,) = (torch.autograd.grad(loss, logits) for loss in (plain, weighted))
    torch.testing.assert_close(of_weighted, of_plain * weights[:, None])
    assert active_steps() == []


def test_a_step_that_is_watched_for_its_scale_leaves_weights_in_force_and_is_overlooked_too():
    logits, target, weights = torch.zeros(2, 4, requires_grad=True), torch.tensor([0, 3]), torch.tensor([1.0, 3.0])
    capture = InstanceLossCapture(score="loss")
    with capture.step((logits, target), 2, weights=weights) as outer:
        with ScaledStep(capture, (logits, target), 2, None) as inner:
            assert active_steps() == [outer, inner]
            assert weights_in_force() is weights
            with overlooked():
                plain = F.cross_entropy(logits, target)
        assert weights_in_force() is weights
    assert weights_in_force() is None
    (of_plain,) = torch.autograd.grad(plain, logits)
    torch.testing.assert_close(of_plain, (torch.full((2, 4), 0.25) - F.one_hot(target, 4)) / 2)
