"""Norms of gradients over layers on every device: nothing waits for them, nothing of a step is kept."""

from __future__ import annotations

import pytest

from lightning_autoassist import AutoAssistPolicy
from tests.gpu.test_runs import Held
from tests.helpers.device_runs import NoWaiting, assert_equal_modules, fit

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:this run trains on"),
    pytest.mark.filterwarnings("ignore:score='layer_gradient_norm' counts the gradients"),
]
SCORE = {"score": "layer_gradient_norm", "lag": 4}
TASKS = ("clusters", "images", "sentences")


@pytest.mark.parametrize("task", TASKS)
def test_the_training_loop_waits_for_no_device(device, task, monkeypatch):
    watched = NoWaiting(device, monkeypatch)
    filtering = {**SCORE, "policy": "proportional", "reweighting": "normalized", "update": "async"}
    _, callback, _ = fit(device, task, watched, filtering=filtering, max_epochs=8)
    assert watched.num_watched > 12
    assert not watched.waited
    assert callback.summary()["keep_rate"] < 1


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_run_that_keeps_everything_is_plain_lightning_bit_for_bit(device, task, precision):
    plain, *_ = fit(device, task, precision=precision, max_epochs=2)
    settings = {**SCORE, "policy": AutoAssistPolicy(gamma=1.0)}
    kept, callback, _ = fit(device, task, filtering=settings, budget=1.0, precision=precision, max_epochs=2)
    assert_equal_modules(kept, plain)
    assert callback.instances.seen.all()


def test_nothing_is_kept_on_the_device_from_step_to_step(device):
    plain, held = Held(device), Held(device)
    fit(device, "images", plain, max_epochs=7)
    _, _, run = fit(device, "images", held, filtering={**SCORE, "policy": "proportional"}, max_epochs=7)
    steady, expected = held.amounts[-20:], plain.amounts[-20:]
    num_logged = sum(name.startswith("autoassist/") for name in run.callback_metrics)
    assert max(steady) <= max(expected) + (4096 + 5 * 512 * num_logged if device == "cuda" else 0)
