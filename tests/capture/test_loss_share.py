"""How much of the returned loss was captured, what was missed, and what follows from it."""

from __future__ import annotations

import warnings

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule, diagnose
from lightning_autoassist.capture.autograd_graph import knows_shapes
from lightning_autoassist.capture.loss_capture import InstanceLossCapture
from tests.capture.test_loss_capture import _seeded  # noqa: F401, the fixture
from tests.helpers.ordinary import trainer

B, C, N = 8, 5, 64

pytestmark = pytest.mark.skipif(
    not knows_shapes(torch.zeros(1, requires_grad=True).sum()), reason="this torch's graph tells no shapes"
)


class Module(pl.LightningModule):
    """A network whose loss is a function of its own."""

    def __init__(self, loss):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, C))
        self.loss = loss

    def training_step(self, batch, batch_idx):
        return self.loss(self.net, *batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


def hot(y):
    return F.one_hot(y, C).float()


def dice(logits, y):
    probs = logits.softmax(1)
    return (1 - 2 * (probs * hot(y)).sum(0) / (probs.sum(0) + hot(y).sum(0) + 1)).mean()


def labelled(net, x, y):
    return F.cross_entropy(net(x)[y != 0], y[y != 0])


def masked(net, x, y):
    """The main loss has fewer rows than the batch."""
    return labelled(net, x, y) + 0.1 * F.mse_loss(net(x), net(x).detach() + 1)


def mostly_dice(net, x, y):
    return 20 * dice(net(x), y) + 0.1 * F.cross_entropy(net(x), y)


def vicreg(net, x, y):
    """Variance and covariance are no instances'."""
    one, other = net(x), net(x + 0.1)
    centered = one - one.mean(0)
    variance = F.relu(1 - (one.var(0) + 1e-4).sqrt()).mean()
    covariance = (centered.t() @ centered / len(x)).square().sum()
    return 0.1 * F.mse_loss(one, other) + 25 * variance + covariance


def negative(net, x, y):
    """The parts cancel in value, not in gradient."""
    return 0.1 * F.cross_entropy(net(x), y) - net(x).softmax(1).mean(0).square().sum().log()


def undetermined(net, x, y):
    """Neither a loss of torch nor a mean or sum."""
    return 0.01 * F.cross_entropy(net(x), y) + net(x).logsumexp((0, 1))


def symmetric(net, x, y):
    reverse = -(net(x).softmax(1) * hot(y).clamp(1e-4).log()).sum(1).mean()
    return 0.1 * F.cross_entropy(net(x), y) + reverse


def penalized(net, x, y):
    return F.cross_entropy(net(x), y) + 10 * sum(weight.square().sum() for weight in net.parameters())


def with_a_constant(net, x, y):
    return F.cross_entropy(net(x), y) + 1000.0


def with_some_dice(net, x, y):
    return F.cross_entropy(net(x), y) + 2 * dice(net(x), y)


def autoencoder(net, x, y):
    mean, log_variance = net(x)[:, :2], net(x)[:, 2:4]
    divergence = -0.5 * torch.sum(1 + log_variance - mean.square() - log_variance.exp())
    return F.mse_loss(mean + log_variance, x[:, :2], reduction="sum") + divergence


MINOR = {
    masked: "cross_entropy at test_loss_share.py",
    mostly_dice: "hand-written loss at test_loss_share.py",
    vicreg: "hand-written loss at test_loss_share.py",
    negative: "hand-written loss at test_loss_share.py",
    undetermined: "a term that is neither",
}
WHOLE = [symmetric, penalized, with_a_constant, autoencoder]


def batch(size=B):
    return torch.randn(size, 3), torch.arange(size) % C


def captured(loss, capture=None, weights=None):
    module, (x, y) = Module(loss), batch()
    capture = capture or InstanceLossCapture()
    with capture.step((x, y), B, weights=weights, module=module) as step:
        root = module.training_step((x, y), 0)
    return capture, step.observe(root), step.reason


def loader(shuffle=True):
    x, y = batch(N)
    return DataLoader(TensorDataset(x, y), batch_size=B, shuffle=shuffle)


def fit(loss, epochs=4, shuffle=True, **options):
    """Filtered, with the warnings of ours."""
    pl.seed_everything(0, verbose=False)
    callback = AutoAssistCallback(**options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(max_epochs=epochs, callbacks=[callback]).fit(
            Module(loss), datamodule=AutoAssistDataModule(loader(shuffle), budget=0.6)
        )
    ours = [str(each.message) for each in caught if "lightning_autoassist" in each.filename]
    ours += [str(each.message) for each in caught if "Missed" in str(each.message) or "beside" in str(each.message)]
    return callback, list(dict.fromkeys(ours))


@pytest.mark.parametrize("loss", MINOR, ids=lambda loss: loss.__name__)
def test_a_minor_part_does_not_decide(loss):
    capture, observation, reason = captured(loss)
    assert observation is None
    assert capture.share.ratio < 0.5
    assert not capture.has_other_terms  # what is not filtered needs no other weights
    assert "Only" in reason
    assert MINOR[loss] in reason.split("Missed: ")[1]
    assert "cross_entropy at" in reason or "mse_loss at" in reason


@pytest.mark.parametrize("loss", WHOLE, ids=lambda loss: loss.__name__)
def test_what_reaches_the_network_only_by_captured_losses_is_the_whole(loss):
    capture, observation, reason = captured(loss)
    assert reason is None
    assert observation.losses.shape == (B,)
    assert capture.share.ratio == 1
    assert capture.share.missed == ()
    assert capture.has_other_terms == (loss is penalized)
    assert capture.note_on_share() is None


def test_all_parts_of_which_the_rows_are_known_are_weighed():
    for loss in (symmetric, autoencoder):
        module, (x, y), weights = Module(loss), batch(), torch.rand(B) + 0.5
        with InstanceLossCapture().step((x, y), B, weights=weights) as step:
            root = module.training_step((x, y), 0)
        assert step.observe(root) is not None
        parameters = list(module.parameters())
        found = torch.autograd.grad(root, parameters)
        alone = [loss(module.net, x[i : i + 1], y[i : i + 1]) for i in range(B)]
        scale = 1 if loss is autoencoder else 1 / B
        expected = torch.autograd.grad(
            scale * sum(w * each for w, each in zip(weights, alone, strict=True)), parameters
        )
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-4, 1.0, -3.0, 1e4])
def test_the_share_does_not_depend_on_the_scale_of_the_loss(scale):
    shares = []
    for factor in (1.0, scale):
        torch.manual_seed(0)
        capture, _, _ = captured(lambda net, x, y, factor=factor: factor * with_some_dice(net, x, y))
        shares.append(capture.share.ratio)
    assert shares[1] == pytest.approx(shares[0], rel=1e-4)
    assert 0.5 < shares[0] < 0.9


def test_only_logged_losses_are_not_missed():
    def logged(net, x, y):
        labelled(net, x, y)
        dice(net(x), y)
        return F.cross_entropy(net(x), y) + 0 * net(x).sum().detach()

    capture, observation, _ = captured(logged)
    assert observation is not None
    assert capture.share == (1.0, (), False)


def test_a_larger_part_decides_and_one_warning_names_the_rest():
    callback, messages = fit(with_some_dice, reweighting="none")
    (message,) = [each for each in messages if "Missed" in each]
    assert "only 7" in message or "only 8" in message or "only 6" in message
    assert "hand-written loss at test_loss_share.py" in message
    assert "L2" not in message
    assert "weights" not in message
    assert len(messages) == 1
    assert callback.summary()["keep_rate"] < 1
    assert 0.5 < callback.report.last_epoch["captured_share"] < 0.9


def test_weights_fall_to_mean_with_the_same_warning():
    callback, messages = fit(with_some_dice, reweighting="inverse_probability")
    (message,) = messages
    assert "Missed: hand-written loss at test_loss_share.py" in message
    assert 'so reweighting="normalized" is used' in message
    assert callback.reweighting == "normalized"


def test_a_regularizer_is_not_missed_but_out_of_reach_of_weights():
    callback, messages = fit(penalized, reweighting="inverse_probability")
    (message,) = messages
    assert "depend on the parameters alone" in message
    assert callback.reweighting == "normalized"
    assert callback.report.last_epoch["captured_share"] == 1


@pytest.mark.parametrize("loss", [masked, mostly_dice], ids=lambda loss: loss.__name__)
def test_a_minor_part_trains_unfiltered_with_one_warning(loss):
    callback, messages = fit(loss, shuffle=False)  # so that every batch has an instance without a label
    (message,) = messages
    assert "AutoAssist stopped filtering" in message
    assert "first 3 steps" in message
    assert MINOR[loss] in message
    assert callback.summary()["keep_rate"] == 1


def test_check_shows_the_share_and_what_was_missed():
    found = diagnose(Module(with_some_dice), loader(), quiet=True, accelerator="cpu")
    assert found.is_filtered
    assert 0.5 < found.captured_share < 0.9
    assert "hand-written loss at test_loss_share.py" in found.missed[0]
    assert f"{found.captured_share:.0%} of the loss's gradient" in str(found)
    assert f"missed: {found.missed[0]}" in str(found)
    assert "100% of the loss's gradient" in str(diagnose(Module(symmetric), loader(), quiet=True, accelerator="cpu"))


def test_the_share_is_measured_in_the_first_steps_and_for_new_parts_again(monkeypatch):
    from lightning_autoassist.capture import attribution as loss_attribution

    measured, capture = [], InstanceLossCapture()
    original = loss_attribution._gradient_share
    monkeypatch.setattr(
        loss_attribution, "_gradient_share", lambda *arguments: measured.append(1) or original(*arguments)
    )
    for loss, expected in [(with_some_dice, 1), (with_some_dice, 2), (with_some_dice, 3), (with_some_dice, 3)]:
        captured(loss, capture)
        assert len(measured) == expected
    assert captured(masked, capture)[1] is None
    assert captured(with_some_dice, capture)[1] is not None
    assert len(measured) == 4


def test_what_the_first_steps_showed_outlives_an_interruption():
    capture = InstanceLossCapture()
    captured(with_some_dice, capture)
    again = InstanceLossCapture()
    again.load_state_dict(capture.state_dict())
    assert again.state_dict() == capture.state_dict()
    assert again.has_other_terms


def test_as_many_rows_as_instances_by_chance_are_not_believed_after_another_number_was_seen():
    def of_boxes(net, x, y):
        return F.cross_entropy(net(x)[boxes], y[boxes])

    capture, boxes = InstanceLossCapture(), torch.tensor([0, 0, 3])
    assert "3 rows for" in captured(of_boxes, capture)[2]
    boxes = torch.zeros(B, dtype=torch.long)
    reason = captured(of_boxes, capture)[2]
    assert f"{B} rows for as many instances here, and another number of them in other steps" in reason
    resumed = InstanceLossCapture()
    resumed.load_state_dict(capture.state_dict())
    assert captured(of_boxes, resumed)[1] is None
