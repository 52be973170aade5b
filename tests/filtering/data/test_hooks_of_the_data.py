"""Loaders and hooks from the module, from Lightning's base classes, or from YAML, are those of plain Lightning."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule
from lightning_autoassist.trainer_support.variants import FLAVOUR_NAMES
from tests.helpers.ordinary import CountingDataset, trainer

FLAVOURS = {name: importlib.import_module(name) for name in FLAVOUR_NAMES}
NO_VALIDATION = "You defined a `validation_step` but have no `val_dataloader`"
flavours = pytest.mark.parametrize("flavour", FLAVOURS.values(), ids=FLAVOURS)


def loader(num_instances=60, **options):
    data = CountingDataset(num_instances)
    return DataLoader(TensorDataset(data.features, data.labels), batch_size=10, **options)


def module_class(flavour, *stages):
    """A module with all steps, and with loaders of its own for ``stages``."""

    class Module(flavour.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(8, 3)
            self.seen = dict.fromkeys(("val", "test", "predict"), 0)

        def _loss(self, batch):
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def training_step(self, batch, batch_idx):
            return self._loss(batch)

        def validation_step(self, batch, batch_idx):
            self.seen["val"] += len(batch[0])

        def test_step(self, batch, batch_idx):
            self.seen["test"] += len(batch[0])

        def predict_step(self, batch, batch_idx):
            self.seen["predict"] += len(batch[0])
            return self.net(batch[0])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    for stage in stages:
        setattr(Module, f"{stage}_dataloader", lambda self: loader(20))
    return Module


def trainer_of(flavour, **options):
    return trainer(flavour, **{"max_epochs": 4, "callbacks": [AutoAssistCallback()], **options})


def train_data(flavour, kind):
    class Data(flavour.LightningDataModule):
        def train_dataloader(self):
            return loader(shuffle=True)

    if kind == "module":
        return module_class(flavour, "train")()
    return Data() if kind == "data module" else loader(shuffle=True)


@flavours
@pytest.mark.parametrize("kind", ["loader", "data module", "module"])
def test_a_module_with_a_validation_step_trains_without_validation_data(flavour, kind):
    module, run = module_class(flavour)(), trainer_of(flavour)
    with pytest.warns(UserWarning, match=NO_VALIDATION):
        run.fit(module, datamodule=AutoAssistDataModule(train_data(flavour, kind), budget=0.6))
    assert run.global_step == 4 * (2 if kind == "module" else 4)
    assert module.seen["val"] == 0


@flavours
def test_the_modules_own_loaders_serve_beside_a_train_loader(flavour):
    module, run = module_class(flavour, "val", "test", "predict")(), trainer_of(flavour)
    data = AutoAssistDataModule(loader(shuffle=True), budget=0.6)
    run.fit(module, datamodule=data)
    run.test(module, datamodule=data, verbose=False)
    run.predict(module, datamodule=data)
    assert module.seen == {"val": 4 * 20, "test": 20, "predict": 20}


@flavours
def test_a_given_loader_comes_before_the_modules(flavour):
    module = module_class(flavour, "val")()
    data = AutoAssistDataModule(loader(shuffle=True), budget=0.6, val_dataloaders=loader(30))
    trainer_of(flavour).fit(module, datamodule=data)
    assert module.seen["val"] == 4 * 30


@flavours
def test_a_data_module_comes_before_the_modules_loaders_as_in_plain_lightning(flavour):
    module = module_class(flavour, "val")()
    with pytest.warns(UserWarning, match=NO_VALIDATION):
        trainer_of(flavour, callbacks=[]).fit(module, datamodule=train_data(flavour, "data module"))
    with pytest.warns(UserWarning, match=NO_VALIDATION):
        trainer_of(flavour).fit(module, datamodule=AutoAssistDataModule(train_data(flavour, "data module")))
    assert module.seen["val"] == 0


def test_data_that_serve_two_modules_ask_the_one_that_is_trained():
    data = AutoAssistDataModule(loader(shuffle=True), budget=0.6)
    for flavour in FLAVOURS.values():
        validated, unvalidated = module_class(flavour, "val")(), module_class(flavour)()
        trainer_of(flavour).fit(validated, datamodule=data)
        with pytest.warns(UserWarning, match=NO_VALIDATION):
            trainer_of(flavour).fit(unvalidated, datamodule=data)
        assert (validated.seen["val"], unvalidated.seen["val"]) == (80, 0)


# ---- LightningCLI. The classes are found by their names in this module.


def data_class(flavour):
    class Data(flavour.LightningDataModule):
        def __init__(self, batch_size: int = 5, shuffle: bool = True):
            super().__init__()
            self.save_hyperparameters(ignore="shuffle")
            self.options = {"shuffle": shuffle, "batch_size": self.hparams.batch_size}  # as many do, at once

        def train_dataloader(self):
            data = CountingDataset(60)
            return DataLoader(TensorDataset(data.features, data.labels), **self.options)

    return Data


PLData, LData = (data_class(flavour) for flavour in FLAVOURS.values())


class PLModuleWithData(module_class(FLAVOURS["pytorch_lightning"], "train")):
    def __init__(self, width: int = 8):
        super().__init__()
        self.save_hyperparameters()
        self.extra = torch.zeros(self.hparams.width)


for _class in (PLData, LData):
    _class.__module__, _class.__qualname__ = __name__, "PLData" if _class is PLData else "LData"
PLModuleWithData.__module__ = __name__


def command_line(flavour, data, callbacks=()):
    cli_module = pytest.importorskip(f"{flavour.__name__}.cli")
    settings = {
        "seed_everything": False,
        "trainer": {
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "max_epochs": 4,
            "callbacks": list(callbacks),
        },
        "data": data,
    }
    return cli_module.LightningCLI(
        module_class(flavour), run=False, save_config_callback=None, args=settings, seed_everything_default=False
    )


# Lightning's use of jsonargparse, whose new versions deprecate some of it, warns.
@pytest.mark.filterwarnings("default")
@flavours
def test_yaml_gives_the_inner_data_module_hyperparameters_of_its_own(flavour, monkeypatch):
    monkeypatch.setattr("sys.argv", ["main.py"])
    name = "PLData" if flavour.__name__ == "pytorch_lightning" else "LData"
    inner = {"class_path": f"{__name__}.{name}", "init_args": {"batch_size": 10, "shuffle": False}}
    plain = command_line(flavour, inner)
    wrapped = command_line(
        flavour,
        {"class_path": "lightning_autoassist.AutoAssistDataModule", "init_args": {"budget": 0.5, "data": inner}},
        [{"class_path": "lightning_autoassist.AutoAssistCallback"}],
    )
    assert dict(wrapped.datamodule.wrapped.hparams) == dict(plain.datamodule.hparams)
    assert dict(wrapped.datamodule.hparams_initial) == dict(plain.datamodule.hparams_initial)
    assert wrapped.datamodule.wrapped.options == {"shuffle": False, "batch_size": 10}
    wrapped.trainer.fit(wrapped.model, datamodule=wrapped.datamodule)
    assert wrapped.trainer.global_step == 4 * 3


@pytest.mark.filterwarnings("default")
def test_yaml_gives_an_inner_module_hyperparameters_of_its_own(monkeypatch):
    monkeypatch.setattr("sys.argv", ["main.py"])
    inner = {"class_path": f"{__name__}.PLModuleWithData", "init_args": {"width": 3}}
    outer = {"class_path": "lightning_autoassist.AutoAssistDataModule", "init_args": {"budget": 0.5, "data": inner}}
    cli = command_line(FLAVOURS["pytorch_lightning"], outer)
    assert cli.datamodule.wrapped.hparams.width == 3
    assert "budget" not in cli.datamodule.wrapped.hparams
