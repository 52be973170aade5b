"""Local learning on one device against plain Lightning and against a loop written by hand."""

from __future__ import annotations

import subprocess
import sys

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule, LocalLearningCallback
from lightning_autoassist.trainer_support.variants import FLAVOURS
from tests.helpers.local_learning import BLOCKS, Blocks, fit, images, made
from tests.helpers.ordinary import trainer
from tests.helpers.paths import ROOT
from tests.helpers.resuming import SaveEvery


class Recorder(pl.Callback):
    """The gradients of each optimizer step, and the batches that it was made of."""

    def __init__(self):
        self.gradients, self.batches = [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        named = [(name, one.grad) for name, one in pl_module.named_parameters()]
        self.gradients.append({name: gradient.clone() for name, gradient in named if gradient is not None})

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(batch)


def assert_same(left, right, atol=0.0):
    torch.testing.assert_close(left, right, rtol=0, atol=atol)


def copied(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def bare_loop(module, heads, batches, *, accumulate=1, clip=None):
    """Decoupled greedy learning, by hand; the first step is backpropagation, as the callback's is."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    of_heads = [torch.optim.SGD(head.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4) for head in heads]
    blocks = [getattr(module, name) for name in BLOCKS]
    for step, (pictures, labels) in enumerate(batches):
        if step % accumulate == 0:
            for each in [optimizer, *of_heads]:
                each.zero_grad()
        values = pictures
        for block, head in zip(blocks, heads, strict=True):
            values = block(values)
            if step > 0:
                (F.cross_entropy(head(values), labels, label_smoothing=0.1) / accumulate).backward()
                values = values.detach()
        logits = module.classifier(values.mean((2, 3)))
        (F.cross_entropy(logits, labels, label_smoothing=0.1) / accumulate).backward()
        if (step + 1) % accumulate == 0:
            if clip is not None:
                nn.utils.clip_grad_norm_(module.parameters(), clip)
                for head in heads:
                    if step > 0:
                        nn.utils.clip_grad_norm_(head.parameters(), clip)
            for each in of_heads:
                each.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"]
                each.step()
            optimizer.step()
            schedule.step()
    return module


def pooled(shape, out_shape):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(shape[0], out_shape[0]))


def made_heads(callback, module):
    """The heads that the callback made, as they were at first."""
    from lightning_autoassist.local_learning.heads import seeded

    shapes = [cut.shape for cut in callback.plan.blocks.cuts]
    base = callback._steps.base_seed
    return [seeded(lambda shape=shape: pooled(shape, (4,)), base + block) for block, shape in enumerate(shapes)]


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}, {"gradient_clip_val": 0.5}], ids=str)
def test_fifty_steps_equal_a_loop_written_by_hand(options):
    callback, recorder, module = LocalLearningCallback(BLOCKS, pooled), Recorder(), made()
    fit(module, callback, recorder, num_instances=160, epochs=5, **options)
    assert len(recorder.batches) == 50
    other = made()
    bare_loop(
        other,
        made_heads(callback, other),
        recorder.batches,
        accumulate=options.get("accumulate_grad_batches", 1),
        clip=options.get("gradient_clip_val"),
    )
    assert_same(module.state_dict(), other.state_dict(), atol=1e-6)


@pytest.mark.parametrize("options", [{"blocks": []}, {"blocks": 4, "fine_tune": 1.0}], ids=str)
def test_without_a_cut_training_is_plain_bit_for_bit(options):
    plain, module = made(dropout=0.2), made(dropout=0.2)
    pl.seed_everything(3, verbose=False)
    fit(plain)
    pl.seed_everything(3, verbose=False)
    fit(module, LocalLearningCallback(**options))
    assert module.losses == plain.losses
    assert_same(module.state_dict(), plain.state_dict())


def test_the_last_block_gets_the_gradients_of_a_detached_network():
    callback, recorder, module = LocalLearningCallback(BLOCKS[2:], "linear"), Recorder(), made()
    weights = []

    class Copy(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            weights.append(copied(pl_module))

    fit(module, callback, recorder, Copy(), epochs=1)
    reference = made()
    reference.load_state_dict(weights[3])
    pictures, labels = recorder.batches[3]
    values = reference.block3(reference.block2(reference.block1(pictures))).detach()
    F.cross_entropy(reference.classifier(values.mean((2, 3))), labels, label_smoothing=0.1).backward()
    assert_same(recorder.gradients[3]["classifier.weight"], reference.classifier.weight.grad)


class Mixed(Blocks):
    """Mixes instances and targets by a number that is another one in each step."""

    def training_step(self, batch, batch_idx):
        pictures, labels = batch
        share, order = 0.9 - 0.01 * (self.global_step % 7), torch.randperm(len(labels))
        logits = self(share * pictures + (1 - share) * pictures[order])
        return share * F.cross_entropy(logits, labels) + (1 - share) * F.cross_entropy(logits, labels[order])


def test_targets_that_are_made_in_the_step_train_blocks_after_it_with_one_warning():
    pl.seed_everything(0, verbose=False)
    module, callback = Mixed(), LocalLearningCallback(BLOCKS)
    with pytest.warns(UserWarning, match="saves no memory in this run") as caught:
        fit(module, callback, epochs=3)
    assert len([one for one in caught if "saves no memory" in str(one.message)]) == 1
    assert len(callback._steps.losses) == 3


DRAWS = {
    "beta": lambda: torch.distributions.Beta(torch.tensor(0.5), torch.tensor(0.5)).sample(),
    "uniform": lambda: torch.empty(()).uniform_(),
    "exponential": lambda: torch.empty(()).exponential_().clamp(max=1),
    "dropout": lambda: F.dropout(torch.ones(())) / 2,
}


class MixedByDraw(Blocks):
    """Mixes instances and targets by a number that torch draws in the step."""

    def training_step(self, batch, batch_idx):
        pictures, labels = batch
        share = DRAWS[self.kind]()
        self.seen = share * pictures + (1 - share) * pictures.flip(0), labels, float(share)
        return mixed_loss(self(self.seen[0]), labels, share)


def mixed_loss(logits, labels, share):
    return share * F.cross_entropy(logits, labels) + (1 - share) * F.cross_entropy(logits, labels.flip(0))


class HeadLosses(pl.Callback):
    """The loss of the first block's head, and what it is by hand."""

    def __init__(self, local):
        self.local, self.pairs = local, []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.before = copied(pl_module), [copied(each.heads[0]) for each in self.local._steps.heads]
        self.batch = batch

    def by_hand(self, module, logits):
        return mixed_loss(logits, *module.seen[1:])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        (state, heads), pictures = self.before, pl_module.seen[0]
        if heads:
            reference, head = Blocks(), pooled((8,), (4,))
            reference.load_state_dict(state)
            head.load_state_dict(heads[0])
            own = self.by_hand(pl_module, head(reference.block1(pictures)))
            self.pairs.append((float(self.local._steps.losses[0]), float(own.detach())))


@pytest.mark.filterwarnings("ignore:Local learning saves no memory in this run")
@pytest.mark.parametrize("kind", DRAWS)
def test_numbers_that_the_step_draws_are_the_same_for_heads(kind):
    pl.seed_everything(0, verbose=False)
    module, local = MixedByDraw(), LocalLearningCallback(BLOCKS[:1], pooled)
    module.kind, losses = kind, HeadLosses(local)
    fit(module, local, losses)
    assert len(losses.pairs) == 11
    for found, own in losses.pairs:
        assert found == pytest.approx(own, abs=1e-6)


class Annealed(MixedByDraw):
    """A coefficient, and a tensor that the loss always reads, change while it trains."""

    def training_step(self, batch, batch_idx):
        pictures, labels = batch
        self.seen = pictures, labels, None
        if self.kind == "an epoch's":
            weight = torch.tensor([1.0, 2.0, 0.5, 1.0]) if self.current_epoch > 1 else None
            self.own_loss = lambda logits: F.cross_entropy(logits, labels, weight)
        else:
            share = 0.2 if self.global_step < 9 else 0.9
            self.own_loss = lambda logits: share * F.cross_entropy(logits, labels)
        return self.own_loss(self(pictures))


class AnnealedLosses(HeadLosses):
    def by_hand(self, module, logits):
        return module.own_loss(logits)


@pytest.mark.parametrize(("kind", "most_stale"), [("an epoch's", 1), ("a step's", 16)])
def test_a_loss_that_changes_is_learnt_anew(kind, most_stale):
    pl.seed_everything(0, verbose=False)
    module, local = Annealed(), LocalLearningCallback(BLOCKS[:1], pooled)
    module.kind, losses = kind, AnnealedLosses(local)
    fit(module, local, losses, epochs=6)
    wrong = [found != pytest.approx(own, abs=1e-6) for found, own in losses.pairs]
    assert sum(wrong) <= most_stale
    assert local._steps.programs.get(list(losses.batch)) is not None  # it is known again


def test_early_and_joint_steps_are_equal():
    """The heads' losses inside of the forward pass, and after the step with what was seen in it."""
    early, joint = made(dropout=0.2), made(dropout=0.2)
    pl.seed_everything(3, verbose=False)
    fit(early, LocalLearningCallback(BLOCKS))
    callback = LocalLearningCallback(BLOCKS)
    callback._steps.programs.get = lambda leaves: None
    pl.seed_everything(3, verbose=False)
    fit(joint, callback)
    assert_same(early.state_dict(), joint.state_dict(), atol=1e-6)


class Sliced(Blocks):
    """Targets behind a slice and a cast, a sum of two losses with coefficients, and a dictionary."""

    def training_step(self, batch, batch_idx):
        pictures, labels = batch
        both = torch.stack([labels.float(), torch.zeros(len(labels))], 1)
        logits = self(pictures)
        target = both[:, 0].long()
        penalty = 1e-3 * self.classifier.weight.square().sum()
        loss = 0.7 * F.nll_loss(F.log_softmax(logits, 1), target) + 0.3 * F.multi_margin_loss(logits, target)
        return {"loss": loss + penalty, "logits": logits.detach()}


def test_targets_are_followed_through_slices_and_casts():
    pl.seed_everything(0, verbose=False)
    module, callback = Sliced(), LocalLearningCallback(BLOCKS)
    fit(module, callback, epochs=4)
    assert callback._steps.programs.why_of_one_step is None
    assert callback.saved_bytes.keys() == {0, 1, 2, 3}  # of a step whose program was known before
    assert all(float(loss) < 1.0 for loss in callback._steps.losses.values())


@pytest.mark.parametrize(
    "options",
    [
        {"blocks": 4, "heads": "mlp_sr"},
        {"blocks": 3, "mode": "overlapping", "heads": "linear"},
        {"mode": "greedy"},
        {"blocks": 3, "fine_tune": 0.4},
    ],
    ids=str,
)
def test_each_mode_trains(options):
    module, callback = made(), LocalLearningCallback(**options)
    run = fit(module, callback, num_instances=160, epochs=4)
    assert sum(module.losses[-5:]) < 0.95 * sum(module.losses[:5])
    assert run.global_step == 40
    assert set(module.state_dict()) == set(Blocks().state_dict())


def test_overlapping_gives_each_block_the_gradients_of_two_losses():
    callback, recorder, module = LocalLearningCallback(BLOCKS[:2], pooled, mode="overlapping"), Recorder(), made()
    states, heads = [], []

    class Copy(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            states.append(copied(pl_module))
            heads.append([copied(each.heads[0]) for each in callback._steps.heads])

    fit(module, callback, recorder, Copy(), epochs=1)
    reference = made()
    reference.load_state_dict(states[2])
    own = [pooled((8,), (4,)) for _ in range(2)]
    for head, state in zip(own, heads[2], strict=True):
        head.load_state_dict(state)
    pictures, labels = recorder.batches[2]

    def loss(logits):
        return F.cross_entropy(logits, labels, label_smoothing=0.1)

    first = reference.block1(pictures)
    second = reference.block2(first.clone())
    third = reference.classifier(reference.block3(second.clone()).mean((2, 3)))
    losses = [loss(own[0](first)), loss(own[1](second)), loss(third)]
    of_first = torch.autograd.grad(losses[0] + losses[1], list(reference.block1.parameters()), retain_graph=True)
    of_second = torch.autograd.grad(losses[1] + losses[2], list(reference.block2.parameters()), retain_graph=True)
    seen = recorder.gradients[2]
    for block, gradients in (("block1", of_first), ("block2", of_second)):
        for (name, _), gradient in zip(getattr(reference, block).named_parameters(), gradients, strict=True):
            assert_same(seen[f"{block}.{name}"], gradient, atol=1e-6)


def test_blocks_save_less_than_the_network():
    callback = LocalLearningCallback(BLOCKS, "linear")
    fit(made(), callback)
    whole = sum(row["saved_bytes"] for row in callback.describe())
    assert max(callback.saved_bytes.values()) < 0.55 * whole


def test_automatic_mixed_precision_trains():
    module = made()
    fit(module, LocalLearningCallback(BLOCKS), num_instances=160, epochs=3, precision="bf16-mixed")
    assert sum(module.losses[-5:]) < 0.95 * sum(module.losses[:5])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_resumed_run_is_equal_bit_for_bit(tmp_path, optimizer):
    options = {"shuffle": False, "limit_train_batches": 1, "epochs": 5, "num_instances": 32}
    whole = made(dropout=0.2, optimizer=optimizer)
    fit(whole, LocalLearningCallback(BLOCKS), SaveEvery(tmp_path), **options)
    for step in (1, 2, 4):  # before it is known how the loss is computed, and after
        resumed = made(seed=5, dropout=0.2, optimizer=optimizer)
        fit(resumed, LocalLearningCallback(BLOCKS), resume=tmp_path / f"{step}.ckpt", **options)
        assert resumed.losses == whole.losses[step:]
        assert_same(resumed.state_dict(), whole.state_dict())


def test_every_variant_of_lightning_trains():
    for flavour in FLAVOURS:

        class Module(flavour.LightningModule):
            def __init__(self):
                super().__init__()
                self.net = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))

            def training_step(self, batch, batch_idx):
                return F.cross_entropy(self.net(batch[0].flatten(1)), batch[1])

            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=0.1)

        callback = LocalLearningCallback(3)
        run = trainer(flavour, max_epochs=1, callbacks=[callback])
        run.fit(Module(), DataLoader(images(), 16))
        assert [row["ends_after"] for row in callback.describe()] == ["net.1", "net.3", "the loss"]


def test_filtering_gives_all_heads_the_weights_of_the_batch():
    """With weights on, each block's gradients are those of the weighted loss."""
    pl.seed_everything(0, verbose=False)
    module, local, recorder = Blocks(optimizer="adamw"), LocalLearningCallback(BLOCKS[:1], pooled), Recorder()
    seen = []
    filtering = AutoAssistCallback(policy="proportional", reweighting="inverse_probability")

    class Copy(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            draw = filtering._steps.draw
            weights = None if draw is None or draw.weights is None else torch.from_numpy(draw.weights)
            heads = [copied(each.heads[0]) for each in local._steps.heads]
            seen.append((weights, heads, copied(pl_module)))

    data = AutoAssistDataModule(Loaders(), budget=0.6)
    run = trainer(max_epochs=4, limit_val_batches=1, callbacks=[filtering, local, recorder, Copy()])
    run.fit(module, datamodule=data)
    assert filtering.summary()["keep_rate"] < 1
    step = next(i for i in range(len(seen) - 1, 0, -1) if seen[i][0] is not None and float(seen[i][0].std()) > 0)
    weights, heads, state = seen[step]
    reference, head = Blocks(), pooled((8,), (4,))
    reference.load_state_dict(state)
    head.load_state_dict(heads[0])
    pictures, labels = recorder.batches[step]
    rows = F.cross_entropy(head(reference.block1(pictures)), labels, label_smoothing=0.1, reduction="none")
    (rows * weights.float()).mean().backward()
    for name, parameter in reference.block1.named_parameters():
        assert_same(recorder.gradients[step][f"block1.{name}"], parameter.grad, atol=1e-6)


class Loaders(pl.LightningDataModule):
    def train_dataloader(self):
        return DataLoader(images(160), 16, shuffle=True)

    def val_dataloader(self):
        return DataLoader(images(16), 16)


def test_a_run_without_it_imports_nothing_of_it():
    code = (
        "import sys, lightning_autoassist as a; a.AutoAssistCallback, a.AutoAssistDataModule; "
        "assert not [name for name in sys.modules if 'local_learning' in name]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_blocks_are_seeded_without_torchs_manual_seed(monkeypatch):
    # It seeds CUDA and others that the run does not use, and takes milliseconds where these are not initialised.
    module, callback = made(dropout=0.1), LocalLearningCallback(blocks=BLOCKS)
    monkeypatch.setattr(torch, "manual_seed", None)
    fit(module, callback)
    assert len(module.losses) == 12


def test_a_callback_that_has_trained_one_module_begins_anew_with_another():
    callback, again = LocalLearningCallback(3, "linear"), LocalLearningCallback(3, "linear")
    fit(made(width=8), callback)
    later, fresh = made(seed=1, width=12), made(seed=1, width=12)
    for module, one in ((later, callback), (fresh, again)):
        pl.seed_everything(3, verbose=False)
        fit(module, one)
    assert_same(later.state_dict(), fresh.state_dict())


def test_nor_do_its_heads_hinder_a_resumed_run_of_another_module(tmp_path):
    used = LocalLearningCallback(3, "linear")
    fit(made(width=8), used)
    fit(made(width=12), LocalLearningCallback(3, "linear"), SaveEvery(tmp_path), epochs=1)
    resumed = [made(width=12), made(width=12)]
    for module, callback in zip(resumed, (used, LocalLearningCallback(3, "linear")), strict=True):
        pl.seed_everything(3, verbose=False)
        fit(module, callback, resume=tmp_path / "6.ckpt", epochs=2)
    assert_same(resumed[0].state_dict(), resumed[1].state_dict())


class Predicted(Blocks):
    def predict_step(self, batch, batch_idx):
        return self(batch[0])


def test_validation_and_prediction_are_plain():
    module = Predicted()
    callback = LocalLearningCallback(BLOCKS)
    run = fit(module, callback)
    pictures, labels = images(32, seed=1).tensors
    module.eval()
    with torch.no_grad():
        logits = module(pictures)
    assert float(run.callback_metrics["val_loss"]) == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)
    predicted = torch.cat(run.predict(module, DataLoader(images(32, seed=1), 16)))
    torch.testing.assert_close(predicted, logits)


@pytest.mark.parametrize("options", [{}, {"gradient_clip_val": 0.5}, {"accumulate_grad_batches": 2}], ids=str)
def test_a_loss_scale_changes_nothing(options):
    """Of the gradients that Lightning clips and the optimizers of blocks and heads get."""
    found = []
    for scale in (1.0, 1024.0):
        recorder, module = Recorder(), made()  # which seeds
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        local = LocalLearningCallback(BLOCKS, "linear")
        fit(module, local, recorder, plugins=InFullPrecision("16-mixed", "cpu", scaler), **options)
        found.append((recorder.gradients, copied(module), [copied(each.heads) for each in local._steps.heads]))
    for one, other in zip(*found, strict=True):
        assert_same(one, other)


class InFullPrecision(MixedPrecision):
    """A GradScaler without autocast: powers of two then change no bit."""

    def autocast_context_manager(self):
        return torch.autocast("cpu", enabled=False)


def test_a_step_that_overflows_leaves_blocks_and_heads_alone():
    module, local = made(), LocalLearningCallback(BLOCKS, "linear")
    states = []

    class Copy(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            heads = [copied(each.heads) for each in local._steps.heads]
            states.append(({name: one.detach().clone() for name, one in pl_module.named_parameters()}, heads))
            if batch_idx == 2:
                batch[0].mul_(float("inf"))

    fit(module, local, Copy(), epochs=1, plugins=InFullPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu")))
    assert_same(states[3], states[2])
    assert not torch.equal(states[4][0]["block1.0.weight"], states[3][0]["block1.0.weight"])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_blocks_train_alike():
    plain, compiled = made(), made()
    compiled.block1 = torch.compile(compiled.block1, backend="eager")
    compiled.block3 = torch.compile(compiled.block3, backend="eager")
    for module in (plain, compiled):
        pl.seed_everything(3, verbose=False)
        fit(module, LocalLearningCallback(BLOCKS))
    for one, other in zip(compiled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_losses_and_bytes_of_blocks_are_logged(tmp_path):
    run = fit(made(), LocalLearningCallback(BLOCKS), logger=CSVLogger(tmp_path, "", ""), log_every_n_steps=1)
    for block in (1, 2, 3):
        assert torch.isfinite(run.logged_metrics[f"local_learning/loss/block_{block}"])
    saved = [int(run.logged_metrics[f"local_learning/saved_bytes/block_{block}"]) for block in (1, 2, 3, 4)]
    assert min(saved) > 0
