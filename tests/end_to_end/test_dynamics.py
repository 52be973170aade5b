"""Training dynamics of real runs equal those of a log of every instance's loss; resumed, and on two processes."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, RandomSampler

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule
from lightning_autoassist.filtering.memory.frame import COLUMNS, columns_of
from lightning_autoassist.instances.checkpoints import instances_in
from tests.helpers.observed_losses import EVERY, SAVED_AT, Line, LossLog, assert_are, by_hand, fit
from tests.helpers.ordinary import Classifier, ClustersData, CountingDataset, trainer
from tests.helpers.processes import run_with_children
from tests.helpers.versions import resumes_exactly

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:this run trains on .* instances, less than two passes"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]

CASES = {
    "the default": {},
    "a policy that corrects in full": {"policy": "proportional"},
    "only observed": {"policy": "uniform", "dynamics": True, "budget": 1.0},
    "shortened": {"policy": "uniform", "dynamics": True},
    "drawn at random": {"policy": "random", "dynamics": True},
    "learnt late": {"lag": 3},
    "beside the training loop": {"lag": 2, "update": "async"},
}


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_dynamics_are_those_of_the_log(settings, tmp_path):
    seen = fit(tmp_path, **settings)
    columns = seen["columns"]
    assert_are(columns, by_hand(seen["lines"], 200))
    assert columns["times_learnt"].any()
    if settings.get("budget") == 1.0:
        assert not columns["times_dropped"].any()
        np.testing.assert_array_equal(columns["times_kept"], columns["times_seen"])
    else:
        assert columns["times_forgotten"].any()
        np.testing.assert_array_equal(columns["times_kept"], seen["kept"])
        np.testing.assert_array_equal(columns["times_dropped"], seen["dropped"])


def test_an_instance_may_be_in_a_batch_several_times(tmp_path):
    callback = AutoAssistCallback("uniform", dynamics=True)
    module, data = LossLog(callback), CountingDataset(20)
    loader = DataLoader(data, 30, sampler=RandomSampler(data, replacement=True, num_samples=90))
    trainer(max_epochs=3, callbacks=[callback]).fit(module, datamodule=AutoAssistDataModule(loader, budget=0.7))
    columns = columns_of(callback.instances)
    assert columns["times_seen"].max() > 12
    assert_are(columns, by_hand(module.lines, 20))


@pytest.mark.parametrize(("policy", "budget"), [("uniform", 1.0), ("random", 0.6), ("proportional", 0.6)])
def test_observing_changes_nothing(policy, budget):
    """An unfiltered run that observes is plain Lightning's, bit for bit; a filtered one is the one that does not."""
    ends = []
    for observes in (None, False, True) if budget == 1 else (False, True):
        pl.seed_everything(1, verbose=False)
        module, data = Classifier(), ClustersData(200, 10)
        callbacks = []
        if observes is not None:
            callbacks = [AutoAssistCallback(policy, dynamics=observes)]
            data = AutoAssistDataModule(data, budget=budget, seed=3)
        trainer(max_epochs=3, callbacks=callbacks).fit(module, datamodule=data)
        ends.append({**module.state_dict(), "rng": torch.get_rng_state()})
    for end in ends[1:]:
        assert all(torch.equal(end[name], value) for name, value in ends[0].items())
    assert columns_of(callbacks[0].instances)["times_seen"].sum() >= 360


class Untold(Classifier):
    """Its loss is one number for the whole batch."""

    def training_step(self, batch, batch_idx):
        return self.net(batch[0]).flatten().logsumexp(0)


@pytest.mark.parametrize("policy", ["uniform", "random"])
def test_losses_that_cannot_be_observed_change_nothing(policy):
    callback = AutoAssistCallback(policy, dynamics=True)
    data = AutoAssistDataModule(ClustersData(200, 10), budget=0.6)
    with pytest.warns(
        UserWarning, match="AutoAssist stopped observing the instances' losses, and training goes on as before"
    ):
        trainer(max_epochs=4, callbacks=[callback]).fit(Untold(), datamodule=data)
    assert (callback.summary()["keep_rate"] < 0.9) == (policy == "random")
    assert not columns_of(callback.instances)["times_seen"].any()


def test_losses_that_are_no_numbers_are_left_out():
    class Broken(LossLog):
        def training_step(self, batch, batch_idx):
            features, labels = batch
            if self.trainer.global_step == 25:
                features = features.clone()
                features[0, 1] = torch.nan
            return super().training_step((features, labels), batch_idx)

        def on_before_optimizer_step(self, optimizer):
            for parameter in self.parameters():
                parameter.grad.nan_to_num_(0.0)  # what is no number must not spread

    callback = AutoAssistCallback("uniform", dynamics=True)
    module = Broken(callback)
    module.net[0] = torch.nn.Identity()
    trainer(max_epochs=3, callbacks=[callback]).fit(
        module, datamodule=AutoAssistDataModule(ClustersData(100, 10), budget=1.0)
    )
    assert_are(columns_of(callback.instances), by_hand([line for line in module.lines if line.loss == line.loss], 100))
    assert callback.summary()["nonfinite_instances"] == 1


def test_dynamics_can_be_left_out():
    callback = AutoAssistCallback(dynamics=False)
    trainer(max_epochs=2, callbacks=[callback]).fit(
        Classifier(), datamodule=AutoAssistDataModule(ClustersData(100, 10), budget=0.6)
    )
    assert columns_of(callback.instances).keys() == {"label", "score"}
    with pytest.raises(TypeError, match="dynamics must be True or False, got the string 'yes'"):
        AutoAssistCallback(dynamics="yes")


def test_a_checkpoint_without_dynamics_is_gone_on_from_with_a_warning(tmp_path):
    fit(tmp_path / "before", dynamics=False, max_epochs=2)
    (checkpoint,) = (tmp_path / "before").glob("*.ckpt")
    with pytest.warns(
        UserWarning, match="the instances' training dynamics begin anew, and everything else is restored"
    ):
        seen = fit(tmp_path / "after", resume=checkpoint)
    assert_are(seen["columns"], by_hand(seen["lines"], 200))


def without_margins(checkpoint):
    """A checkpoint as it was written before there were margins: another layout, columns and waiting steps."""
    state = checkpoint["callbacks"]["AutoAssistCallback"]
    state["layout"] = checkpoint["AutoAssistDataModule"]["layout"] = 6
    columns = state["selector"]["store"]["dynamics"]["columns"]
    seen = columns["seen"].int()
    columns["weight"] = seen * (1 + columns.pop("excess").float())
    columns["loss_variance"] = columns.pop("loss_spread").float().square()
    columns["kept"] = (seen + columns.pop("unseen").clamp(min=0)).short()
    waiting = [step for rank in state["selector"]["ranks"] for step in (*rank["ready"], *rank["pending"])]
    for lacking, names in (
        (columns, ("margin", "candidate", "lead")),
        *((step, ("margins", "others")) for step in waiting),
    ):
        for name in names:
            del lacking[name]
    return len(waiting)


@resumes_exactly
def test_a_checkpoint_of_before_there_were_margins_is_gone_on_from(tmp_path):
    whole = fit(tmp_path / "whole", lag=3)
    checkpoint = torch.load(tmp_path / "whole" / f"step={SAVED_AT}.ckpt", weights_only=True)
    assert without_margins(checkpoint) == 3
    torch.save(checkpoint, tmp_path / "before.ckpt")
    read = columns_of(instances_in(tmp_path / "before.ckpt"))
    seen = [line.index for line in whole["lines"] if line.step < SAVED_AT]
    np.testing.assert_array_equal(read["times_seen"], np.bincount(seen, minlength=200))
    columns = fit(tmp_path / "resumed", lag=3, resume=tmp_path / "before.ckpt")["columns"]
    before = set(seen)
    after = {line.index for line in whole["lines"] if line.step >= SAVED_AT}
    expected = by_hand(whole["lines"], 200)
    expected["area_under_margin"][list(before)] = np.nan
    late = by_hand([line for line in whole["lines"] if line.step >= SAVED_AT], 200)
    expected["suggested_label"] = late["suggested_label"]
    assert before & after
    assert after - before
    assert_are(columns, expected)


@pytest.fixture(scope="module")
def on_two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    ended = run_with_children([sys.executable, "-m", "tests.helpers.observed_losses", str(folder)], timeout=250)
    assert ended.returncode == 0, ended.output
    processes = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]
    for seen in (seen for fits in processes for seen in fits):
        seen["lines"] = [Line(*line) for line in seen["lines"]]
    return processes


def test_on_two_processes_each_knows_what_both_saw(on_two_processes):
    first, second = (whole for whole, _ in on_two_processes)
    lines = [(line.step // EVERY, rank, line) for rank, seen in enumerate((first, second)) for line in seen["lines"]]
    expected = by_hand([line for *_, line in sorted(lines, key=lambda line: line[:2])], 200)
    for seen in (first, second):
        assert_are(seen["columns"], expected)
        for name in ("kept", "dropped"):
            np.testing.assert_array_equal(seen["columns"][f"times_{name}"], first[name] + second[name])
    assert first["columns"]["times_dropped"].any()
    assert len(first["lines"]) % (10 * EVERY) != 0  # some steps were not exchanged before the end


@resumes_exactly
def test_resumed_on_two_processes(on_two_processes):
    for whole, resumed in on_two_processes:
        assert list(whole["columns"]) == list(COLUMNS)
        for name, values in whole["columns"].items():
            np.testing.assert_array_equal(resumed["columns"][name], values, err_msg=name)


class Stream(torch.utils.data.IterableDataset):
    def __init__(self):
        self.data = CountingDataset(60)

    def __iter__(self):
        return (self.data[index] for index in range(len(self.data)))


@pytest.mark.parametrize("policy", ["uniform", "proportional"])
def test_a_stream_says_that_nothing_is_kept(policy):
    callback = AutoAssistCallback(policy, dynamics=True)
    data = AutoAssistDataModule(DataLoader(Stream(), 10), steps_per_epoch=6)
    with pytest.warns(UserWarning, match="dynamics=True keeps nothing on a stream"):
        trainer(max_epochs=2, callbacks=[callback]).fit(Classifier(), datamodule=data)
    assert callback.instances is None
