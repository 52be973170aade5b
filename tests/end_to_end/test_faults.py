"""What goes wrong outside of the Assistant: it is said, and never gives a wrong result in silence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule
from tests.end_to_end.test_resume import Dying, assert_equal
from tests.end_to_end.test_streaming_runs import outcome
from tests.helpers.ordinary import Classifier, ClustersData, CountingDataset, trainer
from tests.helpers.paths import ROOT

pytestmark = [
    pytest.mark.skipif(pl.__version__ < "2.5", reason="Lightning 2.4 trains on one batch too many after a resume"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create the checkpoint"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
]


def fit(folder, data=None, *, ckpt_path=None, max_epochs=5, **options):
    """Five epochs of twelve batches, with a checkpoint at every tenth step."""
    pl.seed_everything(0, verbose=False)
    saving = pl.callbacks.ModelCheckpoint(folder, filename="{step}", every_n_train_steps=10, save_top_k=-1)
    callback, module = AutoAssistCallback(**{"policy": "autoassist", **options}), Classifier()
    data = AutoAssistDataModule(data or ClustersData(200, 10), budget=0.6, seed=3)
    run = trainer(max_epochs=max_epochs, callbacks=[callback, saving], enable_checkpointing=True)
    run.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return callback, module, data


# ---- checkpoints of something else


def test_a_checkpoint_of_another_version_begins_the_filtering_anew(tmp_path):
    fit(tmp_path)
    checkpoint = torch.load(tmp_path / "step=30.ckpt", weights_only=True)
    for part in (checkpoint["AutoAssistDataModule"], checkpoint["callbacks"]["AutoAssistCallback"]):
        part["layout"] = 0
        part["selector" if "selector" in part else "ranks"] = ["what this version knows nothing of"]
    torch.save(checkpoint, tmp_path / "older.ckpt")
    with pytest.warns(UserWarning, match="written by another version of AutoAssist .layout 0, and this one reads"):
        callback, _, data = fit(tmp_path / "resumed", ckpt_path=tmp_path / "older.ckpt")
    assert callback.report.num_batches == 30  # of the sixty, those after the resume
    assert data.candidate_stream.pass_index == 1  # a first pass of twenty batches, and another
    assert callback.instances.seen.all()


class Relabelled(ClustersData):
    """The same number of instances, with other labels."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.train_set.labels = (self.train_set.labels + 1) % 3


@pytest.mark.parametrize("options", [{}, {"feature_memory": 0}, {"policy": "proportional"}], ids=str)
def test_a_checkpoint_of_another_data_set_is_told_by_its_labels(options, tmp_path):
    fit(tmp_path, **options)
    with pytest.warns(UserWarning, match="have another label now, so it is of another data set") as caught:
        callback, _, _ = fit(
            tmp_path / "other", Relabelled(200, 10), ckpt_path=tmp_path / "step=30.ckpt", max_epochs=9, **options
        )
    assert sum("another data set" in str(one.message) for one in caught) == 1
    assert callback._learner.reason is None
    store = callback.instances
    assert torch.equal(store.labels[store.seen], Relabelled(200).train_set.labels[store.seen].int())
    assert callback.summary()["keep_rate"] < 1


def test_a_checkpoint_of_a_shorter_data_set_begins_with_a_first_pass(tmp_path):
    fit(tmp_path)
    with (
        pytest.warns(UserWarning, match="the checkpoint remembers 200 instances, and the data set has 210"),
        pytest.warns(UserWarning, match="filtering begins anew with a first pass"),
    ):
        callback, _, data = fit(
            tmp_path / "other", ClustersData(210, 10), ckpt_path=tmp_path / "step=30.ckpt", max_epochs=7
        )
    assert callback.instances.seen.all()
    assert data.candidate_stream.num_instances == 210


# ---- a worker that dies


class DiesOnce(Dataset):
    """Ends the worker that has loaded 150 instances, unless a file says that this has happened."""

    def __init__(self, flag):
        self.flag, self.data = Path(flag), CountingDataset(200)

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        instance = self.data[index]
        if get_worker_info() is not None and len(self.data.loads) == 150 and not self.flag.exists():
            self.flag.touch()
            os._exit(3)
        return instance


@pytest.mark.parametrize("update", ["sync", "async"])
def test_a_dead_worker_ends_the_run_which_resumes_exactly(update, tmp_path):
    def loader(flag):
        return DataLoader(DiesOnce(flag), batch_size=10, shuffle=True, num_workers=2, persistent_workers=True)

    (tmp_path / "never").touch()
    expected = fit(tmp_path / "whole", loader(tmp_path / "never"), update=update)
    with pytest.raises((RuntimeError, ConnectionError)):  # as torch finds out about it
        fit(tmp_path / "died", loader(tmp_path / "flag"), update=update)
    last = max((tmp_path / "died").glob("*.ckpt"), key=lambda path: int(path.stem.partition("=")[2]))
    found = fit(tmp_path / "resumed", loader(tmp_path / "flag"), update=update, ckpt_path=last)
    assert_equal(expected[1].state_dict(), found[1].state_dict())
    assert torch.equal(expected[0].instances.scores, found[0].instances.scores)


# ---- a stream's run that is killed


def test_a_killed_run_on_a_stream_is_resumed_in_a_new_process(tmp_path):
    whole = run_in_a_process("whole", tmp_path)
    assert whole.returncode == 0, whole.stderr
    killed = run_in_a_process("die", tmp_path)
    assert killed.returncode == -9, killed.stderr
    assert not (tmp_path / "die.pt").exists()
    resumed = run_in_a_process("resume", tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    expected, batches = torch.load(tmp_path / "whole.pt", weights_only=True)
    found, after = torch.load(tmp_path / "resume.pt", weights_only=True)
    assert after == batches[13:]
    assert_equal(expected, found)


def run_in_a_process(job, folder):
    return subprocess.run(
        [sys.executable, "-m", "tests.end_to_end.test_faults", job, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


if __name__ == "__main__":
    job, folder = sys.argv[1], Path(sys.argv[2])
    if job == "whole":
        found = outcome(folder)
    elif job == "die":
        found = outcome(folder, (13,), extra=(Dying("SIGKILL", 17),))
    else:
        found = outcome(folder, ckpt_path=folder / "step=13.ckpt", seed=99)
    torch.save(found, folder / f"{job}.pt")
