"""What cannot be trained in blocks is said before training, or at its first step, and why."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

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


class Checkpointed(Blocks):
    """A block that backward calculates anew."""

    is_reentrant = False

    def forward(self, pictures):
        pictures = pictures.clone().requires_grad_()
        values = checkpoint(self.block2, self.block1(pictures), use_reentrant=self.is_reentrant)
        return self.classifier(self.block3(values).mean((2, 3)))


class ReentrantlyCheckpointed(Checkpointed):
    is_reentrant = True


class Searching(Blocks):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters())


class Penalized(Blocks):
    """What follows the classifier are its own parameters, in a penalty."""

    def training_step(self, batch, batch_idx):
        penalty = sum(parameter.square().sum() for parameter in self.parameters())
        return super().training_step(batch, batch_idx) + 1e-4 * penalty


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
        (Checkpointed, ["block2"], "after 'block2': it is repeated by activation checkpointing"),
        (ReentrantlyCheckpointed, ["block1"], r"write checkpoint\(\.\.\., use_reentrant=False\)"),
        (Searching, BLOCKS, "does not work with LBFGS, which searches along the gradient of one loss"),
        (Penalized, ["classifier"], "no parameters that are trained; leave out one"),
    ],
    ids=str,
)
def test_what_cannot_be_cut_is_refused(module, blocks, message):
    pl.seed_everything(0, verbose=False)
    with pytest.raises(ValueError, match=message):
        fit(module(), LocalLearningCallback(blocks), epochs=1)


def test_a_checkpoint_within_a_block_is_allowed():
    pl.seed_everything(0, verbose=False)
    plain, checkpointed = Blocks(), Checkpointed()
    checkpointed.load_state_dict(plain.state_dict())
    for module in (plain, checkpointed):
        pl.seed_everything(0, verbose=False)
        fit(module, LocalLearningCallback(["block1", "block3"]))
    for one, other in zip(plain.parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_penalty_on_parameters_is_no_layer_of_its_own():
    callback = LocalLearningCallback(mode="greedy")
    fit(Penalized(), callback, epochs=1)
    assert [row["ends_after"] for row in callback.describe()][-2:] == ["block3", "the loss"]


class Tempered(Blocks):
    """Its loss reads what ends a block."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))

    def training_step(self, batch, batch_idx):
        logits = self(batch[0])
        return F.cross_entropy(logits * self.scale.exp(), batch[1]) + 1e-3 * logits.square().mean()


@pytest.mark.parametrize("mode", ["chunked", "overlapping"])
def test_a_loss_may_read_the_output_of_a_block(mode):
    callback = LocalLearningCallback(["block1", "classifier"], "linear", mode=mode)
    fit(Tempered(), callback, epochs=3)
    assert callback._steps.programs.why_of_one_step is None
    assert set(callback._steps.losses) == {0, 1}


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
