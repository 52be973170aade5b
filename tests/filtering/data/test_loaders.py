"""Loaders and samplers that plain Lightning trains on are filtered."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pytorch_lightning.plugins import HalfPrecision, Precision
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
)

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule
from lightning_autoassist.filtering.sampling.indexed_data import CandidatePasses
from lightning_autoassist.filtering.sampling.sharding import OwnedCandidates
from lightning_autoassist.filtering.sampling.token_batches import TokenBatchSampler
from tests.helpers.loaders import NUM_ROWS, Order, Remembering, Rows, fit, multiscale, rows, shuffled
from tests.helpers.ordinary import Classifier, CountingDataset, trainer

pytestmark = pytest.mark.filterwarnings(
    "ignore:this run trains on", "ignore:max_steps=", "ignore:You defined a `validation_step` but have no"
)


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
    callback = AutoAssistCallback(assistant=assistant, policy=policy)
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
    with pytest.warns(UserWarning, match="with overfit_batches the train loader is not shuffled"):
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
