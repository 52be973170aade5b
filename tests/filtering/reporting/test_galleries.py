"""Galleries come in few epochs, so that a run's files do not grow with its length; the seed is in the settings."""

import math

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule
from lightning_autoassist.compare.differing import seed_of
from lightning_autoassist.compare.readers import read_runs
from lightning_autoassist.filtering.reporting.counts import InstanceCounts
from lightning_autoassist.filtering.reporting.gallery import GALLERY_SIZE, is_due
from lightning_autoassist.filtering.reporting.metric_names import PREFIX
from tests.helpers.ordinary import trainer
from tests.helpers.wandb_files import records_of

wandb = pytest.importorskip("wandb")

NUM_INSTANCES, BATCH_SIZE, BUDGET = 120, 10, 0.9
STEPS_AN_EPOCH = 11  # of 12 at the budget


class NoisyPictures(Dataset):
    """Pictures that hardly shrink in a file; counts how often each is loaded."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.pictures = torch.rand(NUM_INSTANCES, 1, 32, 32, generator=generator)
        self.num_loads = 0

    def __len__(self):
        return NUM_INSTANCES

    def __getitem__(self, index):
        self.num_loads += 1
        return self.pictures[index], index % 2


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, 2))

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


class StopsAfter(pl.Callback):
    """Ends the run as early stopping does."""

    def __init__(self, num_epochs):
        self.num_epochs = num_epochs

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop |= trainer.current_epoch + 1 == self.num_epochs


def fit(logger, num_epochs, *callbacks, seed=0, data_seed=None, **options):
    """One run, filtered from its second epoch on; returns its data set."""
    pl.seed_everything(seed, verbose=False)
    pictures = NoisyPictures()
    settings = {"max_epochs": num_epochs, "log_every_n_steps": 5, "logger": logger}
    run = trainer(callbacks=[AutoAssistCallback(**options), *callbacks], **settings)
    loader = DataLoader(pictures, BATCH_SIZE, shuffle=True)
    run.fit(Net(), datamodule=AutoAssistDataModule(loader, budget=BUDGET, seed=data_seed))
    return pictures


@pytest.fixture
def fit_offline(tmp_path, monkeypatch):
    """Trains in W&B's offline mode; all files of the run are below the folder that is returned."""

    def fit_offline(name, *arguments, **options):
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.setenv("WANDB_DATA_DIR", str(folder / "data"))  # for tables with pictures
        settings = wandb.Settings(silent=True, console="off")
        pictures = fit(WandbLogger(save_dir=folder, mode="offline", settings=settings), *arguments, **options)
        wandb.finish()
        wandb.teardown()
        return folder, pictures

    return fit_offline


def epochs_with(folder, name, num_epochs):
    """Numbers of the epochs, from 0 on, in whose last row there is a table or a gallery of that name."""
    steps = []
    for record in records_of(folder):
        names = {(list(item.nested_key) or [item.key])[0]: item.value_json for item in record.history.item}
        if PREFIX + name in names:
            steps.append(int(names["trainer/global_step"]))
    num_steps = STEPS_AN_EPOCH * num_epochs
    assert all((step + 1) % STEPS_AN_EPOCH == 0 or step == num_steps for step in steps)
    return [(step + 1) // STEPS_AN_EPOCH - 1 for step in steps]


def sizes(folder):
    """Number and bytes of all files of tables and pictures, and the bytes of the log."""
    media = [path for path in folder.rglob("*") if path.is_file() and {"media", "staging"} & set(path.parts)]
    (log,) = folder.rglob("*.wandb")
    return len(media), sum(path.stat().st_size for path in media), log.stat().st_size


@pytest.mark.parametrize("is_resumed_in_epoch", [True, False])
def test_the_first_gallery_is_due_where_its_epoch_was_interrupted(is_resumed_in_epoch):
    interrupted, resumed = InstanceCounts(4), InstanceCounts(4)
    interrupted.start_epoch()
    interrupted.add(np.array([0, 1]), np.array([0.5, 0.5]), np.array([True, False]))
    assert is_due(None, interrupted, 1, 100)
    if not is_resumed_in_epoch:
        interrupted.start_epoch()
    resumed.load_state_dict(interrupted.state_dict())
    resumed.add(np.array([2, 3]), np.array([0.5, 0.5]), np.array([True, False]))
    assert is_due(None, resumed, 1, 100) == is_resumed_in_epoch
    resumed.start_epoch()
    assert not is_due(None, resumed, 2, 100)


def test_the_files_of_a_run_do_not_grow_with_its_epochs(fit_offline):
    (short, _), (long, _) = (fit_offline(str(num_epochs), num_epochs) for num_epochs in (4, 16))
    (num_short, bytes_short, log_short), (num_long, bytes_long, log_long) = sizes(short), sizes(long)
    assert num_short == num_long > 3 * 2 * GALLERY_SIZE
    assert bytes_long == pytest.approx(bytes_short, rel=0.05)
    assert (log_long - log_short) / 12 < 12_000  # metrics and histograms of an epoch
    for folder, epochs in ((short, [1, 2, 3]), (long, [1, 8, 15])):
        for name in ("least_kept", "most_kept", "classes", "reliability_table"):
            assert epochs_with(folder, name, 16) == epochs


def test_an_interval_of_ones_own(fit_offline):
    folder, _ = fit_offline("every second", 6, gallery_every_n_epochs=2)
    assert epochs_with(folder, "least_kept", 6) == [1, 3, 5]


def test_without_galleries_no_instance_is_loaded_for_them(fit_offline):
    folder, pictures = fit_offline("none", 4, gallery=False)
    assert epochs_with(folder, "least_kept", 4) == []
    assert epochs_with(folder, "classes", 4) == [1, 2, 3]
    assert not list(folder.rglob("*.png"))
    assert pictures.num_loads == fit(False, 4).num_loads


def test_a_run_that_ends_early_has_a_last_gallery(fit_offline):
    folder, _ = fit_offline("early", 100, StopsAfter(4))
    assert epochs_with(folder, "least_kept", 4) == [1, 3]


def test_a_run_that_ends_early_is_no_longer_by_the_rows_at_its_end(fit_offline):
    folder, _ = fit_offline("early", 100, StopsAfter(4))
    (run,) = read_runs(str(folder))
    assert max(run.steps) == 4 * STEPS_AN_EPOCH - 1  # they count from 0


def test_tensorboard_gets_pictures_in_the_same_epochs(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    fit(TensorBoardLogger(tmp_path, name="", version="run"), 16)
    events = accumulator.EventAccumulator(str(tmp_path / "run"), {"images": 0, "histograms": 0})
    events.Reload()
    steps = [event.step for event in events.Images("autoassist/least_kept")]
    assert steps == [STEPS_AN_EPOCH * epoch for epoch in (2, 9, 16)]
    assert len(events.Histograms("autoassist/keep_probs")) == 16


@pytest.mark.parametrize(
    ("every_n_epochs", "num_epochs", "due"),
    [
        (None, 16, [3, 8, 15]),
        (None, 5, [2, 3, 4]),
        (None, math.inf, [3]),
        (None, 1, [0]),
        (3, 10, [2, 5, 8]),
        (1, 3, [0, 1, 2]),
    ],
)
def test_epochs_in_which_galleries_are_due(every_n_epochs, num_epochs, due):
    counts, found = InstanceCounts(4), []
    for epoch in range(min(num_epochs, 20)):
        counts.add(np.arange(4), np.full(4, 0.5), np.arange(4) < (4 if epoch < 3 else 2))  # drops from the fourth on
        found += [epoch] * is_due(every_n_epochs, counts, epoch, num_epochs)
        counts.start_epoch()
    assert found == due


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gallery": "no"}, "gallery must be True or False"),
        ({"gallery_every_n_epochs": 0}, "gallery_every_n_epochs must be at least 1, got 0"),
        ({"gallery_every_n_epochs": 2.5}, "gallery_every_n_epochs must be a whole number"),
    ],
)
def test_options_that_are_none(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        AutoAssistCallback(**options)


# ---- what is in force


@pytest.mark.parametrize(("options", "update"), [({}, "sync"), ({"update": "async", "lag": 1}, "async")])
def test_the_seed_and_the_mode_in_force_are_in_the_settings(tmp_path, options, update):
    for given, seed in ((None, 7), (3, 3)):
        logger = CSVLogger(tmp_path / str(seed), name="", version="run")
        fit(logger, 3, seed=7, data_seed=given, **options)
        (run,) = read_runs(str(tmp_path / str(seed)))
        assert (run.config["autoassist"]["seed"], run.config["autoassist"]["update"]) == (seed, update)
        assert seed_of(run) == str(seed)
