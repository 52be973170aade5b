"""Runs on streams, with a real Trainer."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule, AutoAssistPolicy, LogisticAssistant, Policy
from lightning_autoassist.filtering.data.stream_loader import prepare_stream
from lightning_autoassist.filtering.sampling.indexed_data import UnfilterableError
from tests.helpers.ordinary import Classifier, ClustersData, CountingDataset, index_of, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:this run trains on"),
]


class Stream(IterableDataset):
    """Instances of :class:`CountingDataset`, each worker its share; with a length only where it is asked for."""

    def __init__(self, num_instances=100, collate=None):
        self.data = CountingDataset(num_instances)

    def __iter__(self):
        worker = get_worker_info()
        start, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for index in range(start, len(self.data), step):
            yield self.data[index]


class SizedStream(Stream):
    def __len__(self):
        return len(self.data)


class StatefulLoader(DataLoader):
    """A DataLoader that can be continued in the middle of a pass, by skipping what was taken."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.taken = self.skipped = 0

    def __iter__(self):
        skipped, self.skipped = self.skipped, 0
        self.taken = 0
        for batch in super().__iter__():
            self.taken += 1
            if self.taken > skipped:
                yield batch

    def state_dict(self):
        return {"taken": self.taken}

    def load_state_dict(self, state):
        self.skipped = state["taken"]


class Remembering(Classifier):
    """Remembers which instances each training step got."""

    def __init__(self, **options):
        super().__init__(**options)
        self.steps = []

    def training_step(self, batch, batch_idx):
        self.steps.append(index_of(batch[0]).tolist())
        return super().training_step(batch, batch_idx)


class EveryThird(Policy):
    """Keeps by label: class 0 always, the others with 0.2."""

    def keep_probability(self, scores):
        return torch.where(scores == 0, 1.0, 0.2)


class Labels(LogisticAssistant):
    """Predicts the label."""

    def predict(self, instances):
        return instances.labels.float()


def fit(data, module=None, *callbacks, epochs=4, seed=0, ckpt_path=None, callback=None, run_options=None, **options):
    pl.seed_everything(seed, verbose=False)
    module = module or Remembering()
    callback = callback or AutoAssistCallback()
    if not isinstance(data, AutoAssistDataModule):
        data = AutoAssistDataModule(data, seed=3, **options)
    run = trainer(max_epochs=epochs, callbacks=[callback, *callbacks], **(run_options or {}))
    run.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return run, module, data, callback


# ---- what a run on a stream is


@pytest.mark.parametrize(
    "options",
    [{}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}, {"drop_last": True}],
    ids=str,
)
def test_every_epoch_has_k_full_batches(options):
    loader = DataLoader(SizedStream(100), batch_size=8, **options)
    run, module, data, callback = fit(loader, budget=0.6)
    num_batches = 7 if options.get("drop_last") else 8  # ceil or floor of 0.6 * 100 / 8
    assert run.global_step == 4 * num_batches
    assert [len(step) for step in module.steps] == [8] * 4 * num_batches
    stream = data.candidate_stream
    assert stream.num_kept < stream.num_considered
    assert callback.summary()["instances_seen"] == 32 * num_batches
    assert callback.summary()["candidates_seen"] == stream.num_considered
    # The first pass keeps everything: in it every instance comes once. A loader's last batch may be dropped.
    first = [index for step in module.steps[: 96 // 8] for index in step]
    assert len(set(first)) == 96


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_length_of_an_epoch_can_be_given(num_workers):
    loader = DataLoader(Stream(100), batch_size=8, num_workers=num_workers)
    run, module, data, _ = fit(loader, steps_per_epoch=5)
    assert len(run.train_dataloader) == run.num_training_batches == 5
    assert len(module.steps) == 20
    assert data.candidate_stream.num_kept < data.candidate_stream.num_considered


def test_dropped_rows_reach_no_training_step():
    callback = AutoAssistCallback(assistant=Labels(), policy=EveryThird(), reweighting="none")
    _, module, data, _ = fit(DataLoader(SizedStream(90), batch_size=9), callback=callback, budget=1.0, epochs=6)
    assert callback._learner._streamed.label_column.paths == ["1"]
    later = torch.tensor([index for step in module.steps[10:] for index in step])
    counts = torch.bincount(later % 3, minlength=3)
    assert counts[0] > 2 * counts[1]
    assert counts[0] > 2 * counts[2]
    stream = data.candidate_stream
    drawn = sum(map(len, module.steps))
    assert drawn == 10 * 9 * 6
    assert stream.num_considered > 1.5 * drawn


class Endless(Stream):
    def __iter__(self):
        while True:
            yield from super().__iter__()


def test_an_endless_stream():
    _, module, data, _ = fit(DataLoader(Endless(100), batch_size=8), steps_per_epoch=20)
    assert len(module.steps) == 80
    assert data.candidate_stream.pass_index == 0
    assert data.candidate_stream.num_kept < data.candidate_stream.num_considered


class PlainBatches:
    """Any iterable of batches will do."""

    def __init__(self, num_instances=100, batch_size=8):
        data = CountingDataset(num_instances)
        self.batches = list(zip(data.features.split(batch_size), data.labels.split(batch_size), strict=True))

    def __iter__(self):
        return iter(self.batches)

    def __len__(self):
        return len(self.batches)


def test_any_iterable_of_batches():
    run, module, _, _ = fit(PlainBatches(100, 8), budget=0.6)
    assert run.global_step == 4 * 8  # 0.6 * 13
    assert {len(step) for step in module.steps} == {8}


def test_a_data_modules_stream_is_validated_every_epoch():
    validated = []

    class Streaming(ClustersData):
        def train_dataloader(self):
            return DataLoader(SizedStream(100), batch_size=8, num_workers=2)

    class Validated(Remembering):
        def on_validation_epoch_end(self):
            validated.append(len(self.steps))

    run, _, _, _ = fit(Streaming(), Validated(), budget=0.5)
    assert validated == [7, 14, 21, 28]
    assert run.callback_metrics["val_loss"] > 0


def test_the_progress_bar_knows_the_length(capsys):
    fit(PlainBatches(), run_options={"enable_progress_bar": True}, epochs=1, steps_per_epoch=7)
    assert "7/7" in capsys.readouterr().out


@dataclass
class Parts:
    x: torch.Tensor
    y: torch.Tensor
    names: list


def as_dict(rows):
    x, y = zip(*rows, strict=True)
    return {"id": index_of(torch.stack(x)), "x": torch.stack(x), "y": torch.stack(y)}


def as_dataclass(rows):
    x, y = zip(*rows, strict=True)
    return Parts(torch.stack(x), torch.stack(y), [int(label) for label in y])


class OfParts(Remembering):
    def training_step(self, batch, batch_idx):
        if isinstance(batch, Parts):
            assert batch.names == batch.y.tolist()
            return super().training_step((batch.x, batch.y), batch_idx)
        assert batch["id"].tolist() == index_of(batch["x"]).tolist()
        return super().training_step((batch["x"], batch["y"]), batch_idx)


@pytest.mark.parametrize(("collate", "path"), [(as_dict, "y"), (as_dataclass, "y")])
def test_batches_of_several_parts(collate, path):
    loader = DataLoader(SizedStream(100), batch_size=8, collate_fn=collate)
    _, module, data, callback = fit(loader, OfParts(), budget=1.0)
    assert callback._learner._streamed.label_column.paths[0] == path
    assert data.candidate_stream.num_kept < data.candidate_stream.num_considered
    assert {len(step) for step in module.steps} == {8}


class Sentences(IterableDataset):
    """Token 1 stands for class 0, 2 for 1, 3 for 2; a sentence has up to 6."""

    def __iter__(self):
        for number in range(96):
            yield torch.full((1 + number % 6,), 1 + number % 3), number % 3

    def __len__(self):
        return 96


def padded(rows):
    tokens, labels = zip(*rows, strict=True)
    return torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True), torch.tensor(labels)


class Reader(Classifier):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(4, 8)
        self.steps = []

    def training_step(self, batch, batch_idx):
        tokens, labels = batch
        assert (tokens[:, 0] == labels + 1).all()
        assert ((tokens == tokens[:, :1]) | (tokens == 0)).all()
        self.steps.append(tuple(tokens.shape))
        return F.cross_entropy(self.net(self.embedding(tokens).sum(1)), labels)


@pytest.mark.parametrize("pad_values", [None, 0])
def test_ragged_batches(pad_values):
    loader = DataLoader(Sentences(), batch_size=4, collate_fn=padded)
    _, module, data, _ = fit(loader, Reader(), budget=1.0, pad_values=pad_values)
    assert {size for size, _ in module.steps} == {4}
    assert len(module.steps) == 24 * 4
    assert data.candidate_stream.num_kept < data.candidate_stream.num_considered
    assert (len(data.candidate_stream._batcher.kinds) <= 1) or pad_values is None


@pytest.mark.parametrize("reweighting", ["inverse_probability", "normalized"])
def test_weights_reach_the_gradients(reweighting):
    """With a linear model the gradient is known: the weighted mean over the rows."""

    class Linear(Remembering):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(8, 3)
            self.checked = 0

        def on_after_backward(self):
            draw = self.trainer.datamodule._fetching.source._in_flight[0]
            x, labels = draw.rows.batch
            with torch.enable_grad():
                losses = F.cross_entropy(self.net(x), labels, reduction="none")
                (expected,) = torch.autograd.grad((losses * torch.from_numpy(draw.weights)).mean(), self.net.weight)
            torch.testing.assert_close(self.net.weight.grad, expected)
            self.checked += len(set(draw.weights.tolist())) > 1

    callback = AutoAssistCallback(reweighting=reweighting)
    _, module, _, _ = fit(DataLoader(SizedStream(96), batch_size=8), Linear(), callback=callback, budget=1.0)
    assert module.checked > 20


# ---- nothing filtered, nothing changed


@pytest.mark.parametrize("policy", ["uniform", AutoAssistPolicy(gamma=1.0)], ids=["uniform", "keeps all"])
@pytest.mark.parametrize("options", [{}, {"num_workers": 1}], ids=str)
def test_a_run_that_keeps_everything_is_plain_lightning_bit_for_bit(policy, options):
    def parameters(data, *callbacks):
        pl.seed_everything(0, verbose=False)
        module = Remembering()
        run = trainer(max_epochs=3, callbacks=list(callbacks))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Your `IterableDataset` has `__len__` defined")
            warnings.filterwarnings("ignore", "The 'train_dataloader' does not have many workers")
            run.fit(module, data)
        return module

    loader = DataLoader(SizedStream(100), batch_size=8, **options)
    plain = parameters(loader)
    pl.seed_everything(0, verbose=False)
    _, found, _, callback = fit(
        DataLoader(SizedStream(100), batch_size=8, **options),
        callback=AutoAssistCallback(policy=policy),
        epochs=3,
        budget=1.0,
    )
    assert found.steps == plain.steps
    assert len(found.steps[12]) == 4  # the short last batch
    assert callback.summary()["instances_seen"] == 300
    for name, value in plain.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name


def test_overfit_batches_repeats_the_users_own():
    options = {"overfit_batches": 2}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*")
        _, module, _, _ = fit(DataLoader(SizedStream(100), batch_size=8), run_options=options)
    assert module.steps == [list(range(8)), list(range(8, 16))] * 4


def test_anyone_may_read_the_users_batches():
    class Asking(Remembering):
        def training_step(self, batch, batch_idx):
            if batch_idx == 1:
                batches = list(self.trainer.datamodule.train_dataloader())
                assert [index_of(x).tolist() for x, _ in batches] == [list(range(8 * i, 8 * i + 8)) for i in range(8)]
            return super().training_step(batch, batch_idx)

    loader = DataLoader(SizedStream(100), batch_size=8)
    before = dict(loader.__dict__)
    fit(loader, Asking())
    assert loader.__dict__ == before


def test_the_global_random_numbers_are_those_of_a_plain_run():
    """But for what each new pass of the user's own loader draws."""
    states = []
    for callback in (AutoAssistCallback(), AutoAssistCallback(policy="uniform")):
        fit(PlainBatches(), Remembering(), callback=callback, steps_per_epoch=5)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


# ---- resume


class Saving(pl.Callback):
    def __init__(self, folder, steps):
        self.folder, self.steps = folder, steps

    def on_train_batch_end(self, run, *args):
        if run.global_step in self.steps:
            run.save_checkpoint(self.folder / f"step={run.global_step}.ckpt")


STEPS = (3, 8, 13, 20, 27)
RESUMED = {
    "no workers": {},
    "2 workers": {"num_workers": 2},
    "2 persistent workers": {"num_workers": 2, "persistent_workers": True},
    "weights": {"reweighting": "normalized"},
    "lag": {"lag": 3},
    "async": {"lag": 3, "update": "async"},
    "names": {"collate_fn": as_dataclass},
}


def outcome(folder, steps=(), loader_type=StatefulLoader, ckpt_path=None, seed=0, extra=(), **options):
    settings = {name: options.pop(name) for name in ("reweighting", "lag", "update") if name in options}
    callback = AutoAssistCallback(**settings)
    loader = loader_type(Stream(100), batch_size=8, **options)
    saving = Saving(folder, steps)
    _, module, data, _ = fit(
        loader, OfParts() if "collate_fn" in options else None, saving, *extra, callback=callback, seed=seed,
        ckpt_path=ckpt_path, steps_per_epoch=8,
    )  # fmt: skip
    found = {
        **module.state_dict(),
        "assistant": callback.assistant.weight,
        "considered": torch.tensor(data.candidate_stream.num_considered),
        "rng": torch.get_rng_state(),
    }
    return found, module.steps


@pytest.mark.skipif(pl.__version__ < "2.5", reason="Lightning 2.4 trains on one batch too many after a resume")
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create the checkpoint")
@pytest.mark.parametrize("options", RESUMED.values(), ids=RESUMED)
def test_resumed_with_a_loader_that_has_state_a_run_is_the_uninterrupted_one(options, tmp_path):
    steps = STEPS if "num_workers" not in options else STEPS[1::2]
    expected, batches = outcome(tmp_path, steps, **options)
    for step in steps:
        found, after = outcome(tmp_path, ckpt_path=tmp_path / f"step={step}.ckpt", seed=99, **options)
        assert after == batches[step:]
        for name in expected:
            assert torch.equal(expected[name], found[name]), (step, name)


@pytest.mark.skipif(pl.__version__ < "2.5", reason="Lightning 2.4 trains on one batch too many after a resume")
def test_resumed_without_the_loaders_state_the_pass_begins_anew(tmp_path):
    _, whole = outcome(tmp_path, (20,), DataLoader)
    with pytest.warns(match="a DataLoader has no state_dict.*current pass begins anew") as caught:
        _, after = outcome(tmp_path, loader_type=DataLoader, ckpt_path=tmp_path / "step=20.ckpt", seed=99)
    assert sum("begins anew" in str(warning.message) for warning in caught) == 1
    assert len(after) == 32 - 20
    assert {len(step) for step in after} == {8}
    assert after != whole[20:]
    torch.load(tmp_path / "step=20.ckpt", weights_only=True)


def test_a_second_fit_goes_on():
    loader = StatefulLoader(Stream(100), batch_size=8)
    options = {"steps_per_epoch": 8, "callback": AutoAssistCallback(policy="autoassist")}  # has no unfiltered tail
    run, module, data, _ = fit(loader, epochs=2, **options)
    considered = data.candidate_stream.num_considered
    run.fit_loop.max_epochs = 4
    run.fit(module, datamodule=data)
    options["callback"] = AutoAssistCallback(policy="autoassist")
    _, whole, _, _ = fit(StatefulLoader(Stream(100), batch_size=8), epochs=4, **options)
    assert data.candidate_stream.num_considered > considered
    assert len(module.steps) == len(whole.steps)
    assert module.steps[:16] == whole.steps[:16]
    assert module.steps[16] == whole.steps[16]


# ---- what goes wrong


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_harmless(bad):
    class Bad(Stream):
        def __iter__(self):
            for number, (x, label) in enumerate(super().__iter__()):
                yield (torch.cat([x[:1], torch.full_like(x[1:], bad)]) if number % 5 == 0 else x), label

    class Careful(Remembering):
        def training_step(self, batch, batch_idx):
            return super().training_step((batch[0].nan_to_num(0.0, 0.0, 0.0), batch[1]), batch_idx)

    callback = AutoAssistCallback()
    _, module, data, _ = fit(DataLoader(Bad(100), batch_size=8), Careful(), callback=callback, steps_per_epoch=13)
    assert callback.assistant.weight.isfinite().all()
    assert data.candidate_stream.num_kept < data.candidate_stream.num_considered
    assert len(module.steps) == 52


def test_losses_that_are_not_finite_are_not_learnt_from():
    class Bad(Remembering):
        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)
            losses = F.cross_entropy(self.net(batch[0]), batch[1], reduction="none")
            losses = torch.where(index_of(batch[0]) % 5 == 0, torch.nan, losses)
            return {"loss": losses[losses.isfinite()].mean(), "instance_loss": losses}

    callback = AutoAssistCallback()
    _, module, _, _ = fit(DataLoader(Stream(100), batch_size=8), Bad(), callback=callback, steps_per_epoch=13)
    bad = sum(index % 5 == 0 for step in module.steps for index in step)
    assert callback.summary()["nonfinite_instances"] == bad
    assert callback.assistant.weight.isfinite().all()


class Silent(Stream):
    def __iter__(self):
        return iter(())


REFUSED = {
    "nothing": (lambda: DataLoader(Silent(), batch_size=8), {"steps_per_epoch": 3}, "DataLoader, yields no instance"),
    "indexed data": (
        lambda: DataLoader(CountingDataset(50), batch_size=5),
        {"steps_per_epoch": 3},
        "steps_per_epoch=3 is for streams, and this data set has a length",
    ),
}


@pytest.mark.parametrize(("make_loader", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_streams_that_cannot_be_filtered(make_loader, options, message):
    with pytest.raises(MisconfigurationException, match=message):
        fit(make_loader(), **options)


PASSED_ON = {
    "no length": (
        lambda: DataLoader(Stream(80), batch_size=8),
        {},
        r"unfiltered.*DataLoader has no length, so .*AutoAssistDataModule\(data, steps_per_epoch=...\)",
    ),
    "a generator": (
        lambda: (batch for batch in list(DataLoader(Stream(80), batch_size=8))),
        {"steps_per_epoch": 3},
        "unfiltered.*A generator can be read only once; give an object whose __iter__ begins a new pass",
    ),
}


@pytest.mark.parametrize(("make_loader", "options", "message"), PASSED_ON.values(), ids=PASSED_ON)
def test_streams_that_are_passed_on_unfiltered(make_loader, options, message):
    with pytest.warns(UserWarning, match=message) as caught:
        _, module, data, _ = fit(make_loader(), epochs=1, **options)
    assert len(module.steps) == 10  # all of the stream's batches
    assert data.candidate_stream is None
    assert sum("passes the train data on unfiltered" in str(warning.message) for warning in caught) == 1


def test_remembered_scores_are_refused():
    message = (
        r"MemoryAssistant reads an instance's last score.*AutoAssistCallback\(policy=..., assistant=\"logistic\"\)"
    )
    with pytest.raises(MisconfigurationException, match=message):
        fit(PlainBatches(), callback=AutoAssistCallback(assistant="memory"))


def test_positions_in_the_data_set_are_refused():
    class Positions(LogisticAssistant):
        required_columns = ("indices",)

    with pytest.raises(MisconfigurationException, match="Positions reads an instance's position in the data set"):
        fit(PlainBatches(), callback=AutoAssistCallback(assistant=Positions()))


@pytest.mark.parametrize("policy", ["autoassist", "proportional", "infobatch", "selective_backprop", "random"])
def test_policies_filter_streams_though_their_own_assistant_remembers(policy):
    callback = AutoAssistCallback(policy=policy)
    _, module, data, _ = fit(PlainBatches(), callback=callback, budget=1)
    assert len(module.steps) == 52
    assert policy == "random" or type(callback.assistant) is LogisticAssistant
    assert data.candidate_stream.num_kept < data.candidate_stream.num_considered


def test_an_epoch_of_no_steps():
    with pytest.raises(ValueError, match="steps_per_epoch must be at least 1, got 0"):
        AutoAssistDataModule(PlainBatches(), steps_per_epoch=0)


@pytest.mark.parametrize(
    "data", [Stream(), torch.ones(3, 4), "data", np.ones(3).tolist()], ids=lambda data: type(data).__name__
)
def test_what_is_no_loader(data):
    with pytest.raises(TypeError, match="data must be a LightningDataModule, a train DataLoader"):
        AutoAssistDataModule(data)


def test_on_several_devices_streams_are_not_filtered_so_far():
    with pytest.raises(UnfilterableError, match="on one device only, and this Trainer has 2; use devices=1"):
        prepare_stream(None, world_size=2)


def test_validation_intervals_longer_than_an_epoch_are_refused():
    with pytest.raises(MisconfigurationException, match="val_check_interval=5 or less"):
        fit(PlainBatches(), steps_per_epoch=5, run_options={"val_check_interval": 8})


def test_a_batch_without_features_costs_no_run():
    class Names(IterableDataset):
        def __iter__(self):
            yield from (str(number % 3) for number in range(40))

    class Reading(Classifier):
        def training_step(self, batch, batch_idx):
            assert len(batch) == 8
            return super().training_step((torch.ones(8, 8), torch.tensor([int(name) for name in batch])), batch_idx)

    with pytest.warns(match="stopped filtering, and training goes on with every instance.*pass features="):
        _, _, data, _ = fit(DataLoader(Names(), batch_size=8), Reading(), steps_per_epoch=10)
    assert data.candidate_stream.num_kept == data.candidate_stream.num_considered


def test_labels_that_the_step_computes_are_not_used():
    class Shifted(Remembering):
        def training_step(self, batch, batch_idx):
            return super().training_step((batch[0], 2 - batch[1]), batch_idx)

    callback = AutoAssistCallback()
    _, _, data, _ = fit(PlainBatches(), Shifted(), callback=callback, budget=1.0)
    assert callback._learner._streamed.label_column.paths == []
    assert len(callback.assistant.bias) == 1
    assert data.candidate_stream.num_kept < data.candidate_stream.num_considered
