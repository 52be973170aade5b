"""Runs in processes that the Trainer starts from this one, as in a notebook: the totals come back."""

import json
import os
import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT

SCRIPT = """
import json, sys, warnings
warnings.simplefilter("ignore")
from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule
from tests.helpers.ordinary import Classifier, ClustersData, trainer

if __name__ == "__main__":
    callback = AutoAssistCallback(policy="random")
    before = callback.summary()
    for strategy in sys.argv[1:]:
        fitted = trainer(max_epochs=6, strategy=strategy, devices=1 if strategy == "auto" else 2, callbacks=[callback])
        fitted.fit(Classifier(), datamodule=AutoAssistDataModule(ClustersData(120, 10), budget=0.5))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        callback.keep_probability([0])
        assert callback.instances is None
    here = {name: float(value) for name, value in fitted.callback_metrics.items()}
    print(json.dumps([before, callback.summary(), here, [str(each.message) for each in said]]))
"""


def summaries(tmp_path, *strategies):
    script = tmp_path / "fits.py"
    script.write_text(SCRIPT)
    root = str(ROOT)
    command = [sys.executable, str(script), *strategies]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("strategy", ["ddp_notebook", "ddp_spawn"])
def test_the_totals_of_other_processes_come_back(strategy, tmp_path):
    before, summary, logged, said = summaries(tmp_path, strategy)
    assert before["optimizer_steps"] == 0
    assert summary["optimizer_steps"] == logged["autoassist/optimizer_steps"] == 6 * 3
    assert summary["instances_seen"] == logged["autoassist/instances_seen"] == 6 * 60
    assert summary["saved_ratio"] == pytest.approx(0.5)
    assert 0 < summary["keep_rate"] < 1
    assert 0 < summary["seconds"] < 250
    assert "load a checkpoint" in said[0]
    assert "autoassist instances CHECKPOINT" in said[1]


def test_the_totals_are_those_of_the_last_fit(tmp_path):
    _, summary, logged, said = summaries(tmp_path, "ddp_notebook", "auto")
    assert summary["instances_seen"] == logged["autoassist/instances_seen"] == 6 * 60
    assert summary["optimizer_steps"] == 6 * 6
    assert not said
