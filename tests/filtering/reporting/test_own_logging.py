"""What this plug-in logs never costs the run; what the user logs is logged, and fails, as in plain Lightning."""

import pytest
import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar, TQDMProgressBar
from pytorch_lightning.loggers import CSVLogger, Logger

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule
from lightning_autoassist.filtering.reporting.metric_names import PREFIX
from tests.helpers.ordinary import Classifier, ClustersData, trainer

NUM_EPOCHS = 3


class Recording(Logger):
    """A logger of a user's own; notes what it got."""

    name = version = "own"

    def __init__(self):
        super().__init__()
        self.calls = []
        self.settings = []

    def log_metrics(self, metrics, step=None):
        self.check(metrics)
        self.calls.append((dict(metrics), step))

    def log_hyperparams(self, params, *args, **kwargs):
        self.settings.append(params)

    def check(self, metrics):
        pass


class Choosy(Recording):
    def check(self, metrics):
        assert all(name in {"train_loss", "val_loss", "epoch"} for name in metrics), sorted(metrics)


class ChoosyToo(Choosy):
    """Notes the metrics one by one, before it comes to one that it does not take; and no two of one step and name."""

    def log_metrics(self, metrics, step=None):
        for name, value in metrics.items():
            assert (name, step) not in [(*call[0], call[1]) for call in self.calls if name != "epoch"]
            self.check({name: value})
            self.calls.append(({name: value}, step))


class NoSettings(Recording):
    def log_hyperparams(self, params, *args, **kwargs):
        raise TypeError("no nested settings")


class ChoosyCSV(CSVLogger):
    """Lightning's own log_metrics, whose writer is a stranger's."""

    @property
    def experiment(self):
        writer = super().experiment
        plain = type(writer).log_metrics

        def choosy(metrics, step=None):
            assert not any(name.startswith(PREFIX) for name in metrics)
            plain(writer, metrics, step)

        writer.log_metrics = choosy
        return writer


class LoggingNet(Classifier):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("train_loss", loss)
        return loss


def fit(logger, module_type=LoggingNet, *, is_plain=False, **options):
    pl.seed_everything(0, verbose=False)
    data = ClustersData(60, 10)
    callbacks = []
    if not is_plain:
        data = AutoAssistDataModule(data, budget=1.0)
        callbacks = [AutoAssistCallback(policy="uniform")]
    settings = {"max_epochs": NUM_EPOCHS, "log_every_n_steps": 2, "callbacks": callbacks, "logger": logger, **options}
    fitted = trainer(**settings)
    fitted.fit(module_type(), datamodule=data)
    assert fitted.global_step == NUM_EPOCHS * 6
    return fitted


def plain_calls(logger_type):
    logger = logger_type()
    fit(logger, is_plain=True)
    return logger.calls


def users_part(calls):
    return [call for call in calls if not any(name.startswith(PREFIX) for name in call[0])]


def test_a_logger_of_the_users_own_gets_the_calls_of_plain_lightning_and_ours_beside_them():
    logger = Recording()
    fit(logger)
    assert users_part(logger.calls) == plain_calls(Recording)
    ours = [call for call in logger.calls if any(name.startswith(PREFIX) for name in call[0])]
    assert len(ours) == 2 * NUM_EPOCHS  # after each validation, and at each epoch's end
    assert all(name.startswith(PREFIX) or name == "epoch" for call in ours for name in call[0])


@pytest.mark.parametrize("logger_type", [Choosy, ChoosyToo])
def test_a_logger_that_takes_none_of_ours_costs_one_warning(logger_type):
    logger = logger_type()
    with pytest.warns(
        UserWarning, match=f"{logger_type.__name__} cannot log AutoAssist's metrics.* training goes on"
    ) as said:
        fit(logger)
    assert len([each for each in said if "cannot log" in str(each.message)]) == 1
    assert users_part(logger.calls) == plain_calls(logger_type)


def test_lightnings_own_logger_over_a_strangers_writer(tmp_path):
    with pytest.warns(UserWarning, match="ChoosyCSV cannot log AutoAssist's metrics"):
        fit(ChoosyCSV(tmp_path, name="", version="run"))
    fit(CSVLogger(tmp_path, name="", version="plain"), is_plain=True)
    logged, plain = ((tmp_path / name / "metrics.csv").read_text() for name in ("run", "plain"))
    assert logged == plain


def test_lightnings_own_logger_has_ours_in_the_users_rows(tmp_path):
    fit(CSVLogger(tmp_path, name="", version="run"))
    fit(CSVLogger(tmp_path, name="", version="plain"), is_plain=True)
    logged, plain = ((tmp_path / name / "metrics.csv").read_text().splitlines() for name in ("run", "plain"))
    assert len(logged) == len(plain) + NUM_EPOCHS  # the epochs' ends, at which the user logs nothing


@pytest.mark.parametrize("logger_type", [Recording, CSVLogger])
def test_the_users_own_errors_come_through(logger_type, tmp_path):
    class Breaks(logger_type):
        def log_metrics(self, metrics, step=None):
            if "val_loss" in metrics:
                raise ConnectionError("the server is gone")
            super().log_metrics(metrics, step)

    logger = Breaks(tmp_path) if logger_type is CSVLogger else Breaks()
    with pytest.raises(ConnectionError, match="the server is gone"):
        fit(logger)
    assert "log_metrics" not in vars(logger)


def test_loggers_are_given_back_as_they_were():
    logger, replaced = Recording(), Recording()
    seen = []
    replaced.log_metrics = lambda metrics, step=None: seen.append(metrics)
    theirs = replaced.log_metrics
    fit([logger, replaced])
    assert "log_metrics" not in vars(logger)
    assert replaced.log_metrics is theirs
    assert seen


def test_settings_that_one_logger_refuses_reach_the_others(tmp_path):
    other = Recording()
    with pytest.warns(UserWarning, match="NoSettings cannot log AutoAssist's settings.*TypeError: no nested settings"):
        fit([NoSettings(), other])
    assert any("autoassist" in settings for settings in other.settings)


def test_a_module_whose_log_takes_known_names_only():
    class Strict(LoggingNet):
        def log_dict(self, dictionary, *args, **kwargs):
            raise ValueError("not these")

    logger = Recording()
    with pytest.warns(UserWarning, match="Strict cannot log AutoAssist's metrics.* ValueError: not these") as said:
        fit(logger, Strict)
    assert len([each for each in said if "cannot log" in str(each.message)]) == 1
    assert logger.calls == plain_calls(Recording)


# ---- the progress bar


@pytest.mark.parametrize("bar_type", [TQDMProgressBar, RichProgressBar])
def test_the_bars_counts_are_whole_and_of_every_batch(bar_type, capsys):
    pytest.importorskip("rich")

    class Watching(pl.Callback):
        shown = ()

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            metrics = bar.get_metrics(trainer, pl_module)
            self.shown = (*self.shown, (trainer.global_step, metrics["saved_updates"], metrics["keep_rate"]))

    bar, watching = bar_type(), Watching()
    callbacks = [AutoAssistCallback(), watching, bar]
    options = {"max_epochs": 4, "enable_progress_bar": True, "log_every_n_steps": 50}
    fitted = trainer(callbacks=callbacks, **options)
    fitted.fit(Classifier(), datamodule=AutoAssistDataModule(ClustersData(200, 10), budget=0.5))
    assert [(step, saved) for step, saved, _ in watching.shown] == [(step, step) for step in range(1, 41)]
    assert all(isinstance(saved, int) and f"{saved:.3f}" == str(saved) for _, saved, _ in watching.shown)
    assert all(0 < keep_rate <= 1 for *_, keep_rate in watching.shown)
