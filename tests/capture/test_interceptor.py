"""One interceptor of the training step for each Trainer, whoever observes it and in whatever order they leave."""

from __future__ import annotations

import gc
import weakref

import pytest
import pytorch_lightning as pl
import torch

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule
from lightning_autoassist.capture.interceptor import observe_training_steps
from tests.helpers.ordinary import Classifier, ClustersData, trainer


class Observing(pl.Callback):
    """Notes when each step begins and ends, in notes that several share; fails in step ``fails_in``."""

    def __init__(self, name, notes, *, fails_in=None, leaves_at=None):
        self.name = name
        self.notes = notes
        self.fails_in = fails_in
        self.leaves_at = leaves_at
        self.outputs = []

    def on_fit_start(self, trainer, pl_module):
        self.remove = observe_training_steps(trainer.strategy, self.observe)

    def observe(self, step):
        if len(self.outputs) == self.fails_in:
            raise RuntimeError(f"{self.name} has failed")
        self.notes.append(f"{self.name} before")
        try:
            output = step.run()
        finally:
            self.notes.append(f"{self.name} after")
        self.outputs.append((step.batch, output))
        return output

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == self.leaves_at:
            self.remove()

    def teardown(self, trainer, pl_module, stage):
        self.remove()

    def on_exception(self, trainer, pl_module, exception):
        self.remove()


class Wrapping(pl.Callback):
    """Wraps the step as other people do: on the instance, putting back at the end what was found there."""

    def __init__(self, is_below):
        self.is_below = is_below
        self.num_steps = 0

    def wrap(self, strategy):
        found, own = strategy.training_step, vars(strategy).get("training_step")

        def wrapper(*args):
            self.num_steps += 1
            return found(*args)

        self.own, self.wrapper = own, wrapper
        strategy.training_step = wrapper

    def setup(self, trainer, pl_module, stage):
        if self.is_below:
            self.wrap(trainer.strategy)

    def on_train_start(self, trainer, pl_module):
        if not self.is_below:
            self.wrap(trainer.strategy)

    def unwrap(self, strategy):
        assert strategy.training_step is self.wrapper  # exactly what it put there
        del strategy.training_step
        if self.own is not None:
            strategy.training_step = self.own


def fit(run, module=None):
    run.fit(module or Classifier(), datamodule=ClustersData(40, 10))


def weights_of(callbacks):
    pl.seed_everything(0, verbose=False)
    module = Classifier()
    fit(trainer(max_epochs=2, callbacks=callbacks), module)
    return torch.nn.utils.parameters_to_vector(module.parameters())


def is_as_found(run):
    return not {"training_step", "_intercepted_training_step"} & vars(run.strategy).keys()


def test_observers_nest_in_the_order_in_which_they_registered():
    log = []
    first, second = Observing("first", log), Observing("second", log)
    run = trainer(max_epochs=1, callbacks=[first, second])
    fit(run)
    assert log == ["first before", "second before", "second after", "first after"] * 4
    for (batch, output), (same_batch, same_output) in zip(first.outputs, second.outputs, strict=True):
        assert batch is same_batch
        assert output is same_output
    assert is_as_found(run)


def test_steps_are_those_of_a_run_without_observers():
    assert torch.equal(weights_of([]), weights_of([Observing("first", []), Observing("second", [])]))


# Of the first epoch's steps; teardown comes first in, first out by itself.
@pytest.mark.parametrize(("first_leaves", "second_leaves"), [(0, 2), (2, 0), (None, 1), (1, None), (None, None)])
def test_observers_leave_in_any_order(first_leaves, second_leaves):
    first = Observing("first", [], leaves_at=first_leaves)
    second = Observing("second", [], leaves_at=second_leaves)
    run = trainer(max_epochs=1, callbacks=[first, second])
    fit(run)
    for observing, leaves in ((first, first_leaves), (second, second_leaves)):
        assert len(observing.outputs) == (4 if leaves is None else leaves + 1)
    assert is_as_found(run)


@pytest.mark.parametrize("failing", ["first", "second"])
def test_an_observer_that_raises_ends_the_run_and_leaves_nothing(failing):
    log = []
    callbacks = [Observing(name, log, fails_in=2 if name == failing else None) for name in ("first", "second")]
    run = trainer(max_epochs=1, callbacks=callbacks)
    with pytest.raises(RuntimeError, match=f"{failing} has failed"):
        fit(run)
    assert log.count("first before") == log.count("first after")
    assert [len(each.outputs) for each in callbacks] == [2, 2]
    assert is_as_found(run)


def test_an_error_of_the_step_passes_through_every_observer():
    class Failing(Classifier):
        def training_step(self, batch, batch_idx):
            raise KeyError("the user's own mistake")

    log = []
    run = trainer(max_epochs=1, callbacks=[Observing("first", log), Observing("second", log)])
    with pytest.raises(KeyError, match="own mistake"):
        fit(run, Failing())
    assert log == ["first before", "second before", "second after", "first after"]
    assert is_as_found(run)


def test_somebody_elses_wrapper_beneath_stays():
    wrapping, observing = Wrapping(is_below=True), Observing("first", [])
    run = trainer(max_epochs=1, callbacks=[wrapping, observing, Observing("second", [])])
    fit(run)
    assert wrapping.num_steps == len(observing.outputs) == 4
    wrapping.unwrap(run.strategy)
    assert is_as_found(run)


def test_somebody_elses_wrapper_above_stays_and_what_it_wraps_passes_every_call_on():
    wrapping, observing = Wrapping(is_below=False), Observing("first", [])
    run = trainer(max_epochs=1, callbacks=[observing, wrapping])
    fit(run)
    assert wrapping.num_steps == len(observing.outputs) == 4
    assert run.strategy.training_step is wrapping.wrapper
    run.fit_loop.max_epochs = 2
    run.callbacks = [callback for callback in run.callbacks if callback not in (observing, wrapping)]
    fit(run)
    assert (wrapping.num_steps, len(observing.outputs)) == (8, 4)


def test_what_a_wrapper_above_puts_back_is_used_again_and_goes():
    wrapping, observing = Wrapping(is_below=False), Observing("first", [])
    run = trainer(max_epochs=1, callbacks=[observing, wrapping])
    fit(run)
    wrapping.unwrap(run.strategy)
    run.fit_loop.max_epochs = 2
    run.callbacks.remove(wrapping)
    fit(run)
    assert (wrapping.num_steps, len(observing.outputs)) == (4, 8)
    assert is_as_found(run)


def test_removing_twice_removes_no_other_observer():
    run, log = trainer(max_epochs=1), []

    def observer(step):
        log.append(step.batch)
        return step.run()

    removals = [observe_training_steps(run.strategy, observer) for _ in range(2)]
    removals[0]()
    removals[0]()
    fit(run)
    assert len(log) == 4
    removals[1]()
    assert is_as_found(run)


def test_an_interceptor_that_somebody_took_away_is_used_no_more():
    run, log = trainer(max_epochs=1), []

    def observer(step):
        log.append(step.batch)
        return step.run()

    remove_lost = observe_training_steps(run.strategy, observer)
    del run.strategy.training_step
    remove = observe_training_steps(run.strategy, observer)
    fit(run)
    assert len(log) == 4
    remove_lost()
    assert "training_step" in vars(run.strategy)
    remove()
    assert is_as_found(run)


def test_arguments_given_by_name_are_seen_and_passed_on():
    class Strategy:
        def training_step(self, batch, batch_idx):
            return batch, batch_idx

    strategy, seen = Strategy(), []

    def observer(step):
        seen.append((step.batch, dict(step.kwargs)))
        return step.run()

    observe_training_steps(strategy, observer)
    assert strategy.training_step(batch=3, batch_idx=4) == (3, 4)
    assert seen == [(3, {"batch": 3, "batch_idx": 4})]


def test_two_trainers_have_an_interceptor_each():
    one, other = Observing("one", []), Observing("other", [])
    for observing in (one, other):
        fit(trainer(max_epochs=1, callbacks=[observing]))
    assert (len(one.outputs), len(other.outputs)) == (4, 4)


def test_an_observed_strategy_is_freed():
    run = trainer(max_epochs=1)
    observe_training_steps(run.strategy, lambda step: step.run())
    strategy = weakref.ref(run.strategy)
    del run
    gc.collect()
    assert strategy() is None


@pytest.mark.parametrize("is_first", [True, False])
def test_filtering_shares_the_step_with_another_observer(is_first):
    """The other one leaves in the middle, before or after a callback that goes on filtering."""
    observing, callback = Observing("other", [], leaves_at=1), AutoAssistCallback()
    run = trainer(max_epochs=4, callbacks=[observing, callback] if is_first else [callback, observing])
    run.fit(Classifier(), datamodule=AutoAssistDataModule(ClustersData(), budget=0.6))
    assert len(observing.outputs) == 2
    assert callback.summary()["keep_rate"] < 1
    assert callback._learner.reason is None
    assert is_as_found(run)
