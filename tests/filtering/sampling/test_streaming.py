"""Rows of streams gathered to full batches."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from lightning_autoassist.filtering.sampling.row_stream import RowStream


class Stored:
    """A loader of given batches; remembers how often it was iterated."""

    def __init__(self, batches):
        self.batches = batches
        self.num_passes = 0

    def __iter__(self):
        self.num_passes += 1
        return iter(self.batches)


class Stateful(Stored):
    """A loader that can be continued where it was, as those of litdata and torchdata can."""

    def __init__(self, batches):
        super().__init__(batches)
        self.position = self.start = 0

    def __iter__(self):
        self.num_passes += 1
        start, self.start = self.start, 0
        for position, batch in enumerate(self.batches[start:], start + 1):
            self.position = position
            yield batch

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.start = self.position = state["position"]


def numbered(num_rows, batch_size, width=2):
    """Batches of (features, labels, names); features are the row's number, labels its remainder by 3."""
    rows = torch.arange(num_rows)
    parts = zip(rows[:, None].expand(-1, width).float().split(batch_size), rows.split(batch_size), strict=True)
    return [(x, numbers % 3, [f"row {number}" for number in numbers]) for x, numbers in parts]


def by_thirds(rows, pass_index):
    """Every third row always, the others with 0.3."""
    assert pass_index >= 1
    return np.where(rows.integers["1"] == 0, 1.0, 0.3)


def fed(stream, limit=None):
    """One epoch's draws, each confirmed as the model would."""
    for draw in stream.draws(limit):
        stream.mark_consumed(draw)
        yield draw


def numbers(draws):
    return [draw.rows.batch[0][:, 0].int().tolist() for draw in draws]


def reference(batches, num_batches, batch_size, num_instances, reweighting, seed):
    """Row by row what :class:`RowStream` does batch by batch: rows of one kind, no whole batches."""
    rng = np.random.Generator(np.random.PCG64(seed))
    pass_index, considered, waiting = 0, 0, []
    recent, drawn = [], []
    while True:
        for x, labels, _ in batches:
            keeps_all = pass_index == 0 and considered < num_instances
            recent.append([])
            for row in range(len(x)):
                prob = 1.0 if keeps_all or labels[row] == 0 else 0.3
                recent[-1].append(prob)
                if rng.random() < prob:
                    waiting.append((int(x[row, 0]), prob))
            considered += len(x)
            while sum(map(len, recent[1:])) >= num_instances:
                recent.pop(0)
            while len(waiting) >= batch_size:
                batch, waiting = waiting[:batch_size], waiting[batch_size:]
                mean = np.mean([prob for chunk in recent for prob in chunk])
                scale = {"none": 0, "inverse_probability": 1, "normalized": mean}[reweighting]
                drawn.append(([number for number, _ in batch], [scale / prob for _, prob in batch]))
                if len(drawn) == num_batches:
                    return drawn
        pass_index += 1


@pytest.mark.parametrize("reweighting", ["none", "inverse_probability", "normalized"])
@pytest.mark.parametrize(("fetched", "batch_size"), [(8, 8), (5, 8), (8, 3)])
def test_equals_a_reference_row_by_row(reweighting, fetched, batch_size):
    batches = numbered(30, fetched)
    stream = RowStream(
        Stored(batches),
        20,
        batch_size=batch_size,
        num_instances=30,
        keep_probability=by_thirds,
        reweighting=reweighting,
        seed=5,
    )
    stream._source.splitter.batch_size = fetched  # the loader's batches are of another size than the model's
    draws = [draw for _ in range(3) for draw in fed(stream)]
    expected = reference(batches, 60, batch_size, 30, reweighting, seed=5)
    assert numbers(draws) == [rows for rows, _ in expected]
    for draw, (_, row_weights) in zip(draws, expected, strict=True):
        if reweighting == "none":
            assert draw.weights is None
        else:
            np.testing.assert_allclose(draw.weights, row_weights, rtol=1e-6)


def test_rows_stay_together_and_batches_are_full():
    stream = RowStream(Stored(numbered(50, 8)), 40, batch_size=8, num_instances=50, keep_probability=by_thirds)
    for draw in fed(stream):
        x, labels, names = draw.rows.batch
        assert len(x) == 8
        assert labels.tolist() == (x[:, 1] % 3).tolist() == draw.rows.integers["1"].tolist()
        assert names == [f"row {int(number)}" for number in x[:, 0]]
    assert stream.num_kept / stream.num_considered == pytest.approx(1 / 3 + 0.3 * 2 / 3, abs=0.1)


def test_informative_rows_are_kept_more_often():
    stream = RowStream(Stored(numbered(60, 8)), 100, batch_size=8, num_instances=60, keep_probability=by_thirds)
    labels = torch.cat([draw.rows.batch[1] for draw in fed(stream)])
    counts = torch.bincount(labels).float()
    assert counts[0] > 2 * counts[1]
    assert counts[0] > 2 * counts[2]


def test_each_candidate_is_drawn_once_a_pass():
    stream = RowStream(Stored(numbered(21, 4)), 21, batch_size=4, num_instances=21)
    drawn = torch.tensor(numbers(fed(stream))).flatten()
    assert torch.bincount(drawn).tolist() == [4] * 21
    indices = RowStream(Stored(numbered(21, 4)), 21, batch_size=4, num_instances=21).draws()
    assert sorted(number for draw in indices for number in draw.indices) == list(range(84))


def test_whole_batches_are_the_loaders_own_objects():
    batches = numbered(20, 5)
    stream = RowStream(Stored(batches), 8, batch_size=5)
    for draw, batch in zip(fed(stream), batches * 2, strict=True):
        assert draw.rows.batch is batch


def test_short_batches_pass_whole_only_where_everything_does():
    batches = numbered(12, 5)
    whole = RowStream(Stored(batches), 6, batch_size=5, pass_whole=True)
    assert [draw.rows.batch for draw in fed(whole)] == batches * 2
    joined = RowStream(Stored(batches), 6, batch_size=5)
    assert [len(rows) for rows in numbers(fed(joined))] == [5] * 6


def test_features_are_gathered_with_their_rows():
    stream = RowStream(
        Stored(numbered(50, 8)),
        30,
        batch_size=8,
        keep_probability=by_thirds,
        features=lambda batch, num_rows: batch[0][:num_rows] * 2,
    )
    for draw in fed(stream):
        assert torch.equal(draw.rows.features, draw.rows.batch[0] * 2)


def test_an_endless_stream_is_filtered_after_as_many_candidates_as_an_epoch_has():
    class Endless:
        def __iter__(self):
            while True:
                yield from numbered(40, 8)

    stream = RowStream(Endless(), 10, batch_size=8, keep_probability=by_thirds)
    list(fed(stream))
    assert (stream.num_considered, stream.num_kept, stream.pass_index) == (80, 80, 0)
    list(fed(stream))
    assert stream.num_considered > 160
    assert stream.pass_index == 0


def test_a_stream_that_ends_is_begun_again():
    loader = Stored(numbered(16, 8))
    stream = RowStream(loader, 5, batch_size=8)
    assert len(list(fed(stream))) == 5
    assert loader.num_passes == 3
    assert stream.pass_index == 2


def test_widths_do_not_mix_unless_padding_is_given():
    def of_width(width):
        return {"ids": torch.full((4, width), width), "n": torch.arange(4)}

    batches = [of_width(3), of_width(5)]

    def half(rows, pass_index):
        return np.full(4, 0.5)

    stream = RowStream(Stored(batches), 50, batch_size=4, num_instances=8, keep_probability=half)
    for draw in fed(stream):
        assert (draw.rows.batch["ids"] == draw.rows.batch["ids"].shape[1]).all()
    assert {draw.rows.batch["ids"].shape[1] for draw in fed(stream)} == {3, 5}

    stream = RowStream(Stored(batches), 50, batch_size=4, num_instances=8, keep_probability=half, pad_values={"ids": 0})
    mixed = [draw.rows.batch["ids"] for draw in fed(stream)]
    assert any(len(rows[:, 0].unique()) == 2 for rows in mixed)
    for rows in mixed:
        assert rows.shape[1] == rows[:, 0].max()
        assert (rows.sum(1) == rows[:, 0] ** 2).all()


def test_rows_of_too_many_kinds_are_passed_on_whole(monkeypatch):
    monkeypatch.setattr("lightning_autoassist.filtering.sampling.row_stream.MAX_KINDS", 4)
    batches = [{"x": torch.ones(4, 2), "step": step} for step in range(100)]

    def half(rows, pass_index):
        return np.full(4, 0.5)

    stream = RowStream(Stored(batches), 20, batch_size=4, num_instances=4, keep_probability=half)
    with pytest.warns(match="4 kinds of rows wait.*Pass pad_values=.*leave such a part out") as caught:
        steps = [draw.rows.batch["step"] for draw in fed(stream)]
    assert len(caught) == 1
    assert len(steps) == 20
    assert len(stream._batcher.kinds) == 4


@pytest.mark.parametrize(
    ("batches", "message"),
    [([], "the train loader, a Stored, yields no instance"), ([(torch.ones(0, 2),)], "yields no instance")],
)
def test_a_stream_that_yields_nothing(batches, message):
    with pytest.raises(MisconfigurationException, match=message):
        list(RowStream(Stored(batches), 3, batch_size=4).draws())


def test_a_stream_that_can_be_read_once():
    once = iter(numbered(16, 8))
    message = re.escape("a list_iterator, yields nothing after 1 passes; each iter() of it must begin a new pass")
    with pytest.raises(MisconfigurationException, match=message):
        list(RowStream(once, 3, batch_size=8).draws())


def test_a_policy_that_keeps_nothing():
    def nothing(rows, pass_index):
        return np.zeros(8)

    with pytest.raises(RuntimeError, match="kept almost no candidate of the last 100 passes"):
        list(RowStream(Stored(numbered(16, 8)), 3, batch_size=8, keep_probability=nothing).draws())


def test_unknown_weights():
    with pytest.raises(ValueError, match="reweighting must be one of none, inverse_probability, normalized, got 'all'"):
        RowStream([], 3, reweighting="all")


def test_global_random_numbers_stay_untouched():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    list(fed(RowStream(Stored(numbered(50, 8)), 30, batch_size=8, keep_probability=by_thirds)))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002


# ---- state


def stream_of(loader, **options):
    return RowStream(
        loader,
        10,
        **{"batch_size": 8, "keep_probability": by_thirds, "reweighting": "normalized", "seed": 2, **options},
    )


@pytest.mark.parametrize("fetched", [8, 5, 3, 20])
@pytest.mark.parametrize("num_in_flight", [0, 1, 3])
@pytest.mark.parametrize("step", [1, 7, 10, 23])
def test_a_resumed_stream_goes_on_as_the_uninterrupted_one(step, num_in_flight, fetched, tmp_path):
    def splitting(stream):
        stream._source.splitter.batch_size = fetched
        return stream

    batches = numbered(40, fetched)
    whole = splitting(stream_of(Stateful(batches)))
    drawing = whole.draws(100)
    for _ in range(step):
        whole.mark_consumed(next(drawing))
    out = [next(drawing) for _ in range(num_in_flight)]
    torch.save(whole.state_dict(), tmp_path / "state.pt")
    expected = out + [next(drawing) for _ in range(30)]

    resumed = splitting(stream_of(Stateful(batches), seed=99))
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    again = resumed.state_dict()
    assert again["source"]["loader"] == torch.load(tmp_path / "state.pt", weights_only=True)["source"]["loader"]
    found = list(resumed.draws(30 + num_in_flight))
    assert numbers(found) == numbers(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.rows.batch[2] == other.rows.batch[2]
        assert (one.indices == other.indices).all()
        assert (one.weights == other.weights).all()


def test_the_state_of_a_stream_that_looked_ahead(tmp_path):
    """Between a resume and its first new batch, one batch is fetched that no state has considered."""
    batches = numbered(40, 8)
    whole = stream_of(Stateful(batches))
    drawing = whole.draws(100)
    for _ in range(12):
        whole.mark_consumed(next(drawing))
    next(drawing)
    resumed = stream_of(Stateful(batches))
    resumed.load_state_dict(whole.state_dict())
    next(resumed.draws(1))
    twice = stream_of(Stateful(batches))
    twice.load_state_dict(resumed.state_dict())
    list(twice.draws(1))
    assert numbers(twice.draws(20))[1:] == numbers(drawing)[:19]


def test_a_loader_without_state_begins_its_pass_anew_with_a_warning():
    whole = stream_of(Stored(numbered(40, 8)))
    drawn = [draw for _, draw in zip(range(13), fed(whole, 100))]  # noqa: B905
    assert drawn
    resumed = stream_of(Stored(numbered(40, 8)))
    state = whole.state_dict()
    with pytest.warns(match="a Stored has no state_dict.*current pass begins anew: .* instances of it come again"):
        resumed.load_state_dict(state)
    assert resumed.pass_index == whole.pass_index >= 1
    assert resumed.num_considered == whole.num_considered
    waiting = whole.waiting.tolist()
    again = next(iter(resumed.draws()))
    assert again.indices[: len(waiting)].tolist() == waiting[:8]


def test_a_state_of_another_batch_size():
    with pytest.raises(ValueError, match="the state is of batches of 8, and this stream has batches of 4"):
        stream_of([], batch_size=4).load_state_dict(stream_of([]).state_dict())


def test_objects_that_no_checkpoint_holds_are_lost_with_a_warning():
    class Own:
        pass

    batches = [(torch.ones(8, 2), torch.arange(8), [Own() for _ in range(8)]) for _ in range(4)]
    stream = stream_of(Stateful(batches))
    for _, draw in zip(range(12), stream.draws(100)):  # noqa: B905
        stream.mark_consumed(draw)
    with pytest.warns(match="a resumed run loses them: .* this is a Own"):
        state = stream.state_dict()
    stream.state_dict()  # it is said once
    resumed = stream_of(Stateful(batches))
    resumed.load_state_dict(state)
    assert len(list(fed(resumed))) == 10


def test_closed_a_stream_goes_on_where_it_was():
    batches = numbered(40, 8)
    expected = numbers(fed(stream_of(Stateful(batches)), 20))
    stream = stream_of(Stateful(batches))
    first = numbers(fed(stream, 7))
    stream.close()
    assert first + numbers(fed(stream, 13)) == expected


def test_another_loader_begins_a_new_pass():
    stream = RowStream(Stored(numbered(16, 8)), 3, batch_size=8)
    next(fed(stream))
    other = Stored([(x + 100, labels, names) for x, labels, names in numbered(16, 8)])
    stream.read_from(other)
    stream.read_from(other)
    assert numbers(fed(stream, 2)) == [list(range(100, 108)), list(range(108, 116))]
    assert stream.pass_index == 1
