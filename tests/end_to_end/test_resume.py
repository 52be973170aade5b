"""A run that was interrupted and resumed equals the uninterrupted one, bit for bit."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from lightning_autoassist import ASSISTANTS, POLICIES, AutoAssistCallback, AutoAssistDataModule
from lightning_autoassist.assistants import MemoryAssistant
from lightning_autoassist.filtering.memory.store import FEATURE_MEMORY, REMEMBERED
from lightning_autoassist.policies import LinearSchedule, PrioritizedPolicy
from tests.helpers.ordinary import Classifier, ClustersData, trainer
from tests.helpers.paths import ROOT
from tests.helpers.texts import BagOfWords, TextsData

EPOCHS, EPOCH_LENGTH = 5, 12  # 200 instances, batches of 10, budget 0.6: passes begin near steps 0, 20, 33, 46

pytestmark = [
    pytest.mark.skipif(pl.__version__ < "2.5", reason="Lightning 2.4 trains on one batch too many after a resume"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create the checkpoint"),
]


class Scheduled(Classifier):
    """Asks for the number of steps, which builds the train loader before a checkpoint is restored."""

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Saving(pl.Callback):
    """Saves checkpoints where ``ModelCheckpoint(every_n_train_steps=...)`` does."""

    def __init__(self, folder, steps):
        self.folder, self.steps = folder, steps

    def on_train_batch_end(self, run, *args):
        if run.global_step in self.steps:
            run.save_checkpoint(self.folder / f"step={run.global_step}.ckpt")


def fit(folder, *callbacks, saved_steps=None, ckpt_path=None, seed=0, module_type=Classifier, **options):
    """Train, with a checkpoint at each of some steps (None: at every step, by a ModelCheckpoint).

    Returns everything that a resumed run has to share with an uninterrupted one.
    """
    pl.seed_everything(seed, verbose=False)
    module = module_type()
    settings = {
        name: options.pop(name) for name in ("assistant", "policy", "lag", "update", "dynamics") if name in options
    }
    settings = {name: value() if callable(value) else value for name, value in settings.items()}  # each run its own
    reweighting = options.pop("reweighting", "none")
    memory = options.pop("feature_memory", FEATURE_MEMORY)
    tokens = {name: options.pop(name) for name in ("max_tokens", "lengths") if name in options}
    source = TextsData if module_type is BagOfWords else ClustersData
    data = AutoAssistDataModule(source(200, 10, **options), budget=0.6, seed=3, **tokens)
    callback = AutoAssistCallback(
        **{"policy": "autoassist", **settings}, reweighting=reweighting, feature_memory=memory
    )
    saving = pl.callbacks.ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    if saved_steps is not None:
        saving = Saving(folder, saved_steps)
    run = trainer(
        max_epochs=EPOCHS,
        callbacks=[callback, saving, *callbacks],
        enable_checkpointing=saved_steps is None,
        default_root_dir=folder,
    )
    run.fit(module, datamodule=data, ckpt_path=ckpt_path)
    assert run.global_step == EPOCHS * EPOCH_LENGTH
    return {
        **module.state_dict(),
        **tensors_of(callback.assistant.state_dict(), "assistant"),
        **tensors_of(callback.policy.state_dict(), "policy"),
        **remembered(callback.instances),
        "considered": torch.tensor(data.candidate_stream.num_considered),
        "waiting": torch.from_numpy(data.candidate_stream.waiting),
        "rng": torch.get_rng_state(),
        "val_loss": run.callback_metrics["val_loss"],
    }


def remembered(instances):
    """Columns of the store, wherever the features are."""
    if instances is None:
        return {}
    columns = {name: getattr(instances, name) for name in (*REMEMBERED, "features")}
    columns = {name: column for name, column in columns.items() if column is not None}
    if instances.dynamics is not None:
        columns |= tensors_of(instances.dynamics.state_dict()["columns"], "dynamics")
    return columns if instances.tokens is None else {**columns, **tensors_of(instances.tokens.state_dict(), "tokens")}


def tensors_of(state, name):
    if isinstance(state, dict):
        return {key: value for part in state for key, value in tensors_of(state[part], f"{name}.{part}").items()}
    if isinstance(state, str):
        return {name: torch.tensor(list(state.encode()))}
    return {name: torch.as_tensor(float("nan") if state is None else state)}


def assert_equal(left, right):
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=0, atol=0, equal_nan=True, msg=name)


# In the first pass, at an epoch's last batch, around a pass's end, in the middle, one step before the end.
STEPS = (5, 12, 19, 20, 21, 30, 59)
FEWER = (12, 20)  # where each run starts processes
LOADERS = {
    "no workers": (STEPS, {}),
    "2 workers": (FEWER, {"num_workers": 2}),
    "2 persistent workers": (FEWER, {"num_workers": 2, "persistent_workers": True}),
    "schedule": (STEPS, {"module_type": Scheduled}),
    "weights": (STEPS, {"reweighting": "normalized"}),
    "lag": (STEPS, {"lag": 3}),
    "batches by tokens": (STEPS, {"max_tokens": 55, "lengths": [1 + index % 10 for index in range(200)]}),
    "batches by tokens, workers": (FEWER, {"max_tokens": 55, "lengths": [5, 6] * 100, "num_workers": 2}),
    "batches by tokens, async": (FEWER, {"max_tokens": 55, "lengths": [5, 6] * 100, "update": "async"}),
    "async": (STEPS, {"update": "async", "reweighting": "normalized"}),
    "async, lag, 2 workers": (FEWER, {"update": "async", "lag": 3, "num_workers": 2}),
    "async, 2 persistent workers": (FEWER, {"update": "async", "num_workers": 2, "persistent_workers": True}),
    "features in a file": (STEPS, {"feature_memory": 0}),
    **{f"assistant {name}": (FEWER, {"assistant": name}) for name in ASSISTANTS if name != "text"},
    "assistant text": (STEPS, {"assistant": "text", "module_type": BagOfWords}),
    "assistant text, async": (FEWER, {"assistant": "text", "module_type": BagOfWords, "update": "async"}),
    "assistant text, lag": (FEWER, {"assistant": "text", "module_type": BagOfWords, "lag": 3, "num_workers": 1}),
    **{f"policy {name}": (FEWER, {"policy": name, "reweighting": "auto"}) for name in POLICIES},
    "filtered from the first pass on": (STEPS, {"policy": lambda: PrioritizedPolicy(0.15), "reweighting": "auto"}),
    "a schedule of keep rates": (FEWER, {"policy": lambda: PrioritizedPolicy(LinearSchedule(0.5, 0.2))}),
    "running means": (FEWER, {"policy": "prioritized", "assistant": lambda: MemoryAssistant(decay=0.5)}),
    "only observed": (STEPS, {"policy": "uniform", "dynamics": True, "lag": 2}),
}


@pytest.mark.parametrize(("steps", "options"), LOADERS.values(), ids=LOADERS)
def test_resumed_from_any_step_a_run_is_the_uninterrupted_one(steps, options, tmp_path):
    expected = fit(tmp_path / "whole", saved_steps=steps, **options)
    for step in steps:
        checkpoint = tmp_path / "whole" / f"step={step}.ckpt"
        found = fit(tmp_path / "resumed", saved_steps=(), ckpt_path=checkpoint, seed=99, **options)
        assert_equal(expected, found)


def test_resumed_from_an_epochs_end_after_validation(tmp_path):
    saving = pl.callbacks.ModelCheckpoint(tmp_path / "ends", filename="{epoch}", save_top_k=-1)
    expected = fit(tmp_path / "whole", saving)
    for epoch in (0, 2):
        found = fit(tmp_path / "resumed", ckpt_path=tmp_path / "ends" / f"epoch={epoch}.ckpt", seed=99)
        assert_equal(expected, found)


def test_checkpoints_hold_tensors_and_builtins_only(tmp_path):
    fit(tmp_path)
    checkpoint = torch.load(tmp_path / "step=30.ckpt", weights_only=True)
    (own,) = checkpoint["AutoAssistDataModule"]["ranks"]
    assert own.keys() == {"sampler", "rng"}
    assert checkpoint["callbacks"]["AutoAssistCallback"]["selector"]["assistant"]["weight"].shape == (8,)


class Dying(pl.Callback):
    """Ends the process, or the run, in the way that its name says, in the middle of a step."""

    def __init__(self, way, step):
        self.way, self.step = way, step

    def on_before_optimizer_step(self, run, module, optimizer):
        if run.global_step != self.step:
            return
        if self.way == "exception":
            raise ArithmeticError("interrupted")
        signal.raise_signal(getattr(signal, self.way))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """What runs give that nobody interrupts, by where the Assistant learns.

    In processes of their own: the number of threads tells in the last bit.
    """
    found = {}
    for update in ("sync", "async"):
        folder = tmp_path_factory.mktemp("uninterrupted")
        finished = run_in_a_process("whole", folder, "", {"update": update})
        assert finished.returncode == 0, finished.stderr
        found[update] = torch.load(folder / "found.pt", weights_only=True)
    return found


@pytest.mark.parametrize(
    ("way", "last_step", "options"),
    [
        ("SIGKILL", 30, {}),
        ("SIGKILL", 30, {"feature_memory": 0}),
        ("SIGKILL", 30, {"update": "async"}),
        ("SIGTERM", 31, {}),
        ("exception", 30, {}),
        ("exception", 30, {"update": "async"}),
    ],
)
def test_a_killed_process_is_resumed_in_a_new_one(way, last_step, options, uninterrupted, tmp_path):
    """Dies in the step after the 30th, which Lightning ends after a SIGTERM."""
    killed = run_in_a_process("die", tmp_path, way, options)
    assert killed.returncode == {"SIGKILL": -9, "SIGTERM": 0, "exception": 1}[way], killed.stderr
    checkpoint = max((tmp_path / "killed").glob("*.ckpt"), key=lambda path: int(path.stem.partition("=")[2]))
    assert checkpoint.stem == f"step={last_step}"
    assert len(list((tmp_path / "killed").glob("autoassist-features-*"))) == ("feature_memory" in options)
    resumed = run_in_a_process("resume", tmp_path, checkpoint, options)
    assert resumed.returncode == 0, resumed.stderr
    assert_equal(uninterrupted[options.get("update", "sync")], torch.load(tmp_path / "found.pt", weights_only=True))


def run_in_a_process(job, folder, argument, options):
    return subprocess.run(
        [sys.executable, "-m", "tests.end_to_end.test_resume", job, str(folder), str(argument), json.dumps(options)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


if __name__ == "__main__":
    job, folder, argument, options = sys.argv[1], Path(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
    if job == "die":
        fit(folder / "killed", Dying(argument, 30), **options)
    elif job == "resume":
        torch.save(fit(folder / "resumed", ckpt_path=argument, seed=99, **options), folder / "found.pt")
    else:
        torch.save(fit(folder, saved_steps=(), **options), folder / "found.pt")
