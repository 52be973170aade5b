"""Two real processes on gloo; see two_processes.py for what they run."""

import math
import sys
import warnings

import numpy as np
import pytest
import torch

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule
from lightning_autoassist.compare.readers import read_runs
from lightning_autoassist.filtering.sampling.sharding import OwnedCandidates
from tests.helpers.ordinary import Classifier, trainer
from tests.helpers.paths import ROOT
from tests.helpers.processes import run_with_children
from tests.helpers.two_processes import CASES, EPOCHS, TIME_LIMIT, Loaders, N

# The first test waits for all the cases.
pytestmark = pytest.mark.timeout(2 * TIME_LIMIT + 120)

RESUMED = (
    "filtered@17",
    "filtered@14",
    "workers@31",
    "proportional@30",
    "prioritized@9",
    "layers@17",
    "file@17",
    "logged@17",
    "async@17",
    "random start@9",
    "text@17",
    "text@14",
    "text async@17",
    "tokens@13",
    "tokens async@13",
)
OTHERS = {"plain", "unfiltered", "uneven", "unsharded", "distributed", "text", "text async"}
FILTERED = [name for name in CASES if name not in OTHERS]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What each process saw, by case."""
    folder = tmp_path_factory.mktemp("two_processes")
    names = [*CASES, *RESUMED]
    command = [sys.executable, "-m", "tests.helpers.two_processes", str(folder), *names]
    done = run_with_children(command, TIME_LIMIT + 60)
    assert done.returncode == 0, done.output
    seen = {name: [torch.load(folder / f"{name}-{rank}.pt", weights_only=False) for rank in (0, 1)] for name in names}
    return folder, seen


def assert_same(left, right):
    torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", [name for name in CASES if name != "uneven"])
def test_processes_train_on_as_many_batches_and_keep_one_model(runs, name):
    first, second = runs[1][name]
    assert len(first["batches"]) == len(second["batches"]) > 0
    assert first["num_validations"] == second["num_validations"] == EPOCHS
    assert_same(first["module"], second["module"])
    assert first["metrics"].keys() == second["metrics"].keys()


@pytest.mark.parametrize("name", FILTERED)
def test_processes_never_share_an_instance(runs, name):
    mine, yours = ({index for batch in seen["batches"] for index in batch} for seen in runs[1][name])
    assert not mine & yours


def test_an_epoch_has_the_budgets_batches_and_the_first_pass_everything(runs):
    for seen in runs[1]["filtered"]:
        owned = math.ceil(N / 2)
        assert len(seen["batches"]) == EPOCHS * math.ceil(0.6 * owned / 10)
        assert seen["metrics"]["autoassist/instances_seen"] == 2 * 10 * len(seen["batches"])
    considered = [seen["considered"] for seen in runs[1]["filtered"]]
    assert runs[1]["filtered"][0]["metrics"]["autoassist/candidates_seen"] == sum(considered)
    first = [index for seen in runs[1]["filtered"] for batch in seen["batches"][: N // 20] for index in batch]
    assert len(set(first)) == len(first) == 2 * 10 * (N // 20)


def test_the_trainers_own_sharding_is_left_to_the_user_where_he_asks(runs):
    """Each process goes over all data, as it does in plain Lightning; a sampler of his own shards each pass anew."""
    for seen in runs[1]["unsharded"]:
        assert len({index for batch in seen["batches"] for index in batch}) == N
    first_pass = ({index for batch in seen["batches"][:10] for index in batch} for seen in runs[1]["distributed"])
    mine, yours = first_pass
    assert len(mine & yours) <= 1  # DistributedSampler gives one instance twice, to even out


@pytest.mark.parametrize(
    "name",
    [
        "filtered",
        "proportional",
        "prioritized",
        "layers",
        "file",
        "weighted",
        "async",
        "random start",
        "text",
        "text async",
    ],
)
def test_assistants_are_equal_after_each_exchange(runs, name):
    first, second = runs[1][name]
    assert_same(first["assistant"], second["assistant"])
    for column in ("scores", "seen", "observed_at"):
        assert_same(first["store"][column], second["store"][column])
    assert first["store"]["seen"].any()
    assert first["summary"]["keep_rate"] < 1


def test_classes_are_of_what_all_processes_saw_and_of_the_data_set(runs):
    first, second = runs[1]["prioritized"]
    assert_same(first["policy"]["classes"], second["policy"]["classes"])
    assert first["policy"]["classes"]["counts"].sum() == first["policy"]["num_learnt"] > N
    for seen in (first, second):
        assert torch.equal(seen["store"]["labels"].long(), torch.arange(N) % 3)
        assert seen["considered"] > 10 * len(seen["batches"]) * 1.5
        assert not seen["warnings"]


def test_tokens_that_either_process_saw_are_remembered_by_both(runs):
    first, second = (seen["store"] for seen in runs[1]["text"])
    assert_same(first["tokens"], second["tokens"])
    assert first["has_features"].sum() > N - 20
    assert [seen["assistant"]["num_documents"] for seen in runs[1]["text"]] == [first["has_features"].sum()] * 2


@pytest.mark.parametrize("name", RESUMED)
def test_resumed_processes_are_the_uninterrupted_ones(runs, name):
    for whole, resumed in zip(runs[1][name.split("@")[0]], runs[1][name], strict=True):
        rest = whole["batches"][int(name.split("@")[1]) :]
        assert resumed["batches"] == rest
        for part in ("module", "assistant"):
            assert_same(whole[part], resumed[part])
        assert_same(whole["store"]["scores"], resumed["store"]["scores"])


def test_unfiltered_processes_train_as_plain_ones(runs):
    for plain, unfiltered in zip(runs[1]["plain"], runs[1]["unfiltered"], strict=True):
        assert plain["batches"] == unfiltered["batches"]
        assert_same(plain["module"], unfiltered["module"])


@pytest.mark.parametrize("name", ["failing", "failing async"])
def test_a_process_whose_assistant_fails_goes_on_unfiltered_and_hangs_nobody(runs, name):
    first, second = runs[1][name]
    assert first["is_filtering"]
    assert not first["warnings"]
    assert not second["is_filtering"]
    (warning,) = second["warnings"]
    assert "no second opinion" in warning
    assert first["summary"]["keep_rate"] < second["summary"]["keep_rate"]


def test_processes_of_unequal_epochs_are_refused(runs):
    for seen in runs[1]["uneven"]:
        assert "wait for each other" in seen["error"]


def test_one_process_goes_on_from_what_two_remember(runs):
    folder, seen = runs
    callback = AutoAssistCallback(policy="autoassist")
    run = trainer(max_epochs=EPOCHS, callbacks=[callback])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.fit(
            Classifier(),
            datamodule=AutoAssistDataModule(Loaders(), budget=0.6),
            ckpt_path=folder / "filtered" / "step=28.ckpt",
        )
    assert any("the checkpoint is of 2 processes, and this run has 1" in str(one.message) for one in caught)
    assert run.global_step == 28 + math.ceil(0.6 * N / 10)  # of the last epoch, in batches of one process
    assert callback.instances.seen.sum() >= seen["filtered"][0]["store"]["seen"].sum() - 20


def test_checkpoints_of_several_processes_hold_tensors_and_builtins(runs):
    checkpoint = torch.load(runs[0] / "filtered" / "step=17.ckpt", weights_only=True)
    assert len(checkpoint["AutoAssistDataModule"]["ranks"]) == 2


def test_each_process_counts_its_own_share_and_one_logs(runs):
    folder, seen = runs
    first, second = seen["logged"]
    for mine, yours in ((first, second), (second, first)):
        counted = np.flatnonzero(mine["counts"]["kept"] + mine["counts"]["dropped"])
        assert {index for batch in mine["batches"] for index in batch} <= set(counted.tolist())
        assert not {index for batch in yours["batches"] for index in batch} & set(counted.tolist())
        assert mine["counts"]["kept"].sum() + mine["counts"]["dropped"].sum() == mine["considered"]
    (by_wandb,) = read_runs(str(folder / "logged" / "wandb"))
    (by_csv,) = read_runs(str(folder / "logged" / "csv"))
    assert by_wandb.config["autoassist"]["num_processes"] == 2
    num_updates = len(first["batches"])
    for run in (by_wandb, by_csv):
        last = [row.values for row in run.rows if "autoassist/candidates_seen" in row.values]
        assert len(last) == EPOCHS
        assert last[-1]["autoassist/optimizer_steps"] == num_updates
        assert last[-1]["autoassist/candidates_seen"] == first["considered"] + second["considered"]
        for label in ("0", "1"):
            rate = f"autoassist/keep_rate_class_{label}"
            assert last[-1][rate] == pytest.approx(float(first["metrics"][rate]), rel=1e-6)
            assert first["metrics"][rate] == second["metrics"][rate]


def test_counts_of_several_processes_go_on_after_a_resume(runs):
    whole, resumed = runs[1]["logged"][0], runs[1]["logged@17"][0]
    for name, counts in whole["counts"].items():
        np.testing.assert_array_equal(resumed["counts"][name], counts)


def test_owned_candidates_are_a_partition_of_every_pass():
    shares = [OwnedCandidates(range(0, 100, 3), 100, rank, world_size=3, seed=5) for rank in range(3)]
    assert sorted(index for share in shares for index in share) == list(range(0, 100, 3))
    assert {len(share) for share in shares} == {12}


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork"])
def test_processes_that_the_trainer_spawns(tmp_path, strategy):
    command = f"""
import torch
from tests.helpers.two_processes import fit
from pathlib import Path
if __name__ == "__main__":
    torch.set_num_threads(1)
    seen = fit(Path({str(tmp_path)!r}), strategy={strategy!r}, policy="proportional")
    assert seen["module"]
"""
    script = tmp_path / "spawn.py"
    script.write_text(command)
    done = run_with_children([sys.executable, str(script)], 300, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.output
    last = torch.load(tmp_path / f"step={EPOCHS * 7}.ckpt", weights_only=True)
    assert len(last["AutoAssistDataModule"]["ranks"]) == 2
