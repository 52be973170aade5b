"""Others that compute losses of the same instances find the step that is captured, and its weights."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from lightning_autoassist import InstanceLossCapture
from lightning_autoassist.capture.active_step import active_step, overlooked, weights_of


def test_a_captured_step_is_found_and_overlooks_calls_where_it_is_told_to():
    assert active_step() is None
    logits, target, weights = torch.zeros(2, 4, requires_grad=True), torch.tensor([0, 3]), torch.tensor([1.0, 3.0])
    with InstanceLossCapture(score="loss").step((logits, target), 2, weights=weights) as step:
        assert active_step() is step
        assert weights_of(active_step()) is weights
        with overlooked(active_step()):
            plain = F.cross_entropy(logits, target)
        weighted = F.cross_entropy(logits, target)
    (of_plain,), (of_weighted,) = (torch.autograd.grad(loss, logits) for loss in (plain, weighted))
    torch.testing.assert_close(of_weighted, of_plain * weights[:, None])
    assert active_step() is None
