"""What is captured from whole modules, and that nothing of them changes."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule, AutoAssistPolicy
from tests import zoo
from tests.ordinary import trainer

NUM_INSTANCES, BATCH_SIZE = 24, 8

pytestmark = [
    pytest.mark.filterwarnings("ignore:this run trains on"),
    pytest.mark.filterwarnings("ignore:.*is taken for the mean of one loss an instance"),
    pytest.mark.filterwarnings("ignore:the loss has terms beside the instances' own"),
]


class Columns(Dataset):
    """Instances from columns, in the structure of the first."""

    def __init__(self, columns):
        self.columns = columns

    def __len__(self):
        return NUM_INSTANCES

    def __getitem__(self, index):
        if isinstance(self.columns, dict):
            return {name: column[index] for name, column in self.columns.items()}
        return tuple(column[index] for column in self.columns)


def random_columns():
    generator = torch.Generator().manual_seed(0)

    def tokens(low=1):
        return torch.randint(low, zoo.VOCABULARY, (NUM_INSTANCES, zoo.LENGTH), generator=generator)

    def normal(*shape):
        return torch.randn(NUM_INSTANCES, *shape, generator=generator)

    labels = torch.randint(0, zoo.CLASSES, (NUM_INSTANCES,), generator=generator)
    padded = tokens()
    for row, length in enumerate(torch.randint(2, zoo.LENGTH, (NUM_INSTANCES,), generator=generator).tolist()):
        padded[row, length:] = zoo.PAD
    masks = torch.randint(0, zoo.CLASSES, (NUM_INSTANCES, 8, 8), generator=generator)
    masks[:, 0] = 255
    return {
        "features": (normal(zoo.WIDTH), labels),
        "images": (normal(1, 8, 8), labels),
        "masks": (normal(1, 8, 8), masks),
        "values": (normal(zoo.WIDTH), normal(1)),
        "two targets": (normal(zoo.WIDTH), labels, normal(1)),
        "tags": (normal(zoo.WIDTH), torch.randint(0, 2, (NUM_INSTANCES, zoo.CLASSES), generator=generator).float()),
        "triplets": (normal(zoo.WIDTH), normal(zoo.WIDTH), normal(zoo.WIDTH)),
        "tokens": (tokens(),),
        "dict": {"input_ids": tokens(), "labels": labels},
        "pairs": {"source": tokens(), "target": padded},
    }


class Case(NamedTuple):
    """A module, and what is to be found in its step.

    Attributes:
        losses: Names of the losses captured; empty where training is to be unfiltered.
        coefficients: Theirs.
        has_labels: Whether class labels are found.
        adds_up: Whether the instances' losses have the returned loss for their mean.
    """

    module: type
    data: str
    losses: tuple[str, ...]
    coefficients: tuple[float, ...] = (1.0,)
    has_labels: bool = False
    adds_up: bool = True


CASES = [
    Case(zoo.ImageClassifier, "images", ("cross_entropy",), has_labels=True),
    Case(zoo.Transformer, "dict", ("cross_entropy",), has_labels=True),
    Case(zoo.LanguageModel, "tokens", ("cross_entropy",)),
    Case(zoo.TimeMajorLanguageModel, "tokens", ("cross_entropy",)),
    Case(zoo.EncoderDecoder, "pairs", ("cross_entropy",), adds_up=False),  # a mean over tokens, not over instances
    Case(zoo.Segmentation, "masks", ("cross_entropy",), adds_up=False),  # a mean over weighted classes
    Case(zoo.Regression, "values", ("mse_loss",)),
    Case(zoo.MultiTask, "two targets", ("cross_entropy", "mse_loss"), (1.0, 0.3), has_labels=True),
    Case(zoo.MultiLabel, "tags", ("binary_cross_entropy_with_logits",)),
    Case(zoo.Gan, "features", ()),
    Case(zoo.Vae, "features", ("mse_loss",), adds_up=False),  # the divergence is no named loss
    Case(zoo.TwoViews, "features", ()),
    Case(zoo.Triplet, "triplets", ("triplet_margin_loss",)),
    Case(zoo.Autoencoder, "features", ("mse_loss",)),
    Case(zoo.Distillation, "features", ("kl_div", "cross_entropy"), (2.0, 0.5), has_labels=True, adds_up=False),
    Case(zoo.HandWritten, "features", ("hand-written loss",), (-1.0,)),
    Case(zoo.HandWrittenSquare, "values", ("hand-written loss",)),
    Case(zoo.EarlyBound, "features", ("cross_entropy",), has_labels=True),
    Case(zoo.OwnCriterion, "features", ("cross_entropy",), has_labels=True),
    Case(zoo.Manual, "features", ("cross_entropy",), has_labels=True, adds_up=False),  # returns nothing
    Case(zoo.GivesLosses, "features", ("instance_loss",)),
    Case(zoo.HasLossMethod, "features", ("instance_loss",), adds_up=False),
    Case(zoo.Opaque, "features", ()),
]
if torch.__version__ >= "2.7":
    CASES.append(Case(zoo.Compiled, "features", ("cross_entropy",), has_labels=True))


class Recording(AutoAssistCallback):
    """The callback, with a note of each step's observation."""

    def __init__(self, **options):
        super().__init__(**options)
        self.observations = []
        self.explanations = []
        self._capture.explain = self.explanations.append

    def _observe(self, captured, output, *details):
        super()._observe(captured, output, *details)
        if self._step is not None:
            loss = output["loss"] if isinstance(output, dict) else output
            self.observations.append((self._step[1], None if loss is None else loss.detach().clone()))


def loader_of(case):
    return DataLoader(Columns(random_columns()[case.data]), batch_size=BATCH_SIZE, shuffle=True)


def fit(case, callback=None, budget=1.0, epochs=1, **options):
    pl.seed_everything(0, verbose=False)
    module = case.module()
    run = trainer(max_epochs=epochs, callbacks=[] if callback is None else [callback], **options)
    if callback is None:
        run.fit(module, train_dataloaders=loader_of(case))
    else:
        run.fit(module, datamodule=AutoAssistDataModule(loader_of(case), budget=budget))
    return module


def name_of(case):
    return case.module.__name__


def keeping_all(**options):
    return Recording(policy=AutoAssistPolicy(gamma=1.0), score="loss", **options)


@pytest.mark.parametrize(
    "options",
    [{}, {"accumulate_grad_batches": 2}, {"gradient_clip_val": 0.1}, {"precision": "bf16-mixed"}],
    ids=str,
)
@pytest.mark.parametrize("case", CASES, ids=name_of)
@pytest.mark.filterwarnings("ignore:AutoAssist stopped filtering")
def test_nothing_filtered_nothing_changed(case, options):
    if options and "precision" not in options and case.module in (zoo.Gan, zoo.Manual):
        pytest.skip("the Trainer refuses these options for manual optimization")
    expected = fit(case, **options).state_dict()
    found = fit(case, keeping_all(), **options).state_dict()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("case", [CASES[0], CASES[2]], ids=name_of)
def test_a_module_wrapped_for_distributed_training_is_captured_and_unchanged(case, monkeypatch):
    """One process, whose module Lightning wraps in DistributedDataParallel."""
    monkeypatch.setenv("MASTER_PORT", "0")
    options = {"strategy": "ddp", "use_distributed_sampler": False}  # else plain Lightning draws in an order of its own
    expected = fit(case, **options).state_dict()
    callback = keeping_all()
    found = fit(case, callback, **options).state_dict()
    assert len(callback.observations) == 3
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("case", [case for case in CASES if case.losses], ids=name_of)
def test_what_is_captured(case):
    callback = keeping_all()
    fit(case, callback)
    assert len(callback.observations) == NUM_INSTANCES // BATCH_SIZE
    for observation, loss in callback.observations:
        assert observation.losses.shape == observation.scores.shape == (BATCH_SIZE,)
        assert observation.losses.isfinite().all()
        assert [part.split(" ")[0] for part in observation.source.split(" + ")] == [
            name.split(" ")[0] for name in case.losses
        ]
        assert (observation.labels is not None) == case.has_labels
        if case.adds_up:
            torch.testing.assert_close(observation.losses.mean(), loss, rtol=1e-5, atol=1e-6)
    if "instance_loss" not in case.losses:
        for parts in callback.explanations:
            reduced = [part.coefficient for part in parts]
            assert reduced == pytest.approx(list(case.coefficients))
            if not case.losses[0].startswith("hand"):
                assert all("zoo.py:" in part.source for part in parts)


@pytest.mark.parametrize("case", [case for case in CASES if not case.losses], ids=name_of)
def test_what_cannot_be_told_apart_trains_unfiltered_with_one_warning(case):
    callback = Recording(score="loss")
    with pytest.warns(UserWarning, match="AutoAssist stopped filtering") as caught:
        fit(case, callback, budget=1.0, epochs=3)
    (message,) = [str(each.message) for each in caught if "stopped filtering" in str(each.message)]
    assert f"{case.module.__name__}.training_step" in message
    assert "instance_loss" in message
    assert callback.observations == []
    assert callback.summary()["keep_rate"] == 1


@pytest.mark.parametrize("case", [case for case in CASES if case.losses], ids=name_of)
@pytest.mark.parametrize("weights", ["none", "sum", "mean"])
def test_every_module_trains_filtered(case, weights):
    callback = Recording(weights=weights, score="loss")
    module = fit(case, callback, budget=1.0, epochs=6)
    assert callback.summary()["keep_rate"] < 1
    assert all(parameter.isfinite().all() for parameter in module.parameters())


def test_two_views_are_told_apart_on_request():
    from lightning_autoassist import InstanceLossCapture

    callback = Recording(score="loss")
    callback._capture = InstanceLossCapture(score="loss", row_order="time_major")
    fit(Case(zoo.TwoViews, "features", ("cross_entropy",)), callback)
    assert len(callback.observations) == 3
    for observation, loss in callback.observations:
        torch.testing.assert_close(observation.losses.mean(), loss)


@pytest.mark.parametrize("module_type", [zoo.LanguageModel, zoo.TimeMajorLanguageModel])
def test_losses_of_a_language_model_are_its_instances(module_type):
    """Against the loss of each instance alone, with the parameters that the batch met."""
    alone = []

    class Watched(module_type):
        def training_step(self, batch, batch_idx):
            self.eval()  # the same with and without the others
            with torch.no_grad():
                alone.append(torch.stack([super(Watched, self).training_step([row[None]], 0) for row in batch[0]]))
            return super().training_step(batch, batch_idx)

    callback = keeping_all()
    fit(Case(Watched, "tokens", ("cross_entropy",)), callback)
    for (observation, _), losses in zip(callback.observations, alone, strict=True):
        torch.testing.assert_close(observation.losses, losses)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_scripted_losses_are_captured():
    @torch.jit.script
    def scripted(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(logits, labels)

    class Scripted(zoo.Base):
        def training_step(self, batch, batch_idx):
            return scripted(self.net(batch[0]), batch[1])

    callback = keeping_all()
    fit(Case(Scripted, "features", ()), callback)
    assert len(callback.observations) == 3
    for observation, loss in callback.observations:
        assert observation.source == "nll_loss in the autograd graph"
        torch.testing.assert_close(observation.losses.mean(), loss)


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_step_that_returns_nothing_now_and_then_costs_no_filtering():
    class Sometimes(zoo.Base):
        def training_step(self, batch, batch_idx):
            return None if batch_idx == 1 else F.cross_entropy(self.net(batch[0]), batch[1])

    callback = keeping_all()
    fit(Case(Sometimes, "features", ()), callback, epochs=2)
    assert len(callback.observations) == 4


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_ours_is_left(fails):
    class Failing(zoo.ImageClassifier):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            if fails:
                raise ArithmeticError("the user's own")
            return loss

    pl.seed_everything(0, verbose=False)
    module, callback = Failing(), AutoAssistCallback(weights="sum")
    run = trainer(max_epochs=3, callbacks=[callback])
    data = AutoAssistDataModule(loader_of(Case(Failing, "images", ())), budget=1.0)
    plain = Failing()
    if fails:
        with pytest.raises(ArithmeticError, match="the user's own"):
            run.fit(module, datamodule=data)
        with pytest.raises(ArithmeticError, match="the user's own"):
            trainer(max_epochs=3).fit(plain, train_dataloaders=loader_of(Case(Failing, "images", ())))
    else:
        run.fit(module, datamodule=data)
        trainer(max_epochs=3).fit(plain, train_dataloaders=loader_of(Case(Failing, "images", ())))
    assert module.__dict__.keys() == plain.__dict__.keys()
    assert all(not each._forward_hooks and not each._backward_hooks for each in module.modules())
    assert all(not parameter._backward_hooks for parameter in module.parameters())
    assert "training_step" not in run.strategy.__dict__
    assert not torch.overrides._get_current_function_mode_stack()
