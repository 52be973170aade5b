from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.common import rows
from benchmarks.images.runs import MODELS
from benchmarks.peers import report
from benchmarks.peers.__main__ import TEMPLATE, PeersPlan
from benchmarks.peers.infobatch_code import infobatch_code
from benchmarks.peers.runs import INFOBATCH
from benchmarks.peers.schedule import ProgressModule


def test_all_get_as_many_steps_as_infobatch_made_or_fewer():
    plan = PeersPlan(TEMPLATE, (0, 1), (0.1, 0.2), ("uniform",))
    steps = {("full", 0): 1264, ("full", 1): 1264, (INFOBATCH, 0): 903, (INFOBATCH, 1): 897}
    rows = {}
    while job := next((job for job in plan.jobs(rows) if job not in rows), None):
        rows[job] = {"accuracy": job.learning_rate, "updates": steps.get((job.method, job.seed), 0)}
    uniform = [job for job in rows if job.method == "uniform"]
    assert {job.budget for job in uniform} == {0.70}  # 897 of 1264 are 0.7097
    finals = [(job.seed, job.learning_rate) for job in uniform if job.phase == "final"]
    assert finals == [(0, 0.2), (1, 0.2)]
    assert len(rows) == 3 * (2 + 2)


class ShrinkingData(pl.LightningDataModule):
    """Epochs of 8, 4 and 2 batches."""

    def train_dataloader(self):
        num_images = 4 * 8 // 2**self.trainer.current_epoch
        return DataLoader(TensorDataset(torch.rand(num_images, 1, 8, 8), torch.zeros(num_images, dtype=int)), 4)


@pytest.mark.filterwarnings("ignore:.*dataloader:Warning", "ignore:The number of training batches:UserWarning")
def test_the_schedule_ends_with_epochs_that_became_shorter(tmp_path):
    rates = []

    class Rates(pl.Callback):
        def on_train_batch_end(self, trainer, *args):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    module = ProgressModule(MODELS["tiny"](torch.Size([1, 8, 8])), 0.1, channels_last=False)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = pl.Trainer(max_epochs=3, reload_dataloaders_every_n_epochs=1, callbacks=[Rates()], **quiet)
    trainer.fit(module, datamodule=ShrinkingData())
    assert len(rates) == 8 + 4 + 2
    assert max(rates) == pytest.approx(0.1, rel=0.01)
    assert rates[-1] < 1e-4


def test_without_a_checkout_the_error_says_how_to_get_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"git clone https://github.com/NUS-HPC-AI-Lab/InfoBatch"):
        infobatch_code(tmp_path).__enter__()


def test_what_the_authors_code_replaces_in_torch_is_given_back(tmp_path):
    before = torch.utils.data.dataloader._BaseDataLoaderIter.__next__
    (tmp_path / "infobatch").mkdir()
    code = "from torch.utils.data.dataloader import _BaseDataLoaderIter\n_BaseDataLoaderIter.__next__ = None\n"
    (tmp_path / "infobatch" / "infobatch.py").write_text(code)
    with infobatch_code(tmp_path):
        assert torch.utils.data.dataloader._BaseDataLoaderIter.__next__ is None
    assert torch.utils.data.dataloader._BaseDataLoaderIter.__next__ is before


def test_the_table_has_differences_by_seed_steps_and_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert report.peers_table() == "Not measured yet: `python -m benchmarks.peers`."
    for method, seed, accuracy in (("full", 0, 0.9), ("full", 1, 0.8), (INFOBATCH, 0, 0.88), (INFOBATCH, 1, 0.78)):
        job = replace(TEMPLATE, phase="final", method=method, learning_rate=0.1, seed=seed)
        out = {"accuracy": accuracy, "updates": 10 + seed, "cpu_seconds": 5, "lines_changed": 9, "train_instances": 8}
        rows.append_row("peers", {**asdict(job), **out}, tmp_path)
    table = report.peers_table()
    assert "| InfoBatch, its authors' code | 10 | 83.00 ± 5.00 | -2.00 ± 0.00 | 5 | 9 | 2 | 0.1 |" in table
    assert table.index("| full run |") < table.index("| InfoBatch")
