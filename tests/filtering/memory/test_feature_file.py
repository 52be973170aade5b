from __future__ import annotations

import copy
import gc
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from lightning_autoassist import AutoAssistCallback
from lightning_autoassist.filtering.memory.feature_file import FeatureFile, FeaturePlace
from lightning_autoassist.filtering.memory.store import FEATURE_MEMORY, InstanceStore
from tests.end_to_end.test_resume import assert_equal, fit, pytestmark  # noqa: F401
from tests.helpers.paths import ROOT

ROWS = torch.arange(4.0)[:, None] + torch.tensor([0.25, 0.5])  # of instances 0 to 3


def filled(folder, feature_memory=0, rank=0):
    store = InstanceStore(6, feature_memory, FeaturePlace(str(folder), rank))
    store.put_features(torch.arange(4), ROWS)
    store.put_scores(torch.arange(4), torch.ones(4))
    return store


def restored(state, resumed_from=None, feature_memory=0, folder=None):
    place = FeaturePlace(
        None if folder is None else str(folder), 0, None if resumed_from is None else str(resumed_from)
    )
    store = InstanceStore(6, feature_memory, place)
    store.load_state_dict(state)
    return store


def features_in(store):
    return store.rows(torch.arange(4)).features


def files_in(folder):
    return sorted(path.name for path in folder.glob("autoassist-features-*"))


# ---- where features lie


def test_features_go_to_a_file_where_they_exceed_the_limit(tmp_path):
    assert filled(tmp_path, feature_memory=24).state_dict()["feature_file"] is None
    assert not files_in(tmp_path)
    store = filled(tmp_path, feature_memory=23)
    state = store.state_dict()
    assert state["features"] is None
    assert files_in(tmp_path) == [Path(state["feature_file"]["path"]).name]
    assert torch.equal(features_in(store).float(), ROWS)


def test_every_run_and_rank_has_a_file_of_its_own(tmp_path):
    stores = [filled(tmp_path), filled(tmp_path), filled(tmp_path, rank=1)]
    assert len(files_in(tmp_path)) == len(stores)
    assert sorted(name[-9:-4] for name in files_in(tmp_path)) == ["rank0", "rank0", "rank1"]


def test_the_global_rng_stays_untouched(tmp_path):
    before = torch.get_rng_state()
    filled(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_file_stays_if_a_checkpoint_refers_to_it_and_is_removed_otherwise(tmp_path):
    store = filled(tmp_path)
    assert files_in(tmp_path)
    del store
    gc.collect()
    assert not files_in(tmp_path)
    store = filled(tmp_path)
    store.state_dict()
    del store
    gc.collect()
    assert files_in(tmp_path)


@pytest.mark.parametrize("feature_memory", [FEATURE_MEMORY, 0])
def test_nonfinite_and_huge_features_are_bounded(feature_memory, tmp_path):
    store = InstanceStore(6, feature_memory, FeaturePlace(str(tmp_path)))
    store.put_features(torch.tensor([5]), torch.tensor([[float("nan"), float("inf"), -1e30]]))
    assert store.rows(torch.tensor([5])).features.tolist() == [[0.0, 10_000.0, -10_000.0]]


@pytest.mark.parametrize("feature_memory", [FEATURE_MEMORY, 0])
def test_an_instance_keeps_its_first_features(feature_memory, tmp_path):
    store = filled(tmp_path, feature_memory)
    store.forget(torch.tensor([2]))
    store.put_features(torch.tensor([2, 4]), torch.full((2, 2), 9.0))
    assert torch.equal(features_in(store).float(), ROWS)
    assert store.rows(torch.tensor([4])).features.tolist() == [[9.0, 9.0]]
    assert store.knows(torch.arange(6), ("features",)).tolist() == [True, True, False, True, False, False]
    assert store.holds(torch.arange(6), ("features",)).tolist() == [True] * 5 + [False]
    assert store.knows(torch.arange(6), ("scores",)).tolist() == [True, True, False, True, False, False]


# ---- resuming


def test_rows_written_after_a_checkpoint_are_not_known_to_it(tmp_path):
    store = filled(tmp_path)
    state = {name: copy.deepcopy(value) for name, value in store.state_dict().items() if name[0] != "f"}
    state.update(features=None, feature_file=store.state_dict()["feature_file"])
    store.put_features(torch.tensor([5]), torch.full((1, 2), 7.0))
    store.put_scores(torch.tensor([5]), torch.ones(1))
    again = restored(state)
    assert torch.equal(features_in(again).float(), ROWS)
    assert again.knows(torch.arange(6), ("features",)).tolist() == [True] * 4 + [False] * 2
    again.put_features(torch.tensor([5]), torch.full((1, 2), 3.0))
    assert again.rows(torch.tensor([5])).features.tolist() == [[3.0, 3.0]]


def test_the_folder_of_the_checkpoint_is_looked_in_first(tmp_path):
    state = filled(tmp_path / "old").state_dict()
    shutil.copytree(tmp_path / "old", tmp_path / "copy")
    for folder in ("copy", "nowhere"):
        store = restored(state, tmp_path / folder / "last.ckpt")
        found = Path(store.state_dict()["feature_file"]["path"])
        assert found.parent == tmp_path / ("copy" if folder == "copy" else "old")
        assert torch.equal(features_in(store).float(), ROWS)


@pytest.mark.parametrize("what", ["gone", "foreign", "no header", "cut off"])
def test_a_file_that_is_not_the_checkpoints_is_not_taken(what, tmp_path):
    store = filled(tmp_path)
    state = store.state_dict()
    path = Path(state["feature_file"]["path"])
    if what == "gone":
        path.unlink()
    elif what == "foreign":
        other = filled(tmp_path / "other").state_dict()["feature_file"]["path"]
        shutil.copy(other, path)
    elif what == "no header":
        path.write_bytes(b"\xff" * path.stat().st_size)
    else:
        path.write_bytes(path.read_bytes()[:-1])
    reason = {"gone": "does not exist", "cut off": "is cut off"}.get(what, "belongs to another run")
    with pytest.warns(UserWarning, match=f"could not be loaded: {path} {reason}.*gathered again") as caught:
        again = restored(state, tmp_path / "last.ckpt", folder=tmp_path / "new")
    assert len(caught) == 1
    assert again.features is None
    assert not again.knows(torch.arange(6), ("features",)).any()
    assert torch.equal(again.scores, store.scores)
    again.put_features(torch.arange(2), ROWS[:2])
    assert again.knows(torch.arange(6), ("features",)).tolist() == [True] * 2 + [False] * 4
    assert len(files_in(tmp_path / "new")) == 1


def test_a_changed_limit_moves_features_between_memory_and_file(tmp_path):
    for before, after in ((0, FEATURE_MEMORY), (FEATURE_MEMORY, 0)):
        store = restored(filled(tmp_path, before).state_dict(), feature_memory=after, folder=tmp_path)
        assert (store.state_dict()["feature_file"] is None) == (after > 0)
        assert torch.equal(features_in(store).float(), ROWS)


@pytest.mark.skipif(sys.platform == "win32", reason="no locks there")
def test_a_file_that_another_process_has_is_copied(tmp_path):
    """Several runs that are resumed from one checkpoint must not write over each other's rows."""
    store = filled(tmp_path)
    state = store.state_dict()
    path = state["feature_file"]["path"]
    del store
    gc.collect()
    script = (
        f"import fcntl; f = open({path!r}, 'r+b'); fcntl.lockf(f, fcntl.LOCK_EX); print('locked', flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"locked\n"
        again = restored(state, folder=tmp_path)
        other.communicate(b"\n")
    assert torch.equal(features_in(again).float(), ROWS)
    assert again.state_dict()["feature_file"]["path"] != path
    assert restored(state, folder=tmp_path).state_dict()["feature_file"]["path"] == path


# ---- no file can be made


def test_without_a_folder_features_stay_in_memory(tmp_path):
    (tmp_path / "occupied").write_text("")
    for folder in (None, tmp_path / "occupied"):
        store = InstanceStore(6, 0, FeaturePlace(None if folder is None else str(folder)))
        with pytest.warns(
            UserWarning, match=r"no file could be made for 24 bytes of features \(.*\): they stay in memory"
        ):
            store.put_features(torch.arange(4), ROWS)
        assert torch.equal(features_in(store).float(), ROWS)
        assert store.state_dict()["feature_file"] is None


def test_without_posix_fallocate_space_is_written(tmp_path, monkeypatch):
    monkeypatch.delattr("os.posix_fallocate", raising=False)
    file = FeatureFile.create(FeaturePlace(str(tmp_path)), (6, 2))
    assert file.path.stat().st_size == 4096 + 24 + 6
    assert not file.values.any()


def _can_mount():
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", "mount -t tmpfs -o size=4k none /mnt"]
    return (
        shutil.which("unshare") is not None
        and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


@pytest.mark.parametrize("disk", ["tmpfs", "limit"])
def test_on_a_full_disk_features_stay_in_memory_and_training_goes_on(disk, tmp_path):
    folder = tmp_path / "full"
    folder.mkdir()
    command = [sys.executable, "-m", "tests.filtering.memory.test_feature_file", disk, str(folder)]
    if disk == "tmpfs":
        if not _can_mount():
            pytest.skip("this user may not mount")
        mount = 'mount -t tmpfs -o size=4k none "$1" && shift && exec "$@"'
        command = ["unshare", "--mount", "--map-root-user", "sh", "-c", mount, "sh", str(folder), *command]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr


def train_on_a_full_disk(disk, folder):
    expected = fit(folder, saved_steps=())
    if disk == "limit":
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    reason = "No space left on device" if disk == "tmpfs" else "File too large"
    with pytest.warns(UserWarning, match=f"no file could be made for 3,200 bytes of features .*{reason}") as caught:
        found = fit(folder, saved_steps=(), feature_memory=0)
    assert sum("features" in str(warning.message) for warning in caught) == 1
    assert_equal(expected, found)
    assert not files_in(folder)


# ---- training


class Watching(pl.Callback):
    """Takes note of everybody's keep probabilities at the start and at the end."""

    def on_train_start(self, run, module):
        self.probs = [self._probs_in(run)]

    def on_train_end(self, run, module):
        self.probs.append(self._probs_in(run))

    @staticmethod
    def _probs_in(run):
        (callback,) = (callback for callback in run.callbacks if isinstance(callback, AutoAssistCallback))
        return torch.from_numpy(callback.keep_probability(range(200)))


@pytest.mark.parametrize("options", [{}, {"num_workers": 2}, {"lag": 3}], ids=str)
def test_features_in_memory_and_in_a_file_give_one_run(options, tmp_path):
    in_memory = fit(tmp_path / "memory", saved_steps=(), **options)
    in_file = fit(tmp_path / "file", saved_steps=(), feature_memory=0, **options)
    assert_equal(in_memory, in_file)


def test_the_file_lies_beside_the_checkpoints_and_a_moved_folder_resumes(tmp_path):
    expected = fit(tmp_path / "whole", feature_memory=0)
    assert len(files_in(tmp_path / "whole")) == 1
    moved = (tmp_path / "whole").rename(tmp_path / "moved")
    assert_equal(expected, fit(tmp_path / "resumed", ckpt_path=moved / "step=30.ckpt", seed=99, feature_memory=0))
    checkpoint = torch.load(tmp_path / "resumed" / "step=60.ckpt", weights_only=True)
    state = checkpoint["callbacks"]["AutoAssistCallback"]["selector"]["store"]
    assert state["features"] is None
    assert Path(state["feature_file"]["path"]).parent == moved


@pytest.mark.parametrize("lag", [0, 3])
@pytest.mark.parametrize("what", ["missing", "foreign"])
def test_without_its_file_a_run_goes_on_and_gathers_features_again(what, lag, tmp_path):
    fit(tmp_path / "whole", saved_steps=(30,), feature_memory=0, lag=lag)
    (name,) = files_in(tmp_path / "whole")
    if what == "missing":
        (tmp_path / "whole" / name).unlink()
    else:
        shutil.copy(filled(tmp_path / "other").state_dict()["feature_file"]["path"], tmp_path / "whole" / name)
    watching = Watching()
    with pytest.warns(UserWarning, match=f"{name} (does not exist|belongs to another run).*gathered again") as caught:
        fit(
            tmp_path / "new",
            watching,
            saved_steps=(),
            ckpt_path=tmp_path / "whole/step=30.ckpt",
            feature_memory=0,
            lag=lag,
        )
    assert sum("features" in str(warning.message) for warning in caught) == 1
    assert (watching.probs[0] == 1).all()
    assert (watching.probs[1] < 1).sum() > 100


@pytest.mark.parametrize("way", ["checkpoint", "no checkpoint"])
def test_a_run_without_checkpoints_leaves_no_file(way, tmp_path):
    fit(tmp_path, saved_steps=(30,) if way == "checkpoint" else (), feature_memory=0)
    gc.collect()
    assert len(files_in(tmp_path)) == (way == "checkpoint")


def test_a_negative_limit_is_refused():
    with pytest.raises(ValueError, match="feature_memory must not be negative, got -1"):
        AutoAssistCallback(feature_memory=-1)


if __name__ == "__main__":
    train_on_a_full_disk(sys.argv[1], Path(sys.argv[2]))
