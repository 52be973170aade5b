"""Batches taken apart and put together again."""

from __future__ import annotations

import types
from collections import OrderedDict, UserDict, defaultdict, namedtuple
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from lightning_autoassist.filtering.sampling.columns import concatenate, packed, select, unpacked
from lightning_autoassist.filtering.sampling.rows import RowSplitter

Pair = namedtuple("Pair", ["first", "second"])  # noqa: PYI024, as users write them


@dataclass(frozen=True)
class Frozen:
    x: torch.Tensor
    name: str = "kept"
    derived: int = field(init=False, default=7)


class Split(Enum):
    TRAIN = 1


def x(*rows):
    """A column: row r is (r, 10 r)."""
    return torch.tensor([[float(row), 10.0 * row] for row in rows])


# Each makes a batch of the given rows.
BATCHES = {
    "tensor": x,
    "list": lambda *rows: [x(*rows), torch.tensor(rows)],
    "tuple": lambda *rows: (x(*rows), torch.tensor(rows).bool()),
    "dict": lambda *rows: {"x": x(*rows), 5: {"deeper": x(*rows)}},
    "ordered dict": lambda *rows: OrderedDict(x=x(*rows)),
    "default dict": lambda *rows: defaultdict(list, x=x(*rows)),
    "user dict": lambda *rows: UserDict(x=x(*rows)),
    "read-only mapping": lambda *rows: types.MappingProxyType({"x": x(*rows)}),
    "named tuple": lambda *rows: Pair(x(*rows), ["abcdefgh"[row] for row in rows]),
    "dataclass": lambda *rows: Frozen(x(*rows)),
    "strings": lambda *rows: (x(*rows), [str(row) for row in rows], tuple(str(row) for row in rows)),
    "arrays": lambda *rows: {"x": x(*rows).numpy(), "names": np.array([f"n{row}" for row in rows])},
    "half precision": lambda *rows: (x(*rows).bfloat16(), torch.ones(3, dtype=torch.bfloat16)),
    "shared parts": lambda *rows: {
        "x": x(*rows),
        "scalar": torch.tensor(3),
        "weights": torch.arange(9.0),
        "split": Split.TRAIN,
        "array": np.arange(9),
        "none": None,
        "texts": ["only", "two", "of", "them", "or", "so", "in", "any", "batch"],
    },
    "detection": lambda *rows: (
        [torch.full((3, 4 + row, 5), float(row)) for row in rows],
        [{"boxes": torch.zeros(row, 4), "labels": torch.arange(row)} for row in rows],
    ),
    "instances": lambda *rows: [(x(row)[0], row) for row in rows],
    "wide": lambda *rows: torch.ones(len(rows), 2, 3, 4) * torch.tensor(rows)[:, None, None, None],
}


def assert_same(left, right):
    assert type(left) is type(right)
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype
        assert torch.equal(left, right)
    elif isinstance(left, np.ndarray):
        assert left.dtype == right.dtype
        assert (left == right).all()
    elif isinstance(left, (dict, UserDict, types.MappingProxyType)):
        assert list(left) == list(right)
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    elif isinstance(left, Frozen):
        assert_same(left.x, right.x)
        assert (left.name, left.derived) == (right.name, right.derived)
    else:
        assert left == right


@pytest.mark.parametrize("make", BATCHES.values(), ids=BATCHES)
def test_rows_of_two_batches_make_a_batch(make):
    splitter = RowSplitter(batch_size=4)
    first, _ = splitter.take_apart(make(1, 2, 3, 4))
    second, form = splitter.take_apart(make(5, 6))  # a short one
    chosen = [(select(column, [0, 3]), select(other, [1])) for column, other in zip(first, second, strict=True)]
    assert_same(form.build([concatenate(parts) for parts in chosen]), make(1, 4, 6))


@pytest.mark.parametrize("make", BATCHES.values(), ids=BATCHES)
def test_columns_survive_a_checkpoint(make, tmp_path):
    columns, form = RowSplitter(batch_size=4).take_apart(make(1, 2, 3, 4))
    torch.save([packed(column) for column in columns], tmp_path / "columns.pt")
    loaded = [unpacked(column) for column in torch.load(tmp_path / "columns.pt", weights_only=True)]
    assert_same(form.build(loaded), make(1, 2, 3, 4))


def test_batches_of_one_form_have_one_kind():
    def kind(batch):
        return RowSplitter(batch_size=2).take_apart(batch)[1].kind

    one = {"x": x(1, 2), "classes": torch.arange(3), "T": 5}
    assert kind(one) == kind({"x": x(3, 4), "classes": torch.arange(3), "T": 5})
    for other in (
        {"x": x(1, 2), "classes": torch.arange(3), "T": 6},
        {"x": x(1, 2), "classes": torch.arange(4), "T": 5},
        {"x": x(1, 2), "classes": torch.arange(3) + 1, "T": 5},
        {"x": x(1, 2).double(), "classes": torch.arange(3), "T": 5},
        {"x": x(1, 2)[:, :1], "classes": torch.arange(3), "T": 5},
        {"y": x(1, 2), "classes": torch.arange(3), "T": 5},
        OrderedDict(one),
    ):
        assert kind(one) != kind(other)


def test_widths_are_padded_where_a_value_is_given():
    def batch(width):
        return {"ids": torch.ones(2, width, dtype=torch.long), "labels": np.ones((2, width)), "x": torch.ones(2, 1)}

    splitter = RowSplitter(batch_size=2, pad_values={"ids": 0, "labels": -100})
    narrow, form = splitter.take_apart(batch(2))
    wide, wide_form = splitter.take_apart(batch(3))
    assert form.kind == wide_form.kind
    values = [splitter.pad_value(path) for path in form.paths]
    assert values == [0, -100, None]
    joined = form.build([concatenate(pair, value) for pair, value in zip(zip(narrow, wide), values)])  # noqa: B905
    assert joined["ids"].tolist() == [[1, 1, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1]]
    assert joined["labels"].tolist()[0] == [1, 1, -100]
    assert RowSplitter(pad_values={"ids": 0}).take_apart(batch(2))[1].kind != form.kind
    assert concatenate([torch.ones(1, 2, 1), torch.ones(1, 1, 2)], 0.0).tolist() == [[[1, 0], [1, 0]], [[1, 1], [0, 0]]]


def test_a_number_pads_every_column():
    splitter = RowSplitter(pad_values=-1)
    assert splitter.take_apart((torch.ones(2, 3),))[1].kind == splitter.take_apart((torch.ones(2, 5),))[1].kind


def test_selected_rows_are_copies():
    column = x(1, 2)
    chosen = select(column, [1])
    column.zero_()
    assert chosen.tolist() == [[2, 20]]


@pytest.mark.parametrize(
    ("batch", "batch_size", "error", "message"),
    [
        (torch.ones(5, 4), 4, ValueError, "have the 4 instances on their second axis"),
        ((x(1, 2), torch.ones(3)), None, ValueError, "expected one size in front, found 0: 2, 1: 3, the batch: 2"),
        (x(1, 2, 3)[:, :1], 2, ValueError, "expected batch_size=2 in front, found the batch: 3"),
        (7, 2, ValueError, "found no tensor"),
        ((x(1, 2), object()), 2, TypeError, "'1' of the batch is a object, whose rows are unknown"),
        ({"p": pack_sequence([x(1), x(2)]), "x": x(1, 2)}, 2, TypeError, "'p' of the batch is a PackedSequence"),
        ((x(1, 2), x(1, 2).to_sparse()), 2, TypeError, "'1' of the batch is a sparse or nested tensor"),
        ([torch.ones(3, 4, 4)] * 3, 3, ValueError, "the batch is 3 tensors of leading size 3.*another batch_size"),
    ],
)
def test_batches_whose_rows_cannot_be_told(batch, batch_size, error, message):
    with pytest.raises(error, match=message):
        RowSplitter(batch_size).take_apart(batch)


def test_batches_of_another_structure_than_the_first():
    splitter = RowSplitter(2)
    splitter.take_apart({"x": x(1, 2), "names": ["a", "b"]})
    with pytest.raises(ValueError, match="a batch has no 'x', by which the rows of earlier ones were counted"):
        splitter.take_apart({"y": x(1, 2)})
    with pytest.raises(ValueError, match="'names' of the batch has 3 rows, other parts have 2"):
        splitter.take_apart({"x": x(1, 2), "names": ["a", "b", "c"]})


def test_a_short_batch_of_as_many_rows_as_the_batch_has_parts():
    splitter = RowSplitter(4)
    splitter.take_apart((x(1, 2, 3, 4), x(1, 2, 3, 4), x(1, 2, 3, 4)))
    columns, form = splitter.take_apart((x(5, 6, 7), x(5, 6, 7), x(5, 6, 7)))
    assert form.paths == ["0", "1", "2"]
    assert [len(column) for column in columns] == [3, 3, 3]


def test_as_many_rows_as_parts():
    columns, form = RowSplitter(2).take_apart((x(1, 2), ["a", "b"]))
    assert form.paths == ["0", "1"]
    assert columns[1] == ["a", "b"]


def test_what_the_first_batch_told_is_in_the_state():
    splitter = RowSplitter(4)
    splitter.take_apart(BATCHES["detection"](1, 2, 3, 4))
    resumed = RowSplitter(4)
    resumed.load_state_dict(splitter.state_dict())
    columns, _ = resumed.take_apart(BATCHES["detection"](6))
    assert [len(column) for column in columns] == [1, 1]


def test_objects_that_no_checkpoint_holds():
    with pytest.raises(TypeError, match="a checkpoint holds tensors and builtins, this is a Frozen"):
        packed([Frozen(x(1))])
