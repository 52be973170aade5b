"""What else resumes bit for bit: generators of the user's, validations anywhere, open windows, second interruptions."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from tests.helpers.ordinary import CountingDataset
from tests.helpers.resuming import B, Fit, assert_resumes, assert_same, loader

pytestmark = [
    pytest.mark.skipif(pl.__version__ < "2.5", reason="Lightning 2.4 trains on one batch too many after a resume"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:Your `val_dataloader`'s sampler has shuffling enabled"),
    pytest.mark.filterwarnings("ignore:max_steps=11 fixes the number of optimizer steps"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create the checkpoint"),
]

STEPS = (1, 4, 7, 10)
DRAWING = (
    "loader",
    "weighted",
    "replacement",
    "subset",
    "batch sampler",
    "numpy Generator",
    "numpy MT19937",
    "numpy RandomState",
    "random.Random",
    "augmented",
)


@pytest.mark.parametrize("data", DRAWING)
def test_generators_of_the_loader_its_samplers_and_its_data_set_go_on(tmp_path, data):
    assert_resumes(tmp_path, STEPS, data=data)


def test_the_loaders_generator_goes_on_where_workers_load(tmp_path):
    assert_resumes(tmp_path, (3, 8), data="loader", workers={"num_workers": 1, "persistent_workers": True})


@pytest.mark.parametrize(
    "options",
    [
        {"check_val_every_n_epoch": None, "val_check_interval": 5},
        {"check_val_every_n_epoch": None, "val_check_interval": 2},
        {"val_check_interval": 3},
        {"val_check_interval": 0.5, "num_sanity_val_steps": 2},
        {"check_val_every_n_epoch": 2},
        {"val_check_interval": 2, "settings": {"update": "async", "lag": 2}},
        {"max_epochs": -1, "max_steps": 11, "val_check_interval": 2},
        {"accumulate_grad_batches": 2, "val_check_interval": 3},
    ],
    ids=str,
)
def test_validation_anywhere_leaves_the_generators_as_they_were(tmp_path, options):
    assert_resumes(tmp_path, (2, 4, 5, 6, 10), **options)


def test_a_generator_that_train_and_validation_share_goes_on(tmp_path):
    def shared():
        generator = torch.Generator().manual_seed(3)
        held_out = CountingDataset(30)
        val = DataLoader(TensorDataset(held_out.features, held_out.labels), 10, shuffle=True, generator=generator)
        return {"data": DataLoader(CountingDataset(60), B, shuffle=True, generator=generator), "val": val}

    whole = Fit(tmp_path, val_check_interval=2, **shared())
    for step in (2, 4, 9):
        resumed = Fit(tmp_path / "resumed", tmp_path / f"{step}.ckpt", val_check_interval=2, **shared())
        assert_same(whole.result, resumed.result)


class StopsAfter(pl.Callback):
    """Asks the Trainer to stop, after AutoAssist's hook: the Trainer then validates out of turn."""

    def on_train_batch_end(self, run, module, outputs, batch, batch_idx):
        if run.fit_loop.total_batch_idx == 6:
            run.should_stop = True


class SavesInValidation(pl.Callback):
    """Saves in the middle of a validation's hooks."""

    def __init__(self, folder):
        self.folder = folder

    def on_validation_end(self, run, module):
        run.save_checkpoint(self.folder / f"val {run.fit_loop.total_batch_idx + 1}.ckpt")


def test_checkpoints_from_within_a_validation_hold_the_generators_that_training_goes_on_with(tmp_path):
    options = {"val_check_interval": 2, "callbacks": (SavesInValidation(tmp_path),)}
    whole = Fit(tmp_path, **options)
    for step in (2, 4, 6):
        resumed = Fit(tmp_path / "resumed", tmp_path / f"val {step}.ckpt", val_check_interval=2)
        assert_same(whole.result, resumed.result)


def test_a_validation_out_of_turn_gives_back_what_it_draws(tmp_path):
    plain, stopped = Fit(tmp_path / "a"), Fit(tmp_path / "b", callbacks=(StopsAfter(),), min_epochs=3)
    assert_same(plain.result, stopped.result)


@pytest.mark.parametrize(
    "options",
    [
        {"accumulate_grad_batches": 3},
        {"accumulate_grad_batches": 3, "val": None, "settings": {"reweighting": "inverse_probability"}},
        {"every": 3},
        {"accumulate_grad_batches": 2, "budget": 1.0, "settings": {"policy": "uniform"}, "val": None},
    ],
    ids=str,
)
def test_gradients_of_an_open_window_are_in_the_checkpoint(tmp_path, options):
    assert_resumes(tmp_path, (1, 2, 3, 4, 5, 6), **options)


def test_gradients_that_were_used_are_in_no_checkpoint(tmp_path):
    Fit(tmp_path, accumulate_grad_batches=2)
    gradients = {
        step: torch.load(tmp_path / f"{step}.ckpt", weights_only=True)["callbacks"]["AutoAssistCallback"]["gradients"]
        for step in (1, 2)
    }
    assert gradients[1][0].keys() == {name for name, _ in Fit(tmp_path / "b").module.named_parameters()}
    assert not gradients[2][0]


@pytest.mark.parametrize("data", [*DRAWING[:5], "random.Random", "global", "by epoch"])
def test_the_unfiltered_baseline_resumes_too(tmp_path, data):
    """Plain batches, K = 6: in the first epoch, at epochs' ends, within the last."""
    assert_resumes(tmp_path, (2, 6, 9, 12, 16), data=data, budget=1.0, val=None, settings={"policy": "uniform"})


@pytest.mark.parametrize("workers", [{"num_workers": 2}, {"num_workers": 1, "persistent_workers": True}])
def test_the_unfiltered_baseline_resumes_with_workers(tmp_path, workers):
    options = {"budget": 1.0, "val": None, "settings": {"policy": "uniform"}, "workers": workers}
    assert_resumes(tmp_path, (4, 6, 14), **options)


@pytest.mark.parametrize("data", ["global", "loader", "by epoch", "numpy Generator"])
def test_the_unfiltered_baseline_is_plain_lightning(tmp_path, data):
    from tests.helpers.resuming import EPOCHS, DrawingClassifier, trainer

    baseline = Fit(tmp_path, data=data, budget=1.0, settings={"policy": "uniform"})
    pl.seed_everything(1, verbose=False)
    module, held_out = DrawingClassifier(), CountingDataset(30)
    val = DataLoader(TensorDataset(held_out.features, held_out.labels), 10)
    trainer(max_epochs=EPOCHS, callbacks=[]).fit(module, loader(data), val)
    assert_same(module.state_dict(), baseline.module.state_dict())


@pytest.mark.parametrize("first", [3, 4, 8])
@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 3}, {"val_check_interval": 2}], ids=str)
def test_a_second_interruption(tmp_path, first, options):
    """Also in the epochs after one from whose last batch, 4 or 8, the run was resumed; each epoch begins once."""
    whole = Fit(tmp_path / "whole", **options)
    once = Fit(tmp_path / "once", tmp_path / "whole" / f"{first}.ckpt", **options)
    assert_same(whole.result, once.result)
    assert once.module.begun == whole.module.begun[first // 4 if first % 4 == 0 else 1 :]
    for second in (first + 1, 8, 11):
        twice = Fit(
            tmp_path / "twice", tmp_path / ("once" if second > first else "whole") / f"{second}.ckpt", **options
        )
        assert_same(whole.result, twice.result)


def test_a_callback_that_saves_before_autoassist_knows_of_the_batch(tmp_path):
    assert_resumes(tmp_path, (1, 4, 7, 11), saves_first=True)
    assert_resumes(tmp_path / "async", (4, 7), saves_first=True, settings={"update": "async", "lag": 1})


def test_a_finished_run_is_resumed_with_its_totals_and_with_more_epochs(tmp_path):
    finished = Fit(tmp_path / "finished")
    again = Fit(tmp_path / "again", tmp_path / "finished" / "12.ckpt")
    assert_same(finished.result, again.result)
    again.run.save_checkpoint(tmp_path / "again.ckpt")
    longer = Fit(tmp_path / "longer", tmp_path / "finished" / "12.ckpt", max_epochs=5)
    assert_same(longer.result, Fit(tmp_path / "on", tmp_path / "again.ckpt", max_epochs=5).result)


def test_rows_of_a_later_checkpoint_survive_a_resume_from_an_earlier_one(tmp_path):
    """With features in a file: each checkpoint's run reads the rows that it knew, whatever was written since."""
    options = {
        "data": "augmented",
        "settings": {"policy": "selective_backprop", "assistant": "logistic", "feature_memory": 0},
    }
    whole = Fit(tmp_path / "whole", **options)
    for step in (2, 5, 1, 4):  # the others' rows are still there
        resumed = Fit(tmp_path / "resumed", tmp_path / "whole" / f"{step}.ckpt", **options)
        assert_same(whole.result, resumed.result)
    in_memory = {**options, "settings": {**options["settings"], "feature_memory": 2**28}}
    assert_same(whole.result, Fit(tmp_path / "memory", **in_memory).result)


def test_early_stopping_from_an_epochs_end(tmp_path):
    def callbacks(folder):
        stopping = pl.callbacks.EarlyStopping("val_loss", patience=2, min_delta=10.0)
        return stopping, pl.callbacks.ModelCheckpoint(folder, save_last=True, save_top_k=-1, filename="{epoch}")

    options = {"max_epochs": 8, "enable_checkpointing": True}
    whole = Fit(tmp_path / "whole", callbacks=callbacks(tmp_path / "whole"), **options)
    assert whole.run.current_epoch == 3
    assert (tmp_path / "whole" / "last.ckpt").exists()
    for place in ("epoch=0", "epoch=1"):
        ckpt = tmp_path / "whole" / f"{place}.ckpt"
        resumed = Fit(tmp_path / place, ckpt, callbacks=callbacks(tmp_path / place), **options)
        assert_same(whole.result, resumed.result)


def test_stochastic_weight_averaging_from_an_epochs_end(tmp_path):
    """Lightning begins and steps it where an epoch begins, so that it is not exact from the middle of one."""

    def averaging():
        return (pl.callbacks.StochasticWeightAveraging(0.01, swa_epoch_start=2, annealing_epochs=2),)

    whole = Fit(tmp_path / "whole", callbacks=averaging(), max_epochs=6)
    for step in (4, 8, 12, 20):
        ckpt = tmp_path / "whole" / f"{step}.ckpt"
        assert_same(whole.result, Fit(tmp_path / "r", ckpt, callbacks=averaging(), max_epochs=6).result)
