"""Schedules that end elsewhere than over the full run are warned of, by name; those that end rightly are not."""

from __future__ import annotations

import math
import random
import warnings

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.optim import lr_scheduler

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule
from lightning_autoassist.filtering.checks.schedules import Simulation, wrong_ends
from tests.helpers.ordinary import Classifier, ClustersData, trainer

pytestmark = pytest.mark.filterwarnings("ignore:this run trains on")

# 100 instances in batches of 10, ten epochs: 60 steps at the budget, 100 without.
FULL, OWN, EPOCHS = 100, 60, 10


class Warmup(lr_scheduler.LRScheduler):
    """A user's own: linear to zero, by its own counter."""

    def __init__(self, optimizer, steps):
        self.steps = steps
        self.done = -1
        super().__init__(optimizer)

    def get_lr(self):
        self.done += 1
        return [max(0.0, 1 - self.done / self.steps) * base for base in self.base_lrs]


class Scheduled(Classifier):
    def __init__(self, make, interval="step", frequency=1):
        super().__init__()
        self.make, self.interval, self.frequency = make, interval, frequency

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        config = {"scheduler": self.make(optimizer), "interval": self.interval, "frequency": self.frequency}
        return [optimizer], [config]


def cosine_with_warmup(steps):  # as transformers has it: rises again behind its end
    def factor(step):
        return step / 10 if step < 10 else 0.5 * (1 + math.cos(math.pi * (step - 10) / (steps - 10)))

    return lambda optimizer: lr_scheduler.LambdaLR(optimizer, factor)


def in_sequence(steps):
    def make(optimizer):
        parts = [lr_scheduler.LinearLR(optimizer, 0.1, 1, 10), lr_scheduler.PolynomialLR(optimizer, steps - 10)]
        return lr_scheduler.SequentialLR(optimizer, parts, [10])

    return make


def chained(steps):
    def make(optimizer):
        parts = [lr_scheduler.ConstantLR(optimizer, 0.5, 5), lr_scheduler.CosineAnnealingLR(optimizer, steps)]
        return lr_scheduler.ChainedScheduler(parts)

    return make


# Of a number of steps to end with.
ENDING = {
    "LambdaLR": lambda n: lambda o: lr_scheduler.LambdaLR(o, lambda step: max(0.0, 1 - step / n)),
    "cosine with warm-up": cosine_with_warmup,
    "SequentialLR": in_sequence,
    "ChainedScheduler": chained,
    "OneCycleLR": lambda n: lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=n),
    "CosineAnnealingLR": lambda n: lambda o: lr_scheduler.CosineAnnealingLR(o, n, eta_min=1e-4),
    "LinearLR": lambda n: lambda o: lr_scheduler.LinearLR(o, 1.0, 0.1, n),
    "MultiStepLR": lambda n: lambda o: lr_scheduler.MultiStepLR(o, [n // 2, n * 7 // 8]),
    "CosineAnnealingWarmRestarts": lambda n: lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, n),
    "CyclicLR": lambda n: lambda o: lr_scheduler.CyclicLR(o, 1e-3, 0.1, n // 2, cycle_momentum=False),
    "a user's": lambda n: lambda o: Warmup(o, n),
}
# Where no end is in sight, a rate that goes on falling.
ENDLESS = {
    "ExponentialLR": lambda n: lambda o: lr_scheduler.ExponentialLR(o, 0.01 ** (1 / n)),
    "StepLR": lambda n: lambda o: lr_scheduler.StepLR(o, n // 5, gamma=0.5),
    "MultiplicativeLR": lambda n: lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.05 ** (1 / n)),
    "inverse square root": lambda n: (
        lambda o: lr_scheduler.LambdaLR(o, lambda step: min((step + 1) / (n / 10), ((step + 1) / (n / 10)) ** -0.5))
    ),
}


def warned(module, budget=0.6, callbacks=(), **options):
    """What a run says of its schedules, and the run."""
    run = trainer(**{"max_epochs": EPOCHS, **options}, callbacks=[AutoAssistCallback(), *callbacks])
    data = AutoAssistDataModule(ClustersData(100, 10), budget=budget)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.fit(module, datamodule=data)
    return [str(one.message) for one in caught if "the learning rate will end" in str(one.message)], run


@pytest.mark.parametrize("name", [*ENDING, *ENDLESS])
def test_a_length_written_for_the_full_run_is_warned_of(name):
    module = Scheduled({**ENDING, **ENDLESS}[name](FULL))
    said, run = warned(module)
    scheduler = run.lr_scheduler_configs[0].scheduler
    assert len(said) == 1
    assert said[0].startswith(type(scheduler).__name__)
    assert f"is longer than this run's {OWN} steps" in said[0]
    assert "trainer.estimated_stepping_batches, here 60" in said[0]
    told = float(said[0].split("will end at ")[1].split(",")[0])
    assert told <= run.optimizers[0].param_groups[0]["lr"] * 1.01  # the last step's, or the one behind it


@pytest.mark.parametrize("name", ENDING)
def test_a_length_that_is_the_runs_own_is_right(name):
    assert not warned(Scheduled(ENDING[name](OWN)))[0]


@pytest.mark.parametrize("name", [*ENDING, *ENDLESS])
def test_schedules_built_from_the_estimated_number_of_steps_are_right(name):
    class Estimated(Scheduled):
        def configure_optimizers(self):
            self.make = self.make(self.trainer.estimated_stepping_batches)
            return super().configure_optimizers()

    assert not warned(Estimated({**ENDING, **ENDLESS}[name]))[0]


def test_an_estimate_that_is_asked_for_and_not_used_excuses_nothing():
    class Asking(Scheduled):
        def configure_optimizers(self):
            assert self.trainer.estimated_stepping_batches == OWN
            return super().configure_optimizers()

    assert warned(Asking(ENDING["CosineAnnealingLR"](FULL)))[0]


HARMLESS = {
    "in the middle of cycles": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 7),
    "in the middle of a triangle": lambda o: lr_scheduler.CyclicLR(o, 1e-3, 0.1, 9, cycle_momentum=False),
    "warm-up, then constant": lambda o: lr_scheduler.LinearLR(o, 0.1, 1.0, 20),
    "constant": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1.0),
    "milestones behind every end": lambda o: lr_scheduler.MultiStepLR(o, [300, 400]),
    "milestones before every end": lambda o: lr_scheduler.MultiStepLR(o, [20, 40]),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_schedules_without_an_end_to_miss_are_not_warned_of(name):
    assert not warned(Scheduled(HARMLESS[name]))[0]


def test_a_warm_up_longer_than_the_run_is_warned_of():
    said, _ = warned(Scheduled(lambda o: lr_scheduler.LinearLR(o, 0.1, 1.0, 90)))
    assert "LinearLR(total_iters=90) is longer than this run's 60 steps" in said[0]


@pytest.mark.parametrize(("n", "count"), [(EPOCHS, 0), (25, 0)])
def test_schedules_by_the_epoch_end_as_they_did(n, count):
    assert len(warned(Scheduled(ENDING["CosineAnnealingLR"](n), "epoch"))[0]) == count


def test_under_max_steps_it_is_the_epochs_that_differ():
    """60 steps are 6 of the full run's epochs, and 10 of this one's."""
    said, _ = warned(Scheduled(ENDING["CosineAnnealingLR"](6), "epoch"), max_epochs=-1, max_steps=60)
    assert "CosineAnnealingLR(T_max=6) is shorter than this run's 10 epochs" in said[0]
    assert "6 epochs of a run without filtering" in said[0]
    assert not warned(Scheduled(ENDING["CosineAnnealingLR"](60)), max_epochs=-1, max_steps=60)[0]


def test_accumulation_and_frequency_count():
    assert not warned(Scheduled(ENDING["LambdaLR"](30)), accumulate_grad_batches=2)[0]
    assert warned(Scheduled(ENDING["LambdaLR"](50)), accumulate_grad_batches=2)[0]
    assert not warned(Scheduled(ENDING["LambdaLR"](20), frequency=3))[0]
    assert warned(Scheduled(ENDING["LambdaLR"](33), frequency=3))[0]
    changing = pl.callbacks.GradientAccumulationScheduler({0: 1, 5: 2})
    assert not warned(Scheduled(ENDING["LambdaLR"](5 * 6 + 5 * 3)), callbacks=[changing])[0]
    changing = pl.callbacks.GradientAccumulationScheduler({0: 1, 5: 2})
    assert "this run's 45 steps" in warned(Scheduled(ENDING["LambdaLR"](75)), callbacks=[changing])[0][0]


def test_limits_of_batches_count():
    assert not warned(Scheduled(ENDING["LambdaLR"](40)), limit_train_batches=4)[0]
    assert "40 steps" in warned(Scheduled(ENDING["LambdaLR"](80)), limit_train_batches=8, budget=0.4)[0][0]


def test_a_run_that_ends_with_its_steps_keeps_its_schedule():
    assert not warned(Scheduled(ENDING["LambdaLR"](FULL)), budget=1.0)[0]


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_a_schedule_by_a_metric_is_not_simulated():
    class Plateau(Classifier):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}

    assert not warned(Plateau())[0]


class ByHand(Classifier):
    """Two optimizers, two schedules, all stepped by the module."""

    automatic_optimization = False

    def __init__(self, steps, *, by_epoch=False):
        super().__init__()
        self.automatic_optimization = False
        self.steps, self.by_epoch = steps, by_epoch

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()
        if not self.by_epoch:
            for scheduler in self.lr_schedulers():
                scheduler.step()

    def on_train_epoch_end(self):
        if self.by_epoch:
            for scheduler in self.lr_schedulers():
                scheduler.step()

    def configure_optimizers(self):
        parameters = list(self.parameters())
        optimizers = [torch.optim.SGD(part, lr=0.1) for part in (parameters[:2], parameters[2:])]
        schedulers = [ENDING["CosineAnnealingLR"](self.steps)(optimizers[0]), chained(self.steps)(optimizers[1])]
        return optimizers, schedulers


def test_schedules_that_the_module_steps_are_counted_in_the_first_epoch():
    said, _ = warned(ByHand(FULL))
    assert len(said) == 1
    assert "CosineAnnealingLR(T_max=100) is longer" in said[0]
    assert "; ChainedScheduler is longer" in said[0]
    assert not warned(ByHand(OWN))[0]
    assert not warned(ByHand(EPOCHS, by_epoch=True))[0]


def test_schedules_with_a_step_of_the_modules_own():
    class Own(Scheduled):
        def lr_scheduler_step(self, scheduler, metric):
            scheduler.step()

    assert warned(Own(ENDING["LambdaLR"](FULL)))[0]
    assert not warned(Own(ENDING["LambdaLR"](OWN)))[0]


def test_a_resumed_run_is_judged_from_where_it_stands(tmp_path):
    def saver():
        return pl.callbacks.ModelCheckpoint(
            tmp_path, filename="{step}", every_n_train_steps=20, save_top_k=-1, enable_version_counter=False
        )

    for name, n in (("LambdaLR", OWN), ("CosineAnnealingLR", OWN), ("LambdaLR", FULL)):
        module = Scheduled(ENDING[name](n))
        said, _ = warned(module, callbacks=[saver()], enable_checkpointing=True)
        data = AutoAssistDataModule(ClustersData(100, 10), budget=0.6)
        again = trainer(max_epochs=EPOCHS, callbacks=[AutoAssistCallback()])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            again.fit(Scheduled(ENDING[name](n)), datamodule=data, ckpt_path=tmp_path / "step=20.ckpt")
        assert any("the learning rate will end" in str(one.message) for one in caught) == bool(said) == (n == FULL)


class Noisy(lr_scheduler.LRScheduler):
    """Draws, prints, and remembers."""

    def get_lr(self):
        torch.rand(1)
        np.random.rand()  # noqa: NPY002
        random.random()
        print("a step")
        return [max(0.0, base * (1 - self.last_epoch / FULL)) for base in self.base_lrs]


def test_a_simulation_disturbs_nothing(capsys):
    class Looking(pl.Callback):
        def on_train_batch_start(self, run, *args):
            if run.global_step == 30:
                before = self.seen(run)
                stream = run.datamodule.candidate_stream
                assert len(wrong_ends(run, stream, built_from_length=False)) == 1
                assert self.seen(run) == before

        def seen(self, run):
            scheduler = run.lr_scheduler_configs[0].scheduler
            draws = torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
            groups = [{**group, "params": len(group["params"])} for group in run.optimizers[0].param_groups]
            return scheduler.state_dict(), groups, draws

    said, _ = warned(Scheduled(Noisy), callbacks=[Looking()])
    assert "Noisy is longer" in said[0]
    assert capsys.readouterr().out.count("a step") == 1 + OWN


def test_the_module_is_not_copied():
    class Uncopied(Scheduled):
        def __deepcopy__(self, memo):
            raise AssertionError("copied")

        def factor(self, step):
            assert self.trainer is not None
            return max(0.0, 1 - step / FULL)

    module = Uncopied(None)
    module.make = lambda optimizer: lr_scheduler.LambdaLR(optimizer, module.factor)
    assert warned(module)[0]


def test_what_cannot_be_copied_is_not_simulated():
    class Uncopied(Warmup):
        def __deepcopy__(self, memo):
            raise TypeError("a lock")

    said, run = warned(Scheduled(lambda optimizer: Uncopied(optimizer, FULL)))
    assert not said
    assert run.global_step == OWN


def test_groups_with_rates_of_their_own():
    class Groups(Scheduled):
        def configure_optimizers(self):
            first, *others = self.parameters()
            groups = [{"params": [first], "lr": 0.0}, {"params": others, "lr": torch.tensor(0.1)}]
            optimizer = torch.optim.Adam(groups)
            return [optimizer], [{"scheduler": self.make(optimizer), "interval": "step"}]

    assert warned(Groups(ENDING["LambdaLR"](FULL)))[0]
    assert not warned(Groups(ENDING["LambdaLR"](OWN)))[0]


@pytest.mark.filterwarnings("ignore:Seems like `optimizer.step\\(\\)` has been overridden")
def test_a_simulation_that_takes_too_long_is_given_up():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    simulation = Simulation(lr_scheduler.StepLR(optimizer, 10), {})
    assert not simulation.has_ended
    assert simulation.run(100, deadline=0.0)  # short ones are finished in any case
    assert not simulation.run(10_000, deadline=0.0)
