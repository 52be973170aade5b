"""What cannot be trained in blocks is said before training, or at its first step, and why."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F

from lightning_autoassist import LocalLearningCallback
from tests.helpers.local_learning import BLOCKS, Blocks, fit, made


class Tuple(Blocks):
    """A block that gives two tensors."""

    def __init__(self):
        super().__init__()
        self.pair = Pair()

    def forward(self, pictures):
        values, _ = self.pair(self.block1(pictures))
        return self.classifier(self.block3(self.block2(values)).mean((2, 3)))


class Pair(nn.Module):
    def forward(self, values):
        return values, 2 * values


class Twice(Blocks):
    """A block that is called twice."""

    def forward(self, pictures):
        values = self.block2(self.block2(self.block1(pictures)))
        return self.classifier(self.block3(values).mean((2, 3)))


class Skipping(Blocks):
    """A U: the first block's output is needed at the end."""

    def forward(self, pictures):
        first = self.block1(pictures)
        values = self.block3(self.block2(first))
        return self.classifier(values.mean((2, 3)) + first.mean((2, 3)).repeat(1, 2))


class Scripted(Blocks):
    """A loss whose operations cannot be seen."""

    def training_step(self, batch, batch_idx):
        return Hidden.apply(self(batch[0]), batch[1])


class Hidden(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, target):
        ctx.save_for_backward(logits, target)
        return F.cross_entropy(logits, target)

    @staticmethod
    def backward(ctx, gradient):
        logits, target = ctx.saved_tensors
        return gradient * (logits.softmax(1) - F.one_hot(target, 4)) / len(logits), None


class Manual(Blocks):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


@pytest.mark.parametrize(
    ("module", "blocks", "message"),
    [
        (
            Skipping,
            ["block2"],
            r"after 'block2': parameters before it \(block1\.\S+, .*\) reach the loss on another way",
        ),
        (Skipping, 4, r"blocks=4 asks for 4 blocks .* can be cut into 3. It can be cut after block1.2, block1;"),
        (Blocks, ["blok2"], "no submodule of this name; the nearest are block2"),
        (Tuple, ["pair"], "after 'pair': it does not give one tensor"),
        (Twice, ["block2"], "after 'block2': it is called more than once in a step"),
        (Scripted, BLOCKS, "No loss was captured that blocks could be trained by"),
        (Blocks, ["block1.1", "block1.2"], r"no parameters that are trained; leave out one"),
        (Manual, BLOCKS, "automatic_optimization=False"),
    ],
    ids=str,
)
def test_what_cannot_be_cut_is_refused(module, blocks, message):
    pl.seed_everything(0, verbose=False)
    with pytest.raises(ValueError, match=message):
        fit(module(), LocalLearningCallback(blocks), epochs=1)


def test_a_skip_connection_within_a_block_is_no_leak():
    callback = LocalLearningCallback(["block2", "block3"])
    module = made(skip=True)
    with pytest.raises(ValueError, match="parameters before it"):
        fit(module, callback, epochs=1)
    fit(made(skip=True), LocalLearningCallback(["block1", "block3"]), epochs=1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"blocks": 1}, ValueError, "blocks must be at least 2, got 1; one block is plain training"),
        ({"blocks": "block1"}, TypeError, r"write \['block1'\]"),
        ({"heads": "cnn"}, ValueError, "heads must be one of linear, conv, mlp_sr, got 'cnn'"),
        ({"mode": "chunk"}, ValueError, "write mode='chunked'"),
        ({"mode": "greedy", "blocks": 3}, ValueError, "leave blocks out"),
        ({"fine_tune": 2}, ValueError, "fine_tune must be in"),
        ({"window": 1}, ValueError, "window must be at least 2"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        LocalLearningCallback(**options)


def test_fine_tuning_needs_a_length():
    with pytest.raises(ValueError, match="set max_epochs or max_steps"):
        fit(made(), LocalLearningCallback(BLOCKS, fine_tune=0.2), epochs=-1)
