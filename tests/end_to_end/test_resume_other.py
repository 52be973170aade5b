"""Checkpoints of other runs: what fits is kept, the rest begins anew with one warning; evaluation touches nothing."""

from __future__ import annotations

import warnings

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule
from tests.helpers.ordinary import Classifier, ClustersData, CountingDataset, trainer
from tests.helpers.resuming import B, DrawingClassifier, Fit, assert_same

pytestmark = [
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
]


def resumed_with_warnings(folder, checkpoint, **options):
    """The resumed fit, and what AutoAssist warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit = Fit(folder, checkpoint, **options)
    ours = [str(one.message) for one in caught if "begin" in str(one.message) and "checkpoint" in str(one.message)]
    return fit, [message for message in ours if "not resumable" not in message]


def halves(features):
    return features[0][:, :4]


OTHERS = {
    "policy": ({"policy": "autoassist"}, {"policy": "infobatch"}, ["policy=AutoAssistPolicy", "the Assistant"]),
    "policy of one score": ({"policy": "infobatch"}, {"policy": "selective_backprop"}, ["statistics begin anew"]),
    "policy within": (
        {"policy": "class_quota"},
        {"policy": "autoassist"},
        ["policy=ClassQuotaPolicy(", "AutoAssistPolicy now"],
    ),
    "to uniform and back": ({"policy": "uniform"}, {"policy": "proportional"}, ["policy=UniformPolicy"]),
    "assistant": ({"assistant": "memory"}, {"assistant": "logistic"}, ["the Assistant"]),
    "assistant of features": ({"assistant": "logistic"}, {"assistant": "mlp"}, ["the Assistant"]),
    "score": ({"score": "loss"}, {"score": "gradient_norm"}, ["the instances' scores"]),
    "features": (
        {"assistant": "logistic"},
        {"assistant": "logistic", "features": halves},
        ["the instances' features"],
    ),
    "features in a file": (
        {"assistant": "logistic", "feature_memory": 0},
        {"assistant": "logistic", "feature_memory": 0, "features": halves},
        ["the instances' features"],
    ),
    "width": (
        {"assistant": "logistic"},
        {"assistant": "logistic", "max_features": 4},
        ["an instance has 4 features, and had 8"],
    ),
}


@pytest.mark.parametrize(("before", "now", "words"), OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("step", [3, 8])
def test_another_setting_is_named_in_one_warning(tmp_path, before, now, words, step):
    Fit(tmp_path / "before", settings=before)
    fit, found = resumed_with_warnings(tmp_path / "now", tmp_path / "before" / f"{step}.ckpt", settings=now)
    if words[0].startswith("an instance has") and step == 8:
        return  # every instance has its features by then, and keeps them
    (warning,) = found
    for part in words:
        assert part in warning
    assert fit.run.global_step == 12
    assert fit.callback._learner.is_filtering
    assert fit.callback.instances.seen.sum() > 30


def test_what_fits_of_another_policys_checkpoint_is_kept(tmp_path):
    before = Fit(tmp_path / "before", settings={"policy": "infobatch"})
    settings = {"policy": "selective_backprop"}
    fit, _ = resumed_with_warnings(tmp_path / "now", tmp_path / "before" / "12.ckpt", settings=settings)
    assert_same(before.module.state_dict(), fit.module.state_dict())
    more, _ = resumed_with_warnings(tmp_path / "more", tmp_path / "before" / "12.ckpt", settings=settings, max_epochs=6)
    assert (more.callback.instances.seen >= before.callback.instances.seen).all()
    assert more.data.candidate_stream.num_considered > before.data.candidate_stream.num_considered


@pytest.mark.parametrize(("before", "now"), [(1.0, 0.6), (0.6, 1.0)])
def test_from_and_to_plain_batches(tmp_path, before, now):
    Fit(tmp_path / "before", budget=before, settings={"policy": "uniform"})
    fit, (warning,) = resumed_with_warnings(
        tmp_path / "now", tmp_path / "before" / "4.ckpt", budget=now, settings={"policy": "uniform"}
    )
    assert "the place in the data" in warning
    assert fit.run.current_epoch == 3


@pytest.mark.parametrize(
    ("before", "now", "step", "num_steps"),
    [(0.6, 1.0, 2, 2 + 3 + 12), (0.6, 1.0, 4, 4 + 12), (1.0, 0.6, 5, 5 + 1 + 8), (1.0, 0.6, 6, 6 + 8)],
)
def test_an_epoch_of_another_length_goes_on_at_its_share(tmp_path, before, now, step, num_steps):
    """Epochs of 4 batches at budget 0.6, of 6 at 1; as on another number of processes."""
    Fit(tmp_path / "before", budget=before)
    fit = Fit(tmp_path / "now", tmp_path / "before" / f"{step}.ckpt", budget=now)
    assert fit.run.global_step == num_steps


def test_the_same_settings_warn_of_nothing(tmp_path):
    Fit(tmp_path / "before")
    _, found = resumed_with_warnings(tmp_path / "now", tmp_path / "before" / "5.ckpt")
    assert not found


def test_weights_that_fell_to_mean_stay_so(tmp_path):
    class Penalised(DrawingClassifier):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) + 1e-3 * sum((p**2).sum() for p in self.parameters())

    def fit(folder, resume=None):
        pl.seed_everything(1, verbose=False)
        from tests.helpers.resuming import SaveEvery, loader

        folder.mkdir(exist_ok=True)
        callback, module = AutoAssistCallback(reweighting="inverse_probability"), Penalised()
        run = trainer(max_epochs=3, callbacks=[callback, SaveEvery(folder)])
        with pytest.warns(UserWarning, match='reweighting="normalized" is used'):
            run.fit(module, datamodule=AutoAssistDataModule(loader("global"), seed=11), ckpt_path=resume)
        return module.state_dict()

    whole = fit(tmp_path / "a")
    for step in (5, 7):
        assert_same(whole, fit(tmp_path / "b", tmp_path / "a" / f"{step}.ckpt"))


class Remembering(ClustersData):
    """A data module with a state."""

    number = 0

    def state_dict(self):
        return {"number": self.number}

    def load_state_dict(self, state_dict):
        self.number = state_dict["number"]


def test_a_checkpoint_of_plain_lightning_is_continued_with_one_warning(tmp_path):
    pl.seed_everything(0, verbose=False)
    data = Remembering(60)
    data.number = 7
    run = trainer(max_epochs=1)
    run.fit(Classifier(), datamodule=data)
    run.save_checkpoint(tmp_path / "plain.ckpt")
    callback, ours = AutoAssistCallback(), AutoAssistDataModule(Remembering(60))
    run = trainer(max_epochs=3, callbacks=[callback])
    with pytest.warns(UserWarning, match="written without AutoAssist"):
        run.fit(Classifier(), datamodule=ours, ckpt_path=tmp_path / "plain.ckpt")
    assert ours.wrapped.number == 7
    assert callback.summary()["optimizer_steps"] == 6 + 2 * 4


def test_a_checkpoint_of_another_layout_is_continued_with_one_warning(tmp_path):
    Fit(tmp_path / "a")
    checkpoint = torch.load(tmp_path / "a" / "6.ckpt", weights_only=True)
    for part in (checkpoint["callbacks"]["AutoAssistCallback"], checkpoint["AutoAssistDataModule"]):
        part["layout"] = 3
    torch.save(checkpoint, tmp_path / "old.ckpt")
    fit, (warning,) = resumed_with_warnings(tmp_path / "b", tmp_path / "old.ckpt")
    assert "layout 3" in warning
    assert fit.run.global_step == 12


class Evaluated(Classifier):
    def test_step(self, batch, batch_idx):
        self.log("test_loss", super().training_step(batch, batch_idx))

    def predict_step(self, batch, batch_idx):
        return self.net(batch[0])


@pytest.mark.parametrize("same_trainer", [True, False])
@pytest.mark.parametrize("what", ["test", "validate", "predict"])
def test_evaluation_of_a_checkpoint_touches_no_state_and_training_goes_on(tmp_path, what, same_trainer):
    """Of an early checkpoint, while the run's state is a later one; then a second fit, as without the evaluation."""

    def run(evaluates):
        pl.seed_everything(0, verbose=False)
        data = CountingDataset(60)
        loaders = {f"{name}_dataloaders": DataLoader(data, 30) for name in ("val", "test", "predict")}
        datamodule = AutoAssistDataModule(DataLoader(data, B, shuffle=True), seed=3, **loaders)
        callback, module = AutoAssistCallback(), Evaluated()
        saving = pl.callbacks.ModelCheckpoint(tmp_path / what, filename="{epoch}", save_top_k=-1)
        first = trainer(max_epochs=3, callbacks=[callback, saving], enable_checkpointing=True)
        first.fit(module, datamodule=datamodule)
        before = callback.summary(), callback.state_dict(), datamodule.state_dict()
        state = torch.get_rng_state()
        if evaluates:
            used = first if same_trainer else trainer(callbacks=[callback])
            getattr(used, what)(module, datamodule=datamodule, ckpt_path=tmp_path / what / "epoch=0.ckpt")
            assert callback.summary() == before[0]
            assert_equal_states(callback.state_dict(), before[1])
            assert_equal_states(datamodule.state_dict()["ranks"][0]["sampler"], before[2]["ranks"][0]["sampler"])
        torch.set_rng_state(state)  # the evaluation's own loaders draw
        module.load_state_dict(torch.load(tmp_path / what / "epoch=2.ckpt", weights_only=True)["state_dict"])
        first.fit_loop.max_epochs = 5
        first.fit(module, datamodule=datamodule)
        return {**module.state_dict(), "keep rate": torch.tensor(callback.summary()["keep_rate"])}

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
        warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`")
        assert_same(run(evaluates=False), run(evaluates=True))


def assert_equal_states(left, right):
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for name in left:
            assert_equal_states(left[name], right[name])
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right)
        for mine, yours in zip(left, right, strict=True):
            assert_equal_states(mine, yours)
    elif isinstance(left, torch.Tensor):
        torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True)
    else:
        assert left == right
