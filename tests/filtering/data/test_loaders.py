"""Loaders and samplers that plain Lightning trains on: filtered, or passed on unfiltered with one warning."""

from __future__ import annotations

import random
import warnings
from itertools import count

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import HalfPrecision, Precision
from pytorch_lightning.utilities import CombinedLoader
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
)

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule, diagnose
from lightning_autoassist.filtering.sampling.index_batches import ShrinkingBatchSampler
from lightning_autoassist.filtering.sampling.indexed_data import CandidatePasses, UnfilterableError, indexed_data
from lightning_autoassist.filtering.sampling.order_pieces import OrderInPieces
from lightning_autoassist.filtering.sampling.sharding import OwnedCandidates
from lightning_autoassist.filtering.sampling.token_batches import TokenBatchSampler
from tests.helpers.ordinary import Classifier, CountingDataset, index_of, trainer

pytestmark = pytest.mark.filterwarnings(
    "ignore:this run trains on", "ignore:max_steps=", "ignore:You defined a `validation_step` but have no"
)


class Remembering(Classifier):
    """Notes the instances of each step, and that they are those that were drawn."""

    def __init__(self, **options):
        super().__init__(**options)
        self.steps = []

    def training_step(self, batch, batch_idx):
        indices = index_of(batch[0])
        self.steps.append(indices.tolist())
        drawn = getattr(self.trainer.datamodule, "current_draw", None)
        if drawn is not None:
            assert (drawn.indices % NUM_ROWS).tolist() == indices.tolist()
        return super().training_step(batch, batch_idx)


NUM_ROWS = 1000


class Rows(Dataset):
    """Instances of :class:`CountingDataset`, by position; of any length it likes to tell, or none."""

    def __init__(self, length=None):
        self.rows = CountingDataset(NUM_ROWS)
        self.length = length

    def __getitem__(self, index):
        return self.rows.features[index], self.rows.labels[index]

    def __len__(self):
        if self.length is None:
            raise TypeError("no length")
        return self.length


class Order(Sampler):
    """Indices from a function, in a new order each time; of a length, or none."""

    def __init__(self, indices, length=None):
        self.indices, self.length = indices, length

    def __iter__(self):
        return iter(self.indices())

    def __len__(self):
        if self.length is None:
            raise TypeError("no length")
        return self.length


def shuffled(low, high):
    return lambda: (low + torch.randperm(high - low)).tolist()


def fit(loader, *callbacks, module=None, policy="autoassist", data_options=None, update="sync", **options):
    pl.seed_everything(0, verbose=False)
    module = Remembering() if module is None else module() if isinstance(module, type) else module
    callback = AutoAssistCallback(policy=policy, update=update)
    data = AutoAssistDataModule(loader() if callable(loader) else loader, **(data_options or {}))
    run = trainer(**{"max_epochs": 5, "callbacks": [callback, *callbacks], **options})
    run.fit(module, datamodule=data)
    return run, module, data, callback


# ---- batches find their draws


class Rebuilds(Precision):
    """A precision plug-in that takes batches apart by hand, as a list of two."""

    def convert_input(self, data):
        features, labels = data
        assert isinstance(data, list)
        return [features.double().float(), labels.clone()]


class Copies(Precision):
    """A precision plug-in that hands on a copy of what it gets."""

    def convert_input(self, data):
        return [part.clone() for part in data]


@pytest.mark.parametrize(
    "precision",
    ["bf16-true", "16-true", "64-true", "bf16-mixed", Rebuilds, Copies, lambda: HalfPrecision("bf16-true")],
    ids=lambda precision: getattr(precision, "__name__", precision),
)
@pytest.mark.parametrize("policy", ["proportional", "autoassist"])
def test_whatever_a_precision_plugin_does_to_a_batch(precision, policy):
    options = {"precision": precision} if isinstance(precision, str) else {"plugins": [precision()]}
    run, module, _, callback = fit(
        DataLoader(Rows(200), batch_size=10, shuffle=True), policy=policy, **options, module=Learner(), max_epochs=8
    )
    assert len(module.steps) == 8 * 12
    assert callback.summary()["keep_rate"] < 1
    assert "convert_input" not in run.precision_plugin.__dict__


class Learner(Remembering):
    def training_step(self, batch, batch_idx):
        assert isinstance(batch, list)
        assert batch[0].dtype == next(self.parameters()).dtype
        return super().training_step(batch, batch_idx)


class Stream(IterableDataset):
    def __iter__(self):
        return iter([Rows(200)[index] for index in torch.randperm(200).tolist()])


def test_a_stream_with_a_true_precision():
    _, module, _, callback = fit(
        DataLoader(Stream(), batch_size=10),
        module=Classifier(),
        precision="bf16-true",
        data_options={"steps_per_epoch": 20},
    )
    assert callback.summary()["keep_rate"] < 1
    assert next(module.parameters()).dtype == torch.bfloat16


# ---- indices


class Growing(Rows):
    """Has more instances after some loads."""

    def __init__(self, length, grown, after):
        super().__init__(length)
        self.grown, self.after, self.loads = grown, after, 0

    def __getitem__(self, index):
        self.loads += 1
        if self.loads == self.after:
            self.length = self.grown
        return super().__getitem__(index)


ODD_INDICES = {
    "grows": lambda: DataLoader(Growing(200, 260, 150), 10, shuffle=True),
    "grows a lot": lambda: DataLoader(Growing(100, 900, 250), 10, shuffle=True),
    "shrinks": lambda: DataLoader(Growing(200, 150, 250), 10, shuffle=True),
    "says too little": lambda: DataLoader(Rows(50), 10, sampler=Order(shuffled(0, 200), 200)),
    "says next to nothing": lambda: DataLoader(Rows(1), 10, sampler=Order(shuffled(0, 200), 200)),
    "negative": lambda: DataLoader(Rows(NUM_ROWS), 10, sampler=Order(shuffled(-200, 0), 200)),
    "both signs": lambda: DataLoader(Rows(NUM_ROWS), 10, sampler=Order(shuffled(-100, 100), 200)),
    "of numpy": lambda: DataLoader(Rows(200), 10, sampler=Order(lambda: np.random.permutation(200), 200)),  # noqa: NPY002
    "tensors": lambda: DataLoader(Rows(200), 10, sampler=Order(lambda: torch.randperm(200), 200)),
    "no length": lambda: DataLoader(Rows(None), 10, sampler=Order(shuffled(0, 200), 200)),
    "no length, far apart": lambda: DataLoader(Rows(None), 10, sampler=Order(shuffled(700, 900), 200)),
    "a subset": lambda: DataLoader(Rows(None), 10, sampler=SubsetRandomSampler(range(100, 300))),
}
POLICIES = ["proportional", "autoassist", "infobatch", "selective_backprop", "class_quota"]


@pytest.mark.parametrize("make_loader", ODD_INDICES.values(), ids=ODD_INDICES)
@pytest.mark.parametrize(
    ("policy", "update"), [("proportional", "sync"), ("autoassist", "sync"), ("autoassist", "async")]
)
def test_indices_of_any_kind_are_filtered(make_loader, policy, update):
    loader = make_loader()
    run, module, _, callback = fit(loader, policy=policy, update=update, max_epochs=8)
    expected = -(-6 * length_at_first(loader) // 100)
    assert run.num_training_batches == expected
    assert len(module.steps) == 8 * expected
    assert callback.summary()["keep_rate"] < 1
    store = callback.instances
    seen = {index % NUM_ROWS for step in module.steps for index in step}
    places = [
        store.num_instances + index - NUM_ROWS if index >= 800 and store.num_instances == NUM_ROWS else index
        for index in seen
    ]
    assert set(store.seen.nonzero().flatten().tolist()) == set(places)


def length_at_first(loader):
    """Of a sampler whose data set may have grown since."""
    return {260: 200, 900: 100, 150: 200}.get(getattr(loader.dataset, "grown", 0), len(loader.sampler))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("assistant", ["logistic", "mlp", "hybrid", "memory"])
def test_no_assistant_and_no_policy_stumbles_over_a_growing_data_set(assistant, policy):
    callback = AutoAssistCallback(assistant, policy=policy)
    run = trainer(max_epochs=4, callbacks=[callback])
    run.fit(Classifier(), datamodule=AutoAssistDataModule(ODD_INDICES["grows"]()))
    assert run.global_step == 4 * 12
    assert callback._learner.reason is None


def test_an_index_beyond_all_reason_ends_filtering_with_one_warning():
    class Anywhere(Rows):
        def __getitem__(self, index):
            return super().__getitem__(index % NUM_ROWS)

    far = Order(lambda: [5 * 10**12 + index for index in torch.randperm(200).tolist()], 200)
    with pytest.warns(UserWarning, match="stopped filtering.*the sampler gave the index 5000000000") as caught:
        run, *_ = fit(DataLoader(Anywhere(200), 10, sampler=far), module=Classifier())
    assert run.global_step == 5 * 12
    assert sum("stopped filtering" in str(warning.message) for warning in caught) == 1


def test_features_in_a_file_cannot_grow():
    callback = AutoAssistCallback(policy="autoassist", feature_memory=0)
    run = trainer(max_epochs=4, callbacks=[callback])
    with pytest.warns(UserWarning, match="stopped filtering.*the data set has grown.*raise feature_memory="):
        run.fit(Classifier(), datamodule=AutoAssistDataModule(ODD_INDICES["grows"]()))
    assert run.global_step == 4 * 12


def test_processes_share_out_indices_of_any_kind():
    indices = [*range(-5, 0), *range(3), *range(8, 30)]
    shares = [list(OwnedCandidates(indices, 8, rank, world_size=2, seed=0)) for rank in (0, 1)]
    assert sorted(shares[0] + shares[1]) == sorted(indices)
    wholes = [OwnedCandidates(indices, 8, rank, world_size=2, seed=0).order().tolist() for rank in (0, 1)]
    assert wholes == shares
    assert (-1 in shares[0]) == (7 in list(OwnedCandidates([7], 8, 0, world_size=2, seed=0)))


def test_instances_without_a_length_in_tokens_are_left_out_with_a_warning():
    stream = TokenBatchSampler(range(120), 20, [2, 5] * 50, budget=1.0)
    with pytest.warns(UserWarning, match="the sampler gave the index 100, and lengths are known of 100 instances only"):
        batches = list(stream) + list(stream)
    assert max(max(batch) for batch in batches) == 99


# ---- samplers that are long, endless or of no length


class Uncountable(Sampler):
    """Never ends; draws each index as it is asked for, and counts how often it was."""

    def __init__(self, length, draw):
        self.length, self.draw, self.num_drawn = length, draw, 0

    def __iter__(self):
        while True:
            self.num_drawn += 1
            yield self.draw()

    def __len__(self):
        return self.length


@pytest.mark.parametrize("length", [10**6, 10**9, 10**12])
@pytest.mark.parametrize("update", ["sync", "async"])
def test_a_sampler_that_never_ends_is_read_as_far_as_it_is_needed(length, update):
    sampler = Uncountable(length, lambda: int(torch.randint(200, ())))
    loader = DataLoader(Rows(200), batch_size=10, sampler=sampler)
    run, module, data, callback = fit(loader, update=update, max_epochs=-1, max_steps=80)
    assert len(module.steps) == 80
    assert run.num_training_batches == -(-6 * length // 100)
    assert callback.summary()["keep_rate"] < 1
    stream = data.candidate_stream
    assert stream.pass_index == (stream.num_considered - 1) // 200
    assert sampler.num_drawn <= stream.num_considered + 200


def test_a_billion_draws_with_replacement():
    loader = DataLoader(
        Rows(200), batch_size=10, sampler=RandomSampler(range(200), replacement=True, num_samples=10**9)
    )
    _, module, _, callback = fit(loader, max_epochs=-1, max_steps=80)
    assert len(module.steps) == 80
    assert callback.summary()["keep_rate"] < 1


def test_a_sampler_without_a_length_is_filtered_where_the_steps_are_given():
    loader = DataLoader(Rows(200), batch_size=10, sampler=Order(shuffled(0, 200)))
    run, module, _, callback = fit(loader, data_options={"steps_per_epoch": 12})
    assert len(module.steps) == 5 * 12
    assert run.num_training_batches == 12
    assert sorted(index for step in module.steps[:20] for index in step) == list(range(200))  # the first pass
    assert callback.summary()["keep_rate"] < 1
    assert callback.summary()["saved_ratio"] == pytest.approx(0.4)


def test_an_iteration_that_is_shorter_than_n_is_a_pass():
    order = ShrinkingBatchSampler(Order(lambda: range(7)), 5, pass_size=100, num_batches=4)
    assert list(order) == [[0, 1, 2, 3, 4], [5, 6, 0, 1, 2], [3, 4, 5, 6, 0], [1, 2, 3, 4, 5]]
    assert order.pass_index == 2


RESUMABLE = {
    "own generator": lambda: RandomSampler(
        range(200), replacement=True, num_samples=10**9, generator=torch.Generator().manual_seed(5)
    ),
    "seeded from the global one": lambda: RandomSampler(range(200), replacement=True, num_samples=10**9),
    "the global one, at each index": lambda: Uncountable(10**9, lambda: int(torch.randint(200, ()))),
    "python's": lambda: Uncountable(10**9, lambda: random.randrange(200)),
    "no length": lambda: Order(shuffled(0, 200)),
    "its place": lambda: Order(lambda: (7 * index % 200 for index in count()), 10**9),
}


@pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("make_sampler", RESUMABLE.values(), ids=RESUMABLE)
@pytest.mark.parametrize("update", ["sync", "async"])
def test_a_run_on_a_long_sampler_resumes_exactly(make_sampler, update, tmp_path):
    def run(folder, seed, **options):
        pl.seed_everything(seed, verbose=False)
        saving = pl.callbacks.ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
        sampler, module = make_sampler(), Remembering()
        steps = {"steps_per_epoch": 12} if getattr(sampler, "length", 1) is None else {}
        data = AutoAssistDataModule(DataLoader(Rows(200), 10, sampler=sampler), seed=3, **steps)
        callback = AutoAssistCallback(policy="autoassist", update=update)
        fitting = trainer(max_steps=90, max_epochs=-1, callbacks=[callback, saving], enable_checkpointing=True)
        fitting.fit(module, datamodule=data, **options)
        return module

    whole = run(tmp_path / "whole", 0)
    for step in (1, 33, 61):
        resumed = run(tmp_path / f"from {step}", 9, ckpt_path=tmp_path / "whole" / f"step={step}.ckpt")
        assert resumed.steps == whole.steps[step:]
        assert all(torch.equal(*pair) for pair in zip(resumed.parameters(), whole.parameters(), strict=True))


def test_too_long_a_replay_is_said(monkeypatch):
    monkeypatch.setattr("lightning_autoassist.filtering.sampling.order_pieces.MAX_READ_AGAIN", 10)
    order = OrderInPieces(range(100))
    order.read(20)
    resumed = OrderInPieces(range(100))
    resumed.load_state_dict(order.state_dict())
    with pytest.warns(UserWarning, match="had read 20 indices of range.*not the interrupted run's exact continuation"):
        assert resumed.read(2).tolist() == [0, 1]


# ---- what is passed on unfiltered


class Multiscale(Rows):
    def __getitem__(self, key):
        return super().__getitem__(key[0] if isinstance(key, tuple) else int(float(str(key).removeprefix("id"))))


class Repeats:
    def __init__(self, batches):
        self.sampler = batches

    def __iter__(self):
        while True:
            yield from self.sampler


class Reused(DataLoader):
    """Keeps its workers over epochs by one iteration that never ends, as timm's and ultralytics' loaders do."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        object.__setattr__(self, "batch_sampler", Repeats(self.batch_sampler))
        self.iteration = super().__iter__()

    def __len__(self):
        return len(self.batch_sampler.sampler)

    def __iter__(self):
        for _ in range(len(self)):
            yield next(self.iteration)


class Early(DataLoader):
    """The same over an ordinary batch sampler."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.iteration = super().__iter__()

    def __iter__(self):
        yield from self.iteration
        self.iteration = super().__iter__()


class OddBatches(BatchSampler):
    pass


class Whole(Rows):
    """A data set of whole batches."""

    def __getitem__(self, index):
        return [self.rows.features[10 * index : 10 * index + 10], self.rows.labels[10 * index : 10 * index + 10]]


def rows(**options):
    return DataLoader(Rows(200), **{"batch_size": 10, "shuffle": True, **options})


def multiscale(keys, **options):
    return DataLoader(Multiscale(200), batch_size=10, sampler=Order(lambda: keys, len(keys)), **options)


PASSED_ON = {
    "tuples": (lambda: multiscale([(index, 224) for index in range(200)]), r"keys of type tuple \(\(0, 224\)\)"),
    "strings": (lambda: multiscale([f"id{index}" for index in range(200)]), "keys of type str"),
    "a subset of strings": (
        lambda: DataLoader(Multiscale(200), 10, sampler=SubsetRandomSampler([f"id{index}" for index in range(200)])),
        "keys of type str",
    ),
    "reals": (lambda: multiscale([index + 0.5 for index in range(200)]), "keys of type float"),
    "huge": (lambda: DataLoader(Modulo(200), 10, sampler=Order(lambda: [2**70] * 200, 200)), "keys of type int"),
    "no length": (lambda: rows(shuffle=None, sampler=Order(shuffled(0, 200))), "no length, .*steps_per_epoch=..."),
    "reused": (lambda: Reused(Rows(200), 10, shuffle=True), "Reused takes its batches from an iteration"),
    "early": (lambda: Early(Rows(200), 10, shuffle=True), "Early takes its batches from an iteration"),
    "its own length": (lambda: Shortened(Rows(200), 5, shuffle=True), "Shortened has 20 batches by its own __len__"),
    "own batches": (
        lambda: DataLoader(Rows(200), batch_sampler=OddBatches(SequentialSampler(range(200)), 10, False)),
        "OddBatches decides which instances share a batch.*max_tokens=.*flatten=True",
    ),
    "list of batches": (
        lambda: DataLoader(Rows(200), batch_sampler=torch.arange(200).view(20, 10).tolist()),
        "list decides which instances share a batch",
    ),
    "whole batches": (lambda: DataLoader(Whole(20), batch_size=None, shuffle=True), "batch_size=None"),
    "neither has a length": (
        lambda: DataLoader(Rows(None), 10, sampler=Order(shuffled(0, 200))),
        "neither the data set .Rows. nor the sampler .Order. has a length",
    ),
    "the only batch is short": (lambda: DataLoader(Rows(7), 10), "7 instances a pass, fewer than one batch of 10"),
}


class Modulo(Rows):
    def __getitem__(self, index):
        return super().__getitem__(index % 200)


class Shortened(DataLoader):
    def __len__(self):
        return 20


@pytest.mark.parametrize(("make_loader", "message"), PASSED_ON.values(), ids=PASSED_ON)
def test_a_loader_that_cannot_be_filtered_is_trained_on_as_it_is(make_loader, message):
    pl.seed_everything(0, verbose=False)
    plain = Remembering()
    trainer(max_epochs=2).fit(plain, make_loader())
    with pytest.warns(UserWarning, match=f"(?i)unfiltered.*budget=0.6 saves nothing.*{message}") as caught:
        _, module, data, callback = fit(make_loader, max_epochs=2)
    assert sum("unfiltered" in str(warning.message) for warning in caught) == 1
    assert module.steps == plain.steps
    assert all(torch.equal(*pair) for pair in zip(module.parameters(), plain.parameters(), strict=True))
    assert data.candidate_stream is None
    summary = callback.summary()
    assert summary["saved_ratio"] == 0
    assert summary["keep_rate"] == 1
    assert summary["instances_seen"] == sum(map(len, plain.steps))


class Several(pl.LightningDataModule):
    def __init__(self, loaders):
        super().__init__()
        self.loaders = loaders

    def train_dataloader(self):
        return self.loaders


class TakesSeveral(Classifier):
    def training_step(self, batch, batch_idx):
        batches = list(batch.values()) if isinstance(batch, dict) else batch
        return sum(super(TakesSeveral, self).training_step(one, batch_idx) for one in batches)


@pytest.mark.parametrize(
    "loaders",
    [
        lambda: [rows(), rows(batch_size=20)],
        lambda: {"a": rows(), "b": rows(batch_size=20)},
        lambda: CombinedLoader([rows(), rows(batch_size=20)], "min_size"),
        lambda: (rows(), rows()),
    ],
    ids=["list", "dict", "combined", "tuple"],
)
def test_several_train_loaders_are_trained_on_as_they_are(loaders):
    pl.seed_everything(0, verbose=False)
    plain, plain_run = TakesSeveral(), trainer(max_epochs=2)
    plain_run.fit(plain, datamodule=Several(loaders()))
    with pytest.warns(UserWarning, match="unfiltered.*needs one torch DataLoader to train on, got a") as caught:
        run, module, *_ = fit(Several(loaders()), module=TakesSeveral, max_epochs=2)
    assert sum("unfiltered" in str(warning.message) for warning in caught) == 1
    assert run.global_step == plain_run.global_step
    assert all(torch.equal(*pair) for pair in zip(module.parameters(), plain.parameters(), strict=True))


def test_diagnose_says_that_a_loader_is_passed_on():
    loader = DataLoader(Rows(200), batch_sampler=OddBatches(SequentialSampler(range(200)), 10, False))
    diagnosis = diagnose(Classifier(), loader, quiet=True)
    assert "OddBatches decides which instances share a batch" in str(diagnosis)
    assert "OFF" in str(diagnosis)


def test_it_is_said_once_however_often_the_loader_is_made():
    class Again(Several):
        def train_dataloader(self):
            return [rows(), rows()]

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(Again(None), module=TakesSeveral(), max_epochs=3, reload_dataloaders_every_n_epochs=1)
    assert sum("unfiltered" in str(warning.message) for warning in caught) == 1


def test_a_data_set_too_large_to_remember():
    with pytest.raises(UnfilterableError, match="1,000,000,000 instances, of which more than 100,000,000 are not rem"):
        indexed_data(DataLoader(Rows(10**9), 10), by_tokens=False, flatten=False)
    with pytest.warns(UserWarning, match="unfiltered.*as an IterableDataset it is filtered"):
        run, *_ = fit(DataLoader(Modulo(10**12), 10), max_epochs=-1, max_steps=5)
    assert run.global_step == 5


def test_a_batch_that_nobody_asked_for_is_trained_on_unfiltered():
    class Doubled(DataLoader):
        def __iter__(self):
            for batch in super().__iter__():
                yield batch
                yield batch

    loader = Doubled(Rows(200), 10, shuffle=True)
    with pytest.warns(UserWarning, match="gives batches that it was not asked for") as caught:
        run, *_ = fit(loader, module=Classifier(), policy="proportional")
    assert sum("was not asked for" in str(warning.message) for warning in caught) == 1
    assert run.global_step == 5 * 12


def test_looking_at_the_first_key_leaves_no_trace():
    class Own(Sampler):
        def __init__(self):
            self.epoch, self.items = 0, list(range(50))
            self.torchs, self.numpys = torch.Generator().manual_seed(1), np.random.default_rng(1)
            self.old, self.pythons = np.random.RandomState(1), random.Random(1)

        def __iter__(self):
            self.epoch += 1
            random.shuffle(self.items)
            draws = (
                self.pythons.random(),
                self.numpys.random(),
                self.old.rand(),
                torch.rand((), generator=self.torchs),
            )
            yield from self.items[: 40 + int(sum(draws))]

        def __len__(self):
            return 40

    pl.seed_everything(0, verbose=False)
    expected, sampler = list(Own()), Own()
    pl.seed_everything(0, verbose=False)
    indexed_data(DataLoader(Rows(50), 10, sampler=sampler), by_tokens=False, flatten=False)
    assert sampler.epoch == 0
    assert list(sampler) == expected


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("shuffle", [False, True])
def test_torchdatas_stateful_loader_is_filtered(num_workers, shuffle):
    stateful = pytest.importorskip("torchdata.stateful_dataloader")
    warnings.filterwarnings("ignore", "'set_vital' is deprecated")  # torchdata's own
    loader = stateful.StatefulDataLoader(Rows(200), 10, shuffle=shuffle, num_workers=num_workers)
    _, module, _, callback = fit(loader)
    assert len(module.steps) == 5 * 12
    assert callback.summary()["keep_rate"] < 1
    assert sorted(index for step in module.steps[:20] for index in step) == list(range(200))


# ---- what the train loader answers


def test_the_train_loader_answers_what_the_users_does():
    class Named(DataLoader):
        def __init__(self, *args, flavour, **options):
            super().__init__(*args, **options)
            self.flavour = flavour

    def first(worker):
        pass

    options = {
        "batch_size": 10,
        "sampler": RandomSampler(range(200)),
        "collate_fn": torch.utils.data.default_collate,
        "drop_last": True,
        "num_workers": 1,
        "generator": torch.Generator(),
        "worker_init_fn": first,
        "prefetch_factor": 3,
        "persistent_workers": True,
        "timeout": 60,
        "multiprocessing_context": "fork",
    }
    loader, asked = Named(Rows(200), flavour="mine", **options), {}
    names = [*options, "batch_sampler", "dataset", "pin_memory", "flavour"]

    class Asks(Classifier):
        def on_train_start(self):
            own = self.trainer.train_dataloader
            asked.update({name: getattr(own, name) for name in names})
            asked["len"] = len(own)
            assert not hasattr(own, "state_dict")
            assert not hasattr(own, "nothing")

    fit(loader, module=Asks(), max_epochs=1)
    assert asked.pop("len") == 12
    assert asked.pop("multiprocessing_context").get_start_method() == "fork"
    for name, value in asked.items():
        assert value is getattr(loader, name), name


def test_what_is_set_on_the_train_loader_is_set_on_the_users():
    def doubled(instances):
        features, labels = torch.utils.data.default_collate(instances)
        return [features * 2, labels]

    class Sets(Classifier):
        largest = 0.0

        def on_train_epoch_start(self):
            if self.current_epoch == 1:
                self.trainer.train_dataloader.collate_fn = doubled
                self.trainer.train_dataloader.note = "mine"

        def training_step(self, batch, batch_idx):
            self.largest = max(self.largest, float(batch[0][:, 0].max()))
            return super().training_step(batch, batch_idx)

    loader = rows()
    run, module, *_ = fit(loader, module=Sets(), max_epochs=3)
    assert loader.collate_fn is doubled
    assert run.train_dataloader.note == "mine"
    assert module.largest > 1.5 * 199 / 1024


def test_overfitting_with_a_shuffled_loader():
    with pytest.warns(UserWarning, match="overfit_batches: the train loader is not shuffled"):
        _, module, *_ = fit(rows(), overfit_batches=3)
    assert module.steps == [list(range(start, start + 10)) for start in (0, 10, 20)] * 5


def test_a_streams_loader_answers_too():
    class Asks(Classifier):
        def on_train_start(self):
            self.answers = self.trainer.train_dataloader.batch_size, self.trainer.train_dataloader.dataset

    loader = DataLoader(Stream(), batch_size=10)
    _, module, *_ = fit(loader, module=Asks(), data_options={"steps_per_epoch": 5}, max_epochs=1)
    assert module.answers == (10, loader.dataset)


# ---- outside of a fit


@pytest.mark.parametrize(
    "loader", [rows(), rows(drop_last=True, batch_size=16), multiscale([(i, 3) for i in range(50)])]
)
def test_outside_of_a_fit_the_loader_is_the_users(loader):
    data = AutoAssistDataModule(loader, budget=0.5)
    assert data.train_dataloader() is loader
    assert len(list(data.train_dataloader())) == len(loader)


def test_after_a_fit_and_in_a_test_the_loader_is_the_users():
    class Asks(Remembering):
        def test_step(self, batch, batch_idx):
            self.length = len(self.trainer.datamodule.train_dataloader())

    loader = rows()
    run, module, data, _ = fit(loader, module=Asks(), max_epochs=1)
    assert run.num_training_batches == 12
    assert data.train_dataloader() is loader
    data = AutoAssistDataModule(loader, test_dataloaders=rows(shuffle=False))
    trainer(callbacks=[AutoAssistCallback()]).test(module, datamodule=data, verbose=False)
    assert module.length == 20


def test_the_length_of_candidates_stays():
    class Longer(list):
        pass

    given = Longer(range(10))
    passes = CandidatePasses(given, 10)
    given.extend(range(10, 30))
    assert len(passes) == 10
    assert passes.order().tolist() == list(range(10))


def test_a_tensor_data_set_in_memory_is_filtered_as_ever():
    data = CountingDataset(100)
    _, module, *_ = fit(DataLoader(TensorDataset(data.features, data.labels), 10, shuffle=True), policy="proportional")
    assert len(module.steps) == 5 * 6
