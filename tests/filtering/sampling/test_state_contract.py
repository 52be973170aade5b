"""One contract of state for everything that batches are drawn from.

At any place (some batches trained on, some handed out and not yet trained on), ``state_dict`` goes through a file into
a new object, which draws what an object that was never saved draws from there on, and ends in the same state.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, RandomSampler

from lightning_autoassist import ShrinkingBatchSampler, TokenBatchSampler
from lightning_autoassist.filtering.data.plain_batches import PlainBatches
from lightning_autoassist.filtering.sampling.candidates import CandidateStream
from lightning_autoassist.filtering.sampling.row_stream import RowStream
from lightning_autoassist.filtering.sampling.selection import GivenProbabilities
from lightning_autoassist.filtering.sampling.sharding import OwnedCandidates
from lightning_autoassist.trainer_support.executors import UpdateThread
from lightning_autoassist.trainer_support.rng import restore_rng_state, rng_state

NUM_INSTANCES = 60
NUM_EPOCHS = 6
LENGTHS = 1 + np.random.default_rng(0).integers(0, 20, NUM_INSTANCES)


def by_index(indices, pass_index):
    """Another chance for each instance in each pass."""
    return 0.2 + 0.8 * ((indices * 7 + pass_index * 3) % 10) / 10


def by_label(rows, pass_index):
    return np.where(rows.integers["1"] % 3 == 0, 1.0, 0.3)


class Endless:
    """A sampler without an end that draws from a generator of its own."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(5)

    def __iter__(self):
        while True:
            yield int(torch.randint(NUM_INSTANCES, (), generator=self.generator))


class Loader:
    """A loader of given batches that can be continued in the middle of a pass."""

    def __init__(self, batches):
        self.batches = batches
        self.position = self.start = 0

    def __iter__(self):
        start, self.start = self.start, 0
        for position, batch in enumerate(self.batches[start:], start + 1):
            self.position = position
            yield batch

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.start = self.position = state["position"]


def batches_of(sizes, widths):
    """Batches of (rows, labels, texts): a row holds its label, ``widths`` times."""
    labels = torch.arange(sum(sizes)).split(list(sizes))
    return [
        (part[:, None].float().repeat(1, widths[number % len(widths)]), part, [f"row {label}" for label in part])
        for number, part in enumerate(labels)
    ]


def indices(**options):
    return ShrinkingBatchSampler(
        RandomSampler(range(NUM_INSTANCES)),
        8,
        **{"keep_probability": by_index, "reweighting": "normalized", "seed": 3, **options},
    )


def one_share():
    sampler = OwnedCandidates(RandomSampler(range(NUM_INSTANCES)), NUM_INSTANCES, rank=1, world_size=2, seed=4)
    return ShrinkingBatchSampler(sampler, 8, keep_probability=by_index, reweighting="inverse_probability")


def in_pieces():
    return ShrinkingBatchSampler(Endless(), 8, keep_probability=by_index, pass_size=NUM_INSTANCES, num_batches=5)


class DrawnAhead(GivenProbabilities):
    """Batches are drawn in a thread, two before they are needed."""

    def __init__(self, *options):
        super().__init__(*options)
        self.thread = UpdateThread(draws_ahead=2)

    @property
    def jobs(self):
        return self.thread


def drawn_ahead():
    sampler = indices()
    sampler.selector = DrawnAhead(by_index, "normalized")
    return sampler


def tokens(**options):
    sampler = RandomSampler(range(NUM_INSTANCES))
    return TokenBatchSampler(
        sampler, 60, LENGTHS, keep_probability=by_index, reweighting="normalized", pool_batches=4, seed=3, **options
    )


def rows(sizes, widths=(2,), batch_size=8, **options):
    stream = RowStream(
        Loader(batches_of(sizes, widths)),
        5,
        **{
            "batch_size": batch_size,
            "num_instances": NUM_INSTANCES,
            "keep_probability": by_label,
            "features": lambda batch, num_rows: batch[0][:, :1],
            "reweighting": "normalized",
            "seed": 3,
            **options,
        },
    )
    stream._source.splitter.batch_size = None  # the loader's batches may be of another size than the model's
    return stream


def by_tokens(loader, **options):
    """Rows in batches of at most 24 tokens, with a small pool."""
    settings = {"batch_size": 8, "num_instances": NUM_INSTANCES, "pad_values": 0, "max_tokens": 24, "pool_batches": 3}
    settings |= {"keep_probability": by_label, "reweighting": "normalized", "seed": 3}
    return RowStream(loader, 5, **{**settings, **options})


def padded_rows():
    """Batches of (tokens, labels, labels) whose rows have 1 to 6 tokens, padded to the longest of their batch."""
    batches = []
    for labels in torch.arange(56).split(8):
        lengths = 1 + labels * 5 % 6 - (labels * 5 % 6 > 3).long() * (labels > 23)
        tokens = torch.where(torch.arange(int(lengths.max())) < lengths[:, None], 9, 0)
        batches.append((tokens, labels, labels.tolist()))
    return Loader(batches)


def plain():
    return PlainBatches(BatchSampler(RandomSampler(range(NUM_INSTANCES)), 8, drop_last=False))


IMPLEMENTATIONS: dict[str, Callable[[], Any]] = {
    "indices": indices,
    "indices, without weights": lambda: indices(reweighting="none", keep_probability=None),
    "indices, in small chunks": lambda: indices(chunk_size=3),
    "indices, one process's share": one_share,
    "indices, read in pieces": in_pieces,
    "indices, drawn ahead by a thread": drawn_ahead,
    "tokens": tokens,
    "tokens, in pieces": lambda: tokens(pass_size=NUM_INSTANCES),
    "rows": lambda: rows([8] * 7),
    "rows, of short batches": lambda: rows([5] * 12),
    "rows, of long batches": lambda: rows([20, 20, 11]),
    "rows, padded": lambda: rows([8] * 7, widths=(2, 3, 4), pad_values=0),
    "rows, passed on whole": lambda: rows([8] * 7, pass_whole=True),
    "rows, of kinds": lambda: rows([8] * 7, widths=(2, 3, 4)),
    "rows, of many kinds": lambda: rows([8] * 11, widths=tuple(range(2, 12))),
    "rows, of kinds, in short batches": lambda: rows([5] * 12, widths=(2, 3)),
    "rows, by tokens": lambda: by_tokens(padded_rows()),
    "rows, by tokens, measured": lambda: by_tokens(padded_rows(), lengths=lambda batch: (batch[0] > 0).sum(1)),
    "rows, by tokens, of kinds": lambda: by_tokens(Loader(batches_of([8] * 7, (2, 3, 4))), pad_values=None),
    "the user's own batches": plain,
}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Orders that are read in pieces take several for a pass."""
    monkeypatch.setattr("lightning_autoassist.filtering.sampling.order_pieces.PIECE_SIZE", 16)


@dataclass
class Seen:
    """What a draw is, in values that can be compared."""

    indices: list[int]
    weights: list[float] | None
    pass_index: int
    batch: Any

    @classmethod
    def of(cls, draw):
        batch = None if draw.rows is None else [draw.rows.batch[0].tolist(), *map(list, draw.rows.batch[1:])]
        weights = None if draw.weights is None else draw.weights.tolist()
        return cls(draw.indices.tolist(), weights, draw.pass_index, batch)


class Run:
    """Draws epoch after epoch as the Trainer does, with its random generators."""

    def __init__(self, make):
        self.source = make()
        self.num_confirmed = 0
        self._draws: Any = iter(())
        self._in_flight: deque[Any] = deque()

    @property
    def num_batches(self):
        return len(self.source.batch_sampler) if isinstance(self.source, PlainBatches) else len(self.source)

    def draw_to(self, num_confirmed, num_in_flight=0):
        """Go on until so many batches have been trained on, and as many more of the epoch are handed out."""
        seen = []
        while self.num_confirmed < num_confirmed:
            draw = self._in_flight.popleft() if self._in_flight else self._next()
            seen.append(Seen.of(draw))
            self.source.mark_consumed(draw)
            self.num_confirmed += 1
        while len(self._in_flight) < num_in_flight and (draw := next(self._draws, None)) is not None:
            self._in_flight.append(draw)
        return seen

    def _next(self):
        draw = next(self._draws, None)
        if draw is None:
            self._draws = self.source.draws(self.num_batches - self.num_confirmed % self.num_batches)
            draw = next(self._draws)
        return draw

    def save(self, file):
        torch.save({"source": self.source.state_dict(), "rng": rng_state()}, file)

    def load(self, file, num_confirmed):
        saved = torch.load(file, weights_only=True)
        self.source.load_state_dict(saved["source"])
        self.num_confirmed = num_confirmed
        restore_rng_state(saved["rng"])

    def close(self):
        if isinstance(self.source, ShrinkingBatchSampler):
            self.source.selector.jobs.wait_all()
            self.source.selector.jobs.close()


def same(one, other):
    """Whether two states are equal, in tensors and builtins."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.fixture
def reference(make):
    """Draws of a run that is never saved, and its state at the end."""
    torch.manual_seed(0)
    run = Run(make)
    seen = run.draw_to(NUM_EPOCHS * run.num_batches)
    state = run.source.state_dict()
    run.close()
    return run.num_batches, seen, state


@pytest.mark.parametrize("make", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS)
def test_a_new_object_goes_on_from_any_state(make, reference, tmp_path):
    num_batches, expected, end = reference
    assert len(expected) == NUM_EPOCHS * num_batches
    for place in (0, 1, num_batches - 1, num_batches, num_batches + 2, 3 * num_batches + 1, 5 * num_batches):
        for num_in_flight in (0, 2):
            torch.manual_seed(0)
            first, second = Run(make), Run(make)
            assert first.draw_to(place, num_in_flight) == expected[:place]
            first.save(tmp_path / "state.pt")
            first.close()
            torch.manual_seed(1)
            second.load(tmp_path / "state.pt", place)
            assert second.draw_to(len(expected)) == expected[place:], (place, num_in_flight)
            assert same(second.source.state_dict(), end), (place, num_in_flight)
            second.close()


@pytest.mark.parametrize("make", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS)
def test_a_run_that_is_interrupted_twice(make, reference, tmp_path):
    num_batches, expected, _ = reference
    torch.manual_seed(0)
    places = [num_batches + 1, num_batches + 2, 2 * num_batches + 1]
    seen, done = [], 0
    for place in places:
        run = Run(make)
        if done:
            run.load(tmp_path / "state.pt", done)
        seen += run.draw_to(place, num_in_flight=1)
        run.save(tmp_path / "state.pt")
        run.close()
        done = place
    last = Run(make)
    last.load(tmp_path / "state.pt", done)
    seen += last.draw_to(len(expected))
    last.close()
    assert seen == expected


@pytest.mark.parametrize("make", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS)
def test_saving_changes_nothing(make, reference, tmp_path):
    _, expected, end = reference
    torch.manual_seed(0)
    run, seen = Run(make), []
    for place in range(1, len(expected) + 1):
        seen += run.draw_to(place)
        run.save(tmp_path / "state.pt")
    assert seen == expected
    assert same(run.source.state_dict(), end)
    run.close()


def subclasses_of(base):
    for subclass in base.__subclasses__():
        yield subclass
        yield from subclasses_of(subclass)


def test_every_candidate_stream_is_held_to_the_contract():
    ours = {each for each in subclasses_of(CandidateStream) if each.__module__.startswith("lightning_autoassist.")}
    held = set()
    for make in IMPLEMENTATIONS.values():
        run = Run(make)
        held.add(type(run.source))
        run.close()
    assert ours <= held, f"add {ours - held} to IMPLEMENTATIONS"
