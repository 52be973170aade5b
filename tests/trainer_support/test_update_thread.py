"""The Assistant in a thread of its own: as reproducible as without one, bounded, and gone when training ends."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, RandomSampler, TensorDataset

import lightning_autoassist
from lightning_autoassist import (
    AutoAssistCallback,
    AutoAssistDataModule,
    LogisticAssistant,
    ShrinkingBatchSampler,
)
from lightning_autoassist.losses import functional as losses
from lightning_autoassist.trainer_support.executors import InlineExecutor, UpdateThread
from tests.helpers.ordinary import Classifier, ClustersData, CountingDataset, trainer

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")

PACKAGE = str(Path(lightning_autoassist.__file__).parent)


def fit(module=None, data=None, *, assistant="auto", max_epochs=5, **options):
    """One run of five epochs of twelve batches; the callback, the module and the data module."""
    pl.seed_everything(0, verbose=False)
    module = module or Classifier()
    callback = AutoAssistCallback(assistant=assistant, **{"policy": "autoassist", **options})
    data = AutoAssistDataModule(data or ClustersData(200, 10), budget=0.6)
    trainer(max_epochs=max_epochs, callbacks=[callback]).fit(module, datamodule=data)
    return callback, module, data


def assert_equal_runs(left, right):
    for name, parameter in left[1].state_dict().items():
        assert torch.equal(parameter, right[1].state_dict()[name]), name
    assert torch.equal(left[0].instances.scores.nan_to_num(), right[0].instances.scores.nan_to_num())
    assert torch.equal(left[0].assistant.weight, right[0].assistant.weight)
    assert left[2].candidate_stream.num_considered == right[2].candidate_stream.num_considered


class Slow(LogisticAssistant):
    """Takes its time, now more and now less."""

    def update(self, instances, scores):
        time.sleep(0.003 * (int(scores[0] * 1e4) % 5))
        return super().update(instances, scores)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lag": 1},
        {"lag": 3},
        {"reweighting": "inverse_probability", "lag": 2},
        {"policy": "proportional"},
        {"policy": "proportional", "lag": 4, "unfiltered_tail": 0.3},
        {"policy": "class_quota", "lag": 1, "reweighting": "normalized"},
    ],
    ids=str,
)
def test_a_run_does_not_depend_on_who_is_faster(options):
    assistant = {} if "policy" in options else {"assistant": Slow()}
    in_thread = fit(update="async", **assistant, **options)
    if "policy" not in options:
        assert_equal_runs(in_thread, fit(update="async", **options))
    inline = fit(update="sync", **options)
    for name, parameter in in_thread[1].state_dict().items():
        assert torch.equal(parameter, inline[1].state_dict()[name]), name
    assert in_thread[0].summary().keys() == inline[0].summary().keys()
    assert in_thread[2].candidate_stream.num_considered == inline[2].candidate_stream.num_considered


def test_the_assistant_learns_and_draws_off_the_training_loop():
    threads = set()

    class Telling(LogisticAssistant):
        def predict(self, instances):
            threads.add(("predict", threading.current_thread().name))
            return super().predict(instances)

        def update(self, instances, scores):
            threads.add(("update", threading.current_thread().name))
            return super().update(instances, scores)

    fit(assistant=Telling(), update="async")
    assert ("update", "autoassist") in threads
    assert ("predict", "autoassist") in threads
    assert ("update", "MainThread") not in threads
    threads.clear()
    fit(assistant=Telling())  # on a CPU
    assert {name for _, name in threads} == {"MainThread"}


def test_jobs_are_done_in_order_and_few_wait():
    thread, done, begin = UpdateThread(max_waiting=3), [], threading.Event()
    thread.submit(begin.wait)
    for number in range(2):
        thread.submit(lambda number=number: done.append(number))
    submitter = threading.Thread(target=lambda: thread.submit(lambda: done.append(2)))
    submitter.start()
    submitter.join(0.2)
    assert submitter.is_alive()  # waits for the first of three
    begin.set()
    submitter.join(10)
    thread.wait_all()
    thread.close()
    assert done == [0, 1, 2]


def test_what_a_job_raises_reaches_who_waits():
    thread = UpdateThread()
    job = thread.submit(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        job.result()
    with pytest.raises(ZeroDivisionError):
        thread.wait_all()
    thread.submit(lambda: None).result(10)  # it lives on
    thread.close()
    assert not update_threads()


def test_a_closed_thread_does_jobs_at_once():
    thread, done = UpdateThread(), []
    thread.close()
    thread.close()
    thread.submit(lambda: done.append(threading.current_thread().name)).result()
    assert done == ["MainThread"]


def update_threads():
    return [thread for thread in threading.enumerate() if thread.name == "autoassist"]


class Stops(pl.Callback):
    def __init__(self, error):
        self.error = error

    def on_train_batch_start(self, run, *args):
        if run.global_step == 30:
            assert len(update_threads()) == 1
            raise self.error


@pytest.mark.parametrize("error", [ArithmeticError("stop"), KeyboardInterrupt(), None], ids=repr)
def test_the_thread_ends_with_the_fit(error):
    callbacks = [AutoAssistCallback(policy="autoassist", update="async"), *([Stops(error)] if error else [])]
    run = trainer(max_epochs=5, callbacks=callbacks)
    with contextlib.suppress(ArithmeticError, SystemExit):  # Lightning exits on an interrupt from the keyboard
        run.fit(Classifier(), datamodule=AutoAssistDataModule(ClustersData(200, 10), budget=0.6))
    assert run.global_step == (30 if error else 60)
    assert not update_threads()


def test_an_assistant_that_fails_in_the_thread_costs_no_run():
    class Failing(LogisticAssistant):
        def update(self, instances, scores):
            raise ArithmeticError("no opinion")

    with pytest.warns(UserWarning, match="training goes on with every instance.*no opinion") as caught:
        callback, _, data = fit(assistant=Failing(), update="async")
    assert sum("AutoAssist stopped" in str(one.message) for one in caught) == 1
    assert data.candidate_stream.num_kept == data.candidate_stream.num_considered
    assert callback.summary()["optimizer_steps"] == 60


def test_a_users_sampler_that_fails_ends_the_run():
    class FailsInItsSecondPass(RandomSampler):
        passes = 0

        def __iter__(self):
            self.passes += 1
            if self.passes == 2:
                raise ArithmeticError("no second pass")
            return super().__iter__()

    dataset = CountingDataset(200)
    loader = DataLoader(dataset, batch_size=10, sampler=FailsInItsSecondPass(dataset))
    with pytest.raises(ArithmeticError, match="no second pass"):
        fit(data=loader, update="async")
    assert not update_threads()


def test_a_second_fit_goes_on():
    callback, module, data = fit(update="async", max_epochs=4)
    trainer(max_epochs=4, callbacks=[callback]).fit(module, datamodule=data)
    assert callback.summary()["optimizer_steps"] == 48
    assert not update_threads()


class Tokens(Dataset):
    """Sequences of 12 tokens, some of them padding."""

    def __init__(self, num_instances):
        generator = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(1, 20, (num_instances, 12), generator=generator)
        self.tokens[:, 9:] = 0

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        return {"tokens": self.tokens[index]}


class LanguageModel(Classifier):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 20))

    def training_step(self, batch, batch_idx):
        logits = self.net(batch["tokens"][:, :-1])
        return F.cross_entropy(logits.transpose(1, 2), batch["tokens"][:, 1:], ignore_index=0)


class Regression(Classifier):
    def training_step(self, batch, batch_idx):
        features, labels = batch
        return F.smooth_l1_loss(self.net(features)[:, 0], labels.float())


class HandWritten(Classifier):
    def training_step(self, batch, batch_idx):
        features, labels = batch
        return (self.net(features)[:, 0] - labels).square().mean()


class SoftLabels(Classifier):
    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        return F.cross_entropy(self.net(inputs), targets)


MODULES = {
    "cross-entropy": (Classifier, lambda: CountingDataset(200)),
    "tokens": (LanguageModel, lambda: Tokens(200)),
    "regression": (Regression, lambda: CountingDataset(200)),
    "by hand": (HandWritten, lambda: CountingDataset(200)),
    "soft labels": (
        SoftLabels,
        lambda: TensorDataset(CountingDataset(200).features, torch.rand(200, 3).softmax(1)),
    ),
}
# What waits for a device where the tensor lies on one.
WAITING = {
    torch.Tensor: ("item", "cpu", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__", "nonzero"),
    torch: ("equal", "allclose", "nonzero"),
    torch.cuda: ("synchronize",),
    torch.cuda.Event: ("synchronize",),
    torch.cuda.Stream: ("synchronize",),
}


def is_drawing(frame):
    """Whether a batch is being drawn, as happens in the training loop when a pass begins: of the CPU's tensors only."""
    while frame is not None and frame.f_code is not ShrinkingBatchSampler.draws.__code__:
        frame = frame.f_back
    return frame is not None


@pytest.mark.filterwarnings("ignore:hand-written loss at")
@pytest.mark.parametrize("policy", ["autoassist", "proportional"])
@pytest.mark.parametrize("name", MODULES)
def test_the_training_loop_waits_for_no_device(name, policy, monkeypatch):
    """Counts calls from this package's code in the main thread, after the first steps found out about the loss."""
    calls, step = Counter(), 0

    def counted(name, function):
        def call(*args, **kwargs):
            if threading.current_thread() is threading.main_thread() and step > 16:
                caller = sys._getframe(1)
                if caller.f_code.co_filename.startswith(PACKAGE) and not is_drawing(caller):
                    calls[f"{name} at {Path(caller.f_code.co_filename).name}:{caller.f_lineno}"] += 1
            return function(*args, **kwargs)

        return call

    class Counting(pl.Callback):
        def on_train_batch_start(self, run, *args):
            nonlocal step
            step = run.global_step

        def on_train_epoch_end(self, *args):
            nonlocal step
            step = 0  # once an epoch, when metrics are logged, waiting is allowed

    for owner, names in WAITING.items():
        for attribute in names:
            monkeypatch.setattr(owner, attribute, counted(attribute, getattr(owner, attribute)))
    monkeypatch.setattr(losses, "answers_at_once", lambda values: False)  # as on a device
    module_type, dataset = MODULES[name]
    callback = AutoAssistCallback(policy=policy, update="async", lag=4)
    run = trainer(max_epochs=5, callbacks=[Counting(), callback], limit_val_batches=0)
    data = AutoAssistDataModule(DataLoader(dataset(), batch_size=10, shuffle=True), budget=0.6)
    run.fit(module_type(), datamodule=data)
    assert callback.instances.seen.any()
    assert run.global_step > 24
    assert not calls


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_true_precisions_change_the_default_data_type_of_no_thread_of_ours(precision):
    """Lightning sets torch's default data type, which all threads share, while a step runs."""
    callback = AutoAssistCallback(assistant="hybrid", update="async", lag=2)
    run = trainer(max_epochs=4, callbacks=[callback], precision=precision)
    run.fit(Classifier(), datamodule=AutoAssistDataModule(ClustersData(), budget=0.6))
    assert callback.summary()["keep_rate"] < 1
    assert type(callback._fit.jobs) is InlineExecutor
