"""Whole runs: the same as plain Lightning's where nothing is filtered, reproducible, and no step waits or keeps."""

from __future__ import annotations

import weakref

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import TensorDataset

from lightning_autoassist import AutoAssistPolicy
from tests.helpers.device_runs import TASKS, NoWaiting, assert_equal_modules, clusters, fit, on_device_options
from tests.helpers.ordinary import Classifier
from tests.helpers.resuming import assert_resumes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:this run trains on"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]
UNFILTERED = {
    "losses unseen": lambda: {"policy": "uniform"},
    "losses captured": lambda: {"policy": AutoAssistPolicy(gamma=1.0)},
}


@pytest.mark.parametrize("settings", UNFILTERED.values(), ids=UNFILTERED)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_a_run_that_keeps_everything_is_plain_lightning_bit_for_bit(device, task, precision, settings):
    plain, *_ = fit(device, task, precision=precision, max_epochs=2)
    kept, *_ = fit(device, task, filtering=settings(), budget=1.0, precision=precision, max_epochs=2)
    assert_equal_modules(kept, plain)


class Overflowing(Classifier):
    """In some steps the gradients are too large for half precision; notes the scale of each step."""

    def __init__(self):
        super().__init__()
        self.scales = []

    def training_step(self, batch, batch_idx):
        scaler = self.trainer.precision_plugin.scaler
        self.scales.append(scaler.get_scale())
        loss = super().training_step(batch, batch_idx)
        return loss * 1e6 if batch_idx in (3, 4) else loss


@pytest.mark.parametrize(
    "settings",
    [{"policy": AutoAssistPolicy(gamma=1.0)}, {"policy": "proportional"}],
    ids=["unfiltered", "filtered"],
)
def test_loss_scaling_goes_on_as_without_filtering(device, settings):
    if device != "cuda":
        pytest.skip("16-mixed needs a GPU: Lightning takes bf16-mixed on the CPU")
    plain, *_ = fit(device, (Overflowing, clusters), precision="16-mixed")
    budget = 0.6 if settings["policy"] == "proportional" else 1.0
    found, callback, _ = fit(device, (Overflowing, clusters), filtering=settings, budget=budget, precision="16-mixed")
    assert min(plain.scales) < plain.scales[0]  # it has overflowed
    if budget == 1.0:
        assert found.scales == plain.scales
        assert_equal_modules(found, plain)
        return
    assert all(value.isfinite().all() for value in found.state_dict().values())
    assert callback.instances.seen.any()
    assert callback.summary()["keep_rate"] < 1


@pytest.mark.parametrize(
    "settings",
    [
        {"policy": "autoassist", "lag": 3},
        {"policy": "proportional", "lag": 4, "unfiltered_tail": 0.3},
        {"policy": "infobatch", "lag": 1},
    ],
    ids=str,
)
def test_runs_are_reproducible_and_do_not_depend_on_the_thread(device, settings):
    runs = [fit(device, "clusters", filtering={**settings, "update": update}) for update in ("async", "async", "sync")]
    first, callback, _ = runs[0]
    assert callback.summary()["keep_rate"] < 1
    for module, other, _ in runs[1:]:
        assert_equal_modules(module, first)
        assert torch.equal(other.instances.scores.nan_to_num(), callback.instances.scores.nan_to_num())


@pytest.mark.skipif(pl.__version__ < "2.5", reason="Lightning 2.4 trains on one batch too many after a resume")
@pytest.mark.parametrize("policy", ["autoassist", "proportional"])
def test_a_resumed_run_equals_an_uninterrupted_one(device, policy, tmp_path):
    """Dropout draws from the device's own generator."""
    settings = {"policy": policy, "lag": 2, "update": "async"}
    assert_resumes(tmp_path, (3, 7), settings=settings, val=False, **on_device_options(device))


@pytest.mark.parametrize("policy", ["autoassist", "proportional", "infobatch"])
@pytest.mark.parametrize("task", TASKS)
def test_the_training_loop_waits_for_no_device(device, task, policy, monkeypatch):
    plain = NoWaiting(device, monkeypatch)
    fit(device, task, plain, max_epochs=4)  # nor does Lightning
    watched = NoWaiting(device, monkeypatch)
    filtering = {"policy": policy, "reweighting": "normalized", "update": "async", "lag": 4}
    _, callback, _ = fit(device, task, watched, filtering=filtering, max_epochs=8)
    assert watched.num_watched > 12
    assert not watched.waited
    assert callback.summary()["keep_rate"] < 1


class Held(pl.Callback):
    """Bytes allocated on the device at the beginning of each step; on the CPU, outputs that are still there."""

    def __init__(self, device):
        self.device = device
        self.amounts, self.outputs = [], []

    def on_fit_start(self, run, module):
        module.net.register_forward_hook(lambda net, inputs, output: self.outputs.append(weakref.ref(output)))

    def on_train_batch_start(self, *args):
        if self.device == "cuda":
            self.amounts.append(torch.cuda.memory_allocated())
        else:
            self.amounts.append(sum(output() is not None for output in self.outputs))


@pytest.mark.parametrize("policy", ["autoassist", "proportional"])
@pytest.mark.parametrize("task", ["images", "sentences"])
def test_nothing_is_kept_on_the_device_from_step_to_step(device, task, policy):
    plain, held = Held(device), Held(device)
    fit(device, task, plain, max_epochs=7)
    _, _, run = fit(device, task, held, filtering={"policy": policy, "lag": 4}, max_epochs=7)
    steady, expected = held.amounts[-20:], plain.amounts[-20:]
    # For each logged value Lightning keeps five numbers there, in a block of 512 bytes each; and what is on its way to
    # the CPU.
    num_logged = sum(name.startswith("autoassist/") for name in run.callback_metrics)
    spare = 4096 + 5 * 512 * num_logged if device == "cuda" else 0
    assert max(steady) <= max(expected) + spare
    assert max(steady) - min(steady) <= max(expected) - min(expected) + (4096 if device == "cuda" else 0)


def test_data_that_lie_on_the_device_are_filtered(device):
    def data():
        return TensorDataset(*(tensor.to(device) for tensor in clusters().tensors))

    plain, *_ = fit(device, (Classifier, data), max_epochs=2)
    kept, *_ = fit(device, (Classifier, data), filtering=UNFILTERED["losses captured"](), budget=1.0, max_epochs=2)
    assert_equal_modules(kept, plain)
    on_device, callback, _ = fit(device, (Classifier, data), filtering={"policy": "proportional"})
    on_host, *_ = fit(device, "clusters", filtering={"policy": "proportional"})
    assert callback.summary()["keep_rate"] < 1
    assert_equal_modules(on_device, on_host)
