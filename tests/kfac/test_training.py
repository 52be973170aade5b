"""K-FAC in a Trainer: real fits of modules that know nothing of it."""

import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import lightning.pytorch
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.plugins.precision import MixedPrecision
from pytorch_lightning.strategies import FSDPStrategy
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule, KFACCallback
from lightning_autoassist.kfac.fit_checks import check_strategy
from lightning_autoassist.kfac.layer_choice import choose_layers
from lightning_autoassist.kfac.options import KFACOptions
from tests.helpers.ordinary import Classifier, ClustersData, trainer
from tests.helpers.paths import ROOT
from tests.kfac.modules import Net, ValidatedNet, convolutions, fit, images, mlp, vector

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create the checkpoint"),
]

OFTEN = {"factor_update_steps": 2, "inv_update_steps": 5, "early_updates": False}


class Checkpoints(pl.callbacks.ModelCheckpoint):
    def __init__(self, folder):
        super().__init__(folder, "{step}", every_n_train_steps=1, save_top_k=-1)


def scaled_precision(scale):
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10_000))


# ---- what it does to a run


def test_a_layer_whose_inputs_have_many_scales_is_trained_in_fewer_updates():
    class Regression(Net):
        def loss(self, batch):
            return F.mse_loss(self.net(batch[0]), batch[1])

    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(512, 8, generator=generator)
    data = TensorDataset(hidden * torch.logspace(-1.5, 0.5, 8), hidden @ torch.randn(8, 2, generator=generator))
    losses = {}
    for name, callbacks in {"sgd": [], "kfac": [KFACCallback(damping=0.001)]}.items():
        module = Regression(lambda: nn.Linear(8, 2), lr=0.02)
        fit(module, *callbacks, data=data, batch_size=64, epochs=10)
        losses[name] = float(torch.stack(module.losses[-8:]).mean())
    assert losses["kfac"] < 0.7 * losses["sgd"]


def test_gradients_accumulated_over_micro_batches_are_those_of_the_batch():
    whole, parts = Net(convolutions), Net(convolutions)
    fit(whole, KFACCallback(**OFTEN), batch_size=32, epochs=3)
    fit(parts, KFACCallback(**OFTEN), batch_size=8, epochs=3, accumulate_grad_batches=4)
    torch.testing.assert_close(vector(whole), vector(parts), rtol=1e-4, atol=1e-5)


def test_the_loss_scale_is_undone_and_an_overflow_leaves_the_factors_alone():
    callbacks = [KFACCallback(factor_update_steps=1, inv_update_steps=1) for _ in range(3)]
    fit(Net(), callbacks[0], plugins=scaled_precision(1.0), max_steps=1)
    fit(Net(), callbacks[1], plugins=scaled_precision(2.0**14), max_steps=1)
    overflown = Net()
    fit(overflown, callbacks[2], plugins=scaled_precision(2.0**60), max_steps=2)
    assert torch.equal(vector(overflown), vector(Net()))
    plain, scaled, empty = ([f.value() for f in callback.preconditioners[0]._factors()] for callback in callbacks)
    for one, other in zip(plain, scaled, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=1e-3)
    assert not any(factor.any() for factor in empty)


class Gradients(pl.Callback):
    """The gradients that the optimizer gets."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.norm = torch.cat([p.grad.flatten() for p in pl_module.parameters()]).norm()


def test_clipping_comes_after():
    class Clipped(Net):
        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            self.seen = torch.cat([p.grad.flatten() for p in self.parameters()]).norm()

    module, gradients = Clipped(), Gradients()
    fit(module, KFACCallback.kaisa(**{**OFTEN, "damping": 0.1}), gradients, gradient_clip_val=0.1, max_steps=1)
    torch.testing.assert_close(module.seen, gradients.norm)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed_blocks_are_preconditioned_alike(use_reentrant):
    class Checkpointed(Net):
        def loss(self, batch):
            values = batch[0].clone().requires_grad_()
            return F.cross_entropy(checkpoint(self.net, values, use_reentrant=use_reentrant), batch[1])

    plain, checkpointed = Net(), Checkpointed()
    fit(plain, KFACCallback(**OFTEN))
    fit(checkpointed, KFACCallback(**OFTEN))
    assert torch.equal(vector(plain), vector(checkpointed))


class SharedNet(Net):
    """Two layers of one weight, one unused, one frozen."""

    def __init__(self):
        super().__init__()
        self.net[1].bias.requires_grad_(False)
        self.one, self.two, self.unused = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.two.weight = self.one.weight
        self.frozen = nn.Linear(3, 3).requires_grad_(False)

    def loss(self, batch):
        return F.cross_entropy(self.frozen(self.two(self.one(self.net(batch[0])))), batch[1])


def test_layers_that_are_left_out_keep_their_gradients():
    module, callback = SharedNet(), KFACCallback(**OFTEN)
    fit(module, callback)
    [part] = callback.preconditioners
    assert list(part.layers) == ["net.1", "net.3", "net.5", "unused"]
    assert part.layers["net.1"].sizes.num_inputs == 72  # without the frozen bias
    assert not part.layers["unused"].is_ready
    assert module.one.weight.grad is not None


def test_layers_that_attention_uses_without_a_call_are_named_as_left_out():
    choice = choose_layers(nn.TransformerEncoderLayer(8, 2, 16), KFACOptions())
    assert list(choice.chosen) == ["linear1", "linear2"]
    assert choice.skipped["self_attn.out_proj"] == "MultiheadAttention uses its weight without calling it"


def test_with_every_layer_skipped_it_is_plain_lightning():
    plain, skipped = Net(), Net()
    fit(plain)
    with pytest.warns(UserWarning, match="no layer to precondition.*net.1: it matches 'Linear' of skip_layers"):
        fit(skipped, KFACCallback(skip_layers=["Linear"]))
    assert torch.equal(vector(plain), vector(skipped))


def test_adam_under_it_is_warned_of():
    module = Net(optimizer=lambda module: torch.optim.Adam(module.parameters(), 0.001))
    with pytest.warns(UserWarning, match="Adam divides each gradient by its own running size"):
        fit(module, KFACCallback(), max_steps=2)


def test_a_loss_that_is_not_known_is_warned_of_where_its_scale_matters():
    class ByHand(Net):
        def loss(self, batch):
            return (self.net(batch[0]).logsumexp(0) @ torch.ones(3)) / 16

    fit(ByHand(), KFACCallback(**OFTEN), max_steps=2)
    with pytest.warns(UserWarning, match="does not know how the training step reduces its loss"):
        fit(ByHand(), KFACCallback.kaisa(), max_steps=2)


def test_losses_that_are_no_likelihoods_are_not_sampled():
    class Hinge(Net):
        def loss(self, batch):
            return F.multi_margin_loss(self.net(batch[0]), batch[1])

    with pytest.warns(UserWarning, match="cannot draw targets for multi_margin_loss at test_training.py"):
        fit(Hinge(), KFACCallback(fisher="monte_carlo"), max_steps=2)


# ---- what is refused


def test_fused_optimizers_with_a_scaler_are_refused():
    module = Net(optimizer=lambda module: torch.optim.SGD(module.parameters(), 0.1, fused=True))
    with pytest.raises(MisconfigurationException, match=r"a fused SGD and a GradScaler.*fused=False"):
        fit(module, KFACCallback(), plugins=scaled_precision(1.0))
    fit(module, KFACCallback(), max_steps=2)


def test_lbfgs_is_refused():
    module = Net(optimizer=lambda module: torch.optim.LBFGS(module.parameters()))
    with pytest.raises(MisconfigurationException, match="does not work with LBFGS: it takes a curvature of its own"):
        fit(module, KFACCallback())


def test_sharded_strategies_are_refused():
    run = SimpleNamespace(strategy=FSDPStrategy(), world_size=1)
    with pytest.raises(MisconfigurationException, match="does not work with FSDP"):
        check_strategy(run)


# ---- hooks, optimizers, precision


def hooks_of(module):
    return [hook for layer in module.modules() for hook in layer._forward_hooks.values()] + [
        hook for parameter in module.parameters() for hook in (parameter._post_accumulate_grad_hooks or {}).values()
    ]


def test_no_hook_is_left_after_a_fit_or_an_exception():
    class Failing(Net):
        def training_step(self, batch, batch_idx):
            if batch_idx == 2:
                raise KeyError("the user's own mistake")
            return super().training_step(batch, batch_idx)

    for module in (Net(), Failing()):
        with pytest.raises(KeyError, match="own mistake") if type(module) is Failing else nullcontext():
            fit(module, KFACCallback(**OFTEN))
        assert hooks_of(module) == []
        assert "training_step" not in vars(module.trainer.strategy)


def test_a_checkpoint_that_is_saved_after_an_exception_holds_the_factors():
    class Failing(Net):
        def training_step(self, batch, batch_idx):
            if batch_idx == 4:
                raise KeyError("the user's own mistake")
            return super().training_step(batch, batch_idx)

    callback = KFACCallback(**OFTEN)
    with pytest.raises(KeyError, match="own mistake"):
        fit(Failing(), callback)
    [state] = callback.state_dict()["parts"]
    assert state["num_steps"] == 4
    assert state["layers"]["net.1"]["factors"][0]["mass"] > 0


class TwoNets(Net):
    """Manual optimization with two optimizers, one of which steps every other time."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.other = mlp()

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        for optimizer, net in ((first, self.net), (second, self.other)):
            if optimizer is second and batch_idx % 2:
                continue
            optimizer.zero_grad()
            self.manual_backward(F.cross_entropy(net(batch[0]), batch[1]))
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(net.parameters(), 0.05, 0.9) for net in (self.net, self.other)]


def test_each_optimizer_has_its_own_layers_and_steps_in_manual_optimization():
    manual, callback = TwoNets(), KFACCallback(**OFTEN)
    fit(manual, callback)
    assert [part.num_steps for part in callback.preconditioners] == [6, 3]
    assert [list(part.layers) for part in callback.preconditioners] == [
        ["net.1", "net.3", "net.5"],
        ["other.1", "other.3", "other.5"],
    ]
    automatic = Net()
    fit(automatic, KFACCallback(**OFTEN))
    torch.testing.assert_close(vector(manual.net), vector(automatic.net), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_factors_are_in_float32_in_half_precision(precision):
    callback = KFACCallback(**OFTEN)
    fit(Net(), callback, precision=precision)
    [part] = callback.preconditioners
    for layer in part.layers.values():
        assert layer.factors[0].total.dtype == torch.float32
        assert layer.inverse.inputs.vectors.dtype == torch.float32


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_modules_are_preconditioned_alike():
    plain, compiled = Net(), Net()
    compiled.net = torch.compile(compiled.net, backend="eager")
    fit(plain, KFACCallback(**OFTEN))
    fit(compiled, KFACCallback(**OFTEN))
    torch.testing.assert_close(vector(plain), vector(compiled), rtol=1e-5, atol=1e-6)


def test_the_other_variant_of_lightning():
    class Other(lightning.pytorch.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net = mlp()

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.05, 0.9)

    own, other = Net(), Other()
    fit(own, KFACCallback(**OFTEN))
    run = trainer(lightning.pytorch, max_epochs=1, callbacks=[KFACCallback(**OFTEN)])
    run.fit(other, DataLoader(images(), batch_size=16))
    assert torch.equal(vector(own), vector(other))


def test_figures_are_logged_and_not_shown_in_the_progress_bar(tmp_path):
    run = fit(ValidatedNet(), KFACCallback(**OFTEN), logger=CSVLogger(tmp_path, "", ""), log_every_n_steps=2)
    for name in ("step_scale", "damping", "cosine", "seconds_inversions", "seconds_communication", "bytes_inverses"):
        assert torch.isfinite(run.logged_metrics[f"kfac/{name}"])
    assert not any(name.startswith("kfac/") for name in run.progress_bar_metrics)


# ---- resuming


@pytest.mark.parametrize(
    "options", [{}, {"fisher": "monte_carlo"}, {"compute_method": "inverse", "max_factor_size": 20}]
)
def test_a_resumed_run_is_the_uninterrupted_one_also_between_two_inversions(tmp_path, options):
    whole, options = Net(), {**OFTEN, "inv_update_steps": 7, **options}
    fit(whole, Checkpoints(tmp_path), KFACCallback(**options), epochs=3)
    for step in (6, 12):
        resumed = Net()
        fit(resumed, KFACCallback(**options), epochs=3, resume=tmp_path / f"step={step}.ckpt")
        assert torch.equal(vector(whole), vector(resumed))


def test_a_second_fit_goes_on_with_the_factors():
    module, callback = Net(), KFACCallback(**OFTEN)
    fit(module, callback)
    fit(module, callback)
    assert callback.preconditioners[0].num_steps == 12


def test_a_checkpoint_of_other_layers_is_warned_of(tmp_path):
    fit(Net(), Checkpoints(tmp_path), KFACCallback(skip_layers=["net.3"]), epochs=1)
    with pytest.warns(UserWarning, match="holds no Kronecker factors of these sizes for net.3"):
        fit(Net(), KFACCallback(), epochs=2, resume=tmp_path / "step=6.ckpt")


# ---- beside filtering


def filtered(folder, resume=None):
    pl.seed_everything(0, verbose=False)
    module, filtering = Classifier(), AutoAssistCallback("proportional", reweighting="inverse_probability")
    data = AutoAssistDataModule(ClustersData(120, 10), budget=0.5)
    callbacks = [KFACCallback(**OFTEN), filtering, Checkpoints(folder)]
    run = trainer(max_epochs=6, callbacks=callbacks, enable_checkpointing=True)
    run.fit(module, datamodule=data, ckpt_path=resume)
    return module, run


def test_factors_of_another_number_of_optimizers_are_warned_of():
    first = KFACCallback(**OFTEN)
    fit(Net(), first, max_steps=4)
    state = first.state_dict()
    resumed = KFACCallback(**OFTEN)
    resumed.load_state_dict({**state, "parts": state["parts"] * 2})
    with pytest.warns(UserWarning, match="factors of 2 optimizers with layers, and this run has 1 of these"):
        fit(Net(), resumed, max_steps=2)
    [part] = resumed.state_dict()["parts"]
    assert part["num_steps"] == 2


def test_it_stacks_with_filtering_and_resumes_bit_for_bit(tmp_path):
    module, run = filtered(tmp_path / "whole")
    assert run.callback_metrics["autoassist/keep_rate"] < 1
    assert run.callback_metrics["val_loss"] < 0.7
    for step in (13, 30):
        resumed, _ = filtered(tmp_path / "resumed", tmp_path / "whole" / f"step={step}.ckpt")
        assert torch.equal(vector(module), vector(resumed))


def test_a_run_without_it_imports_nothing_of_it():
    script = (
        "import sys\n"
        "from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule\n"
        "from tests.helpers.ordinary import Classifier, ClustersData, trainer\n"
        "run = trainer(max_epochs=2, callbacks=[AutoAssistCallback()])\n"
        "run.fit(Classifier(), datamodule=AutoAssistDataModule(ClustersData(40, 10), budget=0.5))\n"
        "found = [name for name in sys.modules if name.startswith('lightning_autoassist.kfac')]\n"
        "assert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
