"""How unevenly the gradient is spread, what is said of it, and what is warned of."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule, ProportionalPolicy, diagnose
from lightning_autoassist.filtering.assistants.memory import MemoryAssistant
from lightning_autoassist.filtering.checks.weights import NOISY
from lightning_autoassist.filtering.policies.prioritized import PrioritizedPolicy
from lightning_autoassist.filtering.policies.scheduled import ScheduledPolicy
from lightning_autoassist.filtering.policies.schedules import LinearSchedule
from lightning_autoassist.filtering.policies.uniform import UniformPolicy
from lightning_autoassist.filtering.reporting.advice import GradientSpread, advice, early_advice
from tests.helpers.ordinary import Classifier, ClustersData, trainer

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")


def test_the_figures_are_those_of_the_population_whatever_is_kept_of_it():
    rng = np.random.default_rng(0)
    norms = np.exp(rng.normal(0, 1, 200_000))
    probs = np.clip(norms / 4, 0.1, 1)
    spread = GradientSpread()
    for part in np.split(np.arange(len(norms)), 400):
        kept = part[rng.random(len(part)) < probs[part]]
        spread.add(torch.from_numpy(norms[kept]), torch.from_numpy(probs[kept]))
    figures = spread.figures()
    assert figures["concentration"] == pytest.approx(len(norms) * (norms**2).sum() / norms.sum() ** 2, rel=0.03)
    ratio = (norms**2 / probs).mean() * probs.mean() / (norms**2).mean()
    assert figures["variance_ratio"] == pytest.approx(ratio, rel=0.03)


def test_where_everything_is_kept_the_ratio_is_what_proportional_would_have():
    norms = torch.rand(5000, generator=torch.Generator().manual_seed(0)) ** 3
    probs = ProportionalPolicy().keep_probability(norms)
    spread = GradientSpread()
    spread.add(norms, torch.ones(5000))
    expected = (norms**2 / probs).mean() * probs.mean() / (norms**2).mean()
    assert spread.figures()["variance_ratio"] == pytest.approx(float(expected), rel=1e-3)
    assert GradientSpread().figures() == {}


@pytest.mark.parametrize(
    ("concentration", "said"), [(1.9, "expect little more"), (3.2, "pay where"), (23.5, "budgets down to 0.25")]
)
def test_the_advice_follows_the_concentration(concentration, said):
    assert said in advice({"concentration": concentration})
    assert advice({}) is None


@pytest.mark.parametrize(
    ("policy", "budget"), [("proportional", 0.6), (UniformPolicy(observe=True), 1.0), ("prioritized", 0.6)]
)
def test_a_run_gives_advice_and_logs_what_it_comes_from(policy, budget):
    callback = AutoAssistCallback(policy)
    run = trainer(max_epochs=4, callbacks=[callback])
    run.fit(Classifier(), datamodule=AutoAssistDataModule(ClustersData(300, 10), budget=budget))
    logged = run.callback_metrics
    assert logged["autoassist/concentration"] > 1
    assert 0 < logged["autoassist/variance_ratio"] < 2
    assert f"concentration is {float(logged['autoassist/concentration']):.1f}:" in callback.summary()["advice"]


def test_a_run_that_observes_is_plain_training():
    def parameters(*callbacks):
        pl.seed_everything(0, verbose=False)
        module, data = Classifier(), ClustersData(200, 10)
        data = AutoAssistDataModule(data, budget=1.0) if callbacks else data
        trainer(max_epochs=2, callbacks=list(callbacks)).fit(module, datamodule=data)
        return torch.nn.utils.parameters_to_vector(module.parameters())

    assert torch.equal(parameters(AutoAssistCallback(UniformPolicy(observe=True))), parameters())


def fit(policy, **options):
    callback = AutoAssistCallback(policy, **options)
    trainer(max_epochs=1, callbacks=[callback]).fit(
        Classifier(), datamodule=AutoAssistDataModule(ClustersData(200, 10), budget=1.0)
    )


@pytest.mark.filterwarnings("ignore:this run trains on 200 instances")
def test_full_weights_of_old_scores_at_a_low_keep_rate_are_warned_of():
    with pytest.warns(UserWarning, match=r"ProportionalPolicy keeps 25% of the candidates.*PrioritizedPolicy\("):
        fit(ProportionalPolicy(0.25, 0.05))
    with pytest.warns(UserWarning, match="PrioritizedPolicy keeps 15% of the candidates"):
        fit(PrioritizedPolicy(0.15, correction=1, class_mix=0))
    with pytest.warns(UserWarning, match="ScheduledPolicy keeps 20% of the candidates"):  # in the end
        fit(ScheduledPolicy("proportional", LinearSchedule(0.7, 0.2)))
    with pytest.warns(UserWarning, match="PrioritizedPolicy keeps 15% of the candidates"):
        fit(PrioritizedPolicy(0.15, correction=LinearSchedule(0.4, 1), class_mix=0))
    fit(PrioritizedPolicy(LinearSchedule(0.2, 0.7), correction=LinearSchedule(0.2, 1), class_mix=0))
    fit(PrioritizedPolicy(0.15, correction=1))
    fit(PrioritizedPolicy(0.15, class_mix=0))
    fit(ProportionalPolicy(0.25, 0.05), reweighting="none")
    fit(ProportionalPolicy(0.25, 0.05), assistant="logistic")


class Reversed(MemoryAssistant):
    """What was hard is thought easy: scores that have turned round since they were remembered."""

    def predict(self, instances):
        return 1 / (super().predict(instances) + 0.01)


def warnings_of_noise(recwarn):
    found = [str(one.message) for one in recwarn if "times the variance of random batches" in str(one.message)]
    recwarn.clear()
    return found


def fit_epochs(policy, assistant="auto", **options):
    callback = AutoAssistCallback(policy, assistant, **options)
    run = trainer(max_epochs=5, callbacks=[callback])
    run.fit(Classifier(), datamodule=AutoAssistDataModule(ClustersData(5000, 50), budget=1.0))


def test_full_weights_that_make_gradients_noisier_than_random_batches_are_warned_of_once(recwarn):
    fit_epochs("proportional", Reversed())
    (said,) = warnings_of_noise(recwarn)
    assert "ProportionalPolicy weighs instances by 1/p" in said
    fit_epochs(PrioritizedPolicy(0.5, correction=1), Reversed(), reweighting="normalized")
    assert len(warnings_of_noise(recwarn)) == 1
    fit_epochs("proportional")  # scores that are right
    fit_epochs("proportional", Reversed(), reweighting="none")
    fit_epochs("prioritized", Reversed())  # weights are no 1/p
    assert not warnings_of_noise(recwarn)


def test_the_first_epoch_of_a_run_that_goes_on_counts_its_own_instances(tmp_path, recwarn):
    def run(num_epochs, **fit_options):
        callback = AutoAssistCallback("proportional", Reversed())
        going = trainer(max_epochs=num_epochs, callbacks=[callback])
        data = AutoAssistDataModule(ClustersData(1600, 16), budget=1.0)  # too few in an epoch, enough in four
        going.fit(Classifier(), datamodule=data, **fit_options)
        return callback, going

    _, begun = run(4)
    begun.save_checkpoint(tmp_path / "four.ckpt")
    callback, _ = run(5, ckpt_path=tmp_path / "four.ckpt")
    assert callback.summary()["variance_ratio"] > NOISY
    assert callback.report.instances_seen == 5 * 1600
    assert not warnings_of_noise(recwarn)


def test_a_fit_ends_with_the_advice(caplog):
    callback = AutoAssistCallback()
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):  # the one that rank_zero_info writes to
        run = trainer(max_epochs=4, callbacks=[callback])
        run.fit(Classifier(), datamodule=AutoAssistDataModule(ClustersData(300, 10), budget=0.6))
    assert caplog.messages[-1] == f"AutoAssist: {callback.summary()['advice']}"
    caplog.clear()
    uniform = trainer(max_epochs=4, callbacks=[AutoAssistCallback("uniform")])
    uniform.fit(Classifier(), datamodule=AutoAssistDataModule(ClustersData(300, 10), budget=0.6))
    assert not [message for message in caplog.messages if "AutoAssist" in message]


def test_the_check_says_what_its_few_steps_show(capsys):
    diagnosis = diagnose(Classifier(), ClustersData(300, 10))
    assert diagnosis.advice.startswith("Whether filtering pays does not show after so few steps")
    assert capsys.readouterr().out.splitlines()[-1] == diagnosis.advice


class FewCount(Classifier):
    """A model that knows nearly all instances when it begins: most have next to no gradient."""

    def training_step(self, batch, batch_idx):
        features, labels = batch
        logits = self.net(features) + 20 * torch.nn.functional.one_hot(labels, 3) * (features[:, :1] > 0.02)
        return torch.nn.functional.cross_entropy(logits, labels)


def test_the_check_says_so_where_the_gradient_is_concentrated_already():
    said = diagnose(FewCount(), ClustersData(300, 10), quiet=True).advice
    assert said.startswith("Filtering can pay: after these few steps the gradient's concentration is ")
    assert early_advice({}) is None
