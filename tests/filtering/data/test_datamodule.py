from __future__ import annotations

import math

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule
from tests.helpers.loaders import current_draw
from tests.helpers.ordinary import Classifier, ClustersData, CountingDataset, index_of, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:this run trains on"),
]


def loader_of(num_instances=100, **options):
    data = CountingDataset(num_instances)
    return DataLoader(TensorDataset(data.features, data.labels), **{"batch_size": 10, **options})


class FullClassifier(Classifier):
    test_step = Classifier.validation_step

    def predict_step(self, batch, batch_idx):
        return self.net(batch[0])


class OwnLoaders(FullClassifier):
    """A LightningModule with loaders of its own."""

    def setup(self, stage):
        self.source = ClustersData(100, 10)

    def train_dataloader(self):
        return self.source.train_dataloader()

    def val_dataloader(self):
        return self.source.val_dataloader()


def fit(data, module=None, **options):
    callback = AutoAssistCallback()
    run = trainer(max_epochs=3, callbacks=[callback], **options)
    run.fit(module or FullClassifier(), datamodule=data)
    return run, callback


def test_wraps_a_data_module():
    run, _ = fit(AutoAssistDataModule(ClustersData(100, 10)))
    assert run.global_step == 3 * 6
    assert run.callback_metrics["val_loss"] > 0


def test_wraps_loaders():
    data = AutoAssistDataModule(
        loader_of(),
        val_dataloaders=loader_of(20),
        test_dataloaders=loader_of(20),
        predict_dataloaders=loader_of(20),
    )
    run, _ = fit(data)
    assert run.callback_metrics["val_loss"] > 0
    assert run.test(run.lightning_module, datamodule=data, verbose=False)[0]["val_loss"] > 0
    assert len(torch.cat(run.predict(run.lightning_module, datamodule=data))) == 20


def test_wraps_a_module_with_loaders_of_its_own():
    module = OwnLoaders()
    run, _ = fit(AutoAssistDataModule(module), module)
    assert run.global_step == 3 * 6
    assert run.callback_metrics["val_loss"] > 0


def test_without_a_validation_loader_there_is_no_validation():
    run, _ = fit(AutoAssistDataModule(loader_of()))
    assert "val_loss" not in run.callback_metrics


def test_hooks_the_user_overrode_run_and_no_others():
    calls = []

    class Hooked(ClustersData):
        def prepare_data(self):
            calls.append("prepare_data")

        def setup(self, stage):
            calls.append("setup")

        def teardown(self, stage):
            calls.append("teardown")

        def on_before_batch_transfer(self, batch, dataloader_idx):
            assert isinstance(batch, list)
            calls.append("before")
            return batch

        def transfer_batch_to_device(self, batch, device, dataloader_idx):
            calls.append("transfer")
            return super().transfer_batch_to_device(batch, device, dataloader_idx)

        def on_after_batch_transfer(self, batch, dataloader_idx):
            calls.append("after")
            return batch

    fit(AutoAssistDataModule(Hooked(100, 10)), limit_val_batches=0)
    assert calls == ["prepare_data", "setup", *["before", "transfer", "after"] * 18, "teardown"]


def test_the_modules_own_batch_hook_runs():
    class Doubling(Classifier):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            return [batch[0] * 0 + 7, batch[1]]

        def training_step(self, batch, batch_idx):
            assert (batch[0] == 7).all()
            return super().training_step(batch, batch_idx)

    run, _ = fit(AutoAssistDataModule(ClustersData(100, 10)), Doubling())
    assert run.global_step == 18


def test_answers_for_the_users_data_module():
    class Described(ClustersData):
        def __init__(self, width=3):
            super().__init__()
            self.save_hyperparameters()
            self.prepare_data_per_node = False

        def state_dict(self):
            return {"width": self.hparams.width}

        def load_state_dict(self, state):
            self.restored = state

    source = Described(width=4)
    data = AutoAssistDataModule(source)
    assert data.num_classes == 3
    assert data.hparams == source.hparams == {"width": 4}
    assert data.hparams_initial == {"width": 4}
    assert data.prepare_data_per_node is False
    data.load_state_dict(data.state_dict())
    assert source.restored == {"width": 4}
    run = trainer()
    data.trainer = run
    assert source.trainer is run
    data.num_classes = 5
    assert source.num_classes == 5
    with pytest.raises(AttributeError, match="num_colours"):
        data.num_colours  # noqa: B018


def test_the_users_loader_stays_untouched():
    loader = loader_of(shuffle=True)
    before = dict(loader.__dict__)
    fit(AutoAssistDataModule(loader))
    assert loader.__dict__ == before


def test_a_subclassed_loader_and_its_collate_function_are_kept():
    seen = []

    class Own(DataLoader):
        def __init__(self, *args, flavour, **kwargs):
            super().__init__(*args, **kwargs)
            self.flavour = flavour

        def __iter__(self):
            seen.append(self.flavour)
            return super().__iter__()

    def collate(rows):
        features, labels = zip(*rows, strict=True)
        return {"x": torch.stack(features), "y": torch.stack(labels)}

    class Keyed(Classifier):
        def training_step(self, batch, batch_idx):
            return super().training_step((batch["x"], batch["y"]), batch_idx)

    loader = Own(CountingDataset(100), batch_size=10, collate_fn=collate, flavour="mine")
    run, _ = fit(AutoAssistDataModule(loader), Keyed())
    assert run.global_step == 18
    assert seen == ["mine"] * 3


def test_anyone_may_ask_for_the_train_loader_and_gets_plain_batches():
    source = ClustersData(100, 10)
    data = AutoAssistDataModule(source, budget=0.6)
    lengths = []

    class Asking(Classifier):
        def on_train_start(self):
            for loader in (self.trainer.datamodule.train_dataloader(), self.trainer.train_dataloader):
                lengths.append(len(loader))
                batches = list(loader)
                assert all(isinstance(batch, list) and len(batch[0]) == 10 for batch in batches)
                lengths.append(len(batches))

        def training_step(self, batch, batch_idx):
            drawn = current_draw(self.trainer).indices
            assert index_of(batch[0]).tolist() == drawn.tolist()
            return super().training_step(batch, batch_idx)

    fit(data, Asking())
    assert lengths == [6, 6, 6, 6]


def test_a_reloaded_data_set_of_another_length_begins_anew():
    class Growing(ClustersData):
        def train_dataloader(self):
            self.train_set = CountingDataset(len(self.train_set) + 50)
            return super().train_dataloader()

    changed = "the train loader has changed, to {} instances a pass and batches of 10: filtering begins anew"
    with pytest.warns(match=changed.format(200)), pytest.warns(match=changed.format(250)):
        run, callback = fit(AutoAssistDataModule(Growing(100, 10)), reload_dataloaders_every_n_epochs=1)
    assert run.global_step == 9 + 12 + 15
    assert len(callback.instances) == 250


@pytest.mark.skipif(not hasattr(DataLoader(range(2)), "in_order"), reason="this torch has no in_order")
def test_batches_out_of_order_are_put_in_order_with_a_warning():
    with pytest.warns(UserWarning, match="in_order=False was set back to True"):
        fit(AutoAssistDataModule(loader_of(num_workers=2, in_order=False)))


def test_hyperparameters_reach_the_checkpoint(tmp_path):
    class Described(ClustersData):
        def __init__(self, width=3):
            super().__init__(100, 10)
            self.save_hyperparameters()

    saving = pl.callbacks.ModelCheckpoint(tmp_path, save_last=True)
    run = trainer(max_epochs=2, callbacks=[AutoAssistCallback(), saving], enable_checkpointing=True)
    run.fit(Classifier(), datamodule=AutoAssistDataModule(Described(width=9)))
    checkpoint = torch.load(saving.last_model_path, weights_only=True)
    assert checkpoint["datamodule_hyper_parameters"] == {"width": 9}


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create the checkpoint")
def test_tuners_run_and_leave_the_stream_where_it_was(tmp_path):
    """The tuner trains without the callbacks, then restores what was; the stream begins at its first pass."""
    from pytorch_lightning.tuner import Tuner

    source, callback, module = ClustersData(100, 10), AutoAssistCallback(), Classifier()
    data = AutoAssistDataModule(source, budget=1.0)
    run = trainer(max_epochs=3, callbacks=[callback], default_root_dir=tmp_path)
    found = Tuner(run).lr_find(module, datamodule=data, num_training=15, update_attr=True)
    assert module.lr == found.suggestion()
    source.train_set.loads.clear()
    run.fit(module, datamodule=data)
    assert sorted(source.train_set.loads[:100]) == list(range(100))
    assert callback.summary()["instances_seen"] == 300
    assert data.candidate_stream.pass_index >= 2


@pytest.mark.filterwarnings("ignore:the train loader has changed")
def test_the_batch_size_finder_reaches_the_users_data_module(tmp_path):
    from pytorch_lightning.tuner import Tuner

    class Sized(ClustersData):
        def __init__(self):
            super().__init__(200)
            self.batch_size = 2

        def train_dataloader(self):
            return DataLoader(self.train_set, batch_size=self.batch_size, shuffle=True)

    def find(data, *callbacks):
        run = trainer(max_epochs=1, callbacks=list(callbacks), default_root_dir=tmp_path)
        Tuner(run).scale_batch_size(Classifier(), datamodule=data, max_trials=3, steps_per_trial=2)

    plain, source = Sized(), Sized()
    data = AutoAssistDataModule(source, budget=1.0)
    find(plain)
    find(data, AutoAssistCallback())
    assert source.batch_size == plain.batch_size > 2
    assert len(data.train_dataloader()) == math.ceil(200 / source.batch_size)
