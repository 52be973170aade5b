from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch.nn import functional as F

from lightning_autoassist.filtering.memory.features import BatchFeatures
from lightning_autoassist.filtering.memory.instances import Instances
from lightning_autoassist.filtering.memory.store import InstanceStore
from lightning_autoassist.trainer_support.batch_parts import tensors_in


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((4,), (4, 1)),
        ((4, 20), (4, 20)),
        ((4, 1, 8, 8), (4, 64)),
        ((4, 1, 28, 28), (4, 256)),
        ((4, 3, 32, 32), (4, 243)),
        ((4, 3, 4, 100, 100), (4, 192)),
        ((4, 2, 1000), (4, 256)),
        ((4, 1000), (4, 256)),
        ((4, 300, 7), (4, 256)),
        ((4, 1, 2, 3, 4, 50), (4, 256)),
    ],
)
def test_at_most_256_numbers_an_instance(shape, expected):
    features = BatchFeatures()((torch.rand(shape), torch.zeros(4, dtype=torch.long)), 4)
    assert features.shape == expected


def test_images_are_pooled_and_small_ones_kept():
    images = torch.rand(2, 1, 28, 28)
    assert torch.equal(BatchFeatures()(images, 2), F.adaptive_avg_pool2d(images, 16).flatten(1))
    assert torch.equal(BatchFeatures()(images[..., :4, :4], 2), images[..., :4, :4].flatten(1))


def test_bytes_are_pixels():
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    assert torch.equal(BatchFeatures()(images, 2), images.float().flatten(1))


def test_the_projection_is_fixed_and_keeps_lengths():
    values = torch.randn(50, 3000)
    projected = BatchFeatures()(values, 50)
    assert torch.equal(projected, BatchFeatures()(values, 50))
    assert (projected.norm(dim=1) / values.norm(dim=1)).mean() == pytest.approx(1, abs=0.1)


def test_tokens_are_counted_where_nothing_is_floating():
    tokens = torch.tensor([[5, 5, 9], [1, 2, 3]])
    counts = BatchFeatures()({"input_ids": tokens, "labels": torch.tensor([0, 1])}, 2)
    assert counts.sum(1).tolist() == [3, 3]
    assert counts[0].max() == 2
    again = BatchFeatures()({"input_ids": torch.tensor([[9, 5, 5], [7, 7, 7]])}, 2)
    assert torch.equal(counts[0], again[0])


def test_the_largest_floating_tensor_with_a_row_an_instance_is_taken():
    image, extra, scale = torch.rand(2, 9), torch.rand(2, 3), torch.rand(500)
    assert torch.equal(BatchFeatures()([extra, {"image": image}, scale, torch.zeros(2, 50).long()], 2), image)


def test_nothing_to_take_features_from():
    assert BatchFeatures()((torch.tensor([1, 2]), "text"), 2) is None


def test_a_function_of_the_users_replaces_the_choice():
    features = BatchFeatures(lambda batch: batch["x"] * 2)
    assert features({"x": torch.ones(3, 2), "y": torch.rand(3, 99)}, 3).tolist() == [[2.0, 2.0]] * 3
    with pytest.raises(ValueError, match=r"features= must return shape \(4, F\), got \(3, 2\)"):
        features({"x": torch.ones(3, 2)}, 4)


def test_tensors_in_nested_batches():
    @dataclass
    class Batch:
        first: torch.Tensor
        rest: dict

    a, b, c = torch.rand(1), torch.rand(2), torch.rand(3)
    found = list(tensors_in(Batch(a, {"b": [b, "text", (c, None)]})))
    assert [tensor.data_ptr() for tensor in found] == [t.data_ptr() for t in (a, b, c)]


def test_store_remembers_rows_in_half_precision():
    store = InstanceStore(10)
    rows = torch.tensor([7, 2])
    store.put_features(rows, torch.tensor([[1.5, 2.0], [float("inf"), float("nan")]]))
    store.put_labels(rows, torch.tensor([4, 5]))
    store.put_scores(rows, torch.tensor([0.5, 0.25]))
    found = store.rows(torch.tensor([2, 7]))
    assert found.features.dtype == torch.half
    assert found.features.tolist() == [[10_000.0, 0.0], [1.5, 2.0]]
    assert found.labels.tolist() == [5, 4]
    assert found.scores.tolist() == [0.25, 0.5]
    assert store.seen.nonzero().flatten().tolist() == [2, 7]
    store.forget(torch.tensor([2]))
    assert store.seen.nonzero().flatten().tolist() == [7]


def test_only_the_columns_asked_for_are_gathered():
    store = InstanceStore(3)
    store.put_features(torch.arange(3), torch.rand(3, 2))
    assert store.rows(torch.tensor([1]), ("scores",)) == Instances(None, None, torch.zeros(1))
    assert store.rows(torch.tensor([2, 1]), ("indices",)).indices.tolist() == [2, 1]


def test_store_refuses_another_number_of_features_and_another_data_set():
    store = InstanceStore(3)
    store.put_features(torch.arange(3), torch.rand(3, 2))
    with pytest.raises(ValueError, match="5 features where earlier ones had 2"):
        store.put_features(torch.arange(3), torch.rand(3, 5))
    with pytest.raises(ValueError, match="remembers 3 instances, the data set has 4"):
        InstanceStore(4).load_state_dict(store.state_dict())


def test_memory_of_an_instance_stays_within_half_precision():
    store = InstanceStore(1000)
    store.put_features(torch.arange(1000), torch.rand(1000, 64))
    store.put_labels(torch.arange(1000), torch.zeros(1000, dtype=torch.long))
    size = sum(column.nbytes for column in store.state_dict().values() if isinstance(column, torch.Tensor))
    assert size / 1000 == 64 * 2 + 14 <= 160


def test_ages_count_the_batches_since_an_instance_was_observed():
    store = InstanceStore(4)
    for rows in ([0, 1], [1], [2]):
        store.put_scores(torch.tensor(rows), torch.rand(len(rows)))
    assert store.rows(torch.arange(4), ("ages",)).ages.tolist() == [2, 1, 0, -1]
    restored = InstanceStore(4)
    restored.load_state_dict(store.state_dict())
    restored.put_scores(torch.tensor([3]), torch.rand(1))
    assert restored.rows(torch.arange(4), ("ages",)).ages.tolist() == [3, 2, 1, 0]
    assert store.rows(torch.arange(4), ("scores",)).ages is None
