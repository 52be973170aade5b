"""What loggers get: settings, counts, galleries of the right instances, a summary; none of it costs a run."""

import hashlib
import inspect
import io
import json
import logging
import subprocess
import sys

import numpy as np
import psutil
import pytest
import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule, LogisticAssistant
from lightning_autoassist.compare.readers import read_runs
from lightning_autoassist.filtering.memory.frame import columns_of
from lightning_autoassist.filtering.reporting.counts import MAX_COUNTED, InstanceCounts
from lightning_autoassist.filtering.reporting.pictures import load_instances, picture_of
from tests.end_to_end.test_resume import Saving
from tests.helpers.ordinary import Classifier, ClustersData, trainer
from tests.helpers.wandb_files import history_of, summary_of

wandb = pytest.importorskip("wandb")
Image = pytest.importorskip("PIL.Image")

NUM_INSTANCES, BATCH_SIZE, NUM_EPOCHS = 120, 10, 6


class NumberedPictures(Dataset):
    """Grey pictures whose brightness is the instance's index; half of them are learnt at once. Noise in training."""

    def __len__(self):
        return NUM_INSTANCES

    def __getitem__(self, index):
        torch.rand(())  # what random augmentation does to the global RNG
        return torch.full((1, 8, 8), index / 255), index % 2


def index_of(picture):
    (brightness,) = np.unique(picture)
    return int(brightness)


class Pictures(pl.LightningDataModule):
    def __init__(self, num_workers=0):
        super().__init__()
        self.num_workers = num_workers

    def train_dataloader(self):
        return DataLoader(NumberedPictures(), BATCH_SIZE, shuffle=True, num_workers=self.num_workers)


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2), nn.Dropout(0.1))

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(logger, *, policy="proportional", num_workers=0, decode=None, **options):
    pl.seed_everything(0, verbose=False)
    callback = AutoAssistCallback(policy=policy, decode=decode)
    data = AutoAssistDataModule(Pictures(num_workers), budget=0.5)
    module = Net()
    settings = {"max_epochs": NUM_EPOCHS, "log_every_n_steps": 3, "callbacks": [callback], "logger": logger, **options}
    fitted = trainer(**settings)
    fitted.fit(module, datamodule=data)
    return callback, module, fitted


def offline(folder, **options):
    folder.mkdir(exist_ok=True)
    settings = wandb.Settings(silent=True, console="off")
    return WandbLogger(save_dir=folder, mode="offline", settings=settings, **options)


@pytest.fixture(scope="module")
def wandb_run(tmp_path_factory):
    """A run in W&B's offline mode: the callback, the folder, its record."""
    folder = tmp_path_factory.mktemp("wandb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_DATA_DIR", str(folder / "data"))
        callback, _, _ = fit(offline(folder))
        wandb.finish()
        wandb.teardown()
    (run,) = read_runs(str(folder))
    return callback, folder, run


def tables(folder, name):
    """Contents of the tables of that name, the newest last, and the folder that their pictures are in."""
    (files,) = folder.glob("wandb/offline-run-*/files")
    paths = sorted(files.glob(f"media/table/autoassist/{name}_*.table.json"), key=lambda path: path.stat().st_mtime_ns)
    return files, [json.loads(path.read_text()) for path in paths]


# ---- W&B


@pytest.mark.parametrize("name", ["least_kept", "most_kept"])
def test_galleries_show_the_right_instance(wandb_run, name):
    callback, folder, _ = wandb_run
    files, found = tables(folder, name)
    counts, scores = callback._log.counts, callback.instances.scores
    for row in found[-1]["data"]:
        cells = dict(zip(found[-1]["columns"], row, strict=True))
        assert cells["label"] == cells["index"] % 2
        assert cells["kept"] == counts.kept[cells["index"]]
        assert cells["dropped"] == counts.dropped[cells["index"]]
        assert cells["gradient_norm"] == pytest.approx(float(scores[cells["index"]]))
    logged = history_of(folder, f"autoassist/{name}_pictures")
    assert len(logged) == len(found) >= 3
    for pictures, table in zip(logged, found, strict=True):
        assert len(pictures["filenames"]) == len(table["data"]) == 12
        for filename, caption, row in zip(pictures["filenames"], pictures["captions"], table["data"], strict=True):
            with Image.open(files / filename) as picture:
                assert index_of(np.asarray(picture)) == row[0]
            assert caption.startswith(f"index {row[0]}, label {row[0] % 2}, ")


def test_tables_hold_the_same_pictures(wandb_run):
    _, folder, _ = wandb_run
    contents = [path.read_bytes() for path in folder.rglob("staging/*")]
    by_digest = {hashlib.sha256(content).hexdigest(): content for content in contents}
    found = [json.loads(content) for content in contents if b'"image-file"' in content]
    assert found
    for table in found:
        for row in table["data"]:
            content = by_digest[row[table["columns"].index("shown")]["sha256"]]
            with Image.open(io.BytesIO(content)) as picture:
                assert index_of(np.asarray(picture)) == row[0]


def test_least_kept_were_kept_less_often_than_most_kept(wandb_run):
    _, folder, _ = wandb_run

    def keep_rate(name):
        table = tables(folder, name)[1][-1]
        kept, dropped = (
            sum(row[table["columns"].index(column)] for row in table["data"]) for column in ("kept", "dropped")
        )
        return kept / (kept + dropped)

    assert keep_rate("least_kept") < 0.5 < keep_rate("most_kept")


def test_a_table_of_the_hardest_instances_at_the_end(wandb_run):
    callback, folder, _ = wandb_run
    _, (table,) = tables(folder, "instances")
    columns = columns_of(callback.instances)
    assert table["columns"] == ["index", *columns]
    assert len(table["data"]) == np.isfinite(columns["loss_mean"]).sum()
    for row in table["data"]:
        assert row[1:] == pytest.approx([float(column[row[0]]) for column in columns.values()])
    losses = [row[table["columns"].index("loss_mean")] for row in table["data"]]
    assert losses == sorted(losses, reverse=True)


def test_every_row_can_be_drawn_against_every_axis(wandb_run):
    _, _, run = wandb_run
    rows = [row for row in run.rows if "train_loss" in row.values]
    assert len(rows) >= NUM_EPOCHS
    for row in rows:
        assert row.values["autoassist/optimizer_steps"] == row.step + 1
        assert row.values["autoassist/instances_seen"] == (row.step + 1) * BATCH_SIZE
        assert row.values["autoassist/seconds"] > 0


def test_settings_group_and_job_type(wandb_run):
    callback, _, run = wandb_run
    settings = run.config["autoassist"]
    assert settings["policy"]["name"] == "ProportionalPolicy"
    assert settings["policy"]["keep_rate"] == callback.policy.keep_rate
    assert settings["assistant"]["name"] == "MemoryAssistant"
    assert settings["budget"] == 0.5
    assert settings["reweighting"] == "inverse_probability"
    assert (settings["num_instances"], settings["batch_size"]) == (NUM_INSTANCES, BATCH_SIZE)
    assert (run.group, run.job_type) == ("Net on Pictures", "Proportional 50%")


def test_settings_hold_every_argument(wandb_run):
    _, _, run = wandb_run
    arguments = {*inspect.signature(AutoAssistCallback).parameters, *inspect.signature(AutoAssistDataModule).parameters}
    data = {"data", *(f"{stage}_dataloaders" for stage in ("val", "test", "predict"))}
    assert arguments - data <= run.config["autoassist"].keys()


def test_settings_of_functions_and_mappings_are_words(tmp_path):
    def largest(instance):
        return instance[0]

    callback = AutoAssistCallback(decode=largest, features=lambda batch: batch[0].flatten(1), exchange_every=5)
    data = AutoAssistDataModule(Pictures(), budget=0.5, pad_values={"x": 1.0})
    settings = {"max_epochs": 4, "log_every_n_steps": 5, "callbacks": [callback]}
    logger = CSVLogger(tmp_path, name="", version="run")
    trainer(logger=logger, **settings).fit(Net(), datamodule=data)
    (run,) = read_runs(str(tmp_path))
    logged = run.config["autoassist"]
    assert logged["decode"].endswith("largest")
    assert logged["features"].endswith("<lambda>")
    assert (logged["pad_values"], logged["exchange_every"], logged["steps_per_epoch"]) == ({"x": 1.0}, 5, None)


def test_what_the_user_gave_stays(tmp_path):
    fit(offline(tmp_path, group="mine", job_type="own"), max_epochs=4)
    wandb.finish()
    wandb.teardown()
    (run,) = read_runs(str(tmp_path))
    assert (run.group, run.job_type) == ("mine", "own")


def test_epochs_rows_hold_tables_and_histograms(wandb_run):
    _, folder, _ = wandb_run
    (files,) = folder.glob("wandb/offline-run-*/*.wandb")
    content = files.read_bytes()
    for name in (b"autoassist/keep_probs", b"autoassist/scores", b"autoassist/reliability", b"autoassist/classes"):
        assert name in content
    table = tables(folder, "classes")[1][-1]
    assert table["columns"] == ["class", "kept", "dropped", "keep_rate"]
    assert [row[0] for row in table["data"]] == [0, 1]
    assert sum(row[1] for row in table["data"]) >= NUM_INSTANCES // 2 - 2 * BATCH_SIZE


def test_summary_holds_the_totals(wandb_run):
    callback, folder, _ = wandb_run
    summary, totals = summary_of(folder), callback.summary()
    for name in ("optimizer_steps", "instances_seen", "seconds", "saved_ratio"):
        assert summary[f"autoassist/{name}"] == pytest.approx(totals[name])


def test_no_wandb_process_is_left(wandb_run):
    children = psutil.Process().children(recursive=True)
    assert not [child for child in children if "wandb" in " ".join(child.cmdline())]


def test_offline_folder_is_one_that_wandb_sync_takes(wandb_run):
    """As far as it goes without an account: it finds the run, and then asks for a key."""
    _, folder, _ = wandb_run
    (run,) = folder.glob("wandb/offline-run-*")
    environment = {"HOME": str(folder), "PATH": "/usr/bin:/bin", "WANDB_BASE_URL": "http://localhost:9"}

    def sync(*options):
        command = [sys.executable, "-m", "wandb", "sync", *options, str(run)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=120, env=environment, check=False, cwd=folder
        )
        return done.stdout + done.stderr

    for said in (sync("--dry-run"), keyless := sync()):
        assert "1 run" in said
        assert f"run-{run.name.rpartition('-')[2]}.wandb" in said
    assert "API key" in keyless


def test_disabled_wandb(tmp_path):
    logger = WandbLogger(save_dir=tmp_path, mode="disabled", settings=wandb.Settings(silent=True))
    callback, _, _ = fit(logger, max_epochs=4)
    wandb.finish()
    assert callback._log.is_on
    assert not list(tmp_path.rglob("*.wandb"))


# ---- other loggers


def test_csv_gets_settings_and_class_rates(tmp_path):
    fit(CSVLogger(tmp_path, name="", version="run"))
    (run,) = read_runs(str(tmp_path))
    assert run.config["autoassist"]["policy"]["name"] == "ProportionalPolicy"
    assert {
        "autoassist/keep_rate_class_0",
        "autoassist/keep_rate_class_1",
        "autoassist/saved_ratio",
    } <= run.columns.keys()


def test_tensorboard_gets_pictures_and_histograms(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    fit(TensorBoardLogger(tmp_path, name="", version="run"))
    events = accumulator.EventAccumulator(str(tmp_path / "run"), {"images": 0, "histograms": 0})
    events.Reload()
    tags = events.Tags()
    assert {"autoassist/least_kept", "autoassist/most_kept"} <= set(tags["images"])
    assert {"autoassist/keep_probs", "autoassist/scores"} <= set(tags["histograms"])
    assert "hp_metric" not in tags["scalars"]
    settings = yaml.safe_load((tmp_path / "run" / "hparams.yaml").read_text())
    assert settings["autoassist"]["budget"] == 0.5


def test_nothing_is_counted_without_a_logger():
    callback, _, _ = fit(False)
    assert callback._log.counts is None


# ---- the run stays what it was


def test_logging_changes_no_draw(tmp_path):
    """Galleries load instances, whose augmentation draws from the global RNG."""
    _, plain, _ = fit(False)
    _, logged, _ = fit(offline(tmp_path))
    wandb.finish()
    wandb.teardown()
    for name, parameter in plain.state_dict().items():
        assert torch.equal(parameter, logged.state_dict()[name])


def test_galleries_are_loaded_by_a_worker_where_the_loader_has_some():
    class Where(NumberedPictures):
        def __getitem__(self, index):
            return index, torch.utils.data.get_worker_info() is not None

    for num_workers in (0, 2):
        loader = DataLoader(Where(), 4, num_workers=num_workers)
        state = torch.get_rng_state()
        assert load_instances(loader, [5, 3]) == [(5, num_workers > 0), (3, num_workers > 0)]
        assert torch.equal(torch.get_rng_state(), state)


def test_decode_gives_text(tmp_path):
    fit(offline(tmp_path), decode=lambda instance: f"number {round(float(instance[0].max()) * 255)}")
    wandb.finish()
    wandb.teardown()
    table = tables(tmp_path, "least_kept")[1][-1]
    for row in table["data"]:
        cells = dict(zip(table["columns"], row, strict=True))
        assert cells["shown"] == f"number {cells['index']}"


def test_what_fails_costs_one_warning(tmp_path):
    def fails(instance):
        raise RuntimeError("cannot be shown")

    with pytest.warns(UserWarning, match="logs no more .* RuntimeError: cannot be shown") as caught:
        _, module, fitted = fit(offline(tmp_path), decode=fails)
    wandb.finish()
    wandb.teardown()
    assert len([warning for warning in caught if "logs no more" in str(warning.message)]) == 1
    assert fitted.global_step == NUM_EPOCHS * NUM_INSTANCES // 2 // BATCH_SIZE
    _, plain, _ = fit(False)
    for name, parameter in plain.state_dict().items():
        assert torch.equal(parameter, module.state_dict()[name])


# ---- counts and pictures


def test_counts_are_those_of_the_stream(wandb_run):
    callback, _, _ = wandb_run
    counts = callback._log.counts
    summary = callback.summary()
    assert counts.kept.sum() + counts.dropped.sum() == summary["candidates_seen"]
    assert counts.kept.sum() / summary["candidates_seen"] == pytest.approx(summary["keep_rate"])


def test_of_very_many_instances_a_part_is_counted():
    counts = InstanceCounts(3 * MAX_COUNTED + 7)
    assert len(counts.kept) <= MAX_COUNTED
    candidates = np.arange(20, 60)
    counts.add(candidates, np.full(40, 0.5), candidates % 2 == 0)
    counted = candidates[candidates % counts.stride == 0]
    assert counts.kept.sum() + counts.dropped.sum() == len(counted)
    places = np.flatnonzero(counts.kept)
    assert np.array_equal(counts.indices[places], counted[counted % 2 == 0])


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        (torch.rand(1, 40, 30), (80, 60)),
        ((torch.rand(3, 64, 48), 3), (64, 48, 3)),
        ({"image": np.zeros((50, 40, 3), np.uint8), "mask": torch.zeros(8, 8)}, (50, 40, 3)),
        (torch.randn(8, 8), (32, 32)),
        (Image.new("L", (40, 50)), (50, 40, 3)),
        (torch.rand(64), None),
        (torch.rand(5, 8, 8), None),
        ("text", None),
    ],
)
def test_pictures(value, shape):
    if shape == (80, 60):
        shape = (80, 60)
    picture = picture_of(value)
    assert (None if picture is None else picture.shape) == shape


@pytest.mark.skipif(pl.__version__ < "2.5", reason="Lightning 2.4 trains on one batch too many after a resume")
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create the checkpoint")
@pytest.mark.parametrize("update", ["sync", "async"])
@pytest.mark.parametrize("step", [7, 12, 23])  # in an epoch, at its end, once some were dropped
def test_counts_go_on_after_a_resume(tmp_path, step, update):
    def fit_on(folder, *callbacks, **options):
        pl.seed_everything(0, verbose=False)
        callback = AutoAssistCallback(policy="proportional", update=update)
        settings = {"max_epochs": NUM_EPOCHS, "log_every_n_steps": 3, "callbacks": [callback, *callbacks]}
        run = trainer(logger=CSVLogger(folder), **settings)
        run.fit(Net(), datamodule=AutoAssistDataModule(Pictures(), budget=0.5), **options)
        return callback._log.counts

    whole = fit_on(tmp_path / "whole", Saving(tmp_path, (step,)))
    resumed = fit_on(tmp_path / "resumed", ckpt_path=tmp_path / f"step={step}.ckpt")
    assert whole.dropped.sum() > 0
    for name in ("kept", "dropped", "probs"):
        np.testing.assert_array_equal(getattr(resumed, name), getattr(whole, name))


def test_counts_take_little_room_in_a_checkpoint():
    counts = InstanceCounts(10_000_000)
    counts.add(np.arange(0, 1100), np.full(1100, 0.5), np.arange(1100) % 2 == 0)
    few = counts.state_dict()
    for _ in range(300):
        counts.add(np.zeros(1, np.int64), np.ones(1), np.ones(1, bool))
    many = counts.state_dict()
    sizes = [sum(value.nbytes for value in state.values() if torch.is_tensor(value)) for state in (few, many)]
    assert sizes[0] <= 6e6 < sizes[1] <= 12e6
    again = InstanceCounts(10_000_000)
    again.load_state_dict(many)
    for name in ("kept", "dropped", "probs"):
        np.testing.assert_array_equal(getattr(again, name), getattr(counts, name))


# ---- the progress bar


@pytest.mark.parametrize("bar", ["tqdm", "rich"])
def test_progress_bar_shows_keep_rate_and_saved_updates(bar, tmp_path, capsys, caplog):
    from pytorch_lightning.callbacks import RichProgressBar, TQDMProgressBar

    progress = {"tqdm": TQDMProgressBar, "rich": RichProgressBar}[bar]()
    caplog.set_level(logging.ERROR, logger="lightning.pytorch")
    callback = AutoAssistCallback(assistant=LogisticAssistant(lr=0.5))
    fitted = trainer(max_epochs=4, callbacks=[callback, progress], enable_progress_bar=True, log_every_n_steps=1)
    fitted.fit(Classifier(), datamodule=AutoAssistDataModule(ClustersData(), budget=0.6))
    shown = progress.get_metrics(fitted, fitted.lightning_module)
    assert 0 < shown["keep_rate"] <= 1
    assert shown["saved_updates"] == pytest.approx(fitted.global_step / 0.6 * 0.4, abs=1)
    assert "keep_rate" in capsys.readouterr().out
