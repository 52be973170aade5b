"""GaussNewtonCallback under real Trainers: its steps, damping, weights, accumulation, resume and refusals."""

import subprocess
import sys
from functools import partial

import lightning.pytorch
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule, GaussNewtonCallback
from lightning_autoassist.gauss_newton.step_tape import StepTape
from tests.gauss_newton.modules import LOSSES, Perceptron, fit, parameters_of, rows
from tests.helpers.ordinary import trainer
from tests.helpers.paths import ROOT

Constant = partial(GaussNewtonCallback, damping_schedule="constant")
ONE_BATCH = {"batch_size": 24}


def step_by_definition(module, batch, damping):
    r"""(J' H J + lambda)^{-1} J' g with everything explicit, by functions of torch that this package does not use."""
    names, values = zip(*module.net.named_parameters(), strict=True)
    sizes = [value.numel() for value in values]

    def outputs(flat):
        parts = [part.view(value.shape) for part, value in zip(flat.split(sizes), values, strict=True)]
        return functional_call(module.net, dict(zip(names, parts, strict=True)), batch[0])

    def loss(out):
        return LOSSES[module.loss](out, *batch[1:])

    flat = torch.cat([value.detach().flatten() for value in values])
    out = outputs(flat)
    rows_of = jacobian(outputs, flat).flatten(0, 1)
    gradient = torch.autograd.grad(loss(at := out.detach().requires_grad_()), at)[0].flatten()
    curvature = hessian(loss, out.detach()).reshape(out.numel(), out.numel())
    root = torch.linalg.cholesky(curvature + 1e-6 * curvature.diagonal().abs().mean() * torch.eye(len(curvature)))
    scale = (root.T @ rows_of).square().sum(1).mean()
    matrix = rows_of.T @ root @ root.T @ rows_of + damping * scale * torch.eye(len(flat))
    return torch.linalg.solve(matrix, rows_of.T @ gradient)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("loss", ["mse", "half_sum", "binary", "cross_entropy"])
def test_a_step_is_that_of_the_definition(loss, bias):
    module = Perceptron(loss, bias=bias)
    before, expected = parameters_of(module), step_by_definition(module, rows().tensors, 0.1)
    fit(module, Constant(0.1), **ONE_BATCH)
    torch.testing.assert_close(before - parameters_of(module), expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("solver", ["cg", "sketch", "nystrom"])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_iterative_solvers_make_the_exact_step_to_their_tolerance(solver, loss):
    exact, module = Perceptron(loss), Perceptron(loss)
    fit(exact, Constant(solver="gram"), **ONE_BATCH)
    callback = Constant(solver=solver, cg_tol=1e-9, max_cg_iter=500, rank=10)
    fit(module, callback, **ONE_BATCH)
    torch.testing.assert_close(parameters_of(module), parameters_of(exact), rtol=1e-6, atol=1e-8)
    assert callback.num_cg_iterations > 0


def test_damping_to_infinity_is_sgd():
    plain, module = Perceptron(lr=0.1), Perceptron(lr=0.1)
    before = parameters_of(plain)
    fit(plain, **ONE_BATCH)
    fit(module, Constant(1e5), **ONE_BATCH)
    ours, theirs = parameters_of(module) - before, parameters_of(plain) - before
    assert F.cosine_similarity(ours, theirs, 0) > 1 - 1e-8


def test_a_weight_of_2_is_the_row_twice():
    data = rows()
    weights = torch.ones(24, dtype=torch.float64)
    weights[5] = 2
    weighted, doubled = Perceptron("weighted", lr=0.5), Perceptron("weighted", lr=0.5)
    twice = TensorDataset(*[torch.cat([tensor, tensor[5:6]]) for tensor in data.tensors])
    # The damping's unit is the mean over rows, of which there is one more.
    fit(weighted, Constant(0.1 * 24 / 25), data=TensorDataset(*data.tensors[:3], weights), batch_size=30)
    fit(doubled, Constant(0.1), data=twice, batch_size=30)
    start = parameters_of(Perceptron("weighted"))
    ours, theirs = parameters_of(weighted) - start, parameters_of(doubled) - start
    # The mean of K's diagonal weighs row 5's once and twice: the same sum over one row more.
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("schedule", ["lm", "constant"])
def test_accumulated_batches_are_one_batch(schedule):
    whole, parts = Perceptron(), Perceptron()
    first, second = (GaussNewtonCallback(0.1, damping_schedule=schedule) for _ in range(2))
    fit(whole, first, batch_size=24, max_epochs=3)
    fit(parts, second, batch_size=8, accumulate_grad_batches=3, max_epochs=3)
    torch.testing.assert_close(parameters_of(parts), parameters_of(whole), rtol=1e-9, atol=1e-12)
    assert first.num_steps == second.num_steps == 3
    assert first.damping_in_force == pytest.approx(second.damping_in_force)


# ---- damping


def test_a_linear_network_is_solved_in_one_step_and_agrees_with_its_model():
    module, callback = Perceptron(), GaussNewtonCallback(1e-9)
    module.net = nn.Linear(6, 1).double()
    fit(module, callback, **ONE_BATCH)
    features, numbers = rows().tensors[:2]
    exact = torch.linalg.lstsq(torch.cat([features, torch.ones(24, 1)], 1), numbers).solution
    torch.testing.assert_close(parameters_of(module), exact.squeeze(1), rtol=1e-5, atol=1e-6)
    assert callback.damping_in_force == pytest.approx(1e-8)  # the least that it may be


@pytest.mark.parametrize("loss", ["mse", "binary", "cross_entropy"])
def test_adapted_damping_never_raises_the_loss_of_a_batch(loss):
    module, callback = Perceptron(loss, width=16), GaussNewtonCallback(1e-4)
    fit(module, callback, max_epochs=40, **ONE_BATCH)
    losses = torch.stack(module.losses)
    assert len(losses) == 40  # the user's step is called once a batch
    assert (losses.diff() <= 1e-12).all()
    assert losses[-1] < 0.1 * losses[0]
    assert callback.damping_in_force != 1e-4


def test_a_step_that_would_raise_the_loss_is_not_made():
    module, callback = Perceptron(lr=50.0), GaussNewtonCallback(1e-2)
    before = parameters_of(module)
    fit(module, callback, **ONE_BATCH)
    assert torch.equal(parameters_of(module), before)
    assert callback.damping_in_force == pytest.approx(4e-2)


def test_reductions_of_weighted_losses_are_compared_in_the_returned_loss():
    """A linear network agrees with its model exactly, so that damping falls whatever the weights are."""
    data = AutoAssistDataModule(DataLoader(rows(96), batch_size=12, shuffle=True), budget=0.6)
    module, callback = Perceptron("mse", lr=0.3), GaussNewtonCallback(1.0)
    module.net = nn.Linear(6, 1).double()
    assist = AutoAssistCallback(policy="proportional", reweighting="inverse_probability")
    trainer(max_epochs=5, callbacks=[callback, assist]).fit(module, datamodule=data)
    assert assist.summary()["keep_rate"] < 1
    assert callback.damping_in_force == pytest.approx(1e-8) or callback.damping_in_force < 1e-6


class Squared(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values):
        ctx.save_for_backward(values)
        return values.square()

    @staticmethod
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


class HidesItsLoss(Perceptron):
    def training_step(self, batch, batch_idx):
        return Squared.apply(self.net(batch[0]) - batch[1]).mean()


def test_a_loss_that_cannot_be_computed_again_is_trained_with_constant_damping():
    module, constant = HidesItsLoss(), HidesItsLoss()
    with pytest.warns(UserWarning, match=r"cannot be computed again .* so that damping stays at 0\.1"):
        fit(module, GaussNewtonCallback(0.1))
    fit(constant, Constant(0.1))
    assert torch.equal(parameters_of(module), parameters_of(constant))


class Busy(Perceptron):
    """Dropout, operations in place, a residual connection, and a metric beside the loss."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6).double(), nn.Linear(6, 1).double()
        del self.net

    def training_step(self, batch, batch_idx):
        hidden = F.dropout(F.relu(self.first(batch[0]), inplace=True), 0.2, self.training) + batch[0]
        total = torch.zeros((), dtype=torch.float64)
        out = self.second(hidden)
        self.log("error", (out - batch[1]).detach().abs().mean())
        total += F.mse_loss(out, batch[1])
        self.losses.append(total.detach())
        return {"loss": total}


def test_dropout_is_drawn_once_and_nothing_is_changed_twice(recwarn):
    module = Busy()
    fit(module, GaussNewtonCallback(1e-2), max_epochs=30, **ONE_BATCH)
    assert not [str(one.message) for one in recwarn if "cannot be computed again" in str(one.message)]
    assert torch.stack(module.losses[-3:]).mean() < 0.5 * torch.stack(module.losses[:3]).mean()
    torch.manual_seed(0)
    plain = Busy()
    plain.optimizer = partial(torch.optim.SGD)
    plain.options["lr"] = 0.0
    fit(plain)
    after_plain = torch.rand(1)
    torch.manual_seed(0)
    module = Busy()
    module.options["lr"] = 0.0
    fit(module, GaussNewtonCallback(1e-2))
    assert torch.rand(1) == after_plain  # the global RNG is where it would be
    assert module.losses == plain.losses


class Noisy(Busy):
    """Random numbers of one kind behind the first layer, drawn as users draw them."""

    def __init__(self, noisy):
        super().__init__()
        self.noisy = noisy

    def training_step(self, batch, batch_idx):
        loss = F.mse_loss(self.second(self.noisy(self.first(batch[0]))), batch[1])
        self.losses.append(loss.detach())
        return loss


def attended(hidden):
    rows = hidden.view(1, 1, *hidden.shape)
    return F.scaled_dot_product_attention(rows, rows, rows, dropout_p=0.5).view(hidden.shape)


NOISES = {
    "randn_like": lambda hidden: hidden + torch.randn_like(hidden),
    "normal_": lambda hidden: hidden + hidden.new_empty(hidden.shape).normal_(),
    "normal": lambda hidden: torch.normal(hidden.detach(), 1.0) + hidden,
    "dropout2d": lambda hidden: F.dropout2d(hidden[None, :, :, None], 0.5)[0, :, :, 0],
    "rrelu": lambda hidden: F.rrelu(hidden, 0.1, 0.9, training=True),
    "bernoulli": lambda hidden: hidden * torch.bernoulli(hidden.detach().sigmoid()),
    "distribution": lambda hidden: torch.distributions.Normal(hidden, 1.0).rsample(),
    "attention": attended,
}


@pytest.mark.parametrize("noise", NOISES)
def test_a_step_computed_again_draws_what_it_drew(noise):
    torch.manual_seed(0)
    module, batch = Noisy(NOISES[noise]), rows().tensors
    with StepTape(list(module.parameters())) as tape:
        loss = module.training_step(batch, 0)
    torch.manual_seed(1)  # where the generator is now is nothing to it
    state = torch.get_rng_state()
    assert tape.replay(loss, {}) == loss
    assert torch.equal(torch.get_rng_state(), state)


# ---- what else a run has


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed", "bf16-true"])
def test_precisions(precision):
    module = Perceptron("cross_entropy", dtype=torch.float32)
    data = rows(dtype=torch.float32)
    fit(module, GaussNewtonCallback(1e-2), data=data, max_epochs=15, precision=precision, **ONE_BATCH)
    assert torch.stack(module.losses[-3:]).float().mean() < 0.5 * torch.stack(module.losses[:3]).float().mean()


def test_learning_rate_and_weight_decay_are_the_optimizers():
    whole, half = Perceptron(), Perceptron(lr=0.5, weight_decay=0.1)
    before = parameters_of(whole)
    fit(whole, Constant(0.1), **ONE_BATCH)
    fit(half, Constant(0.1), **ONE_BATCH)
    expected = 0.5 * (parameters_of(whole) - before) - 0.05 * before
    torch.testing.assert_close(parameters_of(half) - before, expected)


def test_frozen_parameters_stay():
    module = Perceptron()
    module.net[0].requires_grad_(False)
    module.net[2].bias.requires_grad_(False)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    fit(module, GaussNewtonCallback(1e-6), **ONE_BATCH)
    changed = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"net.2.weight"}


def test_a_batch_with_a_nan_makes_no_step():
    features, *others = rows().tensors
    features = features.clone()
    features[3] = torch.nan
    for schedule in ("lm", "constant"):
        module = Perceptron()
        before = parameters_of(module)
        fit(module, GaussNewtonCallback(damping_schedule=schedule), data=TensorDataset(features, *others), **ONE_BATCH)
        assert torch.equal(parameters_of(module), before)


class Stops(pl.Callback):
    def on_train_batch_start(self, trainer, *args):
        if trainer.global_step == 7:
            raise KeyboardInterrupt


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("solver", ["gram", "sketch"])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, solver):
    def run(folder, *others, ckpt_path=None):
        module, callback = Perceptron("cross_entropy"), GaussNewtonCallback(0.1, solver=solver)
        saver = pl.callbacks.ModelCheckpoint(folder, "{step}", save_top_k=-1, save_on_train_epoch_end=True)
        options = {"max_epochs": 3, "enable_checkpointing": True, "callbacks": [callback, saver, *others]}
        trainer(**options).fit(module, DataLoader(rows(), batch_size=8), ckpt_path=ckpt_path)
        return parameters_of(module), callback.damping_in_force, callback.num_steps

    whole = run(tmp_path / "whole")
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run(tmp_path / "parts", Stops())
    resumed = run(tmp_path / "resumed", ckpt_path=tmp_path / "parts" / "step=6.ckpt")
    assert torch.equal(resumed[0], whole[0])
    assert resumed[1:] == whole[1:] == (whole[1], 9)


@pytest.mark.parametrize("first", [True, False])
def test_it_stacks_with_filtering(first):
    data = AutoAssistDataModule(DataLoader(rows(400), batch_size=40, shuffle=True), budget=0.6)
    module, newton = Perceptron("mse"), GaussNewtonCallback(0.1)
    assist = AutoAssistCallback(policy="infobatch")
    run = trainer(max_epochs=5, callbacks=[newton, assist] if first else [assist, newton])
    run.fit(module, datamodule=data)
    assert run.global_step == newton.num_steps == 5 * 6
    assert assist.summary()["keep_rate"] < 1
    assert torch.stack(module.losses[-6:]).mean() < 0.7 * torch.stack(module.losses[:6]).mean()


@pytest.mark.parametrize("loss", ["half_sum", "half_sum_of_torch"])
def test_weights_of_filtering_enter_the_step(loss):
    """The step on instances that AutoAssist weights is the step on the user's own weighted loss."""
    torch.manual_seed(0)
    seen = {}

    class Noting(Constant.func):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            weights = self._window[0].rows.shares.reciprocal()
            super().on_before_optimizer_step(trainer, pl_module, optimizer)
            if (weights != 1).any() and not seen:
                seen["weights"], seen["batch"] = weights, pl_module.batch
                seen["steps"] = [each.grad.clone() for each in pl_module.parameters()]
                seen["parameters"] = parameters_of(pl_module)

    class Keeps(Perceptron):
        def training_step(self, batch, batch_idx):
            self.batch = batch
            return super().training_step(batch, batch_idx)

    data = AutoAssistDataModule(DataLoader(rows(96), batch_size=12, shuffle=True), budget=0.6)
    module = Keeps(loss, lr=0.3)
    noting = Noting(0.1, damping_schedule="constant")
    assist = AutoAssistCallback(policy="proportional", reweighting="inverse_probability")
    trainer(max_epochs=5, callbacks=[noting, assist]).fit(module, datamodule=data)
    own = Perceptron("weighted")
    nn.utils.vector_to_parameters(seen["parameters"].clone(), own.parameters())
    batch = [*seen["batch"][:3], 0.5 * seen["weights"]]
    fit(own, Constant(0.1), data=TensorDataset(*batch), **ONE_BATCH)
    expected = seen["parameters"] - torch.cat([step.flatten() for step in seen["steps"]])
    torch.testing.assert_close(parameters_of(own), expected, rtol=1e-6, atol=1e-9)


def test_both_variants_of_lightning():
    class Other(lightning.pytorch.LightningModule):
        training_step = Perceptron.training_step
        configure_optimizers = Perceptron.configure_optimizers

    one, other = Perceptron(), Other()
    other.net, other.loss, other.losses = Perceptron().net, "mse", []
    other.options, other.optimizer = one.options, one.optimizer
    fit(one, GaussNewtonCallback())
    run = trainer(lightning.pytorch, max_epochs=1, callbacks=[GaussNewtonCallback()])
    run.fit(other, DataLoader(rows(), batch_size=8))
    assert torch.equal(parameters_of(one), parameters_of(other))


def test_validation_and_a_second_fit():
    module, callback = Perceptron(), GaussNewtonCallback()
    fit(module, callback, max_epochs=2)
    fit(module, callback, max_epochs=2)
    assert callback.num_steps == 12


def test_a_run_without_it_imports_nothing_of_it():
    code = (
        "import sys, torch, pytorch_lightning as pl\n"
        "from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule\n"
        "from tests.gauss_newton.modules import Perceptron, rows, trainer\n"
        "from torch.utils.data import DataLoader\n"
        "data = AutoAssistDataModule(DataLoader(rows(48), batch_size=12, shuffle=True), budget=0.6)\n"
        "trainer(max_epochs=2, callbacks=[AutoAssistCallback()]).fit(Perceptron(lr=.1), datamodule=data)\n"
        "print([name for name in sys.modules if name.startswith('lightning_autoassist.gauss_newton')])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.stdout.strip().endswith("[]"), done.stdout + done.stderr


# ---- what is refused


def with_net(*layers, loss="mse", **options):
    module = Perceptron(loss, **options)
    module.net = nn.Sequential(*layers).double()
    return module


class Penalised(Perceptron):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) + 0.1 * self.net[0].weight.square().sum()


class Contrasts(Perceptron):
    """Each instance's target is another's output."""

    def training_step(self, batch, batch_idx):
        out = self.net(batch[0] - self.net(batch[0]).mean())
        return F.mse_loss(out, batch[1])


class Attends(Perceptron):
    def training_step(self, batch, batch_idx):
        hidden = self.net[1](self.net[0](batch[0]))
        mixed = torch.softmax(hidden @ hidden.T, 1) @ hidden
        return F.mse_loss(self.net[2](mixed), batch[1])


class ByHand(Perceptron):
    automatic_optimization = False


class UsesAWeight(Perceptron):
    def training_step(self, batch, batch_idx):
        return F.mse_loss(batch[0] @ self.net[0].weight.T @ self.net[2].weight.T, batch[1])


REFUSED = {
    "batch norm": (
        lambda: with_net(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)),
        r"net\.1 is a BatchNorm1d in training mode.* use KFACCallback",
    ),
    "convolution": (
        lambda: with_net(nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(8, 1)),
        r"net\.1 \(Conv1d\) has trained parameters.* freeze them .* or use KFACCallback",
    ),
    "outputs": (
        lambda: with_net(nn.Linear(6, 12), loss="cross_entropy"),
        r"12 outputs, more than max_outputs=10: .* 12 backward passes and a system of 288 rows",
    ),
    "adam": (lambda: Perceptron(optimizer=torch.optim.AdamW), r"the optimizer is AdamW, .*SGD\(self\.parameters\(\)"),
    "maximize": (lambda: Perceptron(maximize=True), "SGD has maximize=True"),
    "by hand": (ByHand, r"automatic_optimization=False"),
    "l1": (lambda: Perceptron("l1"), "the loss has no curvature at the network's outputs"),
    "penalty": (Penalised, r"differs from that of backward by .* weight_decay"),
    "attention": (Attends, r"differs from that of backward by"),
    "two calls": (Contrasts, "a linear layer is called more than once"),
    "weights without a call": (UsesAWeight, "no call of a trained Linear layer was seen in training_step"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_trained_is_refused_with_a_way_out(name):
    make, message = REFUSED[name]
    module = make()
    before = parameters_of(module)
    with pytest.raises(ValueError, match=message):
        fit(module, GaussNewtonCallback(), **ONE_BATCH)
    assert torch.equal(parameters_of(module), before)
    assert "training_step" not in vars(module)


def test_momentum_and_clipping_are_warned_of():
    with pytest.warns(UserWarning, match="SGD has momentum"):
        fit(Perceptron(momentum=0.9), GaussNewtonCallback())
    with pytest.warns(UserWarning, match=r"gradient_clip_val=0\.5 shortens"):
        fit(Perceptron(), GaussNewtonCallback(), gradient_clip_val=0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"damping": 0.0}, "damping must be positive, got 0.0"),
        ({"damping_schedule": "LM"}, "damping_schedule must be one of lm, constant, got 'LM'"),
        ({"solver": "dense"}, "solver must be one of auto, gram, cg, sketch, nystrom"),
        ({"max_outputs": 0}, "max_outputs must be at least 1"),
        ({"cg_tol": 1.0}, r"cg_tol must be in \(0, 1\)"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        GaussNewtonCallback(**options)
