"""What asks for validation does not stop a diagnosis, whether it is a scheduler, a hook or a callback."""

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint

from lightning_autoassist import diagnose
from tests.helpers.ordinary import Classifier, ClustersData


class Plateau(Classifier):
    options = (("interval", "epoch"),)

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "monitor": "val_loss", **dict(self.options)},
        }


class PlateauByStep(Plateau):
    options = (("interval", "step"), ("frequency", 4))


class StepsByHand(Plateau):
    def lr_scheduler_step(self, scheduler, metric):
        scheduler.step(metric + 0.0)


class ReadsAtTheEnd(Classifier):
    def on_train_epoch_end(self):
        self.best = self.trainer.callback_metrics["val_loss"]


class BringsCallbacks(Classifier):
    def configure_callbacks(self):
        return [
            EarlyStopping("val_loss", check_on_train_epoch_end=True),
            ModelCheckpoint(monitor="val_loss", every_n_train_steps=2, save_top_k=-1),
        ]


class NeedsTheSanityCheck(Classifier):
    def on_validation_epoch_end(self):
        self.seen = 1.0

    def training_step(self, batch, batch_idx):
        return self.seen * super().training_step(batch, batch_idx)


class LogsInValidation(Plateau):
    def validation_step(self, batch, batch_idx):
        self.logger.experiment.add_scalar("x", 1)  # there is no logger in a diagnosis
        super().validation_step(batch, batch_idx)


MODULES = [Plateau, PlateauByStep, StepsByHand, ReadsAtTheEnd, BringsCallbacks, NeedsTheSanityCheck, LogsInValidation]


@pytest.mark.parametrize("num_instances", [10, 60, 400])  # an epoch of 1, 6 and 40 batches
@pytest.mark.parametrize("module", MODULES)
def test_what_needs_validation_does_not_stop_a_diagnosis(module, num_instances, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    diagnosis = diagnose(module(), ClustersData(num_instances, 10), quiet=True)
    assert diagnosis.is_filtered
    assert len(diagnosis.losses) == 1
    assert not list(tmp_path.iterdir())
    assert ("too few batches to time" in str(diagnosis)) == (num_instances == 10)


def test_callbacks_of_the_users_own_are_taken():
    stopping = EarlyStopping("val_loss", check_on_train_epoch_end=True)
    assert diagnose(Classifier(), ClustersData(60, 10), quiet=True, callbacks=[stopping]).is_filtered
    assert diagnose(Classifier(), ClustersData(60, 10), quiet=True, callbacks=stopping).is_filtered


def test_a_data_module_is_torn_down():
    class Data(ClustersData):
        torn_down = ()

        def teardown(self, stage):
            self.torn_down = (*self.torn_down, stage)

    data = Data(60, 10)
    diagnose(Classifier(), data, quiet=True)
    assert data.torn_down == ("fit",)


def test_the_first_error_is_the_one_that_is_raised():
    class Broken(LogsInValidation):
        def training_step(self, batch, batch_idx):
            raise KeyError("of the training step")

    with pytest.raises(KeyError, match="of the training step"):
        diagnose(Broken(), ClustersData(60, 10), quiet=True)


def test_a_module_that_trains_still_has_its_schedule():
    """What a diagnosis does to its copy's schedulers is not done to the user's."""
    module = Plateau()
    diagnose(module, ClustersData(60, 10), quiet=True)
    trainer = pl.Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, limit_val_batches=0
    )
    with pytest.raises(Exception, match="val_loss"):
        trainer.fit(module, ClustersData(60, 10))
