from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch

from lightning_autoassist.filtering.memory.dynamics import (
    LEARNT_BELOW,
    ROW,
    WRITTEN_TOGETHER,
    InstanceDynamics,
    Visits,
)
from lightning_autoassist.filtering.memory.frame import COLUMNS, columns_of
from lightning_autoassist.filtering.memory.store import InstanceStore


def visits(rows, losses, probs=None, pass_index=0, margins=None, others=None):
    probs, margins = (None if values is None else np.array(values, np.float32) for values in (probs, margins))
    others = None if others is None else np.array(others)
    return Visits(np.array(rows), np.array(losses, np.float32), probs, pass_index, margins, others)


def test_an_instance_takes_24_bytes():
    assert ROW.itemsize == 24
    state = InstanceDynamics(1000).state_dict()
    assert sum(column.nbytes for column in state["columns"].values()) == 24_000


def test_visits_count_one_over_p():
    dynamics = InstanceDynamics(1)
    dynamics.observe(visits([0], [1.0]))
    dynamics.observe(visits([0], [0.25], [0.5]))
    columns = dynamics.columns()
    mean = (1.0 + 2 * 0.25) / 3
    assert columns["loss_mean"][0] == pytest.approx(mean)
    spread = math.sqrt(((1 - mean) ** 2 + 2 * (0.25 - mean) ** 2) / 3)
    assert columns["loss_spread"][0] == pytest.approx(spread, rel=1e-3)
    assert columns["confidence"][0] == pytest.approx((math.exp(-1) + 2 * math.exp(-0.25)) / 3, abs=2e-5)


def test_weighted_means_estimate_those_of_every_visit():
    """An instance whose hard visits are kept always and its easy ones one time in five."""
    rng = np.random.default_rng(0)
    dynamics = InstanceDynamics(2000)
    rows = np.arange(2000)
    for number in range(40):
        losses, prob = (np.float32(2), 1.0) if number % 2 else (np.float32(0.2), 0.2)
        kept = rows[rng.random(2000) < prob]
        dynamics.observe(visits(kept, np.full(len(kept), losses), np.full(len(kept), prob)))
    # A quotient of two estimates; the plain mean over visits would be 1.7.
    assert dynamics.columns()["loss_mean"].mean() == pytest.approx(1.1, abs=0.06)


def test_what_is_written_together_is_what_is_written_at_once():
    rng = np.random.default_rng(0)
    together, singly = InstanceDynamics(300), InstanceDynamics(300)
    for number in range(WRITTEN_TOGETHER // 64 + 20):
        rows, kept = rng.integers(0, 300, 64), rng.random(64) < 0.5
        told = (
            rng.exponential(1, 64),
            rng.uniform(0.2, 1, 64),
            number // 5,
            rng.normal(size=64),
            rng.integers(-1, 3, 64),
        )
        batch = visits(rows, *told)
        for dynamics in (together, singly):
            dynamics.observe(batch)
            dynamics.count(rows, kept)
        singly.columns()  # whoever looks has all of it written
    left, right = (dynamics.state_dict()["columns"] for dynamics in (together, singly))
    assert all(torch.equal(left[name].nan_to_num(9), right[name].nan_to_num(9)) for name in left)
    assert np.isfinite(together.columns()["area_under_margin"]).all()


def test_many_visits_each_of_which_moves_less_than_half_precision_tells():
    dynamics = InstanceDynamics(2)
    for number in range(4000):
        prob = 0.5 if number % 2 else 0.1
        margin = number / 1000 - 9
        dynamics.observe(visits([0, 1], [2.0 if number < 2000 else 0.0] * 2, [1.0, prob], margins=[margin] * 2))
    columns = dynamics.columns()
    assert columns["loss_mean"][0] == pytest.approx(1.0, rel=1e-5)  # nothing is rounded in weights of 1
    assert columns["loss_mean"][1] == pytest.approx(1.0, rel=1e-3)
    assert columns["loss_spread"] == pytest.approx([1.0, 1.0], rel=2e-3)
    assert columns["area_under_margin"] == pytest.approx([-7.0005, -7.0005], rel=2e-3)


def test_the_area_under_the_margin_counts_one_over_p():
    dynamics = InstanceDynamics(3)
    dynamics.observe(visits([0, 1, 2], [1.0] * 3, margins=[-3.0, 7.5, 1.0]))
    dynamics.observe(visits([0, 1], [1.0] * 2, [0.5, 1.0], margins=[1.5, math.inf]))
    dynamics.observe(visits([2], [1.0]))
    dynamics.observe(visits([1, 2], [1.0] * 2, margins=[0.0, 0.0]))
    margins = dynamics.columns()["area_under_margin"]
    assert margins[0] == pytest.approx((-3 + 2 * 1.5) / 3, abs=1e-3)
    assert np.isnan(margins[1:]).all()  # not known at every visit


def test_the_majority_of_visits_suggests_a_class():
    rng = np.random.default_rng(0)
    votes = np.array([rng.permutation([7] * 8 + [4, 4, 5, 6, 9, 9, 0]) for _ in range(50)])
    dynamics = InstanceDynamics(53)
    for number in range(votes.shape[1]):
        dynamics.observe(visits(np.arange(50), [1.0] * 50, others=votes[:, number]))
    dynamics.observe(visits([50, 51, 51], [1.0] * 3, others=[65_534, 65_535, -1]))
    assert dynamics.columns()["suggested_label"].tolist() == [7] * 50 + [65_534, -1, -1]


def test_no_label_is_suggested_where_none_is_known():
    """As where the targets are positions in the batch, and so no property of the instances."""
    store = InstanceStore(2, dynamics=True)
    store.dynamics.observe(visits([0, 1], [1.0] * 2, others=[3, 4]))
    assert columns_of(store)["suggested_label"].tolist() == [-1, -1]
    store.put_labels(torch.arange(2), torch.tensor([1, 2]))
    assert columns_of(store)["suggested_label"].tolist() == [3, 4]
    store.dynamics.forget()
    assert columns_of(store)["suggested_label"].tolist() == [-1, -1]


def test_a_lead_ends_where_its_byte_does():
    dynamics = InstanceDynamics(1)
    for number in range(300 + 255):
        dynamics.observe(visits([0], [1.0], others=[3 if number < 300 else 4]))
    assert dynamics.columns()["suggested_label"].tolist() == [3]
    dynamics.observe(visits([0], [1.0], others=[4]))
    assert dynamics.columns()["suggested_label"].tolist() == [4]


def test_times_kept_are_counted_whether_or_not_the_instance_was_trained_on():
    dynamics = InstanceDynamics(3)
    for number in range(200):
        dynamics.observe(visits([0, 1], [1.0, 1.0]))
        dynamics.count(np.array([1, 2]), np.array([True, number % 2 == 0]))
    assert dynamics.columns()["times_kept"].tolist() == [200, 200, 100]
    assert dynamics.columns()["times_dropped"].tolist() == [0, 0, 100]


def test_a_checkpoint_without_margins_is_read():
    """Columns as they were before there were margins: a sum of weights, a variance, and times kept."""
    columns = {
        "weight": torch.tensor([3.0, 0.0]),
        "loss": torch.tensor([0.5, 0.0]),
        "loss_variance": torch.tensor([0.125, 0.0]),
        **{name: torch.tensor([2**14, 0], dtype=torch.int16) for name in ("confidence", "variability")},
        "seen": torch.tensor([2, 0], dtype=torch.int16),
        "kept": torch.tensor([3, 1], dtype=torch.int16),
        "dropped": torch.tensor([5, -1], dtype=torch.int16),
        **{name: torch.tensor([1, 0], dtype=torch.uint8) for name in ("turns", "first_pass")},
    }
    dynamics = InstanceDynamics(2)
    dynamics.load_state_dict({"loss_source": "cross_entropy at a.py:1", "columns": columns})
    expected = {
        "times_seen": [2, 0],
        "times_kept": [3, 1],
        "times_dropped": [5, 65_535],
        "times_learnt": [1, 0],
        "first_pass_learnt": [0, -1],
        "suggested_label": [-1, -1],
    }
    found = dynamics.columns()
    assert {name: found[name].tolist() for name in expected} == expected
    assert found["loss_spread"][0] == pytest.approx(math.sqrt(0.125), rel=1e-3)
    dynamics.observe(visits([0, 1], [1.5, 1.5], margins=[2.0, 2.0], others=[4, 4]))
    found = dynamics.columns()
    assert found["loss_mean"].tolist() == pytest.approx([(3 * 0.5 + 1.5) / 4, 1.5])
    assert np.isnan(found["area_under_margin"][0])
    assert found["area_under_margin"][1] == 2.0
    assert found["suggested_label"].tolist() == [4, 4]


def test_learnt_and_forgotten():
    dynamics = InstanceDynamics(2)
    for number, loss in enumerate([2.0, 0.5, 0.6, 0.8, LEARNT_BELOW + 1e-6, 0.1]):
        dynamics.observe(visits([1], [loss], pass_index=number))
    columns = dynamics.columns()
    assert [columns[name][1] for name in ("times_learnt", "times_forgotten", "first_pass_learnt")] == [2, 1, 1]
    assert [columns[name][0] for name in ("times_learnt", "times_forgotten", "first_pass_learnt")] == [0, 0, -1]


def test_counts_end_where_their_bytes_do():
    dynamics = InstanceDynamics(1)
    for number in range(600):
        dynamics.observe(visits([0], [2.0 * (number % 2)], pass_index=number))
    columns = dynamics.columns()
    assert (columns["times_forgotten"][0], columns["times_learnt"][0]) in {(127, 127), (127, 128)}
    dynamics = InstanceDynamics(1)
    dynamics.observe(visits([0], [0.1], pass_index=1000))
    assert dynamics.columns()["first_pass_learnt"].tolist() == [254]
    many = np.zeros(70_000, np.int64)
    dynamics._words.view(ROW)["seen"] = dynamics._words.view(ROW)["dropped"] = 65_530
    for row in many[:10]:
        dynamics.observe(visits([row], [0.1]))
        dynamics.count(np.array([row]), np.array([False]))
    columns = dynamics.columns()
    assert (columns["times_seen"][0], columns["times_dropped"][0]) == (65_535, 65_535)


@pytest.mark.parametrize("loss", [-3.0, 0.0, 80.0, 3e38])
def test_any_finite_loss_can_be_taken(loss):
    dynamics = InstanceDynamics(1)
    dynamics.observe(visits([0], [loss]))
    columns = dynamics.columns()
    assert columns["loss_mean"][0] == np.float32(loss)
    assert columns["confidence"][0] == pytest.approx(min(1.0, math.exp(-min(loss, 700))), abs=1e-5)
    dynamics.observe(visits([0], [0.0]))
    assert dynamics.columns()["loss_mean"][0] == pytest.approx(loss / 2)


def test_state_is_restored_with_the_rows_that_were_added():
    store = InstanceStore(4, dynamics=True)
    store.places(torch.tensor([9]))
    store.dynamics.observe(visits([9, 1], [0.5, 1.0]))
    store.dynamics.loss_source = "cross_entropy at a.py:1"
    restored = InstanceStore(4, dynamics=True)
    restored.load_state_dict(store.state_dict())
    assert restored.dynamics.loss_source == "cross_entropy at a.py:1"
    left, right = columns_of(store), columns_of(restored)
    assert left.keys() == right.keys() <= COLUMNS.keys()
    for name, values in left.items():
        np.testing.assert_array_equal(values, right[name], err_msg=name)
    older = {name: value for name, value in store.state_dict().items() if name != "dynamics"}
    restored.load_state_dict(older)
    assert len(restored.dynamics) == len(restored)
    assert not restored.dynamics.columns()["times_seen"].any()


def test_a_frame_has_the_documented_columns():
    pandas = pytest.importorskip("pandas")
    store = InstanceStore(3, dynamics=True)
    store.dynamics.observe(visits([1], [0.5]))
    store.dynamics.loss_source = "cross_entropy at a.py:1"
    frame = store.to_frame()
    assert isinstance(frame, pandas.DataFrame)
    assert frame.index.name == "index"
    assert set(frame.columns) <= COLUMNS.keys()
    assert frame.loc[1, "loss_mean"] == 0.5
    assert frame.loc[[0, 2], "loss_mean"].isna().all()
    assert frame.attrs == {"loss": "cross_entropy at a.py:1"}


def test_without_pandas_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-autoassist\[instances\]'"):
        InstanceStore(3, dynamics=True).to_frame()


def test_candidates_count_as_often_as_they_came_until_their_bytes_are_full():
    rng = np.random.default_rng(0)
    dynamics, told = InstanceDynamics(5), [(np.arange(5), np.ones(5, np.bool_))]
    dynamics.count(*told[0])
    dynamics.observe(Visits(np.arange(5), np.full(5, 0.5, np.float32), None, pass_index=2))
    before = dynamics.columns()
    for size in (0, 7, 3 * WRITTEN_TOGETHER, 2):
        told.append((rng.integers(0, 5, size), rng.random(size) < 0.3))
        dynamics.count(*told[-1])
        dynamics.observe(visits(told[-1][0][told[-1][1]], np.full(told[-1][1].sum(), 0.5), pass_index=2))
    rows, kept = (np.concatenate(column) for column in zip(*told, strict=True))
    columns = dynamics.columns()
    assert columns["times_kept"].tolist() == np.bincount(rows[kept], minlength=5).tolist()
    assert columns["times_dropped"].tolist() == np.bincount(rows[~kept], minlength=5).tolist()
    dynamics._table["dropped"][[0, 3]] = 65533
    dynamics.count(np.array([0, 3, 0, 1, 0]), np.zeros(5, np.bool_))
    dropped = dynamics.columns()["times_dropped"].tolist()
    assert dropped[0] == 65535
    assert dropped[3] == 65534
    assert dropped[1] == columns["times_dropped"][1] + 1
    names = [name for name in before if not name.startswith(("times_seen", "times_kept", "times_dropped"))]
    for name in names:
        np.testing.assert_array_equal(before[name], columns[name], err_msg=name)
