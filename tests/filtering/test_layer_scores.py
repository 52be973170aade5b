"""score="layer_gradient_norm": norms of instances' true gradients, within a Trainer."""

import warnings

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_autoassist import (
    AutoAssistCallback,
    AutoAssistDataModule,
    GaussNewtonCallback,
    KFACCallback,
    LocalLearningCallback,
)
from lightning_autoassist.capture.layer_norms import has_norms
from tests.helpers.ordinary import Classifier, ClustersData, trainer
from tests.helpers.resuming import assert_resumes

N, B, CLASSES = 48, 8, 3
SCORE = "layer_gradient_norm"
LEFT_OUT = "ignore:score='layer_gradient_norm' counts the gradients"


class Net(pl.LightningModule):
    """Convolutions and Linear layers, and whatever the user does with the loss; notes what each step was given."""

    def __init__(self, loss=F.cross_entropy, *, manual=False):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 4, 3, groups=2),
            nn.Flatten(),
            nn.Linear(16, 8),
            nn.Tanh(),
            nn.Linear(8, CLASSES),
        )
        self.loss, self.automatic_optimization, self.steps = loss, not manual, []

    def training_step(self, batch, batch_idx):
        values, target = batch
        self.steps.append(({name: each.clone() for name, each in self.net.state_dict().items()}, values, target))
        loss = self.loss(self.net(values), target)
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Noting(AutoAssistCallback):
    """Notes each step's scores."""

    def __init__(self, **options):
        super().__init__("proportional", score=SCORE, **options)
        self.scores = []
        end_step = self._learner.end_step

        def noting(observed, **told):
            self.scores.append(None if observed is None else observed.scores)
            end_step(observed, **told)

        self._learner.end_step = noting


def loader():
    torch.manual_seed(0)
    return DataLoader(TensorDataset(torch.randn(N, 1, 8, 8), torch.arange(N) % CLASSES), B, shuffle=True)


def fit(module, callback=None, *others, **options):
    pl.seed_everything(0, verbose=False)
    callback = callback or Noting(reweighting="inverse_probability")
    run = trainer(**{"max_epochs": 3, **options}, callbacks=[callback, *others])
    run.fit(module, datamodule=AutoAssistDataModule(loader(), budget=0.6))
    return callback


def by_autograd(state, values, target):
    """Norms by a backward pass for each instance."""
    net = Net().net
    net.load_state_dict(state)
    losses = [F.cross_entropy(net(values[i : i + 1]), target[i : i + 1]) for i in range(len(target))]
    rows = [torch.autograd.grad(loss, list(net.parameters())) for loss in losses]
    return torch.stack([torch.cat([part.flatten() for part in row]).norm() for row in rows])


def assert_exact(module, callback, **tolerance):
    assert callback._learner.is_filtering
    assert len(callback.scores) == len(module.steps) >= 2 * N // B
    for scores, step in zip(callback.scores, module.steps, strict=True):
        torch.testing.assert_close(scores, by_autograd(*step), **tolerance)


LOSSES = {
    "mean": F.cross_entropy,
    "sum": lambda logits, target: F.cross_entropy(logits, target, reduction="sum") * 1e-2,
    "by rows": lambda logits, target: F.cross_entropy(logits, target, reduction="none").mean(),
}
OPTIONS = {
    "plain": {},
    "accumulated": {"accumulate_grad_batches": 2},
    "clipped": {"gradient_clip_val": 0.1},
}


@pytest.mark.parametrize("loss", LOSSES)
def test_scores_are_norms_of_the_true_gradients_whatever_the_reduction_and_the_weights(loss):
    module = Net(LOSSES[loss])
    callback = fit(module)
    assert callback.summary()["keep_rate"] < 0.9  # with weights other than 1
    assert_exact(module, callback, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", ["accumulated", "clipped"])
def test_accumulation_and_clipping_do_not_enter(options):
    module = Net()
    assert_exact(module, fit(module, **OPTIONS[options]), rtol=1e-4, atol=1e-6)


def test_manual_optimization():
    module = Net(manual=True)
    assert_exact(module, fit(module), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision(precision):
    module = Net()
    scaled = {"plugins": MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))}
    options = scaled if precision == "16-mixed" else {"precision": precision}
    assert_exact(module, fit(module, **options), rtol=0.1, atol=0.02)


class Given(Net):
    """Says itself what its instances' losses are."""

    def training_step(self, batch, batch_idx):
        values, target = batch
        self.steps.append(({name: each.clone() for name, each in self.net.state_dict().items()}, values, target))
        logits = self.net(values)
        losses = logits.logsumexp(1) - logits.gather(1, target[:, None]).squeeze(1)
        return {"loss": losses.mean(), "instance_loss": losses}


def test_weights_at_losses_that_the_user_gives_do_not_enter():
    module = Given()
    assert_exact(module, fit(module), rtol=1e-4, atol=1e-6)


class Repeated(Net):
    """A layer in two checkpointed blocks, whose backward passes come one after the other."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, CLASSES))

    def training_step(self, batch, batch_idx):
        values, target = batch
        self.steps.append(({name: each.clone() for name, each in self.net.state_dict().items()}, values, target))
        hidden = values.requires_grad_()
        for _ in range(2):
            hidden = checkpoint(self.net[:3], hidden, use_reentrant=True)
        return F.cross_entropy(self.net[3](hidden), target)


def test_a_layer_in_several_checkpointed_blocks_is_scored_from_the_second_step_on():
    module = Repeated()
    callback = fit(module)
    assert callback._learner.is_filtering
    assert callback.scores[0] is None
    for scores, (state, values, target) in list(zip(callback.scores, module.steps, strict=True))[1:]:
        net = Repeated().net
        net.load_state_dict(state)
        logits = net[3](net[:3](net[:3](values.detach())))
        losses = F.cross_entropy(logits, target, reduction="none")
        rows = [torch.autograd.grad(loss, list(net.parameters()), retain_graph=True) for loss in losses]
        expected = torch.stack([torch.cat([part.flatten() for part in row]).norm() for row in rows])
        torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-6)


def test_the_memory_holds_the_scores():
    module = Net()
    callback = fit(module, Noting(assistant="memory", reweighting="none"))
    remembered = callback.instances.rows(torch.arange(N), ("scores",)).scores
    given = torch.cat(callback.scores).tolist()
    assert len(set(remembered.tolist())) == N
    assert set(remembered.tolist()) <= set(given)


def test_kept_and_unweighted_the_run_is_that_of_plain_lightning_bit_for_bit():
    plain, watched = Net(), Net()
    watched.load_state_dict(plain.state_dict())
    pl.seed_everything(0, verbose=False)
    trainer(max_epochs=2).fit(plain, loader())
    pl.seed_everything(0, verbose=False)
    callback = AutoAssistCallback("proportional", score=SCORE, reweighting="none", unfiltered_tail=0.999)
    run = trainer(max_epochs=2, callbacks=[callback])
    run.fit(watched, datamodule=AutoAssistDataModule(loader(), budget=1.0))
    assert callback._learner.is_filtering
    for ours, theirs in zip(watched.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_nothing_is_left_after_the_fit():
    module = Net()
    fit(module)
    for layer in filter(has_norms, module.modules()):
        assert not layer._forward_hooks
    assert all(not parameter._post_accumulate_grad_hooks for parameter in module.parameters())


@pytest.mark.skipif(pl.__version__ < "2.5", reason="Lightning 2.4 trains on one batch too many after a resume")
@pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:Checkpoint directory .* exists", LEFT_OUT)
def test_an_interrupted_run_goes_on_exactly(tmp_path):
    assert_resumes(tmp_path, (1, 5, 10), settings={"score": SCORE, "reweighting": "inverse_probability"})
    assert_resumes(tmp_path / "lagging", (6,), settings={"score": SCORE, "lag": 2})


def test_other_layers_are_named_once_and_left_out():
    module, callback = Classifier(), AutoAssistCallback(score=SCORE)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(max_epochs=3, callbacks=[callback]).fit(
            module, datamodule=AutoAssistDataModule(ClustersData(), budget=0.6)
        )
    told = [str(each.message) for each in caught if "layer_gradient_norm" in str(each.message)]
    assert told == [
        "score='layer_gradient_norm' counts the gradients of Linear and convolution layers. It leaves out "
        "BatchNorm1d (net.0)"
    ]
    assert callback._learner.is_filtering
    assert callback.summary()["keep_rate"] < 1


class WithoutLayers(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(8, CLASSES))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(batch[0] @ self.weight, batch[1])

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class UncalledLayer(WithoutLayers):
    """Has a Linear whose weight it uses without calling it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, CLASSES)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(F.linear(batch[0], self.layer.weight), batch[1])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (WithoutLayers, "needs Linear or convolution layers that are trained, and WithoutLayers has none"),
        (UncalledLayer, "The losses of the first 3 steps .* No gradient of a Linear or convolution layer"),
    ],
)
def test_a_model_without_such_layers_is_trained_unfiltered(kind, message):
    callback, module = AutoAssistCallback(score=SCORE), kind()
    with pytest.warns(UserWarning, match=message):
        trainer(max_epochs=6, callbacks=[callback]).fit(
            module, datamodule=AutoAssistDataModule(ClustersData(), budget=0.6)
        )
    assert any(bool(parameter.any()) for parameter in module.parameters())
    assert callback.summary()["keep_rate"] == 1


def test_an_error_in_backward_ends_filtering_and_not_the_run(monkeypatch):
    def fails(calls):
        raise MemoryError("no more")

    monkeypatch.setattr("lightning_autoassist.filtering.layer_scores.squared_norms", fails)
    module = Net()
    with pytest.warns(UserWarning, match="stopped filtering.*MemoryError: no more"):
        fit(module)
    assert len(module.steps) >= 2 * N // B


def test_kfac_beside_it_knows_the_weights():
    """It watches the same step from inside."""
    weights, module, kfac = [], Net(), KFACCallback(damping=1.0)
    add = kfac._add
    kfac._add = lambda call: (weights.append(call.weights), add(call))
    assert_exact(module, fit(module, None, kfac), rtol=1e-4, atol=1e-6)
    assert any(bool((each != 1).any()) for each in weights if each is not None)


class Flat(Net):
    """Linear layers alone."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, CLASSES))


def test_gauss_newton_beside_it_steps_as_it_does_beside_the_loss_alone():
    weights = []
    for score in (SCORE, "loss"):
        pl.seed_everything(0, verbose=False)
        module = Flat()
        callback = AutoAssistCallback(
            "proportional", "memory", score=score, reweighting="inverse_probability", unfiltered_tail=0
        )
        callback.policy.keep_probability = lambda scores: torch.full((len(scores),), 0.5)
        fit(module, callback, GaussNewtonCallback())
        weights.append(torch.cat([each.detach().flatten() for each in module.parameters()]))
    torch.testing.assert_close(*weights)


class Blocks(Net):
    """Does not move, so that scores are the same in each step."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, CLASSES)
        )

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def test_blocks_that_have_their_gradients_during_the_step_are_scored_alike_under_accumulation_and_weights():
    found = []
    for accumulated, scale in ((1, None), (2, None), (1, 1024.0)):
        pl.seed_everything(0, verbose=False)
        callback = Noting(assistant="memory", reweighting="inverse_probability")
        scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
        plugins = None if scaler is None else MixedPrecision("16-mixed", "cpu", scaler)
        local = LocalLearningCallback(blocks=["net.2"])
        fit(Blocks(), callback, local, accumulate_grad_batches=accumulated, plugins=plugins)
        found.append(callback.instances.rows(torch.arange(N), ("scores",)).scores)
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], found[2], rtol=0.1, atol=0.02)
